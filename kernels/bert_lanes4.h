/* Vectors of NEON for bert_path.h: 4 lanes. What is left to the including file is the product of bytes. */
#include <arm_neon.h>

#include "bert.h"

EDGE_INLINE int8x16_t spread4(const int8_t *at) {
    int32_t bytes;
    memcpy(&bytes, at, sizeof bytes);
    return vreinterpretq_s8_s32(vdupq_n_s32(bytes));
}

EDGE_INLINE void narrow4(int8_t *to, int32x4_t v) {
    int16x4_t half = vmovn_s32(v);
    int8x8_t bytes = vmovn_s16(vcombine_s16(half, half));
    memcpy(to, &bytes, 4);
}

#define VF float32x4_t
#define VI int32x4_t
#define WEIGHTS int8x16_t
#define LANES 4
#define VECTORS 4
#define FVECTORS 4
#define ACT int8_t
#define GROUP 4
#define BIAS 0
#define I_LOAD(p) vld1q_s32(p)
#define I_STORE(p, v) vst1q_s32(p, v)
#define I_ADD(a, b) vaddq_s32(a, b)
#define I_SCALE(v, by) vmulq_n_s32(v, by)
#define W_LOAD(p) vld1q_s8(p)
#define A_LOAD(p) spread4(p)
#define A_STORE(p, v) narrow4(p, v)
#define F_LOAD(p) vld1q_f32(p)
#define F_STORE(p, v) vst1q_f32(p, v)
#define F_SET(x) vdupq_n_f32(x)
#define F_FMA(a, b, c) vfmaq_f32(c, a, b)
#define F_MIN(a, b) vminq_f32(a, b)
#define F_MAX(a, b) vmaxq_f32(a, b)
#define F_ABS(a) vabsq_f32(a)
#define F_SUM(v) vaddvq_f32(v)
#define F_LEAST(v) vminvq_f32(v)
#define F_MOST(v) vmaxvq_f32(v)
#define F_ROUND(v) vcvtnq_s32_f32(v)
#define F_FROM(v) vcvtq_f32_s32(v)
#define F_EXPONENT(v) \
    vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vreinterpretq_s32_f32(v), vdupq_n_s32(127)), 23))
