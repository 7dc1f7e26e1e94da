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

// A warp per token. logits [T, E], bias [E] or null, expert and weight [T, K], load [E] (added to).
// Dynamic shared memory: 2 E + groups floats for each warp of the block.
extern "C" __global__ void choose(const float *logits, const float *bias, int *expert, float *weight,
                                  unsigned long long *load, int T, int E, int K, int score, int groups,
                                  int groups_kept, int counted, int renormalise, int round_logits, int round_weights,
                                  float scale) {
    extern __shared__ float memory[];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = blockIdx.x * (blockDim.x / 32) + warp;
    if (t >= T) return;
    float *scores = memory + warp * (2 * E + groups), *ranking = scores + E, *of_group = ranking + E;
    float top = -INFINITY, sum = 0;
    for (int e = lane; e < E; e += 32) {
        float logit = logits[(long long)t * E + e];
        scores[e] = logit = round_logits ? rounded(logit) : logit;
        top = fmaxf(top, logit);
    }
    for (int step = 16; step; step >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
    if (score == SOFTMAX) {
        for (int e = lane; e < E; e += 32) sum += scores[e] = expf(scores[e] - top);
        sum = warp_sum(sum);
    }
    for (int e = lane; e < E; e += 32) {
        if (score == SOFTMAX) scores[e] /= sum;
        if (score == SIGMOID) scores[e] = 1 / (1 + expf(-scores[e]));
        ranking[e] = scores[e] + (bias ? bias[e] : 0);
    }
    __syncwarp();
    if (groups > 1) {
        int width = E / groups;
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
        for (int e = lane; e < E; e += 32) if (of_group[e / width] != -INFINITY) ranking[e] = -INFINITY;
        __syncwarp();
    }
    float mine[8];  // weight of the k-th expert on lane k % 32, K up to 256
    float total = 0, highest = -INFINITY;
    for (int k = 0; k < K; k++) {
        float value;
        int e = best_of(ranking, E, value);
        __syncwarp();
        if (lane == 0) {
            ranking[e] = -INFINITY;
            expert[(long long)t * K + k] = e;
            atomicAdd(load + e, 1ull);
        }
        float chosen = scores[e];
        if (lane == k % 32) mine[k / 32] = chosen;
        total += chosen;
        highest = fmaxf(highest, chosen);
        __syncwarp();
    }
    if (score == SOFTMAX_OF_CHOSEN) {
        float part = 0;
        for (int k = lane; k < K; k += 32) part += mine[k / 32] = expf(mine[k / 32] - highest);
        total = warp_sum(part);
    }
    for (int k = lane; k < K; k += 32) {
        float value = mine[k / 32];
        if (score == SOFTMAX_OF_CHOSEN) value /= total;
        else if (renormalise) value /= total + 1e-20f;
        value *= scale;
        weight[(long long)t * K + k] = round_weights ? rounded(value) : value;
    }
}

#define TILE 32  // tokens of a block of the next kernels

// A block per TILE tokens: how many rows and answers each rank gets of them. rows and homes [tiles, R].
extern "C" __global__ void count_tiles(const int *expert, const int *rank_of, int *rows, int *homes, int T, int K,
                                       int R) {
    extern __shared__ short to[];
    int first = blockIdx.x * TILE, tokens = min(TILE, T - first);
    for (int i = threadIdx.x; i < tokens * K; i += blockDim.x) to[i] = rank_of[expert[(long long)first * K + i]];
    __syncthreads();
    for (int r = threadIdx.x; r < R; r += blockDim.x) {
        int leave = 0, come = 0;
        for (int t = 0; t < tokens; t++) {
            int some = 0;
            for (int k = 0; k < K; k++) some += to[t * K + k] == r;
            leave += some > 0, come += some;
        }
        rows[blockIdx.x * R + r] = leave, homes[blockIdx.x * R + r] = come;
    }
}

#define HELD 16  // tiles that a thread reads at once

// A thread per rank: running sums over the tiles, in place; the totals go to counts and home_counts [R], which the host
// reads.
extern "C" __global__ void sum_tiles(int *rows, int *homes, long long *counts, long long *home_counts, int tiles, int R) {
    int r = blockIdx.x * blockDim.x + threadIdx.x, leave = 0, come = 0;
    if (r >= R) return;
    for (int first = 0; first < tiles; first += HELD) {
        int more[HELD], answers[HELD];
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            more[i] = first + i < tiles ? rows[(first + i) * R + r] : 0;
            answers[i] = first + i < tiles ? homes[(first + i) * R + r] : 0;
        }
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if (first + i >= tiles) break;
            rows[(first + i) * R + r] = leave, homes[(first + i) * R + r] = come;
            leave += more[i], come += answers[i];
        }
    }
    counts[r] = leave, home_counts[r] = come;
}

// A block per TILE tokens. For each (token, k): its rank; its row among those that leave for it, -1 where an earlier k
// shares the row; its row among the rank's answers. rank, row and home [T, K]; rows and homes as `sum_tiles` leaves them.
extern "C" __global__ void place(const int *expert, const int *rank_of, const int *rows, const int *homes, int *rank,
                                 int *row, int *home, int T, int K, int R) {
    extern __shared__ short to[];
    int first = blockIdx.x * TILE, tokens = min(TILE, T - first);
    for (int i = threadIdx.x; i < tokens * K; i += blockDim.x) {
        to[i] = rank_of[expert[(long long)first * K + i]];
        rank[(long long)first * K + i] = to[i];
    }
    __syncthreads();
    for (int r = threadIdx.x; r < R; r += blockDim.x) {
        int leave = rows[blockIdx.x * R + r], come = homes[blockIdx.x * R + r];
        for (int t = 0; t < tokens; t++) {
            int some = 0;
            for (int k = 0; k < K; k++) {
                if (to[t * K + k] != r) continue;
                long long at = (long long)(first + t) * K + k;
                row[at] = some ? -1 : leave;
                home[at] = come++;
                some = 1;
            }
            leave += some;
        }
    }
}
