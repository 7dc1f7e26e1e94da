// bfloat16 is its bits, unsigned short, everywhere: no header of CUDA's is needed, and NVRTC compiles in a moment.
typedef unsigned short bf16;
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

__device__ __forceinline__ float wide(bf16 bits) { return __uint_as_float((unsigned)bits << 16); }

// Rounded to nearest even; a NaN stays one.
__device__ __forceinline__ bf16 narrow(float value) {
    unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bf16)((bits >> 16) | 64u);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ __forceinline__ float rounded(float value) { return wide(narrow(value)); }

// Two values, the first in the lower half.
__device__ __forceinline__ unsigned narrow_both(float first, float second) {
    unsigned out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
    return out;
}

// 2 to the power of a value, to about 22 bits.
__device__ __forceinline__ float power_of_two(float value) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(value));
    return out;
}

// Eight values, moved as 16 bytes.
struct __align__(16) Eight { bf16 value[8]; };

// The sum over a block, on all its threads. `shared` holds a float for each warp.
__device__ __forceinline__ float block_sum(float value, float *shared) {
    for (int step = 16; step; step >>= 1) value += __shfl_xor_sync(~0u, value, step);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) total += shared[warp];
    __syncthreads();
    return total;
}

// A pair of values, turned by its position with every rounding of kernels/rope.py.
__device__ __forceinline__ void turn(float &a, float &b, float c, float s) {
    float first = a;
    a = rounded(a * c) - rounded(b * s);
    b = rounded(b * c) + rounded(first * s);
}
