// Attention with a latent in its absorbed form, on the tensor cores of Hopper; twin: model/latent.py.

#define RANK 512  // values of a token's vector, which is its value, too, and behind which its turned key lies
#define TURN 64
#define WIDTH (RANK + TURN)
#define KEYS 64          // of a tile
#define HEADS 64         // of a block: the rows of the tensor cores' products
#define HALF (RANK / 2)  // columns of the sums of a warpgroup
#define COLUMNS 64       // values of 128 bytes: so wide are the parts in which matrices lie in shared memory
#define PART (64 * COLUMNS)
#define PARTS (WIDTH / COLUMNS)
#define MATRIX (PARTS * PART)  // values of a tile of keys, or of queries
#define THREADS 384
#define READY 1  // named barriers: the shares are there,
#define FREE 2   // and no more needed
#define EASE 8.0f  // powers of two by which a score may pass the top that it is held against
#define LOWEST -1e30f

// Where 16 bytes of a row lie in a matrix: parts of 64 columns, rows of 128 bytes whose pieces are swizzled, in values.
__device__ __forceinline__ int place(int row, int piece) {
    return piece / 8 * PART + row * COLUMNS + (piece % 8 ^ row % 8) * 8;
}

// What a block works on: some tiles of one token after another's. The same in all of its threads.
struct Way {
    int token, last, tile, end, tiles, left;  // its position; from tile to end of its tiles; left: to come in all

    __device__ __forceinline__ void look(const int *position) {
        last = position[token], tiles = last / KEYS + 1, end = min(tiles, tile + left);
    }
    __device__ __forceinline__ void next(const int *position) {  // behind `end`
        left -= end - tile, token++, tile = 0;
        if (left > 0) look(position);
    }
};

// Cuts the tiles of n tokens evenly: the share of `worker`, and of how many workers there are when each has one at least.
// first: its first tile among all; all: how many there are.
__device__ __forceinline__ Way share_of(int worker, int *workers, const int *position, int n, int *first, int *all) {
    __shared__ int sums[THREADS / 32], found[2];
    int each = (n + THREADS - 1) / THREADS, begin = min(n, (int)threadIdx.x * each), stop = min(n, begin + each), mine = 0;
    for (int t = begin; t < stop; t++) mine += position[t] / KEYS + 1;
    int before = mine;
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_up_sync(~0u, before, step);
        if (threadIdx.x % 32 >= step) before += other;
    }
    if (threadIdx.x % 32 == 31) sums[threadIdx.x / 32] = before;
    __syncthreads();
    before -= mine;
    int total = 0;
    for (int w = 0; w < THREADS / 32; w++) {
        if (w < threadIdx.x / 32) before += sums[w];
        total += sums[w];
    }
    *workers = min(*workers, total);
    Way way = {};
    if (worker >= *workers) return way;
    int from = (int)((long long)total * worker / *workers), to = (int)((long long)total * (worker + 1) / *workers);
    if (before <= from && from < before + mine) {
        int t = begin, tiles = position[t] / KEYS + 1;
        while (before + tiles <= from) before += tiles, t++, tiles = position[t] / KEYS + 1;
        found[0] = t, found[1] = from - before;
    }
    __syncthreads();
    *first = from, *all = total;
    way.left = to - from, way.token = found[0], way.tile = found[1];
    way.look(position);
    return way;
}

// Columns of 64 keys, WIDTH values each, by the 128 threads of a warpgroup; a barrier for each part of them.
__device__ __forceinline__ void fetch_keys(bf16 *to, const bf16 *from, unsigned long long *there, int begin, int end) {
    int row = threadIdx.x % 128 / 8, piece = threadIdx.x % 8;
    to += place(row, piece), from += row * WIDTH + piece * 8;
    for (int part = begin; part < end; part++) {
#pragma unroll
        for (int i = 0; i < KEYS; i += 16) fetch(to + part * PART + i * COLUMNS, from + part * COLUMNS + i * WIDTH);
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(in_shared(there + part)) : "memory");
    }
}

// Scores of a tile [64, 64] become shares of their rows' tops, up to a factor of 2^EASE, which is taken back in the end.
// A thread has 16 values each of two rows, `mine` and 8 behind it; faded: what earlier sums shrink to. Whether any does.
__device__ __forceinline__ bool share_out(float *scores, float *top, float *total, float *faded, float scale) {
    bool higher = false;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float most = -INFINITY;
        faded[h] = 1;
#pragma unroll
        for (int i = 0; i < 32; i += 4) most = fmaxf(most, fmaxf(scores[i + 2 * h], scores[i + 2 * h + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2)) * scale;
        if (most > top[h] + EASE) faded[h] = power_of_two(top[h] - most), top[h] = most, higher = true;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 32; i += 4) {
            scores[i + 2 * h] = power_of_two(scores[i + 2 * h] * scale - top[h]);
            scores[i + 2 * h + 1] = power_of_two(scores[i + 2 * h + 1] * scale - top[h]);
            sum += scores[i + 2 * h] + scores[i + 2 * h + 1];
        }
        total[h] = total[h] * faded[h] + sum;
    }
    return __any_sync(~0u, higher);
}

// Softmax and sum in one pass over the vectors of the tokens that each token sees. A block for HEADS heads and a worker,
// who has an even share of all tiles of keys: some tokens whole, of the first and the last perhaps a part, whose sums go
// to parts [workers * 2, tiles of heads, HEADS, RANK] and tops [.., HEADS, 2]. begun [n, 4] tells `join` of a token with
// which worker it began, -1 if it was whole there, the first of its parts, the last worker. Three warpgroups: the first
// computes scores and shares, the others have the sums of half the columns each, and fetch those of the keys when they
// are free. q and out [n, heads, RANK]; turned: of token t and head h at t * step + h * head_step, TURN values; slot and
// position [n]; kept [slots, length, WIDTH]; scale: as of powers of two. Dynamic shared memory: three matrices, the
// shares, and 1024 bytes to begin where swizzles do.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
absorbed(const bf16 *__restrict__ q, const bf16 *__restrict__ turned, const bf16 *__restrict__ kept,
         const int *__restrict__ slot, const int *__restrict__ position, bf16 *__restrict__ out,
         float *__restrict__ parts, float *__restrict__ tops, int *__restrict__ begun, int n, int heads, int length,
         int step, int head_step, float scale) {
    extern __shared__ bf16 memory[];
    __shared__ __align__(8) unsigned long long there[2][PARTS];
    __shared__ float fade[HEADS], top_of[HEADS], total_of[HEADS];
    __shared__ int moved[4];
    bf16 *queries = memory + (1024 - in_shared(memory) % 1024) % 1024 / 2, *keys = queries + MATRIX;
    bf16 *shares = keys + 2 * MATRIX;
    int worker = blockIdx.y, workers = gridDim.y, first = 0, all = 0, group = threadIdx.x / 128;
    int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, mine = warp * 16 + lane / 4;
    int here = min(HEADS, heads - (int)blockIdx.x * HEADS);
    bool counts = warp * 16 < here;  // whether any of the warp's rows is a head's
    Way way = share_of(worker, &workers, position, n, &first, &all);
    if (way.left == 0) return;
    if (threadIdx.x < 2 * PARTS)
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 128;" ::"r"(in_shared(there[0] + threadIdx.x)));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 120;");
        for (int i = here * (WIDTH / 8) + threadIdx.x; i < HEADS * (WIDTH / 8); i += 128)
            *(Eight *)(queries + place(i / (WIDTH / 8), i % (WIDTH / 8))) = {};
        for (int i = threadIdx.x; i < PART / 8; i += 128) *(Eight *)(shares + i * 8) = {};
        for (int done = 0; way.left > 0; way.next(position)) {
            const bf16 *of = q + ((long long)way.token * heads + blockIdx.x * HEADS) * RANK;
            const bf16 *turn = turned + (long long)way.token * step + (long long)blockIdx.x * HEADS * head_step;
            for (int i = threadIdx.x; i < here * (WIDTH / 8); i += 128) {
                int row = i / (WIDTH / 8), piece = i % (WIDTH / 8);
                fetch(queries + place(row, piece), piece < RANK / 8 ? of + row * RANK + piece * 8
                                                     : turn + (long long)row * head_step + (piece - RANK / 8) * 8);
            }
            asm volatile("cp.async.wait_all;" ::: "memory");
            show();
            meet(3, 128);
            float top[2] = {LOWEST, LOWEST}, total[2] = {0, 0};
            for (int tile = way.tile; tile < way.end; tile++, done++) {
                const bf16 *held = keys + done % 2 * MATRIX;
                float scores[32], faded[2] = {1, 1};
                bool higher = false;
                begin_products();
#pragma unroll
                for (int part = 0; part < PARTS; part++) {
                    wait_for(there[done % 2] + part, done / 2 % 2);
                    show();
#pragma unroll
                    for (int i = 0; i < COLUMNS; i += 16)
                        multiply_keys(scores, describe(queries + part * PART + i, 16, 1024),
                                      describe(held + part * PART + i, 16, 1024), part + i > 0);
                }
                end_products();
                asm volatile("" : F32(scores)::"memory");
                if (counts) {
                    if (tile * KEYS + KEYS - 1 > way.last) {
#pragma unroll
                        for (int i = 0; i < 32; i++)
                            if (tile * KEYS + i / 4 * 8 + lane % 4 * 2 + i % 2 > way.last) scores[i] = -INFINITY;
                    }
                    higher = share_out(scores, top, total, faded, scale);
                }
                if (done) meet(FREE, THREADS);  // the others need the last shares no more
                if (counts) {
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        int row = mine + 8 * h;
#pragma unroll
                        for (int i = 0; i < 32; i += 4)
                            *(unsigned *)(shares + place(row, i / 4) + lane % 4 * 2) =
                                narrow_both(scores[i + 2 * h], scores[i + 2 * h + 1]);
                        if (lane % 4 == 0) fade[row] = faded[h];
                        if (tile < way.end - 1) continue;
                        total[h] += __shfl_xor_sync(~0u, total[h], 1);
                        total[h] += __shfl_xor_sync(~0u, total[h], 2);
                        if (lane % 4 == 0) top_of[row] = top[h], total_of[row] = total[h];
                    }
                    if (lane == 0) moved[warp] = higher;
                }
                show();
                come(READY, THREADS);
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 192;");
        Way ahead = way;  // of the keys that are fetched
        int fetched = 0, half = group - 1;
        auto fetch_next = [&]() {
            if (ahead.left <= 0) return;
            const bf16 *from = kept + ((long long)slot[ahead.token] * length + ahead.tile * KEYS) * WIDTH;
            fetch_keys(keys + fetched % 2 * MATRIX, from, there[fetched % 2], half * (PARTS / 2),
                       half ? PARTS : PARTS / 2);
            fetched++, ahead.left--, ahead.tile++;
            if (ahead.tile == ahead.tiles && ahead.left > 0) ahead.token++, ahead.tile = 0, ahead.look(position);
        };
        fetch_next();
        fetch_next();
        float sums[HALF / 2];
        for (int done = 0, turn = 0; way.left > 0; way.next(position), turn++) {
            float top[2] = {0, 0}, total[2] = {1, 1};
            for (int tile = way.tile; tile < way.end; tile++, done++) {
                const bf16 *held = keys + done % 2 * MATRIX + half * (PARTS / 2) * PART;
                meet(READY, THREADS);
                for (int part = 0; part < PARTS / 2; part++)
                    wait_for(there[done % 2] + half * (PARTS / 2) + part, done / 2 % 2);
                show();
                if (counts && moved[warp] && tile > way.tile) {
                    float by[2] = {fade[mine], fade[mine + 8]};
#pragma unroll
                    for (int i = 0; i < HALF / 2; i++) sums[i] *= by[i / 2 % 2];
                }
                if (tile == way.end - 1) {
#pragma unroll
                    for (int h = 0; h < 2; h++) top[h] = top_of[mine + 8 * h], total[h] = total_of[mine + 8 * h];
                }
                begin_products();
#pragma unroll
                for (int i = 0; i < KEYS; i += 16)
                    multiply_values(sums, describe(shares + i, 16, 1024), describe(held + i * COLUMNS, 2 * PART, 1024),
                                    i > 0 || tile > way.tile);
                end_products();
                asm volatile("" : F128(sums)::"memory");
                if (tile < way.end - 1 || way.left > way.end - way.tile) come(FREE, THREADS);
                fetch_next();
            }
            bool whole = way.tile == 0 && way.end == way.tiles;
            int part = 2 * worker + (turn > 0);
            if (threadIdx.x % 128 == 0 && group == 1 && blockIdx.x == 0 && way.tile == 0) {
                long long behind = (long long)first + way.tiles;
                int *of = begun + 4 * way.token;
                of[0] = whole ? -1 : worker, of[1] = part, of[2] = (int)((behind * workers - 1) / all);
            }
            first += way.end - way.tile;
            long long of = ((long long)part * gridDim.x + blockIdx.x) * HEADS;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int row = mine + 8 * h, column = half * HALF + lane % 4 * 2;
                if (row >= here) continue;
                bf16 *to = out + ((long long)way.token * heads + blockIdx.x * HEADS + row) * RANK + column;
                float *sum = parts + (of + row) * RANK + column, by = 1 / total[h];
                if (!whole && half == 0 && lane % 4 == 0)
                    tops[(of + row) * 2] = top[h], tops[(of + row) * 2 + 1] = total[h];
#pragma unroll
                for (int i = 0; i < HALF / 8; i++) {
                    float one = sums[4 * i + 2 * h], two = sums[4 * i + 2 * h + 1];
                    if (whole) *(unsigned *)(to + 8 * i) = narrow_both(one * by, two * by);
                    else *(float2 *)(sum + 8 * i) = make_float2(one, two);
                }
            }
        }
    }
}
