/* Vectors of AVX2 for bert_path.h: 8 lanes. What is left to the including file is the product of bytes. */
#include <immintrin.h>

#include "bert.h"

#define LANES_TARGET "avx2,fma"
#define INLINE8 EDGE_INLINE __attribute__((target(LANES_TARGET)))

INLINE8 float sum8(__m256 v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

INLINE8 float most8(__m256 v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

INLINE8 __m128i narrow8(__m256i v) {
    return _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

EDGE_INLINE int32_t four_bytes(const void *at) {
    int32_t bytes;
    memcpy(&bytes, at, sizeof bytes);
    return bytes;
}

#define VF __m256
#define VI __m256i
#define WEIGHTS __m256i
#define LANES 8
#define VECTORS 2
#define FVECTORS 2
#define I_LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define I_STORE(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define I_ADD(a, b) _mm256_add_epi32(a, b)
#define I_SCALE(v, by) _mm256_mullo_epi32(v, _mm256_set1_epi32(by))
#define A_LOAD(p) _mm256_set1_epi32(four_bytes(p))
#define F_LOAD(p) _mm256_loadu_ps(p)
#define F_STORE(p, v) _mm256_storeu_ps(p, v)
#define F_SET(x) _mm256_set1_ps(x)
#define F_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define F_MIN(a, b) _mm256_min_ps(a, b)
#define F_MAX(a, b) _mm256_max_ps(a, b)
#define F_ABS(a) _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a)
#define F_SUM(v) sum8(v)
#define F_LEAST(v) (-most8(_mm256_xor_ps(v, _mm256_set1_ps(-0.0f))))
#define F_MOST(v) most8(v)
#define F_ROUND(v) _mm256_cvtps_epi32(v)
#define F_FROM(v) _mm256_cvtepi32_ps(v)
#define F_EXPONENT(v) \
    _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(v), _mm256_set1_epi32(127)), 23))
