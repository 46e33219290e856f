/* SPDX-License-Identifier: Apache-2.0
 *
 * See attn_world.h.
 */
#include "attn_world.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "attention/moments.h"
#include "attention/rotation.h"
#include "attention/timeline.h"
#include "base/rng.h"
#include "formats/quant.h"

enum { TOPICS = 10, MAX_DIM = 256 };

static double normal(struct rng *r)
{
    double u = 1 - sr_rng_unit(r), v = sr_rng_unit(r);
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

static void normals(struct rng *r, double *x, int32_t n, double size)
{
    for (int32_t i = 0; i < n; i++) x[i] = size * normal(r);
}

/* The plain definition, pair by pair. */
static void rotate(const struct rope_spec *s, double *x, int64_t pos)
{
    int32_t half = s->n_dims / 2;
    for (int32_t i = 0; i < half && s->kind != ROPE_NONE; i++) {
        double *a = s->kind == ROPE_NEOX ? x + i : x + 2 * i,
               *b = s->kind == ROPE_NEOX ? x + i + half : x + 2 * i + 1;
        double c = cos((double)pos * s->inv_freq[i]) * s->magnitude,
               n = sin((double)pos * s->inv_freq[i]) * s->magnitude;
        double a0 = *a, b0 = *b;
        *a = a0 * c - b0 * n;
        *b = a0 * n + b0 * c;
    }
}

struct group_style {
    double sink[MAX_DIM], mean[MAX_DIM], topic[TOPICS][MAX_DIM], value[TOPICS][MAX_DIM];
};

static void fill_token(struct attn_world *w, struct rng *r, const struct group_style *s, int32_t layer,
                       int32_t group, int32_t pos, int32_t topic)
{
    int32_t d = w->head_dim, per = w->n_heads / w->n_kv_heads;
    double x[MAX_DIM];
    float *k = sr_world_k(w, layer, pos) + group * d, *v = sr_world_v(w, layer, pos) + group * d;
    normals(r, x, d, 0.4);
    for (int32_t i = 0; i < d; i++) x[i] += s->mean[i] + (pos == 0 ? s->sink[i] : s->topic[topic][i]);
    rotate(&w->rope, x, pos);
    for (int32_t i = 0; i < d; i++) k[i] = (float)x[i];
    normals(r, x, d, pos == 0 ? 0.02 : 0.5);
    for (int32_t i = 0; i < d; i++) v[i] = (float)(x[i] + (pos == 0 ? 0 : s->value[topic][i]));
    for (int32_t h = 0; h < per; h++) {
        float *q = sr_world_q(w, layer, pos) + (group * per + h) * d;
        double to_sink = 1.0 + 0.25 * ((layer * 7 + group * 3 + h) % 4), to_topic = 2.4 - 0.2 * (h % 4);
        normals(r, x, d, 0.4);
        for (int32_t i = 0; i < d; i++) x[i] += to_sink * s->sink[i] * 0.5 + to_topic * s->topic[topic][i];
        rotate(&w->rope, x, pos);
        for (int32_t i = 0; i < d; i++) q[i] = (float)x[i];
    }
}

struct attn_world *sr_world_new(int32_t n_layers, int32_t n_kv_heads, int32_t group, int32_t head_dim,
                                int32_t len, uint64_t seed)
{
    struct attn_world *w = calloc(1, sizeof *w);
    struct group_style *style = calloc(1, sizeof *style);
    struct rng r;
    size_t rows = (size_t)n_layers * (size_t)len * (size_t)head_dim * sizeof(float);
    assert_non_null(w);
    assert_non_null(style);
    *w = (struct attn_world){
        n_layers, n_kv_heads * group, n_kv_heads, head_dim, len, {ROPE_NORM, head_dim, {0}, 1}, NULL, NULL,
        NULL};
    for (int32_t i = 0; i < head_dim / 2; i++) w->rope.inv_freq[i] = pow(10000, -2.0 * i / head_dim);
    w->q = malloc(rows * (size_t)w->n_heads);
    w->k = malloc(rows * (size_t)n_kv_heads);
    w->v = malloc(rows * (size_t)n_kv_heads);
    assert_true(w->q && w->k && w->v);
    sr_rng_seed(&r, seed);
    for (int32_t l = 0; l < n_layers; l++) {
        for (int32_t g = 0; g < n_kv_heads; g++) {
            normals(&r, style->sink, head_dim, 0.8);
            normals(&r, style->mean, head_dim, 0.3);
            for (int t = 0; t < TOPICS; t++) {
                normals(&r, style->topic[t], head_dim, 0.8);
                normals(&r, style->value[t], head_dim, 1.0);
            }
            for (int32_t p = 0, topic = 0; p < len; p++) {
                if (p % 48 == 0) topic = (int32_t)(sr_rng_u64(&r) % TOPICS);
                fill_token(w, &r, style, l, g, p, topic);
            }
        }
    }
    free(style);
    return w;
}

void sr_world_free(struct attn_world *w)
{
    free(w->q);
    free(w->k);
    free(w->v);
    free(w);
}

static float *at(const struct attn_world *w, float *x, int32_t heads, int32_t layer, int32_t pos)
{
    return x + ((size_t)layer * (size_t)w->len + (size_t)pos) * (size_t)(heads * w->head_dim);
}

float *sr_world_q(const struct attn_world *w, int32_t layer, int32_t pos)
{
    return at(w, w->q, w->n_heads, layer, pos);
}
float *sr_world_k(const struct attn_world *w, int32_t layer, int32_t pos)
{
    return at(w, w->k, w->n_kv_heads, layer, pos);
}
float *sr_world_v(const struct attn_world *w, int32_t layer, int32_t pos)
{
    return at(w, w->v, w->n_kv_heads, layer, pos);
}

void sr_world_round(struct attn_world *w, sr_dtype k_type, sr_dtype v_type)
{
    uint8_t row[MAX_DIM * 4];
    int64_t rows = (int64_t)w->n_layers * w->len * w->n_kv_heads;
    for (int64_t i = 0; i < rows; i++) {
        float *k = w->k + i * w->head_dim, *v = w->v + i * w->head_dim;
        assert_int_equal(sr_quantize_row(k_type, k, row, w->head_dim, NULL), SR_OK);
        sr_dequantize_row(k_type, row, k, w->head_dim);
        assert_int_equal(sr_quantize_row(v_type, v, row, w->head_dim, NULL), SR_OK);
        sr_dequantize_row(v_type, row, v, w->head_dim);
    }
}

void sr_world_logits(const struct attn_world *w, int32_t layer, int32_t head, int32_t pos, double *logits)
{
    int32_t d = w->head_dim, group = head / (w->n_heads / w->n_kv_heads);
    const float *q = sr_world_q(w, layer, pos) + head * d;
    for (int32_t i = 0; i <= pos; i++) {
        const float *k = sr_world_k(w, layer, i) + group * d;
        logits[i] = 0;
        for (int32_t j = 0; j < d; j++) logits[i] += (double)q[j] * (double)k[j];
        logits[i] /= sqrt(d);
    }
}

double sr_world_attend(const struct attn_world *w, int32_t layer, int32_t head, int32_t pos,
                       const uint8_t *read, double *out)
{
    int32_t d = w->head_dim, group = head / (w->n_heads / w->n_kv_heads);
    double *logits = malloc((size_t)(pos + 1) * sizeof *logits), top = -INFINITY, all = 0, kept = 0;
    assert_non_null(logits);
    sr_world_logits(w, layer, head, pos, logits);
    for (int32_t i = 0; i <= pos; i++) top = logits[i] > top ? logits[i] : top;
    memset(out, 0, (size_t)d * sizeof *out);
    for (int32_t i = 0; i <= pos; i++) {
        double p = exp(logits[i] - top);
        const float *v = sr_world_v(w, layer, i) + group * d;
        all += p;
        if (read && !read[i]) continue;
        kept += p;
        for (int32_t j = 0; j < d; j++) out[j] += p * (double)v[j];
    }
    for (int32_t j = 0; j < d && kept > 0; j++) out[j] /= kept;
    free(logits);
    return 1 - kept / all;
}

void sr_world_moments(const struct attn_world *w, char path[64])
{
    struct moments_shape shape = {w->n_layers, w->n_heads, w->n_kv_heads, w->head_dim};
    struct moments *m;
    struct rotation r;
    size_t n = (size_t)w->n_heads * (size_t)w->head_dim;
    float *q = malloc(n * sizeof *q);
    assert_non_null(q);
    sr_rotation_init(&r, &w->rope, w->head_dim);
    assert_int_equal(sr_moments_new(&m, &shape, &r, NULL), SR_OK);
    for (int32_t l = 0; l < w->n_layers; l++) {
        for (int32_t p = 0; p < SR_MOMENTS_LAST; p++) {
            for (size_t i = 0; i < n; i++) q[i] = sr_world_q(w, l, p)[i] * (1.0f / sqrtf((float)w->head_dim));
            sr_moments_add_q(m, NULL, l, q, 1, p);
        }
        sr_moments_add_k(m, NULL, l, sr_world_k(w, l, 0), SR_MOMENTS_LAST, 0);
    }
    snprintf(path, 64, "/tmp/sr-moments-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(sr_moments_save(m, &w->rope, path, NULL), SR_OK);
    sr_moments_free(m);
    free(q);
}

/* ---- a sequence over the world ---- */

void sr_bench_open(struct attn_bench *b, const struct attn_world *w, sr_dtype k_type, sr_dtype v_type,
                   const sr_route_options *route, int n_threads, const char *moments)
{
    sr_error err = {SR_OK, ""};
    struct attention_config c = {.n_layers = w->n_layers, .n_heads = w->n_heads, .n_kv_heads = w->n_kv_heads, .head_dim = w->head_dim, .rope = w->rope};
    struct attn_seq_config sc = {k_type, v_type, w->len, *route};
    if (sr_backend_cpu_open(&b->backend, n_threads, &err) ||
        sr_attn_new(&b->attention, b->backend, &c, &err) ||
        (moments && sr_attn_load_moments(b->attention, moments, &err)) ||
        sr_attn_seq_new(&b->seq, b->attention, &sc, &err)) {
        fail_msg("%s", err.text);
    }
}

void sr_bench_close(struct attn_bench *b)
{
    sr_attn_seq_free(b->seq);
    sr_attn_free(b->attention);
    sr_backend_close(b->backend);
}

void sr_bench_prefill(struct attn_bench *b, const struct attn_world *w, int32_t from, int32_t to,
                      int32_t batch, float *out)
{
    size_t stride = (size_t)w->n_heads * (size_t)w->head_dim;
    float *q = malloc((size_t)batch * stride * sizeof *q), *o = malloc((size_t)batch * stride * sizeof *o);
    assert_true(q && o);
    assert_int_equal(sr_attn_seq_reserve(b->seq, to, NULL), SR_OK);
    for (int32_t p = from; p < to; p += batch) {
        int32_t n = to - p < batch ? to - p : batch;
        for (int32_t l = 0; l < w->n_layers; l++) {
            memcpy(q, sr_world_q(w, l, p), (size_t)n * stride * sizeof *q);
            sr_attn_append(b->seq, l, sr_world_k(w, l, p), sr_world_v(w, l, p), n);
            sr_attn_prefill(b->seq, l, q, n,
                            out ? out + ((size_t)l * (size_t)w->len + (size_t)p) * stride : o);
        }
    }
    free(q);
    free(o);
}

void sr_bench_fill(struct attn_bench *b, const struct attn_world *w, int32_t from, int32_t to)
{
    assert_int_equal(sr_attn_seq_reserve(b->seq, to, NULL), SR_OK);
    for (int32_t l = 0; l < w->n_layers; l++) {
        sr_attn_append(b->seq, l, sr_world_k(w, l, from), sr_world_v(w, l, from), to - from);
    }
}

void sr_bench_again(struct attn_bench *b, const struct attn_world *w, int32_t layer, int32_t pos, float *out)
{
    size_t stride = (size_t)w->n_heads * (size_t)w->head_dim;
    float q[16 * MAX_DIM * 4];
    sr_error err = {SR_OK, ""};
    assert_true(stride <= sizeof q / sizeof q[0]);
    memcpy(q, sr_world_q(w, layer, pos), stride * sizeof *q);
    if (sr_attn_decode(b->attention, &b->seq, 1, layer, q, out, &err)) fail_msg("%s", err.text);
}

void sr_bench_step(struct attn_bench *b, const struct attn_world *w, int32_t pos, float *out)
{
    size_t stride = (size_t)w->n_heads * (size_t)w->head_dim;
    assert_int_equal(sr_attn_seq_reserve(b->seq, pos + 1, NULL), SR_OK);
    for (int32_t l = 0; l < w->n_layers; l++) {
        sr_attn_append(b->seq, l, sr_world_k(w, l, pos), sr_world_v(w, l, pos), 1);
        sr_bench_again(b, w, l, pos, out + (size_t)l * stride);
    }
}

/* ---- what the tests of a program share ---- */

struct shared_world sr_shared;

sr_route_options sr_world_route(sr_route_mode mode)
{
    sr_route_options o = sr_route_options_default();
    o.mode = mode;
    o.audit = 0;
    o.tau_set = 1;
    o.tau[0] = .3;
    return o;
}

int sr_shared_free(void **state)
{
    (void)state;
    sr_world_free(sr_shared.world);
    unlink(sr_shared.moments);
    return 0;
}

void sr_shared_open(struct attn_bench *b, const sr_route_options *route, int32_t len)
{
    sr_bench_open(b, sr_shared.world, SR_DTYPE_F16, SR_DTYPE_F16, route, 2, sr_shared.moments);
    if (len) sr_bench_fill(b, sr_shared.world, 0, len);
}

void sr_shared_fresh(const sr_route_options *route, int32_t pos, float *out)
{
    struct attn_bench b;
    sr_shared_open(&b, route, pos);
    sr_bench_step(&b, sr_shared.world, pos, out);
    sr_bench_close(&b);
}

void sr_shared_assert_step(struct attn_bench *b, int32_t pos)
{
    const struct attn_world *w = sr_shared.world;
    const size_t bytes = (size_t)w->n_layers * (size_t)w->n_heads * (size_t)w->head_dim * sizeof(float);
    float *got = malloc(bytes), *want = malloc(bytes);
    sr_bench_step(b, w, pos, got);
    sr_shared_fresh(sr_attn_seq_route(b->seq), pos, want);
    assert_memory_equal(got, want, bytes);
    free(got);
    free(want);
}

void sr_spoil_sketch(struct attn_seq *s)
{
    for (int32_t i = 0, n; i < s->n_sketch_chunks; i += n) {
        uint8_t *p = s->sketch_region[i];
        n = sr_cache_region_chunks(s->sketch_region, i, s->n_sketch_chunks);
        for (size_t at = 0; at < (size_t)n * sr_cache_sketch_chunk_bytes(s, &s->sketch); at++) p[at] = (uint8_t)~p[at];
    }
}

/* ---- session files ---- */

sr_status sr_tape_record(void *ctx, const char *what, void *data, size_t bytes, sr_error *e)
{
    struct tape *t = ctx;
    (void)what, (void)e;
    t->data = realloc(t->data, t->used + bytes);
    assert_non_null(t->data);
    memcpy(t->data + t->used, data, bytes);
    t->used += bytes;
    t->n++;
    return SR_OK;
}

sr_status sr_tape_play(void *ctx, const char *what, void *data, size_t bytes, sr_error *e)
{
    struct tape *t = ctx;
    if (t->at + bytes > t->used) return sr_fail(e, SR_ERR_FORMAT, "tape ends at %s", what);
    memcpy(data, t->data + t->at, bytes);
    t->at += bytes;
    t->n--;
    return SR_OK;
}
