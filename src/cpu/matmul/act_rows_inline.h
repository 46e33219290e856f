/* SPDX-License-Identifier: Apache-2.0
 *
 * What the callers of matvec kernels share: rows of activations in their quantized form, laid out once for the widest
 * input and filled densely for the width at hand, and how the rows of a weight are cut into tasks.
 */
#ifndef SR_CPU_MATMUL_ACT_ROWS_INLINE_H
#define SR_CPU_MATMUL_ACT_ROWS_INLINE_H

#include "base/memory.h"
#include "cpu/kernels.h"

/* From this many tokens on, expanding a panel is cheaper than one matvec pass per SR_MATVEC_TOKENS tokens. */
enum { GEMM_MIN_TOKENS = 16, MATVEC_TASK_BYTES = 32768 };

struct act_rows { int8_t *q, *q_low, *q_split, *q_split_low; float *d, *s32, *s16; };

static inline int64_t act_padded(int64_t n_in) { return (n_in + SR_ACT_PAD - 1) / SR_ACT_PAD * SR_ACT_PAD; }

static inline int acts_are_float(sr_dtype t) { return t == SR_DTYPE_F32 || t == SR_DTYPE_F16 || t == SR_DTYPE_BF16; }

static inline void act_rows_layout(struct act_rows *r, struct arena *a, size_t n, int64_t max_in)
{
    const size_t pad = (size_t)act_padded(max_in);
    r->q = sr_arena_take(a, n * pad, 1);
    r->q_low = sr_arena_take(a, n * pad, 1);
    r->q_split = sr_arena_take(a, n * pad, 1);
    r->q_split_low = sr_arena_take(a, n * pad, 1);
    r->d = sr_arena_take(a, n * pad / 32, sizeof(float));
    r->s32 = sr_arena_take(a, n * pad / 32, sizeof(float));
    r->s16 = sr_arena_take(a, n * pad / 16, sizeof(float));
}

/* Quantizes x[n_in] into row `row`. */
static inline void act_rows_fill(const struct act_rows *r, int64_t row, const struct cpu_kernels *k, const float *x, int64_t n_in)
{
    const int64_t pad = act_padded(n_in), at = row * pad;
    k->quantize_q8(&(struct quantize_args){
        .x = x, .n = n_in, .pad = pad, .q = r->q + at, .q_low = r->q_low + at, .q_split = r->q_split + at,
        .q_split_low = r->q_split_low + at, .d = r->d + at / 32, .s32 = r->s32 + at / 32, .s16 = r->s16 + at / 16});
}

/* The rows from `row` on; x is their float form. */
static inline struct acts acts_of_rows(const struct act_rows *r, int64_t row, int64_t n_in, const float *x, int64_t x_stride)
{
    const int64_t pad = act_padded(n_in), at = row * pad;
    return (struct acts){.x = x, .x_stride = x_stride, .q = r->q + at, .q_low = r->q_low + at, .q_split = r->q_split + at,
                         .q_split_low = r->q_split_low + at, .d = r->d + at / 32, .s32 = r->s32 + at / 32,
                         .s16 = r->s16 + at / 16, .pad = pad};
}

static inline int32_t matvec_task_rows(size_t row_bytes)
{
    const int64_t rows = (int64_t)(MATVEC_TASK_BYTES / row_bytes) / SR_MATVEC_ROWS * SR_MATVEC_ROWS;
    return (int32_t)(rows < SR_MATVEC_ROWS ? SR_MATVEC_ROWS : rows);
}

#endif
