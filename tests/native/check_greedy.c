/* Greedy steps over a model made of functions that count: how many there are, what they are of, and what ends them. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../kernels/logits.h"

typedef struct {
    int32_t n_tokens;
    int32_t *token;
    void *embd;
    int32_t *pos, *n_seq_id, **seq_id;
    int8_t *logits;
} llama_batch;

typedef struct {
    void *context;
    const void *vocabulary;
    int32_t (*decode)(void *, llama_batch);
    float *(*row)(void *, int32_t);
    bool (*is_end)(const void *, int32_t);
    int32_t size, sequence, position;
} model;

typedef struct {
    edge_logits_figures figures;
    double seconds;
} step;

int32_t edge_greedy(const model *, int32_t token, int32_t most, double seconds, step *, int32_t end[2]);

#define EXPECT(truth, ...)                                                                                        \
    do {                                                                                                          \
        if (!(truth)) fprintf(stderr, __VA_ARGS__), fprintf(stderr, " (line %d)\n", __LINE__), exit(1);           \
    } while (0)

enum { SIZE = 37 };

/* Behind token t the likeliest is t + 1. */
typedef struct {
    int32_t seen, token, fails_at, bad_at, none_at, position;
    float row[SIZE];
} counter;

static int32_t decode(void *context, llama_batch batch) {
    counter *it = context;
    EXPECT(batch.n_tokens == 1 && !batch.embd, "a batch of %d", batch.n_tokens);
    if (it->position) {
        EXPECT(*batch.pos == it->position++ && *batch.n_seq_id == 1 && **batch.seq_id == 3 && *batch.logits, "its place");
    } else {
        EXPECT(!batch.pos && !batch.n_seq_id && !batch.seq_id && !batch.logits, "a place");
    }
    if (it->seen == it->fails_at) return 7;
    it->seen++, it->token = *batch.token;
    return 0;
}

static float *row(void *context, int32_t place) {
    counter *it = context;
    EXPECT(place == -1, "row of %d", place);
    for (int32_t at = 0; at < SIZE; at++) it->row[at] = at == it->token + 1 ? 3.0f : 0.5f;
    if (it->seen - 1 == it->bad_at) it->row[5] = NAN;
    return it->seen - 1 == it->none_at ? NULL : it->row;
}

static bool is_end(const void *vocabulary, int32_t token) { return token == *(const int32_t *)vocabulary; }

static int32_t run(counter *it, int32_t last, int32_t most, double seconds, int32_t end[2]) {
    step steps[SIZE];
    int32_t position = it->position ? it->position : -1;
    model it_all = {it, &last, decode, row, is_end, SIZE, 3, position};
    int32_t count = edge_greedy(&it_all, 2, most, seconds, steps, end);
    for (int32_t at = 0; at < count; at++) {
        edge_logits_figures *found = &steps[at].figures;
        EXPECT(found->best == at + 3 && found->max == 3.0f && found->second == 0.5f, "step %d", at);
        EXPECT(fabs(found->logsumexp - log(exp(3.0) + (SIZE - 1) * exp(0.5))) < 1e-5, "sum of step %d", at);
        EXPECT(steps[at].seconds >= 0 && steps[at].seconds < 10, "seconds of step %d", at);
    }
    return count;
}

int main(void) {
    int32_t end[2];
    EXPECT(run(&(counter){.fails_at = -1, .bad_at = -1, .none_at = -1}, 0, 9, 60, end) == 9, "nine steps");
    EXPECT(!end[0] && !end[1], "no failure");
    EXPECT(run(&(counter){.fails_at = -1, .bad_at = -1, .none_at = -1, .position = 17}, 0, 9, 60, end) == 9, "with places");
    EXPECT(run(&(counter){.fails_at = -1, .bad_at = -1, .none_at = -1}, 6, 9, 60, end) == 4, "until the end of the text");
    EXPECT(run(&(counter){.fails_at = -1, .bad_at = -1, .none_at = -1}, 0, 9, -1, end) == 1, "one, however slow");
    EXPECT(run(&(counter){.fails_at = -1, .bad_at = -1, .none_at = -1}, 0, 0, 60, end) == 0, "none");
    EXPECT(run(&(counter){.fails_at = 3, .bad_at = -1, .none_at = -1}, 0, 9, 60, end) == 3 && end[0] == 7, "a failure");
    EXPECT(run(&(counter){.fails_at = -1, .bad_at = 2, .none_at = -1}, 0, 9, 60, end) == 2, "until a bad row");
    EXPECT(!end[0] && end[1] == EDGE_BAD_VALUE, "a bad row");
    EXPECT(run(&(counter){.fails_at = -1, .bad_at = -1, .none_at = 0}, 0, 9, 60, end) == 0, "no row");
    EXPECT(!end[0] && end[1] == EDGE_BAD_COUNT, "no row");
    puts("greedy");
    return 0;
}
