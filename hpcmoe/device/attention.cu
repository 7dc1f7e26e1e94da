// Rotary positions, the cache, and attention; twins: kernels/rope.py, model/cache.py, kernels/attention.py.

// A warp per (token, head), queries' heads first, then keys' and values': queries and keys are turned, their first
// `turning` values; keys and values go to their places in the cache. grid (T, heads + 2 kv_heads over the warps of a
// block). qkv [T, (heads + 2 kv_heads) * d], q [T, heads * d], caches [slots, kv_heads, length, d]; cos and sin
// [length, turning / 2].
extern "C" __global__ void rope(const bf16 *qkv, bf16 *q, bf16 *k_cache, bf16 *v_cache, const int *slot,
                                const int *position, const bf16 *cos, const bf16 *sin, int heads, int kv_heads, int d,
                                int turning, int length, float bound) {
    int half = turning / 2, at = position[blockIdx.x], all = heads + 2 * kv_heads;
    int head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
    if (head >= all) return;
    const bf16 *from = qkv + ((long long)blockIdx.x * all + head) * d;
    bool is_value = head >= heads + kv_heads;
    int kv_head = is_value ? head - heads - kv_heads : head - heads;
    long long mine = (((long long)slot[blockIdx.x] * kv_heads + kv_head) * length + at) * d;
    bf16 *to = head < heads ? q + ((long long)blockIdx.x * heads + head) * d : (is_value ? v_cache : k_cache) + mine;
    for (int pair = threadIdx.x % 32; pair < half; pair += 32) {
        float a = wide(from[pair]), b = wide(from[pair + half]);
        if (bound > 0) a = fminf(fmaxf(a, -bound), bound), b = fminf(fmaxf(b, -bound), bound);
        if (!is_value) turn(a, b, wide(cos[at * half + pair]), wide(sin[at * half + pair]));
        to[pair] = narrow(a);
        to[pair + half] = narrow(b);
    }
    for (int i = turning + threadIdx.x % 32; i < d; i += 32) {
        float a = wide(from[i]);
        to[i] = narrow(bound > 0 ? fminf(fmaxf(a, -bound), bound) : a);
    }
}

#define WARPS 4

// The score of a key, rounded where the twin rounds; on all lanes of a warp.
template <int MOST>
__device__ __forceinline__ float score_of(const float *mine, const bf16 *key, int d, float scale) {
    float dot = 0;
#pragma unroll
    for (int i = 0; i < MOST; i++)
        if (threadIdx.x % 32 + 32 * i < d) dot += mine[i] * wide(key[threadIdx.x % 32 + 32 * i]);
    for (int step = 16; step; step >>= 1) dot += __shfl_xor_sync(~0u, dot, step);
    return rounded(rounded(dot) * scale);
}

// The twin's own arithmetic, its roundings too, in three passes over the keys. A block of WARPS warps per (token, head);
// each warp takes every WARPS-th key. q [T, heads * d], out [T, heads * dv]; keys and values lie d values apart, of which
// a value has the first dv; sinks [heads] or null. d is 32 MOST at most.
template <int MOST>
__device__ __forceinline__ void attend_to(const bf16 *q, const bf16 *k_cache, const bf16 *v_cache, const int *slot,
                                          const int *position, const float *sinks, bf16 *out, int heads, int kv_heads,
                                          int d, int dv, int length, int window, float scale) {
    __shared__ float sums[WARPS][32 * MOST], tops[WARPS], totals[WARPS];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y;
    int last = position[blockIdx.x], first = window > 0 ? max(0, last - window + 1) : 0;
    long long base = ((long long)slot[blockIdx.x] * kv_heads + head / (heads / kv_heads)) * length;
    const bf16 *query = q + ((long long)blockIdx.x * heads + head) * d, *keys = k_cache + base * d;
    float mine[MOST], sum[MOST] = {0}, top = sinks ? sinks[head] : -INFINITY, total = 0;
#pragma unroll
    for (int i = 0; i < MOST; i++) mine[i] = lane + 32 * i < d ? wide(query[lane + 32 * i]) : 0;
    for (int key = first + warp; key <= last; key += WARPS)
        top = fmaxf(top, score_of<MOST>(mine, keys + (long long)key * d, d, scale));
    if (lane == 0) tops[warp] = top;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) top = fmaxf(top, tops[w]);
    auto share_of = [&](int key) {
        float below = score_of<MOST>(mine, keys + (long long)key * d, d, scale) - top;
        return expf(sinks ? rounded(below) : below);  // beside sinks the twin rounds here, too
    };
    for (int key = first + warp; key <= last; key += WARPS) total += share_of(key);
    if (lane == 0) totals[warp] = total;
    __syncthreads();
    total = 0;
    for (int w = 0; w < WARPS; w++) total += totals[w];
    if (sinks) total += expf(rounded(sinks[head] - top));
    for (int key = first + warp; key <= last; key += WARPS) {
        float part = rounded(share_of(key) / total);
        const bf16 *v = v_cache + (base + key) * d;
#pragma unroll
        for (int i = 0; i < MOST; i++) if (lane + 32 * i < dv) sum[i] += part * wide(v[lane + 32 * i]);
    }
#pragma unroll
    for (int i = 0; i < MOST; i++) sums[warp][lane + 32 * i] = sum[i];
    __syncthreads();
    for (int i = threadIdx.x; i < dv; i += blockDim.x) {
        float mixed = 0;
        for (int w = 0; w < WARPS; w++) mixed += sums[w][i];
        out[((long long)blockIdx.x * heads + head) * dv + i] = narrow(mixed);
    }
}

#define ATTEND(MOST) \
    extern "C" __global__ void attend_##MOST( \
        const bf16 *q, const bf16 *k_cache, const bf16 *v_cache, const int *slot, const int *position, \
        const float *sinks, bf16 *out, int heads, int kv_heads, int d, int dv, int length, int window, float scale) { \
        attend_to<MOST>(q, k_cache, v_cache, slot, position, sinks, out, heads, kv_heads, d, dv, length, window, \
                        scale); \
    }
ATTEND(8)
ATTEND(24)

#define CHUNK 256  // keys of a block of the next kernel: by it alone sums are cut, so a batch has no part in the bits
#define AHEAD 4    // keys that a group of lanes reads at once
#define LOWEST -1e30f

// Softmax and sum in one pass, cut along the keys (Dao et al., "Flash-decoding", 2023). A block of 128 threads per (token
// row[i], or i; head; CHUNK keys); `group` lanes take a key, 8 values each. The last block of a (token, head) to end adds
// up in the order of the keys. parts [n, heads, splits, d + 2] float32, tickets [n, heads] zeros, before and behind.
extern "C" __global__ void decode(const bf16 *q, const bf16 *k_cache, const bf16 *v_cache, const int *slot,
                                  const int *position, const int *row, const float *sinks, bf16 *out,
                                  float *parts, int *tickets, int heads, int kv_heads, int d, int length,
                                  int window, float scale, int group) {
    __shared__ float sums[1024], tops[128], totals[128];
    __shared__ int ticket;
    int t = row ? row[blockIdx.x] : blockIdx.x, head = blockIdx.y, last = position[t];
    int first = window > 0 ? max(0, last - window + 1) : 0, used = (last - first) / CHUNK + 1;
    if (blockIdx.z >= used) return;
    int begin = first + blockIdx.z * CHUNK, end = min(begin + CHUNK, last + 1);
    int sub = threadIdx.x / group, subs = 128 / group, lane = threadIdx.x % group, width = 8 * group;
    bool inside = lane * 8 < d;
    long long base = ((long long)slot[t] * kv_heads + head / (heads / kv_heads)) * length;
    const bf16 *k = k_cache + base * d + lane * 8, *v = v_cache + base * d + lane * 8;
    float mine[8], sum[8] = {0}, top = LOWEST, total = 0;
    Eight query = {};
    if (inside) query = *(const Eight *)(q + ((long long)t * heads + head) * d + lane * 8);
    for (int i = 0; i < 8; i++) mine[i] = wide(query.value[i]) * scale;
    for (int from = begin; from < end; from += subs * AHEAD) {
        Eight keys[AHEAD] = {}, values[AHEAD] = {};
        float scores[AHEAD], higher = top;
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            int key = from + a * subs + sub;
            if (key < end && inside) {
                keys[a] = *(const Eight *)(k + (long long)key * d);
                values[a] = *(const Eight *)(v + (long long)key * d);
            }
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            float dot = 0;
            for (int i = 0; i < 8; i++) dot += mine[i] * wide(keys[a].value[i]);
            for (int step = group / 2; step; step >>= 1) dot += __shfl_xor_sync(~0u, dot, step);
            scores[a] = from + a * subs + sub < end ? dot : -INFINITY;
            higher = fmaxf(higher, scores[a]);
        }
        float fade = __expf(top - higher);
        top = higher, total *= fade;
        for (int i = 0; i < 8; i++) sum[i] *= fade;
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            float part = __expf(scores[a] - top);
            total += part;
            for (int i = 0; i < 8; i++) sum[i] += part * wide(values[a].value[i]);
        }
    }
    for (int i = 0; i < 8; i++) sums[sub * width + lane * 8 + i] = sum[i];
    if (lane == 0) tops[sub] = top, totals[sub] = total;
    __syncthreads();
    float sink = sinks ? sinks[head] : LOWEST, highest = used == 1 ? sink : LOWEST, all = 0;
    for (int s = 0; s < subs; s++) highest = fmaxf(highest, tops[s]);
    if (sinks && used == 1) all = __expf(sink - highest);
    for (int s = 0; s < subs; s++) all += totals[s] * __expf(tops[s] - highest);
    bf16 *to = out + ((long long)t * heads + head) * d;
    long long cell = (long long)blockIdx.x * heads + head;
    float *of_cell = parts + cell * gridDim.z * (d + 2), *part = of_cell + blockIdx.z * (d + 2);
    for (int i = threadIdx.x; i < d; i += 128) {
        float mixed = 0;
        for (int s = 0; s < subs; s++) mixed += sums[s * width + i] * __expf(tops[s] - highest);
        if (used == 1) to[i] = narrow(mixed / all);
        else part[2 + i] = mixed;
    }
    if (used == 1) return;
    if (threadIdx.x == 0) part[0] = highest, part[1] = all;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) ticket = atomicAdd(tickets + cell, 1);
    __syncthreads();
    if (ticket != used - 1) return;
    __threadfence();
    highest = sink;
    for (int s = 0; s < used; s++) highest = fmaxf(highest, __ldcg(of_cell + s * (d + 2)));
    all = sinks ? __expf(sink - highest) : 0;
    for (int s = 0; s < used; s++)
        all += __ldcg(of_cell + s * (d + 2) + 1) * __expf(__ldcg(of_cell + s * (d + 2)) - highest);
    for (int i = threadIdx.x; i < d; i += 128) {
        float mixed = 0;
        for (int s = 0; s < used; s++)
            mixed += __ldcg(of_cell + s * (d + 2) + 2 + i) * __expf(__ldcg(of_cell + s * (d + 2)) - highest);
        to[i] = narrow(mixed / all);
    }
    if (threadIdx.x == 0) tickets[cell] = 0;
}
