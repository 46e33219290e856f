/* SPDX-License-Identifier: Apache-2.0
 *
 * A cache of random rows, where only speed and memory are looked at: long contexts without their prefill. Rows are taken
 * from a block of random numbers at shifting places; moments are those of independent coordinates, so that `mass` has a
 * basis. And a cache of real rows repeated: where keys have to look like keys, at lengths that nobody prefills.
 */
#include "attention/timeline.h"
#include "base/memory.h"
#include "base/rng.h"
#include "formats/quant.h"

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

/* ---- real rows, repeated ---- */

enum { TILE_FIRST = 4 }; /* rows before it are sinks: once is enough */

struct tiling {
    struct attn_seq *s;
    float *k, *v;                   /* [STEP][n_kv_heads][head_dim] */
    float turn[2 * SR_MAX_PAIRS];   /* back by the distance of a copy, so that undoing it turns on */
};

/* Row `from` as it would have been `distance` positions later. The magnitude of the embedding is in the row already. */
static void copy_row(const struct tiling *t, int32_t layer, int32_t from, float *k, float *v)
{
    const struct attn_seq *s = t->s;
    const struct rotation *r = &s->a->rotation;
    const int32_t d = s->a->c.head_dim, n_kv = s->a->c.n_kv_heads;
    const size_t n_units = (size_t)s->a->c.n_layers * (size_t)n_kv;
    float as_is[256];
    for (int32_t g = 0; g < n_kv; g++) {
        const size_t unit = (size_t)layer * (size_t)n_kv + (size_t)g, run = unit * (size_t)s->table_room + (size_t)(from / SR_CHUNK_ROWS);
        const size_t row = (size_t)(from % SR_CHUNK_ROWS);
        sr_dequantize_row(s->shape.k_type, (const uint8_t *)s->k[run] + row * s->shape.k_row_bytes, as_is, d);
        sr_dequantize_row(s->shape.v_type, (const uint8_t *)s->v[run] + row * s->shape.v_row_bytes, v + g * d, d);
        for (int32_t i = 0; s->scales && i < d; i++) {
            as_is[i] *= sr_kv_is_scaled(s->shape.k_type) ? s->scales[unit] : 1.0f;
            v[g * d + i] *= sr_kv_is_scaled(s->shape.v_type) ? s->scales[n_units + unit] : 1.0f;
        }
        sr_rotation_undo(r, t->turn, as_is, k + g * d);
        for (int32_t i = 0; i < r->n_pairs; i++) {
            k[g * d + r->first[i]] *= (float)r->scale[i];
            k[g * d + r->second[i]] *= (float)r->scale[i];
        }
    }
}

static void tile_layer(const struct tiling *t, int32_t layer, int32_t len)
{
    const int32_t width = t->s->a->c.n_kv_heads * t->s->a->c.head_dim;
    for (int32_t at = TILE_FIRST, n; at < len; at += n) {
        n = len - at < STEP ? len - at : STEP;
        for (int32_t i = 0; i < n; i++) copy_row(t, layer, at + i, t->k + i * width, t->v + i * width);
        sr_attn_append(t->s, layer, t->k, t->v, n);
    }
}

sr_status sr_attn_seq_tile(struct attn_seq *s, int32_t copies, sr_error *err)
{
    const int32_t len = s->len[0];
    const int64_t all = TILE_FIRST + (int64_t)(len - TILE_FIRST) * copies;
    const size_t n = 2 * (size_t)STEP * (size_t)s->a->c.n_kv_heads * (size_t)s->a->c.head_dim;
    struct tiling t = {.s = s};
    if (s->device || s->observer)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "repeating rows: of sequences on the CPU that are not observed");
    if (len <= TILE_FIRST || copies < 1 || all > s->max_len)
        return sr_fail(err, SR_ERR_USAGE, "repeating %d rows %d times: want more than %d rows, at most %d in the end", len, copies,
                       TILE_FIRST, s->max_len);
    SR_TRY(sr_attn_seq_reserve(s, (int32_t)all, err));
    t.k = sr_alloc(n * sizeof(float));
    if (!t.k) return sr_fail_memory(err, n * sizeof(float), "repeated rows");
    t.v = t.k + n / 2;
    for (int32_t c = 1; c < copies; c++) {
        sr_rotation_turn(&s->a->rotation, -(int64_t)c * (len - TILE_FIRST), t.turn);
        for (int32_t l = 0; l < s->a->c.n_layers; l++) tile_layer(&t, l, len);
    }
    sr_free(t.k);
    return SR_OK;
}
