// The next token and its log-probability; twin: kernels/choice.py.

#define THREADS 1024

// The sum over a block in float64, on all its threads.
__device__ __forceinline__ double sum_all(double value) {
    __shared__ double shared[THREADS / 32];
    for (int step = 16; step; step >>= 1) value += __shfl_xor_sync(~0u, value, step);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    double total = 0;
    for (int warp = 0; warp < THREADS / 32; warp++) total += shared[warp];
    return total;
}

// The largest value of a row and the lowest index that has it, on all threads.
__device__ __forceinline__ float row_best(const bf16 *row, int V, int &index) {
    __shared__ float values[THREADS / 32];
    __shared__ int indices[THREADS / 32];
    float value = -INFINITY;
    index = 0x7fffffff;
    for (int v = threadIdx.x; v < V; v += THREADS) if (wide(row[v]) > value) value = wide(row[v]), index = v;
    for (int step = 16; step; step >>= 1) {
        float other = __shfl_xor_sync(~0u, value, step);
        int there = __shfl_xor_sync(~0u, index, step);
        if (other > value || (other == value && there < index)) value = other, index = there;
    }
    if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = value, indices[threadIdx.x / 32] = index;
    __syncthreads();
    for (int warp = 0; warp < THREADS / 32; warp++)
        if (values[warp] > value || (values[warp] == value && indices[warp] < index))
            value = values[warp], index = indices[warp];
    return value;
}

// The row's probabilities are exp((logit - top) / temperature), in float64.
__device__ __forceinline__ double mass(bf16 logit, float top, double temperature) {
    return exp(((double)wide(logit) - top) / temperature);
}

// The token among the likeliest of mass top_p at which the mass, cumulated in the order of the vocabulary, passes u.
__device__ int draw(const bf16 *row, int V, float top, double temperature, double top_p, double u) {
    __shared__ double before[THREADS];
    __shared__ int found, left;
    double total = 0;
    for (int v = threadIdx.x; v < V; v += THREADS) total += mass(row[v], top, temperature);
    total = sum_all(total);
    // Logits are bfloat16, so a threshold is one of 65,536: the highest at which those from it upwards have top_p.
    float threshold = -INFINITY;
    int same = V;  // of those at the threshold, how many count, the first ones in the vocabulary
    if (top_p < 1) {
        unsigned low = 0, high = 0xffff;  // ordered keys: mass(key >= low) is enough, mass(key > high) is not
        while (low < high) {
            unsigned middle = (low + high + 1) / 2;
            double above = 0;
            for (int v = threadIdx.x; v < V; v += THREADS) {
                unsigned bits = row[v], key = bits & 0x8000u ? 0xffffu - bits : bits + 0x8000u;
                if (key >= middle) above += mass(row[v], top, temperature);
            }
            if (sum_all(above) >= top_p * total) low = middle;
            else high = middle - 1;
        }
        threshold = wide((bf16)(low & 0x8000u ? low - 0x8000u : 0xffffu - low));
        double above = 0;
        for (int v = threadIdx.x; v < V; v += THREADS)
            if (wide(row[v]) > threshold) above += mass(row[v], top, temperature);
        above = sum_all(above);
        double each = exp(((double)threshold - top) / temperature);
        same = max(1, (int)ceil((top_p * total - above) / each));
    }
    // Each thread sums a piece of the vocabulary; the thread in whose piece the mass passes u looks closer.
    int piece = (V + THREADS - 1) / THREADS, first = threadIdx.x * piece, last = min(V, first + piece), equal = 0;
    __shared__ int equals[THREADS];
    for (int v = first; v < last; v++) equal += wide(row[v]) == threshold;
    equals[threadIdx.x] = equal;
    if (threadIdx.x == 0) found = V, left = -1;
    __syncthreads();
    int skipped = 0;
    for (int i = 0; i < threadIdx.x; i++) skipped += equals[i];
    double sum = 0;
    int mine = -1;  // the last one that counts
    for (int v = first, seen = skipped; v < last; v++) {
        float logit = wide(row[v]);
        if (logit > threshold || (logit == threshold && seen++ < same)) sum += mass(row[v], top, temperature), mine = v;
    }
    before[threadIdx.x] = sum;
    atomicMax(&left, mine);
    __syncthreads();
    double start = 0, kept = 0;
    for (int i = 0; i < THREADS; i++) {
        if (i == threadIdx.x) start = kept;
        kept += before[i];
    }
    double goal = u * kept;
    if (sum > 0 && goal >= start && goal < start + sum) {
        double at = start;
        for (int v = first, seen = skipped; v < last; v++) {
            float logit = wide(row[v]);
            if (logit > threshold || (logit == threshold && seen++ < same)) {
                at += mass(row[v], top, temperature);
                if (at > goal) { atomicMin(&found, v); break; }
            }
        }
    }
    __syncthreads();
    return found < V ? found : left;
}

// A block of THREADS threads per row of logits [B, V]. token is given (score), or chosen: the likeliest where
// temperature is 0, else drawn by u [B]. logprob [B] is of the untempered distribution.
extern "C" __global__ void next_token(const bf16 *logits, const int *target, const double *u, int *token,
                                      float *logprob, int V, double temperature, double top_p) {
    const bf16 *row = logits + (long long)blockIdx.x * V;
    int best, given = target[blockIdx.x];
    float top = row_best(row, V, best);
    double total = 0;
    for (int v = threadIdx.x; v < V; v += THREADS) total += expf(wide(row[v]) - top);
    total = sum_all(total);
    int chosen = given >= 0 ? given : temperature == 0 ? best
               : draw(row, V, top, temperature, top_p, u[blockIdx.x]);
    if (threadIdx.x == 0) {
        token[blockIdx.x] = chosen;
        logprob[blockIdx.x] = (float)((wide(row[chosen]) - top) - log(total));
    }
}
