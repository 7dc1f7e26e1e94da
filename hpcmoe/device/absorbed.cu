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
#define PAIRS ((PARTS + 1) / 2)
#define MATRIX (PARTS * PART)  // values of a tile of keys, or of queries
#define THREADS 384
#define TOLL 3   // tiles that take about as long as a part of a token does beside its tiles
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

// The share of `worker`: tiles of n tokens are dealt out in their order, so many each that all end together, where a part
// of a token costs as much as TOLL tiles more. ends: the last worker with a part of the token that goes on behind the
// share. count [n] is room in shared memory.
__device__ __forceinline__ Way share_of(int worker, int workers, const int *position, int n, int *count, int *ends) {
    __shared__ int sums[THREADS / 32], found[4];
    int total = 0;
    for (int t = threadIdx.x; t < n; t += THREADS) total += (count[t] = position[t] / KEYS + 1) + TOLL;
    total = __reduce_add_sync(~0u, total);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = total;
    __syncthreads();
    if (threadIdx.x == 0) {
        total = 0;
        for (int w = 0; w < THREADS / 32; w++) total += sums[w];
        int each = (total + workers - 1) / workers, room = each + TOLL, w = 0, before = 0, to = -1;
        int from = -1, token = 0, tile = 0, last = 0;  // of the share
        if (worker == 0) from = 0;
        for (int t = 0; t < n && to < 0; t++) {
            int tiles = count[t];
            if (room >= tiles + TOLL) {
                room -= tiles + TOLL;
            } else {  // w takes some, the next ones `each`
                int some = max(room - TOLL, 0), more = (tiles - some + each - 1) / each, nth = worker - w;
                if (nth >= 1 && nth <= more) token = t, tile = some + (nth - 1) * each, from = before + tile;
                if (nth >= 0 && nth < more) to = before + some + nth * each, last = w + more;
                w += more, room = more * each - (tiles - some);
            }
            before += tiles;
        }
        found[0] = from < 0 ? 0 : (to < 0 ? before : to) - from;
        found[1] = token, found[2] = tile, found[3] = last;
    }
    __syncthreads();
    Way way = {};
    way.left = found[0], way.token = found[1], way.tile = found[2], *ends = found[3];
    if (way.left > 0) way.look(position);
    return way;
}

// Columns of 64 keys, WIDTH values each, by the 128 threads of a warpgroup; a barrier for each two parts of them.
__device__ __forceinline__ void fetch_keys(bf16 *to, const bf16 *from, unsigned long long *there, int begin, int end) {
    int row = threadIdx.x % 128 / 8, piece = threadIdx.x % 8;
    to += place(row, piece), from += row * WIDTH + piece * 8;
    for (int part = begin; part < end; part++) {
#pragma unroll
        for (int i = 0; i < KEYS; i += 16) fetch(to + part * PART + i * COLUMNS, from + part * COLUMNS + i * WIDTH);
        if (part % 2 || part == PARTS - 1)
            asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(in_shared(there + part / 2))
                         : "memory");
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
// who has a share of all tiles of keys: some tokens whole, of the first and the last perhaps a part, whose sums go
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
    __shared__ __align__(8) unsigned long long there[2][PAIRS];
    __shared__ float fade[HEADS], top_of[HEADS], total_of[HEADS];
    __shared__ int moved[4];
    bf16 *queries = memory + (1024 - in_shared(memory) % 1024) % 1024 / 2, *keys = queries + MATRIX;
    bf16 *shares = keys + 2 * MATRIX;
    int worker = blockIdx.y, ends, group = threadIdx.x / 128;
    int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, mine = warp * 16 + lane / 4;
    int here = min(HEADS, heads - (int)blockIdx.x * HEADS);
    bool counts = warp * 16 < here;  // whether any of the warp's rows is a head's
    Way way = share_of(worker, gridDim.y, position, n, (int *)queries, &ends);
    if (way.left == 0) return;
    if (threadIdx.x < 2 * PAIRS)
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 128;" ::"r"(in_shared(there[0] + threadIdx.x)));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 152;");
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
                    if (part % 2 == 0) wait_for(there[done % 2] + part / 2, done / 2 % 2), show();
#pragma unroll
                    for (int i = 0; i < COLUMNS; i += 16)
                        multiply_keys(scores, describe(queries + part * PART + i, 16, 1024),
                                      describe(held + part * PART + i, 16, 1024), part + i > 0);
                }
                close_group();
                end_products<0>();
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
        asm volatile("setmaxnreg.inc.sync.aligned.u32 176;");
        Way ahead = way;  // of the keys that are fetched
        int fetched = 0, half = group - 1;
        const bf16 *from = kept + ((long long)slot[ahead.token] * length + ahead.tile * KEYS) * WIDTH;
        auto fetch_next = [&](int begin, int end) {
            if (ahead.left > 0) fetch_keys(keys + fetched % 2 * MATRIX, from, there[fetched % 2], begin, end);
        };
        auto go_ahead = [&]() {
            fetched++, ahead.left--, ahead.tile++, from += KEYS * WIDTH;
            if (ahead.tile < ahead.tiles || ahead.left <= 0) return;
            ahead.token++, ahead.tile = 0, ahead.look(position);
            from = kept + (long long)slot[ahead.token] * length * WIDTH;
        };
        for (int i = 0; i < 2; i++) {
            fetch_next(half * 4, half * 4 + 4 + half);
            go_ahead();
        }
        float sums[HALF / 2];
        for (int done = 0, turn = 0; way.left > 0; way.next(position), turn++) {
            float top[2] = {0, 0}, total[2] = {1, 1};
            for (int tile = way.tile; tile < way.end; tile++, done++) {
                const bf16 *held = keys + done % 2 * MATRIX + half * (PARTS / 2) * PART;
                meet(READY, THREADS);
                for (int pair = 0; pair < 2; pair++) wait_for(there[done % 2] + half * 2 + pair, done / 2 % 2);
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
                for (int c = 0; c < 2; c++) {
#pragma unroll
                    for (int i = 0; i < KEYS; i += 16)
                        multiply_values(sums + 64 * c, describe(shares + i, 16, 1024),
                                        describe(held + 2 * c * PART + i * COLUMNS, 2 * PART, 1024),
                                        i > 0 || tile > way.tile);
                    close_group();
                }
                if (half) fetch_next(PARTS - 1, PARTS);  // the turned keys are not values
                end_products<1>();
                fetch_next(half * 4, half * 4 + 2);
                end_products<0>();
                asm volatile("" : F64(sums)::"memory");
                asm volatile("" : F64((sums + 64))::"memory");
                if (tile < way.end - 1 || way.left > way.end - way.tile) come(FREE, THREADS);
                fetch_next(half * 4 + 2, half * 4 + 4);
                go_ahead();
            }
            bool whole = way.tile == 0 && way.end == way.tiles;
            int part = 2 * worker + (turn > 0);
            if (threadIdx.x % 128 == 0 && group == 1 && blockIdx.x == 0 && way.tile == 0) {
                int *of = begun + 4 * way.token;
                of[0] = whole ? -1 : worker, of[1] = part, of[2] = ends;
            }
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
