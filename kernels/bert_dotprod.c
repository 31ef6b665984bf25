/* The BERT encoder with NEON's dot products of bytes: ARMv8.2 and later, such as Cortex-A76 and every Apple chip. */
#include "bert.h"

/* Before version 16, clang's header has the function only where all code may use it. */
#if defined(__GNUC__) && defined(__aarch64__) && \
    (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD))
#include "bert_lanes4.h"
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#if defined(__clang__)
#define TARGET __attribute__((target("dotprod")))
#else
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define ROWS 6
#define DOT(acc, a, w) vdotq_s32(acc, a, w)
#include "bert_path.h"

const path *edge_bert_dotprod(void) {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & 1ul << 20 ? &this_path : NULL; /* HWCAP_ASIMDDP */
#elif defined(__APPLE__)
    return &this_path;
#else
    return NULL;
#endif
}
#else
const path *edge_bert_dotprod(void) { return NULL; }
#endif
