/* SPDX-License-Identifier: Apache-2.0
 *
 * Checks of the attention kernels against double precision. A logit is a sum of d products, so it is off by at most
 * e = (d + 4) u sum |q k|; a weight exp(s - m) is then off by a factor of 2 e + 16 u at most, and an output, a mean of
 * n values, by sum p |v| / l times that and the (2 n + 8) u of its own sums. Weights below the smallest normal float
 * may be lost: `lost` is what they could add.
 */
#include "check.h"
#include "check_rows.h"

#include "backend/kv_type.h"
#include "base/half.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- kv_store --------------------------------------------------------------------------------------------------- */

static const sr_dtype cache_types[] = {SR_DTYPE_F32, SR_DTYPE_F16, SR_DTYPE_BF16, SR_DTYPE_Q8_0, SR_DTYPE_Q4_0, SR_DTYPE_F8_E4M3};
enum { N_CACHE_TYPES = 6 };

void sr_spoilt_kv_store(sr_dtype type, const float *src, void *dst, int64_t n)
{
    ((sr_kv_store_fn *)sr_check_now->real)(type, src, dst, n);
    ((uint8_t *)dst)[sr_check_row_bytes(type, (int32_t)n) / 2] ^= 1;
}

static void check_store(struct check *c, sr_dtype type, int32_t n, double scale, float special)
{
    const size_t bytes = sr_check_row_bytes(type, n);
    float *x = sr_check_in(c, (size_t)n * sizeof(float)), *back = sr_check_in(c, (size_t)n * sizeof(float));
    uint8_t *got = sr_check_out(c, bytes), *want = sr_check_out(c, bytes);
    sr_check_fill_normal(c, x, n, scale);
    if (special != 0) x[sr_check_pick(c, n)] = special;
    if (sr_check_pick(c, 2)) x[sr_check_pick(c, n)] = -x[sr_check_pick(c, n)]; /* the same magnitude with both signs */
    ((sr_kv_store_fn *)c->fn)(type, x, got, n);
    ((sr_kv_store_fn *)c->scalar)(type, x, want, n);
    if (!sr_check_same(c, "kv_store", got, want, bytes) || special != 0) return;
    sr_check_row_load(type, got, back, n);
    if (type == SR_DTYPE_Q4_0) {
        sr_check_row_make(type, x, want, n);
        if (!sr_check_same(c, "kv_store against the block code of weights", got, want, bytes)) return;
    }
    for (int32_t i = 0; i < n; i++) {
        double most = 0;
        for (int32_t j = i / 32 * 32; j < n && j < i / 32 * 32 + 32; j++) most = fmax(most, fabs((double)x[j]));
        const double rel = type == SR_DTYPE_F16 ? 0x1p-11 : type == SR_DTYPE_BF16 ? 0x1p-8 : type == SR_DTYPE_F8_E4M3 ? 0x1p-4 : 0;
        const double floor_step = type == SR_DTYPE_F8_E4M3 ? fmax(0x1p-10, fabs((double)x[i]) - 448) : 0x1p-25; /* it saturates */
        /* half a step of max / 127 or, in Q4_0, whose highest code is 7 steps above 0, a step of max / 8; and the scale's own
         * rounding to f16 (2^-25 at the least) over that many steps */
        const double steps = type == SR_DTYPE_Q8_0 ? 127 : 8, step = most / steps * (type == SR_DTYPE_Q8_0 ? 0.5001 : 1.0001);
        const double tol = sr_kv_is_blocked(type) ? step + fmax(most * 0x1p-11, steps * 0x1p-25) : rel * fabs((double)x[i]) + floor_step;
        if (!sr_check_near(c, "stored value", i, back[i], x[i], tol)) return;
    }
}

struct store_call { sr_kv_store_fn *fn; sr_dtype type; const float *x; void *dst; };

static void call_store(void *ctx)
{
    const struct store_call *s = ctx;
    for (int i = 0; i < 64; i++) s->fn(s->type, s->x + i * 128, s->dst, 128);
}

void sr_check_kv_store(struct check *c)
{
    static const int32_t sizes[] = {8, 16, 24, 32, 40, 64, 80, 96, 128, 160, 256};
    if (c->bench) {
        for (int t = 0; t < N_CACHE_TYPES; t++) {
            struct store_call s = {(sr_kv_store_fn *)c->fn, cache_types[t], sr_check_in(c, 64 * 512), sr_check_out(c, 512)};
            sr_check_time(c, sr_check_type_name(cache_types[t]), 64 * 512, 0, call_store, &s);
        }
        return;
    }
    for (int t = 0; t < N_CACHE_TYPES; t++)
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
            if (sr_kv_is_blocked(cache_types[t]) && sizes[i] % SR_KV_BLOCK) continue;
            check_store(c, cache_types[t], sizes[i], 1.0, 0);
            check_store(c, cache_types[t], sizes[i], 1e-6, 0);
            check_store(c, cache_types[t], sizes[i], 300.0, 0);
            check_store(c, cache_types[t], sizes[i], 0.0, 0);
            check_store(c, cache_types[t], sizes[i], 1.0, NAN);
            check_store(c, cache_types[t], sizes[i], 1.0, INFINITY);
        }
}

/* ---- attn_block -------------------------------------------------------------------------------------------------- */

enum inputs { IN_NORMAL, IN_EQUAL, IN_HUGE, IN_SINK, IN_NAN_K, IN_NAN_V, N_INPUTS };

struct block_case { struct attn_shape shape; int32_t n; enum inputs inputs; };

void sr_spoilt_attn_block(const struct attn_block *a)
{
    ((sr_attn_block_fn *)sr_check_now->real)(a);
    sr_check_spoil(&a->o[a->shape->head_dim - 1]);
}

static void fill_inputs(struct check *c, const struct block_case *b, float *q, uint8_t *k, uint8_t *v)
{
    const struct attn_shape *s = &b->shape;
    sr_check_fill_normal(c, q, s->group * s->head_dim, b->inputs == IN_HUGE ? 100.0 : 1.0 / 8);
    sr_check_fill_rows(c, s->k_type, k, b->n, s->head_dim, b->inputs == IN_EQUAL ? 0.0 : b->inputs == IN_HUGE ? 10 : 1);
    sr_check_fill_rows(c, s->v_type, v, b->n, s->head_dim, 1.0);
    if (b->inputs == IN_SINK) /* a first row along the first head's query takes nearly everything */
        for (int32_t i = 0; i < s->head_dim; i++) sr_check_row_set(s->k_type, k, i, q[i] * 200);
    if (b->inputs == IN_NAN_K) sr_check_row_set(s->k_type, k + (size_t)(b->n / 2) * s->k_row_bytes, 3, NAN);
    if (b->inputs == IN_NAN_V) sr_check_row_set(s->v_type, v + (size_t)(b->n - 1) * s->v_row_bytes, s->head_dim - 1, NAN);
}

/* The state that the kernel starts from is itself one made of a few values, or the empty one. */
static void start_state(struct check *c, const struct block_case *b, float *o, float *m, float *l)
{
    const int32_t d = b->shape.head_dim, empty = (int32_t)sr_check_pick(c, 2);
    for (int32_t g = 0; g < b->shape.group; g++) {
        m[g] = empty ? -INFINITY : (float)sr_check_normal(c);
        l[g] = empty ? 0 : 1.5f;
        for (int32_t i = 0; i < d; i++) o[g * d + i] = empty ? 0 : (float)sr_check_normal(c);
    }
}

static void compare_head(struct check *c, const struct attn_block *a, int32_t g, const struct ref_state *ref)
{
    const int32_t d = a->shape->head_dim;
    const double e = 2 * ref->logit_error + 16 * SR_CHECK_U, n = 2 * a->n + 8;
    sr_check_near(c, "m", g, a->m[g], ref->m, ref->logit_error);
    sr_check_near(c, "log total", g, a->m[g] + log((double)a->l[g]), ref->m + log(ref->l), e + n * SR_CHECK_U);
    for (int32_t i = 0; i < d; i++)
        if (!sr_check_near(c, "o / l", g * d + i, (double)a->o[g * d + i] / (double)a->l[g], ref->o[i] / ref->l,
                           ref->o_abs[i] / ref->l * (2 * e + n * SR_CHECK_U) + (ref->lost + ref->o_error[i]) / ref->l)) return;
}

static void check_block(struct check *c, const struct block_case *b)
{
    const struct attn_shape *s = &b->shape;
    const int32_t d = s->head_dim, group = s->group;
    float *q = sr_check_in(c, (size_t)(group * d) * 4), *o = sr_check_out(c, (size_t)(group * d) * 4);
    float *m = sr_check_out(c, (size_t)group * 4), *l = sr_check_out(c, (size_t)group * 4);
    uint8_t *k = sr_check_in(c, (size_t)b->n * s->k_row_bytes), *v = sr_check_in(c, (size_t)b->n * s->v_row_bytes);
    const uint8_t **kp = sr_check_in(c, (size_t)b->n * sizeof(*kp)), **vp = sr_check_in(c, (size_t)b->n * sizeof(*vp));
    int64_t k_rows = 5, v_rows = 7;
    struct ref_state ref[SR_ATTN_MAX_GROUP];
    fill_inputs(c, b, q, k, v);
    start_state(c, b, o, m, l);
    for (int32_t i = 0; i < b->n; i++) { /* in any order */
        kp[i] = k + (size_t)((i * 7 + 3) % b->n) * s->k_row_bytes;
        vp[i] = v + (size_t)((i * 7 + 3) % b->n) * s->v_row_bytes;
    }
    if (b->n % 7 == 0)
        for (int32_t i = 0; i < b->n; i++) {
            kp[i] = k + (size_t)i * s->k_row_bytes;
            vp[i] = v + (size_t)i * s->v_row_bytes;
        }
    const struct attn_block a = {.shape = s, .q = q, .k = kp, .v = vp, .next_k = kp, .next_v = vp, .n = b->n, .n_next = b->n,
                                 .o = o, .m = m, .l = l, .k_rows = &k_rows, .v_rows = &v_rows,
                                 .scratch = aligned_alloc(64, SR_ATTN_BLOCK_SCRATCH), .begins = 1, .ends = 1, .is_list = b->n % 3 == 0};
    memset(a.scratch, 0xff, SR_ATTN_BLOCK_SCRATCH); /* NaN: nothing may depend on it */
    for (int32_t g = 0; g < group; g++) {
        sr_ref_state_start(&ref[g], o + g * d, m[g], l[g], d);
        ref[g].q_error = sr_check_q_error(c->isa, s);
        ref[g].weight_error = sr_check_weight_error(c->isa, s);
        sr_ref_state_add(&ref[g], s, q + g * d, kp, vp, b->n);
    }
    ((sr_attn_block_fn *)c->fn)(&a);
    for (int32_t g = 0; g < group; g++) compare_head(c, &a, g, &ref[g]);
    if (k_rows != 5 + b->n || v_rows != 7 + b->n)
        sr_check_fail(c, "counted %lld K rows, %lld V rows, want %d", (long long)k_rows - 5, (long long)v_rows - 7, b->n);
    free(a.scratch);
    sr_check_free_buffers(c);
}

struct block_call { sr_attn_block_fn *fn; struct attn_block a; const uint8_t **k, **v; int32_t n_rows; };

static void call_block(void *ctx)
{
    struct block_call *b = ctx;
    for (int32_t i = 0; i < b->n_rows; i += SR_ATTN_BLOCK) {
        b->a.k = b->k + i;
        b->a.v = b->v + i;
        b->a.next_k = b->k + i + SR_ATTN_BLOCK;
        b->a.next_v = b->v + i + SR_ATTN_BLOCK;
        b->a.n_next = i + SR_ATTN_BLOCK < b->n_rows ? SR_ATTN_BLOCK : 0;
        b->a.begins = i == 0;
        b->a.ends = b->a.n_next == 0;
        b->fn(&b->a);
    }
}

static void bench_block(struct check *c, int32_t d, int32_t group, sr_dtype type, int32_t n_rows)
{
    const struct attn_shape s = sr_check_shape(d, group, type, type);
    int64_t rows = 0;
    char label[64];
    struct block_call b = {.fn = (sr_attn_block_fn *)c->fn, .n_rows = n_rows,
                           .k = sr_check_in(c, (size_t)n_rows * 8), .v = sr_check_in(c, (size_t)n_rows * 8)};
    uint8_t *k = sr_check_in(c, (size_t)n_rows * s.k_row_bytes), *v = sr_check_in(c, (size_t)n_rows * s.v_row_bytes);
    for (int32_t i = 0; i < n_rows; i++) {
        b.k[i] = k + (size_t)i * s.k_row_bytes;
        b.v[i] = v + (size_t)i * s.v_row_bytes;
    }
    b.a = (struct attn_block){.shape = &s, .q = sr_check_in(c, (size_t)(group * d) * 4), .n = SR_ATTN_BLOCK,
                              .o = sr_check_out(c, (size_t)(group * d) * 4), .m = sr_check_out(c, 64),
                              .l = sr_check_out(c, 64), .k_rows = &rows, .v_rows = &rows,
                              .scratch = aligned_alloc(64, SR_ATTN_BLOCK_SCRATCH)};
    snprintf(label, sizeof(label), "d %d g %d %s %d", d, group, sr_check_type_name(type), n_rows);
    sr_check_time(c, label, (double)n_rows * (double)(s.k_row_bytes + s.v_row_bytes), 4.0 * n_rows * group * d, call_block, &b);
    free(b.a.scratch);
    sr_check_free_buffers(c);
}

static void bench_blocks(struct check *c)
{
    static const int32_t shapes[][2] = {{128, 4}, {64, 3}, {64, 7}};
    for (int i = 0; i < 3; i++)
        for (int t = 1; t < N_CACHE_TYPES; t++)
            for (int32_t n = 512; n <= 512 << 8; n <<= 8) bench_block(c, shapes[i][0], shapes[i][1], cache_types[t], n);
}

void sr_check_attn_block(struct check *c)
{
    static const int32_t dims[] = {8, 24, 40, 64, 72, 80, 96, 128, 160, 256}, counts[] = {1, 2, 3, 4, 5, 17, 49, 63, 64};
    if (c->bench) {
        bench_blocks(c);
        return;
    }
    for (int t = 0; t < N_CACHE_TYPES * N_CACHE_TYPES; t++)
        for (size_t i = 0; i < sizeof(dims) / sizeof(dims[0]); i++) {
            const sr_dtype k = cache_types[t / N_CACHE_TYPES], v = cache_types[t % N_CACHE_TYPES];
            if ((sr_kv_is_blocked(k) || sr_kv_is_blocked(v)) && dims[i] % SR_KV_BLOCK) continue;
            const struct block_case b = {sr_check_shape(dims[i], 1 + (int32_t)sr_check_pick(c, 16), k, v),
                                         counts[sr_check_pick(c, 9)], (enum inputs)sr_check_pick(c, N_INPUTS)};
            check_block(c, &b);
        }
    for (int32_t group = 1; group <= 16; group++)
        for (int in = 0; in < N_INPUTS; in++) {
            const sr_dtype type = cache_types[sr_check_pick(c, N_CACHE_TYPES)];
            const struct block_case b = {sr_check_shape(sr_check_pick(c, 2) ? 64 : 128, group, type, type),
                                         counts[sr_check_pick(c, 9)], (enum inputs)in};
            check_block(c, &b);
        }
}

/* ---- attn_flash --------------------------------------------------------------------------------------------------- */

void sr_spoilt_attn_flash(const struct attn_flash *a)
{
    ((sr_attn_flash_fn *)sr_check_now->real)(a);
    sr_check_spoil(&a->out[(a->n_q - 1) * a->out_stride + a->shape->head_dim / 2]);
}

struct flash_case { struct attn_shape shape; int64_t pos; int32_t n_q; double scale; float k_scale; };

/* Rows [0, n) in chunks; the last one ends at the guard page. */
static void **chunks_of(struct check *c, sr_dtype type, int64_t n, int32_t d, double scale)
{
    const size_t bytes = sr_check_row_bytes(type, d);
    void **chunk = sr_check_in(c, (size_t)(n / SR_CHUNK_ROWS + 1) * sizeof(*chunk));
    for (int64_t at = 0; at < n; at += SR_CHUNK_ROWS) {
        const int32_t rows = (int32_t)(n - at < SR_CHUNK_ROWS ? n - at : SR_CHUNK_ROWS);
        chunk[at / SR_CHUNK_ROWS] = sr_check_in(c, (size_t)rows * bytes);
        sr_check_fill_rows(c, type, chunk[at / SR_CHUNK_ROWS], rows, d, scale);
    }
    return chunk;
}

/* The matrix units multiply sums of two bf16 values, each product within 2^-15 of the exact one, and the weights are
 * one bf16 value each. */
static double product_unit(const struct check *c) { return c->isa == ISA_AMX ? 0x1p-15 : 0; }
static double weight_unit(const struct check *c) { return c->isa == ISA_AMX ? 0x1p-9 : 0; }

static void compare_flash(struct check *c, const struct attn_flash *a, int32_t t, int32_t g)
{
    const struct attn_shape *s = a->shape;
    const int64_t n = a->pos + t + 1;
    const int32_t d = s->head_dim;
    const uint8_t **k = malloc((size_t)n * sizeof(*k)), **v = malloc((size_t)n * sizeof(*v));
    float *zero = calloc((size_t)d, sizeof(float)), q[SR_ATTN_MAX_DIM];
    const float k_scale = sr_kv_scale(&a->unit->k, s->k_type), v_scale = sr_kv_scale(&a->unit->v, s->v_type);
    struct ref_state ref;
    for (int32_t i = 0; i < d; i++) q[i] = a->q[t * a->q_stride + g * d + i] * k_scale;
    for (int64_t i = 0; i < n; i++) {
        k[i] = (const uint8_t *)a->unit->k.chunk[i / SR_CHUNK_ROWS] + (size_t)(i % SR_CHUNK_ROWS) * s->k_row_bytes;
        v[i] = (const uint8_t *)a->unit->v.chunk[i / SR_CHUNK_ROWS] + (size_t)(i % SR_CHUNK_ROWS) * s->v_row_bytes;
    }
    sr_ref_state_start(&ref, zero, -INFINITY, 0, d);
    sr_ref_state_add(&ref, s, q, k, v, (int32_t)n);
    const double product_error = ref.logit_error / ((d + 4) * SR_CHECK_U) * product_unit(c);
    const double e = 2 * (ref.logit_error + product_error) + 16 * SR_CHECK_U + weight_unit(c);
    for (int32_t i = 0; i < d; i++)
        if (!sr_check_near(c, "output", (t * s->group + g) * d + i, a->out[t * a->out_stride + g * d + i] / v_scale, ref.o[i] / ref.l,
                           ref.o_abs[i] / ref.l * (2 * e + (2 * (double)n + 8) * SR_CHECK_U) + ref.lost / ref.l)) break;
    free(k);
    free(v);
    free(zero);
}

static void check_flash(struct check *c, const struct flash_case *f)
{
    const struct attn_shape *s = &f->shape;
    const int64_t n = f->pos + f->n_q, width = s->group * s->head_dim, stride = width + 8;
    float *q = sr_check_in(c, (size_t)(stride * f->n_q) * 4), *out = sr_check_out(c, (size_t)(stride * f->n_q) * 4);
    const struct attn_unit unit = {.k = {chunks_of(c, s->k_type, n, s->head_dim, f->scale), f->k_scale},
                                   .v = {chunks_of(c, s->v_type, n, s->head_dim, 1.0), 4.0f}, .kv_len = (int32_t)n};
    /* the last row of q ends where the unit's heads end */
    q += stride - width;
    out += stride - width;
    for (int32_t t = 0; t < f->n_q; t++) sr_check_fill_normal(c, q + t * stride, width, f->scale / 8);
    void *scratch = aligned_alloc(64, (sr_attn_flash_bytes(s->head_dim) + 63) / 64 * 64);
    memset(scratch, 0xff, sr_attn_flash_bytes(s->head_dim)); /* NaN: nothing may depend on it */
    const struct attn_flash a = {.shape = s, .unit = &unit, .q = q, .out = out, .q_stride = stride, .out_stride = stride,
                                 .pos = f->pos, .n_q = f->n_q, .scratch = scratch};
    ((sr_attn_flash_fn *)c->fn)(&a);
    for (int32_t t = 0; t < f->n_q; t += f->n_q > 40 ? 1 + (int32_t)sr_check_pick(c, 9) : 1)
        for (int32_t g = 0; g < s->group; g++) compare_flash(c, &a, t, g);
    for (int32_t g = 0; g < s->group; g++) compare_flash(c, &a, f->n_q - 1, g);
    free(scratch);
    sr_check_free_buffers(c);
}

struct flash_call { sr_attn_flash_fn *fn; struct attn_flash a; };

static void call_flash(void *ctx)
{
    const struct flash_call *f = ctx;
    f->fn(&f->a);
}

static void bench_flash(struct check *c, int32_t d, int32_t group, sr_dtype type, int64_t pos)
{
    const struct attn_shape s = sr_check_shape(d, group, type, type);
    const int32_t n_q = SR_FLASH_ROWS / group;
    const int64_t n = pos + n_q, width = group * d;
    const struct attn_unit unit = {.k = {chunks_of(c, type, n, d, 1), 1}, .v = {chunks_of(c, type, n, d, 1), 1}, .kv_len = (int32_t)n};
    char label[64];
    struct flash_call f = {(sr_attn_flash_fn *)c->fn,
                           {.shape = &s, .unit = &unit, .q = sr_check_in(c, (size_t)(n_q * width) * 4),
                            .out = sr_check_out(c, (size_t)(n_q * width) * 4), .q_stride = width, .out_stride = width,
                            .pos = pos, .n_q = n_q, .scratch = aligned_alloc(64, (sr_attn_flash_bytes(d) + 63) / 64 * 64)}};
    snprintf(label, sizeof(label), "d %d g %d %s at %lld", d, group, sr_check_type_name(type), (long long)pos);
    sr_check_time(c, label, 0, 4.0 * ((double)pos + n_q / 2.0) * n_q * group * d, call_flash, &f);
    free(f.a.scratch);
    sr_check_free_buffers(c);
}

void sr_check_attn_flash(struct check *c)
{
    static const struct { int32_t d, group; int64_t pos; int32_t n_q; } cases[] = {
        {64, 3, 0, 1}, {64, 3, 0, 17}, {64, 1, 63, 3}, {64, 2, 64, 1}, {128, 4, 1000, 90}, {80, 5, 30, 40}, {96, 16, 5, 24},
        {64, 7, 1023, 2}, {64, 3, 0, 128}, {256, 1, 100, 30}, {8, 2, 70, 9}, {72, 6, 120, 20}, {128, 8, 0, 48}, {64, 9, 2100, 8}};
    if (c->bench) {
        for (int t = 1; t < N_CACHE_TYPES; t++) {
            bench_flash(c, 64, 3, cache_types[t], 0);
            bench_flash(c, 64, 3, cache_types[t], 4000);
            bench_flash(c, 128, 4, cache_types[t], 4000);
            bench_flash(c, 64, 7, cache_types[t], 4000);
        }
        return;
    }
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        for (int t = 0; t < N_CACHE_TYPES; t++) {
            const sr_dtype k = cache_types[t], v = cache_types[(t + (int)i) % N_CACHE_TYPES];
            if ((sr_kv_is_blocked(k) || sr_kv_is_blocked(v)) && cases[i].d % SR_KV_BLOCK) continue;
            const struct flash_case f = {sr_check_shape(cases[i].d, cases[i].group, k, v), cases[i].pos, cases[i].n_q,
                                         (i + (size_t)t) % 3 == 2 ? 8.0 : 1.0, i % 2 ? 0.125f : 2.0f};
            check_flash(c, &f);
        }
}
