/* Products with a sparse matrix on the CPU: y = x W^T, and the gradient of the live weights.

   W [out, in] is in compressed rows: the live weights of row o are starts[o] .. starts[o + 1], in
   ascending columns. Activations are row-major [tokens, features], fp32 or bf16; sums are fp32.

   Tokens are taken a tile at a time. Their activations are first turned into [in, tile] floats
   that lie in the second-level cache. A row of W is then summed over its live weights: each is a
   few vectors of 16 tokens times one number, so the work is one load and one multiply-add per
   vector, whatever the pattern. Tokens after the last one are zeros in the tile and are not written.

   Threads take runs of tiles and start and end within a call: a process may fork between calls. */

#include <pthread.h>
#include <stdint.h>
#include <string.h>

/* Tokens of a tile, in a product and in a gradient. Of narrow ones more lies in the first-level
   cache; a gradient sums up a vector for each live weight and tile, so there wide ones cost less. */
#define TILE 32
#define WIDE_TILE 64
#define LANES 16
#define MAX_THREADS 256

/* Features of a row between what is read, or written, and what is fetched for later: rows are far
   apart in memory, and the processor sees no pattern in a few vectors of each. */
#define READ_AHEAD 64
#define WRITE_AHEAD 32

/* A copy of every loop for each level of x86-64, picked when the library is loaded. GCC's vector
   types compile for any machine; elsewhere the flags of the compiler decide. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(64)));
typedef float loose __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));
typedef uint16_t loose_halves __attribute__((vector_size(32), aligned(2), may_alias));

/* a0 b0 a1 b1 ... of the first and of the second half of two vectors. */
#define LOW(a, b) \
    __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(a, b) \
    __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)

struct call {
    const void *x, *dy;
    void *y;
    int bf16;
    int64_t tokens, in, out;
    const int32_t *starts, *columns;
    const float *values;
    float *gradient; /* [threads, live] */
    float *scratch;  /* [threads, (in + 2 * LANES) * WIDE_TILE], 64-byte aligned */
    int64_t threads;
};

INLINE float widen(uint16_t half) {
    uint32_t word = (uint32_t)half << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

/* To the nearest bf16, ties to even; a NaN stays one. */
INLINE halves narrow(floats value) {
    words bits = (words)value;
    words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    words is_nan = (words)(value != value);
    return __builtin_convertvector((rounded & ~is_nan) | (0x7fc0 & is_nan), halves);
}

INLINE floats load(const void *from, int64_t at, int bf16) {
    if (!bf16) return *(const loose *)((const float *)from + at);
    halves half = *(const loose_halves *)((const uint16_t *)from + at);
    return (floats)(__builtin_convertvector(half, words) << 16);
}

/* An address outside does no harm. */
INLINE void fetch(const void *from, int64_t at, int to_write, int bf16) {
    const char *address = (const char *)from + at * (bf16 ? 2 : 4);
    if (to_write)
        __builtin_prefetch(address, 1);
    else
        __builtin_prefetch(address);
}

INLINE void store(void *to, int64_t at, floats value, int bf16) {
    if (bf16)
        *(loose_halves *)((uint16_t *)to + at) = narrow(value);
    else
        *(loose *)((float *)to + at) = value;
}

INLINE void transpose(floats m[LANES]) {
    floats t[LANES];
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 8; i++) {
            t[2 * i] = LOW(m[i], m[i + 8]);
            t[2 * i + 1] = HIGH(m[i], m[i + 8]);
        }
        for (int i = 0; i < 8; i++) {
            m[2 * i] = LOW(t[i], t[i + 8]);
            m[2 * i + 1] = HIGH(t[i], t[i + 8]);
        }
    }
}

/* `count` tokens, `width` features from `first` on, of x [., features] -> tile [width, size]. */
CLONES static void pack(const void *x, int64_t features, int64_t token, int64_t count,
                        int64_t first, int64_t width, float *tile, int size, int bf16) {
    floats block[LANES];
    for (int part = 0; part < size / LANES; part++) {
        int64_t whole = width / LANES * LANES, left = count - part * LANES;
        const int64_t origin = (token + part * LANES) * features + first;
        for (int64_t f = 0; f < whole; f += LANES) {
            for (int r = 0; r < LANES; r++) {
                int64_t at = origin + r * features + f;
                block[r] = r < left ? load(x, at, bf16) : (floats){0};
                fetch(x, at + READ_AHEAD, 0, bf16);
            }
            transpose(block);
            for (int r = 0; r < LANES; r++)
                *(floats *)(tile + (f + r) * size + part * LANES) = block[r];
        }
        for (int64_t f = whole; f < width; f++)
            for (int r = 0; r < LANES; r++) {
                int64_t at = origin + r * features + f;
                float value = 0;
                if (r < left) value = bf16 ? widen(((uint16_t *)x)[at]) : ((float *)x)[at];
                tile[f * size + part * LANES + r] = value;
            }
    }
}

/* The way back: block [width, TILE], width <= LANES, to `count` rows of y. */
CLONES static void unpack(const float *block, void *y, int64_t features, int64_t token,
                          int64_t count, int64_t first, int64_t width, int bf16) {
    floats m[LANES];
    for (int part = 0; part < TILE / LANES; part++) {
        int64_t left = count - part * LANES;
        const int64_t origin = (token + part * LANES) * features + first;
        for (int r = 0; r < LANES; r++)
            m[r] = r < width ? *(const floats *)(block + r * TILE + part * LANES) : (floats){0};
        transpose(m);
        for (int r = 0; r < LANES && r < left; r++) {
            if (width == LANES) {
                store(y, origin + r * features, m[r], bf16);
                fetch(y, origin + r * features + WRITE_AHEAD, 1, bf16);
                continue;
            }
            halves half = narrow(m[r]);
            for (int f = 0; f < width; f++) {
                if (bf16)
                    ((uint16_t *)y)[origin + r * features + f] = half[f];
                else
                    ((float *)y)[origin + r * features + f] = m[r][f];
            }
        }
    }
}

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE void add_weight(floats sum[TILE / LANES], const float *tile, int32_t column, float weight) {
    const floats *x = (const floats *)(tile + (int64_t)column * TILE);
    for (int part = 0; part < TILE / LANES; part++) sum[part] += x[part] * weight;
}

/* One row of W with the tile [in, TILE] -> y [TILE]. Two sums, each of every second weight: a
   multiply-add waits for the one before it in the same sum. */
INLINE void multiply_row(const float *tile, const int32_t *columns, const float *values,
                         int32_t live, float *y) {
    floats even[TILE / LANES] = {0}, odd[TILE / LANES] = {0};
    int32_t j = 0;
    for (; j + 1 < live; j += 2) {
        add_weight(even, tile, columns[j], values[j]);
        add_weight(odd, tile, columns[j + 1], values[j + 1]);
    }
    if (j < live) add_weight(even, tile, columns[j], values[j]);
    for (int part = 0; part < TILE / LANES; part++) even[part] += odd[part];
    memcpy(y, even, sizeof even);
}

CLONES static void multiply_tiles(const struct call *call, int64_t begin, int64_t end,
                                  float *scratch, float *gradient) {
    (void)gradient;
    float *tile = scratch, *block = scratch + call->in * TILE;
    const int32_t *columns = call->columns;
    const float *values = call->values;
    for (int64_t token = begin * TILE; token < smaller(end * TILE, call->tokens); token += TILE) {
        int64_t count = smaller(TILE, call->tokens - token);
        pack(call->x, call->in, token, count, 0, call->in, tile, TILE, call->bf16);
        for (int64_t first = 0; first < call->out; first += LANES) {
            int64_t width = smaller(LANES, call->out - first);
            for (int64_t row = 0; row < width; row++) {
                int32_t start = call->starts[first + row], last = call->starts[first + row + 1];
                multiply_row(tile, columns + start, values + start, last - start,
                             block + row * TILE);
            }
            unpack(block, call->y, call->out, token, count, first, width, call->bf16);
        }
    }
}

/* Of two vectors: lanes that differ in bit `s` of their number are added up. What belongs to the
   first is in lanes without the bit, what belongs to the second in lanes with it. */
#define KEPT(s, i) ((i) & (s) ? (i) + LANES : (i))
#define CROSSED(s, i) (KEPT(s, i) ^ (s))
#define EACH(f, s) \
    f(s, 0), f(s, 1), f(s, 2), f(s, 3), f(s, 4), f(s, 5), f(s, 6), f(s, 7), f(s, 8), f(s, 9), \
        f(s, 10), f(s, 11), f(s, 12), f(s, 13), f(s, 14), f(s, 15)
#define FOLD(v, s) \
    for (int i = 0; i < (s); i++) \
        v[i] = __builtin_shufflevector(v[i], v[i + (s)], EACH(KEPT, s)) + \
               __builtin_shufflevector(v[i], v[i + (s)], EACH(CROSSED, s))

/* The sums of the lanes of 16 vectors, in their order. */
INLINE floats sum_lanes(floats v[LANES]) {
    FOLD(v, 8);
    FOLD(v, 4);
    FOLD(v, 2);
    FOLD(v, 1);
    return v[0];
}

CLONES static void gradient_of_tiles(const struct call *call, int64_t begin, int64_t end,
                                     float *scratch, float *gradient) {
    float *tile = scratch, *block = scratch + call->in * WIDE_TILE;
    const int32_t *columns = call->columns;
    memset(gradient, 0, (size_t)call->starts[call->out] * sizeof(float));
    int64_t stop = smaller(end * WIDE_TILE, call->tokens);
    for (int64_t token = begin * WIDE_TILE; token < stop; token += WIDE_TILE) {
        int64_t count = smaller(WIDE_TILE, call->tokens - token);
        floats *waiting = (floats *)(block + LANES * WIDE_TILE); /* one vector of sums for each weight */
        int64_t done = 0; /* weights whose sums have been added */
        pack(call->x, call->in, token, count, 0, call->in, tile, WIDE_TILE, call->bf16);
        for (int64_t first = 0; first < call->out; first += LANES) {
            int64_t width = smaller(LANES, call->out - first);
            pack(call->dy, call->out, token, count, first, width, block, WIDE_TILE, call->bf16);
            for (int64_t row = 0; row < width; row++) {
                const floats *dy = (const floats *)(block + row * WIDE_TILE);
                floats a = dy[0], b = dy[1], c = dy[2], d = dy[3];
                int32_t last = call->starts[first + row + 1];
                for (int32_t j = call->starts[first + row]; j < last; j++) {
                    const floats *x = (const floats *)(tile + (int64_t)columns[j] * WIDE_TILE);
                    waiting[j - done] = a * x[0] + b * x[1] + (c * x[2] + d * x[3]);
                    if (j - done == LANES - 1) {
                        *(loose *)(gradient + done) += sum_lanes(waiting);
                        done += LANES;
                    }
                }
            }
        }
        int64_t left = call->starts[call->out] - done;
        for (int64_t i = left; i < LANES; i++) waiting[i] = (floats){0};
        floats sums = sum_lanes(waiting);
        for (int64_t i = 0; i < left; i++) gradient[done + i] += sums[i];
    }
}

typedef void (*work_fn)(const struct call *, int64_t, int64_t, float *, float *);

struct share {
    const struct call *call;
    work_fn work;
    int64_t number;
};

static void *take_share(void *argument) {
    const struct share *share = argument;
    const struct call *call = share->call;
    float *own = call->scratch + share->number * (call->in + 2 * LANES) * WIDE_TILE;
    float *gradient = call->gradient;
    int64_t size = gradient ? WIDE_TILE : TILE, tiles = (call->tokens + size - 1) / size;
    if (gradient) gradient += share->number * call->starts[call->out];
    share->work(call, tiles * share->number / call->threads,
                tiles * (share->number + 1) / call->threads, own, gradient);
    return NULL;
}

/* The caller takes the first share, and those for which no thread could be started. */
static void share_out(const struct call *call, work_fn work) {
    struct share shares[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    int started[MAX_THREADS] = {0};
    for (int64_t i = 0; i < call->threads; i++) {
        shares[i] = (struct share){call, work, i};
        if (i) started[i] = !pthread_create(&threads[i], NULL, take_share, &shares[i]);
    }
    for (int64_t i = 0; i < call->threads; i++)
        if (!started[i]) take_share(&shares[i]);
    for (int64_t i = 0; i < call->threads; i++)
        if (started[i]) pthread_join(threads[i], NULL);
}

/* y [tokens, out] = x [tokens, in] W^T. 1 <= threads <= 256. */
void sparsecl_multiply(const void *x, const int32_t *starts, const int32_t *columns,
                       const float *values, void *y, float *scratch, int64_t tokens, int64_t in,
                       int64_t out, int64_t threads, int bf16) {
    struct call call = {.x = x, .y = y, .bf16 = bf16, .tokens = tokens, .in = in, .out = out,
                        .starts = starts, .columns = columns, .values = values,
                        .scratch = scratch, .threads = threads};
    share_out(&call, multiply_tiles);
}

/* gradient [threads, live]: its first row becomes dy^T x in the live cells, the others are used. */
void sparsecl_gradient(const void *dy, const void *x, const int32_t *starts,
                       const int32_t *columns, float *gradient, float *scratch, int64_t tokens,
                       int64_t in, int64_t out, int64_t threads, int bf16) {
    struct call call = {.x = x, .dy = dy, .bf16 = bf16, .tokens = tokens, .in = in, .out = out,
                        .starts = starts, .columns = columns, .gradient = gradient,
                        .scratch = scratch, .threads = threads};
    share_out(&call, gradient_of_tiles);
    int64_t live = starts[out];
    for (int64_t i = 1; i < threads; i++) /* in order: equal threads give equal bits */
        for (int64_t j = 0; j < live; j++) gradient[j] += gradient[i * live + j];
}
