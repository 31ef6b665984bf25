/* Figures of one row of logits in one sweep over memory: the two best tokens, log-sum-exp, entropy.
 *
 * The row is read in blocks that stay in the first-level cache: one pass for the two largest values, one for
 * exp(x - m), where m is the largest value so far and the running sums are rescaled when it grows (the online
 * softmax of Milakov and Gimelshein, arXiv 1805.02867). With s = sum exp(x - m) and t = sum exp(x - m) (x - m),
 * log-sum-exp is m + log s and the entropy log s - t / s.
 *
 * The inner loops work on independent lanes without branches, so that any compiler vectorises them without
 * -ffast-math. On x86 the same source is also compiled for AVX2 and AVX-512 and chosen at run time.
 * `edge_logits_reference` says the same plainly, in double precision with the C library's exp; tests compare.
 */
#include "logits.h"

#include <math.h>
#include <string.h>

#if defined(__GNUC__)
#define EDGE_INLINE static inline __attribute__((always_inline))
#else
#define EDGE_INLINE static inline
#endif

enum { LANES = 16, BLOCK = 64 * LANES };

/* exp(x) for -87 <= x <= 0, to 2 units in the last place: 2^n by its bits, times a polynomial of the rest (the
 * minimax coefficients of Cephes' expf, Moshier 1989). */
EDGE_INLINE float exp_nonpositive(float x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    float shifted = x * 1.44269504088896341f + magic;
    float n = shifted - magic;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23; /* the bits of `magic` are shifted out */
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* The two largest of `length` values, a multiple of LANES. Returns 0 where a value is NaN. */
EDGE_INLINE int block_top(const float *x, size_t length, float *first, float *second) {
    float best[LANES], next[LANES];
    int32_t ordered[LANES];
    for (int k = 0; k < LANES; k++) {
        best[k] = next[k] = -INFINITY;
        ordered[k] = 1;
    }
    for (size_t i = 0; i < length; i += LANES) {
        for (int k = 0; k < LANES; k++) {
            float v = x[i + (size_t)k];
            float low = v < best[k] ? v : best[k];
            next[k] = low > next[k] ? low : next[k];
            best[k] = v > best[k] ? v : best[k];
            ordered[k] &= v == v;
        }
    }
    *first = *second = -INFINITY;
    int all = 1;
    for (int k = 0; k < LANES; k++) {
        float low = best[k] < *first ? best[k] : *first;
        *second = low > *second ? low : *second;
        *second = next[k] > *second ? next[k] : *second;
        *first = best[k] > *first ? best[k] : *first;
        all &= ordered[k];
    }
    return all;
}

/* Add exp(x - max) to `s` and exp(x - max) (x - max) to `t`, for `length` values, a multiple of LANES. */
EDGE_INLINE void block_sums(const float *x, size_t length, float max, double *s, double *t) {
    float sums[LANES] = {0.0f}, weighted[LANES] = {0.0f};
    for (size_t i = 0; i < length; i += LANES) {
        for (int k = 0; k < LANES; k++) {
            float d = x[i + (size_t)k] - max;
            d = d > -87.0f ? d : -87.0f; /* exp(-87) is 2e-38: what lies below adds nothing, -inf included */
            float e = exp_nonpositive(d);
            sums[k] += e;
            weighted[k] += e * d;
        }
    }
    for (int k = 0; k < LANES; k++) {
        *s += (double)sums[k];
        *t += (double)weighted[k];
    }
}

EDGE_INLINE int figures_of(const float *row, size_t count, edge_logits_figures *out) {
    float max = -INFINITY, second = -INFINITY, rest[LANES];
    double s = 0.0, t = 0.0;
    size_t best = 0, whole = count - count % LANES, length;
    if (count == 0 || count > INT32_MAX) return EDGE_BAD_COUNT;
    for (size_t start = 0; start < count; start += length) {
        const float *x = row + start;
        length = whole - start < BLOCK ? whole - start : BLOCK;
        if (start == whole) {
            for (size_t k = 0; k < LANES; k++) rest[k] = start + k < count ? x[k] : -INFINITY;
            x = rest;
            length = LANES;
        }
        float first_here, second_here;
        if (!block_top(x, length, &first_here, &second_here) || first_here == INFINITY) return EDGE_BAD_VALUE;
        float low = first_here < max ? first_here : max;
        second = low > second ? low : second;
        second = second_here > second ? second_here : second;
        if (first_here > max) {
            if (s > 0.0) { /* else nothing was added yet, and max may still be -inf */
                double down = (double)max - (double)first_here, factor = exp(down);
                t = factor * (t + down * s);
                s = factor * s;
            }
            max = first_here;
            for (best = 0; x[best] != max;) best++;
            best += start;
        }
        if (max > -INFINITY) block_sums(x, length, max, &s, &t);
    }
    if (max == -INFINITY) return EDGE_BAD_VALUE;
    double entropy = log(s) - t / s;
    *out = (edge_logits_figures){(int32_t)best, max, second, (double)max + log(s), entropy > 0.0 ? entropy : 0.0};
    return EDGE_DONE;
}

#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
#define EDGE_X86 1
#define EDGE_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"

__attribute__((target("avx2,fma"))) static int figures_avx2(
    const float *row, size_t count, edge_logits_figures *out) {
    return figures_of(row, count, out);
}

__attribute__((target(EDGE_AVX512))) static int figures_avx512(
    const float *row, size_t count, edge_logits_figures *out) {
    return figures_of(row, count, out);
}
#endif

/* The figures as the compiler's default target computes them; `edge_logits` may use wider vectors. */
EDGE_API int edge_logits_portable(const float *row, size_t count, edge_logits_figures *out) {
    return figures_of(row, count, out);
}

EDGE_API int edge_logits(const float *row, size_t count, edge_logits_figures *out) {
#ifdef EDGE_X86
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return figures_avx512(row, count, out);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return figures_avx2(row, count, out);
#endif
    return edge_logits_portable(row, count, out);
}

/* The same figures plainly: three sweeps, double precision, the C library's exp. */
EDGE_API int edge_logits_reference(const float *row, size_t count, edge_logits_figures *out) {
    double s = 0.0, t = 0.0;
    float second = -INFINITY;
    size_t best = 0;
    if (count == 0 || count > INT32_MAX) return EDGE_BAD_COUNT;
    for (size_t i = 0; i < count; i++) {
        if (row[i] != row[i] || row[i] == INFINITY) return EDGE_BAD_VALUE;
        if (row[i] > row[best]) best = i;
    }
    if (row[best] == -INFINITY) return EDGE_BAD_VALUE;
    for (size_t i = 0; i < count; i++) {
        double d = (double)row[i] - (double)row[best], e = exp(d);
        if (i != best && row[i] > second) second = row[i];
        s += e;
        if (e > 0.0) t += e * d;
    }
    *out = (edge_logits_figures){(int32_t)best, row[best], second, (double)row[best] + log(s), fmax(0.0, log(s) - t / s)};
    return EDGE_DONE;
}
