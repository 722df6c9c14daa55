/* Causal attention on the CPU in fp32: exact, in blocks, without the matrix of all scores.

   softmax(Q K^T / sqrt(D)) V of each head, and its gradients, as FlashAttention goes about it (Dao et
   al. 2022, https://arxiv.org/abs/2205.14135): the forward pass keeps the logarithm of each query's
   sum, from which the backward pass makes the probabilities again. Heads are packed into the
   second-level cache once: rows of whole vectors, and of keys and values also panels [width, PANEL],
   in which a vector holds 16 keys. Every product then is the same work: a tile of TILE rows of sums in
   registers, one vector of the right matrix times one number of the left for each multiply-add. Tiles
   above the diagonal are left out.

   Threads take groups of heads that share keys and values, whichever is next, and start and end
   within a call. One thread sums up all that belongs to a group, so the number of threads does not
   change a bit. */

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define TILE 4     /* rows of sums at a time */
#define WIDE 4     /* vectors of each, at most */
#define PANEL 64   /* keys of a packed panel, WIDE vectors */
#define QUERIES 64 /* of a block */
#define KEYS 128   /* of a block; of the forward pass, FORWARD_KEYS */
#define FORWARD_KEYS 512
#define STRIDE(keys) ((keys) + LANES) /* rows of a power of two would share few sets of the cache */
#define MAX_THREADS 256
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

/* A copy of every loop for AVX-512, picked when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "default")))
#define CLONED
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

typedef float floats __attribute__((vector_size(64)));
typedef float loose __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t words __attribute__((vector_size(64)));

/* [batch, head, token, width], the width contiguous; strides in floats. attention.py has the same. */
struct heads {
    float *data;
    int64_t batch, head, token;
};

struct call {
    struct heads q, k, v, o, dq, dk, dv, grad;
    float *sums;    /* [batch, head, token]: log2 of the sum of exp(score) */
    float *scratch; /* [threads, room], 64-byte aligned */
    int64_t room, batch, heads, groups, tokens, width, threads;
    float scale;
    int64_t next; /* the group that nobody has taken yet */
};

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
INLINE floats choose(words where, floats a, floats b) {
    return (floats)((where & (words)a) | (~where & (words)b));
}

#define SWAP(v, s) __builtin_shuffle(v, (words){0 ^ s, 1 ^ s, 2 ^ s, 3 ^ s, 4 ^ s, 5 ^ s, 6 ^ s, 7 ^ s, \
                                                8 ^ s, 9 ^ s, 10 ^ s, 11 ^ s, 12 ^ s, 13 ^ s, 14 ^ s, 15 ^ s})

INLINE float sum_of(floats v) {
    v += SWAP(v, 8), v += SWAP(v, 4), v += SWAP(v, 2), v += SWAP(v, 1);
    return v[0];
}

INLINE floats largest(floats a, floats b) { return choose(a > b, a, b); }

INLINE float largest_of(floats v) {
    v = largest(v, SWAP(v, 8)), v = largest(v, SWAP(v, 4));
    v = largest(v, SWAP(v, 2)), v = largest(v, SWAP(v, 1));
    return v[0];
}

/* 2^x for x <= 0, to 2 units in the last place; 0 below 2^-126, and a NaN stays one. */
INLINE floats power(floats x) {
    const floats magic = (floats){0} + 12582912.0f; /* 1.5 * 2^23 rounds to a whole number */
    words tiny = x < -126.0f;
    floats shifted = choose(tiny, (floats){0} - 126.0f, x) + magic;
    floats f = choose(tiny, (floats){0}, x - (shifted - magic));
    floats p = f * 1.545316295e-4f + 1.339086336e-3f; /* Chebyshev on [-1/2, 1/2] */
    p = p * f + 9.618082557e-3f;
    p = p * f + 5.550357114e-2f;
    p = p * f + 2.402265076e-1f;
    p = p * f + 6.93147188e-1f;
    p = p * f + 1.0f;
    floats whole = (floats)(((words)shifted << 23) + (127 << 23));
    return choose(tiny, (floats){0}, p * whole);
}

/* All bits in the first `num` lanes. */
INLINE words first_lanes(int64_t num) {
    return (words){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} < (int32_t)num;
}

/* c [TILE, vectors] = a b, or += : `steps` numbers of a in each row, and as many rows of b. */
INLINE void tile(int vectors, const float *a, int64_t a_row, int64_t a_step, const float *b,
                 int64_t b_step, int64_t steps, float *c, int64_t c_row, int add) {
    floats sum[TILE][WIDE];
    UNROLL for (int r = 0; r < TILE; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            sum[r][v] = add ? *(const floats *)(c + r * c_row + v * LANES) : (floats){0};
    for (int64_t k = 0; k < steps; k++) {
        floats right[WIDE];
        UNROLL for (int v = 0; v < vectors; v++) right[v] = *(const floats *)(b + v * LANES);
        UNROLL for (int r = 0; r < TILE; r++)
            UNROLL for (int v = 0; v < vectors; v++) sum[r][v] += right[v] * a[r * a_row];
        a += a_step, b += b_step;
    }
    UNROLL for (int r = 0; r < TILE; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            *(floats *)(c + r * c_row + v * LANES) = sum[r][v];
}

#define TILE_OF(n, ...)                                \
    switch (n) {                                       \
    case 1: tile(1, __VA_ARGS__); break;               \
    case 2: tile(2, __VA_ARGS__); break;               \
    case 3: tile(3, __VA_ARGS__); break;               \
    default: tile(WIDE, __VA_ARGS__);                  \
    }

/* A block of queries and keys: `from` is the first query's position less the first key's. Of the
   keys a group of TILE rows at `row` looks at those before row + from + TILE. */
struct block {
    int64_t queries, keys, from, width; /* keys, width: whole vectors; queries: whole tiles */
};

INLINE int64_t reach(struct block at, int64_t row) {
    return larger(0, smaller(at.keys, padded(row + at.from + TILE, LANES)));
}

/* out [queries, keys] = rows [queries, width] times panels, where one of the tile looks. */
CLONES static void score(struct block at, const float *rows, const float *panels, float *out,
                         int64_t stride) {
    for (int64_t key = 0; key < at.keys; key += PANEL) {
        const float *panel = panels + key * at.width;
        for (int64_t row = larger(0, (key - at.from) / TILE * TILE); row < at.queries; row += TILE) {
            int64_t vectors = smaller(PANEL, reach(at, row) - key) / LANES;
            if (vectors > 0)
                TILE_OF(vectors, rows + row * at.width, at.width, 1, panel, PANEL, at.width,
                        out + row * stride + key, stride, 0)
        }
    }
}

/* out [queries, width] += weights [queries, keys] times rows [keys, width]. */
CLONES static void gather(struct block at, const float *weights, int64_t stride, const float *rows,
                          float *out) {
    for (int64_t first = 0; first < at.width; first += WIDE * LANES) {
        int64_t vectors = smaller(WIDE, (at.width - first) / LANES);
        for (int64_t row = 0; row < at.queries; row += TILE) {
            int64_t steps = larger(0, smaller(at.keys, row + at.from + TILE));
            TILE_OF(vectors, weights + row * stride, stride, 1, rows + first, at.width, steps,
                    out + row * at.width + first, at.width, 1)
        }
    }
}

/* out [keys, width] += weights^T times rows [num, width]. */
CLONES static void scatter(struct block at, int64_t num, const float *weights, int64_t stride,
                           const float *rows, float *out) {
    for (int64_t first = 0; first < at.width; first += WIDE * LANES) {
        int64_t vectors = smaller(WIDE, (at.width - first) / LANES);
        for (int64_t key = 0; key < at.keys; key += TILE) {
            int64_t row = larger(0, key - at.from);
            if (row >= num) break;
            TILE_OF(vectors, weights + row * stride + key, 1, stride,
                    rows + row * at.width + first, at.width, num - row,
                    out + key * at.width + first, at.width, 1)
        }
    }
}

/* How many keys of a block a row looks at. */
INLINE int64_t seen(struct block at, int64_t row) {
    return larger(0, smaller(at.keys, row + at.from + 1));
}

/* Zeros behind what a row looks at, as far as a tile of it may be read. */
INLINE void clear(struct block at, int64_t row, float *weights) {
    int64_t end = smaller(at.keys, padded(larger(0, row + at.from + TILE), LANES));
    for (int64_t key = padded(seen(at, row), LANES); key < end; key += LANES)
        *(floats *)(weights + key) = (floats){0};
}

/* Scores to weights exp(score - best), for the best of each row so far: sum and o [queries, width]
   are brought to it and the sum goes on. */
CLONES static void soften(struct block at, float *scores, int64_t stride, float *best, float *sum,
                          float *o) {
    for (int64_t row = 0; row < at.queries; row++) {
        float *s = scores + row * stride;
        int64_t num = seen(at, row), whole = num / LANES * LANES;
        words rest = first_lanes(num - whole);
        floats most = (floats){0} - INFINITY, total = {0};
        for (int64_t key = 0; key < whole; key += LANES)
            most = largest(*(const floats *)(s + key), most);
        if (num > whole) {
            floats last = choose(rest, *(const floats *)(s + whole), (floats){0} - INFINITY);
            most = largest(last, most);
            *(floats *)(s + whole) = last;
        }
        float old = best[row], now = largest_of(most);
        now = now > old ? now : old;
        float base = now == -INFINITY ? 0 : now;
        for (int64_t key = 0; key < padded(num, LANES); key += LANES) {
            floats weight = power(*(const floats *)(s + key) - base);
            *(floats *)(s + key) = weight;
            total += weight;
        }
        clear(at, row, s);
        best[row] = now;
        if (old != -INFINITY && now > old) {
            float shrink = power((floats){0} + (old - base))[0];
            sum[row] *= shrink;
            for (int64_t d = 0; d < at.width; d += LANES)
                *(floats *)(o + row * at.width + d) *= shrink;
        }
        sum[row] += sum_of(total);
    }
}

/* Scores to probabilities, from the logarithm of their sum. */
CLONES static void normalize(struct block at, float *scores, int64_t stride, const float *sums) {
    for (int64_t row = 0; row < at.queries; row++) {
        float *s = scores + row * stride;
        int64_t num = seen(at, row), whole = num / LANES * LANES;
        for (int64_t key = 0; key < whole; key += LANES)
            *(floats *)(s + key) = power(*(const floats *)(s + key) - sums[row]);
        if (num > whole)
            *(floats *)(s + whole) = choose(first_lanes(num - whole),
                                            power(*(const floats *)(s + whole) - sums[row]),
                                            (floats){0});
        clear(at, row, s);
    }
}

/* slopes: gradients of probabilities, which become those of scores. */
CLONES static void slope(struct block at, const float *weights, float *slopes, int64_t stride,
                         const float *delta) {
    for (int64_t row = 0; row < at.queries; row++) {
        const float *p = weights + row * stride;
        float *s = slopes + row * stride;
        for (int64_t key = 0; key < padded(seen(at, row), LANES); key += LANES)
            *(floats *)(s + key) = *(const floats *)(p + key) * (*(const floats *)(s + key) - delta[row]);
        clear(at, row, s);
    }
}

INLINE float *row_of(const struct heads *of, int64_t batch, int64_t head, int64_t token) {
    return of->data + batch * of->batch + head * of->head + token * of->token;
}

/* `num` tokens of a head times `scale` -> rows [room, padded width], with zeros around. */
CLONES static void pack(const struct call *call, const struct heads *of, int64_t batch, int64_t head,
                        int64_t token, int64_t num, int64_t room, float scale, float *rows) {
    int64_t width = padded(call->width, LANES), whole = call->width / LANES * LANES;
    for (int64_t t = 0; t < num; t++, rows += width) {
        const float *from = row_of(of, batch, head, token + t);
        for (int64_t d = 0; d < whole; d += LANES)
            *(floats *)(rows + d) = *(const loose *)(from + d) * scale;
        for (int64_t d = whole; d < width; d++) rows[d] = d < call->width ? from[d] * scale : 0;
    }
    memset(rows, 0, (room - num) * width * sizeof(float));
}

CLONES static void unpack(const struct call *call, const float *rows, const struct heads *to,
                          int64_t batch, int64_t head, int64_t token, int64_t num, const float *scales,
                          float scale) {
    int64_t width = padded(call->width, LANES), whole = call->width / LANES * LANES;
    for (int64_t t = 0; t < num; t++, rows += width) {
        float *into = row_of(to, batch, head, token + t), by = scales ? scales[t] : scale;
        for (int64_t d = 0; d < whole; d += LANES)
            *(loose *)(into + d) = *(const floats *)(rows + d) * by;
        for (int64_t d = whole; d < call->width; d++) into[d] = rows[d] * by;
    }
}

/* a0 b0 a1 b1 ... of the first and of the second half of two vectors. */
#define LOW(a, b) \
    __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(a, b) \
    __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)

INLINE void transpose(floats m[LANES]) {
    floats t[LANES];
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 8; i++) t[2 * i] = LOW(m[i], m[i + 8]), t[2 * i + 1] = HIGH(m[i], m[i + 8]);
        for (int i = 0; i < 8; i++) m[2 * i] = LOW(t[i], t[i + 8]), m[2 * i + 1] = HIGH(t[i], t[i + 8]);
    }
}

/* Rows [num, width] -> panels [num / PANEL, width, PANEL]. */
CLONES static void turn(const float *rows, int64_t num, int64_t width, float *panels) {
    floats block[LANES];
    for (int64_t t = 0; t < num; t += LANES)
        for (int64_t d = 0; d < width; d += LANES) {
            float *to = panels + t / PANEL * PANEL * width + d * PANEL + t % PANEL;
            for (int i = 0; i < LANES; i++) block[i] = *(const floats *)(rows + (t + i) * width + d);
            transpose(block);
            for (int i = 0; i < LANES; i++) *(floats *)(to + i * PANEL) = block[i];
        }
}

/* delta [room]: of each token, the sum of grad [room, padded width] times o; 0 behind the last. */
CLONES static void products(const struct call *call, const float *grad, int64_t batch, int64_t head,
                            int64_t room, float *delta) {
    int64_t width = padded(call->width, LANES), whole = call->width / LANES * LANES;
    memset(delta, 0, room * sizeof(float));
    for (int64_t t = 0; t < call->tokens; t++, grad += width) {
        const float *o = row_of(&call->o, batch, head, t);
        floats sum = {0};
        for (int64_t d = 0; d < whole; d += LANES)
            sum += *(const floats *)(grad + d) * *(const loose *)(o + d);
        delta[t] = sum_of(sum);
        for (int64_t d = whole; d < call->width; d++) delta[t] += grad[d] * o[d];
    }
}

INLINE float *take(float **scratch, int64_t num) {
    float *found = *scratch;
    *scratch += padded(num, LANES);
    return found;
}

static void forward(struct call *call, int64_t batch, int64_t group, float *scratch) {
    const int64_t tokens = call->tokens, width = padded(call->width, LANES);
    const int64_t room = padded(tokens, PANEL), share = call->heads / call->groups;
    const int64_t stride = STRIDE(FORWARD_KEYS);
    float *values = take(&scratch, room * width), *turned = take(&scratch, room * width);
    float *rows = take(&scratch, QUERIES * width), *o = take(&scratch, QUERIES * width);
    float *scores = take(&scratch, QUERIES * stride);
    float best[QUERIES], sum[QUERIES];
    pack(call, &call->k, batch, group, 0, tokens, room, 1, values);
    turn(values, room, width, turned);
    pack(call, &call->v, batch, group, 0, tokens, room, 1, values);
    for (int64_t head = group * share; head < (group + 1) * share; head++) {
        float *sums = call->sums + (batch * call->heads + head) * tokens;
        for (int64_t query = 0; query < tokens; query += QUERIES) {
            int64_t num = smaller(QUERIES, tokens - query);
            struct block at = {.queries = padded(num, TILE), .width = width};
            pack(call, &call->q, batch, head, query, num, at.queries, call->scale * LOG2_E, rows);
            memset(o, 0, at.queries * width * sizeof(float));
            for (int64_t i = 0; i < QUERIES; i++) best[i] = -INFINITY, sum[i] = 0;
            for (int64_t key = 0; key < query + num; key += FORWARD_KEYS) {
                at.keys = smaller(FORWARD_KEYS, room - key), at.from = query - key;
                score(at, rows, turned + key * width, scores, stride);
                soften(at, scores, stride, best, sum, o);
                gather(at, scores, stride, values + key * width, o);
            }
            for (int64_t i = 0; i < num; i++) {
                sums[query + i] = best[i] + log2f(sum[i]);
                sum[i] = 1 / sum[i];
            }
            unpack(call, o, &call->o, batch, head, query, num, sum, 0);
        }
    }
}

static void backward(struct call *call, int64_t batch, int64_t group, float *scratch) {
    const int64_t tokens = call->tokens, width = padded(call->width, LANES);
    const int64_t room = padded(tokens, PANEL), share = call->heads / call->groups;
    const int64_t stride = STRIDE(KEYS);
    float *all[8];
    for (int i = 0; i < 8; i++) all[i] = take(&scratch, room * width);
    float *k = all[0], *k_turned = all[1], *v_turned = all[2], *q = all[3], *grad = all[4];
    float *dq = all[5], *dk = all[6], *dv = all[7];
    float *sums = take(&scratch, room), *delta = take(&scratch, room);
    float *weights = take(&scratch, QUERIES * stride), *slopes = take(&scratch, QUERIES * stride);
    pack(call, &call->k, batch, group, 0, tokens, room, 1, k);
    turn(k, room, width, k_turned);
    pack(call, &call->v, batch, group, 0, tokens, room, 1, dq);
    turn(dq, room, width, v_turned);
    memset(dk, 0, room * width * sizeof(float));
    memset(dv, 0, room * width * sizeof(float));
    for (int64_t head = group * share; head < (group + 1) * share; head++) {
        const float *kept = call->sums + (batch * call->heads + head) * tokens;
        pack(call, &call->q, batch, head, 0, tokens, room, call->scale * LOG2_E, q);
        pack(call, &call->grad, batch, head, 0, tokens, room, 1, grad);
        products(call, grad, batch, head, room, delta);
        for (int64_t t = 0; t < room; t++) sums[t] = t < tokens ? kept[t] : 0;
        memset(dq, 0, room * width * sizeof(float));
        for (int64_t key = 0; key < tokens; key += KEYS)
            for (int64_t query = key / QUERIES * QUERIES; query < tokens; query += QUERIES) {
                int64_t num = smaller(QUERIES, tokens - query);
                struct block at = {padded(num, TILE), smaller(KEYS, room - key), query - key, width};
                score(at, q + query * width, k_turned + key * width, weights, stride);
                normalize(at, weights, stride, sums + query);
                scatter(at, num, weights, stride, grad + query * width, dv + key * width);
                score(at, grad + query * width, v_turned + key * width, slopes, stride);
                slope(at, weights, slopes, stride, delta + query);
                scatter(at, num, slopes, stride, q + query * width, dk + key * width);
                gather(at, slopes, stride, k + key * width, dq + query * width);
            }
        unpack(call, dq, &call->dq, batch, head, 0, tokens, NULL, call->scale);
    }
    unpack(call, dk, &call->dk, batch, group, 0, tokens, NULL, LN_2);
    unpack(call, dv, &call->dv, batch, group, 0, tokens, NULL, 1);
}

typedef void (*work_fn)(struct call *, int64_t, int64_t, float *);

struct worker {
    struct call *call;
    work_fn work;
    int64_t number;
};

static void *work_on(void *argument) {
    const struct worker *worker = argument;
    struct call *call = worker->call;
    float *own = call->scratch + worker->number * call->room;
    for (;;) {
        int64_t next = __atomic_fetch_add(&call->next, 1, __ATOMIC_RELAXED);
        if (next >= call->batch * call->groups) return NULL;
        worker->work(call, next / call->groups, next % call->groups, own);
    }
}

/* The caller works too; where no thread can be started, fewer do. */
static void share_out(struct call *call, work_fn work) {
    struct worker workers[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    int started[MAX_THREADS] = {0};
    call->next = 0;
    for (int64_t i = 0; i < call->threads; i++) {
        workers[i] = (struct worker){call, work, i};
        if (i) started[i] = !pthread_create(&threads[i], NULL, work_on, &workers[i]);
    }
    work_on(&workers[0]);
    for (int64_t i = 1; i < call->threads; i++)
        if (started[i]) pthread_join(threads[i], NULL);
}

/* Tiles fill the registers of AVX-512; no others were measured. */
int sparsecl_attention_fits(void) {
#ifdef CLONED
    return __builtin_cpu_supports("x86-64-v4") != 0;
#else
    return 0;
#endif
}

/* Floats of scratch that a thread needs. */
int64_t sparsecl_attention_room(int64_t tokens, int64_t width, int backward) {
    int64_t wide = padded(width, LANES), room = padded(tokens, PANEL);
    if (backward) return 8 * room * wide + 2 * room + 2 * QUERIES * STRIDE(KEYS);
    return 2 * room * wide + 2 * QUERIES * wide + QUERIES * STRIDE(FORWARD_KEYS);
}

/* o and sums from q, k and v. 1 <= threads <= 256, heads a multiple of groups. */
void sparsecl_attention(struct call *call) { share_out(call, forward); }

/* dq, dk and dv from grad, q, k, v, o and sums. */
void sparsecl_attention_gradient(struct call *call) { share_out(call, backward); }
