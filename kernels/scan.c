/* Nearest neighbours by scanning: int8 rows with their top k, and rows of sign bits with their distances.
 *
 * An int8 row stands for scale * codes; a query is int16 codes, so a dot product is exact in int32 on every
 * instruction set and all paths agree to the bit. The caller keeps |query| so small that it fits: the sum over
 * the row of 128 * |query[i]| must stay below 2^31. Sign bits are kept in blocks of eight rows, one 64-bit word of
 * each row after the other, so that eight distances grow side by side in one vector register.
 *
 * Plain C ABI, no allocation, no state: any thread. `isa` is one of edge_scan_isa's bits; functions return 0 or
 * EDGE_BAD_*. Nothing here knows of files, ids or Python.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define EDGE_API __declspec(dllexport)
#else
#define EDGE_API __attribute__((visibility("default")))
#endif

enum { EDGE_DONE, EDGE_BAD_SIZE, EDGE_BAD_ISA };
enum { EDGE_PORTABLE = 1, EDGE_AVX2 = 2, EDGE_AVX512 = 4, EDGE_NEON = 8, EDGE_DOTPROD = 16 };
enum { MAX_DIM = 4096, BLOCK = 256, AHEAD = 8 };

#if defined(__GNUC__) && defined(__x86_64__)
#define EDGE_X86 1
#include <immintrin.h>
#define TARGET_AVX2 __attribute__((target("avx2")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vpopcntdq")))
#elif defined(__GNUC__) && defined(__aarch64__)
#define EDGE_ARM 1
#include <arm_neon.h>
#if !defined(__clang__)
#define TARGET_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#elif __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD) /* before, its header had the function only then */
#define TARGET_DOTPROD __attribute__((target("dotprod")))
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

#if defined(__GNUC__)
#define PREFETCH(address) __builtin_prefetch(address)
#define ALIGNED __attribute__((aligned(64)))
#else
#define PREFETCH(address) ((void)(address))
#define ALIGNED
#endif

/* A query in the forms that the paths want: its codes, and the same as 256 * high + low in signed bytes. */
typedef struct {
    const int16_t *codes;
    ALIGNED int8_t high[MAX_DIM], low[MAX_DIM];
    uint32_t offset; /* 128 * the sum of the codes */
    size_t dim;
} edge_query;

/* Dot products of the query with `rows` rows that follow each other. */
typedef void dots_path(const int8_t *codes, size_t rows, const edge_query *query, int32_t *out);
/* Hamming distances of `blocks` blocks of eight rows from a query of `words` words. */
typedef void hamming_path(const uint64_t *signs, size_t blocks, size_t words, const uint64_t *query, uint16_t *out);

/* --- portable: the reference ----------------------------------------------------------------------------- */

static void dots_portable(const int8_t *codes, size_t rows, const edge_query *query, int32_t *out) {
    for (size_t r = 0; r < rows; r++, codes += query->dim) {
        int32_t sum = 0;
        for (size_t i = 0; i < query->dim; i++) sum += (int32_t)codes[i] * query->codes[i];
        out[r] = sum;
    }
}

static uint16_t ones(uint64_t word) {
    word -= (word >> 1) & 0x5555555555555555u;
    word = (word & 0x3333333333333333u) + ((word >> 2) & 0x3333333333333333u);
    word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return (uint16_t)((word * 0x0101010101010101u) >> 56);
}

static void hamming_portable(
    const uint64_t *signs, size_t blocks, size_t words, const uint64_t *query, uint16_t *out) {
    for (size_t b = 0; b < blocks; b++, signs += 8 * words, out += 8) {
        uint16_t sums[8] = {0};
        for (size_t w = 0; w < words; w++)
            for (size_t r = 0; r < 8; r++) sums[r] = (uint16_t)(sums[r] + ones(signs[8 * w + r] ^ query[w]));
        memcpy(out, sums, sizeof sums);
    }
}

/* --- x86 --------------------------------------------------------------------------------------------------- */

#if defined(EDGE_X86)
TARGET_AVX2 static int32_t sum_of(__m256i lanes) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

TARGET_AVX2 static void dots_avx2(const int8_t *codes, size_t rows, const edge_query *query, int32_t *out) {
    size_t dim = query->dim, whole = dim - dim % 16;
    for (size_t r = 0; r < rows; r++, codes += dim) {
        __m256i sum = _mm256_setzero_si256();
        for (size_t i = 0; i < whole; i += 16) {
            __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(codes + i)));
            __m256i by = _mm256_loadu_si256((const __m256i *)(query->codes + i));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(wide, by));
        }
        int32_t total = sum_of(sum);
        for (size_t i = whole; i < dim; i++) total += (int32_t)codes[i] * query->codes[i];
        out[r] = total;
    }
}

TARGET_AVX2 static void hamming_avx2(
    const uint64_t *signs, size_t blocks, size_t words, const uint64_t *query, uint16_t *out) {
    const __m256i counts = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1,
                                            2, 2, 3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(15);
    for (size_t b = 0; b < blocks; b++, signs += 8 * words, out += 8) {
        __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        for (size_t w = 0; w < words; w++) {
            __m256i by = _mm256_set1_epi64x((long long)query[w]);
            for (size_t half = 0; half < 2; half++) {
                __m256i x = _mm256_loadu_si256((const __m256i *)(signs + 8 * w + 4 * half));
                x = _mm256_xor_si256(x, by);
                __m256i low = _mm256_shuffle_epi8(counts, _mm256_and_si256(x, nibble));
                __m256i high = _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble));
                __m256i each = _mm256_sad_epu8(_mm256_add_epi8(low, high), _mm256_setzero_si256());
                sums[half] = _mm256_add_epi64(sums[half], each);
            }
        }
        uint64_t eight[8];
        _mm256_storeu_si256((__m256i *)eight, sums[0]);
        _mm256_storeu_si256((__m256i *)(eight + 4), sums[1]);
        for (size_t r = 0; r < 8; r++) out[r] = (uint16_t)eight[r];
    }
}

/* VPDPBUSD multiplies unsigned by signed bytes: the row becomes unsigned by adding 128 (flipping its top bit), which
 * adds 128 * the sum of the query. Sums wrap modulo 2^32, and the final one fits. One row at a time: memory is read
 * in one stream, which the prefetcher follows better than four (13 against 19 ms for a million rows of 384). */
TARGET_AVX512 static void dots_avx512(const int8_t *codes, size_t rows, const edge_query *query, int32_t *out) {
    const __m512i top = _mm512_set1_epi8((char)0x80);
    size_t dim = query->dim, whole = dim - dim % 64;
    __mmask64 rest = (1ull << (dim - whole)) - 1;
    for (size_t r = 0; r < rows; r++, codes += dim) {
        __m512i high = _mm512_setzero_si512(), low = high;
        for (size_t i = 0; i < whole; i += 64) {
            __m512i x = _mm512_xor_si512(_mm512_loadu_si512(codes + i), top);
            high = _mm512_dpbusd_epi32(high, x, _mm512_load_si512(query->high + i));
            low = _mm512_dpbusd_epi32(low, x, _mm512_load_si512(query->low + i));
        }
        if (rest) {
            __m512i x = _mm512_xor_si512(_mm512_maskz_loadu_epi8(rest, codes + whole), top);
            high = _mm512_dpbusd_epi32(high, x, _mm512_maskz_loadu_epi8(rest, query->high + whole));
            low = _mm512_dpbusd_epi32(low, x, _mm512_maskz_loadu_epi8(rest, query->low + whole));
        }
        __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
        out[r] = (int32_t)((uint32_t)_mm512_reduce_add_epi32(sum) - query->offset);
    }
}

TARGET_AVX512 static void hamming_avx512(
    const uint64_t *signs, size_t blocks, size_t words, const uint64_t *query, uint16_t *out) {
    for (size_t b = 0; b < blocks; b++, signs += 8 * words, out += 8) {
        __m512i sum = _mm512_setzero_si512();
        for (size_t w = 0; w < words; w++) {
            __m512i x = _mm512_xor_si512(_mm512_loadu_si512(signs + 8 * w), _mm512_set1_epi64((long long)query[w]));
            sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(x));
        }
        _mm_storeu_si128((__m128i *)out, _mm512_cvtepi64_epi16(sum));
    }
}
#endif

/* --- ARM --------------------------------------------------------------------------------------------------- */

#if defined(EDGE_ARM)
static void dots_neon(const int8_t *codes, size_t rows, const edge_query *query, int32_t *out) {
    size_t dim = query->dim, whole = dim - dim % 16;
    for (size_t r = 0; r < rows; r++, codes += dim) {
        int32x4_t sums[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
        for (size_t i = 0; i < whole; i += 16) {
            int8x16_t x = vld1q_s8(codes + i);
            int16x8_t first = vmovl_s8(vget_low_s8(x)), second = vmovl_s8(vget_high_s8(x));
            int16x8_t by_first = vld1q_s16(query->codes + i), by_second = vld1q_s16(query->codes + i + 8);
            sums[0] = vmlal_s16(sums[0], vget_low_s16(first), vget_low_s16(by_first));
            sums[1] = vmlal_s16(sums[1], vget_high_s16(first), vget_high_s16(by_first));
            sums[0] = vmlal_s16(sums[0], vget_low_s16(second), vget_low_s16(by_second));
            sums[1] = vmlal_s16(sums[1], vget_high_s16(second), vget_high_s16(by_second));
        }
        int32_t total = vaddvq_s32(vaddq_s32(sums[0], sums[1]));
        for (size_t i = whole; i < dim; i++) total += (int32_t)codes[i] * query->codes[i];
        out[r] = total;
    }
}

#if defined(TARGET_DOTPROD)
TARGET_DOTPROD static void dots_dotprod(const int8_t *codes, size_t rows, const edge_query *query, int32_t *out) {
    size_t dim = query->dim, whole = dim - dim % 16;
    for (size_t r = 0; r < rows; r++, codes += dim) {
        int32x4_t high = vdupq_n_s32(0), low = vdupq_n_s32(0);
        for (size_t i = 0; i < whole; i += 16) {
            int8x16_t x = vld1q_s8(codes + i);
            high = vdotq_s32(high, x, vld1q_s8(query->high + i));
            low = vdotq_s32(low, x, vld1q_s8(query->low + i));
        }
        int32_t total = vaddvq_s32(vaddq_s32(vshlq_n_s32(high, 8), low));
        for (size_t i = whole; i < dim; i++) total += (int32_t)codes[i] * query->codes[i];
        out[r] = total;
    }
}
#endif

static void hamming_neon(
    const uint64_t *signs, size_t blocks, size_t words, const uint64_t *query, uint16_t *out) {
    for (size_t b = 0; b < blocks; b++, signs += 8 * words, out += 8) {
        uint64x2_t sums[4] = {vdupq_n_u64(0), vdupq_n_u64(0), vdupq_n_u64(0), vdupq_n_u64(0)};
        for (size_t w = 0; w < words; w++) {
            uint64x2_t by = vdupq_n_u64(query[w]);
            for (size_t pair = 0; pair < 4; pair++) {
                uint64x2_t x = veorq_u64(vld1q_u64(signs + 8 * w + 2 * pair), by);
                uint8x16_t counts = vcntq_u8(vreinterpretq_u8_u64(x));
                sums[pair] = vaddq_u64(sums[pair], vpaddlq_u32(vpaddlq_u16(vpaddlq_u8(counts))));
            }
        }
        for (size_t pair = 0; pair < 4; pair++) {
            out[2 * pair] = (uint16_t)vgetq_lane_u64(sums[pair], 0);
            out[2 * pair + 1] = (uint16_t)vgetq_lane_u64(sums[pair], 1);
        }
    }
}
#endif

/* --- choosing ---------------------------------------------------------------------------------------------- */

/* The instruction sets of this processor that the library has a path for, as bits; the largest is the fastest. */
EDGE_API int edge_scan_isa(void) {
    int found = EDGE_PORTABLE;
#if defined(EDGE_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) found |= EDGE_AVX2;
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512vpopcntdq"))
        found |= EDGE_AVX512;
#elif defined(EDGE_ARM)
    found |= EDGE_NEON;
#if defined(TARGET_DOTPROD) && defined(__APPLE__)
    found |= EDGE_DOTPROD; /* every 64-bit Apple processor since 2019 */
#elif defined(TARGET_DOTPROD) && defined(__linux__)
    if (getauxval(AT_HWCAP) & (1ul << 20)) found |= EDGE_DOTPROD; /* HWCAP_ASIMDDP */
#endif
#endif
    return found;
}

static dots_path *dots_of(int isa) {
    switch (isa) {
    case EDGE_PORTABLE: return dots_portable;
#if defined(EDGE_X86)
    case EDGE_AVX2: return dots_avx2;
    case EDGE_AVX512: return dots_avx512;
#elif defined(EDGE_ARM)
    case EDGE_NEON: return dots_neon;
#if defined(TARGET_DOTPROD)
    case EDGE_DOTPROD: return dots_dotprod;
#endif
#endif
    default: return 0;
    }
}

static hamming_path *hamming_of(int isa) {
    switch (isa) {
    case EDGE_PORTABLE: return hamming_portable;
#if defined(EDGE_X86)
    case EDGE_AVX2: return hamming_avx2;
    case EDGE_AVX512: return hamming_avx512;
#elif defined(EDGE_ARM)
    case EDGE_NEON:
    case EDGE_DOTPROD: return hamming_neon;
#endif
    default: return 0;
    }
}

static void prepare(edge_query *query, const int16_t *codes, size_t dim) {
    uint32_t sum = 0;
    query->codes = codes;
    query->dim = dim;
    for (size_t i = 0; i < dim; i++) {
        int32_t high = (codes[i] + 128) >> 8; /* |codes| <= 32639, so that high fits into a signed byte */
        query->high[i] = (int8_t)high;
        query->low[i] = (int8_t)(codes[i] - 256 * high);
        sum += (uint32_t)(int32_t)codes[i];
    }
    query->offset = 128u * sum;
}

/* --- the best k -------------------------------------------------------------------------------------------- */

/* A heap whose root is the worst of the kept rows: the lowest score, and of equal ones the last row. */
static int worse(float score, int64_t row, float other_score, int64_t other_row) {
    return score < other_score || (score == other_score && row > other_row);
}

static void sink(float *scores, int64_t *rows, size_t count, size_t at) {
    float score = scores[at];
    int64_t row = rows[at];
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && worse(scores[child + 1], rows[child + 1], scores[child], rows[child])) child++;
        if (!worse(scores[child], rows[child], score, row)) break;
        scores[at] = scores[child];
        rows[at] = rows[child];
    }
    scores[at] = score;
    rows[at] = row;
}

static void swim(float *scores, int64_t *rows, size_t at) {
    float score = scores[at];
    int64_t row = rows[at];
    while (at > 0) {
        size_t parent = (at - 1) / 2;
        if (!worse(score, row, scores[parent], rows[parent])) break;
        scores[at] = scores[parent];
        rows[at] = rows[parent];
        at = parent;
    }
    scores[at] = score;
    rows[at] = row;
}

static void sort_best_first(float *scores, int64_t *rows, size_t count) {
    while (count > 1) {
        float score = scores[--count];
        int64_t row = rows[count];
        scores[count] = scores[0];
        rows[count] = rows[0];
        scores[0] = score;
        rows[0] = row;
        sink(scores, rows, count, 0);
    }
}

static int is_allowed(const uint64_t *allowed, size_t row) { return !allowed || (allowed[row / 64] >> (row % 64) & 1); }

/* The k rows with the largest scale * (codes . query), for each of several queries in one pass over the rows.
 *
 * codes [rows, dim], scales [rows], queries [query_count, dim]; `allowed` has a bit a row, or is null for all.
 * Writes min(k, allowed rows) entries a query to out_rows and out_scores [query_count, k], best first, equal scores
 * in the order of the rows, and their number to `found`. */
EDGE_API int edge_scan_int8(const int8_t *codes, const float *scales, size_t rows, size_t dim, const int16_t *queries,
                            size_t query_count, const uint64_t *allowed, size_t k, int isa, int64_t *out_rows,
                            float *out_scores, size_t *found) {
    dots_path *dots = dots_of(isa);
    edge_query query;
    int32_t sums[BLOCK];
    size_t kept = 0;
    if (!dots || !(isa & edge_scan_isa())) return EDGE_BAD_ISA;
    if (dim > MAX_DIM || rows > INT32_MAX) return EDGE_BAD_SIZE;
    *found = 0;
    if (k == 0 || query_count == 0) return EDGE_DONE;
    prepare(&query, queries, dim);
    for (size_t start = 0; start < rows; start += BLOCK) {
        size_t count = rows - start < BLOCK ? rows - start : BLOCK, after = kept;
        int any = !allowed;
        for (size_t word = start / 64; !any && word < (start + count + 63) / 64; word++) any = allowed[word] != 0;
        if (!any) continue;
        for (size_t q = 0; q < query_count; q++) {
            float *best = out_scores + q * k;
            int64_t *best_rows = out_rows + q * k;
            if (query_count > 1) prepare(&query, queries + q * dim, dim);
            dots(codes + start * dim, count, &query, sums);
            after = kept;
            for (size_t r = 0; r < count; r++) {
                float score = (float)sums[r] * scales[start + r];
                if (after == k && !(score > best[0])) continue; /* rows ascend: an equal one is not better */
                if (!is_allowed(allowed, start + r)) continue;
                if (after < k) {
                    best[after] = score;
                    best_rows[after] = (int64_t)(start + r);
                    swim(best, best_rows, after++);
                } else {
                    best[0] = score;
                    best_rows[0] = (int64_t)(start + r);
                    sink(best, best_rows, k, 0);
                }
            }
        }
        kept = after;
    }
    for (size_t q = 0; q < query_count; q++) sort_best_first(out_scores + q * k, out_rows + q * k, kept);
    *found = kept;
    return EDGE_DONE;
}

/* scale * (codes . query) of `count` chosen rows, in their order. */
EDGE_API int edge_scan_rows(const int8_t *codes, const float *scales, size_t dim, const int16_t *codes_of_query,
                            const int64_t *chosen, size_t count, int isa, float *out) {
    dots_path *dots = dots_of(isa);
    edge_query query;
    int32_t sum;
    if (!dots || !(isa & edge_scan_isa())) return EDGE_BAD_ISA;
    if (dim > MAX_DIM) return EDGE_BAD_SIZE;
    prepare(&query, codes_of_query, dim);
    for (size_t i = 0; i < count; i++) {
        if (i + AHEAD < count)
            for (size_t at = 0; at < dim; at += 64) PREFETCH(codes + (size_t)chosen[i + AHEAD] * dim + at);
        dots(codes + (size_t)chosen[i] * dim, 1, &query, &sum);
        out[i] = (float)sum * scales[chosen[i]];
    }
    return EDGE_DONE;
}

/* --- sign bits --------------------------------------------------------------------------------------------- */

static uint64_t signs_of(const int8_t *codes, size_t length) {
    uint64_t word = 0;
#if defined(EDGE_X86) /* SSE2, which every such processor has */
    if (length == 64) {
        for (size_t i = 0; i < 4; i++) {
            __m128i positive = _mm_cmpgt_epi8(_mm_loadu_si128((const __m128i *)codes + i), _mm_setzero_si128());
            word |= (uint64_t)(uint32_t)_mm_movemask_epi8(positive) << (16 * i);
        }
        return word;
    }
#endif
    for (size_t i = 0; i < length; i++) word |= (uint64_t)(codes[i] > 0) << i;
    return word;
}

/* Write the sign bits of `rows` int8 rows (1 for a code above 0) as rows first, first + 1, ... of the blocks.
 * `signs` is [blocks, words, 8] with words = ceil(dim / 64); bits beyond dim are 0. */
EDGE_API int edge_scan_pack(const int8_t *codes, size_t rows, size_t dim, size_t first, uint64_t *signs) {
    size_t words = (dim + 63) / 64;
    if (dim > MAX_DIM) return EDGE_BAD_SIZE;
    for (size_t r = 0; r < rows; r++, codes += dim) {
        uint64_t *block = signs + (first + r) / 8 * 8 * words + (first + r) % 8;
        for (size_t w = 0; w < words; w++)
            block[8 * w] = signs_of(codes + 64 * w, dim - 64 * w < 64 ? dim - 64 * w : 64);
    }
    return EDGE_DONE;
}

/* The Hamming distance of each of `rows` rows from the query [words]; `out` has room for whole blocks of eight. */
EDGE_API int edge_scan_hamming(
    const uint64_t *signs, size_t rows, size_t dim, const uint64_t *query, int isa, uint16_t *out) {
    hamming_path *hamming = hamming_of(isa);
    if (!hamming || !(isa & edge_scan_isa())) return EDGE_BAD_ISA;
    if (dim > MAX_DIM) return EDGE_BAD_SIZE;
    hamming(signs, (rows + 7) / 8, (dim + 63) / 64, query, out);
    return EDGE_DONE;
}

/* How many distances are at most `limit`, in every `stride`-th block. */
static size_t count_up_to(const uint16_t *distances, size_t rows, uint16_t limit, size_t stride) {
    size_t total = 0;
    for (size_t start = 0; start < rows; start += BLOCK * stride) {
        size_t stop = rows - start < BLOCK ? rows : start + BLOCK;
        uint16_t here = 0; /* of the width of a distance, so that compilers count eight or more at a time */
        for (size_t r = start; r < stop; r++) here = (uint16_t)(here + (distances[r] <= limit));
        total += here;
    }
    return total;
}

/* The smallest limit up to which there are at least k distances; MAX_DIM where there are fewer. Bisection: sweeps of
 * few instructions for eight rows or more cost less than a histogram, and a sample says where to begin. */
static uint16_t limit_for(const uint16_t *distances, size_t rows, size_t k) {
    enum { STRIDE = 16 };
    uint16_t low = 0, high = MAX_DIM, step = 1;
    while (low < high) {
        uint16_t middle = (uint16_t)((low + high) / 2);
        if (count_up_to(distances, rows, middle, STRIDE) * STRIDE >= k) high = middle;
        else low = (uint16_t)(middle + 1);
    }
    if (count_up_to(distances, rows, low, 1) >= k) {
        for (high = low; low; step *= 2) { /* down until there are too few: the limit is in (low, high] */
            low = (uint16_t)(high > step ? high - step : 0);
            if (count_up_to(distances, rows, low, 1) < k) break;
            high = low;
        }
        if (!low && count_up_to(distances, rows, 0, 1) >= k) return 0;
    } else {
        for (high = low; high < MAX_DIM; step *= 2) {
            low = high;
            high = (uint16_t)(MAX_DIM - high > step ? high + step : MAX_DIM);
            if (count_up_to(distances, rows, high, 1) >= k) break;
        }
    }
    while (high - low > 1) {
        uint16_t middle = (uint16_t)((low + high) / 2);
        if (count_up_to(distances, rows, middle, 1) >= k) high = middle;
        else low = middle;
    }
    return high;
}

/* The rows of the k smallest distances (all of them when fewer are allowed), in ascending order of row; at the largest
 * distance that is still taken, earlier rows go first. Overwrites the distances of rows that are not allowed. */
EDGE_API int edge_scan_nearest(uint16_t *distances, size_t rows, const uint64_t *allowed, size_t k, int64_t *out_rows,
                               size_t *found) {
    size_t below, at_limit, taken = 0;
    uint16_t limit;
    *found = 0;
    if (rows > INT32_MAX) return EDGE_BAD_SIZE;
    for (size_t r = 0; allowed && r < rows; r++)
        if (!is_allowed(allowed, r)) distances[r] = UINT16_MAX;
    limit = limit_for(distances, rows, k);
    below = limit ? count_up_to(distances, rows, (uint16_t)(limit - 1), 1) : 0;
    at_limit = k > below ? k - below : 0;
    for (size_t start = 0; start < rows && taken < k; start += BLOCK) {
        size_t stop = rows - start < BLOCK ? rows : start + BLOCK;
        int any = 0;
        for (size_t r = start; r < stop; r++) any |= distances[r] <= limit;
        for (size_t r = start; any && r < stop; r++) {
            if (distances[r] > limit || (distances[r] == limit && !at_limit)) continue;
            at_limit -= distances[r] == limit;
            out_rows[taken++] = (int64_t)r;
        }
    }
    *found = taken;
    return EDGE_DONE;
}

/* Reads `bytes` bytes and does as little as can be done with them: the yardstick of `edge bench search`. */
EDGE_API uint64_t edge_scan_read(const void *memory, size_t bytes) {
    const uint64_t *words = memory;
    uint64_t sums[8] = {0};
    for (size_t i = 0; i + 8 <= bytes / 8; i += 8)
        for (size_t lane = 0; lane < 8; lane++) sums[lane] ^= words[i + lane];
    return sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
}
