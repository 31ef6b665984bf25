/* A BERT encoder with 8-bit matrix products: token ids to states or unit vectors, on one thread, without malloc.
 *
 * Weights are int8 with one scale for each output; activations get 8 bits with a scale and a zero point for each token
 * as they come (dynamic quantization). The products are summed exactly in int32; attention, GELU and normalisation are
 * done in floats. Texts of a run lie one after the other without padding, and no number of one depends on another.
 *
 * `bert_path.h` is the encoder in terms of vectors; bert_avx512.c and its siblings give it those of an instruction set,
 * and this file those of plain C, which is the reference. The integer sums of all are the same to the bit. All memory
 * is the caller's: an arena for the weights, filled once and then only read, and a workspace for each call.
 */
#include "bert.h"

enum { EDGE_DONE = 0, EDGE_BAD_SHAPE = 1, EDGE_BAD_PATH = 2, EDGE_BAD_TOKENS = 3 };

/* --- plain C ------------------------------------------------------------------------------------- */

/* 2^n where n stands in the low bits of `shifted`; the bits above are shifted out. */
EDGE_INLINE float exponent_of(float shifted) {
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23;
    memcpy(&shifted, &bits, sizeof bits);
    return shifted;
}

#define TARGET
#define VF float
#define VI int32_t
#define WEIGHTS int32_t
#define LANES 1
#define ROWS 6
#define VECTORS 4
#define FVECTORS 4
#define ACT int8_t
#define GROUP 1
#define BIAS 0
#define I_LOAD(p) (*(p))
#define I_STORE(p, v) (*(p) = (v))
#define I_ADD(a, b) ((a) + (b))
#define I_SCALE(v, by) ((v) * (by))
#define W_LOAD(p) ((int32_t)*(p))
#define A_LOAD(p) ((int32_t)*(p))
#define A_STORE(p, v) (*(p) = (int8_t)(v))
#define DOT(acc, a, w) ((acc) + (a) * (w))
#define F_LOAD(p) (*(p))
#define F_STORE(p, v) (*(p) = (v))
#define F_SET(x) ((float)(x))
#define F_FMA(a, b, c) ((a) * (b) + (c))
#define F_MIN(a, b) ((a) < (b) ? (a) : (b))
#define F_MAX(a, b) ((a) > (b) ? (a) : (b))
#define F_ABS(a) fabsf(a)
#define F_SUM(v) (v)
#define F_LEAST(v) (v)
#define F_MOST(v) (v)
#define F_ROUND(v) ((int32_t)lrintf(v))
#define F_FROM(v) ((float)(v))
#define F_EXPONENT(v) exponent_of(v)
#include "bert_path.h"

const path *edge_bert_portable(void) { return &this_path; }

/* --- paths by number ----------------------------------------------------------------------------- */

/* In the order of preference, best last. */
static const path *path_of(int number) {
    switch (number) {
        case 0: return edge_bert_portable();
        case 1: return edge_bert_neon();
        case 2: return edge_bert_dotprod();
        case 3: return edge_bert_avx2();
        case 4: return edge_bert_avxvnni();
        case 5: return edge_bert_avx512();
        default: return NULL;
    }
}

/* The name of a path, whether or not this CPU has it; NULL beyond the last. */
EDGE_API const char *edge_bert_path_name(int number) {
    static const char *const names[] = {"portable", "neon", "neon-dotprod", "avx2", "avx-vnni", "avx512-vnni"};
    return number >= 0 && number < (int)(sizeof names / sizeof *names) ? names[number] : NULL;
}

/* Whether this CPU can take the path. */
EDGE_API int edge_bert_has_path(int number) { return path_of(number) != NULL; }

/* --- memory -------------------------------------------------------------------------------------- */

typedef struct {
    uint8_t *base; /* NULL only counts */
    size_t used;
} arena;

static void *take(arena *from, size_t bytes) {
    void *at = from->base ? from->base + from->used : NULL;
    from->used += (bytes + 63) / 64 * 64;
    return at;
}

static size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

static linear take_linear(arena *from, const path *p, size_t inputs, size_t outputs) {
    size_t depth = round_up(inputs, p->group), padded = round_up(outputs, p->width);
    linear w = {depth, outputs, NULL, NULL, NULL, NULL};
    w.panels = take(from, padded * depth);
    w.scales = take(from, padded * sizeof(float));
    w.bias = take(from, padded * sizeof(float));
    w.sums = take(from, padded * sizeof(int32_t));
    return w;
}

static norm take_norm(arena *from, size_t hidden) {
    norm n = {take(from, hidden * sizeof(float)), NULL};
    n.beta = take(from, hidden * sizeof(float));
    return n;
}

static edge_bert *lay_out(arena *from, const edge_bert_shape *shape, const path *p) {
    size_t hidden = (size_t)shape->hidden, inner = (size_t)shape->inner;
    edge_bert head, *model = take(from, sizeof *model);
    head.shape = *shape;
    head.path = 0;
    head.words = take(from, (size_t)shape->words * hidden);
    head.word_scales = take(from, (size_t)shape->words * sizeof(float));
    head.positions = take(from, (size_t)shape->positions * hidden * sizeof(float));
    head.embedded = take_norm(from, hidden);
    head.layers = take(from, (size_t)shape->layers * sizeof *head.layers);
    for (int32_t l = 0; l < shape->layers; l++) {
        layer one;
        one.qkv = take_linear(from, p, hidden, 3 * hidden);
        one.out = take_linear(from, p, hidden, hidden);
        one.up = take_linear(from, p, hidden, inner);
        one.down = take_linear(from, p, inner, hidden);
        one.attended = take_norm(from, hidden);
        one.fed = take_norm(from, hidden);
        if (model) head.layers[l] = one;
    }
    if (model) *model = head;
    return model;
}

static int shape_is_good(const edge_bert_shape *s) {
    const int32_t most = 1 << 16; /* so that no sum of int8 products overflows 32 bits, and no size 64 */
    return s->layers > 0 && s->layers <= 256 && s->hidden > 0 && s->hidden < most && s->inner > 0 && s->inner < most &&
           s->heads > 0 && s->hidden % s->heads == 0 && s->hidden / s->heads % 32 == 0 && s->inner % 16 == 0 &&
           s->words > 0 && s->words <= 1 << 24 && s->positions > 0 && s->positions <= most && s->epsilon > 0.0f;
}

/* Bytes of the arena of a model, 0 for a shape or a path that is not supported: the size of a head must be a multiple
 * of 32, the inner size of 16. */
EDGE_API size_t edge_bert_arena(const edge_bert_shape *shape, int number) {
    const path *p = path_of(number);
    arena counted = {NULL, 0};
    if (!p || !shape_is_good(shape)) return 0;
    lay_out(&counted, shape, p);
    return counted.used;
}

/* Lay a model out in `memory`, aligned to 64 bytes, zeroed, of the size that edge_bert_arena says. All parts must be
 * set before edge_bert_encode. */
EDGE_API edge_bert *edge_bert_new(void *memory, const edge_bert_shape *shape, int number) {
    arena from = {memory, 0};
    edge_bert *model = lay_out(&from, shape, path_of(number));
    model->path = number;
    return model;
}

/* Word embeddings as codes [words, hidden] with a scale for each word, and positions [positions, hidden] with the
 * embedding of token type 0 added; gamma and beta of their normalisation. */
EDGE_API void edge_bert_set_embeddings(edge_bert *model, const int8_t *words, const float *scales,
                                       const float *positions, const float *gamma, const float *beta) {
    size_t hidden = (size_t)model->shape.hidden;
    memcpy(model->words, words, (size_t)model->shape.words * hidden);
    memcpy(model->word_scales, scales, (size_t)model->shape.words * sizeof(float));
    memcpy(model->positions, positions, (size_t)model->shape.positions * hidden * sizeof(float));
    memcpy(model->embedded.gamma, gamma, hidden * sizeof(float));
    memcpy(model->embedded.beta, beta, hidden * sizeof(float));
}

/* Put weights [inputs, outputs] at output `first` of a packed matrix. */
static void pack(linear *to, const path *p, const int8_t *weights, size_t inputs, size_t outputs, size_t first) {
    for (size_t k = 0; k < inputs; k++, weights += outputs) {
        size_t panel = first / p->width, column = first % p->width;
        int8_t *row = to->panels + k / p->group * p->width * p->group + k % p->group;
        for (size_t j = 0; j < outputs; j++) {
            row[panel * p->width * to->depth + column * p->group] = weights[j];
            if (++column == p->width) column = 0, panel++;
        }
        for (size_t j = 0; j < outputs; j++) to->sums[first + j] += weights[j];
    }
}

/* Set one matrix of a layer: 0 to 2 query, key, value, 3 the output of attention, 4 and 5 the feed-forward part.
 * `weights` are codes [inputs, outputs] in -127..127; `scales` and `bias` have one number for each output. */
EDGE_API int edge_bert_set_linear(
    edge_bert *model, int number, int which, const int8_t *weights, const float *scales, const float *bias) {
    const path *p = path_of(model->path);
    if (number < 0 || number >= model->shape.layers || which < 0 || which > 5) return EDGE_BAD_SHAPE;
    layer *l = model->layers + number;
    size_t hidden = (size_t)model->shape.hidden, inner = (size_t)model->shape.inner;
    linear *to = which < 3 ? &l->qkv : which == 3 ? &l->out : which == 4 ? &l->up : &l->down;
    size_t inputs = which == 5 ? inner : hidden, outputs = which == 4 ? inner : hidden;
    size_t first = which < 3 ? (size_t)which * hidden : 0;
    pack(to, p, weights, inputs, outputs, first);
    memcpy(to->scales + first, scales, outputs * sizeof(float));
    memcpy(to->bias + first, bias, outputs * sizeof(float));
    return EDGE_DONE;
}

/* Set gamma and beta of a normalisation of a layer: 0 after attention, 1 after the feed-forward part. */
EDGE_API int edge_bert_set_norm(edge_bert *model, int number, int which, const float *gamma, const float *beta) {
    if (number < 0 || number >= model->shape.layers || which < 0 || which > 1) return EDGE_BAD_SHAPE;
    norm *to = which ? &model->layers[number].fed : &model->layers[number].attended;
    memcpy(to->gamma, gamma, (size_t)model->shape.hidden * sizeof(float));
    memcpy(to->beta, beta, (size_t)model->shape.hidden * sizeof(float));
    return EDGE_DONE;
}

/* --- runs ---------------------------------------------------------------------------------------- */

static workspace take_workspace(arena *from, const edge_bert *m, size_t tokens, size_t longest) {
    const path *p = path_of(m->path);
    size_t hidden = (size_t)m->shape.hidden, inner = (size_t)m->shape.inner;
    size_t padded = round_up(longest, p->keys), wide = inner > hidden ? inner : hidden;
    workspace w = {NULL, NULL, NULL, NULL, NULL};
    w.states = take(from, tokens * hidden * sizeof(float));
    w.qkv = take(from, tokens * 3 * hidden * sizeof(float));
    w.inner = take(from, BLOCK * inner * sizeof(float));
    w.scratch = take(from, (hidden / (size_t)m->shape.heads + p->rows) * padded * sizeof(float));
    w.codes = take(from, BLOCK * round_up(wide, p->group) * p->code_bytes);
    return w;
}

/* Bytes of the workspace of a run of up to `tokens` tokens with no text above `longest`. */
EDGE_API size_t edge_bert_workspace(const edge_bert *model, size_t tokens, size_t longest) {
    arena counted = {NULL, 0};
    take_workspace(&counted, model, tokens, longest);
    return counted.used;
}

/* Whether `count` texts can be run; `tokens` of all and the length of the `longest`. */
static int texts_are_good(const edge_bert *m, const int32_t *ids, const int32_t *places, const int32_t *lengths,
                          size_t count, size_t *tokens, size_t *longest) {
    *tokens = 0, *longest = 1;
    for (size_t t = 0; t < count; t++) {
        if (lengths[t] < 0 || lengths[t] > m->shape.positions) return 0;
        if ((size_t)lengths[t] > *longest) *longest = (size_t)lengths[t];
        for (int32_t i = 0; i < lengths[t]; i++, ++*tokens) {
            if (ids[*tokens] < 0 || ids[*tokens] >= m->shape.words) return 0;
            if (places && (places[*tokens] < 0 || places[*tokens] >= m->shape.positions)) return 0;
        }
    }
    return 1;
}

/* Encode `count` texts: `ids` of all, one after the other, `lengths` of each; `out` is [count, hidden], rows of length
 * 1, zeros for a text without tokens. `memory` has `bytes`, aligned to 64. Several threads may use one model.
 * EDGE_BAD_TOKENS where an id or a length is out of range or the memory too small; then nothing is written. */
EDGE_API int edge_bert_encode(const edge_bert *model, const int32_t *ids, const int32_t *lengths, size_t count,
                              float *out, void *memory, size_t bytes) {
    size_t tokens, longest;
    if (!texts_are_good(model, ids, NULL, lengths, count, &tokens, &longest)) return EDGE_BAD_TOKENS;
    arena from = {memory, 0};
    workspace w = take_workspace(&from, model, tokens, longest);
    if (from.used > bytes) return EDGE_BAD_TOKENS;
    const path *p = path_of(model->path);
    p->states(model, ids, NULL, lengths, count, &w);
    p->pool(w.states, lengths, count, (size_t)model->shape.hidden, out);
    return EDGE_DONE;
}

/* The same up to the states of all tokens: `out` is [tokens, hidden]. `places` has a row of the positions for each
 * token, so that one table can hold those of several segments; all else is as for edge_bert_encode. */
EDGE_API int edge_bert_states(const edge_bert *model, const int32_t *ids, const int32_t *places,
                              const int32_t *lengths, size_t count, float *out, void *memory, size_t bytes) {
    size_t tokens, longest;
    if (!texts_are_good(model, ids, places, lengths, count, &tokens, &longest)) return EDGE_BAD_TOKENS;
    arena from = {memory, 0};
    workspace w = take_workspace(&from, model, tokens, longest);
    if (from.used > bytes) return EDGE_BAD_TOKENS;
    path_of(model->path)->states(model, ids, places, lengths, count, &w);
    memcpy(out, w.states, tokens * (size_t)model->shape.hidden * sizeof(float));
    return EDGE_DONE;
}

/* --- for tests ----------------------------------------------------------------------------------- */

/* Bytes that edge_bert_product needs; 0 where the CPU lacks the path. */
EDGE_API size_t edge_bert_product_memory(int number, size_t rows, size_t inputs, size_t outputs) {
    const path *p = path_of(number);
    arena counted = {NULL, 0};
    if (!p) return 0;
    linear w = take_linear(&counted, p, inputs, outputs);
    take(&counted, rows * w.depth * p->code_bytes);
    return counted.used;
}

/* out[rows, outputs] = a[rows, inputs] b[inputs, outputs] of int8, b above -128, by one path, packed as in a model.
 * `memory` is zeroed and aligned to 64. */
EDGE_API int edge_bert_product(int number, const int8_t *a, const int8_t *b, size_t rows, size_t inputs,
                               size_t outputs, int32_t *out, void *memory) {
    const path *p = path_of(number);
    if (!p) return EDGE_BAD_PATH;
    arena from = {memory, 0};
    linear w = take_linear(&from, p, inputs, outputs);
    uint8_t *codes = take(&from, rows * w.depth * p->code_bytes);
    pack(&w, p, b, inputs, outputs, 0);
    for (size_t i = 0; i < rows; i++) p->store(a + i * inputs, inputs, codes + i * w.depth * p->code_bytes);
    p->product(&w, codes, rows, out);
    return EDGE_DONE;
}
