// SwiGLU's middle, and the shared expert's gate; twins: kernels/swiglu.py, model/expert.py.

// silu(gate) * up of both [T, 2 I], gate first -> out [T, I]; a thread per 8 values.
extern "C" __global__ void activate(const bf16 *both, bf16 *out, long long count, int I) {
    long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= count) return;
    const bf16 *gate = both + at / I * 2 * I + at % I;
    Eight some = *(const Eight *)gate, up = *(const Eight *)(gate + I);
    for (int i = 0; i < 8; i++) {
        float value = wide(some.value[i]);
        some.value[i] = narrow(rounded(value / (1 + expf(-value))) * wide(up.value[i]));
    }
    *(Eight *)(out + at) = some;
}

// The same of experts with a bound: (up + 1) * gate * sigmoid(1.702 gate), gate at most and up within +- limit.
extern "C" __global__ void activate_within(const bf16 *both, bf16 *out, long long count, int I, float limit) {
    long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= count) return;
    const bf16 *gate = both + at / I * 2 * I + at % I;
    Eight some = *(const Eight *)gate, more = *(const Eight *)(gate + I);
    for (int i = 0; i < 8; i++) {
        float value = fminf(wide(some.value[i]), limit), up = fminf(fmaxf(wide(more.value[i]), -limit), limit);
        float sigmoid = rounded(1 / (1 + expf(-rounded(value * 1.702f))));
        some.value[i] = narrow(rounded(up + 1) * rounded(value * sigmoid));
    }
    *(Eight *)(out + at) = some;
}

// A block per row: out [N, width] becomes the bias of its expert; first[e]: the first row of the e-th of `experts`.
extern "C" __global__ void begin_with(const bf16 *const *bias, const unsigned long long *first, bf16 *out, int experts,
                                      int width) {
    int e = 0;
    while (e + 1 < experts && first[e + 1] <= blockIdx.x) e++;
    bf16 *row = out + (long long)blockIdx.x * width;
    for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8) *(Eight *)(row + i) = *(const Eight *)(bias[e] + i);
}

// A block per token: y [T, H] times the sigmoid of logit [T].
extern "C" __global__ void weigh(bf16 *y, const bf16 *logit, int H) {
    float weight = rounded(1 / (1 + expf(-wide(logit[blockIdx.x]))));
    bf16 *row = y + (long long)blockIdx.x * H;
    for (int h = threadIdx.x * 8; h < H; h += blockDim.x * 8) {
        Eight some = *(const Eight *)(row + h);
        for (int i = 0; i < 8; i++) some.value[i] = narrow(weight * wide(some.value[i]));
        *(Eight *)(row + h) = some;
    }
}
