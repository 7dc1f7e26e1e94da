// Weights as they come from a file; twins: array.narrow, files.model.

// values [count] -> out [count]; a thread per value. found becomes 1 where one is NaN or infinite.
extern "C" __global__ void to_bfloat16(const float *values, bf16 *out, long long count, int *found) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    float value = values[at];
    if ((__float_as_uint(value) & 0x7f800000u) == 0x7f800000u) *found = 1;
    out[at] = narrow(value);
}

// The same of bfloat16 values that stay as they are; a thread per 8 of them.
extern "C" __global__ void look_through(const bf16 *values, long long count, int *found) {
    long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    int wrong = 0;
    for (int i = 0; i < 8; i++) if (at + i < count) wrong |= (values[at + i] & 0x7f80) == 0x7f80;
    if (wrong) *found = 1;
}
