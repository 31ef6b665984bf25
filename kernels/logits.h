/* What is measured of a row of logits. */
#ifndef EDGE_LOGITS_H
#define EDGE_LOGITS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EDGE_API __declspec(dllexport)
#else
#define EDGE_API __attribute__((visibility("default")))
#endif

typedef struct {
    int32_t best;     /* the first index of the largest value */
    float max;        /* the largest value */
    float second;     /* the second largest: equal to `max` where that occurs twice, -inf where there is only one */
    double logsumexp; /* nats */
    double entropy;   /* nats, at least 0 */
} edge_logits_figures;

enum { EDGE_DONE = 0, EDGE_BAD_COUNT = 1, EDGE_BAD_VALUE = 2 };

/* Measure `count` values, finite or -inf. Returns EDGE_BAD_COUNT for 0 or more than 2^31 - 1 values, EDGE_BAD_VALUE
 * where one is NaN or +inf or none is above -inf; `out` is written only on EDGE_DONE. Keeps no state: any thread. */
EDGE_API int edge_logits(const float *row, size_t count, edge_logits_figures *out);

#endif
