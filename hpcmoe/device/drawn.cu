// Random weights; twin: files/drawn.py, the same bits.

// Ten rounds of Philox 4x64 (Salmon et al., SC 2011) on the counter in `word`, under the key (low, high).
__device__ __forceinline__ void philox(unsigned long long word[4], unsigned long long low, unsigned long long high) {
    const unsigned long long first = 0xD2E7470EE14C6C93ull, second = 0xCA5A826395121157ull;
    for (int round = 0; round < 10; round++) {
        unsigned long long a = __umul64hi(first, word[0]), b = __umul64hi(second, word[2]);
        unsigned long long c = first * word[0], d = second * word[2];
        word[0] = b ^ word[1] ^ low;
        word[1] = d;
        word[2] = a ^ word[3] ^ high;
        word[3] = c;
        low += 0x9E3779B97F4A7C15ull;
        high += 0xBB67AE8584CAA73Bull;
    }
}

// out [count] from the beginning of a stream; a thread per step of the counter, 16 values. NumPy's generator counts
// before it draws, so its first step is 1. No product may melt into a sum: NumPy rounds each.
extern "C" __global__ void draw(bf16 *out, long long count, unsigned long long low, unsigned long long high,
                                float middle, float scale, float deviation, float mean) {
    long long step = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (step * 16 >= count) return;
    unsigned long long word[4] = {(unsigned long long)step + 1, 0, 0, 0};
    philox(word, low, high);
    Eight half[2];
    for (int i = 0; i < 16; i++) {
        float value = (float)(unsigned)(word[i / 4] >> i % 4 * 16 & 0xffff);
        value = __fmul_rn(__fmul_rn(__fsub_rn(value, middle), scale), deviation);
        half[i / 8].value[i % 8] = narrow(__fadd_rn(value, mean));
    }
    out += step * 16;
    if (step * 16 + 16 <= count) {
        ((Eight *)out)[0] = half[0];
        ((Eight *)out)[1] = half[1];
    } else {
        for (int i = 0; i < 16; i++)  // by numbers known ahead, that the values stay in registers
            if (step * 16 + i < count) out[i] = half[i / 8].value[i % 8];
    }
}
