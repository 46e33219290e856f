/* SPDX-License-Identifier: Apache-2.0
 *
 * The attention ops as a whole: what they read, that the thread count and the split change nothing, that states merge.
 * test_attn_ops --bench [THREADS [TYPE]] times them instead.
 */
#include "ops_units.h"

#include "cpu/attn/attn_state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_SINKS = 4, WINDOW = 100 };

/* A decode call and its results. */
struct rows_call {
    struct attn_rows_args a;
    struct attn_touched touched[SR_OPS_UNITS];
    uint8_t set[SR_OPS_UNITS];
    int32_t *list[SR_OPS_UNITS], n_list[SR_OPS_UNITS];
    uint8_t *read[SR_OPS_UNITS];     /* per row: must it be read */
    float *o, *m, *l, *out;
    int64_t n_rows[SR_OPS_UNITS];
};

static int is_read(const struct rows_call *r, const struct ops_units *u, int32_t unit, int32_t row)
{
    const int32_t kv_len = u->unit[unit].kv_len;
    if (r->set[unit] == ATTN_ALL) return 1;
    return r->set[unit] == ATTN_NEAR && (row < N_SINKS || row >= kv_len - WINDOW);
}

static void call_init(struct rows_call *r, struct check *c, const struct ops_units *u, const uint8_t *set)
{
    const size_t heads = (size_t)(u->n * u->shape.group), d = (size_t)u->shape.head_dim;
    memset(r, 0, sizeof(*r));
    r->o = malloc(heads * d * 4);
    r->out = malloc(heads * d * 4);
    r->m = malloc(heads * 4);
    r->l = malloc(heads * 4);
    for (int32_t i = 0; i < u->n; i++) {
        const int32_t kv_len = u->unit[i].kv_len;
        r->set[i] = set[i];
        r->list[i] = malloc((size_t)(kv_len + 1) * sizeof(int32_t));
        r->read[i] = calloc((size_t)kv_len + 1, 1);
        for (int32_t row = 0; row < kv_len; row++) {
            /* single rows, and now and then a run of hundreds with none */
            const int chosen = set[i] == ATTN_LIST && sr_check_pick(c, 4) == 0 && row / 200 % 3 != 1;
            r->read[i][row] = (uint8_t)(chosen || is_read(r, u, i, row));
            if (chosen) r->list[i][r->n_list[i]++] = row;
            r->n_rows[i] += r->read[i][row];
        }
    }
    r->a = (struct attn_rows_args){.shape = &u->shape, .units = u->unit, .set = r->set, .list = (const int32_t *const *)r->list,
                                   .n_list = r->n_list, .n_units = u->n, .n_sinks = N_SINKS, .window = WINDOW,
                                   .state = {r->o, r->m, r->l}, .touched = r->touched};
}

static void call_fini(struct rows_call *r)
{
    for (int32_t i = 0; i < SR_OPS_UNITS; i++) {
        free(r->list[i]);
        free(r->read[i]);
    }
    free(r->o);
    free(r->m);
    free(r->l);
    free(r->out);
}

static void run_rows(struct rows_call *r, const struct ops_units *u, enum cpu_isa isa, int n_threads)
{
    struct backend *b = sr_ops_backend(isa, n_threads);
    int32_t longest = 1;
    for (int32_t i = 0; i < u->n; i++) longest = u->unit[i].kv_len > longest ? u->unit[i].kv_len : longest;
    if (b->ops->attn_reserve(b, &u->shape, u->n, longest, NULL) != SR_OK) abort();
    memset(r->touched, 0, sizeof(r->touched));
    b->ops->attn_rows(b, &r->a);
    b->ops->attn_finish(b, &(struct attn_finish_args){&u->shape, {r->o, r->m, r->l}, r->out, u->n});
    sr_backend_close(b);
}

static void compare_unit(struct check *c, enum cpu_isa isa, const struct rows_call *r, const struct ops_units *u, int32_t i)
{
    const struct attn_shape *s = &u->shape;
    const int32_t d = s->head_dim;
    const uint8_t **k = malloc(sizeof(*k) * (size_t)(r->n_rows[i] + 1)), **v = malloc(sizeof(*v) * (size_t)(r->n_rows[i] + 1));
    const float k_scale = sr_kv_scale(&u->unit[i].k, s->k_type), v_scale = sr_kv_scale(&u->unit[i].v, s->v_type);
    float zero[SR_ATTN_MAX_DIM] = {0}, q[SR_ATTN_MAX_DIM];
    struct ref_state ref;
    int32_t n = 0;
    for (int32_t row = 0; row < u->unit[i].kv_len; row++)
        if (r->read[i][row]) {
            k[n] = sr_ops_k_row(u, i, row);
            v[n++] = sr_ops_v_row(u, i, row);
        }
    for (int32_t g = 0; g < s->group; g++) {
        sr_ref_state_start(&ref, zero, -INFINITY, 0, d);
        ref.q_error = sr_check_q_error(isa, s);
        ref.weight_error = sr_check_weight_error(isa, s);
        for (int32_t j = 0; j < d; j++) q[j] = u->unit[i].q[g * d + j] * k_scale;
        sr_ref_state_add(&ref, s, q, k, v, n);
        for (int32_t j = 0; j < d; j++) {
            const double want = n ? ref.o[j] / ref.l : 0;
            const double tol = n ? ref.o_abs[j] / ref.l * (4 * ref.logit_error + (2 * n + 72) * SR_CHECK_U) + ref.lost + ref.o_error[j] / ref.l : 0;
            if (!sr_check_near(c, "output", (i * s->group + g) * d + j, r->out[(i * s->group + g) * d + j] / v_scale, want, tol)) break;
        }
    }
    if (r->touched[i].k_rows != n || r->touched[i].v_rows != n)
        sr_check_fail(c, "unit %d: counted %lld K and %lld V rows, want %d", i, (long long)r->touched[i].k_rows,
                      (long long)r->touched[i].v_rows, n);
    free(k);
    free(v);
}

static const sr_dtype types[] = {SR_DTYPE_F16, SR_DTYPE_Q8_0, SR_DTYPE_BF16, SR_DTYPE_F32, SR_DTYPE_Q4_0, SR_DTYPE_F8_E4M3};
enum { N_TYPES = 6 };

static void rows_case(struct check *c, enum cpu_isa isa, const int32_t *kv_len, const uint8_t *set, int variant)
{
    const struct attn_shape shape = sr_check_shape(variant % 3 == 0 ? 64 : variant % 3 == 1 ? 128 : 96, 1 + variant % 5,
                                                   types[variant % N_TYPES], types[(variant + variant / 4) % N_TYPES]);
    const size_t heads = (size_t)(SR_OPS_UNITS * shape.group), bytes = heads * (size_t)shape.head_dim * 4;
    struct ops_units u;
    struct rows_call r;
    sr_ops_units_init(&u, c, &shape, kv_len, SR_OPS_UNITS, 0);
    call_init(&r, c, &u, set);
    run_rows(&r, &u, isa, 1);
    for (int32_t i = 0; i < u.n; i++) compare_unit(c, isa, &r, &u, i);
    float *first = malloc(bytes);
    memcpy(first, r.out, bytes);
    sr_ops_units_hide(&u, r.read); /* the same bits, with nothing there but the rows of the set */
    for (int threads = 1; threads <= 3; threads++) {
        run_rows(&r, &u, isa, threads);
        sr_check_same(c, "output with the unread rows gone", r.out, first, bytes);
    }
    free(first);
    call_fini(&r);
    sr_ops_units_fini(&u);
}

static void test_rows(struct check *c, enum cpu_isa isa)
{
    static const int32_t lens[][SR_OPS_UNITS] = {{0, 1, 63, 64}, {65, 1023, 1024, 1025}, {5000, 300, 2048, 104}, {3000, 3000, 3000, 3000}};
    static const uint8_t sets[][SR_OPS_UNITS] = {{ATTN_ALL, ATTN_ALL, ATTN_ALL, ATTN_ALL}, {ATTN_NEAR, ATTN_NEAR, ATTN_NEAR, ATTN_NEAR},
                                                 {ATTN_LIST, ATTN_LIST, ATTN_LIST, ATTN_LIST}, {ATTN_NONE, ATTN_ALL, ATTN_LIST, ATTN_NEAR}};
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) rows_case(c, isa, lens[i], sets[j], 4 * i + j);
}

/* In one call: the bits of two, and what the near rows alone had. */
static void both_at_once(struct check *c, enum cpu_isa isa, struct rows_call *r, const struct ops_units *u, const float *near)
{
    const size_t heads = (size_t)(u->n * u->shape.group), d = (size_t)u->shape.head_dim, bytes = heads * (d + 2) * sizeof(float);
    float *merged = malloc(bytes), *once = malloc(bytes), *before = malloc(2 * heads * sizeof(float));
    struct attn_touched touched[SR_OPS_UNITS];
    for (int threads = 0; threads <= 3; threads++) {
        float *to = threads ? once : merged;
        if (threads) {
            memset(r->set, ATTN_NEAR_LIST, sizeof(r->set));
            r->a.merge = 0;
            r->a.near_m = before;
            r->a.near_l = before + heads;
            memset(before, 0, 2 * heads * sizeof(float));
            run_rows(r, u, isa, threads);
            sr_check_same(c, "m and l before the list", before, near, 2 * heads * sizeof(float));
            sr_check_same(c, "rows counted", r->touched, touched, sizeof(touched));
        }
        memcpy(touched, r->touched, sizeof(touched));
        memcpy(to, r->o, heads * d * sizeof(float));
        memcpy(to + heads * d, r->m, heads * sizeof(float));
        memcpy(to + heads * (d + 1), r->l, heads * sizeof(float));
        if (threads) sr_check_same(c, "near and list in one call", once, merged, bytes);
    }
    free(merged);
    free(once);
    free(before);
}

/* near, then a list merged into it, is the same as both at once. */
static void test_merge_rows(struct check *c, enum cpu_isa isa)
{
    static const int32_t kv_len[] = {2500, 700, 104, 90};
    static const uint8_t near[] = {ATTN_NEAR, ATTN_NEAR, ATTN_NEAR, ATTN_NEAR}, list[] = {ATTN_LIST, ATTN_LIST, ATTN_NONE, ATTN_LIST};
    const struct attn_shape shape = sr_check_shape(64, 3, SR_DTYPE_F16, SR_DTYPE_F16);
    struct ops_units u;
    struct rows_call r;
    sr_ops_units_init(&u, c, &shape, kv_len, SR_OPS_UNITS, 0);
    call_init(&r, c, &u, near);
    run_rows(&r, &u, isa, 2);
    struct attn_touched before[SR_OPS_UNITS];
    float near_ml[2][SR_OPS_UNITS * 3];
    memcpy(before, r.touched, sizeof(before));
    memcpy(near_ml[0], r.m, sizeof(near_ml[0]));
    memcpy(near_ml[1], r.l, sizeof(near_ml[1]));
    memcpy(r.set, list, sizeof(list));
    r.a.merge = 1;
    for (int32_t i = 0; i < u.n; i++)
        for (int32_t row = N_SINKS; list[i] == ATTN_LIST && row < u.unit[i].kv_len - WINDOW; row += 3) {
            r.list[i][r.n_list[i]++] = row;
            r.read[i][row] = 1;
            r.n_rows[i]++;
        }
    run_rows(&r, &u, isa, 2);
    for (int32_t i = 0; i < u.n; i++) {
        r.touched[i].k_rows += before[i].k_rows;
        r.touched[i].v_rows += before[i].v_rows;
        compare_unit(c, isa, &r, &u, i);
    }
    both_at_once(c, isa, &r, &u, near_ml[0]);
    call_fini(&r);
    sr_ops_units_fini(&u);
}

static void logits_case(struct check *c, enum cpu_isa isa, const struct attn_shape *s)
{
    static const int32_t kv_len[] = {2100}, rows[] = {0, 5, 6, 7, 700, 1022, 1023, 1024, 1025, 2099};
    enum { N = 10 };
    float logits[16 * N + 1], k[SR_ATTN_MAX_DIM];
    struct ops_units u;
    sr_ops_units_init(&u, c, s, kv_len, 1, 0);
    struct backend *b = sr_ops_backend(isa, 1);
    logits[s->group * N] = 17;
    b->ops->attn_logits(b, &(struct attn_logits_args){s, u.unit, rows, N, logits});
    for (int32_t i = 0; i < N; i++) {
        sr_check_row_load(s->k_type, sr_ops_k_row(&u, 0, rows[i]), k, s->head_dim);
        for (int32_t g = 0; g < s->group; g++) {
            const double scale = sr_kv_scale(&u.unit[0].k, s->k_type);
            double sum = 0, size = 0;
            for (int32_t j = 0; j < s->head_dim; j++) {
                const double x = (double)u.unit[0].q[g * s->head_dim + j] * k[j];
                sum += x;
                size += fabs(x);
            }
            sr_check_near(c, "logit", g * N + i, logits[g * N + i], sum * scale, s->head_dim * SR_CHECK_U * size * scale);
        }
    }
    if (logits[s->group * N] != 17) sr_check_fail(c, "wrote behind the logits");
    sr_backend_close(b);
    sr_ops_units_fini(&u);
}

static void test_logits(struct check *c, enum cpu_isa isa)
{
    for (int t = 0; t < N_TYPES; t++)
        for (int32_t group = 1; group <= 16; group += 5) {
            const struct attn_shape s = sr_check_shape(t % 2 ? 128 : 64, group, types[t], types[t]);
            logits_case(c, isa, &s);
        }
}

/* NaN in a row that is read reaches the output; so the test of hidden rows can fail. */
static void test_nan_is_seen(struct check *c, enum cpu_isa isa)
{
    static const int32_t kv_len[] = {1500, 300, 65, 1};
    static const uint8_t set[] = {ATTN_ALL, ATTN_NEAR, ATTN_LIST, ATTN_ALL};
    for (int t = 0; t < 2 * N_TYPES; t++) {
        const struct attn_shape shape = sr_check_shape(64, 2, types[t / 2], types[t / 2]);
        struct ops_units u;
        struct rows_call r;
        sr_ops_units_init(&u, c, &shape, kv_len, SR_OPS_UNITS, 0);
        call_init(&r, c, &u, set);
        for (int32_t i = 0; i < u.n; i++) {
            int32_t row = u.unit[i].kv_len - 1;
            while (!r.read[i][row]) row--;
            sr_check_row_set(t % 2 ? shape.k_type : shape.v_type, t % 2 ? sr_ops_k_row(&u, i, row) : sr_ops_v_row(&u, i, row), 5, NAN);
        }
        run_rows(&r, &u, isa, 1);
        for (int32_t i = 0; i < u.n * 2; i++)
            if (!isnan(r.out[i * 64 + 5])) sr_check_fail(c, "head %d: NaN of a row that was read is lost", i);
        call_fini(&r);
        sr_ops_units_fini(&u);
    }
}

/* A list that lacks one row must give something else: the comparison above can fail. */
static void test_planted_row(struct check *c, enum cpu_isa isa)
{
    static const int32_t kv_len[] = {800, 800, 800, 800};
    static const uint8_t set[] = {ATTN_LIST, ATTN_LIST, ATTN_LIST, ATTN_LIST};
    const struct attn_shape shape = sr_check_shape(64, 1, SR_DTYPE_F16, SR_DTYPE_F16);
    struct ops_units u;
    struct rows_call r;
    struct check planted = *c;
    sr_ops_units_init(&u, c, &shape, kv_len, SR_OPS_UNITS, 0);
    call_init(&r, c, &u, set);
    for (int32_t i = 0; i < u.n; i++) r.n_list[i]--;
    run_rows(&r, &u, isa, 1);
    for (int32_t i = 0; i < u.n; i++) r.touched[i].k_rows++, r.touched[i].v_rows++;
    for (int32_t i = 0; i < u.n; i++) compare_unit(&planted, isa, &r, &u, i);
    if (!planted.n_failed) sr_check_fail(c, "a row left out went unnoticed");
    call_fini(&r);
    sr_ops_units_fini(&u);
}

/* ---- prefill and append --------------------------------------------------------------------------------------------- */

static void prefill(struct backend *b, const struct ops_units *u, const float *q, float *out, int64_t pos, int32_t n)
{
    const int64_t stride = u->n * u->shape.group * u->shape.head_dim;
    b->ops->attn_prefill(b, &(struct attn_prefill_args){.shape = &u->shape, .units = u->unit, .n_units = u->n,
                                                        .q = q + pos * stride, .out = out + pos * stride,
                                                        .q_stride = stride, .out_stride = stride, .pos0 = pos, .n = n});
}

/* Whole, in chunks of odd sizes, and with 1, 2, 3 threads: the same bits. */
static void test_prefill(struct check *c, enum cpu_isa isa)
{
    static const int32_t cuts[] = {0, 1, 64, 200, 201, 700, 1100};
    const struct attn_shape shape = sr_check_shape(64, 3, SR_DTYPE_F16, SR_DTYPE_Q8_0);
    const int32_t n = 1100, kv_len[] = {n, n, n};
    const int64_t width = 3 * 3 * 64;
    struct ops_units u;
    sr_ops_units_init(&u, c, &shape, kv_len, 3, 0);
    const size_t bytes = (size_t)(n * width) * 4;
    float *q = malloc(bytes), *whole = malloc(bytes), *parts = malloc(bytes);
    sr_check_fill_normal(c, q, n * width, 0.25);
    for (int threads = 1; threads <= 3; threads++) {
        struct backend *b = sr_ops_backend(isa, threads);
        if (b->ops->attn_reserve(b, &shape, 3, n, NULL) != SR_OK) abort();
        memset(parts, 0, bytes);
        prefill(b, &u, q, parts, 0, n);
        if (threads == 1) memcpy(whole, parts, bytes);
        sr_check_same(c, "prefill with another thread count", parts, whole, bytes);
        memset(parts, 0, bytes);
        for (int i = 0; i < 6; i++) prefill(b, &u, q, parts, cuts[i], cuts[i + 1] - cuts[i]);
        sr_check_same(c, "prefill in chunks", parts, whole, bytes);
        sr_backend_close(b);
    }
    free(q);
    free(whole);
    free(parts);
    sr_ops_units_fini(&u);
}

/* Of a scaled type, over the unit's scale. */
static void store_row(const struct cpu_kernels *k, sr_dtype type, const struct kv_rows *r, const float *x, uint8_t *to)
{
    float over[64];
    for (int i = 0; i < 64; i++) over[i] = x[i] / sr_kv_scale(r, type);
    k->kv_store(type, over, to, 64);
}

static void append_case(struct check *c, enum cpu_isa isa, sr_dtype k_type, sr_dtype v_type)
{
    const struct attn_shape shape = sr_check_shape(64, 2, k_type, v_type);
    const int32_t kv_len[] = {1300, 1300}, n = 300, pos = 900, stride = 2 * 64;
    struct cpu_kernels k;
    struct ops_units u;
    uint8_t want[256];
    sr_ops_units_init(&u, c, &shape, kv_len, 2, 0);
    sr_cpu_kernels_fill(&k, sr_cpu_isa_below(ISA_SCALAR));
    float *x = malloc((size_t)(2 * n * stride) * 4), *kx = x, *vx = x + n * stride;
    sr_check_fill_normal(c, x, 2 * n * stride, 1.0);
    const struct kv_append_args a[2] = {{&shape, u.unit[0].k, u.unit[0].v, kx, vx, stride, pos, n},
                                        {&shape, u.unit[1].k, u.unit[1].v, kx + 64, vx + 64, stride, pos, 1}};
    struct backend *b = sr_ops_backend(isa, 2);
    b->ops->kv_append(b, a, 2);
    for (int32_t i = 0; i < 2; i++)
        for (int32_t t = 0; t < a[i].n; t++) {
            store_row(&k, shape.k_type, &a[i].k, a[i].k_src + t * stride, want);
            sr_check_same(c, "appended K row", sr_ops_k_row(&u, i, pos + t), want, shape.k_row_bytes);
            store_row(&k, shape.v_type, &a[i].v, a[i].v_src + t * stride, want);
            sr_check_same(c, "appended V row", sr_ops_v_row(&u, i, pos + t), want, shape.v_row_bytes);
        }
    sr_backend_close(b);
    free(x);
    sr_ops_units_fini(&u);
}

static void test_append(struct check *c, enum cpu_isa isa)
{
    append_case(c, isa, SR_DTYPE_Q8_0, SR_DTYPE_F16);
    append_case(c, isa, SR_DTYPE_F8_E4M3, SR_DTYPE_F8_E4M3);
}

static void test_cosine(struct check *c, enum cpu_isa isa)
{
    const struct attn_shape shape = sr_check_shape(96, 4, SR_DTYPE_BF16, SR_DTYPE_F16);
    const int32_t kv_len[] = {10, 2000};
    struct ops_units u;
    float score[2], k[SR_ATTN_MAX_DIM];
    struct attn_touched touched[2] = {{0}, {0}};
    sr_ops_units_init(&u, c, &shape, kv_len, 2, 0);
    struct backend *b = sr_ops_backend(isa, 1);
    b->ops->attn_cosine(b, &(struct attn_cosine_args){&shape, u.unit, 2, score, touched});
    for (int32_t i = 0; i < 2; i++) {
        double mean = 0;
        sr_check_row_load(shape.k_type, sr_ops_k_row(&u, i, 0), k, 96);
        for (int32_t g = 0; g < 4; g++) {
            double qk = 0, qq = 0, kk = 0;
            for (int32_t j = 0; j < 96; j++) {
                const double x = u.unit[i].q[g * 96 + j], y = k[j];
                qk += x * y;
                qq += x * x;
                kk += y * y;
            }
            mean += qk / sqrt(qq * kk) / 4;
        }
        sr_check_near(c, "cosine", i, score[i], mean, 4 * SR_CHECK_U);
        if (touched[i].k_rows != 1) sr_check_fail(c, "counted %lld rows, want 1", (long long)touched[i].k_rows);
    }
    sr_backend_close(b);
    sr_ops_units_fini(&u);
}

/* ---- merge ------------------------------------------------------------------------------------------------------------ */

enum { MERGE_DIM = 16 };
struct small_state { float o[MERGE_DIM], m, l; };

static struct head_state view(struct small_state *s) { return (struct head_state){s->o, &s->m, &s->l}; }

static struct small_state random_state(struct check *c, int empty)
{
    struct small_state s;
    sr_head_state_clear(view(&s), MERGE_DIM);
    if (empty) return s;
    s.m = (float)(20 * sr_check_normal(c));
    s.l = (float)(1 + sr_rng_unit(&c->rng));
    sr_check_fill_normal(c, s.o, MERGE_DIM, 1);
    return s;
}

static void test_merge(struct check *c, enum cpu_isa isa)
{
    (void)isa;
    for (int i = 0; i < 2000; i++) {
        struct small_state a = random_state(c, i % 8 == 1), b = random_state(c, i % 8 == 2), d = random_state(c, i % 8 >= 5);
        const struct small_state b0 = b;
        struct small_state left = a, right = b;
        sr_head_state_merge(view(&left), view(&b), MERGE_DIM);
        if (i % 8 == 1) sr_check_same(c, "empty + b", &left, &b0, sizeof(left));
        if (i % 8 == 2) sr_check_same(c, "a + empty", &left, &a, sizeof(left));
        sr_head_state_merge(view(&left), view(&d), MERGE_DIM);
        sr_head_state_merge(view(&right), view(&d), MERGE_DIM);
        struct small_state other = a;
        sr_head_state_merge(view(&other), view(&right), MERGE_DIM);
        sr_check_near(c, "m", i, left.m, other.m, 0);
        /* three terms, each through two exponentials and products */
        sr_check_near(c, "l", i, left.l, other.l, 16 * SR_CHECK_U * (double)other.l);
        for (int j = 0; j < MERGE_DIM; j++) {
            const double size = fabs((double)a.o[j]) + fabs((double)b0.o[j]) + fabs((double)d.o[j]);
            sr_check_near(c, "o", j, left.o[j], other.o[j], 64 * SR_CHECK_U * size);
        }
    }
}

int main(int argc, char **argv)
{
    static const struct ops_test tests[] = {
        {"attn_rows reads its set and nothing else", test_rows}, {"attn_rows near + list", test_merge_rows},
        {"attn_logits", test_logits},
        {"attn_rows shows NaN of rows read", test_nan_is_seen}, {"attn_rows: planted fault is found", test_planted_row},
        {"attn_prefill same bits in any split", test_prefill}, {"kv_append", test_append}, {"attn_cosine", test_cosine},
        {"state merge is associative", test_merge},
    };
    return sr_ops_main(tests, sizeof(tests) / sizeof(tests[0]), argc, argv);
}
