/* SPDX-License-Identifier: Apache-2.0
 *
 * A model whose first layers are another backend's: with the CPU on both sides the same bits as in one piece, in prefill
 * and decode, dense and mass, one sequence and several; and counters, memory and session pieces of all layers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "sinkrouter/engine.h"

#include "engine/session.h"
#include "base/memory.h"

#include "ok.h"
#include "tiny_model.h"

#include <stdlib.h>
#include <string.h>

enum { LAYERS = 5, N = 2100, ALL = 2140 };

/* A model opened in one piece, and a second set of weights over the same file whose first n_lower layers are apart. */
struct split {
    sr_model *m;
    struct backend *lower;
    struct model_weights *weights; /* the pass keeps its address */
    struct attention *attention;
    struct forward *forward;
    struct attn_seq *seq;
};

static struct split open_split(const char *path, int32_t n_lower, const sr_session_options *o, const char *moments)
{
    struct split s = {0};
    sr_model_options mo = sr_model_options_default();
    mo.device = "none";
    mo.n_threads = 2;
    mo.load = SR_LOAD_MAP; /* the second set of weights borrows from the same mapping */
    mo.moments_path = moments ? moments : "";
    OK(sr_model_open(&s.m, path, &mo, &err));
    const struct model_config *c = &s.m->config;
    OK(sr_backend_cpu_open(&s.lower, 1, &err));
    const struct weights_options w = {.n_lower = n_lower, .lower = s.lower};
    s.weights = malloc(sizeof *s.weights);
    OK(sr_weights_load(s.weights, s.m->file, c, s.m->backend, &w, &err));
    const struct attention_config a = {.n_layers = c->n_layers, .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim,
                                       .rope = c->rope, .n_lower = n_lower, .lower = s.lower};
    OK(sr_attn_new(&s.attention, s.m->backend, &a, &err));
    if (moments) OK(sr_attn_load_moments(s.attention, moments, &err));
    OK(sr_forward_new(&s.forward, c, s.weights, s.m->backend, o->n_batch, &err));
    const struct attn_seq_config q = {.k_type = o->k_type, .v_type = o->v_type, .max_len = o->n_ctx, .route = o->route};
    OK(sr_attn_seq_new(&s.seq, s.attention, &q, &err));
    return s;
}

static void close_split(struct split *s)
{
    sr_attn_seq_free(s->seq);
    sr_forward_free(s->forward);
    sr_attn_free(s->attention);
    sr_weights_free(s->weights, s->m->backend);
    free(s->weights);
    sr_backend_close(s->lower);
    sr_model_close(s->m);
}

static const char *write_model(int tied, const char *architecture)
{
    struct tiny_spec spec = tiny_spec_default();
    const char *path = tiny_path("split.gguf");
    spec.architecture = architecture;
    if (strcmp(architecture, "qwen3moe") == 0) {
        spec.n_experts = 8;
        spec.n_used = 2;
        spec.n_ff = 32;
    }
    spec.n_layers = LAYERS;
    spec.untied = !tied;
    spec.n_ctx = 4096;
    tiny_model_write(path, &spec);
    return path;
}

static sr_session_options options_of(sr_route_mode mode)
{
    sr_session_options o = sr_session_options_default();
    o.n_ctx = 4096;
    o.route.mode = mode;
    o.route.min_len = 512;
    o.route.window = 64;
    o.route.audit = 0.25f;
    o.route.trail = 0; /* each part has one of its own */
    return o;
}

static void prefill(struct split *s, const int32_t *ids, int32_t n, int32_t batch, int want, float *out)
{
    for (int32_t at = 0; at < n; at += batch) {
        const int32_t part = n - at < batch ? n - at : batch;
        OK(sr_attn_seq_reserve(s->seq, at + part, &err));
        OK(sr_forward_prefill(s->forward, s->seq, ids + at, part, at + part == n ? want : 0, out, &err));
    }
}

static void expect_same(const float *a, const float *b, int32_t n, const char *what, int32_t t)
{
    if (memcmp(a, b, (size_t)n * sizeof *a)) fail_msg("%s: logits of position %d differ", what, t);
}

/* Sums over layers come in another order. */
static void expect_stats(struct split *s, sr_session *whole)
{
    sr_session_stats a;
    sr_route_stats b;
    uint64_t kv, sketch, kv_whole, sketch_whole;
    const int64_t *near_only, *decisions;
    sr_session_get_stats(whole, &a);
    sr_attn_seq_stats(s->seq, &b);
    assert_int_equal(a.route.steps, b.steps);
    assert_int_equal(a.route.units, b.units);
    assert_int_equal(a.route.units_list, b.units_list);
    assert_int_equal(a.route.k_rows, b.k_rows);
    assert_int_equal(a.route.kv_bytes, b.kv_bytes);
    assert_int_equal(a.route.dense_bytes, b.dense_bytes);
    assert_int_equal(a.route.encoded, b.encoded);
    sr_attn_seq_memory(s->seq, &kv, &sketch);
    sr_session_memory(whole, &kv_whole, &sketch_whole);
    assert_int_equal(kv, kv_whole);
    assert_int_equal(sketch, sketch_whole);
    float *heat = malloc(sizeof(float) * LAYERS * 2);
    sr_session_heat(whole, heat);
    sr_attn_seq_heat(s->seq, &near_only, &decisions);
    for (int i = 0; i < LAYERS * 2; i++)
        if (decisions[i]) assert_true((float)near_only[i] / (float)decisions[i] == heat[i]);
    free(heat);
}

static void split_case(const char *what, sr_route_mode mode, int32_t n_lower, int tied, const char *architecture)
{
    const char *path = write_model(tied, architecture);
    const sr_session_options o = options_of(mode);
    struct split s = open_split(path, n_lower, &o, NULL);
    sr_session *whole;
    const int32_t n_vocab = s.m->config.n_vocab;
    float *out = malloc((size_t)n_vocab * sizeof *out);
    int32_t *ids = malloc(ALL * sizeof *ids);
    tiny_tokens(9, ids, ALL);
    OK(sr_session_new(&whole, s.m, &o, &err));
    OK(sr_session_prefill(whole, ids, N, NULL, NULL, NULL, &err));
    prefill(&s, ids, N, o.n_batch, 1, out);
    expect_same(out, sr_session_logits(whole), n_vocab, what, N - 1);
    for (int32_t t = N; t < ALL; t++) {
        OK(sr_session_decode(whole, ids[t], &err));
        OK(sr_attn_seq_reserve(s.seq, t + 1, &err));
        OK(sr_forward_decode(s.forward, s.attention, &s.seq, &ids[t], 1, &out, &err));
        expect_same(out, sr_session_logits(whole), n_vocab, what, t);
    }
    /* and from an edited timeline */
    OK(sr_attn_seq_truncate(s.seq, 600, &err));
    OK(sr_session_truncate(whole, 600, &err));
    OK(sr_session_prefill(whole, ids + 600, 30, NULL, NULL, NULL, &err));
    OK(sr_attn_seq_reserve(s.seq, 630, &err));
    OK(sr_forward_prefill(s.forward, s.seq, ids + 600, 30, 1, out, &err));
    expect_same(out, sr_session_logits(whole), n_vocab, what, 629);
    sr_session_free(whole);
    free(out);
    free(ids);
    close_split(&s);
}

static void dense(void **state)
{
    (void)state;
    split_case("dense", SR_ROUTE_DENSE, 2, 0, "llama");
    split_case("dense, one layer below", SR_ROUTE_DENSE, 1, 0, "llama");
    split_case("dense, one layer above, tied", SR_ROUTE_DENSE, LAYERS - 1, 1, "llama");
}

static void experts(void **state)
{
    (void)state;
    split_case("experts", SR_ROUTE_DENSE, 3, 0, "qwen3moe");
}

/* Audits are drawn by (layer, position): layers count from the first of each part, so they are left out here. */
static void mass(void **state)
{
    (void)state;
    const char *path = write_model(1, "llama");
    sr_session_options o = options_of(SR_ROUTE_MASS);
    o.route.audit = 0;
    struct split s = open_split(path, 2, &o, NULL);
    sr_session *whole;
    const int32_t n_vocab = s.m->config.n_vocab;
    float *out = malloc((size_t)n_vocab * sizeof *out);
    int32_t *ids = malloc(ALL * sizeof *ids);
    tiny_tokens(9, ids, ALL);
    OK(sr_session_new(&whole, s.m, &o, &err));
    OK(sr_session_prefill(whole, ids, N, NULL, NULL, NULL, &err));
    prefill(&s, ids, N, o.n_batch, 1, out);
    for (int32_t t = N; t < ALL; t++) {
        OK(sr_session_decode(whole, ids[t], &err));
        OK(sr_attn_seq_reserve(s.seq, t + 1, &err));
        OK(sr_forward_decode(s.forward, s.attention, &s.seq, &ids[t], 1, &out, &err));
        expect_same(out, sr_session_logits(whole), n_vocab, "mass", t);
    }
    expect_stats(&s, whole);
    sr_route_stats b;
    sr_attn_seq_stats(s.seq, &b);
    assert_true(b.units_list + b.units_near > 0 && b.sketch_rows > 0);
    sr_session_free(whole);
    free(out);
    free(ids);
    close_split(&s);
}

/* A file of moments has all layers; each part takes its own. */
static void moments_file(void **state)
{
    (void)state;
    const char *path = write_model(0, "llama"), *file = tiny_path("split.moments");
    sr_session_options o = options_of(SR_ROUTE_MASS);
    o.route.audit = 0;
    sr_model_options mo = sr_model_options_default();
    sr_model *m;
    sr_session *whole;
    int32_t *ids = malloc(ALL * sizeof *ids);
    tiny_tokens(9, ids, ALL);
    mo.device = "none";
    OK(sr_model_open(&m, path, &mo, &err));
    OK(sr_session_new(&whole, m, &o, &err));
    OK(sr_session_prefill(whole, ids, N, NULL, NULL, NULL, &err));
    OK(sr_session_moments_save(whole, file, &err));
    sr_session_free(whole);
    sr_model_close(m);

    struct split s = open_split(path, 3, &o, file);
    float *out = malloc((size_t)s.m->config.n_vocab * sizeof *out);
    OK(sr_session_new(&whole, s.m, &o, &err));
    OK(sr_session_prefill(whole, ids, 900, NULL, NULL, NULL, &err));
    prefill(&s, ids, 900, o.n_batch, 1, out);
    for (int32_t t = 900; t < 920; t++) {
        OK(sr_session_decode(whole, ids[t], &err));
        OK(sr_attn_seq_reserve(s.seq, t + 1, &err));
        OK(sr_forward_decode(s.forward, s.attention, &s.seq, &ids[t], 1, &out, &err));
        expect_same(out, sr_session_logits(whole), s.m->config.n_vocab, "mass with a file", t);
    }
    expect_stats(&s, whole);
    assert_int_equal(sr_attn_seq_save_moments(s.seq, file, &err), SR_ERR_UNSUPPORTED);
    sr_session_free(whole);
    free(out);
    free(ids);
    close_split(&s);
}

static void several(void **state)
{
    (void)state;
    enum { SEQS = 3 };
    const char *path = write_model(1, "llama");
    const sr_session_options o = options_of(SR_ROUTE_DENSE);
    struct split s = open_split(path, 2, &o, NULL);
    struct attn_seq *seqs[SEQS] = {s.seq};
    const struct attn_seq_config q = {.k_type = o.k_type, .v_type = o.v_type, .max_len = o.n_ctx, .route = o.route};
    const int32_t n_vocab = s.m->config.n_vocab;
    float *out = malloc((size_t)(SEQS * n_vocab) * sizeof *out), *rows[SEQS];
    sr_session *whole[SEQS];
    int32_t ids[64], next[SEQS];
    tiny_tokens(4, ids, 64);
    for (int i = 0; i < SEQS; i++) {
        rows[i] = out + i * n_vocab;
        if (i) OK(sr_attn_seq_new(&seqs[i], s.attention, &q, &err));
        OK(sr_session_new(&whole[i], s.m, &o, &err));
        OK(sr_session_prefill(whole[i], ids, 20 + 7 * i, NULL, NULL, NULL, &err));
        OK(sr_attn_seq_reserve(seqs[i], 64, &err));
        OK(sr_forward_prefill(s.forward, seqs[i], ids, 20 + 7 * i, 0, NULL, &err));
    }
    for (int t = 0; t < 5; t++) {
        for (int i = 0; i < SEQS; i++) OK(sr_session_decode(whole[i], next[i] = ids[20 + 7 * i + t], &err));
        OK(sr_forward_decode(s.forward, s.attention, seqs, next, SEQS, rows, &err));
        for (int i = 0; i < SEQS; i++) expect_same(rows[i], sr_session_logits(whole[i]), n_vocab, "several", t);
    }
    for (int i = 0; i < SEQS; i++) {
        if (i) sr_attn_seq_free(seqs[i]);
        sr_session_free(whole[i]);
    }
    free(out);
    close_split(&s);
}

/* ---- session pieces ---- */

struct bytes { uint8_t *data; size_t n, room; };

static sr_status keep(void *ctx, const char *what, void *data, size_t bytes, sr_error *e)
{
    struct bytes *b = ctx;
    (void)what;
    (void)e;
    while (b->n + bytes > b->room) b->data = realloc(b->data, b->room = 2 * (b->room + bytes));
    memcpy(b->data + b->n, data, bytes);
    b->n += bytes;
    return SR_OK;
}

static sr_status give(void *ctx, const char *what, void *data, size_t bytes, sr_error *e)
{
    struct bytes *b = ctx;
    (void)what;
    (void)e;
    assert_true(b->n + bytes <= b->room);
    memcpy(data, b->data + b->n, bytes);
    b->n += bytes;
    return SR_OK;
}

/* The sketches of both parts are left out, and made anew to the same bits. */
static void pieces(void **state)
{
    (void)state;
    const char *path = write_model(0, "llama");
    sr_session_options o = options_of(SR_ROUTE_MASS);
    o.route.audit = 0;
    struct split s = open_split(path, 2, &o, NULL);
    struct attn_seq *first = s.seq, *second;
    struct attn_seq_state held;
    struct bytes all = {0};
    const int32_t n_vocab = s.m->config.n_vocab;
    float *want = malloc((size_t)n_vocab * 20 * sizeof *want), *out = malloc((size_t)n_vocab * sizeof *out);
    int32_t *ids = malloc(ALL * sizeof *ids);
    tiny_tokens(2, ids, ALL);
    prefill(&s, ids, N, o.n_batch, 0, NULL);
    for (int32_t t = N; t < N + 2; t++) {
        OK(sr_attn_seq_reserve(s.seq, t + 1, &err));
        OK(sr_forward_decode(s.forward, s.attention, &s.seq, &ids[t], 1, &out, &err));
    }
    sr_attn_seq_state_get(first, &held);
    assert_int_equal(held.len, N + 2);
    assert_int_equal(held.own_moments, 2);
    OK(sr_attn_seq_visit(first, keep, &all, &err));
    for (int t = 0; t < 20; t++) {
        OK(sr_attn_seq_reserve(first, N + 3 + t, &err));
        OK(sr_forward_decode(s.forward, s.attention, &first, &ids[N + 2 + t], 1, (float *[]){want + t * n_vocab}, &err));
    }
    const struct attn_seq_config q = {.k_type = o.k_type, .v_type = o.v_type, .max_len = o.n_ctx, .route = o.route};
    OK(sr_attn_seq_new(&second, s.attention, &q, &err));
    OK(sr_attn_seq_reserve(second, held.len, &err));
    OK(sr_attn_seq_state_set(second, &held, &err));
    all.room = all.n;
    all.n = 0;
    OK(sr_attn_seq_visit(second, give, &all, &err));
    assert_int_equal(all.n, all.room);
    OK(sr_attn_seq_check(second, &err));
    for (int t = 0; t < 20; t++) {
        OK(sr_attn_seq_reserve(second, N + 3 + t, &err));
        OK(sr_forward_decode(s.forward, s.attention, &second, &ids[N + 2 + t], 1, &out, &err));
        expect_same(out, want + t * n_vocab, n_vocab, "restored", N + 2 + t);
    }
    sr_attn_seq_free(second);
    free(all.data);
    free(want);
    free(out);
    free(ids);
    close_split(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense),        cmocka_unit_test(experts), cmocka_unit_test(mass),
        cmocka_unit_test(moments_file), cmocka_unit_test(several), cmocka_unit_test(pieces),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
