// RMS norm; twin: kernels/norm.py.

// A normed value times its weight, rounded before the weight too, but where `weight_first`.
__device__ __forceinline__ bf16 weighed(float value, float weight, int weight_first) {
    return narrow(weight * (weight_first ? value : rounded(value)));
}

// A block per row: out[row] = norm of x[index ? index[row] : row], `[H]` each.
extern "C" __global__ void rms_norm(const bf16 *x, const int *index, const float *weight, bf16 *out, int H, float eps,
                                    int weight_first) {
    __shared__ float shared[32];
    const bf16 *row = x + (long long)(index ? index[blockIdx.x] : blockIdx.x) * H;
    out += (long long)blockIdx.x * H;
    float sum = 0;
    for (int h = threadIdx.x * 8; h < H; h += blockDim.x * 8) {
        Eight some = *(const Eight *)(row + h);
        for (int i = 0; i < 8; i++) sum += wide(some.value[i]) * wide(some.value[i]);
    }
    float scale = 1 / sqrtf(block_sum(sum, shared) / H + eps);
    for (int h = threadIdx.x * 8; h < H; h += blockDim.x * 8) {
        Eight some = *(const Eight *)(row + h);
        for (int i = 0; i < 8; i++) some.value[i] = weighed(wide(some.value[i]) * scale, weight[h + i], weight_first);
        *(Eight *)(out + h) = some;
    }
}

// A block per row: x += y, and out = norm of the sum.
extern "C" __global__ void add_norm(bf16 *x, const bf16 *y, const float *weight, bf16 *out, int H, float eps,
                                    int weight_first) {
    __shared__ float shared[32];
    long long first = (long long)blockIdx.x * H;
    float sum = 0;
    for (int h = threadIdx.x * 8; h < H; h += blockDim.x * 8) {
        Eight some = *(const Eight *)(x + first + h), more = *(const Eight *)(y + first + h);
        for (int i = 0; i < 8; i++) {
            float value = rounded(wide(some.value[i]) + wide(more.value[i]));
            some.value[i] = narrow(value);
            sum += value * value;
        }
        *(Eight *)(x + first + h) = some;
    }
    float scale = 1 / sqrtf(block_sum(sum, shared) / H + eps);
    for (int h = threadIdx.x * 8; h < H; h += blockDim.x * 8) {
        Eight some = *(const Eight *)(x + first + h);  // each thread reads what it wrote
        for (int i = 0; i < 8; i++) some.value[i] = weighed(wide(some.value[i]) * scale, weight[h + i], weight_first);
        *(Eight *)(out + first + h) = some;
    }
}

// A block per (token, group): parts of `width` values, in place; row t of x begins at t * stride.
extern "C" __global__ void head_norm(bf16 *x, const float *weight, int stride, int width, float eps) {
    __shared__ float shared[32];
    bf16 *part = x + (long long)blockIdx.x * stride + (long long)blockIdx.y * width;
    float sum = 0;
    for (int h = threadIdx.x; h < width; h += blockDim.x) sum += wide(part[h]) * wide(part[h]);
    float scale = 1 / sqrtf(block_sum(sum, shared) / width + eps);
    for (int h = threadIdx.x; h < width; h += blockDim.x)
        part[h] = narrow(weight[h] * rounded(wide(part[h]) * scale));
}

// x += y.
extern "C" __global__ void add(bf16 *x, const bf16 *y, long long count) {
    long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= count) return;
    Eight some = *(const Eight *)(x + at), more = *(const Eight *)(y + at);
    for (int i = 0; i < 8; i++) some.value[i] = narrow(wide(some.value[i]) + wide(more.value[i]));
    *(Eight *)(x + at) = some;
}
