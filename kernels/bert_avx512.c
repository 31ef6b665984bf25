/* The BERT encoder with AVX-512 and its dot products of bytes (VNNI). */
#include "bert.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>

EDGE_INLINE int32_t four_bytes(const void *at) {
    int32_t bytes;
    memcpy(&bytes, at, sizeof bytes);
    return bytes;
}

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")))
#define ROWS 6
#define VF __m512
#define VI __m512i
#define WEIGHTS __m512i
#define LANES 16
#define VECTORS 4
#define FVECTORS 2
#define ACT uint8_t
#define GROUP 4
#define BIAS 128
#define I_LOAD(p) _mm512_loadu_si512(p)
#define I_STORE(p, v) _mm512_storeu_si512(p, v)
#define I_ADD(a, b) _mm512_add_epi32(a, b)
#define I_SCALE(v, by) _mm512_mullo_epi32(v, _mm512_set1_epi32(by))
#define W_LOAD(p) _mm512_loadu_si512(p)
#define A_LOAD(p) _mm512_set1_epi32(four_bytes(p))
#define A_STORE(p, v) _mm_storeu_si128((__m128i *)(p), _mm_xor_si128(_mm512_cvtepi32_epi8(v), _mm_set1_epi8(-128)))
#define DOT(acc, a, w) _mm512_dpbusd_epi32(acc, a, w)
#define F_LOAD(p) _mm512_loadu_ps(p)
#define F_STORE(p, v) _mm512_storeu_ps(p, v)
#define F_SET(x) _mm512_set1_ps(x)
#define F_FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define F_MIN(a, b) _mm512_min_ps(a, b)
#define F_MAX(a, b) _mm512_max_ps(a, b)
#define F_ABS(a) _mm512_abs_ps(a)
#define F_SUM(v) _mm512_reduce_add_ps(v)
#define F_LEAST(v) _mm512_reduce_min_ps(v)
#define F_MOST(v) _mm512_reduce_max_ps(v)
#define F_ROUND(v) _mm512_cvtps_epi32(v)
#define F_FROM(v) _mm512_cvtepi32_ps(v)
#define F_EXPONENT(v) \
    _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(127)), 23))
#include "bert_path.h"

const path *edge_bert_avx512(void) {
    int found = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    return found ? &this_path : NULL;
}
#else
const path *edge_bert_avx512(void) { return NULL; }
#endif
