/* SPDX-License-Identifier: Apache-2.0
 *
 * Checks of the matrix products. Weights are random blocks with sane scales; the reference is a double-precision
 * product of exactly the values that the kernel is defined to see (dequantized weights; activations as quantized, or
 * rounded to bf16 where the variant is defined so). A sum of n products in f32 in any order is then within
 * n u sum |w x|; the roundings of a block's scale add a few u more.
 */
#include "check.h"

#include "base/half.h"
#include "formats/quant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_TYPES = 14 };

/* Where a block keeps f16 scales: random bits there would be infinities. */
static const struct weight_type { const char *name; sr_dtype dtype; int at[2]; } types[N_TYPES] = {
    {"f32", SR_DTYPE_F32, {-1, -1}}, {"f16", SR_DTYPE_F16, {-1, -1}}, {"bf16", SR_DTYPE_BF16, {-1, -1}},
    {"q4_0", SR_DTYPE_Q4_0, {0, -1}}, {"q4_1", SR_DTYPE_Q4_1, {0, 2}}, {"q5_0", SR_DTYPE_Q5_0, {0, -1}},
    {"q5_1", SR_DTYPE_Q5_1, {0, 2}}, {"q8_0", SR_DTYPE_Q8_0, {0, -1}}, {"q2_k", SR_DTYPE_Q2_K, {80, 82}},
    {"q3_k", SR_DTYPE_Q3_K, {108, -1}}, {"q4_k", SR_DTYPE_Q4_K, {0, 2}}, {"q5_k", SR_DTYPE_Q5_K, {0, 2}},
    {"q6_k", SR_DTYPE_Q6_K, {208, -1}}, {"iq4_nl", SR_DTYPE_IQ4_NL, {0, -1}}};

static int is_float(const struct weight_type *t) { return t->at[0] < 0; }

static const struct weight_type *type_of(const char *family)
{
    const char *suffix = strchr(family, '_') + 1;
    for (int i = 0; i < N_TYPES; i++)
        if (strcmp(types[i].name, suffix) == 0) return &types[i];
    abort();
}

static void put_f16(uint8_t *p, double v)
{
    const uint16_t h = sr_f16_of_f32((float)v);
    memcpy(p, &h, 2);
}

/* n elements of a row, random. */
static void fill_row(struct check *c, const struct weight_type *t, uint8_t *row, int64_t n)
{
    const size_t bytes = sr_row_bytes(t->dtype, n);
    if (is_float(t)) {
        for (int64_t i = 0; i < n; i++) {
            const float v = (float)sr_check_normal(c);
            sr_error err;
            if (sr_quantize_row(t->dtype, &v, row + sr_row_bytes(t->dtype, i), 1, &err) != SR_OK) abort();
        }
        return;
    }
    for (size_t i = 0; i < bytes; i++) row[i] = (uint8_t)sr_rng_u64(&c->rng);
    const size_t block = sr_row_bytes(t->dtype, sr_dtype_find(t->dtype)->block_elems);
    for (size_t b = 0; b < bytes; b += block)
        for (int s = 0; s < 2; s++)
            if (t->at[s] >= 0) put_f16(row + b + t->at[s], 0.01 * sr_check_normal(c));
}

static uint8_t *make_rows(struct check *c, const struct weight_type *t, int64_t n_rows, int64_t n_in)
{
    const size_t bytes = sr_row_bytes(t->dtype, n_in);
    uint8_t *w = sr_check_in(c, (size_t)n_rows * bytes);
    const int64_t distinct = n_rows < 64 ? n_rows : 64;
    for (int64_t r = 0; r < distinct; r++) fill_row(c, t, w + (size_t)r * bytes, n_in);
    for (int64_t r = distinct; r < n_rows; r++) memcpy(w + (size_t)r * bytes, w + (size_t)(r % distinct) * bytes, bytes);
    return w;
}

static float *make_floats(struct check *c, int64_t n, double scale)
{
    float *x = sr_check_in(c, (size_t)n * sizeof(float));
    sr_check_fill_normal(c, x, n, scale);
    return x;
}

/* ---- quantize ------------------------------------------------------------------------------------------------------ */

static int64_t padded(int64_t n) { return (n + SR_ACT_PAD - 1) / SR_ACT_PAD * SR_ACT_PAD; }

static struct quantize_args quantize_buffers(struct check *c, const float *x, int64_t n)
{
    const size_t pad = (size_t)padded(n);
    return (struct quantize_args){.x = x, .n = n, .pad = (int64_t)pad, .q = sr_check_out(c, pad), .q_low = sr_check_out(c, pad),
                                  .q_split = sr_check_out(c, pad), .q_split_low = sr_check_out(c, pad),
                                  .d = sr_check_out(c, pad / 32 * sizeof(float)), .s32 = sr_check_out(c, pad / 32 * sizeof(float)),
                                  .s16 = sr_check_out(c, pad / 16 * sizeof(float))};
}

void sr_spoilt_quantize(const struct quantize_args *a)
{
    ((sr_quantize_fn *)sr_check_now->real)(a);
    a->q_low[a->n / 2] ^= 1;
}

static int32_t code_of(const int8_t *q, const int8_t *low, int64_t i) { return 128 * q[i] + low[i]; }

/* Against the input: x within half a step of d c; sums are those of the stored codes. */
static void check_quantize_meaning(struct check *c, const struct quantize_args *a)
{
    for (int64_t i = 0; i < a->pad; i++) {
        const double x = i < a->n ? a->x[i] : 0.0, d = a->d[i / 32];
        const int64_t split = i / 128 * 128 + i / 16 % 2 * 64 + i / 32 % 4 * 16 + i % 16;
        if (a->q[i] != a->q_split[split] || a->q_low[i] != a->q_split_low[split]) sr_check_fail(c, "split order of %lld", (long long)i);
        if (!sr_check_near(c, "d * c", i, d * code_of(a->q, a->q_low, i), x, d * (0.5 + 4.0 * SR_ACT_MAX * SR_CHECK_U) + 1e-30)) return;
    }
    for (int64_t h = 0; h < a->pad / 16; h++) {
        int sum = 0, other = 0;
        for (int i = 0; i < 16; i++) {
            sum += code_of(a->q, a->q_low, 16 * h + i);
            other += code_of(a->q, a->q_low, 16 * (h ^ 1) + i);
        }
        const double d = a->d[h / 2];
        if (!sr_check_near(c, "s16", h, a->s16[h], d * sum, SR_CHECK_U * fabs(d * sum))) return;
        if (!sr_check_near(c, "s32", h / 2, a->s32[h / 2], d * (sum + other), SR_CHECK_U * fabs(d * (sum + other)))) return;
    }
}

static void check_quantize_equal(struct check *c, const struct quantize_args *got)
{
    const struct quantize_args want = quantize_buffers(c, got->x, got->n);
    ((sr_quantize_fn *)c->scalar)(&want);
    sr_check_same(c, "q", got->q, want.q, (size_t)got->pad);
    sr_check_same(c, "q_low", got->q_low, want.q_low, (size_t)got->pad);
    sr_check_same(c, "q_split", got->q_split, want.q_split, (size_t)got->pad);
    sr_check_same(c, "q_split_low", got->q_split_low, want.q_split_low, (size_t)got->pad);
    for (int64_t b = 0; b < got->pad / 32; b++) { /* NaN is NaN, whatever its bits */
        sr_check_near(c, "d", b, got->d[b], want.d[b], 0);
        sr_check_near(c, "s32", b, got->s32[b], want.s32[b], 0);
        sr_check_near(c, "s16", 2 * b, got->s16[2 * b], want.s16[2 * b], 0);
        sr_check_near(c, "s16", 2 * b + 1, got->s16[2 * b + 1], want.s16[2 * b + 1], 0);
    }
}

static void check_quantize(struct check *c, int64_t n, double scale)
{
    float *x = make_floats(c, n, scale);
    if (n >= 64)
        for (int i = 0; i < 32; i++) x[32 + i] = i < 16 ? 127.0f : (float)i - 1.0f / 256; /* ties: a step is 1 / 128 */
    const struct quantize_args got = quantize_buffers(c, x, n);
    ((sr_quantize_fn *)c->fn)(&got);
    check_quantize_meaning(c, &got);
    check_quantize_equal(c, &got);
}

/* What is no number must not come out as one, nor touch other blocks. */
static void check_quantize_special(struct check *c, float special)
{
    float *x = make_floats(c, 96, 1.0);
    x[32 + sr_check_pick(c, 32)] = special;
    const struct quantize_args got = quantize_buffers(c, x, 96);
    ((sr_quantize_fn *)c->fn)(&got);
    if (isfinite(got.d[1]) || !isfinite(got.d[0]) || !isfinite(got.d[2])) sr_check_fail(c, "scales beside %g: %g %g %g", (double)special,
                                                                                      (double)got.d[0], (double)got.d[1], (double)got.d[2]);
    check_quantize_equal(c, &got);
}

struct quantize_call { sr_quantize_fn *fn; struct quantize_args a; };

static void call_quantize(void *ctx)
{
    struct quantize_call *q = ctx;
    q->fn(&q->a);
}

void sr_check_quantize(struct check *c)
{
    static const int64_t lengths[] = {32, 64, 96, 512, 576, 896, 1536, 4864};
    if (c->bench) {
        struct quantize_call q = {(sr_quantize_fn *)c->fn, quantize_buffers(c, make_floats(c, 1536, 1), 1536)};
        sr_check_time(c, "n 1536", 1536 * 4, 0, call_quantize, &q);
        return;
    }
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        check_quantize(c, lengths[i], 1.0);
        check_quantize(c, lengths[i], 1e6);
        check_quantize(c, lengths[i], 0.0);
        check_quantize(c, lengths[i], 1e-32);
    }
    for (int i = 0; i < 20; i++) check_quantize_special(c, i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY);
}

/* ---- dequant ------------------------------------------------------------------------------------------------------- */

void sr_spoilt_dequant(const uint8_t *src, float *dst, int64_t n)
{
    ((sr_dequant_fn *)sr_check_now->real)(src, dst, n);
    sr_check_spoil(&dst[n / 2]);
}

struct dequant_call { sr_dequant_fn *fn; const uint8_t *row; float *out; int64_t n; };

static void call_dequant(void *ctx)
{
    struct dequant_call *d = ctx;
    d->fn(d->row, d->out, d->n);
}

void sr_check_dequant(struct check *c)
{
    static const int64_t blocks[] = {1, 2, 3, 5, 18, 19};
    const struct weight_type *t = type_of(c->family);
    const int64_t unit = is_float(t) ? 1 : sr_dtype_find(t->dtype)->block_elems;
    if (c->bench) {
        struct dequant_call d = {(sr_dequant_fn *)c->fn, make_rows(c, t, 1, 1536), sr_check_out(c, 1536 * 4), 1536};
        sr_check_time(c, "n 1536", (double)sr_row_bytes(t->dtype, 1536), 0, call_dequant, &d);
        return;
    }
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++) {
        const int64_t n = blocks[i] * unit;
        uint8_t *row = make_rows(c, t, 1, n);
        float *got = sr_check_out(c, (size_t)n * sizeof(float)), *want = sr_check_out(c, (size_t)n * sizeof(float));
        ((sr_dequant_fn *)c->fn)(row, got, n);
        sr_dequantize_row(t->dtype, row, want, n);
        sr_check_same(c, "values", got, want, (size_t)n * sizeof(float));
    }
}

/* ---- matvec -------------------------------------------------------------------------------------------------------- */

/* A dot product in double and what f32 may make of it. `extra` counts roundings per product besides the sum. */
static void check_dot(struct check *c, int64_t at, float got, const float *w, const float *x, int64_t n, double bias, double extra)
{
    double sum = 0.0, mag = 0.0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)w[i] * (double)x[i];
        mag += fabs((double)w[i] * (double)x[i]);
    }
    sr_check_near(c, "y", at, got, sum + bias, SR_CHECK_U * (((double)n + extra) * mag + 2 * fabs(sum + bias)));
}

static struct acts make_acts(struct check *c, int32_t n, int64_t n_in)
{
    const int64_t pad = padded(n_in);
    struct acts a = {.x = make_floats(c, n * n_in, 1.0), .x_stride = n_in, .pad = pad};
    int8_t *q = sr_check_in(c, (size_t)(n * pad)), *q_low = sr_check_in(c, (size_t)(n * pad));
    int8_t *q_split = sr_check_in(c, (size_t)(n * pad)), *q_split_low = sr_check_in(c, (size_t)(n * pad));
    float *d = sr_check_in(c, (size_t)(n * pad / 32) * sizeof(float)), *s32 = sr_check_in(c, (size_t)(n * pad / 32) * sizeof(float));
    float *s16 = sr_check_in(c, (size_t)(n * pad / 16) * sizeof(float));
    for (int32_t t = 0; t < n && n_in % 32 == 0; t++)
        c->k.quantize_q8(&(struct quantize_args){.x = a.x + t * n_in, .n = n_in, .pad = pad, .q = q + t * pad, .q_low = q_low + t * pad,
                                                 .q_split = q_split + t * pad, .q_split_low = q_split_low + t * pad,
                                                 .d = d + t * pad / 32, .s32 = s32 + t * pad / 32, .s16 = s16 + t * pad / 16});
    a.q = q;
    a.q_low = q_low;
    a.q_split = q_split;
    a.q_split_low = q_split_low;
    a.d = d;
    a.s32 = s32;
    a.s16 = s16;
    return a;
}

/* What a kernel is defined to see of token t. */
static void seen_acts(const struct acts *a, int32_t t, int64_t n_in, int quantized, float *out)
{
    for (int64_t i = 0; i < n_in; i++)
        out[i] = quantized ? a->d[(t * a->pad + i) / 32] * (float)code_of(a->q, a->q_low, t * a->pad + i) : a->x[t * a->x_stride + i];
}

void sr_spoilt_matvec(const struct matvec_args *a)
{
    ((sr_matvec_fn *)sr_check_now->real)(a);
    sr_check_spoil(&a->y[(a->n - 1) * a->y_stride + a->n_rows / 2]);
}

static void check_matvec(struct check *c, const struct weight_type *t, int64_t n_rows, int64_t n_in, int32_t n, int with_bias)
{
    const struct acts acts = make_acts(c, n, n_in);
    const int64_t stride = n_rows + 3;
    float *w = malloc((size_t)n_in * sizeof(float)), *x = malloc((size_t)n_in * sizeof(float));
    struct matvec_args a = {.w = make_rows(c, t, n_rows, n_in), .row_bytes = sr_row_bytes(t->dtype, n_in), .n_rows = n_rows,
                            .n_in = n_in, .acts = &acts, .n = n, .bias = with_bias ? make_floats(c, n_rows, 1.0) : NULL,
                            .y = sr_check_out(c, (size_t)((n - 1) * stride + n_rows) * sizeof(float)), .y_stride = stride};
    ((sr_matvec_fn *)c->fn)(&a);
    for (int64_t r = 0; r < n_rows; r++) {
        sr_dequantize_row(t->dtype, a.w + (size_t)r * a.row_bytes, w, n_in);
        for (int32_t i = 0; i < n; i++) {
            seen_acts(&acts, i, n_in, !is_float(t), x);
            /* kernels may sum d q and the offset of unsigned codes apart: a few roundings of terms that are up to
             * four times a block's largest |w x|, about 40 u of an average one */
            check_dot(c, i * stride + r, a.y[i * stride + r], w, x, n_in, a.bias ? a.bias[r] : 0.0, 40);
        }
    }
    /* the last token and the last rows alone: the same bits */
    const int64_t r0 = (n_rows - 1) / SR_MATVEC_ROWS * SR_MATVEC_ROWS;
    float *alone = sr_check_out(c, (size_t)(n_rows - r0) * sizeof(float));
    struct acts last = acts;
    last.x += (n - 1) * acts.x_stride;
    last.q += (n - 1) * acts.pad;
    last.q_low += (n - 1) * acts.pad;
    last.q_split += (n - 1) * acts.pad;
    last.q_split_low += (n - 1) * acts.pad;
    last.d += (n - 1) * acts.pad / 32;
    last.s32 += (n - 1) * acts.pad / 32;
    last.s16 += (n - 1) * acts.pad / 16;
    struct matvec_args few = a;
    few.w += (size_t)r0 * a.row_bytes;
    few.n_rows = n_rows - r0;
    few.n = 1;
    few.acts = &last;
    few.bias = a.bias ? a.bias + r0 : NULL;
    few.y = alone;
    ((sr_matvec_fn *)c->real)(&few);
    sr_check_same(c, "last rows and token alone", alone, &a.y[(n - 1) * stride + r0], (size_t)(n_rows - r0) * sizeof(float));
    free(w);
    free(x);
}

struct matvec_call { sr_matvec_fn *fn; struct matvec_args a; uint64_t sum; };

static void call_matvec(void *ctx)
{
    struct matvec_call *m = ctx;
    m->fn(&m->a);
}

typedef uint64_t wide __attribute__((vector_size(64)));

/* The floor: the same bytes read and xored. */
static void call_read(void *ctx)
{
    struct matvec_call *m = ctx;
    const size_t n = (size_t)m->a.n_rows * m->a.row_bytes / 256;
    wide x[4] = {{0}};
    for (size_t i = 0; i < n; i++)
        for (int j = 0; j < 4; j++) {
            wide v;
            memcpy(&v, m->a.w + 256 * i + 64 * j, sizeof(v));
            x[j] ^= v;
        }
    for (int j = 0; j < 8; j++) m->sum ^= x[0][j] ^ x[1][j] ^ x[2][j] ^ x[3][j];
}

static void bench_matvec(struct check *c, const struct weight_type *t, int64_t n_rows, int64_t n_in)
{
    const struct acts acts = make_acts(c, SR_MATVEC_TOKENS, n_in);
    struct matvec_call m = {.fn = (sr_matvec_fn *)c->fn,
                            .a = {.w = make_rows(c, t, n_rows, n_in), .row_bytes = sr_row_bytes(t->dtype, n_in), .n_rows = n_rows,
                                  .n_in = n_in, .acts = &acts, .y_stride = n_rows,
                                  .y = sr_check_out(c, (size_t)(SR_MATVEC_TOKENS * n_rows) * sizeof(float))}};
    const double bytes = (double)m.a.row_bytes * (double)n_rows;
    char label[64];
    sr_check_time(c, "read", bytes, 0, call_read, &m);
    for (m.a.n = 1; m.a.n <= SR_MATVEC_TOKENS; m.a.n *= 2) {
        snprintf(label, sizeof(label), "%lld x %lld, n %d", (long long)n_rows, (long long)n_in, m.a.n);
        sr_check_time(c, label, bytes, 2.0 * (double)(n_rows * n_in * m.a.n), call_matvec, &m);
    }
}

void sr_check_matvec(struct check *c)
{
    static const int64_t units[] = {1, 2, 3, 15, 16, 17, 18, 48, 152};
    const struct weight_type *t = type_of(c->family);
    const int64_t unit = is_float(t) ? 32 : sr_dtype_find(t->dtype)->block_elems;
    if (c->bench) {
        bench_matvec(c, t, 8192, unit == 256 ? 1536 : 576);
        bench_matvec(c, t, 2048, 1536);
        return;
    }
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (unit == 256 && units[i] > 19) continue;
        for (int32_t n = 1; n <= SR_MATVEC_TOKENS; n++)
            check_matvec(c, t, 1 + sr_check_pick(c, 40), unit * units[i], n, n & 1);
    }
    if (is_float(t))
        for (int64_t n_in = 1; n_in < 40; n_in++) check_matvec(c, t, 5, n_in, 2, 0);
}

/* ---- gemm ----------------------------------------------------------------------------------------------------------- */

void sr_spoilt_gemm_pack(const struct gemm_pack_args *a)
{
    float *x = malloc((size_t)(a->n * a->x_stride) * sizeof(float));
    struct gemm_pack_args spoilt = *a;
    memcpy(x, a->x, (size_t)((a->n - 1) * a->x_stride + a->n_in) * sizeof(float));
    sr_check_spoil(&x[(a->n - 1) * a->x_stride + a->n_in / 2]);
    x[(a->n - 1) * a->x_stride + a->n_in / 2] += 1.0f;
    spoilt.x = x;
    ((sr_gemm_pack_fn *)sr_check_now->real)(&spoilt);
    free(x);
}

void sr_spoilt_gemm(const struct gemm_args *a)
{
    ((sr_gemm_fn *)sr_check_now->real)(a);
    sr_check_spoil(&a->y[(a->n - 1) * a->y_stride + a->n_rows / 2]);
}

static uint8_t *pack_all(struct check *c, sr_gemm_pack_fn *pack, const float *x, int64_t n_in, int32_t n)
{
    const size_t block = sr_gemm_block_bytes(n_in);
    const int32_t n_blocks = (n + SR_GEMM_TOKENS - 1) / SR_GEMM_TOKENS;
    uint8_t *packed = sr_check_out(c, (size_t)n_blocks * block);
    for (int32_t b = 0; b < n_blocks; b++) {
        const int32_t left = n - b * SR_GEMM_TOKENS;
        pack(&(struct gemm_pack_args){.x = x + (int64_t)b * SR_GEMM_TOKENS * n_in, .x_stride = n_in, .n_in = n_in,
                                      .n = left < SR_GEMM_TOKENS ? left : SR_GEMM_TOKENS, .packed = packed + (size_t)b * block});
    }
    return packed;
}

/* The bf16 families round both factors to bf16 (to nearest, ties to even) before exact products. */
static void round_bf16(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] = sr_f32_of_bf16(sr_bf16_of_f32(x[i]));
}

static int is_bf16(const struct check *c) { return strstr(c->family, "bf16") != NULL; }

static void check_gemm(struct check *c, sr_gemm_pack_fn *pack, sr_gemm_fn *gemm, const struct weight_type *t, int32_t n_rows,
                       int64_t n_in, int32_t n)
{
    const int bf16 = is_bf16(c);
    const int64_t stride = n_rows + 5;
    float *x = make_floats(c, n * n_in, 1.0), *w = malloc((size_t)n_in * sizeof(float));
    struct gemm_args a = {.w = make_rows(c, t, n_rows, n_in), .row_bytes = sr_row_bytes(t->dtype, n_in),
                          .dequant = sr_cpu_dequant_of(&c->k, t->dtype), .n_in = n_in, .n_rows = n_rows, .n = n,
                          .packed = pack_all(c, pack, x, n_in, n), .bias = n & 1 ? make_floats(c, n_rows, 1.0) : NULL,
                          .y = sr_check_out(c, (size_t)((n - 1) * stride + n_rows) * sizeof(float)), .y_stride = stride,
                          .scratch = sr_check_out(c, sr_gemm_scratch_bytes(n_in))};
    gemm(&a);
    if (bf16) round_bf16(x, n * n_in);
    for (int32_t r = 0; r < n_rows; r++) {
        sr_dequantize_row(t->dtype, a.w + (size_t)r * a.row_bytes, w, n_in);
        if (bf16) round_bf16(w, n_in);
        for (int32_t i = 0; i < n; i++)
            check_dot(c, i * stride + r, a.y[i * stride + r], w, x + i * n_in, n_in, a.bias ? a.bias[r] : 0.0, 2);
    }
    free(w);
}

static void check_gemm_shapes(struct check *c, sr_gemm_pack_fn *pack, sr_gemm_fn *gemm)
{
    static const int32_t tokens[] = {1, 2, 15, 16, 17, 31, 32, 33, 50, 96};
    for (size_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++)
        for (int k = 0; k < N_TYPES; k++) {
            const int64_t unit = is_float(&types[k]) ? 1 : sr_dtype_find(types[k].dtype)->block_elems;
            const int64_t n_in = unit * (1 + sr_check_pick(c, unit == 1 ? 200 : 512 / unit));
            const int32_t n_rows = i & 1 ? SR_GEMM_ROWS : 1 + (int32_t)sr_check_pick(c, SR_GEMM_ROWS);
            check_gemm(c, pack, gemm, &types[k], n_rows, n_in, tokens[i]);
        }
}

struct gemm_call { sr_gemm_fn *fn; struct gemm_args a; int64_t n_rows; };

static void call_gemm(void *ctx)
{
    struct gemm_call *g = ctx;
    struct gemm_args a = g->a;
    for (int64_t r = 0; r < g->n_rows; r += SR_GEMM_ROWS) {
        a.w = g->a.w + (size_t)r * a.row_bytes;
        a.y = g->a.y + r;
        g->fn(&a);
    }
}

static void bench_gemm(struct check *c, const struct weight_type *t, int64_t n_rows, int64_t n_in, int32_t n)
{
    float *x = make_floats(c, n * n_in, 1.0);
    struct gemm_call g = {.fn = (sr_gemm_fn *)c->fn, .n_rows = n_rows,
                          .a = {.w = make_rows(c, t, n_rows, n_in), .row_bytes = sr_row_bytes(t->dtype, n_in),
                                .dequant = sr_cpu_dequant_of(&c->k, t->dtype), .n_in = n_in, .n_rows = SR_GEMM_ROWS, .n = n,
                                .packed = pack_all(c, is_bf16(c) ? c->k.gemm_bf16_pack : c->k.gemm_pack, x, n_in, n),
                                .y_stride = n_rows,
                                .y = sr_check_out(c, (size_t)(n * n_rows) * sizeof(float)),
                                .scratch = sr_check_out(c, sr_gemm_scratch_bytes(n_in))}};
    char label[64];
    snprintf(label, sizeof(label), "%s %lld x %lld, n %d", t->name, (long long)n_rows, (long long)n_in, n);
    sr_check_time(c, label, 0, 2.0 * (double)(n_rows * n_in * n), call_gemm, &g);
}

struct pack_call { struct check *c; const float *x; uint8_t *packed; };

static void call_pack(void *ctx)
{
    struct pack_call *p = ctx;
    ((sr_gemm_pack_fn *)p->c->fn)(&(struct gemm_pack_args){.x = p->x, .x_stride = 576, .n_in = 576, .n = SR_GEMM_TOKENS, .packed = p->packed});
}

void sr_check_gemm_pack(struct check *c)
{
    if (c->bench) {
        struct pack_call p = {c, make_floats(c, 576 * SR_GEMM_TOKENS, 1.0), sr_check_out(c, sr_gemm_block_bytes(576))};
        sr_check_time(c, "32 x 576", 576.0 * SR_GEMM_TOKENS * 4, 0, call_pack, &p);
        return;
    }
    check_gemm_shapes(c, (sr_gemm_pack_fn *)c->fn, is_bf16(c) ? c->k.gemm_bf16 : c->k.gemm);
}

void sr_check_gemm(struct check *c)
{
    if (c->bench) {
        for (int k = 0; k < N_TYPES; k++) bench_gemm(c, &types[k], 192, 1536, c->isa == ISA_SCALAR ? 32 : 512);
        for (int32_t n = 8; n <= 512; n *= 2) bench_gemm(c, &types[4], 192, 576, n);
        return;
    }
    check_gemm_shapes(c, is_bf16(c) ? c->k.gemm_bf16_pack : c->k.gemm_pack, (sr_gemm_fn *)c->fn);
}
