// Weights of a float32 file; twin: array.narrow.

// values [count] -> out [count]; a thread per value.
extern "C" __global__ void to_bfloat16(const float *values, bf16 *out, long long count) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) out[at] = narrow(values[at]);
}
