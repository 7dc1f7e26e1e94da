// Products of matrices in shared memory by the tensor cores of Hopper (wgmma), and what goes with them.

#define F4(o, i) "+f"(o[i]), "+f"(o[i + 1]), "+f"(o[i + 2]), "+f"(o[i + 3])
#define F16(o, i) F4(o, i), F4(o, i + 4), F4(o, i + 8), F4(o, i + 12)
#define F32(o) F16(o, 0), F16(o, 16)
#define F64(o) F16(o, 0), F16(o, 16), F16(o, 32), F16(o, 48)
#define NAMES32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
    "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
    "%62, %63"

__device__ __forceinline__ unsigned in_shared(const void *at) { return (unsigned)__cvta_generic_to_shared(at); }

// What the tensor cores are told of a matrix of swizzled rows of 128 bytes: where it begins, the bytes from part to part,
// and from 8 rows to the next.
__device__ __forceinline__ unsigned long long describe(const bf16 *at, int parts, int rows) {
    return (in_shared(at) & 0x3ffffu) >> 4 | (unsigned long long)(parts >> 4) << 16 |
           (unsigned long long)(rows >> 4) << 32 | 1ull << 62;
}

// Scores [64, 64]: += queries times keys, 16 values of each.
__device__ __forceinline__ void multiply_keys(float *scores, unsigned long long q, unsigned long long k, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES32 "}, %32, %33, p, 1, 1, 0, 0;\n}"
                 : F32(scores) : "l"(q), "l"(k), "r"(add));
}

// Sums [64, 128]: += shares times values of 16 keys.
__device__ __forceinline__ void multiply_values(float *sums, unsigned long long p, unsigned long long v, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES64 "}, %64, %65, p, 1, 1, 0, 1;\n}"
                 : F64(sums) : "l"(p), "l"(v), "r"(add));
}

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Products since the last call are a group; all are waited for but the last `later` groups.
__device__ __forceinline__ void close_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int later>
__device__ __forceinline__ void end_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(later) : "memory");
}

// What threads have written to shared memory is there for the tensor cores.
__device__ __forceinline__ void show() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void meet(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// The same without waiting for the others.
__device__ __forceinline__ void come(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void wait_for(unsigned long long *there, int turn) {
    for (unsigned done = 0; !done;)
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done) : "r"(in_shared(there)), "r"(turn) : "memory");
}

__device__ __forceinline__ void fetch(bf16 *to, const bf16 *from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(in_shared(to)), "l"(from) : "memory");
}
