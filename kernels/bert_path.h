/* The BERT encoder for one instruction set, in terms of vectors: a file for each defines these and includes this one.
 *
 *   TARGET                the target attribute of its functions
 *   VF, VI, LANES         vectors of LANES floats and of LANES int32 (a scalar is a vector of one)
 *   ROWS                  tokens of a tile: BLOCK is a multiple
 *   VECTORS, FVECTORS     vectors that a tile of an int8 and of a float product is wide
 *   ACT, GROUP            how an activation is stored for the dot product; how many of them one lane takes in at once
 *   BIAS                  what ACT adds to the activation: the sums start from -BIAS * sum of the weights
 *   DOT(acc, a, w)        acc + the dot products of the groups in `a` and `w`, vectors of the type WEIGHTS
 *   A_LOAD(p), W_LOAD(p)  one group of activations for all lanes; a group of weights for each lane
 *   I_..., F_...          the usual operations; F_ROUND to the nearest even; F_EXPONENT as `exponent_of` in bert.c
 *
 * A tile is ROWS tokens by VECTORS * LANES outputs and stays in registers. Rows beyond the last repeat it, so that every
 * row takes the same steps whatever shares the run: a text's vector has the same bits alone or in company.
 */
#include "bert.h"

#define INLINE EDGE_INLINE TARGET

enum { WIDTH = VECTORS * LANES, KEYS = FVECTORS * LANES };

/* --- int8 matrix product ------------------------------------------------------------------------- */

/* One tile of sums of products. A function of its own: inlined into what follows it, compilers run out of registers. */
TARGET NOINLINE static void dots(
    const ACT *const rows[ROWS], const int8_t *panel, size_t groups, const int32_t *sums, int32_t tile[ROWS][WIDTH]) {
    VI acc[ROWS][VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) {
        VI start = I_SCALE(I_LOAD(sums + v * LANES), -BIAS);
        UNROLL for (int r = 0; r < ROWS; r++) acc[r][v] = start;
    }
    for (size_t g = 0; g < groups; g++) {
        WEIGHTS w[VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++) w[v] = W_LOAD(panel + (g * VECTORS + (size_t)v) * LANES * GROUP);
        UNROLL for (int r = 0; r < ROWS; r++) {
            WEIGHTS a = A_LOAD(rows[r] + g * GROUP);
            UNROLL for (int v = 0; v < VECTORS; v++) acc[r][v] = DOT(acc[r][v], a, w[v]);
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int v = 0; v < VECTORS; v++) I_STORE(&tile[r][v * LANES], acc[r][v]);
}

/* The tile of rows from `i` on and outputs from `j` on; returns how many of its rows there are. */
INLINE size_t tile_at(
    const linear *w, const void *codes, size_t rows, size_t i, size_t j, int32_t tile[ROWS][WIDTH]) {
    const ACT *from[ROWS];
    for (size_t r = 0; r < ROWS; r++) from[r] = (const ACT *)codes + (i + r < rows ? i + r : rows - 1) * w->depth;
    dots(from, w->panels + j * w->depth, w->depth / GROUP, w->sums + j, tile);
    return rows - i < ROWS ? rows - i : ROWS;
}

/* out[i][j] = sum over k of a[i][k] * w[k][j], exactly. */
TARGET static void product(const linear *w, const void *codes, size_t rows, int32_t *out) {
    int32_t tile[ROWS][WIDTH];
    for (size_t j = 0; j < w->outputs; j += WIDTH) {
        for (size_t i = 0; i < rows; i += ROWS) {
            size_t here = tile_at(w, codes, rows, i, j, tile);
            for (size_t r = 0; r < here; r++)
                for (size_t c = 0; c < WIDTH && j + c < w->outputs; c++) out[(i + r) * w->outputs + j + c] = tile[r][c];
        }
    }
}

/* 8 bits for each of `count` values, a multiple of 16: value = scale * (code - zero). Zero has a code of its own. */
INLINE void quantize(const float *x, size_t count, ACT *codes, float *scale, int32_t *zero) {
    VF low = F_SET(0.0f), high = F_SET(0.0f);
    for (size_t i = 0; i < count; i += LANES) {
        VF v = F_LOAD(x + i);
        low = F_MIN(low, v);
        high = F_MAX(high, v);
    }
    float least = F_LEAST(low), range = F_MOST(high) - least;
    *scale = range > 0.0f ? range / 255.0f : 1.0f;
    float inverse = 1.0f / *scale;
    *zero = -128 - (int32_t)lrintf(least * inverse);
    VF factor = F_SET(inverse), shift = F_SET((float)*zero);
    VF bottom = F_SET(-128.0f), top = F_SET(127.0f);
    for (size_t i = 0; i < count; i += LANES) {
        VF v = F_FMA(F_LOAD(x + i), factor, shift);
        A_STORE(codes + i, F_ROUND(F_MIN(F_MAX(v, bottom), top)));
    }
}

/* 2^x for -126 <= x <= 126 within 2e-7 of the value: 2^n by its bits, times a polynomial of the rest. */
INLINE VF power(VF x) {
    VF magic = F_SET(12582912.0f); /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    VF shifted = x + magic, r = x - (shifted - magic);
    VF p = F_SET(1.535336188319500e-4f);
    p = F_FMA(p, r, F_SET(1.339887440266574e-3f));
    p = F_FMA(p, r, F_SET(9.618437357674640e-3f));
    p = F_FMA(p, r, F_SET(5.550332471162809e-2f));
    p = F_FMA(p, r, F_SET(2.402264791363012e-1f));
    p = F_FMA(p, r, F_SET(6.931472028550421e-1f));
    p = F_FMA(p, r, F_SET(1.0f));
    return p * F_EXPONENT(shifted);
}

/* x * Phi(x), with erf by formula 7.1.26 of Abramowitz and Stegun: the error is below 1e-6. */
INLINE VF gelu(VF x) {
    VF u = F_MIN(F_ABS(x) * F_SET(0.70710678f), F_SET(8.0f));
    VF t = F_SET(1.0f) / F_FMA(u, F_SET(0.3275911f), F_SET(1.0f));
    VF p = F_SET(1.061405429f);
    p = F_FMA(p, t, F_SET(-1.453152027f));
    p = F_FMA(p, t, F_SET(1.421413741f));
    p = F_FMA(p, t, F_SET(-0.284496736f));
    p = F_FMA(p, t, F_SET(0.254829592f));
    VF tail = p * t * power(u * u * F_SET(-1.44269504f)); /* 1 - erf(u) */
    VF positive = F_MAX(x, F_SET(0.0f));                             /* x Phi(x) = max(x, 0) - |x| (1 - Phi(|x|)) */
    return F_FMA(F_ABS(x) * tail, F_SET(-0.5f), positive);
}

/* out = a w + bias for a block of rows, `a` quantized on the way; then GELU, or added to what `out` holds. */
INLINE void project(
    const linear *w, const float *a, size_t stride, size_t rows, void *codes, float *out, int activate, int residual) {
    float scales[BLOCK];
    int32_t zeros[BLOCK], tile[ROWS][WIDTH];
    for (size_t i = 0; i < rows; i++)
        quantize(a + i * stride, w->depth, (ACT *)codes + i * w->depth, scales + i, zeros + i);
    for (size_t j = 0; j < w->outputs; j += WIDTH) {
        size_t width = w->outputs - j < WIDTH ? w->outputs - j : WIDTH;
        for (size_t i = 0; i < rows; i += ROWS) {
            size_t here = tile_at(w, codes, rows, i, j, tile);
            for (size_t r = 0; r < here; r++) {
                float *to = out + (i + r) * w->outputs + j;
                VF scale = F_SET(scales[i + r]);
                for (size_t c = 0; c < width; c += LANES) {
                    VI exact = I_ADD(I_LOAD(&tile[r][c]), I_SCALE(I_LOAD(w->sums + j + c), -zeros[i + r]));
                    VF y = F_FMA(F_FROM(exact) * scale, F_LOAD(w->scales + j + c), F_LOAD(w->bias + j + c));
                    if (activate) y = gelu(y);
                    if (residual) y = y + F_LOAD(to + c);
                    F_STORE(to + c, y);
                }
            }
        }
    }
}

/* --- float parts --------------------------------------------------------------------------------- */

INLINE void normalize(float *x, size_t count, const norm *by, float epsilon) {
    VF sum = F_SET(0.0f), squares = F_SET(0.0f);
    for (size_t i = 0; i < count; i += LANES) sum = sum + F_LOAD(x + i);
    VF mean = F_SET(F_SUM(sum) / (float)count);
    for (size_t i = 0; i < count; i += LANES) {
        VF d = F_LOAD(x + i) - mean;
        squares = F_FMA(d, d, squares);
    }
    VF inverse = F_SET(1.0f / sqrtf(F_SUM(squares) / (float)count + epsilon));
    for (size_t i = 0; i < count; i += LANES)
        F_STORE(x + i, F_FMA((F_LOAD(x + i) - mean) * inverse, F_LOAD(by->gamma + i), F_LOAD(by->beta + i)));
}

/* acc[r][...] = sum over k of a[r][k] * b[k][...] */
INLINE void mix(
    const float *const a[ROWS], const float *b, size_t stride, size_t depth, VF acc[ROWS][FVECTORS]) {
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int v = 0; v < FVECTORS; v++) acc[r][v] = F_SET(0.0f);
    for (size_t k = 0; k < depth; k++) {
        VF column[FVECTORS];
        UNROLL for (int v = 0; v < FVECTORS; v++) column[v] = F_LOAD(b + k * stride + (size_t)(v * LANES));
        UNROLL for (int r = 0; r < ROWS; r++) {
            VF weight = F_SET(a[r][k]);
            UNROLL for (int v = 0; v < FVECTORS; v++) acc[r][v] = F_FMA(weight, column[v], acc[r][v]);
        }
    }
}

/* scores -> exp(scale * (score - max)), the padding included; returns 1 / sum. */
INLINE float soften(float *scores, size_t count, size_t padded, float scale) {
    for (size_t j = count; j < padded; j++) scores[j] = -3e38f;
    VF most = F_LOAD(scores), sum = F_SET(0.0f);
    for (size_t j = LANES; j < padded; j += LANES) most = F_MAX(most, F_LOAD(scores + j));
    VF top = F_SET(F_MOST(most)), factor = F_SET(scale * 1.44269504f);
    for (size_t j = 0; j < padded; j += LANES) {
        VF e = power(F_MAX((F_LOAD(scores + j) - top) * factor, F_SET(-126.0f)));
        F_STORE(scores + j, e);
        sum = sum + e;
    }
    return 1.0f / F_SUM(sum);
}

/* Attention of one head within one text of `count` tokens; the result takes the place of the queries. */
INLINE void attend(float *qkv, size_t count, size_t hidden, size_t size, float *scratch) {
    size_t stride = 3 * hidden, padded = (count + KEYS - 1) / KEYS * KEYS;
    float *keys = scratch, *scores = scratch + size * padded;
    float scale = 1.0f / sqrtf((float)size);
    for (size_t k = 0; k < size; k++) {
        for (size_t j = 0; j < count; j++) keys[k * padded + j] = qkv[j * stride + hidden + k];
        for (size_t j = count; j < padded; j++) keys[k * padded + j] = 0.0f;
    }
    for (size_t i = 0; i < count; i += ROWS) {
        const float *from[ROWS];
        float inverse[ROWS];
        VF acc[ROWS][FVECTORS];
        for (size_t r = 0; r < ROWS; r++) from[r] = qkv + (i + r < count ? i + r : count - 1) * stride;
        for (size_t j = 0; j < padded; j += KEYS) {
            mix(from, keys + j, padded, size, acc);
            UNROLL for (int r = 0; r < ROWS; r++)
                UNROLL for (int v = 0; v < FVECTORS; v++)
                    F_STORE(scores + (size_t)r * padded + j + (size_t)(v * LANES), acc[r][v]);
        }
        for (size_t r = 0; r < ROWS; r++) {
            from[r] = scores + r * padded;
            inverse[r] = soften(scores + r * padded, count, padded, scale);
        }
        for (size_t c = 0; c < size; c += KEYS) {
            mix(from, qkv + 2 * hidden + c, stride, count, acc);
            UNROLL for (int r = 0; r < ROWS; r++) {
                if (i + (size_t)r >= count) break;
                UNROLL for (int v = 0; v < FVECTORS; v++)
                    F_STORE(qkv + (i + (size_t)r) * stride + c + (size_t)(v * LANES), acc[r][v] * F_SET(inverse[r]));
            }
        }
    }
}

INLINE void embed(const edge_bert *m, int32_t id, size_t place, float *to) {
    size_t hidden = (size_t)m->shape.hidden;
    const int8_t *codes = m->words + (size_t)id * hidden;
    const float *position = m->positions + place * hidden;
    for (size_t i = 0; i < hidden; i++) to[i] = (float)codes[i] * m->word_scales[id] + position[i];
    normalize(to, hidden, &m->embedded, m->shape.epsilon);
}

TARGET static void states(const edge_bert *m, const int32_t *ids, const int32_t *places, const int32_t *lengths,
                          size_t count, const workspace *w) {
    size_t hidden = (size_t)m->shape.hidden, size = hidden / (size_t)m->shape.heads, tokens = 0;
    for (size_t t = 0; t < count; t++)
        for (int32_t place = 0; place < lengths[t]; place++, tokens++)
            embed(m, ids[tokens], (size_t)(places ? places[tokens] : place), w->states + tokens * hidden);
    for (int32_t l = 0; l < m->shape.layers; l++) {
        const layer *now = m->layers + l;
        for (size_t i = 0; i < tokens; i += BLOCK) {
            size_t rows = tokens - i < BLOCK ? tokens - i : BLOCK;
            project(&now->qkv, w->states + i * hidden, hidden, rows, w->codes, w->qkv + i * 3 * hidden, 0, 0);
        }
        size_t start = 0;
        for (size_t t = 0; t < count; start += (size_t)lengths[t++])
            for (size_t h = 0; h < hidden; h += size)
                attend(w->qkv + start * 3 * hidden + h, (size_t)lengths[t], hidden, size, w->scratch);
        for (size_t i = 0; i < tokens; i += BLOCK) {
            size_t rows = tokens - i < BLOCK ? tokens - i : BLOCK;
            float *states = w->states + i * hidden;
            project(&now->out, w->qkv + i * 3 * hidden, 3 * hidden, rows, w->codes, states, 0, 1);
            for (size_t r = 0; r < rows; r++)
                normalize(states + r * hidden, hidden, &now->attended, m->shape.epsilon);
            project(&now->up, states, hidden, rows, w->codes, w->inner, 1, 0);
            project(&now->down, w->inner, (size_t)m->shape.inner, rows, w->codes, states, 0, 1);
            for (size_t r = 0; r < rows; r++)
                normalize(states + r * hidden, hidden, &now->fed, m->shape.epsilon);
        }
    }
}

TARGET static void pool(const float *state, const int32_t *lengths, size_t count, size_t hidden, float *out) {
    for (size_t t = 0; t < count; t++, out += hidden) {
        VF squares = F_SET(0.0f);
        size_t length = (size_t)lengths[t];
        for (size_t i = 0; i < hidden; i += LANES) {
            VF sum = F_SET(0.0f);
            for (size_t r = 0; r < length; r++) sum = sum + F_LOAD(state + r * hidden + i);
            sum = sum / F_SET((float)(length ? length : 1));
            squares = F_FMA(sum, sum, squares);
            F_STORE(out + i, sum);
        }
        float norm = sqrtf(F_SUM(squares));
        VF factor = F_SET(1.0f / (norm > 1e-12f ? norm : 1e-12f));
        for (size_t i = 0; i < hidden; i += LANES) F_STORE(out + i, F_LOAD(out + i) * factor);
        state += length * hidden;
    }
}

static void store(const int8_t *from, size_t count, void *to) {
    for (size_t i = 0; i < count; i++) ((ACT *)to)[i] = (ACT)(from[i] + BIAS);
}

static const path this_path = {ROWS, WIDTH, KEYS, GROUP, sizeof(ACT), product, store, states, pool};

