/* What the files of the BERT encoder share: the model in memory, and what each instruction set offers. */
#ifndef EDGE_BERT_H
#define EDGE_BERT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define EDGE_API __declspec(dllexport)
#else
#define EDGE_API __attribute__((visibility("default")))
#endif

#if defined(__GNUC__)
#define EDGE_INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#else
#define EDGE_INLINE static inline
#define NOINLINE
#endif
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif

enum {
    BLOCK = 48, /* tokens that pass through a layer together, so that what lies between stays in the cache */
};

typedef struct {
    int32_t layers, hidden, heads, inner, words, positions;
    float epsilon;
} edge_bert_shape;

/* Weights of y = x W + b, packed: panels of outputs, in each the inputs in groups, in each group output by output. */
typedef struct {
    size_t depth, outputs; /* depth is rounded up to whole groups */
    int8_t *panels;
    float *scales, *bias;
    int32_t *sums; /* of the weights of each output */
} linear;

typedef struct {
    float *gamma, *beta;
} norm;

typedef struct {
    linear qkv, out, up, down;
    norm attended, fed;
} layer;

typedef struct {
    edge_bert_shape shape;
    int32_t path;
    int8_t *words;
    float *word_scales, *positions; /* positions include the embedding of token type 0 */
    norm embedded;
    layer *layers;
} edge_bert;

/* Memory of one call: `states` [tokens, hidden], `qkv` [tokens, 3 hidden], `inner` [BLOCK, inner], `codes` of a block,
 * `scratch` of one head of one text. */
typedef struct {
    float *states, *qkv, *inner, *scratch;
    void *codes;
} workspace;

typedef struct {
    size_t rows, width, keys; /* tokens, outputs and keys of a tile */
    size_t group, code_bytes; /* inputs of a group; bytes of an activation */
    void (*product)(const linear *, const void *codes, size_t rows, int32_t *out);
    void (*store)(const int8_t *from, size_t count, void *to); /* activations as the path wants them */
    /* Ids, places or NULL, lengths, and their count; token states stay in the workspace. */
    void (*states)(const edge_bert *, const int32_t *, const int32_t *, const int32_t *, size_t, const workspace *);
    /* Means of the states of texts of certain lengths, scaled to length 1. */
    void (*pool)(const float *, const int32_t *, size_t, size_t, float *);
} path;

/* Each NULL where the compiler or this CPU lacks the instructions. */
const path *edge_bert_portable(void);
const path *edge_bert_avx2(void);
const path *edge_bert_avxvnni(void);
const path *edge_bert_avx512(void);
const path *edge_bert_neon(void);
const path *edge_bert_dotprod(void);

#endif
