/* SPDX-License-Identifier: Apache-2.0
 *
 * Timed passes through a stack of layers, the ops as decode calls them; between them passes of plain reads of as many
 * bytes, so that what else the machine does falls on both. Where a backend can record, a pass is one recording.
 */
#include "attention/probe.h"

#include "attention/timeline.h"
#include "base/memory.h"
#include "base/rng.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { FIRST_LAYER = 2 /* paper leaves the layers before it dense */, MOST_LAYERS = 4096, MOST_RECORDED = 512 };
#define LEAST_BYTES  ((uint64_t)256 << 20)
#define DEVICE_BYTES ((uint64_t)4 << 30) /* 2 % of it are more than the second cache still */
#define LEAST_PASS_NS 2e6 /* of a pass over a device, where waiting for it takes some us */

struct stack {
    struct backend *b;
    struct attention *a;
    struct attn_seq *s;
    int32_t n_layers, len; /* n_layers: that are timed */
    float *first;          /* [n_kv_heads][head_dim] the host's: key row 0 of every layer */
    float *query, *host;   /* [n_heads][head_dim] the host's: as given, and a copy that decode may change */
    float *q, *out;        /* the same in the backend's memory */
    uint8_t *region, *singles; /* for plain reads, and for those of single rows */
    size_t region_bytes;       /* of each */
    int32_t *rows, *host_rows; /* [rows_room] the list of single rows, the backend's and the host's */
    int64_t rows_room;
    uint64_t *sum;
};

/* One kind of pass: n calls through what lies in memory. */
struct pass {
    struct stack *s;
    sr_status (*call)(struct stack *s, const struct pass *p, int32_t i, sr_error *err);
    int32_t n;
    double scale; /* time of a call to what is asked for */
    struct read_args read; /* the first of the reads */
    size_t stride;         /* from one to the next */
    struct recording *recording;
    int32_t repeat;
    double *ns; /* [runs] */
};

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

/* ---- life ---- */

static uint64_t bytes_wanted(const struct backend *b, const sr_probe_options *o)
{
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (o->bytes) return o->bytes;
    if (b->has_own_memory) return DEVICE_BYTES;
    const uint64_t twice = cache > 0 ? 2 * (uint64_t)cache : 0;
    return twice > LEAST_BYTES ? twice : LEAST_BYTES;
}

/* Asked for before it is taken, as the kernel would grant more than there is. The sequence at hand has one layer. */
static sr_status check_memory(const struct stack *s, int32_t n_layers, uint64_t want, sr_error *err)
{
    const uint64_t n_chunks = ((uint64_t)s->len + SR_CHUNK_ROWS - 1) / SR_CHUNK_ROWS;
    const uint64_t rows = n_chunks * (sr_cache_chunk_bytes(s->s) + sr_cache_sketch_chunk_bytes(s->s, &s->s->sketch));
    const uint64_t need = (uint64_t)n_layers * (rows + sr_moments_sums_bytes(s->s->own)) + 2 * want;
    const uint64_t have = s->b->ops->mem_available(s->b);
    if (need <= have) return SR_OK;
    return sr_fail(err, SR_ERR_RESOURCE, "measurement: %d layers of %d rows, and %llu bytes to read, need %llu bytes, %llu available", n_layers,
                   s->len, (unsigned long long)want, (unsigned long long)need, (unsigned long long)have);
}

static sr_status make_sequence(struct stack *s, const sr_probe_options *o, uint64_t want, sr_error *err)
{
    struct attention_config c = {.n_layers = 1, .n_heads = o->n_heads, .n_kv_heads = o->n_kv_heads, .head_dim = o->head_dim};
    const struct attn_seq_config sc = {o->k_type, o->v_type, o->len, sr_route_options_default()};
    SR_TRY(sr_attn_new(&s->a, s->b, &c, err)); /* one layer, to have the shape checked */
    SR_TRY(sr_attn_seq_new(&s->s, s->a, &sc, err));
    const struct attn_shape *shape = &s->s->shape;
    const uint64_t layer = (uint64_t)o->n_kv_heads * (uint64_t)o->len * (shape->k_row_bytes + shape->v_row_bytes);
    const uint64_t n = (want + layer - 1) / layer;
    s->n_layers = n > MOST_LAYERS ? MOST_LAYERS : (int32_t)n;
    c.n_layers = s->n_layers + FIRST_LAYER;
    SR_TRY(check_memory(s, c.n_layers, want, err));
    sr_attn_seq_free(s->s);
    s->s = NULL;
    sr_attn_free(s->a);
    s->a = NULL;
    SR_TRY(sr_attn_new(&s->a, s->b, &c, err));
    return sr_attn_seq_new(&s->s, s->a, &sc, err);
}

static sr_status make_buffers(struct stack *s, uint64_t want, sr_error *err)
{
    const struct attention_config *c = &s->a->c;
    const struct backend_ops *ops = s->b->ops;
    const size_t d = (size_t)c->head_dim, q = (size_t)c->n_heads * d, first = (size_t)c->n_kv_heads * d;
    s->rows_room = 2 * (int64_t)c->n_kv_heads * s->len;
    s->region_bytes = (size_t)want / 4096 * 4096 + 4096;
    s->first = sr_alloc((first + 2 * q) * sizeof(float));
    s->host_rows = sr_alloc((size_t)s->rows_room * sizeof *s->rows);
    if (!s->first || !s->host_rows) return sr_fail_memory(err, (size_t)s->rows_room * sizeof *s->rows, "measurement");
    s->query = s->first + first;
    s->host = s->query + q;
    SR_TRY(ops->mem_new(s->b, (void **)&s->q, q * sizeof(float), "queries", err));
    SR_TRY(ops->mem_new(s->b, (void **)&s->out, q * sizeof(float), "outputs", err));
    SR_TRY(ops->mem_new(s->b, (void **)&s->sum, sizeof *s->sum, "sum", err));
    SR_TRY(ops->mem_new(s->b, (void **)&s->rows, (size_t)s->rows_room * sizeof *s->rows, "list of rows", err));
    ops->mem_clear(s->b, s->sum, sizeof *s->sum);
    if (!s->b->has_own_memory) s->region = sr_region_map(2 * s->region_bytes);
    else SR_TRY(ops->mem_new(s->b, (void **)&s->region, 2 * s->region_bytes, "memory to read", err));
    if (!s->region) return sr_fail_memory(err, 2 * s->region_bytes, "memory to read");
    s->singles = s->region + s->region_bytes;
    ops->mem_clear(s->b, s->region, 2 * s->region_bytes); /* until it is written, all of it is one page of zeros */
    return SR_OK;
}

sr_status sr_stack_new(struct stack **out, struct backend *b, const sr_probe_options *o, sr_error *err)
{
    sr_status st;
    struct rng r;
    const uint64_t want = bytes_wanted(b, o);
    if (o->len < 1) return sr_fail(err, SR_ERR_USAGE, "measure: len %d: want at least 1", o->len);
    struct stack *s = sr_alloc_zero(1, sizeof *s);
    if (!s) return sr_fail_memory(err, sizeof *s, "measurement");
    s->b = b;
    s->len = o->len;
    SR_TRY_GOTO(make_sequence(s, o, want, err));
    SR_TRY_GOTO(make_buffers(s, want, err));
    sr_rng_seed(&r, 1);
    for (int32_t i = 0; i < o->n_kv_heads * o->head_dim; i++) s->first[i] = sr_rng_unit(&r) < 0.5 ? -1 : 1;
    SR_TRY_GOTO(sr_attn_seq_fill_random(s->s, s->len, 1, s->first, err));
    *out = s;
    return SR_OK;
fail:
    sr_stack_free(s);
    return st;
}

void sr_stack_free(struct stack *s)
{
    if (!s) return;
    sr_attn_seq_free(s->s);
    sr_attn_free(s->a);
    void *blocks[] = {s->q, s->out, s->sum, s->rows, s->b->has_own_memory ? s->region : NULL};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) s->b->ops->mem_free(s->b, blocks[i]);
    if (!s->b->has_own_memory) sr_region_unmap(s->region, 2 * s->region_bytes);
    sr_free(s->first);
    sr_free(s->host_rows);
    sr_free(s);
}

/* ---- queries ---- */

static double normal(struct rng *r)
{
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += sr_rng_unit(r);
    return sum;
}

/* Along the coordinates of the sketch, the heads of a group alike: logits of standard deviation 3 over keys of variance 1. */
static void query_of_sketch(struct stack *s)
{
    const int32_t d = s->a->c.head_dim, group = s->a->group, rank = s->s->sketch.rank;
    struct sketch_basis basis;
    struct rng r;
    sr_rng_seed(&r, 2);
    for (int32_t g = 0; g < s->a->c.n_kv_heads; g++) {
        float *q = s->query + (int64_t)g * group * d;
        sr_bases_get(s->s->bases, FIRST_LAYER, g, &basis);
        memset(q, 0, (size_t)(group * d) * sizeof *q);
        for (int32_t j = 0; j < rank; j++) {
            const float *axis = basis.analysis + j * d;
            double length = 0;
            for (int32_t i = 0; i < d; i++) length += (double)axis[i] * (double)axis[i];
            const double shared = normal(&r);
            for (int32_t h = 0; h < group; h++) {
                const double x = 3 * sqrt((double)d / rank / length) * (shared + 0.3 * normal(&r));
                for (int32_t i = 0; i < d; i++) q[h * d + i] += (float)(x * axis[i]);
            }
        }
    }
}

/* For the paper's test: along key row 0 in the groups that are to be skipped, against it in the others. */
static void query_of_first(struct stack *s, int32_t n_skipped)
{
    const int32_t d = s->a->c.head_dim, group = s->a->group;
    for (int32_t g = 0; g < s->a->c.n_kv_heads; g++)
        for (int32_t i = 0; i < group * d; i++)
            s->query[(int64_t)g * group * d + i] = (g < n_skipped ? 1.0f : -1.0f) * s->first[g * d + i % d];
}

static void query_of_lot(struct stack *s)
{
    struct rng r;
    sr_rng_seed(&r, 3);
    for (int32_t i = 0; i < s->a->c.n_heads * s->a->c.head_dim; i++) s->query[i] = (float)(3 * normal(&r));
}

static sr_status set_route(struct stack *s, const sr_route_options *route, int32_t n_skipped, sr_error *err)
{
    sr_route_options r = *route;
    r.min_len = 0;
    if (r.mode == SR_ROUTE_PAPER) {
        r.tau_set = 1;
        r.tau[0] = r.tau[1] = r.tau[2] = r.tau[3] = 0;
    }
    if (n_skipped < 0 || n_skipped > s->a->c.n_kv_heads)
        return sr_fail(err, SR_ERR_USAGE, "measure: %d KV heads skipped of %d", n_skipped, s->a->c.n_kv_heads);
    SR_TRY(sr_attn_seq_route_set(s->s, &r, err));
    query_of_lot(s);
    if (r.mode == SR_ROUTE_PAPER) query_of_first(s, n_skipped);
    if (sr_decode_policy(s->s, FIRST_LAYER)->needs_sketch) {
        SR_TRY(sr_sketch_rebase(s->s, s->len, err));
        query_of_sketch(s);
    }
    s->b->ops->upload(s->b, s->q, s->query, (size_t)s->a->c.n_heads * (size_t)s->a->c.head_dim * sizeof *s->q);
    return SR_OK;
}

/* ---- calls ---- */

static sr_status call_layer(struct stack *s, const struct pass *p, int32_t i, sr_error *err)
{
    (void)p;
    if (s->b->has_own_memory) {
        sr_attn_step(&s->s, 1, FIRST_LAYER + i, s->q, NULL, NULL, s->out);
        return SR_OK;
    }
    memcpy(s->host, s->query, (size_t)s->a->c.n_heads * (size_t)s->a->c.head_dim * sizeof *s->q);
    return sr_attn_decode(s->a, &s->s, 1, FIRST_LAYER + i, s->host, s->out, err);
}

static sr_status call_read(struct stack *s, const struct pass *p, int32_t i, sr_error *err)
{
    struct read_args r = p->read;
    (void)err;
    r.base += (size_t)i * p->stride;
    s->b->ops->read(s->b, &r);
    return SR_OK;
}

static sr_status all_calls(const struct pass *p, sr_error *err)
{
    for (int32_t i = 0; i < p->n; i++) SR_TRY(p->call(p->s, p, i, err));
    return SR_OK;
}

static sr_status wait_for(const struct stack *s, sr_error *err)
{
    uint64_t sum;
    return s->b->ops->download(s->b, &sum, s->sum, sizeof sum, err);
}

/* Before a pass that may be short: nothing of it is in a cache of the host. A device goes through more than its holds. */
static void flush(const struct stack *s)
{
    if (!s->b->has_own_memory)
        s->b->ops->read(s->b, &(struct read_args){.base = s->region, .bytes = s->region_bytes, .sum = s->sum});
}

static sr_status one_pass(const struct pass *p, double *ns, sr_error *err)
{
    const struct backend_ops *ops = p->s->b->ops;
    if (p->read.base != p->s->region) flush(p->s);
    const double began = now_ns();
    for (int32_t i = 0; i < p->repeat; i++) {
        if (p->recording) ops->replay(p->s->b, p->recording);
        else SR_TRY(all_calls(p, err));
    }
    SR_TRY(wait_for(p->s, err));
    *ns = (now_ns() - began) / p->repeat / p->n * p->scale;
    return SR_OK;
}

/* Records what can be, and warms up. */
static sr_status prepare(struct pass *p, sr_error *err)
{
    const struct backend_ops *ops = p->s->b->ops;
    double ns;
    p->repeat = 1;
    SR_TRY(all_calls(p, err));
    SR_TRY(wait_for(p->s, err));
    if (!ops->record_begin) return SR_OK;
    SR_TRY(ops->record_begin(p->s->b, err));
    const sr_status st = all_calls(p, err);
    SR_TRY(ops->record_end(p->s->b, &p->recording, err));
    if (st != SR_OK) return st;
    SR_TRY(one_pass(p, &ns, err));
    const double pass_ns = ns * p->n / p->scale;
    p->repeat = pass_ns < LEAST_PASS_NS ? (int32_t)(LEAST_PASS_NS / pass_ns) + 1 : 1;
    return SR_OK;
}

/* ---- what is read ---- */

/* Bytes of one layer, by the counters of a pass. */
static void count_bytes(struct stack *s, sr_probe_result *r)
{
    const uint64_t row = s->s->shape.k_row_bytes + s->s->shape.v_row_bytes, n = (uint64_t)s->n_layers;
    const sr_route_options *o = &s->s->route;
    sr_route_stats t;
    sr_attn_seq_stats(s->s, &t);
    const int64_t near = o->n_sinks + o->window < s->len ? o->n_sinks + o->window : s->len;
    int64_t single = t.v_rows - near * (t.units_near + t.units_list) - (int64_t)s->len * t.units_all;
    if (single < 0 || t.units_list == 0) single = 0;
    *r = (sr_probe_result){.n_layers = s->n_layers, .bytes = t.kv_bytes / n, .sketch_bytes = t.sketch_bytes / n,
                           .single_bytes = (uint64_t)single * row / n, .dense_bytes = t.dense_bytes / n};
}

/* All of the region where it can be. */
static int32_t reads_of(const struct stack *s, uint64_t stride)
{
    const uint64_t n = s->region_bytes / stride, most = s->b->ops->record_begin ? MOST_RECORDED : INT32_MAX;
    return n < 1 ? 1 : n > most ? (int32_t)most : (int32_t)n;
}

/* A read of `bytes`, in turn over the region; longer ones are cut and their time is scaled. */
static struct pass plain_pass(struct stack *s, uint64_t bytes)
{
    uint64_t piece = (bytes + 63) / 64 * 64;
    if (piece > s->region_bytes) piece = s->region_bytes / 64 * 64;
    return (struct pass){.s = s, .call = call_read, .n = reads_of(s, piece),
                         .scale = (double)bytes / (double)piece, .read = {.base = s->region, .bytes = piece, .sum = s->sum}, .stride = piece};
}

/* A read of single rows: as large a share of a layer's rows as is read, at random, first those of K, then those of V. */
static struct pass single_pass(struct stack *s, uint64_t bytes)
{
    const struct attn_shape *shape = &s->s->shape;
    const size_t row = ((shape->k_row_bytes + shape->v_row_bytes) / 2 + 7) / 8 * 8;
    int64_t half = s->rows_room / 2;
    const double share = (double)bytes / ((double)half * (double)(shape->k_row_bytes + shape->v_row_bytes));
    if ((size_t)(2 * half) * row > s->region_bytes) half = (int64_t)(s->region_bytes / row / 2);
    struct rng r;
    int32_t n = 0;
    sr_rng_seed(&r, 4);
    for (int64_t i = 0; i < half; i++)
        if (sr_rng_unit(&r) < share) s->host_rows[n++] = (int32_t)i;
    for (int32_t i = 0; i < n; i++) s->host_rows[n + i] = s->host_rows[i] + (int32_t)half;
    s->b->ops->upload(s->b, s->rows, s->host_rows, 2 * (size_t)n * sizeof *s->rows);
    const size_t stride = ((size_t)(2 * half) * row + 63) / 64 * 64;
    return (struct pass){.s = s, .call = call_read, .n = reads_of(s, stride),
                         .scale = n ? (double)bytes / ((double)(2 * n) * (double)row) : 1,
                         .read = {.base = s->singles, .rows = s->rows, .n_rows = 2 * n, .row_bytes = row, .sum = s->sum}, .stride = stride};
}

/* ---- runs ---- */

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int32_t n)
{
    qsort(x, (size_t)n, sizeof *x, by_size);
    return n % 2 ? x[n / 2] : 0.5 * (x[n / 2 - 1] + x[n / 2]);
}

static sr_status begin(struct stack *s, sr_error *err)
{
    if (!s->b->has_own_memory) return SR_OK;
    SR_TRY(sr_attn_seq_truncate(s->s, s->len - 1, err)); /* the last row lies there still */
    return sr_attn_step_begin(s->s, err);
}

/* The layers' first pass brings sketch rows up to date; the second is counted. */
static sr_status count_pass(struct stack *s, sr_probe_result *out, sr_error *err)
{
    const struct pass p = {.s = s, .call = call_layer, .n = s->n_layers};
    SR_TRY(begin(s, err));
    SR_TRY(all_calls(&p, err));
    SR_TRY(wait_for(s, err));
    sr_attn_seq_stats_reset(s->s);
    SR_TRY(all_calls(&p, err));
    SR_TRY(wait_for(s, err));
    count_bytes(s, out);
    return SR_OK;
}

static sr_status timed_passes(struct pass *p, int n_passes, int32_t n, sr_error *err)
{
    for (int k = 0; k < n_passes; k++) SR_TRY(prepare(&p[k], err));
    for (int32_t i = 0; i < n; i++)
        for (int k = 0; k < n_passes; k++) SR_TRY(one_pass(&p[k], &p[k].ns[i], err));
    return SR_OK;
}

sr_status sr_stack_run(struct stack *s, const sr_route_options *route, int32_t n_skipped, int32_t n, double *samples_ns,
                       sr_probe_result *out, sr_error *err)
{
    sr_probe_result r;
    if (n < 1) return sr_fail(err, SR_ERR_USAGE, "measure: %d runs: want at least 1", n);
    SR_TRY(set_route(s, route, n_skipped, err));
    SR_TRY(count_pass(s, &r, err));
    double *ns = sr_alloc(3 * (size_t)n * sizeof *ns);
    if (!ns) return sr_fail_memory(err, 3 * (size_t)n * sizeof *ns, "times");
    struct pass p[3] = {{.s = s, .call = call_layer, .n = s->n_layers, .scale = 1}};
    int n_passes = 1;
    const uint64_t runs = r.bytes - r.single_bytes;
    if (runs) p[n_passes++] = plain_pass(s, runs);
    if (r.single_bytes) p[n_passes++] = single_pass(s, r.single_bytes);
    for (int k = 0; k < n_passes; k++) p[k].ns = ns + k * n;
    const sr_status st = timed_passes(p, n_passes, n, err);
    for (int k = 0; k < n_passes; k++)
        if (s->b->ops->record_free) s->b->ops->record_free(s->b, p[k].recording);
    if (st == SR_OK) {
        if (samples_ns) memcpy(samples_ns, ns, (size_t)n * sizeof *ns);
        r.ns = median(ns, n);
        for (int k = 1; k < n_passes; k++) {
            const double t = median(p[k].ns, n);
            r.limit_ns += t;
            if (p[k].read.rows) r.gather_gbs = (double)r.single_bytes / t;
            else r.read_gbs = (double)runs / t;
        }
        *out = r;
    }
    sr_free(ns);
    return st;
}
