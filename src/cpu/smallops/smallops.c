/* SPDX-License-Identifier: Apache-2.0
 *
 * norm, rope, silu_mul, add and embed over rows of tokens. A single token is done by the caller: waking the pool costs
 * more than the work. The angles of the rotary embedding are computed in double once per (spec, positions) and kept,
 * since every layer of a step asks for the same ones.
 */
#include "cpu/ops_cpu.h"

#include "base/memory.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { SERIAL_ELEMENTS = 32768, MAX_HALF = 128 };

struct rope_cache {
    struct rope_spec spec;  /* copy: a spec at the same address may be another model's */
    int64_t pos0;
    int32_t n, max_n;       /* positions present (0: none), room */
    float *cos, *sin;       /* [max_n][half] */
};

struct row_ctx { struct backend_cpu *c; const void *args; };

/* Runs fn over n rows, by the pool when the whole is worth it. */
static void for_rows(struct backend_cpu *c, int32_t n, int64_t elements, pool_fn *fn, const void *args)
{
    struct pool *pool = n > 1 && n * elements > SERIAL_ELEMENTS ? c->pool : NULL;
    struct row_ctx ctx = {c, args};
    sr_pool_run(pool, n, fn, &ctx);
}

/* ---- norm, silu_mul, add, embed ------------------------------------------------------------------------------- */

static void norm_row(void *ctx, int32_t t, int32_t thread)
{
    const struct row_ctx *r = ctx;
    const struct norm_args *a = r->args;
    (void)thread;
    for (int32_t h = 0; h < a->heads; h++) {
        const int64_t at = ((int64_t)t * a->heads + h) * a->d;
        r->c->k.norm(a->x + at, a->y + at, a->w, a->d, a->eps);
    }
}

void sr_cpu_norm(struct backend *b, const struct norm_args *a) { for_rows(sr_cpu_of(b), a->n, a->d * a->heads, norm_row, a); }

static void silu_row(void *ctx, int32_t t, int32_t thread)
{
    const struct row_ctx *r = ctx;
    const struct silu_mul_args *a = r->args;
    (void)thread;
    r->c->k.silu_mul(a->gate + t * a->d, a->up + t * a->d, a->h + t * a->d, a->d);
}

void sr_cpu_silu_mul(struct backend *b, const struct silu_mul_args *a) { for_rows(sr_cpu_of(b), a->n, a->d * 4, silu_row, a); }

static void add_row(void *ctx, int32_t t, int32_t thread)
{
    const struct row_ctx *r = ctx;
    const struct add_args *a = r->args;
    (void)thread;
    r->c->k.add(a->x + t * a->d, a->y + t * a->d, a->d);
}

void sr_cpu_add(struct backend *b, const struct add_args *a) { for_rows(sr_cpu_of(b), a->n, a->d, add_row, a); }

void sr_cpu_add_norm(struct backend *b, const struct add_args *a, const struct norm_args *n)
{
    sr_cpu_add(b, a);
    sr_cpu_norm(b, n);
}

static void embed_row(void *ctx, int32_t t, int32_t thread)
{
    const struct row_ctx *r = ctx;
    const struct embed_args *a = r->args;
    const struct weight *w = a->w;
    (void)thread;
    assert(a->ids[t] >= 0 && a->ids[t] < w->n_out);
    sr_cpu_dequant_of(&r->c->k, w->dtype)((const uint8_t *)w->data + (size_t)a->ids[t] * w->row_bytes, a->x + t * w->n_in, w->n_in);
}

void sr_cpu_embed(struct backend *b, const struct embed_args *a) { for_rows(sr_cpu_of(b), a->n, a->w->n_in, embed_row, a); }

/* ---- rope ------------------------------------------------------------------------------------------------------ */

static int same_spec(const struct rope_spec *a, const struct rope_spec *b)
{
    return a->kind == b->kind && a->n_dims == b->n_dims && a->magnitude == b->magnitude &&
           memcmp(a->inv_freq, b->inv_freq, (size_t)(a->n_dims / 2) * sizeof(double)) == 0;
}

static void angle_row(void *ctx, int32_t t, int32_t thread)
{
    struct rope_cache *r = ctx;
    const int64_t half = r->spec.n_dims / 2;
    (void)thread;
    for (int64_t i = 0; i < half; i++) {
        const double angle = (double)(r->pos0 + t) * r->spec.inv_freq[i];
        r->cos[t * half + i] = (float)(cos(angle) * r->spec.magnitude);
        r->sin[t * half + i] = (float)(sin(angle) * r->spec.magnitude);
    }
}

/* Afterwards the cache holds the angles of positions pos0 .. pos0 + n - 1, n <= max_n. */
static void find_angles(struct backend_cpu *c, const struct rope_spec *spec, int64_t pos0, int32_t n)
{
    struct rope_cache *r = c->rope;
    if (r->n >= n && r->pos0 == pos0 && same_spec(&r->spec, spec)) return;
    r->spec = *spec;
    r->pos0 = pos0;
    r->n = n;
    sr_pool_run(n > 16 ? c->pool : NULL, n, angle_row, r);
}

static void rope_row(void *ctx, int32_t t, int32_t thread)
{
    const struct row_ctx *r = ctx;
    const struct rope_args *a = r->args;
    const struct rope_cache *cache = r->c->rope;
    const int64_t half = a->spec->n_dims / 2;
    sr_rope_fn *rotate = a->spec->kind == ROPE_NORM ? r->c->k.rope_pairs : r->c->k.rope_halves;
    (void)thread;
    for (int32_t h = 0; h < a->heads; h++)
        rotate(a->x + t * a->stride + (int64_t)h * a->head_dim, cache->cos + t * half, cache->sin + t * half, half);
}

void sr_cpu_rope(struct backend *b, const struct rope_args *a)
{
    struct backend_cpu *c = sr_cpu_of(b);
    if (a->spec->kind == ROPE_NONE) return;
    assert(a->spec->n_dims % 2 == 0 && a->spec->n_dims <= 2 * MAX_HALF && a->spec->n_dims <= a->head_dim);
    struct rope_args part = *a;
    const int64_t pos0 = a->pos0 + (a->pos ? *a->pos : 0);
    for (int32_t t = 0; t < a->n; t += part.n) {
        part.n = a->n - t < c->rope->max_n ? a->n - t : c->rope->max_n;
        part.x = a->x + t * a->stride;
        part.pos0 = pos0 + t;
        find_angles(c, a->spec, part.pos0, part.n);
        for_rows(c, part.n, (int64_t)a->heads * a->head_dim, rope_row, &part);
        if (!a->x2) continue;
        struct rope_args second = part;
        second.x = a->x2 + t * a->stride2;
        second.stride = a->stride2;
        second.heads = a->heads2;
        for_rows(c, part.n, (int64_t)a->heads2 * a->head_dim, rope_row, &second);
    }
}

sr_status sr_cpu_rope_reserve(struct backend_cpu *c, int32_t max_n, sr_error *err)
{
    struct rope_cache *r = c->rope;
    if (max_n <= r->max_n) return SR_OK;
    const size_t bytes = (size_t)max_n * MAX_HALF * sizeof(float);
    float *block = sr_alloc(2 * bytes);
    if (!block) return sr_fail_memory(err, 2 * bytes, "rotary angles");
    sr_free(r->cos);
    r->cos = block;
    r->sin = block + (size_t)max_n * MAX_HALF;
    r->max_n = max_n;
    r->n = 0;
    return SR_OK;
}

sr_status sr_cpu_smallops_init(struct backend_cpu *c, sr_error *err)
{
    c->rope = sr_alloc_zero(1, sizeof(*c->rope));
    if (!c->rope) return sr_fail_memory(err, sizeof(*c->rope), "rotary angles");
    return sr_cpu_rope_reserve(c, 8, err);
}

void sr_cpu_smallops_fini(struct backend_cpu *c)
{
    if (!c->rope) return;
    sr_free(c->rope->cos);
    sr_free(c->rope);
    c->rope = NULL;
}
