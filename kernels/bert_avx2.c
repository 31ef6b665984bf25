/* The BERT encoder with AVX2. There is no exact product of bytes: both sides become int16, whose products one
 * instruction adds in pairs. */
#include "bert.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include "bert_lanes8.h"

#define TARGET __attribute__((target(LANES_TARGET)))
#define ROWS 4
#define ACT int16_t
#define GROUP 2
#define BIAS 0
#define W_LOAD(p) _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p)))
#define A_STORE(p, v) _mm_storeu_si128((__m128i *)(p), narrow8(v))
#define DOT(acc, a, w) _mm256_add_epi32(acc, _mm256_madd_epi16(a, w))
#include "bert_path.h"

const path *edge_bert_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &this_path : NULL;
}
#else
const path *edge_bert_avx2(void) { return NULL; }
#endif
