/* SPDX-License-Identifier: Apache-2.0
 *
 * Ops that become one. Each launch of a decode step costs a few microseconds whatever it does, so with one token a norm
 * waits for the product that reads it, a product for the sum or the silu that its results go to, and a rope for the step
 * of attention that appends its keys. What is held back is
 * done by sr_cuda_flush before any other op, so that nobody can tell but by the clock: everything that the ops would have
 * stored is stored, except a product's y that the next op overwrites. Products joined by silu leave codes of their results
 * too, which the next product takes if it is of these and nothing was launched between.
 */
#include "cuda/matvec_cuda.h"
#include "cuda/planes_cuda.h"

extern "C" {
#include "backend/device_attn.h"
}

#include <assert.h>

struct held_cuda {
    bool has_norm, has_product; /* a norm that waits for a product; a product that waits, with its norm in `extra` */
    int n_ropes;                /* ropes that wait for attention, each of one sequence; nothing else waits then */
    const float *made_x;        /* the last launch also made codes of what it stored there, made_n of them; or NULL */
    int64_t made_n;
    struct norm_args norm;
    struct rope_args ropes[SR_STEP_SEQS];
    struct matmul_args product;
    struct matvec_extra extra;
};

sr_status sr_cuda_fuse_init(struct backend_cuda *c, sr_error *err)
{
    c->held = static_cast<struct held_cuda *>(sr_alloc_zero(1, sizeof *c->held));
    return c->held ? SR_OK : sr_fail_memory(err, sizeof *c->held, "cuda backend");
}

void sr_cuda_fuse_fini(struct backend_cuda *c)
{
    sr_free(c->held);
    c->held = NULL;
}

static void do_product(struct backend_cuda *c)
{
    struct held_cuda *h = c->held;
    h->has_product = false;
    sr_cuda_matvec(c, &h->product, &h->extra, 0, 1);
    h->made_x = h->extra.makes ? h->product.y[0] : NULL;
    h->made_n = h->product.w[0]->n_out;
}

static void do_held(struct backend_cuda *c)
{
    struct held_cuda *h = c->held;
    if (h->has_product) do_product(c);
    if (h->has_norm) {
        h->has_norm = false;
        h->made_x = NULL;
        sr_cuda_norm_now(c, &h->norm);
    }
    const int n = h->n_ropes;
    h->n_ropes = 0;
    for (int i = 0; i < n; i++) {
        h->made_x = NULL;
        sr_cuda_rope_now(c, &h->ropes[i]);
        c->after_matvec = SR_CUDA_OTHER;
    }
}

void sr_cuda_flush(struct backend_cuda *c)
{
    if (c->held) {
        do_held(c);
        c->held->made_x = NULL;
    }
    c->after_matvec = SR_CUDA_OTHER; /* whoever calls will launch something else */
    c->rounded.x = NULL;
}

/* ---- products ---- */

static bool writes(const struct matmul_args *a, const float *x)
{
    bool any = false;
    for (int i = 0; i < a->n_weights; i++) any |= a->y[i] == x;
    return any;
}

void sr_cuda_hold_product(struct backend_cuda *c, const struct matmul_args *a)
{
    struct held_cuda *h = c->held;
    if (h->has_product || h->n_ropes) do_held(c);
    const bool joins = h->has_norm && a->x == h->norm.y && a->w[0]->n_in == h->norm.d && !writes(a, h->norm.x) && !writes(a, h->norm.y);
    if (h->has_norm && !joins) do_held(c);
    h->extra = matvec_extra{};
    h->extra.norms = joins;
    h->extra.norm = h->norm;
    h->extra.takes = !joins && h->made_x == a->x && h->made_n == a->w[0]->n_in;
    h->has_norm = false;
    h->product = *a;
    h->has_product = true;
}

/* ---- norms ---- */

static void hold_norm(struct backend_cuda *c, const struct norm_args *a)
{
    c->held->norm = *a;
    c->held->has_norm = true;
}

static bool may_wait(const struct norm_args *a) { return a->n == 1 && a->heads == 1 && a->x != a->y && a->d % 4 == 0; }

void sr_cuda_norm(struct backend *b, const struct norm_args *a)
{
    struct backend_cuda *c = sr_cuda_of(b);
    do_held(c);
    if (may_wait(a)) {
        hold_norm(c, a);
        return;
    }
    sr_cuda_flush(c);
    sr_cuda_norm_now(c, a);
}

void sr_cuda_add_norm(struct backend *b, const struct add_args *a, const struct norm_args *n)
{
    assert(a->x == n->x && a->d == n->d && n->heads == 1);
    struct backend_cuda *c = sr_cuda_of(b);
    struct held_cuda *h = c->held;
    const struct matmul_args *p = &h->product;
    const bool joins = h->has_product && p->n_weights == 1 && p->y[0] == a->y && a->n == 1 && p->w[0]->n_out == a->d && n->y == a->y &&
                       may_wait(n) && p->x != a->x && !(h->extra.norms && h->extra.norm.x == a->x);
    if (!joins) {
        sr_cuda_flush(c);
        sr_cuda_add_norm_now(c, a, n);
        return;
    }
    h->extra.add_to = a->x;
    do_product(c);
    hold_norm(c, n);
}

/* ---- silu ---- */

void sr_cuda_silu_mul(struct backend *b, const struct silu_mul_args *a)
{
    struct backend_cuda *c = sr_cuda_of(b);
    struct held_cuda *h = c->held;
    const struct matmul_args *p = &h->product;
    const bool joins = h->has_product && p->n_weights == 2 && a->n == 1 && p->y[0] == a->gate && p->y[1] == a->up && a->h == a->gate &&
                       p->w[0]->dtype == p->w[1]->dtype && p->w[0]->n_out == a->d && p->w[1]->n_out == a->d;
    if (!joins) {
        sr_cuda_flush(c);
        sr_cuda_silu_now(c, a);
        return;
    }
    h->extra.silu = true;
    h->extra.makes = !sr_is_float_type(p->w[0]->dtype) && a->d <= c->made_elems && a->d % 32 == 0; /* the next is likely quantized too */
    do_product(c);
}

/* ---- rope ---- */

void sr_cuda_rope(struct backend *b, const struct rope_args *a)
{
    struct backend_cuda *c = sr_cuda_of(b);
    struct held_cuda *h = c->held;
    if (a->spec->kind == ROPE_NONE) return;
    const bool waits = a->n == 1 && a->x2;
    h->extra.late = waits ? a->pos : NULL;
    if (!waits || h->n_ropes == 0 || h->n_ropes == SR_STEP_SEQS) sr_cuda_flush(c);
    if (waits) h->ropes[h->n_ropes++] = *a;
    else sr_cuda_rope_now(c, a);
}

bool sr_cuda_take_ropes(struct backend_cuda *c, const struct device_step_args *a, int32_t n, struct rope_args *out)
{
    struct held_cuda *h = c->held;
    bool mine = h->n_ropes == n;
    for (int32_t i = 0; i < n && mine; i++) mine = h->ropes[i].x == a[i].q && h->ropes[i].x2 == a[i].k;
    if (mine) {
        for (int32_t i = 0; i < n; i++) out[i] = h->ropes[i];
        h->n_ropes = 0;
    }
    sr_cuda_flush(c);
    return mine;
}
