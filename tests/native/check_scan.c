/* Scans and logits on every path that this processor can take, against plain loops: a program of its own, so that it can be built with
 * sanitizers, or for another processor and run in an emulator. Prints the paths that it checked; ends with 1 at the
 * first difference. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int edge_scan_isa(void);
int edge_scan_int8(const int8_t *, const float *, size_t, size_t, const int16_t *, size_t, const uint64_t *, size_t, int,
                   int64_t *, float *, size_t *);
int edge_scan_rows(const int8_t *, const float *, size_t, const int16_t *, const int64_t *, size_t, int, float *);
int edge_scan_pack(const int8_t *, size_t, size_t, size_t, uint64_t *);
int edge_scan_hamming(const uint64_t *, size_t, size_t, const uint64_t *, int, uint16_t *);
int edge_scan_nearest(uint16_t *, size_t, const uint64_t *, size_t, int64_t *, size_t *);
typedef struct {
    int32_t best;
    float max, second;
    double logsumexp, entropy;
} logits_figures;
int edge_logits(const float *, size_t, logits_figures *);
int edge_logits_portable(const float *, size_t, logits_figures *);
int edge_logits_reference(const float *, size_t, logits_figures *);

static uint32_t state = 1;
static uint32_t any(void) { return state = state * 1664525u + 1013904223u, state >> 8; }
static int8_t any_code(void) { return (int8_t)(any() % 256 - 128); }

#define EXPECT(condition, ...)                                   \
    do {                                                         \
        if (!(condition)) {                                      \
            fprintf(stderr, __VA_ARGS__), fputc('\n', stderr);   \
            exit(1);                                             \
        }                                                        \
    } while (0)

/* Memory that ends where the allocation ends, so that a read beyond is seen; not aligned when `offset` is odd. */
static void *take(size_t bytes, size_t offset) {
    char *memory = malloc(bytes + offset + 1);
    EXPECT(memory, "no memory");
    return memory + offset;
}
static void give(void *memory, size_t offset) { free((char *)memory - offset); }

static void check_scan(int isa, size_t rows, size_t dim, size_t offset) {
    size_t words = (dim + 63) / 64, blocks = (rows + 7) / 8, k = rows / 2 + 1, found, taken = 0;
    int8_t *codes = take(rows * dim, offset);
    float *scales = take(rows * sizeof *scales, 0), *scores = take(k * sizeof *scores, 0);
    float *best = take(k * sizeof *best, 0), *all = take(rows * sizeof *all, 0);
    int16_t *query = take(dim * sizeof *query, 0);
    int64_t *chosen = take(rows * sizeof *chosen, 0), *best_rows = take(k * sizeof *best_rows, 0);
    uint64_t *signs = take(blocks * words * 64, 0), *wanted = calloc(words + 1, 8);
    uint64_t *allowed = calloc(rows / 64 + 1, 8);
    uint16_t *distances = take(blocks * 16 + 2, 0), *expected = take(rows * 2 + 2, 0);
    int32_t limit = (int32_t)(INT32_MAX / (128 * (int64_t)(dim ? dim : 1)));
    if (limit > 32639) limit = 32639;
    for (size_t i = 0; i < rows * dim; i++) codes[i] = any_code();
    for (size_t i = 0; i < dim; i++) query[i] = (int16_t)(any() % 3 ? (int32_t)(any() % (2u * limit + 1)) - limit : limit);
    for (size_t i = 0; i < dim; i++) wanted[i / 64] |= (uint64_t)(query[i] > 0) << (i % 64);
    for (size_t r = 0; r < rows; r++) {
        int64_t sum = 0;
        uint16_t differ = 0;
        for (size_t i = 0; i < dim; i++) {
            sum += (int64_t)codes[r * dim + i] * query[i];
            differ = (uint16_t)(differ + ((codes[r * dim + i] > 0) != (query[i] > 0)));
        }
        scales[r] = r % 5 ? 0.001f * (float)(1 + any() % 9) : 0.003f;
        chosen[r] = (int64_t)(rows - 1 - r);
        all[r] = (float)(int32_t)sum * scales[r];
        expected[r] = differ;
        if (any() % 4) allowed[r / 64] |= 1ull << (r % 64);
    }
    float *picked = take(rows * sizeof *picked, 0);
    EXPECT(!edge_scan_rows(codes, scales, dim, query, chosen, rows, isa, picked), "scan_rows refused");
    for (size_t r = 0; r < rows; r++) EXPECT(picked[r] == all[rows - 1 - r], "score of row %zu of %zux%zu", r, rows, dim);
    EXPECT(!edge_scan_int8(codes, scales, rows, dim, query, 1, allowed, k, isa, best_rows, best, &found), "refused");
    for (size_t at = 0; at < found; at++) {
        size_t row = (size_t)best_rows[at], better = 0;
        for (size_t r = 0; r < rows; r++)
            better += (allowed[r / 64] >> (r % 64) & 1) && (all[r] > all[row] || (all[r] == all[row] && r < row));
        EXPECT(better == at && best[at] == all[row], "place %zu of %zux%zu", at, rows, dim);
    }
    memset(signs, 255, blocks * words * 64);
    EXPECT(!edge_scan_pack(codes, rows, dim, 0, signs), "pack refused");
    EXPECT(!edge_scan_hamming(signs, rows, dim, wanted, isa, distances), "hamming refused");
    for (size_t r = 0; r < rows; r++) EXPECT(distances[r] == expected[r], "distance of row %zu of %zux%zu", r, rows, dim);
    EXPECT(!edge_scan_nearest(distances, rows, allowed, k, best_rows, &found), "nearest refused");
    for (size_t r = 0; r < rows; r++) {
        size_t nearer = 0;
        if (!(allowed[r / 64] >> (r % 64) & 1)) continue;
        for (size_t o = 0; o < rows; o++)
            nearer += (allowed[o / 64] >> (o % 64) & 1) &&
                      (expected[o] < expected[r] || (expected[o] == expected[r] && o < r));
        if (nearer < k) EXPECT(taken < found && best_rows[taken++] == (int64_t)r, "nearest row %zu of %zux%zu", r, rows, dim);
    }
    EXPECT(taken == found, "%zu nearest of %zu", found, taken);
    give(codes, offset);
    free(scales), free(scores), free(best), free(all), free(query), free(chosen), free(best_rows), free(signs);
    free(wanted), free(allowed), free(distances), free(expected), free(picked);
}

static void check_logits(size_t count) {
    float *row = take(count * sizeof *row, 0);
    logits_figures fast, portable, plain;
    for (size_t i = 0; i < count; i++) row[i] = any() % 9 ? (float)(any() % 4000) / 100.0f - 20.0f : -INFINITY;
    row[any() % count] = 1.5f;
    EXPECT(!edge_logits(row, count, &fast) && !edge_logits_portable(row, count, &portable), "logits refused");
    EXPECT(!edge_logits_reference(row, count, &plain), "logits refused by the reference");
    EXPECT(fast.best == plain.best && portable.best == plain.best && fast.second == plain.second, "best of %zu", count);
    EXPECT(fabs(fast.logsumexp - plain.logsumexp) < 1e-5 && fabs(fast.entropy - plain.entropy) < 1e-4, "sums of %zu", count);
    free(row);
}

int main(void) {
    static const size_t rows[] = {0, 1, 7, 8, 63, 64, 65, 300}, dims[] = {1, 15, 16, 63, 64, 65, 383, 384, 385, 4096};
    for (int isa = 1; isa <= 16; isa *= 2) {
        if (!(edge_scan_isa() & isa)) continue;
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
            for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) check_scan(isa, rows[r], dims[d], (r + d) % 3);
        printf("scan %d\n", isa);
    }
    for (size_t count = 1; count < 3000; count += 1 + count / 3) check_logits(count);
    puts("logits");
    return 0;
}
