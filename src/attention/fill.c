/* SPDX-License-Identifier: Apache-2.0
 *
 * A cache of random rows, where only speed and memory are looked at: long contexts without their prefill. Rows are taken
 * from a block of random numbers at shifting places; moments are those of independent coordinates, so that `mass` has a
 * basis.
 */
#include "attention/timeline.h"
#include "base/memory.h"
#include "base/rng.h"

#include <string.h>

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

/* rows: the block, and behind it row 0 if there is one of its own. */
static void append_all(struct attn_seq *s, const float *rows, int32_t len, int has_first)
{
    const int64_t width = (int64_t)s->a->c.n_kv_heads * s->a->c.head_dim;
    for (int32_t l = 0; l < s->a->c.n_layers; l++) {
        if (has_first) sr_attn_append(s, l, rows + BLOCK * width, rows, 1);
        for (int32_t at = has_first, n; at < len; at += n) {
            const int64_t from = ((int64_t)at / STEP * 37 + l * 11) % (BLOCK - STEP);
            n = len - at < STEP ? len - at : STEP;
            sr_attn_append(s, l, rows + from * width, rows + (BLOCK - STEP - from) * width, n);
        }
    }
}

sr_status sr_attn_seq_fill_random(struct attn_seq *s, int32_t len, uint64_t seed, const float *first, sr_error *err)
{
    struct backend *b = s->a->backend;
    const size_t width = (size_t)s->a->c.n_kv_heads * (size_t)s->a->c.head_dim, n = BLOCK * width,
                 bytes = (n + width) * sizeof(float);
    void *rows;
    sr_status st = SR_OK;
    sr_attn_seq_clear(s);
    if (s->lower) SR_TRY(sr_attn_seq_fill_random(s->lower, len, seed + 1, NULL, err));
    SR_TRY(sr_attn_seq_reserve(s, len, err));
    float *host = sr_alloc(bytes);
    if (!host) return sr_fail_memory(err, bytes, "random rows");
    SR_TRY_GOTO(b->ops->mem_new(b, &rows, bytes, "random rows", err));
    draw(host, n, seed);
    if (first) memcpy(host + n, first, width * sizeof *host);
    b->ops->upload(b, rows, host, (n + (first ? width : 0)) * sizeof *host);
    if (s->own) sr_moments_make_plain(s->own); /* before: then none are collected */
    append_all(s, rows, len, first != NULL);
    st = b->ops->download(b, host, rows, sizeof *host, err); /* waits: the rows are no longer read */
    b->ops->mem_free(b, rows);
    if (s->own && s->device) sr_device_own_place(s);
fail:
    sr_free(host);
    return st;
}
