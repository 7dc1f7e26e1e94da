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

#define RANK 512   // as in absorbed.cu
#define HEADS 64
#define LOWEST -1e30f
#define JOINERS 4  // groups of 128 threads that share a token's parts
#define MOST 256   // parts of a token: there are no more workers

// The parts of a token's sums become one: a block for a token and `each` heads, one after another.
extern "C" __global__ void join(const float *__restrict__ parts, const float *__restrict__ tops,
                                const int *__restrict__ begun, bf16 *__restrict__ out, int heads, int each) {
    __shared__ float weight[MOST], all;
    __shared__ float4 some[JOINERS][128];
    const int *of = begun + 4 * blockIdx.x;
    int worker = of[0], count = of[2] - worker + 1, thread = threadIdx.x % 128, joiner = threadIdx.x / 128;
    if (worker < 0) return;
    long long step = (long long)((heads + HEADS - 1) / HEADS) * HEADS, begin = of[1] * step, rest = 2 * worker * step;
    for (int head = blockIdx.y * each; head < min(heads, (int)(blockIdx.y + 1) * each); head++) {
        if (joiner == 0) {  // the parts' weights
            if (thread < 32) {
                float highest = LOWEST, sum = 0;
                for (int i = thread; i < count; i += 32)
                    highest = fmaxf(highest, weight[i] = tops[2 * ((i ? rest + 2 * i * step : begin) + head)]);
                for (int s = 16; s; s >>= 1) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, s));
                for (int i = thread; i < count; i += 32) {
                    weight[i] = power_of_two(weight[i] - highest);
                    sum += weight[i] * tops[2 * ((i ? rest + 2 * i * step : begin) + head) + 1];
                }
                for (int s = 16; s; s >>= 1) sum += __shfl_xor_sync(~0u, sum, s);
                if (thread == 0) all = sum;
            }
        }
        __syncthreads();
        float4 sum = {};
#pragma unroll 8
        for (int i = joiner; i < count; i += JOINERS) {
            float4 more = *(const float4 *)(parts + ((i ? rest + 2 * i * step : begin) + head) * RANK + 4 * thread);
            sum.x += weight[i] * more.x, sum.y += weight[i] * more.y;
            sum.z += weight[i] * more.z, sum.w += weight[i] * more.w;
        }
        some[joiner][thread] = sum;
        __syncthreads();
        if (joiner == 0) {
            for (int j = 1; j < JOINERS; j++) {
                float4 more = some[j][thread];
                sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
            }
            float by = 1 / all;
            uint2 both = {narrow_both(sum.x * by, sum.y * by), narrow_both(sum.z * by, sum.w * by)};
            *(uint2 *)(out + ((long long)blockIdx.x * heads + head) * RANK + 4 * thread) = both;
        }
        __syncthreads();
    }
}
