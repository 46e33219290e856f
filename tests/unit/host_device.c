/* SPDX-License-Identifier: Apache-2.0
 *
 * See host_device.h. One unit at a time: units are few and the caches of the tests small.
 */
#include "host_device.h"

#include <assert.h>
#include <malloc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention/trail.h"
#include "formats/quant.h"
#include "backend/device_attn.h"

enum { MAX_CHUNKS = 16, MAX_HEADS = 16, MAX_DIM = 256, MAX_LEN = MAX_CHUNKS * SR_CHUNK_ROWS };

struct host_device {
    struct backend base;
    struct backend_ops ops;
    struct backend *cpu;
};

struct backend *sr_host_device_cpu(struct backend *b) { return ((struct host_device *)b)->cpu; }

/* ---- memory ---- */

static sr_status mem_new(struct backend *b, void **out, size_t bytes, const char *what, sr_error *err)
{
    return sr_host_device_cpu(b)->ops->mem_new(sr_host_device_cpu(b), out, bytes, what, err);
}

/* What is read after it was freed are NaNs. */
static void mem_free(struct backend *b, void *block)
{
    if (block) memset(block, 0xff, malloc_usable_size(block));
    sr_host_device_cpu(b)->ops->mem_free(sr_host_device_cpu(b), block);
}

static void mem_clear(struct backend *b, void *dst, size_t bytes) { (void)b, memset(dst, 0, bytes); }
static void upload(struct backend *b, void *dst, const void *src, size_t bytes) { (void)b, memcpy(dst, src, bytes); }
static uint64_t mem_available(struct backend *b) { return sr_host_device_cpu(b)->ops->mem_available(sr_host_device_cpu(b)); }

static sr_status download(struct backend *b, void *dst, const void *src, size_t bytes, sr_error *err)
{
    (void)b, (void)err;
    memcpy(dst, src, bytes);
    return SR_OK;
}

static sr_status shared_new(struct backend *b, void **host, void **there, size_t bytes, const char *what, sr_error *err)
{
    sr_status st = mem_new(b, host, bytes, what, err);
    if (st == SR_OK) memset(*host, 0, bytes);
    *there = *host;
    return st;
}

static void close_device(struct backend *b)
{
    sr_host_device_cpu(b)->ops->close(sr_host_device_cpu(b));
    free(b);
}

/* ---- one unit of a cache, as the CPU's ops take it ---- */

struct unit {
    void *k[MAX_CHUNKS], *v[MAX_CHUNKS], *y[MAX_CHUNKS];
    float q[MAX_HEADS * MAX_DIM];
    struct attn_unit a;
};

static void unit_of(const struct device_cache *c, int32_t layer, int32_t g, const float *q, struct unit *u)
{
    const int32_t pages = SR_CHUNK_ROWS / SR_PAGE_ROWS, n = c->shape.group * c->shape.head_dim;
    const size_t at = (size_t)(layer * c->n_kv_heads + g) * (size_t)c->max_pages;
    for (int32_t i = 0; i * pages < c->max_pages; i++) {
        u->k[i] = c->k_page[at + (size_t)(i * pages)];
        u->v[i] = c->v_page[at + (size_t)(i * pages)];
        u->y[i] = c->y_page[at + (size_t)(i * pages)];
    }
    for (int32_t i = 0; q && i < n; i++) u->q[i] = q[g * n + i] * (1.0f / sqrtf((float)c->shape.head_dim));
    u->a = (struct attn_unit){.q = u->q, .k = {u->k, 1.0f}, .v = {u->v, 1.0f}, .y = {u->y, 1.0f}, .kv_len = *c->kv_len};
}

static void note_sink(struct found_sinks *f, int32_t row, float k, float v)
{
    while (f->n > 0 && (row < SR_SINKS_REFERENCE || f->rows[f->n - 1] >= row)) f->n--;
    if (row >= SR_SINKS_REFERENCE) {
        if (f->n < SR_SINKS_MOST && v <= SR_SINKS_VALUE * f->mean_v && k <= SR_SINKS_KEY * f->mean_k) f->rows[f->n++] = row;
        return;
    }
    f->k[row] = k;
    f->v[row] = v;
    if (row < SR_SINKS_REFERENCE - 1) return;
    double sum_k = 0, sum_v = 0;
    for (int32_t i = SR_SINKS_FIRST; i < SR_SINKS_REFERENCE; i++) {
        sum_k += (double)f->k[i];
        sum_v += (double)f->v[i];
    }
    f->mean_k = (float)(sum_k / (SR_SINKS_REFERENCE - SR_SINKS_FIRST));
    f->mean_v = (float)(sum_v / (SR_SINKS_REFERENCE - SR_SINKS_FIRST));
    for (int32_t i = 0; i < SR_SINKS_REFERENCE && f->n < SR_SINKS_MOST; i++)
        if (f->v[i] <= SR_SINKS_VALUE * f->mean_v && f->k[i] <= SR_SINKS_KEY * f->mean_k) f->rows[f->n++] = i;
}

static float norm(const float *x, int32_t n)
{
    float sum = 0;
    for (int32_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sqrtf(sum);
}

static void append(struct backend *b, const struct device_rows_args *a)
{
    const int32_t n_kv = a->cache->n_kv_heads, d = a->cache->shape.head_dim;
    const int64_t stride = (int64_t)n_kv * d;
    for (int32_t g = 0; g < n_kv; g++) {
        struct unit u;
        unit_of(a->cache, a->layer, g, NULL, &u);
        sr_host_device_cpu(b)->ops->kv_append(sr_host_device_cpu(b), &(struct kv_append_args){
            .shape = &a->cache->shape, .k = u.a.k, .v = u.a.v, .k_src = a->k + g * d, .v_src = a->v + g * d, .stride = stride,
            .pos0 = *a->cache->kv_len - a->n, .n = a->n}, 1);
        for (int32_t t = 0; t < a->n; t++)
            note_sink(&a->cache->found[a->layer * n_kv + g], *a->cache->kv_len - a->n + t, norm(a->k + t * stride + g * d, d),
                     norm(a->v + t * stride + g * d, d));
    }
}

static void prefill(struct backend *b, const struct device_rows_args *a)
{
    const struct attn_shape *s = &a->cache->shape;
    const int64_t n_kv = a->cache->n_kv_heads, stride = n_kv * s->group * s->head_dim;
    struct unit *u = malloc((size_t)n_kv * sizeof *u);
    struct attn_unit *units = malloc((size_t)n_kv * sizeof *units);
    float *q = malloc((size_t)(a->n * stride) * sizeof *q);
    assert(u && units && q);
    for (int32_t g = 0; g < n_kv; g++) {
        unit_of(a->cache, a->layer, g, NULL, &u[g]);
        units[g] = u[g].a;
    }
    for (int64_t i = 0; i < a->n * stride; i++) q[i] = a->q[i] * (1.0f / sqrtf((float)s->head_dim));
    sr_host_device_cpu(b)->ops->attn_prefill(sr_host_device_cpu(b), &(struct attn_prefill_args){
        .shape = s, .units = units, .n_units = (int32_t)n_kv, .q = q, .out = a->out, .q_stride = stride, .out_stride = stride,
        .pos0 = a->pos0, .n = a->n});
    free(q);
    free(units);
    free(u);
}

static void encode(struct backend *b, const struct device_encode_args *a)
{
    const int32_t end = *a->cache->kv_len - a->window, first = end - a->n_last > a->n_sinks ? end - a->n_last : a->n_sinks;
    for (int32_t g = 0; g < a->cache->n_kv_heads && first < end; g++) {
        struct unit u;
        int64_t clipped = 0;
        unit_of(a->cache, a->layer, g, NULL, &u);
        sr_host_device_cpu(b)->ops->sketch_encode(sr_host_device_cpu(b), &(struct sketch_encode_args){
            .shape = &a->cache->shape, .sketch = &a->cache->sketch, .units = &u.a, .basis = &a->basis[g], .row0 = &first, .row1 = &end,
            .n_units = 1, .clipped = &clipped});
        a->counters[g].encoded_rows += (uint64_t)(end - first);
        a->counters[g].clipped += (uint64_t)clipped;
    }
}

/* Positions in order, in double; a row's rotation is undone by its cosines and sines. */
static void add_moments(const struct device_moments_args *a)
{
    const int32_t d = a->head_dim, half = a->kind == ROPE_NONE ? 0 : a->n_dims / 2;
    const int64_t pos0 = a->pos0;
    for (int64_t t = 0; t < a->n; t++) {
        if (pos0 + t < a->first || pos0 + t >= a->end) continue;
        for (int32_t h = 0; h < a->n_kv_heads * a->per_group; h++) {
            const float *row = a->rows + (t * a->n_kv_heads * a->per_group + h) * d;
            double *unit = a->sums + h / a->per_group * a->unit_len + (a->is_key ? (int64_t)d * d : 0);
            float x[MAX_DIM];
            for (int32_t i = 0; i < d; i++) x[i] = row[i] * a->scale;
            for (int32_t i = 0; i < half; i++) {
                const float *fine = a->turn + 2 * ((pos0 + t) % SR_TURN_STEP * half + i);
                const float *coarse = a->turn + 2 * ((SR_TURN_STEP + (pos0 + t) / SR_TURN_STEP) * half + i);
                const float turn[2] = {coarse[0] * fine[0] - coarse[1] * fine[1], coarse[1] * fine[0] + coarse[0] * fine[1]};
                float *p = a->kind == ROPE_NEOX ? x + i : x + 2 * i, *r = a->kind == ROPE_NEOX ? x + i + half : x + 2 * i + 1;
                const float p0 = *p, r0 = *r;
                *p = p0 * turn[0] + r0 * turn[1];
                *r = r0 * turn[0] - p0 * turn[1];
            }
            for (int32_t i = 0; i < d; i++) {
                for (int32_t j = i; j < d; j++) unit[i * d + j] += (double)x[i] * (double)x[j];
                if (a->is_key) unit[d * d + i] += (double)x[i];
            }
        }
    }
}

static void moments(struct backend *b, const struct device_moments_args *a, int32_t n)
{
    (void)b;
    for (int32_t i = 0; i < n; i++) add_moments(&a[i]);
}

/* ---- a step of one unit ---- */

struct work {
    struct backend *cpu;
    const struct device_step_args *a;
    const struct attn_shape *shape;
    struct unit u;
    int32_t g, len;
    enum device_kind kind;
    int32_t *list, n_list, n_chosen;
    const int32_t *found; /* far rows read in any case */
    int32_t n_found, top[SR_SKETCH_TOP], n_top;
    float unread[MAX_HEADS], near_m[MAX_HEADS], near_l[MAX_HEADS];
    float o[MAX_HEADS * MAX_DIM], m[MAX_HEADS], l[MAX_HEADS], dense_o[MAX_HEADS * MAX_DIM], dense_m[MAX_HEADS], dense_l[MAX_HEADS];
    float *out;
};

static struct attn_touched attend(const struct work *w, enum attn_set set, struct attn_state state, int merge)
{
    struct attn_touched touched = {0};
    const uint8_t one = (uint8_t)set;
    w->cpu->ops->attn_rows(w->cpu, &(struct attn_rows_args){
        .shape = w->shape, .units = &w->u.a, .set = &one, .list = (const int32_t *const *)&w->list, .n_list = &w->n_list, .n_units = 1,
        .n_sinks = w->a->route->n_sinks, .window = w->a->route->window, .state = state, .merge = merge, .touched = &touched});
    return touched;
}

static void count(struct device_counters *c, struct attn_touched t)
{
    c->k_rows += (uint64_t)t.k_rows;
    c->v_rows += (uint64_t)t.v_rows;
    c->y_rows += (uint64_t)t.y_rows;
}

/* What a choice takes, and a look after it; the results go to where the caller says. */
struct choice { struct sketch_choose_args a; uint8_t mask; float eps; };

static void choose(struct work *w, struct choice *x, float eps, int32_t **list, int32_t *n_list, float *unread, struct attn_touched *touched)
{
    x->mask = 1;
    x->eps = eps;
    x->a = (struct sketch_choose_args){
        .shape = w->shape, .sketch = &w->a->cache->sketch, .units = &w->u.a, .basis = &w->a->basis[w->g], .mask = &x->mask, .n_units = 1,
        .n_sinks = w->a->route->n_sinks, .window = w->a->route->window, .eps = &x->eps, .near_state = {NULL, w->near_m, w->near_l},
        .list = list, .n_list = n_list, .unread = unread, .touched = touched,
        .found = w->a->route->looks ? &w->found : NULL, .n_found = &w->n_found,
        .top = w->a->route->trail ? w->top : NULL, .n_top = &w->n_top};
    w->cpu->ops->sketch_choose(w->cpu, &x->a);
}

static int32_t unit_number(const struct work *w) { return w->a->layer * w->a->cache->n_kv_heads + w->g; }

static void find_rows(struct work *w)
{
    const struct found_sinks *f = &w->a->cache->found[unit_number(w)];
    const struct always_rows *always = w->a->route->trail ? &w->a->route->trail->always[unit_number(w)] : NULL;
    const int32_t end = w->len - w->a->route->window, n = always ? always->n : f->n, *rows = always ? always->rows : f->rows;
    int32_t first = 0, last;
    while (first < n && rows[first] < w->a->route->n_sinks) first++;
    for (last = first; last < n && rows[last] < end;) last++;
    w->found = rows + first;
    w->n_found = last - first;
}

static void add_found(struct work *w)
{
    for (int32_t i = 0; i < w->n_found; i++) {
        int32_t at = 0;
        while (at < w->n_list && w->list[at] < w->found[i]) at++;
        if (at < w->n_list && w->list[at] == w->found[i]) continue;
        memmove(w->list + at + 1, w->list + at, (size_t)(w->n_list - at) * sizeof *w->list);
        w->list[at] = w->found[i];
        w->n_list++;
    }
}

/* n rows besides what was read. */
static void read_rows(struct work *w, const int32_t *rows, int32_t n, struct device_counters *c)
{
    int32_t *list = w->list, n_list = w->n_list;
    w->list = (int32_t *)(uintptr_t)rows;
    w->n_list = n;
    if (n > 0) count(c, attend(w, ATTN_LIST, (struct attn_state){w->o, w->m, w->l}, 1));
    w->list = list;
    w->n_list = n_list;
}

static void look_again(struct work *w, const struct choice *x, struct device_counters *c)
{
    int32_t *more = w->list + w->n_list, n_more = 0;
    w->cpu->ops->sketch_more(w->cpu, &(struct sketch_more_args){
        .choice = &x->a, .mask = &x->mask, .read = {w->o, w->m, w->l}, .more = &more, .n_more = &n_more});
    read_rows(w, more, n_more, c);
    if (n_more > 0) w->kind = KIND_NEAR_LIST;
}

/* ---- the trail ---- */

/* What the step before noted, as the CPU's trail would have it. */
static int32_t left_before(const struct device_trail *t, int32_t len, const struct device_route *r, int32_t *rows)
{
    const int32_t half = (len - 1) % 2, *noted = t->words + SR_TRAIL_ROWS_AT(t->max_len, half);
    const float *shares = (const float *)(const void *)(t->words + SR_TRAIL_SHARES_AT(t->max_len, half));
    struct trail step = {0};
    sr_trail_step(&step, len - 1);
    for (int32_t i = 0; t->words[SR_TRAIL_STEPS + half] == len - 1 && i < t->words[SR_TRAIL_COUNTS + half]; i++)
        sr_trail_note(&step, noted[i], shares[noted[i]]);
    sr_trail_step(&step, len);
    return sr_trail_get(&step, r->n_sinks, len - r->window, rows);
}

static void follow(const struct device_step_args *a)
{
    const struct device_trail *t = a->route->trail;
    const int32_t len = *a->cache->kv_len, half = len % 2;
    int32_t rows[SR_TRAIL_ROWS];
    const int32_t n = left_before(t, len, a->route, rows);
    for (int32_t u = 0; u < t->n_units; u++) {
        const struct found_sinks *f = &a->cache->found[u];
        struct always_rows *to = &t->always[u];
        to->n = to->n_trail = 0;
        for (int32_t i = 0, j = 0; i < n || j < f->n;) {
            const int is_sink = j < f->n && (i == n || f->rows[j] <= rows[i]);
            if (is_sink && i < n && rows[i] == f->rows[j]) i++;
            if (!is_sink) to->trail[to->n_trail++] = rows[i];
            to->rows[to->n++] = is_sink ? f->rows[j++] : rows[i++];
        }
    }
    memset(t->words + SR_TRAIL_SHARES_AT(t->max_len, half), 0, (size_t)t->max_len * sizeof *t->words);
    t->words[SR_TRAIL_COUNTS + half] = 0;
    t->words[SR_TRAIL_STEPS + half] = len;
}

static void note_row(const struct work *w, int32_t row)
{
    const struct device_trail *t = w->a->route->trail;
    const int32_t half = w->len % 2;
    float *shares = (float *)(void *)(t->words + SR_TRAIL_SHARES_AT(t->max_len, half)), logits[MAX_HEADS], most = 0;
    w->cpu->ops->attn_logits(w->cpu, &(struct attn_logits_args){.shape = w->shape, .unit = &w->u.a, .rows = &row, .n = 1, .logits = logits});
    for (int32_t h = 0; h < w->shape->group; h++) most = fmaxf(most, expf(logits[h] - w->m[h]) / w->l[h]);
    if (!(most >= SR_TRAIL_SHARE)) return;
    most = most < 1 ? most : 1;
    if (shares[row] == 0) t->words[SR_TRAIL_ROWS_AT(t->max_len, half) + (size_t)t->words[SR_TRAIL_COUNTS + half]++] = row;
    shares[row] = fmaxf(shares[row], most);
}

static void note_rows(const struct work *w)
{
    const struct always_rows *always = &w->a->route->trail->always[unit_number(w)];
    for (int32_t i = 0; i < always->n_trail; i++) note_row(w, always->trail[i]);
    for (int32_t i = 0; i < w->n_top; i++) note_row(w, w->top[i]);
}

/* ---- a step of one unit, by the rule ---- */

static void step_mass(struct work *w, struct device_counters *c)
{
    const int is_whole = w->a->trust[w->g] == TRUST_WHOLE, looks = w->a->route->looks;
    struct attn_touched scan = {0};
    struct choice x;
    w->kind = is_whole ? KIND_ALL : KIND_NEAR;
    count(c, attend(w, is_whole ? ATTN_ALL : ATTN_NEAR, (struct attn_state){w->o, w->m, w->l}, 0));
    if (is_whole) return;
    find_rows(w);
    if (looks) read_rows(w, w->found, w->n_found, c);
    memcpy(w->near_m, w->m, sizeof w->near_m);
    memcpy(w->near_l, w->l, sizeof w->near_l);
    choose(w, &x, w->a->route->terms->threshold, &w->list, &w->n_list, w->unread, &scan);
    count(c, scan);
    w->n_chosen = w->n_list;
    if (!looks) add_found(w);
    if (w->n_list > 0) w->kind = KIND_NEAR_LIST;
    read_rows(w, w->list, w->n_list, c);
    if (looks) look_again(w, &x, c);
    if (w->a->route->trail) note_rows(w);
}

static double tau_of(const struct device_route *r, int32_t len)
{
    double x = (double)len;
    if (r->tau[1] == 0 && r->tau[2] == 0 && r->tau[3] == 0) return r->tau[0];
    x = x > r->tau_max_len ? r->tau_max_len : x;
    x = (x < r->tau_min_len ? r->tau_min_len : x) / r->tau_scale;
    return r->tau[0] + x * (r->tau[1] + x * (r->tau[2] + x * r->tau[3]));
}

static float cosine(const struct work *w, struct device_counters *c)
{
    struct attn_touched touched = {0};
    float score;
    w->cpu->ops->attn_cosine(w->cpu, &(struct attn_cosine_args){
        .shape = w->shape, .units = &w->u.a, .n_units = 1, .score = &score, .touched = &touched});
    if (c) count(c, touched);
    return score;
}

static void step_unit(struct work *w, struct device_counters *c)
{
    static const enum attn_set set_of[] = {[KIND_NONE] = ATTN_NONE, [KIND_NEAR] = ATTN_NEAR, [KIND_ALL] = ATTN_ALL};
    const struct device_route *r = w->a->route;
    const int is_dense = r->rule == RULE_ALL || w->a->layer < r->dense_layers;
    if (r->rule == RULE_MASS && !is_dense) {
        step_mass(w, c);
    } else {
        w->kind = is_dense ? KIND_ALL : KIND_NEAR;
        if (!is_dense && r->rule == RULE_COSINE) w->kind = (double)cosine(w, c) > tau_of(r, w->len) ? KIND_NONE : KIND_ALL;
        count(c, attend(w, set_of[w->kind], (struct attn_state){w->o, w->m, w->l}, 0));
    }
    c->kinds[w->kind]++;
    c->dense_rows += (uint64_t)w->len;
    w->cpu->ops->attn_finish(w->cpu, &(struct attn_finish_args){
        .shape = w->shape, .state = {w->o, w->m, w->l}, .out = w->out, .n_units = 1});
}

/* ---- audits ---- */

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static int is_drawn(const struct work *w)
{
    const struct device_route *r = w->a->route;
    uint64_t h = mix(r->seed + 0x9e3779b97f4a7c15u);
    h = mix(h ^ (uint64_t)(uint32_t)w->a->layer << 32 ^ (uint32_t)w->g);
    h = mix(h ^ (uint64_t)(uint32_t)(w->len - 1));
    if (r->rule == RULE_ALL) return 0;
    return (r->rule == RULE_MASS && w->a->trust[w->g] == TRUST_TRIAL) || (double)(h >> 11) * 0x1p-53 < (double)r->terms->audit;
}

static double unread_of(const struct work *w, int32_t h)
{
    double x = w->l[h] > 0 ? 1 - (double)w->l[h] / (double)w->dense_l[h] * exp((double)w->m[h] - (double)w->dense_m[h]) : 1;
    return x < 0 ? 0 : x;
}

static double error_of(const struct work *w, int32_t h)
{
    const int32_t d = w->shape->head_dim;
    double diff = 0, all = 0;
    for (int32_t i = h * d; i < (h + 1) * d; i++) {
        const double dense = (double)w->dense_o[i] / (double)w->dense_l[h], e = (double)w->out[i] - dense;
        diff += e * e;
        all += dense * dense;
    }
    return all > 0 ? sqrt(diff / all) : diff > 0;
}

static void count_case(struct device_counters *c, double eps, double unread, double error, float estimate)
{
    c->cases++;
    c->above_eps += !(unread <= eps);
    c->broken += !(unread <= 2 * eps);
    c->unread_sum += unread;
    c->output_error_sum += error;
    if (unread > c->unread_max) c->unread_max = unread;
    if (error > c->output_error_max) c->output_error_max = error;
    if (!isnan(estimate)) c->estimate_sum += (double)estimate;
}

static void probe(struct work *w, struct device_case *told)
{
    static int32_t first[1] = {0};
    const int is_all = w->kind == KIND_ALL;
    float o[MAX_HEADS * MAX_DIM], m[MAX_HEADS], l[MAX_HEADS];
    w->list = first;
    w->n_list = 1;
    attend(w, ATTN_LIST, (struct attn_state){o, m, l}, 0);
    for (int32_t h = 0; h < w->shape->group; h++) {
        const double logit = (double)m[h];
        told->sink[h] = (float)(exp(logit - (double)(is_all ? w->m : w->dense_m)[h]) / (double)(is_all ? w->l : w->dense_l)[h]);
        told->sink_estimate[h] = (float)(exp(logit - (double)w->m[h]) / (double)w->l[h] * (1 - (double)w->unread[h]));
    }
    told->cosine = cosine(w, NULL);
}

static void count_uncorrected(struct work *w, struct device_counters *c)
{
    int32_t *list = malloc(MAX_LEN * sizeof *list), n = 0;
    float unread[MAX_HEADS];
    struct attn_touched ignored = {0};
    struct choice x;
    assert(list);
    choose(w, &x, w->a->route->terms->plain, &list, &n, unread, &ignored);
    c->far_rows += (uint64_t)w->n_chosen;
    c->far_rows_uncorrected += (uint64_t)n;
    free(list);
}

static void audit(struct work *w, struct device_counters *c)
{
    const struct device_route *r = w->a->route;
    struct device_case *told = &w->a->cases[w->g];
    const int drawn = is_drawn(w), is_routed = r->rule != RULE_ALL;
    if (!drawn && !r->is_watched) return;
    if (w->kind != KIND_ALL)
        c->audit_rows += (uint64_t)attend(w, ATTN_ALL, (struct attn_state){w->dense_o, w->dense_m, w->dense_l}, 0).k_rows;
    if (drawn && r->rule == RULE_MASS && r->is_corrected && w->kind != KIND_ALL) count_uncorrected(w, c);
    c->audits += (uint64_t)is_routed;
    for (int32_t h = 0; h < w->shape->group; h++) {
        const double unread = w->kind == KIND_ALL ? 0 : unread_of(w, h), error = w->kind == KIND_ALL ? 0 : error_of(w, h);
        if (is_routed) count_case(c, (double)r->terms->eps, unread, error, w->unread[h]);
        told->unread[h] = (float)unread;
        told->estimate[h] = w->unread[h];
    }
    if (r->is_watched) probe(w, told);
    told->is_drawn = drawn;
    told->kv_len = w->len;
}

static void keep_rows(const struct device_step_args *a)
{
    const size_t k = (size_t)a->cache->n_kv_heads * (size_t)a->cache->shape.head_dim, q = k * (size_t)a->cache->shape.group;
    const size_t slot = (size_t)(*a->cache->kv_len - 1) % SR_KEPT_ROWS;
    if (!a->q_kept) return;
    memcpy(a->q_kept + slot * q, a->q, q * sizeof(float));
    memcpy(a->k_kept + slot * k, a->k, k * sizeof(float));
}

static void step(struct backend *b, const struct device_step_args *a, int32_t n)
{
    const struct device_cache *cache = a->cache;
    struct work *w = malloc(sizeof *w);
    int32_t *list = malloc(MAX_LEN * sizeof *list);
    assert(w && list && cache->shape.group <= MAX_HEADS && *cache->kv_len <= MAX_LEN);
    if (n > 1) step(b, a + 1, n - 1);
    append(b, &(struct device_rows_args){.cache = cache, .layer = a->layer, .k = a->k, .v = a->v, .n = 1});
    keep_rows(a);
    if (a->route->rule == RULE_MASS)
        encode(b, &(struct device_encode_args){.cache = cache, .basis = a->basis, .counters = a->counters, .layer = a->layer,
                                               .n_sinks = a->route->n_sinks, .window = a->route->window, .n_last = 1});
    if (a->layer == 0 && a->route->rule == RULE_MASS && a->route->trail) follow(a);
    for (int32_t g = 0; g < cache->n_kv_heads; g++) {
        *w = (struct work){.cpu = sr_host_device_cpu(b), .a = a, .shape = &cache->shape, .g = g, .len = *cache->kv_len, .list = list,
                           .out = a->out + (int64_t)g * cache->shape.group * cache->shape.head_dim};
        for (int i = 0; i < MAX_HEADS; i++) w->unread[i] = NAN;
        unit_of(cache, a->layer, g, a->q, &w->u);
        w->u.a.q = w->u.q;
        step_unit(w, &a->counters[g]);
        if (a->route->has_audits) audit(w, &a->counters[g]);
    }
    free(list);
    free(w);
}

/* ---- the table ---- */

static sr_status check(struct backend *b, const struct attn_shape *shape, int32_t n_kv_heads, sr_error *err)
{
    (void)b, (void)n_kv_heads;
    if (shape->group <= MAX_HEADS && shape->head_dim <= MAX_DIM) return SR_OK;
    return sr_fail(err, SR_ERR_UNSUPPORTED, "host device: %d heads of %d", shape->group, shape->head_dim);
}

static size_t sketch_row_bytes(int32_t rank, int32_t bits) { return sr_sketch_host_row_bytes(rank, bits); }

static sr_status reserve(struct backend *b, const struct attn_shape *shape, int32_t n_kv_heads, int32_t max_len, sr_error *err)
{
    if (max_len > MAX_LEN) return sr_fail(err, SR_ERR_RESOURCE, "host device: %d rows, at most %d", max_len, (int)MAX_LEN);
    return sr_host_device_cpu(b)->ops->attn_reserve(sr_host_device_cpu(b), shape, n_kv_heads, max_len, err);
}

static void place(struct backend *b, const struct device_place_args *a)
{
    (void)b;
    for (int32_t u = 0; u < a->n_units; u++)
        for (int32_t i = 0; i < a->n; i++)
            a->table[u * a->max_pages + a->first + i] = a->base + (size_t)u * a->unit_bytes + (size_t)i * a->page_bytes;
}

/* Rows lie as the CPU has them. */
static void copy_page(sr_dtype type, int32_t head_dim, const void *from, void *to) { memcpy(to, from, SR_PAGE_ROWS * sr_row_bytes(type, head_dim)); }

static const struct device_attn_ops attn_ops = {
    .check = check, .sketch_row_bytes = sketch_row_bytes, .reserve = reserve, .place = place, .rows_of_page = copy_page,
    .page_of_rows = copy_page, .append = append, .prefill = prefill, .encode = encode, .moments = moments, .step = step};

static const struct backend_ops ops = {
    .name = "host device", .close = close_device, .mem_new = mem_new, .mem_free = mem_free, .mem_clear = mem_clear, .upload = upload,
    .download = download, .mem_available = mem_available, .shared_new = shared_new, .shared_free = mem_free, .device_attn = &attn_ops};

sr_status sr_host_device_open(struct backend **out, int n_threads, sr_error *err)
{
    struct host_device *d = calloc(1, sizeof *d);
    if (!d) return sr_fail_memory(err, sizeof *d, "host device");
    const sr_status st = sr_backend_cpu_open(&d->cpu, n_threads, err);
    if (st != SR_OK) {
        free(d);
        return st;
    }
    d->ops = ops;
    sr_host_pass_ops(&d->ops);
    d->base = (struct backend){.ops = &d->ops, .pool = d->cpu->pool, .has_own_memory = 1};
    *out = &d->base;
    return SR_OK;
}
