/* SPDX-License-Identifier: Apache-2.0
 *
 * Checks of the small ops. Each is a short formula per element: the tolerance counts its roundings.
 */
#include "check.h"

#include <math.h>
#include <string.h>

static const int64_t lengths[] = {1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 100, 576, 896, 1536, 4864};
enum { N_LENGTHS = sizeof(lengths) / sizeof(lengths[0]) };

static float *copy_of(struct check *c, const float *x, int64_t n)
{
    float *y = sr_check_out(c, (size_t)n * sizeof(float));
    memcpy(y, x, (size_t)n * sizeof(float));
    return y;
}

static float *normal(struct check *c, int64_t n, double scale)
{
    float *x = sr_check_in(c, (size_t)n * sizeof(float));
    sr_check_fill_normal(c, x, n, scale);
    return x;
}

/* ---- norm ------------------------------------------------------------------------------------------------------- */

void sr_spoilt_norm(const float *x, float *y, const float *w, int64_t d, float eps)
{
    ((sr_norm_fn *)sr_check_now->real)(x, y, w, d, eps);
    sr_check_spoil(&y[d / 2]);
}

struct norm_call { sr_norm_fn *fn; const float *x, *w; float *y; int64_t d; };

static void call_norm(void *ctx)
{
    struct norm_call *n = ctx;
    n->fn(n->x, n->y, n->w, n->d, 1e-5f);
}

static void check_norm(struct check *c, int64_t d, double scale, int in_place)
{
    float *x = normal(c, d, scale), *w = normal(c, d, 1.0), *y = in_place ? copy_of(c, x, d) : sr_check_out(c, (size_t)d * sizeof(float));
    double sum = 0.0;
    for (int64_t i = 0; i < d; i++) sum += (double)x[i] * (double)x[i];
    const double inv = 1.0 / sqrt(sum / (double)d + (double)1e-5f);
    ((sr_norm_fn *)c->fn)(in_place ? y : x, y, w, d, 1e-5f);
    for (int64_t i = 0; i < d; i++) {
        const double want = (double)x[i] * inv * (double)w[i];
        if (!sr_check_near(c, "norm", i, y[i], want, 4 * SR_CHECK_U * fabs(want))) return;
    }
}

void sr_check_norm(struct check *c)
{
    if (c->bench) {
        struct norm_call n = {(sr_norm_fn *)c->fn, normal(c, 576, 1), normal(c, 576, 1), sr_check_out(c, 576 * 4), 576};
        sr_check_time(c, "d 576", 3 * 576 * 4, 0, call_norm, &n);
        return;
    }
    for (int i = 0; i < N_LENGTHS; i++) {
        check_norm(c, lengths[i], 1.0, 0);
        check_norm(c, lengths[i], 1e4, 1);
        check_norm(c, lengths[i], 0.0, 0);
    }
}

/* ---- rope ------------------------------------------------------------------------------------------------------- */

void sr_spoilt_rope(float *x, const float *cs, const float *sn, int64_t half)
{
    ((sr_rope_fn *)sr_check_now->real)(x, cs, sn, half);
    sr_check_spoil(&x[half]);
}

static void check_rope(struct check *c, int64_t half)
{
    const int pairs = strcmp(c->family, "rope_pairs") == 0;
    float *x = normal(c, 2 * half, 1.0), *y = copy_of(c, x, 2 * half);
    float *cs = normal(c, half, 1.0), *sn = normal(c, half, 1.0);
    for (int64_t i = 0; i < half; i++) {
        const double angle = 3.0 * (double)cs[i];
        cs[i] = (float)cos(angle);
        sn[i] = (float)sin(angle);
    }
    ((sr_rope_fn *)c->fn)(y, cs, sn, half);
    for (int64_t i = 0; i < half; i++) {
        const int64_t ia = pairs ? 2 * i : i, ib = pairs ? 2 * i + 1 : i + half;
        const double a = x[ia], b = x[ib], co = cs[i], si = sn[i];
        const double tol = 3 * SR_CHECK_U; /* two products, one sum */
        if (!sr_check_near(c, "rope, first of a pair", i, y[ia], a * co - b * si, tol * (fabs(a * co) + fabs(b * si)))) return;
        if (!sr_check_near(c, "rope, second of a pair", i, y[ib], a * si + b * co, tol * (fabs(a * si) + fabs(b * co)))) return;
    }
}

struct rope_call { sr_rope_fn *fn; float *x; const float *cs, *sn; };

static void call_rope(void *ctx)
{
    struct rope_call *r = ctx;
    r->fn(r->x, r->cs, r->sn, 32);
}

void sr_check_rope(struct check *c)
{
    static const int64_t halves[] = {1, 2, 4, 8, 12, 16, 20, 32, 40, 48, 64, 128};
    if (c->bench) {
        float *cs = normal(c, 32, 1), *sn = normal(c, 32, 1); /* true rotations: nothing grows or fades */
        for (int i = 0; i < 32; i++) sn[i] = sinf(cs[i]), cs[i] = cosf(cs[i]);
        struct rope_call r = {(sr_rope_fn *)c->fn, normal(c, 64, 1), cs, sn};
        sr_check_time(c, "head 64", 0, 0, call_rope, &r);
        return;
    }
    for (size_t i = 0; i < sizeof(halves) / sizeof(halves[0]); i++) check_rope(c, halves[i]);
}

/* ---- silu_mul, add ------------------------------------------------------------------------------------------------- */

void sr_spoilt_silu_mul(const float *gate, const float *up, float *h, int64_t n)
{
    ((sr_silu_mul_fn *)sr_check_now->real)(gate, up, h, n);
    sr_check_spoil(&h[n / 2]);
}

static void check_silu(struct check *c, int64_t n, double scale, int in_place)
{
    float *g = normal(c, n, scale), *u = normal(c, n, 1.0), *h = in_place ? copy_of(c, g, n) : sr_check_out(c, (size_t)n * sizeof(float));
    ((sr_silu_mul_fn *)c->fn)(in_place ? h : g, u, h, n);
    for (int64_t i = 0; i < n; i++) {
        const double x = g[i], want = x / (1.0 + exp(-x)) * (double)u[i];
        /* exp to 3 ulp of its argument's rounding, then three roundings; below 1e-37 results may flush to zero */
        const double tol = (6 + fabs(x) / 8) * SR_CHECK_U * fabs(want) + 1e-36 * (1.0 + fabs((double)u[i]));
        if (!sr_check_near(c, "silu_mul", i, h[i], want, tol)) return;
    }
}

struct silu_call { sr_silu_mul_fn *fn; const float *g, *u; float *h; int64_t n; };

static void call_silu(void *ctx)
{
    struct silu_call *s = ctx;
    s->fn(s->g, s->u, s->h, s->n);
}

void sr_check_silu_mul(struct check *c)
{
    if (c->bench) {
        struct silu_call s = {(sr_silu_mul_fn *)c->fn, normal(c, 1536, 2), normal(c, 1536, 1), sr_check_out(c, 1536 * 4), 1536};
        sr_check_time(c, "n 1536", 3 * 1536 * 4, 0, call_silu, &s);
        return;
    }
    for (int i = 0; i < N_LENGTHS; i++) {
        check_silu(c, lengths[i], 2.0, 0);
        check_silu(c, lengths[i], 40.0, 1);
        check_silu(c, lengths[i], 1e4, 0);
    }
}

void sr_spoilt_add(float *x, const float *y, int64_t n)
{
    ((sr_add_fn *)sr_check_now->real)(x, y, n);
    sr_check_spoil(&x[n / 2]);
}

struct add_call { sr_add_fn *fn; float *x; const float *y; };

static void call_add(void *ctx)
{
    struct add_call *a = ctx;
    a->fn(a->x, a->y, 576);
}

void sr_check_add(struct check *c)
{
    if (c->bench) {
        struct add_call a = {(sr_add_fn *)c->fn, normal(c, 576, 1), normal(c, 576, 1e-9)};
        sr_check_time(c, "n 576", 3 * 576 * 4, 0, call_add, &a);
        return;
    }
    for (int i = 0; i < N_LENGTHS; i++) {
        const int64_t n = lengths[i];
        float *x = normal(c, n, 1.0), *y = normal(c, n, 1.0), *got = copy_of(c, x, n);
        ((sr_add_fn *)c->fn)(got, y, n);
        for (int64_t j = 0; j < n; j++)
            if (!sr_check_near(c, "add", j, got[j], (double)(x[j] + y[j]), 0.0)) return;
    }
}
