// Rows into and out of messages and matrices, 16 bytes at a time; twins: kernels/pack.py, kernels/combine.py.

// A block per (token, k): the row of x [T, H] that leaves with it, to out[base[rank] + row], `units` wide, then the
// local slots of this and later k's with the same rank, and -1. base [R] is the host's.
extern "C" __global__ void pack(const bf16 *x, const int *expert, const short *local, const int *rank, const int *row,
                                const int *base, bf16 *out, int K, int H, int units, int width) {
    int at = row[blockIdx.x], r = rank[blockIdx.x];
    if (at < 0) return;
    const bf16 *from = x + (long long)(blockIdx.x / K) * H;
    bf16 *to = out + (long long)(base[r] + at) * units;
    for (int h = threadIdx.x * 8; h < H; h += blockDim.x * 8) *(Eight *)(to + h) = *(const Eight *)(from + h);
    if (width == 0 || threadIdx.x) return;
    int column = 0;
    for (int k = blockIdx.x % K, i = blockIdx.x; k < K; k++, i++)
        if (rank[i] == r) to[H + column++] = (bf16)local[expert[i]];
    while (column < width) to[H + column++] = 0xffff;
}

// A block per row: out[i] = in[index ? index[i] : i], H values of rows that are `from` and `to` values apart.
extern "C" __global__ void take(const bf16 *in, const int *index, bf16 *out, int H, int from, int to) {
    const bf16 *source = in + (long long)(index ? index[blockIdx.x] : blockIdx.x) * from;
    bf16 *target = out + (long long)blockIdx.x * to;
    for (int h = threadIdx.x * 8; h < H; h += blockDim.x * 8) *(Eight *)(target + h) = *(const Eight *)(source + h);
}

// A block per row: out[index[i]] = in[i], H values each.
extern "C" __global__ void put(const bf16 *in, const int *index, bf16 *out, int H) {
    const bf16 *source = in + (long long)blockIdx.x * H;
    bf16 *target = out + (long long)index[blockIdx.x] * H;
    for (int h = threadIdx.x * 8; h < H; h += blockDim.x * 8) *(Eight *)(target + h) = *(const Eight *)(source + h);
}

// A block per token: x += sum over k, in that order, of weight * answer (+ shared). The answer of (token, k) is
// rows[base[rank] + home]. x and shared [T, H]; shared may be null.
extern "C" __global__ void combine(bf16 *x, const bf16 *rows, const bf16 *shared, const float *weight, const int *rank,
                                   const int *home, const int *base, int K, int H, int round_each) {
    long long first = (long long)blockIdx.x * H;
    const int *ranks = rank + (long long)blockIdx.x * K, *homes = home + (long long)blockIdx.x * K;
    const float *weights = weight + (long long)blockIdx.x * K;
    for (int h = threadIdx.x * 8; h < H; h += blockDim.x * 8) {
        float sum[8] = {0};
        for (int k = 0; k < K; k++) {
            Eight some = *(const Eight *)(rows + (long long)(base[ranks[k]] + homes[k]) * H + h);
            for (int i = 0; i < 8; i++) {
                float part = __fmul_rn(weights[k], wide(some.value[i]));
                sum[i] = __fadd_rn(sum[i], round_each ? rounded(part) : part);
            }
        }
        Eight mine = *(const Eight *)(x + first + h), more;
        if (shared) more = *(const Eight *)(shared + first + h);
        for (int i = 0; i < 8; i++) {
            float y = rounded(sum[i]);
            if (shared) y = rounded(y + wide(more.value[i]));
            mine.value[i] = narrow(wide(mine.value[i]) + y);
        }
        *(Eight *)(x + first + h) = mine;
    }
}
