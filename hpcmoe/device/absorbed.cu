// Attention with a latent in its absorbed form, on the tensor cores of Hopper; twin: model/latent.py.

#define RANK 512  // values of a token's vector, which is its value, too, and behind which its turned key lies
#define TURN 64
#define WIDTH (RANK + TURN)
#define KEYS 64          // of a tile
#define HEADS 64         // of a block: the rows of the tensor cores' products
#define HALF (RANK / 2)  // columns of the sums of a warpgroup
#define COLUMNS 64       // values of 128 bytes: so wide are the parts in which matrices lie in shared memory
#define PART (64 * COLUMNS)
#define MATRIX (WIDTH / COLUMNS * PART)  // values of a tile of keys, or of queries
#define EASE 8.0f                        // powers of two by which a score may pass the top that it is held against
#define LOWEST -1e30f

// Where 16 bytes of a row lie in a matrix: parts of 64 columns, rows of 128 bytes whose pieces are swizzled, in values.
__device__ __forceinline__ int place(int row, int piece) {
    return piece / 8 * PART + row * COLUMNS + (piece % 8 ^ row % 8) * 8;
}

__device__ __forceinline__ float power_of_two(float value) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(value));
    return out;
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

// Cuts the tiles of n tokens evenly; the share of `worker`. first: its first tile among all; all: how many there are.
__device__ __forceinline__ Way share_of(int worker, int workers, const int *position, int n, int *first,
                                        int *all) {
    __shared__ int sums[8], found[2];
    int each = (n + 255) / 256, begin = min(n, (int)threadIdx.x * each), stop = min(n, begin + each), mine = 0;
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
    for (int w = 0; w < 8; w++) {
        if (w < threadIdx.x / 32) before += sums[w];
        total += sums[w];
    }
    int from = (int)((long long)total * worker / workers), to = (int)((long long)total * (worker + 1) / workers);
    if (from < to && before <= from && from < before + mine) {
        int t = begin, tiles = position[t] / KEYS + 1;
        while (before + tiles <= from) before += tiles, t++, tiles = position[t] / KEYS + 1;
        found[0] = t, found[1] = from - before;
    }
    __syncthreads();
    *first = from, *all = total;
    Way way = {};
    way.left = to - from;
    if (from < to) way.token = found[0], way.tile = found[1], way.look(position);
    return way;
}

// 64 keys, WIDTH values each, one behind the other, by the 128 threads of a warpgroup.
__device__ __forceinline__ void fetch_keys(bf16 *to, const bf16 *from, unsigned long long *there) {
    int thread = threadIdx.x % 128, row = thread / (WIDTH / 8), piece = thread % (WIDTH / 8);
#pragma unroll 6
    for (int i = 0; i < KEYS * WIDTH / 8 / 128; i++) {
        fetch(to + place(row, piece), from + (i * 128 + thread) * 8);
        row++, piece += 128 - WIDTH / 8;
        if (piece >= WIDTH / 8) piece -= WIDTH / 8, row++;
    }
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(in_shared(there)) : "memory");
}

// Softmax and sum in one pass over the vectors of the tokens that each token sees. A block for HEADS heads and a worker,
// who has an even share of all tiles of keys: some tokens whole, of the first and the last perhaps a part, whose sums go
// to parts [workers * 2, tiles of heads, HEADS, RANK] and tops [.., HEADS, 2]. begun [workers, 4] tells `join` with which
// such token a worker began: the token or -1, the first of its parts, the last worker. Two warpgroups have the sums of
// half the columns each; the first computes scores and shares, too, while the second fetches keys.
// q and out [n, heads, RANK]; turned: of token t and head h at t * step + h * head_step, TURN values; slot and position
// [n]; kept [slots, length, WIDTH]; scale: as of powers of two. Dynamic shared memory: three matrices, the shares, and 1024
// bytes to begin where swizzles do.
extern "C" __global__ void __launch_bounds__(256, 1)
absorbed(const bf16 *__restrict__ q, const bf16 *__restrict__ turned, const bf16 *__restrict__ kept,
         const int *__restrict__ slot, const int *__restrict__ position, bf16 *__restrict__ out,
         float *__restrict__ parts, float *__restrict__ tops, int *__restrict__ begun, int n, int heads, int length,
         int step, int head_step, float scale) {
    extern __shared__ bf16 memory[];
    __shared__ __align__(8) unsigned long long there[2];
    __shared__ float fade[HEADS], top_of[HEADS], total_of[HEADS];
    __shared__ int moved[4];
    bf16 *queries = memory + (1024 - in_shared(memory) % 1024) % 1024 / 2, *keys = queries + MATRIX;
    bf16 *shares = keys + 2 * MATRIX;
    int worker = blockIdx.y, first, all, group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4;
    int lane = threadIdx.x % 32, mine = warp * 16 + lane / 4, here = min(HEADS, heads - (int)blockIdx.x * HEADS);
    bool counts = warp * 16 < here;  // whether any of the warp's rows is a head's
    Way way = share_of(worker, gridDim.y, position, n, &first, &all);
    if (threadIdx.x == 0 && blockIdx.x == 0) begun[4 * worker] = -1;
    if (way.left == 0) return;
    if (threadIdx.x == 0) {
        for (int b = 0; b < 2; b++)
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 128;" ::"r"(in_shared(there + b)));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    for (int i = threadIdx.x; i < MATRIX / 8; i += 256) *(Eight *)(queries + i * 8) = {};
    for (int i = threadIdx.x; i < PART / 8; i += 256) *(Eight *)(shares + i * 8) = {};
    show();
    __syncthreads();
    Way ahead = way;  // of the keys that are fetched, by the second warpgroup
    int fetched = 0;
    auto fetch_next = [&]() {
        if (ahead.left <= 0) return;
        const bf16 *from = kept + ((long long)slot[ahead.token] * length + ahead.tile * KEYS) * WIDTH;
        fetch_keys(keys + fetched % 2 * MATRIX, from, there + fetched % 2);
        fetched++, ahead.left--, ahead.tile++;
        if (ahead.tile == ahead.tiles && ahead.left > 0) ahead.token++, ahead.tile = 0, ahead.look(position);
    };
    if (group == 1) fetch_next(), fetch_next();
    float sums[HALF / 2];
    bool is_first = true;
    for (int done = 0; way.left > 0; way.next(position), is_first = false) {
        float top[2] = {LOWEST, LOWEST}, total[2] = {0, 0};
        if (group == 0) {
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
        }
        for (int tile = way.tile; tile < way.end; tile++, done++) {
            const bf16 *held = keys + done % 2 * MATRIX;
            bool ends = tile == way.end - 1;
            if (group == 0) {
                float scores[32];
                wait_for(there + done % 2, done / 2 % 2);
                show();
                begin_products();
#pragma unroll
                for (int i = 0; i < WIDTH / 16; i++) {
                    int at = i / 4 * PART + i % 4 * 16;
                    multiply_keys(scores, describe(queries + at, 16, 1024), describe(held + at, 16, 1024), i > 0);
                }
                end_products();
                asm volatile("" : F32(scores)::"memory");
                if (counts) {
                    if (tile * KEYS + KEYS - 1 > way.last) {
#pragma unroll
                        for (int i = 0; i < 32; i++)
                            if (tile * KEYS + i / 4 * 8 + lane % 4 * 2 + i % 2 > way.last) scores[i] = -INFINITY;
                    }
                    bool higher = false;
#pragma unroll
                    for (int h = 0; h < 2; h++) {  // rows `mine` and 8 behind it
                        float most = -INFINITY, faded = 1;
#pragma unroll
                        for (int i = 0; i < 32; i += 4)
                            most = fmaxf(most, fmaxf(scores[i + 2 * h], scores[i + 2 * h + 1]));
                        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
                        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2)) * scale;
                        if (most > top[h] + EASE) faded = power_of_two(top[h] - most), top[h] = most, higher = true;
                        total[h] *= faded;
#pragma unroll
                        for (int i = 0; i < 32; i += 4) {
                            float one = power_of_two(scores[i + 2 * h] * scale - top[h]);
                            float two = power_of_two(scores[i + 2 * h + 1] * scale - top[h]);
                            total[h] += one + two;
                            *(unsigned *)(shares + place(mine + 8 * h, i / 4) + lane % 4 * 2) =
                                narrow(one) | (unsigned)narrow(two) << 16;
                        }
                        if (lane % 4 == 0) fade[mine + 8 * h] = faded;
                        if (ends) {
                            total[h] += __shfl_xor_sync(~0u, total[h], 1);
                            total[h] += __shfl_xor_sync(~0u, total[h], 2);
                            if (lane % 4 == 0) top_of[mine + 8 * h] = top[h], total_of[mine + 8 * h] = total[h];
                        }
                    }
                    higher = __any_sync(~0u, higher);
                    if (lane == 0) moved[warp] = higher;
                }
                show();
            }
            meet(1, 256);  // the shares are there
            if (group == 1) wait_for(there + done % 2, done / 2 % 2);
            show();
            if (counts && moved[warp] && tile > way.tile) {
                float by[2] = {fade[mine], fade[mine + 8]};
#pragma unroll
                for (int i = 0; i < HALF / 2; i++) sums[i] *= by[i / 2 % 2];
            }
            if (ends && counts) {
#pragma unroll
                for (int h = 0; h < 2; h++) top[h] = top_of[mine + 8 * h], total[h] = total_of[mine + 8 * h];
            }
            begin_products();
#pragma unroll
            for (int i = 0; i < KEYS / 16; i++)
                multiply_values(sums, describe(shares + i * 16, 16, 1024),
                                describe(held + group * (HALF / COLUMNS) * PART + i * 16 * COLUMNS, 2 * PART, 1024),
                                i > 0 || tile > way.tile);
            end_products();
            asm volatile("" : F128(sums)::"memory");
            meet(2, 256);  // the keys' place is free, and the shares'
            if (group == 1) fetch_next();
        }
        bool whole = way.tile == 0 && way.end == way.tiles;
        int part = 2 * worker + !is_first;
        if (threadIdx.x == 0 && blockIdx.x == 0 && way.tile == 0 && !whole) {
            long long behind = (long long)first + way.tiles;  // the worker has come to the token's first tile by now
            begun[4 * worker + 1] = part;
            begun[4 * worker + 2] = (int)((behind * gridDim.y - 1) / all);
            begun[4 * worker] = way.token;
        }
        first += way.end - way.tile;
        long long of = ((long long)part * gridDim.x + blockIdx.x) * HEADS;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int row = mine + 8 * h;
            if (row >= here) continue;
            int column = group * HALF + lane % 4 * 2;
            bf16 *to = out + ((long long)way.token * heads + blockIdx.x * HEADS + row) * RANK + column;
            float *sum = parts + (of + row) * RANK + column, by = 1 / total[h];
            if (!whole && group == 0 && lane % 4 == 0)
                tops[(of + row) * 2] = top[h], tops[(of + row) * 2 + 1] = total[h];
#pragma unroll
            for (int i = 0; i < HALF / 8; i++) {
                float one = sums[4 * i + 2 * h], two = sums[4 * i + 2 * h + 1];
                if (whole) *(unsigned *)(to + 8 * i) = narrow(one * by) | (unsigned)narrow(two * by) << 16;
                else *(float2 *)(sum + 8 * i) = make_float2(one, two);
            }
        }
    }
}

// The parts of a token's sums become one: a block for a worker, who began with it, and blockDim.y heads.
extern "C" __global__ void join(const float *__restrict__ parts, const float *__restrict__ tops,
                                const int *__restrict__ begun, bf16 *__restrict__ out, int heads) {
    int token = begun[4 * blockIdx.x], head = blockIdx.y * blockDim.y + threadIdx.y;
    if (token < 0 || head >= heads) return;
    int part = begun[4 * blockIdx.x + 1], last = begun[4 * blockIdx.x + 2], count = last - (int)blockIdx.x + 1;
    int tiles = (heads + HEADS - 1) / HEADS;
    long long cell = (long long)head / HEADS * HEADS + head % HEADS, step = (long long)tiles * HEADS;
    float highest = LOWEST, all = 0, sum[4] = {0};
    for (int i = 0; i < count; i++) {
        long long at = (i ? 2 * ((long long)blockIdx.x + i) : part) * step + cell;
        highest = fmaxf(highest, tops[2 * at]);
    }
#pragma unroll 4
    for (int i = 0; i < count; i++) {
        long long at = (i ? 2 * ((long long)blockIdx.x + i) : part) * step + cell;
        float by = power_of_two(tops[2 * at] - highest);
        float4 more = *(const float4 *)(parts + at * RANK + 4 * threadIdx.x);
        all += by * tops[2 * at + 1];
        sum[0] += by * more.x, sum[1] += by * more.y, sum[2] += by * more.z, sum[3] += by * more.w;
    }
    bf16 *to = out + ((long long)token * heads + head) * RANK + 4 * threadIdx.x;
    for (int i = 0; i < 4; i++) to[i] = narrow(sum[i] / all);
}
