// Rows into and out of messages and matrices, 16 bytes at a time; twins: kernels/pack.py, kernels/combine.py.

#define HELD 4     // vectors of 8 values of a row that a thread of `pack` holds at once
#define ANSWERS 8  // and vectors of so many answers a thread of `combine`,
#define PARTS 4    // or of so many parts of answers, which are twice as long

// The local slots of this and later k's of a token that go to the same rank, and -1 behind them. K counts each shard of
// a choice for itself, in `pack` too.
__device__ __forceinline__ void write_trailer(const int *expert, const short *local, const int *rank, int first, int k,
                                              int K, int shards, int width, bf16 *trailer) {
    int column = 0;
    for (int other = k; other < K; other++)
        if (rank[first + other] == rank[first + k]) trailer[column++] = (bf16)local[expert[(first + other) / shards]];
    while (column < width) trailer[column++] = 0xffff;
}

// A block per token: its row of x [T, H], read once, goes to out[base[rank] + row], `units` wide, of every rank that it
// leaves for, with its trailer behind it.
extern "C" __global__ void pack(const bf16 *__restrict__ x, const int *__restrict__ expert,
                                const short *__restrict__ local, const int *__restrict__ rank,
                                const int *__restrict__ row, const int *__restrict__ base, bf16 *__restrict__ out,
                                int K, int shards, int H, int units, int width) {
    extern __shared__ long long to[];  // [K]: the first value of each k's row, -1 where an earlier one serves it
    int first = blockIdx.x * K;
    for (int k = threadIdx.x; k < K; k += blockDim.x)
        to[k] = row[first + k] < 0 ? -1 : (long long)(base[rank[first + k]] + row[first + k]) * units;
    __syncthreads();
    const bf16 *from = x + (long long)blockIdx.x * H;
    int step = blockDim.x * 8;
    for (int begin = threadIdx.x * 8; begin < H; begin += HELD * step) {
        Eight held[HELD];
#pragma unroll
        for (int i = 0; i < HELD; i++) if (begin + i * step < H) held[i] = *(const Eight *)(from + begin + i * step);
        for (int k = 0; k < K; k++) {
            if (to[k] < 0) continue;
#pragma unroll
            for (int i = 0; i < HELD; i++)
                if (begin + i * step < H) *(Eight *)(out + to[k] + begin + i * step) = held[i];
        }
    }
    if (width == 0) return;
    for (int k = threadIdx.x; k < K; k += blockDim.x) {
        if (to[k] >= 0) write_trailer(expert, local, rank, first, k, K, shards, width, out + to[k] + H);
    }
}

#if __CUDA_ARCH__ >= 900
// Copies by the engines of Hopper and later: into shared memory, where `there` counts the bytes, and out of it.
__device__ __forceinline__ unsigned shared_address(const void *at) { return (unsigned)__cvta_generic_to_shared(at); }

__device__ __forceinline__ void expect(unsigned long long *there, int bytes) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(there)));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(there)), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void bring(bf16 *to, const bf16 *from, int values, unsigned long long *there) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                 shared_address(to)), "l"(from), "r"(2 * values), "r"(shared_address(there)) : "memory");
}

__device__ __forceinline__ void wait_for(unsigned long long *there) {
    for (unsigned done = 0; !done;)
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done) : "r"(shared_address(there)) : "memory");
}

__device__ __forceinline__ void take_away(bf16 *to, const bf16 *from, int values) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)),
                 "r"(2 * values) : "memory");
}

// `pack` where copy engines move rows: a warp per token, whose row goes to shared memory, H values, and from there to
// every rank.
extern "C" __global__ void pack_in_bulk(const bf16 *__restrict__ x, const int *__restrict__ expert,
                                        const short *__restrict__ local, const int *__restrict__ rank,
                                        const int *__restrict__ row, const int *__restrict__ base,
                                        bf16 *__restrict__ out, int K, int shards, int H, int units, int width) {
    extern __shared__ __align__(128) bf16 held[];
    __shared__ __align__(8) unsigned long long there;
    int first = blockIdx.x * K;
    if (threadIdx.x == 0) {
        expect(&there, 2 * H);
        bring(held, x + (long long)blockIdx.x * H, H, &there);
    }
    __syncwarp();
    for (int k = threadIdx.x; k < K; k += 32) {
        if (row[first + k] < 0) continue;  // an earlier k's row serves this one
        bf16 *to = out + (long long)(base[rank[first + k]] + row[first + k]) * units;
        wait_for(&there);
        take_away(to, held, H);
        if (width) write_trailer(expert, local, rank, first, k, K, shards, width, to + H);
    }
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");  // shared memory goes with the block
}
#endif

// A block per row: out[i] = in[index ? index[i] : i], H values of rows that are `from` and `to` values apart.
extern "C" __global__ void take(const bf16 *__restrict__ in, const int *index, bf16 *__restrict__ out, int H, int from, int to) {
    const bf16 *source = in + (long long)(index ? index[blockIdx.x] : blockIdx.x) * from;
    bf16 *target = out + (long long)blockIdx.x * to;
    for (int h = threadIdx.x * 8; h < H; h += blockDim.x * 8) *(Eight *)(target + h) = *(const Eight *)(source + h);
}

// One more weighted answer, in float32.
__device__ __forceinline__ void add(float *sum, float weight, const Eight &answer, int round_each) {
    for (int i = 0; i < 8; i++) {
        float part = __fmul_rn(weight, wide(answer.value[i]));
        sum[i] = __fadd_rn(sum[i], round_each ? rounded(part) : part);
    }
}

// The residual with a token's answers, and with `more`, the shared expert's, if there is one.
__device__ __forceinline__ Eight total(Eight own, const float *sum, const Eight &more, bool shared) {
    for (int i = 0; i < 8; i++) {
        float y = rounded(sum[i]);
        if (shared) y = rounded(y + wide(more.value[i]));
        own.value[i] = narrow(wide(own.value[i]) + y);
    }
    return own;
}

// A block per row: out[index[i]] = in[i], H values each.
extern "C" __global__ void put(const bf16 *__restrict__ in, const int *index, bf16 *__restrict__ out, int H) {
    const bf16 *source = in + (long long)blockIdx.x * H;
    bf16 *target = out + (long long)index[blockIdx.x] * H;
    for (int h = threadIdx.x * 8; h < H; h += blockDim.x * 8) *(Eight *)(target + h) = *(const Eight *)(source + h);
}

// A block per (token, `8 * blockDim.x` values): out = the sum of its parts, of which rank r's lie behind base[r] in
// parts [extent, H], in float32 and in the order of the ranks, and of the bias; rounded once.
extern "C" __global__ void join(const float *__restrict__ parts, const int *base, const bf16 *bias,
                                bf16 *__restrict__ out, int ranks, int H) {
    int h = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (h >= H) return;
    float sum[8] = {};
    for (int rank = 0; rank < ranks; rank++) {
        const float4 *part = (const float4 *)(parts + (long long)(base[rank] + blockIdx.x) * H + h);
        float4 low = part[0], high = part[1];
        sum[0] += low.x; sum[1] += low.y; sum[2] += low.z; sum[3] += low.w;
        sum[4] += high.x; sum[5] += high.y; sum[6] += high.z; sum[7] += high.w;
    }
    Eight some;
    for (int i = 0; i < 8; i++) some.value[i] = narrow(bias ? sum[i] + wide(bias[h + i]) : sum[i]);
    *(Eight *)(out + (long long)blockIdx.x * H + h) = some;
}

#if __CUDA_ARCH__ >= 900
// `combine` where copy engines move rows: a block per (token, `part` values), a thread per 8 of them.
// Dynamic shared memory: K * part values, K floats.
extern "C" __global__ void combine_in_bulk(bf16 *__restrict__ x, const bf16 *__restrict__ rows,
                                           const bf16 *__restrict__ shared, const float *__restrict__ weight,
                                           const int *__restrict__ rank, const int *__restrict__ home,
                                           const int *__restrict__ base, int K, int H, int round_each, int part) {
    extern __shared__ __align__(128) bf16 held[];
    __shared__ __align__(8) unsigned long long there;
    float *weights = (float *)(held + K * part);
    int begin = blockIdx.y * part, values = min(part, H - begin), h = threadIdx.x * 8;
    long long mine = (long long)blockIdx.x * K, at = (long long)blockIdx.x * H + begin + h;
    if (threadIdx.x == 0) expect(&there, 2 * K * values);
    __syncthreads();
    for (int k = threadIdx.x; k < K; k += blockDim.x) {
        bring(held + k * part, rows + (long long)(base[rank[mine + k]] + home[mine + k]) * H + begin, values, &there);
        weights[k] = weight[mine + k];
    }
    Eight own = {}, more = {};
    if (h < values) own = *(const Eight *)(x + at);
    if (h < values && shared) more = *(const Eight *)(shared + at);
    __syncthreads();
    if (h >= values) return;
    wait_for(&there);
    float sum[8] = {0};
    for (int k = 0; k < K; k++) add(sum, weights[k], *(const Eight *)(held + k * part + h), round_each);
    *(Eight *)(x + at) = total(own, sum, more, shared != 0);
}
#endif

struct __align__(16) EightFloats { float value[8]; };

// The weighted answers of a token, each the sum of `shards` parts of it in float32, in their order, rounded once. K parts
// of all answers, of which PARTS are read before they are added.
__device__ __forceinline__ void add_parts(float *sum, const float *weights, const float *rows, const long long *from,
                                          int h, int K, int shards, int round_each) {
    EightFloats held[PARTS];
    float total[8];
    int part = 0;
    for (int begin = 0; begin < K; begin += PARTS) {
#pragma unroll
        for (int a = 0; a < PARTS; a++) {
            if (begin + a < K) held[a] = *(const EightFloats *)(rows + from[begin + a] + h);
        }
#pragma unroll
        for (int a = 0; a < PARTS; a++) {
            if (begin + a >= K) continue;
            for (int i = 0; i < 8; i++) total[i] = part ? __fadd_rn(total[i], held[a].value[i]) : held[a].value[i];
            if (++part < shards) continue;
            Eight answer;
            for (int i = 0; i < 8; i++) answer.value[i] = narrow(total[i]);
            add(sum, *weights++, answer, round_each);
            part = 0;
        }
    }
}

// A thread per 8 values, gridDim.y blocks per token: x += sum over k, in that order, of weight * answer (+ shared). The
// answer of (token, k) is rows[base[rank] + home]. x and shared [T, H]; shared may be null. ANSWERS of them are read before
// they are added. Where answers come in parts, rows are float32, and K counts each part for itself.
extern "C" __global__ void combine(bf16 *__restrict__ x, const bf16 *__restrict__ rows,
                                   const bf16 *__restrict__ shared, const float *__restrict__ weight,
                                   const int *__restrict__ rank, const int *__restrict__ home,
                                   const int *__restrict__ base, int K, int H, int round_each, int shards) {
    extern __shared__ long long from[];  // [K], up to whole ANSWERS, and as many weights behind them
    float *weights = (float *)(from + (K + ANSWERS - 1) / ANSWERS * ANSWERS);
    long long first = (long long)blockIdx.x * H, mine = (long long)blockIdx.x * K;
    for (int k = threadIdx.x; k < K; k += blockDim.x) {
        from[k] = (long long)(base[rank[mine + k]] + home[mine + k]) * H;
        if (k % shards == 0) weights[k / shards] = weight[(mine + k) / shards];
    }
    __syncthreads();
    int h = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (h < H) {
        float sum[8] = {0};
        Eight own = *(const Eight *)(x + first + h), more = {};
        if (shared) more = *(const Eight *)(shared + first + h);
        if (shards > 1) add_parts(sum, weights, (const float *)rows, from, h, K, shards, round_each);
        for (int begin = 0; begin < K && shards == 1; begin += ANSWERS) {
            Eight held[ANSWERS];
#pragma unroll
            for (int a = 0; a < ANSWERS; a++) if (begin + a < K) held[a] = *(const Eight *)(rows + from[begin + a] + h);
#pragma unroll
            for (int a = 0; a < ANSWERS; a++) if (begin + a < K) add(sum, weights[begin + a], held[a], round_each);
        }
        *(Eight *)(x + first + h) = total(own, sum, more, shared != 0);
    }
}
