// The choice of experts, and the order of the rows that leave; twins: kernels/gate.py, exchange/route.py.

enum { SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN };

// The largest value of a warp and the lowest index that has it, on all lanes.
__device__ __forceinline__ void warp_best(float &value, int &index) {
    for (int step = 16; step; step >>= 1) {
        float other = __shfl_xor_sync(~0u, value, step);
        int there = __shfl_xor_sync(~0u, index, step);
        if (other > value || (other == value && there < index)) value = other, index = there;
    }
}

__device__ __forceinline__ float warp_sum(float value) {
    for (int step = 16; step; step >>= 1) value += __shfl_xor_sync(~0u, value, step);
    return value;
}

// The best of `count` values, the lowest index at a tie; the warp's lanes share the work.
__device__ __forceinline__ int best_of(const float *values, int count, float &value) {
    int index = 0x7fffffff;
    value = -INFINITY;
    for (int i = threadIdx.x % 32; i < count; i += 32)
        if (values[i] > value || index == 0x7fffffff) value = values[i], index = i;
    warp_best(value, index);
    return index;
}

// Bits that order as the values do, above 0; -0 is 0.
__device__ __forceinline__ unsigned ordered(float value) {
    unsigned bits = __float_as_uint(__fadd_rn(value, 0.0f));
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// A warp per token, whose lanes hold PER experts each: E up to 32 PER. logits [T, E], bias (of the choice) and added (to
// logits) [E] or null, expert and weight [T, K], load [E] (added to). The experts of so many `sampled` tokens go to
// sample, `apart` values from one another. Dynamic shared memory: K floats for each warp of the block; E + groups more
// with groups.
template <int PER>
__device__ __forceinline__ void choose_from(const float *logits, const float *bias, const float *added, int *expert,
                                            float *weight, unsigned long long *load, int T, int E, int K, int score,
                                            int groups, int groups_kept, int counted, int renormalise, int round_logits,
                                            int round_weights, float scale, short *sample, int sampled, int apart) {
    extern __shared__ float memory[];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = blockIdx.x * (blockDim.x / 32) + warp;
    if (t >= T) return;
    float *weights = memory + warp * (K + (groups > 1 ? E + groups : 0)), *ranking = weights + K;
    float *of_group = ranking + E, scores[PER], top = -INFINITY, sum = 0;
    unsigned keys[PER];
#pragma unroll
    for (int i = 0; i < PER; i++) {
        int e = lane + 32 * i;
        scores[i] = e < E ? logits[(long long)t * E + e] + (added ? added[e] : 0) : -INFINITY;
        if (round_logits) scores[i] = rounded(scores[i]);
        top = fmaxf(top, scores[i]);
    }
    for (int step = 16; step; step >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
    if (score == SOFTMAX) {
#pragma unroll
        for (int i = 0; i < PER; i++) sum += scores[i] = expf(scores[i] - top);
        sum = warp_sum(sum);
    }
#pragma unroll
    for (int i = 0; i < PER; i++) {
        int e = lane + 32 * i;
        if (score == SOFTMAX) scores[i] /= sum;
        if (score == SIGMOID) scores[i] = 1 / (1 + expf(-scores[i]));
        float rank = e < E ? scores[i] + (bias ? bias[e] : 0) : 0;
        keys[i] = e < E ? ordered(rank) : 0;
        if (groups > 1 && e < E) ranking[e] = rank;
    }
    if (groups > 1) {
        int width = E / groups;
        __syncwarp();
        for (int g = lane; g < groups; g += 32) {  // the sum of a group's best one or two
            float first = -INFINITY, second = -INFINITY;
            for (int e = g * width; e < (g + 1) * width; e++) {
                float value = ranking[e];
                if (value > first) second = first, first = value;
                else if (value > second) second = value;
            }
            of_group[g] = counted == 1 ? first : first + second;
        }
        __syncwarp();
        for (int kept = 0; kept < groups_kept; kept++) {
            float value;
            int g = best_of(of_group, groups, value);
            __syncwarp();
            if (lane == 0) of_group[g] = -INFINITY;  // kept groups are those that are -inf in the end
            __syncwarp();
        }
#pragma unroll
        for (int i = 0; i < PER; i++)
            if (lane + 32 * i < E && of_group[(lane + 32 * i) / width] != -INFINITY) keys[i] = ordered(-INFINITY);
    }
    float total = 0, highest = -INFINITY;
    int nth = (int)((long long)t * sampled / T);  // as types.sampled
    bool is_sampled = sampled && ((long long)nth * T + sampled - 1) / sampled == t;
    for (int k = 0; k < K; k++) {
        unsigned best = 0;
        int at = 0x7fffffff;
#pragma unroll
        for (int i = 0; i < PER; i++) if (keys[i] > best) best = keys[i], at = lane + 32 * i;
        unsigned of_all = __reduce_max_sync(~0u, best);
        int e = __reduce_min_sync(~0u, best == of_all ? at : 0x7fffffff);  // the lowest index at a tie
        float chosen = 0;
#pragma unroll
        for (int i = 0; i < PER; i++) if (e == lane + 32 * i) chosen = scores[i], keys[i] = 0;
        chosen = __shfl_sync(~0u, chosen, e % 32);
        if (lane == 0) {
            weights[k] = chosen;
            expert[(long long)t * K + k] = e;
            if (is_sampled) sample[nth * apart + k] = e;
            atomicAdd(load + e, 1ull);
        }
        total += chosen;
        highest = fmaxf(highest, chosen);
    }
    __syncwarp();
    if (score == SOFTMAX_OF_CHOSEN) {
        float part = 0;
        for (int k = lane; k < K; k += 32) part += weights[k] = expf(weights[k] - highest);
        total = warp_sum(part);
    }
    for (int k = lane; k < K; k += 32) {
        float value = weights[k];
        if (score == SOFTMAX_OF_CHOSEN) value /= total;
        else if (renormalise) value /= total + 1e-20f;
        value *= scale;
        weight[(long long)t * K + k] = round_weights ? rounded(value) : value;
    }
}

#define CHOOSE(PER) \
    extern "C" __global__ void choose_##PER( \
        const float *logits, const float *bias, const float *added, int *expert, float *weight, \
        unsigned long long *load, int T, int E, int K, int score, int groups, int groups_kept, int counted, \
        int renormalise, int round_logits, int round_weights, float scale, short *sample, int sampled, int apart) { \
        choose_from<PER>(logits, bias, added, expert, weight, load, T, E, K, score, groups, groups_kept, counted, \
                         renormalise, round_logits, round_weights, scale, sample, sampled, apart); \
    }
CHOOSE(8)
CHOOSE(32)
CHOOSE(128)

// How many of the first `count` entries of expert [T, K] are none of their token's K in plain [T, K]; added to moved.
extern "C" __global__ void count_moved(const int *expert, const int *plain, unsigned long long *moved, int count, int K) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    bool elsewhere = i < count;
    for (int k = 0; k < K && elsewhere; k++) elsewhere = plain[(long long)(i / K) * K + k] != expert[i];
    int found = __popc(__ballot_sync(~0u, elsewhere));
    if (threadIdx.x % 32 == 0 && found) atomicAdd(moved, (unsigned long long)found);
}

#define TILE 32  // tokens of a block of `count_tiles` and `place`

// The ranks of a tile's choices in shared memory, to [tokens * K]: `shards` neighbours of each choice, whose number is
// K / shards.
__device__ __forceinline__ void look_up(const int *expert, const int *rank_of, bf16 *to, int tokens, int K,
                                        int shards) {
    const int *mine = expert + (long long)blockIdx.x * TILE * (K / shards);
    for (int i = threadIdx.x; i < tokens * K; i += blockDim.x) to[i] = (bf16)(rank_of[mine[i / shards]] + i % shards);
}

// Whether an earlier k of the same token goes to the same rank: then its row serves this one, too.
__device__ __forceinline__ bool is_served(const bf16 *to, int at, int K) {
    for (int other = at / K * K; other < at; other++) if (to[other] == to[at]) return true;
    return false;
}

// A block per TILE tokens: how many rows and answers each rank gets of them. rows and homes [tiles, R]; K counts each
// shard of a choice for itself, here and in `place`.
// Dynamic shared memory: 2 R ints, TILE * K shorts.
extern "C" __global__ void count_tiles(const int *expert, const int *rank_of, int *rows, int *homes, int T, int K,
                                       int R, int shards) {
    extern __shared__ int counted[];
    bf16 *to = (bf16 *)(counted + 2 * R);
    int tokens = min(TILE, T - (int)blockIdx.x * TILE);
    for (int r = threadIdx.x; r < 2 * R; r += blockDim.x) counted[r] = 0;
    look_up(expert, rank_of, to, tokens, K, shards);
    __syncthreads();
    for (int i = threadIdx.x; i < tokens * K; i += blockDim.x) {
        if (!is_served(to, i, K)) atomicAdd(counted + to[i], 1);
        atomicAdd(counted + R + to[i], 1);
    }
    __syncthreads();
    for (int r = threadIdx.x; r < R; r += blockDim.x)
        rows[blockIdx.x * R + r] = counted[r], homes[blockIdx.x * R + r] = counted[R + r];
}

#define HELD 16  // tiles that a thread reads at once

// The sum of tiles from begin to end, for rank r.
__device__ __forceinline__ int sum_of(const int *tiles, int begin, int end, int r, int R) {
    int sum = 0;
    for (int first = begin; first < end; first += HELD) {
        int held[HELD];
#pragma unroll
        for (int i = 0; i < HELD; i++) held[i] = first + i < end ? tiles[(first + i) * R + r] : 0;
#pragma unroll
        for (int i = 0; i < HELD; i++) sum += held[i];
    }
    return sum;
}

// Running sums over the tiles, in place, of 32 ranks a block: a warp takes so many tiles, a lane a rank. The totals go to
// counts and home_counts [R], which the host reads. blockIdx.y 0 has rows, 1 answers.
extern "C" __global__ void sum_tiles(int *rows, int *homes, long long *counts, long long *home_counts, int tiles, int R) {
    __shared__ int sums[32][33];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = blockIdx.x * 32 + lane;
    int each = (tiles + blockDim.x / 32 - 1) / (blockDim.x / 32);
    int begin = min(tiles, warp * each), end = min(tiles, begin + each);
    int *of = blockIdx.y ? homes : rows;
    sums[warp][lane] = r < R ? sum_of(of, begin, end, r, R) : 0;
    __syncthreads();
    if (r >= R) return;
    int sum = 0;
    for (int w = 0; w < warp; w++) sum += sums[w][lane];
    for (int tile = begin; tile < end; tile++) {
        int more = of[tile * R + r];
        of[tile * R + r] = sum;
        sum += more;
    }
    if (warp == blockDim.x / 32 - 1) (blockIdx.y ? home_counts : counts)[r] = sum;
}

// One block: where the rows for each rank begin, if they lie without gaps. counts and base [R]; blockDim.x is a power of
// two from R on. Dynamic shared memory: 2 blockDim.x ints.
extern "C" __global__ void lay(const long long *counts, int *base, int R) {
    extern __shared__ int sums[];
    int r = threadIdx.x, n = blockDim.x, from = 0;
    sums[r] = r < R ? (int)counts[r] : 0;
    for (int step = 1; step < n; step *= 2, from ^= n) {
        __syncthreads();
        sums[(from ^ n) + r] = sums[from + r] + (r >= step ? sums[from + r - step] : 0);
    }
    __syncthreads();
    if (r < R) base[r] = r ? sums[from + r - 1] : 0;
}

// The slot of each of `count` (token, k)s: an expert's rows go to its replicas block by block, as shares [E, C] say, or
// where those are null evenly, and the first ones take the odd rows. nth: among the expert's rows; counts [E]: rows of
// each expert; near [E, C], copies [E].
extern "C" __global__ void spread(const int *expert, const int *nth, const long long *counts, const int *shares,
                                  const int *copies, const int *near, int *slot, int count, int C) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        int e = expert[i], at = nth[i], which = 0;
        if (shares) {
            while (which < C - 1 && at >= shares[e * C + which]) at -= shares[e * C + which++];
        } else {
            int each = (int)(counts[e] / copies[e]), odd = (int)(counts[e] % copies[e]), longer = odd * (each + 1);
            which = at < longer ? at / (each + 1) : odd + (at - longer) / each;
        }
        slot[i] = near[e * C + which];
    }
}

// A block per TILE tokens. For each (token, k): its rank; its row among those that leave for it, -1 where an earlier k
// shares the row; its row among the rank's answers. rank, row and home [T, K]; rows and homes as `sum_tiles` leaves them.
// Warps take (token, k)s in their order, all warps side by side; each counts its own of each rank.
// Dynamic shared memory: 2 R ints, R for each warp, TILE * K shorts.
extern "C" __global__ void place(const int *expert, const int *rank_of, const int *rows, const int *homes, int *rank,
                                 int *row, int *home, int T, int K, int R, int shards) {
    extern __shared__ int so_far[];  // [2, R]: rows and answers of each rank, before those that are being placed
    int warps = blockDim.x / 32, warp = threadIdx.x / 32, tokens = min(TILE, T - (int)blockIdx.x * TILE);
    int *of_warp = so_far + 2 * R;  // [warps, R]: answers, and 65536 times the rows
    bf16 *to = (bf16 *)(of_warp + warps * R);
    for (int r = threadIdx.x; r < R; r += blockDim.x)
        so_far[r] = rows[blockIdx.x * R + r], so_far[R + r] = homes[blockIdx.x * R + r];
    for (int r = threadIdx.x; r < warps * R; r += blockDim.x) of_warp[r] = 0;
    look_up(expert, rank_of, to, tokens, K, shards);
    __syncthreads();
    for (int first = 0; first < tokens * K; first += blockDim.x) {
        int i = first + threadIdx.x, r = i < tokens * K ? to[i] : -1;
        bool leaves = r >= 0 && !is_served(to, i, K);
        unsigned same = __match_any_sync(~0u, r), before = same & ((1u << threadIdx.x % 32) - 1);
        unsigned rows_of = __ballot_sync(~0u, leaves);
        int leave = __popc(before & rows_of), come = __popc(before);
        if (r >= 0 && !before) of_warp[warp * R + r] = __popc(same & rows_of) << 16 | __popc(same);
        __syncthreads();
        if (r >= 0) {
            for (int w = 0; w < warp; w++) {
                int other = of_warp[w * R + r];
                leave += other >> 16, come += other & 0xffff;
            }
            long long at = (long long)blockIdx.x * TILE * K + i;
            rank[at] = r, row[at] = leaves ? so_far[r] + leave : -1, home[at] = so_far[R + r] + come;
        }
        __syncthreads();
        if (r >= 0 && !before) {
            atomicAdd(so_far + r, __popc(same & rows_of));
            atomicAdd(so_far + R + r, __popc(same));
            of_warp[warp * R + r] = 0;
        }
        __syncthreads();
    }
}
