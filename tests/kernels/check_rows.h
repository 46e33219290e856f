/* SPDX-License-Identifier: Apache-2.0
 *
 * Cache rows for the attention checks, and attention in double precision.
 */
#ifndef SR_TESTS_KERNELS_CHECK_ROWS_H
#define SR_TESTS_KERNELS_CHECK_ROWS_H

#include "check.h"

#include <stdio.h>

size_t sr_check_row_bytes(sr_dtype type, int32_t n);
const char *sr_check_type_name(sr_dtype type);
struct attn_shape sr_check_shape(int32_t head_dim, int32_t group, sr_dtype k_type, sr_dtype v_type);

void sr_check_row_load(sr_dtype type, const uint8_t *src, float *dst, int32_t n);
void sr_check_row_make(sr_dtype type, const float *src, uint8_t *dst, int32_t n);
/* One element; in a blocked type the block's scale stays, except that NaN makes it NaN. */
void sr_check_row_set(sr_dtype type, uint8_t *row, int32_t i, float x);
void sr_check_fill_rows(struct check *c, sr_dtype type, uint8_t *rows, int32_t n, int32_t d, double scale);

/* One head's state in double, with what its tolerance needs: o_abs = sum p |v|, logit_error = the largest
 * (d + 4) u sum |q k| + q_error max |q| sum |k|, lost = the smallest normal float times sum |v|. */
struct ref_state {
    double m, l, q_error, weight_error, logit_error, lost, o[SR_ATTN_MAX_DIM], o_abs[SR_ATTN_MAX_DIM];
    double o_error[SR_ATTN_MAX_DIM];   /* weight_error times the largest scale of a blocked V times the sum of |codes| */
};
/* How far off a query's elements may be, as a share of the largest: the VNNI kernel takes them in steps of max |q| / 32512
 * to multiply Q4_0 keys, the AMX kernel for Q8_0 too, and where groups are large as two bf16 for keys of 16 bits. 0 for what
 * computes in float. */
double sr_check_q_error(enum cpu_isa isa, const struct attn_shape *s);
/* How far off the products of a row's weight and the scale of a blocked value may be, as a share of the largest weight, which
 * is at most 1, times the largest scale: the AMX kernel takes them in steps of that / (127 * 2^16), or weights of values of 16
 * bits as two bf16. */
double sr_check_weight_error(enum cpu_isa isa, const struct attn_shape *s);
/* q_error and weight_error start as 0. */
void sr_ref_state_start(struct ref_state *s, const float *o, float m, float l, int32_t d);
void sr_ref_state_add(struct ref_state *s, const struct attn_shape *shape, const float *q, const uint8_t *const *k,
                      const uint8_t *const *v, int32_t n);

#endif
