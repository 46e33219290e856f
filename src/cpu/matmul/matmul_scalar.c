/* SPDX-License-Identifier: Apache-2.0
 *
 * The specification of the matrix products: rows through the reference dequantizer, products in f32, summed in rising
 * order of the elements. Quantized weights see the activations as quantize_q8 stored them.
 */
#include "cpu/kernels.h"

#include "base/half.h"
#include "formats/quant.h"

#include <math.h>
#include <string.h>

enum { CHUNK = 256 }; /* a multiple of every type's block */

void sr_quantize_q8_scalar(const struct quantize_args *a)
{
    for (int64_t b = 0; b < a->pad / SR_ACT_BLOCK; b++) {
        const float *x = a->x + b * SR_ACT_BLOCK;
        const int inside = b * SR_ACT_BLOCK < a->n;
        float amax = 0.0f;
        int is_number = 1; /* a NaN has no code: the block's scale carries it */
        for (int i = 0; inside && i < SR_ACT_BLOCK; i++) {
            amax = fmaxf(amax, fabsf(x[i]));
            is_number &= x[i] == x[i];
        }
        const float d = is_number ? amax / SR_ACT_MAX : NAN, id = amax > 1e-30f && is_number && amax < INFINITY ? SR_ACT_MAX / amax : 0.0f;
        int32_t sum[2] = {0, 0};
        for (int i = 0; i < SR_ACT_BLOCK; i++) {
            const int32_t code = inside && id > 0.0f ? (int32_t)rintf(x[i] * id) : 0, q = (code + 64 + (1 << 20)) / 128 - (1 << 13);
            const int64_t split = b / 4 * 128 + i / 16 * 64 + b % 4 * 16 + i % 16;
            a->q[b * SR_ACT_BLOCK + i] = a->q_split[split] = (int8_t)q;
            a->q_low[b * SR_ACT_BLOCK + i] = a->q_split_low[split] = (int8_t)(code - 128 * q);
            sum[i / 16] += code;
        }
        a->d[b] = d;
        a->s16[2 * b] = d * (float)sum[0];
        a->s16[2 * b + 1] = d * (float)sum[1];
        a->s32[b] = d * (float)(sum[0] + sum[1]);
    }
}

/* Activation elements [at, at + n) of token t, as the kernels of this type see them. */
static void read_acts(const struct acts *a, int32_t t, int64_t at, int64_t n, int quantized, float *out)
{
    const int8_t *q = a->q + t * a->pad, *low = a->q_low + t * a->pad;
    const float *d = a->d + t * (a->pad / SR_ACT_BLOCK), *x = a->x + t * a->x_stride;
    for (int64_t i = at; i < at + n; i++) out[i - at] = quantized ? d[i / SR_ACT_BLOCK] * (float)(128 * q[i] + low[i]) : x[i];
}

static void matvec(const struct matvec_args *a, sr_dtype dtype, int quantized)
{
    float w[CHUNK], x[CHUNK];
    for (int64_t r = 0; r < a->n_rows; r++) {
        for (int32_t t = 0; t < a->n; t++) a->y[t * a->y_stride + r] = 0.0f;
        const uint8_t *row = a->w + (size_t)r * a->row_bytes;
        for (int64_t at = 0; at < a->n_in; at += CHUNK) {
            const int64_t n = a->n_in - at < CHUNK ? a->n_in - at : CHUNK;
            sr_dequantize_row(dtype, row + sr_row_bytes(dtype, at), w, n);
            for (int32_t t = 0; t < a->n; t++) {
                float sum = a->y[t * a->y_stride + r];
                read_acts(a->acts, t, at, n, quantized, x);
                for (int64_t i = 0; i < n; i++) sum += w[i] * x[i];
                a->y[t * a->y_stride + r] = sum;
            }
        }
        for (int32_t t = 0; a->bias && t < a->n; t++) a->y[t * a->y_stride + r] += a->bias[r];
    }
}

void sr_matvec_f32_scalar(const struct matvec_args *a) { matvec(a, SR_DTYPE_F32, 0); }
void sr_matvec_f16_scalar(const struct matvec_args *a) { matvec(a, SR_DTYPE_F16, 0); }
void sr_matvec_bf16_scalar(const struct matvec_args *a) { matvec(a, SR_DTYPE_BF16, 0); }
void sr_matvec_q4_0_scalar(const struct matvec_args *a) { matvec(a, SR_DTYPE_Q4_0, 1); }
void sr_matvec_q4_1_scalar(const struct matvec_args *a) { matvec(a, SR_DTYPE_Q4_1, 1); }
void sr_matvec_q5_0_scalar(const struct matvec_args *a) { matvec(a, SR_DTYPE_Q5_0, 1); }
void sr_matvec_q5_1_scalar(const struct matvec_args *a) { matvec(a, SR_DTYPE_Q5_1, 1); }
void sr_matvec_q8_0_scalar(const struct matvec_args *a) { matvec(a, SR_DTYPE_Q8_0, 1); }
void sr_matvec_q2_k_scalar(const struct matvec_args *a) { matvec(a, SR_DTYPE_Q2_K, 1); }
void sr_matvec_q3_k_scalar(const struct matvec_args *a) { matvec(a, SR_DTYPE_Q3_K, 1); }
void sr_matvec_q4_k_scalar(const struct matvec_args *a) { matvec(a, SR_DTYPE_Q4_K, 1); }
void sr_matvec_q5_k_scalar(const struct matvec_args *a) { matvec(a, SR_DTYPE_Q5_K, 1); }
void sr_matvec_q6_k_scalar(const struct matvec_args *a) { matvec(a, SR_DTYPE_Q6_K, 1); }
void sr_matvec_iq4_nl_scalar(const struct matvec_args *a) { matvec(a, SR_DTYPE_IQ4_NL, 1); }

void sr_dequant_f32_scalar(const uint8_t *src, float *dst, int64_t n) { sr_dequantize_row(SR_DTYPE_F32, src, dst, n); }
void sr_dequant_f16_scalar(const uint8_t *src, float *dst, int64_t n) { sr_dequantize_row(SR_DTYPE_F16, src, dst, n); }
void sr_dequant_bf16_scalar(const uint8_t *src, float *dst, int64_t n) { sr_dequantize_row(SR_DTYPE_BF16, src, dst, n); }
void sr_dequant_q4_0_scalar(const uint8_t *src, float *dst, int64_t n) { sr_dequantize_row(SR_DTYPE_Q4_0, src, dst, n); }
void sr_dequant_q4_1_scalar(const uint8_t *src, float *dst, int64_t n) { sr_dequantize_row(SR_DTYPE_Q4_1, src, dst, n); }
void sr_dequant_q5_0_scalar(const uint8_t *src, float *dst, int64_t n) { sr_dequantize_row(SR_DTYPE_Q5_0, src, dst, n); }
void sr_dequant_q5_1_scalar(const uint8_t *src, float *dst, int64_t n) { sr_dequantize_row(SR_DTYPE_Q5_1, src, dst, n); }
void sr_dequant_q8_0_scalar(const uint8_t *src, float *dst, int64_t n) { sr_dequantize_row(SR_DTYPE_Q8_0, src, dst, n); }
void sr_dequant_q2_k_scalar(const uint8_t *src, float *dst, int64_t n) { sr_dequantize_row(SR_DTYPE_Q2_K, src, dst, n); }
void sr_dequant_q3_k_scalar(const uint8_t *src, float *dst, int64_t n) { sr_dequantize_row(SR_DTYPE_Q3_K, src, dst, n); }
void sr_dequant_q4_k_scalar(const uint8_t *src, float *dst, int64_t n) { sr_dequantize_row(SR_DTYPE_Q4_K, src, dst, n); }
void sr_dequant_q5_k_scalar(const uint8_t *src, float *dst, int64_t n) { sr_dequantize_row(SR_DTYPE_Q5_K, src, dst, n); }
void sr_dequant_q6_k_scalar(const uint8_t *src, float *dst, int64_t n) { sr_dequantize_row(SR_DTYPE_Q6_K, src, dst, n); }
void sr_dequant_iq4_nl_scalar(const uint8_t *src, float *dst, int64_t n) { sr_dequantize_row(SR_DTYPE_IQ4_NL, src, dst, n); }

/* ---- many tokens: packed is f32 [32 tokens][padded], zero where there is nothing --------------------------------- */

static void round_to_bf16(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] = sr_f32_of_bf16(sr_bf16_of_f32(x[i]));
}

void sr_gemm_pack_scalar(const struct gemm_pack_args *a)
{
    const size_t padded = (size_t)sr_gemm_padded(a->n_in), n_in = (size_t)a->n_in;
    float *out = a->packed;
    for (int32_t t = 0; t < SR_GEMM_TOKENS; t++, out += padded) {
        const size_t n = t < a->n ? n_in : 0;
        memcpy(out, a->x + (t < a->n ? t : 0) * a->x_stride, n * sizeof(float));
        memset(out + n, 0, (padded - n) * sizeof(float));
    }
}

void sr_gemm_bf16_pack_scalar(const struct gemm_pack_args *a)
{
    sr_gemm_pack_scalar(a);
    round_to_bf16(a->packed, SR_GEMM_TOKENS * sr_gemm_padded(a->n_in));
}

/* w: n_in floats, row r of the panel. */
static void multiply_row(const struct gemm_args *a, const float *w, int32_t r)
{
    for (int32_t t = 0; t < a->n; t++) {
        const uint8_t *block = a->packed + (size_t)(t / SR_GEMM_TOKENS) * sr_gemm_block_bytes(a->n_in);
        const float *x = (const float *)(const void *)block + t % SR_GEMM_TOKENS * sr_gemm_padded(a->n_in);
        float sum = 0.0f;
        for (int64_t i = 0; i < a->n_in; i++) sum += w[i] * x[i];
        a->y[t * a->y_stride + r] = sum + (a->bias ? a->bias[r] : 0.0f);
    }
}

void sr_gemm_scalar(const struct gemm_args *a)
{
    for (int32_t r = 0; r < a->n_rows; r++) {
        a->dequant(a->w + (size_t)r * a->row_bytes, a->scratch, a->n_in);
        multiply_row(a, a->scratch, r);
    }
}

void sr_gemm_bf16_scalar(const struct gemm_args *a)
{
    for (int32_t r = 0; r < a->n_rows; r++) {
        a->dequant(a->w + (size_t)r * a->row_bytes, a->scratch, a->n_in);
        round_to_bf16(a->scratch, a->n_in);
        multiply_row(a, a->scratch, r);
    }
}
