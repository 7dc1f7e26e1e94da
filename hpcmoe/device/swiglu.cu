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
