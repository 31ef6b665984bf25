/* The next few tokens of a greedy answer, with nothing between two evaluations but the figures of the logits.
 *
 * Between two calls from Python the interpreter needs a tenth of a millisecond, for a model's weights have driven its
 * own code out of the caches, and all cores wait for it. llama.cpp's functions come as addresses: this library is not
 * linked with it. */
#define _POSIX_C_SOURCE 199309L
#include "logits.h"

#include <stdbool.h>

#if defined(_WIN32)
#include <windows.h>
#else
#include <time.h>
#endif

/* llama_batch of llama.h; `kernels/greedy.py` compares it with the one in use. */
typedef struct {
    int32_t n_tokens;
    int32_t *token;
    float *embd;
    int32_t *pos, *n_seq_id;
    int32_t **seq_id;
    int8_t *logits;
} llama_batch;

typedef struct {
    void *context;
    const void *vocabulary;
    int32_t (*decode)(void *context, llama_batch batch);
    float *(*row)(void *context, int32_t place);
    bool (*is_end)(const void *vocabulary, int32_t token);
    int32_t size;               /* of the vocabulary: floats in a row */
    int32_t sequence, position; /* of the first token; at -1 it follows what the context's one sequence holds */
} edge_greedy_model;

typedef struct {
    edge_logits_figures figures; /* behind the token that was evaluated; the next one is `best` */
    double seconds;              /* that the evaluation took */
} edge_greedy_step;

typedef struct {
    int32_t decode; /* what llama.cpp's function returned last */
    int32_t logits; /* what `edge_logits` did; EDGE_BAD_COUNT, too, where there was no row */
} edge_greedy_end;

static double now(void) {
#if defined(_WIN32)
    LARGE_INTEGER at, rate;
    QueryPerformanceCounter(&at);
    QueryPerformanceFrequency(&rate);
    return (double)at.QuadPart / (double)rate.QuadPart;
#else
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
#endif
}

/* Evaluate `token`, then whatever is likeliest behind it, and so on: `most` evaluations at most, ended by a token
 * that ends a text, and where another as long as the last would not end within `seconds`. Returns how many of `steps`
 * were written; fewer than were evaluated only where `end` tells of a failure. */
EDGE_API int32_t edge_greedy(const edge_greedy_model *model, int32_t token, int32_t most, double seconds,
                             edge_greedy_step *steps, edge_greedy_end *end) {
    int32_t one = 1, sequence = model->sequence, position = model->position, *sequences = &sequence;
    int8_t wanted = 1;
    llama_batch batch = {.n_tokens = 1, .token = &token};
    if (position >= 0)
        batch = (llama_batch){1, &token, NULL, &position, &one, &sequences, &wanted};
    double started = now();
    end->decode = end->logits = 0;
    for (int32_t done = 0; done < most;) {
        double before = now();
        end->decode = model->decode(model->context, batch);
        if (end->decode) return done;
        const float *row = model->row(model->context, -1);
        double after = now(); /* a GPU has computed only now */
        end->logits = row ? edge_logits(row, (size_t)model->size, &steps[done].figures) : EDGE_BAD_COUNT;
        if (end->logits) return done;
        steps[done].seconds = after - before;
        position++;
        token = steps[done++].figures.best;
        if (model->is_end(model->vocabulary, token) || after + (after - before) > started + seconds) return done;
    }
    return most > 0 ? most : 0;
}
