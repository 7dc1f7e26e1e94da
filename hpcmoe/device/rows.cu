// Rows into and out of messages and matrices, 16 bytes at a time; twins: kernels/pack.py, kernels/combine.py.

#define HELD 4     // vectors of 8 values of a row that a thread of `pack` holds at once
#define ANSWERS 8  // and vectors of so many answers a thread of `combine`

// A block per token: its row of x [T, H], read once, goes to out[base[rank] + row], `units` wide, of every rank that it
// leaves for; behind it the local slots of this and later k's with the same rank, and -1.
extern "C" __global__ void pack(const bf16 *__restrict__ x, const int *__restrict__ expert,
                                const short *__restrict__ local, const int *__restrict__ rank,
                                const int *__restrict__ row, const int *__restrict__ base, bf16 *__restrict__ out,
                                int K, int H, int units, int width) {
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
        if (to[k] < 0) continue;
        int column = 0;
        for (int other = k; other < K; other++)
            if (rank[first + other] == rank[first + k]) out[to[k] + H + column++] = (bf16)local[expert[first + other]];
        while (column < width) out[to[k] + H + column++] = 0xffff;
    }
}

// A block per row: out[i] = in[index ? index[i] : i], H values of rows that are `from` and `to` values apart.
extern "C" __global__ void take(const bf16 *__restrict__ in, const int *index, bf16 *__restrict__ out, int H, int from, int to) {
    const bf16 *source = in + (long long)(index ? index[blockIdx.x] : blockIdx.x) * from;
    bf16 *target = out + (long long)blockIdx.x * to;
    for (int h = threadIdx.x * 8; h < H; h += blockDim.x * 8) *(Eight *)(target + h) = *(const Eight *)(source + h);
}

// A block per row: out[index[i]] = in[i], H values each.
extern "C" __global__ void put(const bf16 *__restrict__ in, const int *index, bf16 *__restrict__ out, int H) {
    const bf16 *source = in + (long long)blockIdx.x * H;
    bf16 *target = out + (long long)index[blockIdx.x] * H;
    for (int h = threadIdx.x * 8; h < H; h += blockDim.x * 8) *(Eight *)(target + h) = *(const Eight *)(source + h);
}

// A thread per 8 values, gridDim.y blocks per token: x += sum over k, in that order, of weight * answer (+ shared). The
// answer of (token, k) is rows[base[rank] + home]. x and shared [T, H]; shared may be null. ANSWERS of them are read before
// they are added.
extern "C" __global__ void combine(bf16 *__restrict__ x, const bf16 *__restrict__ rows,
                                   const bf16 *__restrict__ shared, const float *__restrict__ weight,
                                   const int *__restrict__ rank, const int *__restrict__ home,
                                   const int *__restrict__ base, int K, int H, int round_each) {
    extern __shared__ long long from[];  // [K], and as many weights behind them
    float *weights = (float *)(from + K);
    long long first = (long long)blockIdx.x * H, mine = (long long)blockIdx.x * K;
    for (int k = threadIdx.x; k < K; k += blockDim.x) {
        from[k] = (long long)(base[rank[mine + k]] + home[mine + k]) * H;
        weights[k] = weight[mine + k];
    }
    __syncthreads();
    int h = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (h < H) {
        float sum[8] = {0};
        Eight own = *(const Eight *)(x + first + h), more = {};
        if (shared) more = *(const Eight *)(shared + first + h);
        for (int begin = 0; begin < K; begin += ANSWERS) {
            Eight held[ANSWERS];
#pragma unroll
            for (int a = 0; a < ANSWERS; a++) if (begin + a < K) held[a] = *(const Eight *)(rows + from[begin + a] + h);
#pragma unroll
            for (int a = 0; a < ANSWERS; a++) {
                if (begin + a >= K) break;
                for (int i = 0; i < 8; i++) {
                    float part = __fmul_rn(weights[begin + a], wide(held[a].value[i]));
                    sum[i] = __fadd_rn(sum[i], round_each ? rounded(part) : part);
                }
            }
        }
        for (int i = 0; i < 8; i++) {
            float y = rounded(sum[i]);
            if (shared) y = rounded(y + wide(more.value[i]));
            own.value[i] = narrow(wide(own.value[i]) + y);
        }
        *(Eight *)(x + first + h) = own;
    }
}
