/* The BERT encoder with NEON as every 64-bit ARM has it: products of bytes as int16, of which two fit, summed in int32. */
#include "bert.h"

#if defined(__GNUC__) && defined(__aarch64__)
#include "bert_lanes4.h"

EDGE_INLINE int32x4_t dot4(int32x4_t acc, int8x16_t a, int8x16_t w) {
    int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(w)), high = vmull_high_s8(a, w);
    return vpadalq_s16(acc, vpaddq_s16(low, high));
}

#define TARGET
#define ROWS 6
#define DOT(acc, a, w) dot4(acc, a, w)
#include "bert_path.h"

const path *edge_bert_neon(void) { return &this_path; }
#else
const path *edge_bert_neon(void) { return NULL; }
#endif
