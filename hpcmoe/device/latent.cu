// What attention with a latent keeps, and the end of absorbed.cu's sums; twins: model/latent.py, model/cache.py.

// A block per token (y = 0): its vector, normed, and its turned key go to the cache; and one per token and
// as many heads as it has warps: what turns of their queries is turned in place, behind the `plain` values that stay.
// both [T, rank + turning], q [T, heads * (plain + turning)], kept [slots, length, rank + turning].
extern "C" __global__ void keep(bf16 *q, const bf16 *both, const float *weight, bf16 *kept, const int *slot,
                                const int *position, const bf16 *cos, const bf16 *sin, int heads, int plain,
                                int turning, int rank, int length, float eps) {
    __shared__ float shared[32];
    int half = turning / 2, at = position[blockIdx.x];
    const bf16 *from = both + (long long)blockIdx.x * (rank + turning);
    bf16 *to = kept + ((long long)slot[blockIdx.x] * length + at) * (rank + turning);
    cos += (long long)at * half, sin += (long long)at * half;
    if (blockIdx.y == 0) {
        float sum = 0;
        for (int i = threadIdx.x; i < rank; i += blockDim.x) sum += wide(from[i]) * wide(from[i]);
        float scale = 1 / sqrtf(block_sum(sum, shared) / rank + eps);
        for (int i = threadIdx.x; i < rank; i += blockDim.x)
            to[i] = narrow(weight[i] * rounded(wide(from[i]) * scale));
        from += rank, to += rank;
    } else {
        int head = (blockIdx.y - 1) * (blockDim.x / 32) + threadIdx.x / 32;
        if (head >= heads) return;
        to = q + ((long long)blockIdx.x * heads + head) * (plain + turning) + plain;
        from = to;
    }
    for (int pair = threadIdx.x % 32; pair < half; pair += 32) {
        if (blockIdx.y == 0 && threadIdx.x >= 32) break;
        float a = wide(from[pair]), b = wide(from[pair + half]);
        turn(a, b, wide(cos[pair]), wide(sin[pair]));
        to[pair] = narrow(a);
        to[pair + half] = narrow(b);
    }
}

#define RANK 512  // as in absorbed.cu
#define HEADS 64
#define LOWEST -1e30f
#define JOINERS 4  // groups of 128 threads
#define FEW 16     // parts up to which a group does not share them with the others
#define MOST 256   // parts of a token: there are no more workers

// Where a token's parts lie: the first one, and the others by the number of their workers.
struct Parts {
    long long first, rest, step;
    int count;

    __device__ __forceinline__ long long operator[](int i) const { return i ? rest + 2 * i * step : first; }
};

// Four values of a row become those of the token.
__device__ __forceinline__ void put(bf16 *out, float4 sum, float all) {
    float by = 1 / all;
    uint2 both = {narrow_both(sum.x * by, sum.y * by), narrow_both(sum.z * by, sum.w * by)};
    *(uint2 *)out = both;
}

__device__ __forceinline__ void add(float4 &sum, float weight, float4 more) {
    sum.x += weight * more.x, sum.y += weight * more.y, sum.z += weight * more.z, sum.w += weight * more.w;
}

// A head's few parts, by 128 threads.
__device__ __forceinline__ void join_few(const float *parts, const float *tops, const Parts &at, int head, bf16 *out) {
    float highest = LOWEST, all = 0;
    float4 sum = {};
#pragma unroll 4
    for (int i = 0; i < at.count; i++) highest = fmaxf(highest, tops[2 * (at[i] + head)]);
#pragma unroll 4
    for (int i = 0; i < at.count; i++) {
        float2 top = *(const float2 *)(tops + 2 * (at[i] + head));
        float weight = power_of_two(top.x - highest);
        all += weight * top.y;
        add(sum, weight, *(const float4 *)(parts + (at[i] + head) * RANK + threadIdx.x % 128 * 4));
    }
    put(out + threadIdx.x % 128 * 4, sum, all);
}

// Many, by the whole block.
__device__ __forceinline__ void join_many(const float *parts, const float *tops, const Parts &at, int head, bf16 *out) {
    __shared__ float weights[MOST], all;
    __shared__ float4 some[JOINERS][128];
    int thread = threadIdx.x % 128, joiner = threadIdx.x / 128;
    __syncthreads();
    if (threadIdx.x < 32) {
        float highest = LOWEST, sum = 0;
        for (int i = thread; i < at.count; i += 32)
            highest = fmaxf(highest, weights[i] = tops[2 * (at[i] + head)]);
        for (int s = 16; s; s >>= 1) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, s));
        for (int i = thread; i < at.count; i += 32)
            sum += (weights[i] = power_of_two(weights[i] - highest)) * tops[2 * (at[i] + head) + 1];
        for (int s = 16; s; s >>= 1) sum += __shfl_xor_sync(~0u, sum, s);
        if (thread == 0) all = sum;
    }
    __syncthreads();
    float4 sum = {};
#pragma unroll 8
    for (int i = joiner; i < at.count; i += JOINERS)
        add(sum, weights[i], *(const float4 *)(parts + (at[i] + head) * RANK + thread * 4));
    some[joiner][thread] = sum;
    __syncthreads();
    if (joiner) return;
    for (int j = 1; j < JOINERS; j++) add(sum, 1, some[j][thread]);
    put(out + thread * 4, sum, all);
}

// The parts of a token's sums become one: a block for a token and `each` heads.
extern "C" __global__ void __launch_bounds__(128 * JOINERS, 2)
join(const float *__restrict__ parts, const float *__restrict__ tops, const int *__restrict__ begun,
     bf16 *__restrict__ out, int heads, int each) {
    const int *of = begun + 4 * blockIdx.x;
    int worker = of[0], end = min(heads, (int)(blockIdx.y + 1) * each);
    if (worker < 0) return;
    long long step = (long long)((heads + HEADS - 1) / HEADS) * HEADS;
    Parts at = {of[1] * step, 2 * worker * step, step, of[2] - worker + 1};
    out += (long long)blockIdx.x * heads * RANK;
    if (at.count <= FEW) {
        for (int head = blockIdx.y * each + threadIdx.x / 128; head < end; head += JOINERS)
            join_few(parts, tops, at, head, out + head * RANK);
    } else {
        for (int head = blockIdx.y * each; head < end; head++) join_many(parts, tops, at, head, out + head * RANK);
    }
}
