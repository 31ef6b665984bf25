/* The BERT encoder with AVX-VNNI, the dot products of bytes of CPUs without AVX-512. */
#include "bert.h"

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : defined(__GNUC__) && __GNUC__ >= 11)
#include <cpuid.h>

#include "bert_lanes8.h"

#define TARGET __attribute__((target("avxvnni," LANES_TARGET)))
#define ROWS 6
#define ACT uint8_t
#define GROUP 4
#define BIAS 128
#define W_LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define A_STORE(p, v) \
    _mm_storel_epi64((__m128i *)(p), _mm_xor_si128(_mm_packs_epi16(narrow8(v), narrow8(v)), _mm_set1_epi8(-128)))
#define DOT(acc, a, w) _mm256_dpbusd_avx_epi32(acc, a, w)
#include "bert_path.h"

const path *edge_bert_avxvnni(void) {
    unsigned a = 0, b, c, d;
    int found = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid_count(7, 1, &a, &b, &c, &d);
    return found && (a >> 4 & 1) ? &this_path : NULL;
}
#else
const path *edge_bert_avxvnni(void) { return NULL; }
#endif
