/* SPDX-License-Identifier: Apache-2.0
 *
 * One table holds everything that is known of a type: its size, where its block scales lie, and how one block is
 * read. The block readers are written element by element from the formulas of docs/formats.md; they are the
 * specification that the fast kernels are tested against, so products stay f32 and are never contracted.
 */
#include "formats/quant.h"

#include "base/half.h"
#include "formats/quant_k.h"

#include <assert.h>
#include <math.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF /* gcc has it off under -std=c11 and does not know the pragma */
#endif

#define NO_SCALE (-1)

typedef void block_read_fn(const uint8_t *block, float *dst);

struct type_row {
    struct dtype_traits traits; /* block_elems 0: the layout is not known here */
    int16_t scale_at[2];        /* byte offsets of the f16 scales in a block */
    block_read_fn *read;        /* NULL: named and sized, but not readable here */
};

static const float iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static uint16_t load_u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static uint32_t load_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static float load_f16(const uint8_t *p) { return sr_f32_of_f16(load_u16(p)); }

/* Low nibbles hold the first half of a 32-element block, high nibbles the second. */
static int32_t nibble_of(const uint8_t *qs, int e) { return e < 16 ? qs[e] & 15 : qs[e - 16] >> 4; }

/* ---- 1 and 32 elements per block ---------------------------------------------------------------------------- */

static void read_f32(const uint8_t *b, float *y) { *y = sr_f32_of_bits(load_u32(b)); }
static void read_f16(const uint8_t *b, float *y) { *y = load_f16(b); }
static void read_bf16(const uint8_t *b, float *y) { *y = sr_f32_of_bf16(load_u16(b)); }

static void read_q4_0(const uint8_t *b, float *y)
{
    const float d = load_f16(b);
    for (int e = 0; e < 32; e++) y[e] = (float)(nibble_of(b + 2, e) - 8) * d;
}

static void read_q4_1(const uint8_t *b, float *y)
{
    const float d = load_f16(b), m = load_f16(b + 2);
    for (int e = 0; e < 32; e++) y[e] = (float)nibble_of(b + 4, e) * d + m;
}

static void read_q5_0(const uint8_t *b, float *y)
{
    const float d = load_f16(b);
    const uint32_t high = load_u32(b + 2);
    for (int e = 0; e < 32; e++) {
        int32_t q = nibble_of(b + 6, e) | (int32_t)((high >> e) & 1u) << 4;
        y[e] = (float)(q - 16) * d;
    }
}

static void read_q5_1(const uint8_t *b, float *y)
{
    const float d = load_f16(b), m = load_f16(b + 2);
    const uint32_t high = load_u32(b + 4);
    for (int e = 0; e < 32; e++) {
        int32_t q = nibble_of(b + 8, e) | (int32_t)((high >> e) & 1u) << 4;
        y[e] = (float)q * d + m;
    }
}

static void read_q8_0(const uint8_t *b, float *y)
{
    const float d = load_f16(b);
    for (int e = 0; e < 32; e++) y[e] = (float)(int8_t)b[2 + e] * d;
}

static void read_iq4_nl(const uint8_t *b, float *y)
{
    const float d = load_f16(b);
    for (int e = 0; e < 32; e++) y[e] = d * iq4_values[nibble_of(b + 2, e)];
}

/* ---- 256 elements per block --------------------------------------------------------------------------------- */

/* Two bits per element: each run of 128 elements shares 32 bytes, 32 elements per bit pair. */
static int32_t two_bits_of(const uint8_t *qs, int e)
{
    return qs[32 * (e / 128) + e % 32] >> (2 * ((e % 128) / 32)) & 3;
}

static void read_q2_k(const uint8_t *b, float *y)
{
    const uint8_t *scales = b, *qs = b + 16;
    const float d = load_f16(b + 80), dmin = load_f16(b + 82);
    for (int e = 0; e < 256; e++) {
        const uint8_t s = scales[e / 16];
        y[e] = d * (float)(s & 15) * (float)two_bits_of(qs, e) - dmin * (float)(s >> 4);
    }
}

static int32_t q3_k_scale(const uint8_t *sc, int g)
{
    int32_t low = g < 8 ? sc[g] & 15 : sc[g - 8] >> 4;
    int32_t high = sc[8 + g % 4] >> (2 * (g / 4)) & 3;
    return (low | high << 4) - 32;
}

static void read_q3_k(const uint8_t *b, float *y)
{
    const uint8_t *hmask = b, *qs = b + 32;
    const float d = load_f16(b + 108);
    for (int e = 0; e < 256; e++) {
        int32_t q = two_bits_of(qs, e) - ((hmask[e % 32] >> (e / 32) & 1) ? 0 : 4);
        y[e] = d * (float)q3_k_scale(b + 96, e / 16) * (float)q;
    }
}

/* Six-bit scale and minimum j of Q4_K and Q5_K, from their 12 packed bytes. */
static void k_scale_min(const uint8_t *sc, int j, float *scale, float *min)
{
    if (j < 4) {
        *scale = (float)(sc[j] & 63);
        *min = (float)(sc[j + 4] & 63);
    } else {
        *scale = (float)((sc[j + 4] & 15) | (sc[j - 4] >> 6) << 4);
        *min = (float)(sc[j + 4] >> 4 | (sc[j] >> 6) << 4);
    }
}

static void read_q4_k(const uint8_t *b, float *y)
{
    const uint8_t *qs = b + 16;
    const float d = load_f16(b), dmin = load_f16(b + 2);
    for (int j = 0; j < 8; j++) {
        float scale, min;
        k_scale_min(b + 4, j, &scale, &min);
        for (int l = 0; l < 32; l++) {
            int32_t q = qs[32 * (j / 2) + l] >> (4 * (j % 2)) & 15;
            y[32 * j + l] = d * scale * (float)q - dmin * min;
        }
    }
}

static void read_q5_k(const uint8_t *b, float *y)
{
    const uint8_t *qh = b + 16, *qs = b + 48;
    const float d = load_f16(b), dmin = load_f16(b + 2);
    for (int j = 0; j < 8; j++) {
        float scale, min;
        k_scale_min(b + 4, j, &scale, &min);
        for (int l = 0; l < 32; l++) {
            int32_t q = (qs[32 * (j / 2) + l] >> (4 * (j % 2)) & 15) | (qh[l] >> j & 1) << 4;
            y[32 * j + l] = d * scale * (float)q - dmin * min;
        }
    }
}

static void read_q6_k(const uint8_t *b, float *y)
{
    const uint8_t *ql = b, *qh = b + 128;
    const float d = load_f16(b + 208);
    for (int e = 0; e < 256; e++) {
        const int n = e / 128, k = e % 128 / 32, l = e % 32;
        int32_t low = ql[64 * n + 32 * (k & 1) + l] >> (k >= 2 ? 4 : 0) & 15;
        int32_t high = qh[32 * n + l] >> (2 * k) & 3;
        y[e] = d * (float)(int8_t)b[192 + e / 16] * (float)((low | high << 4) - 32);
    }
}

/* ---- the table ---------------------------------------------------------------------------------------------- */

#define NAMED(name, elems, bytes) {{name, elems, bytes}, {NO_SCALE, NO_SCALE}, NULL}

static const struct type_row type_rows[] = {
    [0] = {{"f32", 1, 4}, {NO_SCALE, NO_SCALE}, read_f32},
    [1] = {{"f16", 1, 2}, {0, NO_SCALE}, read_f16},
    [2] = {{"q4_0", 32, 18}, {0, NO_SCALE}, read_q4_0},
    [3] = {{"q4_1", 32, 20}, {0, 2}, read_q4_1},
    [6] = {{"q5_0", 32, 22}, {0, NO_SCALE}, read_q5_0},
    [7] = {{"q5_1", 32, 24}, {0, 2}, read_q5_1},
    [8] = {{"q8_0", 32, 34}, {0, NO_SCALE}, read_q8_0},
    [9] = NAMED("q8_1", 32, 36),
    [10] = {{"q2_K", 256, 84}, {80, 82}, read_q2_k},
    [11] = {{"q3_K", 256, 110}, {108, NO_SCALE}, read_q3_k},
    [12] = {{"q4_K", 256, 144}, {0, 2}, read_q4_k},
    [13] = {{"q5_K", 256, 176}, {0, 2}, read_q5_k},
    [14] = {{"q6_K", 256, 210}, {208, NO_SCALE}, read_q6_k},
    [15] = NAMED("q8_K", 256, 292),
    [16] = NAMED("iq2_xxs", 256, 66),
    [17] = NAMED("iq2_xs", 256, 74),
    [18] = NAMED("iq3_xxs", 256, 98),
    [19] = NAMED("iq1_s", 256, 50),
    [20] = {{"iq4_nl", 32, 18}, {0, NO_SCALE}, read_iq4_nl},
    [21] = NAMED("iq3_s", 256, 110),
    [22] = NAMED("iq2_s", 256, 82),
    [23] = NAMED("iq4_xs", 256, 136),
    [24] = NAMED("i8", 1, 1),
    [25] = NAMED("i16", 1, 2),
    [26] = NAMED("i32", 1, 4),
    [27] = NAMED("i64", 1, 8),
    [28] = NAMED("f64", 1, 8),
    [29] = NAMED("iq1_m", 256, 56),
    [30] = {{"bf16", 1, 2}, {NO_SCALE, NO_SCALE}, read_bf16},
    [34] = NAMED("tq1_0", 256, 54),
    [35] = NAMED("tq2_0", 256, 66),
    [39] = NAMED("mxfp4", 32, 17),
    [40] = NAMED("nvfp4", 64, 36),
    [41] = NAMED("q1_0", 128, 18),
    [42] = NAMED("q2_0", 0, 0),
};

static const struct type_row *find_row(int64_t type_id)
{
    const int64_t n = (int64_t)(sizeof(type_rows) / sizeof(type_rows[0]));
    if (type_id < 0 || type_id >= n || !type_rows[type_id].traits.name) return NULL;
    return &type_rows[type_id];
}

const struct dtype_traits *sr_dtype_find(int64_t type_id)
{
    const struct type_row *row = find_row(type_id);
    return row && row->read ? &row->traits : NULL;
}

const struct dtype_traits *sr_gguf_type_find(int64_t type_id)
{
    const struct type_row *row = find_row(type_id);
    return row ? &row->traits : NULL;
}

const char *sr_gguf_type_name(int64_t type_id)
{
    const struct type_row *row = find_row(type_id);
    return row ? row->traits.name : NULL;
}

const char *sr_dtype_name(sr_dtype dtype)
{
    if (dtype == SR_DTYPE_F8_E4M3) return "f8_e4m3";
    const struct dtype_traits *t = sr_dtype_find((int64_t)dtype);
    return t ? t->name : NULL;
}

static const struct type_row *readable_row(sr_dtype dtype, int64_t n)
{
    const struct type_row *row = find_row((int64_t)dtype);
    assert(row && row->read && n >= 0 && n % row->traits.block_elems == 0);
    (void)n;
    return row;
}

size_t sr_row_bytes(sr_dtype dtype, int64_t n)
{
    if (dtype == SR_DTYPE_F8_E4M3) return (size_t)n;
    const struct dtype_traits *t = &readable_row(dtype, n)->traits;
    return (size_t)(n / t->block_elems) * (size_t)t->block_bytes;
}

void sr_dequantize_row(sr_dtype dtype, const void *src, float *dst, int64_t n)
{
    const uint8_t *b = src;
    if (dtype == SR_DTYPE_F8_E4M3) {
        for (int64_t i = 0; i < n; i++) dst[i] = sr_f32_of_f8(b[i]);
        return;
    }
    const struct type_row *row = readable_row(dtype, n);
    switch (dtype) { /* one element per block: no indirect call for each */
    case SR_DTYPE_F32: for (int64_t i = 0; i < n; i++) read_f32(b + 4 * i, dst + i); return;
    case SR_DTYPE_F16: for (int64_t i = 0; i < n; i++) read_f16(b + 2 * i, dst + i); return;
    case SR_DTYPE_BF16: for (int64_t i = 0; i < n; i++) read_bf16(b + 2 * i, dst + i); return;
    default: break;
    }
    for (int64_t i = 0; i < n; i += row->traits.block_elems, b += row->traits.block_bytes) row->read(b, dst + i);
}

/* ---- quantisers --------------------------------------------------------------------------------------------- */

static void store_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static void store_u32(uint8_t *p, uint32_t v)
{
    store_u16(p, (uint16_t)v);
    store_u16(p + 2, (uint16_t)(v >> 16));
}

/* 1/d, or 0 where d is 0 or so small that 1/d overflows (such a d is stored as f16 zero, any code means 0). */
static float inverse_of(float d)
{
    float id = d != 0.0f ? 1.0f / d : 0.0f;
    return isfinite(id) ? id : 0.0f;
}

static float signed_extreme(const float *x)
{
    float m = 0.0f;
    for (int e = 0; e < 32; e++)
        if (fabsf(x[e]) > fabsf(m)) m = x[e];
    return m;
}

static uint32_t code_of(float scaled, int32_t max)
{
    int32_t q = (int32_t)scaled;
    return (uint32_t)(q > max ? max : q);
}

/* codes[32] in [0, 31] to nibbles and, for five-bit types, the fifth bits. */
static void store_codes(const uint32_t *codes, uint8_t *qs, uint8_t *qh)
{
    uint32_t high = 0;
    for (int e = 0; e < 16; e++) {
        qs[e] = (uint8_t)((codes[e] & 15u) | (codes[e + 16] & 15u) << 4);
        high |= (codes[e] >> 4) << e | (codes[e + 16] >> 4) << (e + 16);
    }
    if (qh) store_u32(qh, high);
}

/* Q4_0 and Q5_0: the value of largest magnitude lands exactly on the lowest code. Returns the scale. */
static float quantize_symmetric(const float *x, int32_t half, uint32_t *codes)
{
    const float d = signed_extreme(x) / (float)-half, id = inverse_of(d);
    for (int e = 0; e < 32; e++) codes[e] = code_of(x[e] * id + ((float)half + 0.5f), 2 * half - 1);
    return d;
}

/* Q4_1 and Q5_1: codes 0..max over [min, min + max*d]. */
static float quantize_affine(const float *x, int32_t max, uint32_t *codes, float *min_out)
{
    float lo = x[0], hi = x[0];
    for (int e = 1; e < 32; e++) {
        if (x[e] < lo) lo = x[e];
        if (x[e] > hi) hi = x[e];
    }
    const float d = (hi - lo) / (float)max, id = inverse_of(d);
    for (int e = 0; e < 32; e++) codes[e] = code_of((x[e] - lo) * id + 0.5f, max);
    *min_out = lo;
    return d;
}

static float quantize_q8_0(const float *x, uint8_t *qs)
{
    const float d = fabsf(signed_extreme(x)) / 127.0f, id = inverse_of(d);
    for (int e = 0; e < 32; e++) qs[e] = (uint8_t)(int8_t)roundf(x[e] * id);
    return d;
}

static void quantize_block(sr_dtype dtype, const float *x, uint8_t *b)
{
    uint32_t codes[32];
    float d, min = 0.0f;
    switch (dtype) {
    case SR_DTYPE_Q4_0: d = quantize_symmetric(x, 8, codes); store_codes(codes, b + 2, NULL); break;
    case SR_DTYPE_Q5_0: d = quantize_symmetric(x, 16, codes); store_codes(codes, b + 6, b + 2); break;
    case SR_DTYPE_Q4_1: d = quantize_affine(x, 15, codes, &min); store_codes(codes, b + 4, NULL); break;
    case SR_DTYPE_Q5_1: d = quantize_affine(x, 31, codes, &min); store_codes(codes, b + 8, b + 4); break;
    case SR_DTYPE_Q4_K: sr_quantize_block_q4_k(x, b); return;
    case SR_DTYPE_Q5_K: sr_quantize_block_q5_k(x, b); return;
    case SR_DTYPE_Q6_K: sr_quantize_block_q6_k(x, b); return;
    default: d = quantize_q8_0(x, b + 2); break;
    }
    store_u16(b, sr_f16_of_f32(d));
    if (dtype == SR_DTYPE_Q4_1 || dtype == SR_DTYPE_Q5_1) store_u16(b + 2, sr_f16_of_f32(min));
}

static void store_floats(sr_dtype dtype, const float *src, uint8_t *dst, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (dtype == SR_DTYPE_F32) store_u32(dst + 4 * i, sr_bits_of_f32(src[i]));
        else if (dtype == SR_DTYPE_F8_E4M3) dst[i] = sr_f8_of_f32(src[i]);
        else store_u16(dst + 2 * i, dtype == SR_DTYPE_F16 ? sr_f16_of_f32(src[i]) : sr_bf16_of_f32(src[i]));
    }
}

/* f16 scales reach 65504, and Q4_1 and Q5_1 store the minimum itself: larger input has no representation. */
static sr_status check_block_input(const struct type_row *row, const float *x, int64_t at, sr_error *err)
{
    const float limit = 65504.0f;
    for (int e = 0; e < row->traits.block_elems; e++)
        if (!(fabsf(x[e]) <= limit))
            return sr_fail(err, SR_ERR_NUMERIC, "quantize to %s: element %lld is %g, limit is %g in magnitude",
                           row->traits.name, (long long)(at + e), (double)x[e], (double)limit);
    return SR_OK;
}

sr_status sr_quantize_row(sr_dtype dtype, const float *src, void *dst, int64_t n, sr_error *err)
{
    uint8_t *b = dst;
    switch (dtype) {
    case SR_DTYPE_F32: case SR_DTYPE_F16: case SR_DTYPE_BF16: case SR_DTYPE_F8_E4M3:
        store_floats(dtype, src, dst, n);
        return SR_OK;
    case SR_DTYPE_Q4_0: case SR_DTYPE_Q4_1: case SR_DTYPE_Q5_0: case SR_DTYPE_Q5_1: case SR_DTYPE_Q8_0:
    case SR_DTYPE_Q4_K: case SR_DTYPE_Q5_K: case SR_DTYPE_Q6_K:
        break;
    default:
        return sr_fail(err, SR_ERR_UNSUPPORTED, "quantize to %s: only f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q4_K q5_K q6_K",
                       sr_dtype_name(dtype));
    }
    const struct type_row *row = readable_row(dtype, n);
    for (int64_t i = 0; i < n; i += row->traits.block_elems, b += row->traits.block_bytes) {
        SR_TRY(check_block_input(row, src + i, i, err));
        quantize_block(dtype, src + i, b);
    }
    return SR_OK;
}

/* ---- non-finite search -------------------------------------------------------------------------------------- */

static int64_t find_nonfinite_f32(const uint8_t *p, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if ((load_u32(p + 4 * i) & 0x7f800000u) == 0x7f800000u) return i;
    return -1;
}

static int64_t find_nonfinite_bf16(const uint8_t *p, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if ((load_u16(p + 2 * i) & 0x7f80u) == 0x7f80u) return i;
    return -1;
}

static int64_t find_nonfinite_f8(const uint8_t *p, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if ((p[i] & 0x7fu) == 0x7fu) return i;
    return -1;
}

int64_t sr_row_find_nonfinite(sr_dtype dtype, const void *src, int64_t n)
{
    if (dtype == SR_DTYPE_F8_E4M3) return find_nonfinite_f8(src, n);
    const struct type_row *row = readable_row(dtype, n);
    if (dtype == SR_DTYPE_F32) return find_nonfinite_f32(src, n);
    if (dtype == SR_DTYPE_BF16) return find_nonfinite_bf16(src, n);
    /* f16 rows are blocks of one element whose scale is the element itself */
    const int first = row->scale_at[0], second = row->scale_at[1] == NO_SCALE ? first : row->scale_at[1];
    const uint8_t *b = src;
    for (int64_t i = 0; i < n; i += row->traits.block_elems, b += row->traits.block_bytes)
        if ((load_u16(b + first) & 0x7c00u) == 0x7c00u || (load_u16(b + second) & 0x7c00u) == 0x7c00u) return i;
    return -1;
}
