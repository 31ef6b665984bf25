/* Runs the BERT kernel without Python: every path that this CPU has, against sums written out and against plain C.
 * For machines that only an emulator shows, and for sanitizers. Prints the paths that it found right; ends with 1 where
 * one is wrong. */
#include <stdio.h>
#include <stdlib.h>

#include "../../kernels/bert.h"

const char *edge_bert_path_name(int number);
int edge_bert_has_path(int number);
size_t edge_bert_product_memory(int number, size_t rows, size_t inputs, size_t outputs);
int edge_bert_product(int, const int8_t *, const int8_t *, size_t, size_t, size_t, int32_t *, void *);
size_t edge_bert_arena(const edge_bert_shape *, int);
edge_bert *edge_bert_new(void *, const edge_bert_shape *, int);
void edge_bert_set_embeddings(edge_bert *, const int8_t *, const float *, const float *, const float *, const float *);
int edge_bert_set_linear(edge_bert *, int, int, const int8_t *, const float *, const float *);
int edge_bert_set_norm(edge_bert *, int, int, const float *, const float *);
size_t edge_bert_workspace(const edge_bert *, size_t, size_t);
int edge_bert_encode(const edge_bert *, const int32_t *, const int32_t *, size_t, float *, void *, size_t);
int edge_bert_states(
    const edge_bert *, const int32_t *, const int32_t *, const int32_t *, size_t, float *, void *, size_t);

enum { HIDDEN = 64, INNER = 96, WORDS = 50, PLACES = 70, TEXTS = 4, TOKENS = 1 + 40 + 7 + 70 };

static uint32_t state = 1;
static int32_t next(int32_t least, int32_t most) { /* the generator of Numerical Recipes */
    state = state * 1664525u + 1013904223u;
    return least + (int32_t)(state >> 8) % (most - least + 1);
}

static void *zeroed(size_t bytes) {
    size_t whole = (bytes + 63) / 64 * 64;
    void *memory = aligned_alloc(64, whole ? whole : 64);
    if (!memory) exit(2);
    return memset(memory, 0, whole);
}

static int8_t *codes(size_t count, int32_t least) {
    int8_t *found = zeroed(count);
    for (size_t i = 0; i < count; i++) found[i] = (int8_t)next(least, 127);
    return found;
}

static float *floats(size_t count, float around, float spread) {
    float *found = zeroed(count * sizeof(float));
    for (size_t i = 0; i < count; i++) found[i] = around + spread * (float)next(-1000, 1000) / 1000.0f;
    return found;
}

static int product_is_exact(int path, size_t rows, size_t inputs, size_t outputs) {
    int8_t *a = codes(rows * inputs, -128), *b = codes(inputs * outputs, -127);
    int32_t *out = zeroed(rows * outputs * sizeof(int32_t));
    void *memory = zeroed(edge_bert_product_memory(path, rows, inputs, outputs));
    int good = edge_bert_product(path, a, b, rows, inputs, outputs, out, memory) == 0;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < outputs; j++) {
            int32_t sum = 0;
            for (size_t k = 0; k < inputs; k++) sum += a[i * inputs + k] * b[k * outputs + j];
            good &= sum == out[i * outputs + j];
        }
    free(a), free(b), free(out), free(memory);
    return good;
}

/* Whether the states of a text, at the places that it has by itself, have its vector as their mean, and a place out of
 * range is refused. */
static int states_are_right(const edge_bert *model, const int32_t *ids, int32_t length, const float *vector,
                            void *workspace, size_t bytes) {
    int32_t places[PLACES];
    float *states = zeroed((size_t)length * HIDDEN * sizeof(float)), mean[HIDDEN] = {0}, norm = 0.0f;
    for (int32_t i = 0; i < length; i++) places[i] = i;
    int good = edge_bert_states(model, ids, places, &length, 1, states, workspace, bytes) == 0;
    for (int32_t i = 0; i < length * HIDDEN; i++) mean[i % HIDDEN] += states[i] / (float)length;
    for (int i = 0; i < HIDDEN; i++) norm += mean[i] * mean[i];
    for (int i = 0; i < HIDDEN; i++) good &= fabsf(mean[i] / sqrtf(norm) - vector[i]) < 1e-4f;
    places[0] = PLACES;
    good &= edge_bert_states(model, ids, places, &length, 1, states, workspace, bytes) != 0;
    free(states);
    return good;
}

/* Texts with a model of random weights, the same for every path. */
static void encode(int path, size_t count, const int32_t *ids, const int32_t *lengths, float *out) {
    edge_bert_shape shape = {2, HIDDEN, 2, INNER, WORDS, PLACES, 1e-12f};
    void *memory = zeroed(edge_bert_arena(&shape, path));
    edge_bert *model = edge_bert_new(memory, &shape, path);
    state = 7;
    int8_t *weights = codes(WORDS * HIDDEN, -127);
    float *scales = floats(INNER + WORDS, 0.01f, 0.005f), *bias = floats(INNER, 0.0f, 0.1f);
    float *places = floats(PLACES * HIDDEN, 0.0f, 0.3f), *gamma = floats(HIDDEN, 1.0f, 0.1f);
    edge_bert_set_embeddings(model, weights, scales, places, gamma, bias);
    free(weights);
    for (int layer = 0; layer < 2; layer++) {
        for (int which = 0; which < 6; which++) {
            weights = codes(INNER * HIDDEN, -127);
            edge_bert_set_linear(model, layer, which, weights, scales, bias);
            free(weights);
        }
        for (int which = 0; which < 2; which++) edge_bert_set_norm(model, layer, which, gamma, bias);
    }
    size_t bytes = edge_bert_workspace(model, TOKENS, PLACES);
    void *workspace = zeroed(bytes);
    if (edge_bert_encode(model, ids, lengths, count, out, workspace, bytes) ||
        !states_are_right(model, ids, lengths[0], out, workspace, bytes)) {
        fprintf(stderr, "bert %s: texts cannot be run, or states are wrong\n", edge_bert_path_name(path));
        exit(1);
    }
    free(scales), free(bias), free(places), free(gamma), free(workspace), free(memory);
}

int main(void) {
    static const size_t sizes[] = {1, 2, 5, 6, 7, 15, 16, 17, 63, 64, 65, 127, 129};
    const size_t kinds = sizeof sizes / sizeof *sizes;
    const int32_t lengths[TEXTS] = {1, 40, 7, 70};
    int32_t ids[TOKENS];
    float plain[TEXTS * HIDDEN], here[TEXTS * HIDDEN], alone[HIDDEN];
    int wrong = 0;
    for (int i = 0; i < TOKENS; i++) ids[i] = next(0, WORDS - 1);
    encode(0, TEXTS, ids, lengths, plain);
    for (int path = 0; edge_bert_path_name(path); path++) {
        if (!edge_bert_has_path(path)) continue;
        int exact = 1, same = 1;
        float furthest = 0.0f;
        for (int i = 0; i < 120; i++)
            exact &= product_is_exact(path, sizes[(size_t)i % kinds], sizes[(size_t)i * 5 % kinds], sizes[(size_t)i * 7 / 3 % kinds]);
        encode(path, TEXTS, ids, lengths, here);
        for (int i = 0; i < TEXTS * HIDDEN; i++) furthest = fmaxf(furthest, fabsf(here[i] - plain[i]));
        for (int text = 0, first = 0; text < TEXTS; first += lengths[text++]) {
            encode(path, 1, ids + first, lengths + text, alone);
            same &= !memcmp(alone, here + text * HIDDEN, sizeof alone);
        }
        int good = exact && same && furthest < 0.01f;
        if (good) printf("bert %s\n", edge_bert_path_name(path));
        else
            fprintf(stderr, "bert %s: sums %s, alone and in company %s, furthest from plain C %.1e\n",
                    edge_bert_path_name(path), exact ? "exact" : "WRONG", same ? "the same" : "DIFFERENT",
                    (double)furthest);
        wrong |= !good;
    }
    return wrong;
}
