/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads and writes cache rows through formats/quant, which the kernels do not use: an independent view of the bytes.
 */
#include "check_rows.h"

#include "backend/kv_type.h"
#include "base/half.h"
#include "formats/quant.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

size_t sr_check_row_bytes(sr_dtype type, int32_t n) { return sr_row_bytes(type, n); }
const char *sr_check_type_name(sr_dtype type) { return sr_dtype_name(type); }
void sr_check_row_load(sr_dtype type, const uint8_t *src, float *dst, int32_t n) { sr_dequantize_row(type, src, dst, n); }
void sr_check_row_make(sr_dtype type, const float *src, uint8_t *dst, int32_t n) { sr_quantize_row(type, src, dst, n, NULL); }

struct attn_shape sr_check_shape(int32_t head_dim, int32_t group, sr_dtype k_type, sr_dtype v_type)
{
    return (struct attn_shape){head_dim, group, k_type, v_type, sr_row_bytes(k_type, head_dim), sr_row_bytes(v_type, head_dim)};
}

void sr_check_row_set(sr_dtype type, uint8_t *row, int32_t i, float x)
{
    const uint16_t f16 = sr_f16_of_f32(x), bf16 = sr_bf16_of_f32(x);
    if (type == SR_DTYPE_F32) memcpy(row + 4 * i, &x, 4);
    if (type == SR_DTYPE_F16) memcpy(row + 2 * i, &f16, 2);
    if (type == SR_DTYPE_BF16) memcpy(row + 2 * i, &bf16, 2);
    if (type == SR_DTYPE_F8_E4M3) row[i] = sr_f8_of_f32(x);
    if (!sr_kv_is_blocked(type)) return;
    uint8_t *block = row + i / SR_KV_BLOCK * sr_kv_block_bytes(type), *nibbles = block + 2 + i % 16;
    uint16_t h;
    memcpy(&h, block, 2);
    const float scale = sr_f32_of_f16(h), code = scale != 0 ? rintf(x / scale) : 0;
    if (isnan(x)) memcpy(block, &f16, 2);
    else if (type == SR_DTYPE_Q8_0) block[2 + i % 32] = (uint8_t)(int8_t)fmaxf(-127, fminf(127, code));
    else *nibbles = (uint8_t)((*nibbles & (i % 32 < 16 ? 0xf0 : 0x0f)) | (int)(fmaxf(-8, fminf(7, code)) + 8) << i % 32 / 16 * 4);
}

void sr_check_fill_rows(struct check *c, sr_dtype type, uint8_t *rows, int32_t n, int32_t d, double scale)
{
    float x[SR_ATTN_MAX_DIM];
    for (int32_t i = 0; i < n; i++) {
        sr_check_fill_normal(c, x, d, scale);
        sr_quantize_row(type, x, rows + (size_t)i * sr_row_bytes(type, d), d, NULL);
    }
}

/* Whether the AMX kernel for 16 bits may be used: for f16 not before groups of 7, for bf16 not before 5. */
static int is_split(enum cpu_isa isa, const struct attn_shape *s)
{
    const int k_bf16 = s->k_type == SR_DTYPE_BF16, v_bf16 = s->v_type == SR_DTYPE_BF16;
    if (isa != ISA_AMX || !(k_bf16 || s->k_type == SR_DTYPE_F16) || !(v_bf16 || s->v_type == SR_DTYPE_F16)) return 0;
    return s->group > (k_bf16 && v_bf16 ? 4 : 6);
}

double sr_check_q_error(enum cpu_isa isa, const struct attn_shape *s)
{
    if (is_split(isa, s)) return 0x1p-17;
    if (s->k_type == SR_DTYPE_Q8_0) return isa == ISA_AMX ? 0.5001 / 32512 : 0;
    return s->k_type == SR_DTYPE_Q4_0 && (isa == ISA_VNNI || isa == ISA_BF16 || isa == ISA_AMX) ? 0.5001 / 32512 : 0;
}

/* Half a step, and half of one again for each of two roundings to 24 bits. */
double sr_check_weight_error(enum cpu_isa isa, const struct attn_shape *s)
{
    if (is_split(isa, s)) return 0x1p-17;
    return sr_kv_is_blocked(s->v_type) && isa == ISA_AMX ? 1.5 / (127 * 65536.0) : 0;
}

void sr_ref_state_start(struct ref_state *s, const float *o, float m, float l, int32_t d)
{
    s->m = m;
    s->l = l;
    s->logit_error = s->q_error = s->weight_error = 0;
    s->lost = 0;
    for (int32_t i = 0; i < d; i++) s->lost += 0x1p-125 * fabs((double)o[i]);
    for (int32_t i = 0; i < d; i++) {
        s->o[i] = o[i];
        s->o_abs[i] = fabs((double)o[i]);
        s->o_error[i] = 0;
    }
}

static double scale_of(sr_dtype type, const uint8_t *row, int32_t i)
{
    uint16_t h;
    if (!sr_kv_is_blocked(type)) return 1;
    memcpy(&h, row + i / SR_KV_BLOCK * sr_kv_block_bytes(type), 2);
    return fabs((double)sr_f32_of_f16(h));
}

static void add_weight_errors(struct ref_state *s, sr_dtype type, int32_t d, const uint8_t *const *v, int32_t n)
{
    float row[SR_ATTN_MAX_DIM];
    double most[SR_ATTN_MAX_DIM] = {0};
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j < d; j++) most[j] = fmax(most[j], scale_of(type, v[i], j));
    for (int32_t i = 0; i < n; i++) {
        sr_dequantize_row(type, v[i], row, d);
        for (int32_t j = 0; j < d; j++) {
            const double scale = scale_of(type, v[i], j);
            if (scale > 0) s->o_error[j] += s->weight_error * most[j] * fabs((double)row[j]) / scale;
        }
    }
}

static void add_row(struct ref_state *s, double logit, const float *v, int32_t d)
{
    const double m = isnan(logit) ? s->m : fmax(s->m, logit);
    const double shrink = s->m == -INFINITY ? 0 : exp(s->m - m), p = exp(logit - m);
    for (int32_t i = 0; i < d; i++) {
        s->o[i] = s->o[i] * shrink + p * (double)v[i];
        s->lost += isnan(v[i]) ? 0 : 0x1p-125 * fabs((double)v[i]);
        s->o_abs[i] = s->o_abs[i] * shrink + p * fabs((double)v[i]);
    }
    s->l = s->l * shrink + p;
    s->m = m;
}

void sr_ref_state_add(struct ref_state *s, const struct attn_shape *shape, const float *q, const uint8_t *const *k,
                      const uint8_t *const *v, int32_t n)
{
    float row[SR_ATTN_MAX_DIM];
    const int32_t d = shape->head_dim;
    for (int32_t i = 0; i < n; i++) {
        double logit = 0, abs_sum = 0, k_sum = 0, q_max = 0;
        sr_dequantize_row(shape->k_type, k[i], row, d);
        for (int32_t j = 0; j < d; j++) {
            logit += (double)q[j] * (double)row[j];
            abs_sum += fabs((double)q[j] * (double)row[j]);
            k_sum += fabs((double)row[j]);
            q_max = fmax(q_max, fabs((double)q[j]));
        }
        s->logit_error = fmax(s->logit_error, (d + 4) * SR_CHECK_U * abs_sum + s->q_error * q_max * k_sum);
        sr_dequantize_row(shape->v_type, v[i], row, d);
        add_row(s, logit, row, d);
    }
    if (s->weight_error > 0) add_weight_errors(s, shape->v_type, d, v, n);
}
