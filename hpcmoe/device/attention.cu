// Rotary positions, the cache, and attention; twins: kernels/rope.py, model/cache.py, kernels/attention.py.

// A block per token: queries and keys are turned, keys and values go to their places in the cache.
// qkv [T, (heads + 2 kv_heads) * d], q [T, heads * d], caches [slots, kv_heads, length, d]; cos and sin [length, d / 2].
extern "C" __global__ void rope(const bf16 *qkv, bf16 *q, bf16 *k_cache, bf16 *v_cache, const int *slot,
                                const int *position, const bf16 *cos, const bf16 *sin, int heads, int kv_heads, int d,
                                int length, float bound) {
    int half = d / 2, at = position[blockIdx.x];
    const bf16 *row = qkv + (long long)blockIdx.x * (heads + 2 * kv_heads) * d;
    long long mine = (long long)slot[blockIdx.x] * kv_heads * length + at;  // in rows of d values, of the first head
    for (int i = threadIdx.x; i < (heads + kv_heads) * half; i += blockDim.x) {
        int head = i / half, pair = i % half;
        float a = wide(row[head * d + pair]), b = wide(row[head * d + pair + half]);
        if (bound > 0) a = fminf(fmaxf(a, -bound), bound), b = fminf(fmaxf(b, -bound), bound);
        float c = wide(cos[at * half + pair]), s = wide(sin[at * half + pair]);
        bf16 *to = head < heads ? q + ((long long)blockIdx.x * heads + head) * d
                                : k_cache + (mine + (long long)(head - heads) * length) * d;
        to[pair] = narrow(rounded(a * c) - rounded(b * s));
        to[pair + half] = narrow(rounded(b * c) + rounded(a * s));
    }
    const bf16 *values = row + (heads + kv_heads) * d;
    for (int i = threadIdx.x; i < kv_heads * d; i += blockDim.x) {
        float v = wide(values[i]);
        if (bound > 0) v = fminf(fmaxf(v, -bound), bound);
        v_cache[(mine + (long long)(i / d) * length) * d + i % d] = narrow(v);
    }
}

#define WARPS 4
#define MOST 8  // values of a head per lane: d up to 256

// A block of WARPS warps per (token, head); each warp takes every WARPS-th key. q and out [T, heads * d].
extern "C" __global__ void attend(const bf16 *q, const bf16 *k_cache, const bf16 *v_cache, const int *slot,
                                  const int *position, bf16 *out, int heads, int kv_heads, int d, int length,
                                  int window, float scale) {
    __shared__ float sums[WARPS][32 * MOST], tops[WARPS], totals[WARPS];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y;
    int last = position[blockIdx.x], first = window > 0 ? max(0, last - window + 1) : 0;
    long long base = ((long long)slot[blockIdx.x] * kv_heads + head / (heads / kv_heads)) * length;
    const bf16 *query = q + ((long long)blockIdx.x * heads + head) * d;
    float mine[MOST], sum[MOST] = {0}, top = -INFINITY, total = 0;
#pragma unroll
    for (int i = 0; i < MOST; i++) mine[i] = lane + 32 * i < d ? wide(query[lane + 32 * i]) : 0;
    for (int key = first + warp; key <= last; key += WARPS) {
        const bf16 *k = k_cache + (base + key) * d, *v = v_cache + (base + key) * d;
        float dot = 0;
#pragma unroll
        for (int i = 0; i < MOST; i++) if (lane + 32 * i < d) dot += mine[i] * wide(k[lane + 32 * i]);
        for (int step = 16; step; step >>= 1) dot += __shfl_xor_sync(~0u, dot, step);
        float score = dot * scale, higher = fmaxf(top, score);
        float fade = expf(top - higher), part = expf(score - higher);  // exp(-inf) = 0 at the first key
        top = higher, total = total * fade + part;
#pragma unroll
        for (int i = 0; i < MOST; i++) if (lane + 32 * i < d) sum[i] = sum[i] * fade + part * wide(v[lane + 32 * i]);
    }
#pragma unroll
    for (int i = 0; i < MOST; i++) sums[warp][lane + 32 * i] = sum[i];
    if (lane == 0) tops[warp] = top, totals[warp] = total;
    __syncthreads();
    float highest = -INFINITY, all = 0;
    for (int w = 0; w < WARPS; w++) highest = fmaxf(highest, tops[w]);
    for (int w = 0; w < WARPS; w++) all += totals[w] * expf(tops[w] - highest);
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float mixed = 0;
        for (int w = 0; w < WARPS; w++) mixed += sums[w][i] * expf(tops[w] - highest);
        out[((long long)blockIdx.x * heads + head) * d + i] = narrow(mixed / all);
    }
}
