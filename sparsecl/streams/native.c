/* Many steps of one network: images of batch 1 through a multilayer perceptron with ReLU units,
   the gradient, the optimizer, and what methods do at every step in numbers (methods/many_steps.py).

   A network of 100,000 weights lies in the second-level cache, so that it is cheapest to make many
   steps of one before the next one has its turn, and to touch a weight twice in a step: once to
   multiply, once to change it. The gradient of a matrix is that of its outputs times its inputs; it
   is made a row at a time, and never kept.

   Sums go over 16 lanes and then over these; everything else is element by element. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(64)));
typedef float loose __attribute__((vector_size(64), aligned(4), may_alias));

/* A matrix or the biases of a layer. streams/native.py has the same structures. */
struct part {
    float *value;
    const int32_t *keep; /* all bits where there is a weight, none elsewhere; NULL = all */
    float *first, *second; /* momentum, or Adam's moments; NULL = none */
    float *utility;        /* NULL = this part is not gated */
    const float *start;    /* what it is pulled to; NULL = zero */
    float pull, sign, soft; /* of the distance from `start`, see many_steps.py; 0 = none */
    float shrink, sigma;
};

struct layer {
    int64_t in, out;
    struct part weight, bias;
    float *h, *delta; /* [out] outputs, and the gradient of what goes into the ReLU */
    int64_t *age;     /* of the units, with what follows; NULL = nobody looks */
    float *trace, *mean;
    double *due;
    int64_t num_due;
};

enum { SGD, ADAM, ADAMW };
enum { ONE, SIZE, DISTANCE };

struct net {
    int64_t num_layers;
    struct layer *layers;
    float *row, *drawn; /* [largest number of inputs or outputs] */
    int64_t kind;
    double lr, momentum, decay, beta1, beta2, eps, updates;
    double unit_decay, rate; /* of the traces of units */
    int64_t maturity, of_h, weighed, adaptable;
    double gate_beta, gate_age, gate_sigma;
    int64_t protecting, by_code;
    int64_t rows_left, rows; /* steps whose noise is of the same state; 0 = there is no noise */
    uint64_t random[4];
    const uint64_t *states; /* [., 4] of SFC64, for the steps after those */
    const float *table; /* [2, 256] */
};

/* Draws of a step: 16 bits each, whole words for a step. */
struct bits {
    uint64_t *state, word;
    int left;
    const float *table;
};

INLINE float *from(float *begin, int64_t at) { return begin ? begin + at : begin; }

INLINE uint64_t next_word(uint64_t *s) { /* numpy's SFC64 */
    uint64_t word = s[0] + s[1] + s[3]++;
    s[0] = s[1] ^ (s[1] >> 11);
    s[1] = s[2] + (s[2] << 3);
    s[2] = (s[2] << 24 | s[2] >> 40) + word;
    return word;
}

INLINE float pick(const float *table, uint64_t bits) {
    return table[bits & 255] + table[256 + (bits >> 8 & 255)];
}

INLINE void draw(struct bits *bits, float *out, int64_t num) {
    const float *table = bits->table;
    int64_t i = 0;
    while (i < num) {
        if (!bits->left) {
            uint64_t s[4];
            memcpy(s, bits->state, sizeof s);
            for (; i + 4 <= num; i += 4) {
                uint64_t word = next_word(s);
                out[i] = pick(table, word);
                out[i + 1] = pick(table, word >> 16);
                out[i + 2] = pick(table, word >> 32);
                out[i + 3] = pick(table, word >> 48);
            }
            memcpy(bits->state, s, sizeof s);
            if (i == num) return;
            bits->word = next_word(bits->state), bits->left = 4;
        }
        out[i++] = pick(table, bits->word);
        bits->word >>= 16, bits->left--;
    }
}

INLINE float sum_lanes(floats v) {
    float lane[LANES];
    memcpy(lane, &v, sizeof v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

INLINE float dot(const float *a, const float *b, int64_t num) {
    floats even = {0}, odd = {0};
    int64_t j = 0;
    for (; j + 2 * LANES <= num; j += 2 * LANES) {
        even += *(const loose *)(a + j) * *(const loose *)(b + j);
        odd += *(const loose *)(a + j + LANES) * *(const loose *)(b + j + LANES);
    }
    for (; j + LANES <= num; j += LANES)
        even += *(const loose *)(a + j) * *(const loose *)(b + j);
    float sum = sum_lanes(even + odd);
    for (; j < num; j++) sum += a[j] * b[j];
    return sum;
}

INLINE float sum_sizes(const float *a, int64_t num) {
    float lane[LANES] = {0}, sum = 0;
    int64_t j = 0;
    for (; j + LANES <= num; j += LANES)
        for (int i = 0; i < LANES; i++) lane[i] += fabsf(a[j + i]);
    for (int i = 0; i < LANES; i++) sum += lane[i];
    for (; j < num; j++) sum += fabsf(a[j]);
    return sum;
}

INLINE void mask(float *restrict a, const int32_t *restrict keep, int64_t num) {
    int32_t bits;
    for (int64_t j = 0; j < num; j++) {
        memcpy(&bits, a + j, 4);
        bits &= keep[j];
        memcpy(a + j, &bits, 4);
    }
}

/* exp on [-87, 88], to a few units in the last place. */
INLINE float exponential(float x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23 rounds to a whole number */
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + magic, whole = shifted - magic, value;
    float f = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    int32_t power = ((int32_t)whole + 127) << 23;
    memcpy(&value, &power, 4);
    return p * value;
}

INLINE void forward(struct net *net, const float *x) {
    for (int64_t k = 0; k < net->num_layers; k++) {
        struct layer *layer = net->layers + k;
        for (int64_t i = 0; i < layer->out; i++) {
            float y = dot(layer->weight.value + i * layer->in, x, layer->in) + layer->bias.value[i];
            layer->h[i] = k + 1 < net->num_layers && y < 0 ? 0 : y;
        }
        x = layer->h;
    }
}

/* The loss in nats; the gradients of all outputs; whether the answer was right. */
INLINE float backward(struct net *net, int64_t label, int64_t *correct) {
    struct layer *last = net->layers + net->num_layers - 1;
    int64_t best = 0;
    double sum = 0;
    for (int64_t i = 1; i < last->out; i++)
        if (last->h[i] > last->h[best]) best = i;
    for (int64_t i = 0; i < last->out; i++) sum += exp((double)last->h[i] - last->h[best]);
    double all = log(sum) + last->h[best];
    for (int64_t i = 0; i < last->out; i++)
        last->delta[i] = (float)exp(last->h[i] - all) - (i == label);
    *correct += best == label;
    for (struct layer *layer = last; layer > net->layers; layer--) {
        struct layer *below = layer - 1;
        float *restrict delta = below->delta;
        memset(delta, 0, sizeof(float) * layer->in);
        for (int64_t i = 0; i < layer->out; i++) {
            const float *restrict row = layer->weight.value + i * layer->in;
            const float d = layer->delta[i];
            if (d != 0)
                for (int64_t j = 0; j < layer->in; j++) delta[j] += d * row[j];
        }
        for (int64_t j = 0; j < layer->in; j++) delta[j] = below->h[j] > 0 ? delta[j] : 0;
    }
    return (float)(all - last->h[label]);
}

/* Into g [num]: the gradient d x of a row, with what pulls at it, where there are weights. */
INLINE void gradient(const struct part *part, int64_t at, int64_t num, float d,
                     const float *restrict x, float *restrict g) {
    const float *restrict value = part->value + at;
    for (int64_t j = 0; j < num; j++) g[j] = d * x[j];
    if (part->pull && part->start) {
        const float *restrict start = part->start + at;
        for (int64_t j = 0; j < num; j++) g[j] += part->pull * (value[j] - start[j]);
    } else if (part->pull) {
        for (int64_t j = 0; j < num; j++) g[j] += part->pull * value[j];
    } else if (part->sign) {
        const float *restrict start = from((float *)part->start, at);
        for (int64_t j = 0; j < num; j++) {
            float away = start ? value[j] - start[j] : value[j];
            g[j] += part->sign * (float)((away > 0) - (away < 0));
        }
    }
    if (part->keep) mask(g, part->keep + at, num);
}

/* The running mean of -g w, and the largest one of weights that are there. */
INLINE float judge(const struct net *net, const struct part *part, int64_t at, int64_t num,
                   const float *restrict g, float largest) {
    const float *restrict value = part->value + at;
    const int32_t *keep = part->keep ? part->keep + at : NULL;
    float *restrict utility = part->utility + at;
    float beta = (float)net->gate_beta, rest = (float)(1.0 - net->gate_beta), lane[LANES];
    for (int64_t j = 0; j < num; j++)
        utility[j] = -g[j] * value[j] * rest + beta * utility[j];
    for (int i = 0; i < LANES; i++) lane[i] = largest;
    int64_t j = 0;
    for (; !keep && j + LANES <= num; j += LANES)
        for (int i = 0; i < LANES; i++)
            lane[i] = utility[j + i] > lane[i] ? utility[j + i] : lane[i];
    for (int i = 0; i < LANES; i++) largest = lane[i] > largest ? lane[i] : largest;
    for (; j < num; j++)
        if ((!keep || keep[j]) && utility[j] > largest) largest = utility[j];
    return largest;
}

INLINE void step(const struct net *net, const struct part *part, int64_t at, int64_t num,
                 const float *restrict g, float *restrict drawn, struct bits *bits, float divisor) {
    float *restrict value = part->value + at, *restrict first = from(part->first, at);
    float *restrict second = from(part->second, at);
    const float *restrict utility = from(part->utility, at);
    const float lr = (float)net->lr, decay = (float)net->decay;
    if (bits->state) draw(bits, drawn, num);
    float *restrict before = net->row + num; /* behind the gradient */
    if (part->utility) memcpy(before, value, sizeof(float) * num);
    if (net->kind == SGD && part->first) {
        const float momentum = (float)net->momentum;
        for (int64_t j = 0; j < num; j++) {
            first[j] = momentum * first[j] + (g[j] + decay * value[j]);
            value[j] -= lr * first[j];
        }
    } else if (net->kind == SGD && decay != 0) {
        for (int64_t j = 0; j < num; j++) value[j] -= lr * (g[j] + decay * value[j]);
    } else if (net->kind == SGD) {
        for (int64_t j = 0; j < num; j++) value[j] -= lr * g[j];
    } else {
        const float coupled = net->kind == ADAM ? decay : 0, eps = (float)net->eps;
        const float left = net->kind == ADAMW ? (float)(1.0 - net->lr * net->decay) : 1;
        const float b1 = (float)(1.0 - net->beta1), b2 = (float)net->beta2;
        const float c2 = (float)(1.0 - net->beta2);
        const float size = (float)(net->lr / (1.0 - pow(net->beta1, net->updates)));
        const float root = (float)sqrt(1.0 - pow(net->beta2, net->updates));
        for (int64_t j = 0; j < num; j++) {
            float slope = g[j] + coupled * value[j];
            first[j] += b1 * (slope - first[j]);
            second[j] = second[j] * b2 + c2 * slope * slope;
            value[j] = value[j] * left - size * (first[j] / (sqrtf(second[j]) / root + eps));
        }
    }
    if (part->soft) {
        const float *restrict start = from((float *)part->start, at);
        for (int64_t j = 0; j < num; j++) {
            float origin = start ? start[j] : 0, away = value[j] - origin;
            float left = fabsf(away) - part->soft;
            value[j] = origin + copysignf(left > 0 ? left : 0, away);
        }
    }
    if (part->shrink != 1)
        for (int64_t j = 0; j < num; j++) value[j] *= part->shrink;
    if (part->sigma != 0)
        for (int64_t j = 0; j < num; j++) value[j] += part->sigma * drawn[j];
    if (part->utility) {
        const float apart = net->kind == ADAM || (net->kind == SGD && part->first) ? 0 : lr * decay;
        const float left = 1 - apart, noise = (float)(-net->lr * net->gate_sigma);
        if (!noise) memset(drawn, 0, sizeof(float) * num);
        for (int64_t j = 0; j < num; j++) {
            float free = 1.0f / (1.0f + exponential(utility[j] / divisor)), shaken = noise * drawn[j];
            float decayed = before[j] * left;
            value[j] = net->protecting ? decayed + (shaken + (value[j] - decayed)) * free
                                       : value[j] + shaken * free;
        }
    }
    if (part->keep) mask(value, part->keep + at, num);
}

INLINE void update(struct net *net, const float *x) {
    const double age = 1.0 - pow(net->gate_beta, net->gate_age + 1);
    struct bits bits = {net->rows ? net->random : NULL, 0, 0, net->table};
    if (net->rows && !net->rows_left) {
        memcpy(net->random, net->states, sizeof net->random);
        net->states += 4, net->rows_left = net->rows;
    }
    net->rows_left--;
    float divisor = -INFINITY;
    int judged = 0;
    net->updates += 1;
    for (int64_t k = 0; k < net->num_layers; k++) {
        struct layer *layer = net->layers + k;
        const float *in = k ? layer[-1].h : x;
        for (int64_t i = 0; layer->weight.utility && i < layer->out; i++) {
            gradient(&layer->weight, i * layer->in, layer->in, layer->delta[i], in, net->row);
            divisor = judge(net, &layer->weight, i * layer->in, layer->in, net->row, divisor);
            judged = 1;
        }
        if (layer->bias.utility) {
            gradient(&layer->bias, 0, layer->out, 1, layer->delta, net->row);
            divisor = judge(net, &layer->bias, 0, layer->out, net->row, divisor);
        }
    }
    if (net->by_code) {
        divisor = (float)(divisor * age);
        divisor = fabsf(divisor) >= 1e-30f ? divisor : 1e-30f;
    } else if (divisor < 1e-30f) {
        divisor = 1e-30f;
    }
    net->gate_age += judged;
    for (int64_t k = 0; k < net->num_layers; k++) {
        struct layer *layer = net->layers + k;
        const float *in = k ? layer[-1].h : x;
        const struct part *part = &layer->weight;
        /* A gradient of zero changes nothing, if nothing else does. */
        int idle = net->kind == SGD && !net->decay && !part->first && !part->pull && !part->sign &&
                   !part->soft && part->shrink == 1 && !net->rows && !part->utility;
        for (int64_t i = 0; i < layer->out; i++) {
            if (idle && layer->delta[i] == 0) continue;
            gradient(part, i * layer->in, layer->in, layer->delta[i], in, net->row);
            step(net, part, i * layer->in, layer->in, net->row, net->drawn, &bits, divisor);
        }
        gradient(&layer->bias, 0, layer->out, 1, layer->delta, net->row);
        step(net, &layer->bias, 0, layer->out, net->row, net->drawn, &bits, divisor);
    }
}

/* Traces of the units of a layer, and how many are to begin anew. */
INLINE int64_t watch(struct net *net, struct layer *layer) {
    const struct layer *above = layer + 1;
    const double eta = net->unit_decay;
    const float keep = (float)eta, add = (float)(1.0 - eta);
    float *restrict outgoing = net->drawn;
    int64_t mature = 0;
    if (net->weighed) {
        memset(outgoing, 0, sizeof(float) * layer->out);
        for (int64_t i = 0; i < above->out; i++) {
            const float *restrict row = above->weight.value + i * above->in;
            for (int64_t j = 0; j < above->in; j++) outgoing[j] += fabsf(row[j]);
        }
    }
    for (int64_t j = 0; j < layer->out; j++) {
        const float h = layer->h[j];
        float value = net->of_h == SIZE ? fabsf(h) : 1;
        const double old = (double)layer->age[j];
        if (net->of_h == DISTANCE) {
            double before = pow(eta, old), seen = 1.0 - pow(eta, old > 1 ? old : 1);
            double share = eta * (1.0 - before) / (1.0 - pow(eta, old + 1));
            value = fabsf(h - layer->mean[j] / (float)seen) * (float)share;
        }
        if (net->weighed) value *= outgoing[j] / above->out;
        if (net->adaptable) {
            float into = sum_sizes(layer->weight.value + j * layer->in, layer->in) / layer->in;
            value = into > 0 ? value / into : 0;
        }
        layer->age[j]++;
        layer->mean[j] = layer->mean[j] * keep + add * h;
        layer->trace[j] = layer->trace[j] * keep + add * value;
        mature += layer->age[j] > net->maturity;
    }
    /* Rounded by itself, as in Python: whether a unit is due must not hang on a last bit. */
    volatile double expected = net->rate * mature;
    *layer->due += expected;
    layer->num_due = (int64_t)*layer->due;
    *layer->due -= (double)layer->num_due;
    return layer->num_due;
}

/* Up to `steps` steps, on images x [steps, inputs]. After one that lets units be due it ends.

   Returns how many steps were made; the loss of each is in `losses`, and `correct` gains one for
   each answer that was right. */
CLONES int64_t sparsecl_steps(struct net *net, const float *x, const int64_t *labels,
                              int64_t steps, float *losses, int64_t *correct) {
    for (int64_t done = 0; done < steps;) {
        const float *image = x + done * net->layers->in;
        forward(net, image);
        losses[done] = backward(net, labels[done], correct);
        update(net, image);
        int64_t due = 0;
        for (int64_t k = 0; k + 1 < net->num_layers; k++)
            if (net->layers[k].age) due += watch(net, net->layers + k);
        if (++done < steps && due) return done;
    }
    return steps;
}
