/* SPDX-License-Identifier: Apache-2.0
 *
 * A cache of random rows, where only speed and memory are looked at: long contexts without their prefill. Rows are taken
 * from a block of random numbers at shifting places; moments are those of independent coordinates, so that `mass` has a
 * basis.
 */
#include "attention/timeline.h"
#include "base/memory.h"
#include "base/rng.h"

enum { BLOCK = 1024, STEP = 512 }; /* rows that are drawn, rows that are appended at a time */

/* Variance 1 in each coordinate, from a sum of four uniforms. */
static void draw(float *x, size_t n, uint64_t seed)
{
    struct rng r;
    sr_rng_seed(&r, seed);
    for (size_t i = 0; i < n; i++) {
        double sum = -2;
        for (int k = 0; k < 4; k++) sum += sr_rng_unit(&r);
        x[i] = (float)(sum * 1.7320508075688772);
    }
}

static void append_all(struct attn_seq *s, const float *rows, int32_t len)
{
    const int64_t width = (int64_t)s->a->c.n_kv_heads * s->a->c.head_dim;
    for (int32_t l = 0; l < s->a->c.n_layers; l++) {
        for (int32_t at = 0, n; at < len; at += n) {
            const int64_t from = ((int64_t)at / STEP * 37 + l * 11) % (BLOCK - STEP);
            n = len - at < STEP ? len - at : STEP;
            sr_attn_append(s, l, rows + from * width, rows + (BLOCK - STEP - from) * width, n);
        }
    }
}

sr_status sr_attn_seq_fill_random(struct attn_seq *s, int32_t len, uint64_t seed, sr_error *err)
{
    struct backend *b = s->a->backend;
    const size_t n = (size_t)BLOCK * (size_t)s->a->c.n_kv_heads * (size_t)s->a->c.head_dim;
    void *rows;
    sr_status st = SR_OK;
    sr_attn_seq_clear(s);
    SR_TRY(sr_attn_seq_reserve(s, len, err));
    float *host = sr_alloc(n * sizeof *host);
    if (!host) return sr_fail_memory(err, n * sizeof *host, "random rows");
    SR_TRY_GOTO(b->ops->mem_new(b, &rows, n * sizeof *host, "random rows", err));
    draw(host, n, seed);
    b->ops->upload(b, rows, host, n * sizeof *host);
    append_all(s, rows, len);
    st = b->ops->download(b, host, rows, sizeof *host, err); /* waits: the rows are no longer read */
    b->ops->mem_free(b, rows);
    if (s->own) sr_moments_make_plain(s->own);
    if (s->own && s->device) sr_device_own_place(s);
fail:
    sr_free(host);
    return st;
}
