/* SPDX-License-Identifier: Apache-2.0
 *
 * The exact bytes of a sequence, piece by piece, for session files. The order of pieces depends on the
 * fixed-size state only: K and V runs, own moments, then how far the sketch goes and its runs. The file's
 * checksum, and the model's identity, are the engine's business; what would make rows mean something else is
 * refused here.
 */
#include "attention/timeline.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>

#include "base/memory.h"
#include "formats/quant.h"

/* Whether files have its sketch. A device's lies as no other's does, and is made anew; with it that of the layers below. */
static int in_files(const struct attn_seq *s)
{
    return !s->device && !s->lower && !s->is_lower;
}

void sr_attn_seq_state_get(const struct attn_seq *s, struct attn_seq_state *out)
{
    int32_t len = s->len[0];
    for (int32_t l = 1; l < s->a->c.n_layers; l++) len = s->len[l] < len ? s->len[l] : len;
    int has_own = s->own && (s->use_own || !s->a->moments);
    *out = (struct attn_seq_state){
        .len = len,
        .band = in_files(s) ? s->band : -1,
        .own_moments = !has_own     ? 0
                       : s->use_own ? 2
                                    : 1,
        .rank = s->sketch.rank,
        .bits = s->sketch.bits,
        .n_sinks = s->sketch_first,
        .moments_rows = has_own ? sr_moments_rows(s->own) : 0,
        .moments_id = s->band >= 0 && in_files(s) && !s->use_own ? sr_moments_id(s->a->moments) : 0,
    };
}

static sr_status differs(const char *name, int64_t found, int64_t want, sr_error *err)
{
    if (found == want) return SR_OK;
    return sr_fail(err, SR_ERR_UNSUPPORTED, "session: sketch %s %lld, this one has %lld", name,
                   (long long)found, (long long)want);
}

sr_status sr_attn_seq_state_set(struct attn_seq *s, const struct attn_seq_state *st, sr_error *err)
{
    if (st->own_moments < 0 || st->own_moments > 2)
        return sr_fail(err, SR_ERR_FORMAT, "session: own_moments %d: want 0..2", st->own_moments);
    if (st->own_moments && !s->own)
        return sr_fail(err, SR_ERR_UNSUPPORTED,
                       "session: has moments of its own, but a moments file is loaded");
    if (st->band < -1 ||
        (st->band >= 0 && st->band > sr_band_of(&s->a->rotation, st->len > 0 ? st->len : 1))) {
        return sr_fail(err, SR_ERR_FORMAT, "session: band %d with %d tokens", st->band, st->len);
    }
    if (st->band >= 0) {
        uint64_t id = s->a->moments ? sr_moments_id(s->a->moments) : 0;
        if (in_files(s)) {
            SR_TRY(differs("rank", st->rank, s->sketch.rank, err));
            SR_TRY(differs("bits", st->bits, s->sketch.bits, err));
        }
        if (st->rank < 1 || st->rank > s->a->c.head_dim || (st->bits != 4 && st->bits != 8 && st->bits != SR_SKETCH_MIXED))
            return sr_fail(err, SR_ERR_FORMAT, "session: sketch of rank %d, %d bits", st->rank, st->bits);
        SR_TRY(differs("n_sinks", st->n_sinks, s->sketch_first, err));
        if (st->own_moments != 2 && (id == 0 || st->moments_id != id)) {
            return sr_fail(err, SR_ERR_UNSUPPORTED, "session: its sketch stands on another moments file");
        }
    }
    if (s->lower) SR_TRY(sr_attn_seq_state_set(s->lower, st, err));
    SR_TRY(sr_attn_seq_set_len(s, st->len, err));
    sr_sketch_drop(s);
    if (s->own && st->own_moments) sr_moments_reset(s->own);
    s->band = in_files(s) ? st->band : -1;
    s->skips_sketch = !in_files(s) && st->band >= 0;
    if (s->skips_sketch) s->skipped_row_bytes = sr_sketch_host_row_bytes(st->rank, st->bits);
    s->use_own = st->own_moments == 2;
    return SR_OK;
}

sr_status sr_attn_seq_set_len(struct attn_seq *s, int32_t len, sr_error *err)
{
    if (len < 0 || len > s->max_len)
        return sr_fail(err, SR_ERR_FORMAT, "session: %d tokens, max_len is %d", len, s->max_len);
    SR_TRY(sr_attn_seq_reserve(s, len, err));
    for (int32_t l = 0; l < s->a->c.n_layers; l++) s->len[l] = len;
    return SR_OK;
}

sr_status sr_scales_check(const float *scales, size_t n, sr_error *err)
{
    for (size_t i = 0; i < n; i++) {
        int power;
        if (!(isnormal(scales[i]) && frexpf(scales[i], &power) == 0.5f))
            return sr_fail(err, SR_ERR_FORMAT, "session: scale %zu of its rows is %g: want a power of two", i, (double)scales[i]);
    }
    return SR_OK;
}

/* A damaged piece leaves scales of 1. */
static sr_status visit_scales(struct attn_seq *s, attn_piece_fn *fn, void *ctx, sr_error *err)
{
    const size_t n = 2 * (size_t)s->a->c.n_layers * (size_t)s->a->c.n_kv_heads;
    if (s->device) return sr_device_visit_scales(s, fn, ctx, err);
    if (!s->scales) return SR_OK;
    SR_TRY(fn(ctx, "scales", s->scales, n * sizeof *s->scales, err));
    const sr_status st = sr_scales_check(s->scales, n, err);
    for (size_t i = 0; st != SR_OK && i < n; i++) s->scales[i] = 1.0f;
    return st;
}

/* The first n rows of a run, wherever they lie. */
static sr_status visit_run(struct attn_seq *s, attn_piece_fn *fn, void *ctx, const struct device_run *r, sr_error *err)
{
    if (s->device) return sr_device_visit_rows(s, fn, ctx, r, err);
    return fn(ctx, r->what, r->data, (size_t)r->n * sr_row_bytes(r->type, s->shape.head_dim), err);
}

static sr_status visit_rows(struct attn_seq *s, int32_t len, attn_piece_fn *fn, void *ctx, sr_error *err)
{
    int32_t n_units = s->a->c.n_layers * s->a->c.n_kv_heads;
    SR_TRY(visit_scales(s, fn, ctx, err));
    for (int32_t u = 0; u < n_units; u++) {
        for (int32_t row = 0; row < len; row += SR_CHUNK_ROWS) {
            size_t at = (size_t)u * (size_t)s->table_room + (size_t)(row / SR_CHUNK_ROWS);
            int32_t n = len - row < SR_CHUNK_ROWS ? len - row : SR_CHUNK_ROWS;
            SR_TRY(visit_run(s, fn, ctx, &(struct device_run){"K rows", s->k[at], s->shape.k_type, n}, err));
            SR_TRY(visit_run(s, fn, ctx, &(struct device_run){"V rows", s->v[at], s->shape.v_type, n}, err));
        }
    }
    return SR_OK;
}

/* A sketch that the host made, read past. */
static sr_status skip_sketch(struct attn_seq *s, int32_t len, attn_piece_fn *fn, void *ctx, sr_error *err)
{
    const size_t extent = (size_t)s->a->c.n_layers * sizeof *s->sketch_to;
    const size_t run = SR_CHUNK_ROWS * s->skipped_row_bytes, most = extent > run ? extent : run;
    const int64_t n_runs = (int64_t)s->a->c.n_layers * s->a->c.n_kv_heads * ((len + SR_CHUNK_ROWS - 1) / SR_CHUNK_ROWS);
    void *ignored = sr_alloc(most);
    if (!ignored) return sr_fail_memory(err, most, "session");
    sr_status st = fn(ctx, "sketch extent", ignored, extent, err);
    for (int64_t i = 0; st == SR_OK && i < n_runs; i++) st = fn(ctx, "sketch rows", ignored, run, err);
    sr_free(ignored);
    return st;
}

/* Sketch runs are visited whole: only the backend knows where in a run a row lies. */
static sr_status visit_sketch(struct attn_seq *s, int32_t len, attn_piece_fn *fn, void *ctx, sr_error *err)
{
    int32_t n_layers = s->a->c.n_layers, n_units = n_layers * s->a->c.n_kv_heads;
    SR_TRY(fn(ctx, "sketch extent", s->sketch_to, (size_t)n_layers * sizeof *s->sketch_to, err));
    for (int32_t l = 0; l < n_layers; l++) {
        if (s->sketch_to[l] >= s->sketch_first &&
            (s->sketch_to[l] <= len || s->sketch_to[l] == s->sketch_first))
            continue;
        int32_t to = s->sketch_to[l];
        sr_sketch_drop(s);
        return sr_fail(err, SR_ERR_FORMAT, "session: layer %d: sketch rows up to %d of %d", l, to, len);
    }
    for (int32_t u = 0; u < n_units; u++) {
        for (int32_t row = 0; row < len; row += SR_CHUNK_ROWS) {
            void *run = s->y[(size_t)u * (size_t)s->table_room + (size_t)(row / SR_CHUNK_ROWS)];
            SR_TRY(fn(ctx, "sketch rows", run, SR_CHUNK_ROWS * s->sketch.row_bytes, err));
        }
    }
    return SR_OK;
}

static sr_status visit_sinks(struct attn_seq *s, int32_t len, attn_piece_fn *fn, void *ctx, sr_error *err)
{
    size_t bytes;
    void *p = sr_sinks_piece(s->sinks, &bytes);
    if (s->device) {
        SR_TRY(sr_device_found_fetch(s, err));
        sr_sinks_truncate(s->sinks, len); /* a device forgets when the next row comes */
    }
    SR_TRY(fn(ctx, "sinks", p, bytes, err));
    const int is_wrong = sr_sinks_check(s->sinks, len);
    if (is_wrong) sr_sinks_truncate(s->sinks, 0);
    if (s->device) sr_device_found_place(s);
    return is_wrong ? sr_fail(err, SR_ERR_FORMAT, "session: rows of its sinks are out of range") : SR_OK;
}

/* What audits taught; a damaged piece leaves a fresh one. */
static sr_status visit_contract(struct attn_seq *s, int32_t len, attn_piece_fn *fn, void *ctx, sr_error *err)
{
    size_t bytes;
    void *p = sr_contract_piece(s->contract, len, &s->route, &s->stats, &bytes);
    int32_t n_units = s->a->c.n_layers * s->a->c.n_kv_heads;
    SR_TRY(fn(ctx, "contract", p, bytes, err));
    if (!sr_contract_check(s->contract, n_units, s->a->group)) return SR_OK;
    sr_contract_restart(s->contract, n_units, s->a->group);
    return sr_fail(err, SR_ERR_FORMAT, "session: what its audits found is out of range");
}

static sr_status visit_trail(struct attn_seq *s, int32_t len, attn_piece_fn *fn, void *ctx, sr_error *err)
{
    if (s->device) SR_TRY(sr_device_trail_fetch(s, err));
    SR_TRY(fn(ctx, "trail", &s->trail, sizeof s->trail, err));
    const int is_wrong = sr_trail_check(&s->trail, len);
    if (is_wrong) s->trail = (struct trail){0};
    if (s->device) SR_TRY(sr_device_trail_place(s, err));
    if (!is_wrong) return SR_OK;
    return sr_fail(err, SR_ERR_FORMAT, "session: rows of its trail are out of range");
}

/* A sequence that went from mass to another mode may have grown past its sketch's memory: that is made up for
 * first. */
sr_status sr_attn_seq_visit(struct attn_seq *s, attn_piece_fn *fn, void *ctx, sr_error *err)
{
    struct attn_seq_state st;
    if (s->lower) SR_TRY(sr_attn_seq_visit(s->lower, fn, ctx, err));
    sr_attn_seq_state_get(s, &st);
    SR_TRY(visit_rows(s, st.len, fn, ctx, err));
    if (st.own_moments) {
        size_t bytes;
        void *p;
        if (s->device) SR_TRY(sr_device_own_fetch(s, err));
        for (int i = 0; (p = sr_moments_piece(s->own, i, &bytes)); i++)
            SR_TRY(fn(ctx, "moments", p, bytes, err));
        if (s->device && !sr_moments_check(s->own)) {
            sr_moments_fold(s->own);
            sr_device_own_place(s);
        }
    }
    if (st.own_moments && sr_moments_check(s->own)) {
        sr_moments_reset(s->own);
        return sr_fail(err, SR_ERR_FORMAT, "session: counts of its moments are out of range");
    }
    SR_TRY(visit_sinks(s, st.len, fn, ctx, err));
    SR_TRY(visit_contract(s, st.len, fn, ctx, err));
    SR_TRY(visit_trail(s, st.len, fn, ctx, err));
    if (s->skips_sketch) return skip_sketch(s, st.len, fn, ctx, err);
    if (st.band < 0) return SR_OK;
    SR_TRY(sr_cache_sketch_reserve(s, &s->sketch, err));
    return visit_sketch(s, st.len, fn, ctx, err);
}

static sr_status check_run(const struct attn_seq *s, int32_t unit, int32_t row, char which, sr_error *err)
{
    size_t at = (size_t)unit * (size_t)s->table_room + (size_t)(row / SR_CHUNK_ROWS),
           in = (size_t)(row % SR_CHUNK_ROWS);
    const uint8_t *run = which == 'K' ? s->k[at] : s->v[at];
    size_t bytes = which == 'K' ? s->shape.k_row_bytes : s->shape.v_row_bytes;
    sr_dtype type = which == 'K' ? s->shape.k_type : s->shape.v_type;
    assert(!s->device);
    if (sr_row_find_nonfinite(type, run + in * bytes, s->shape.head_dim) < 0) return SR_OK;
    return sr_fail(err, SR_ERR_NUMERIC, "layer %d, KV group %d, row %d: %c is not finite",
                   unit / s->a->c.n_kv_heads, unit % s->a->c.n_kv_heads, row, which);
}

/* A damaged file fails its checksum before this; what a device holds is not brought back to be looked at again. */
sr_status sr_attn_seq_check(struct attn_seq *s, sr_error *err)
{
    s->skips_sketch = 0;
    if (s->lower) SR_TRY(sr_attn_seq_check(s->lower, err));
    if (s->device) return SR_OK;
    for (int32_t u = 0; u < s->a->c.n_layers * s->a->c.n_kv_heads; u++) {
        for (int32_t row = 0; row < s->len[u / s->a->c.n_kv_heads]; row++) {
            SR_TRY(check_run(s, u, row, 'K', err));
            SR_TRY(check_run(s, u, row, 'V', err));
        }
    }
    return SR_OK;
}
