/* SPDX-License-Identifier: Apache-2.0
 *
 * What each mode reads and gives: against double precision over the rows that the plan names, with counters
 * by hand, with poison in every row that was not chosen, and with a sketch that lies.
 */
#include "attn_world.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "attention/timeline.h"
#include "base/memory.h"
#include "backend/kv_type.h"
#include "formats/quant.h"

enum { LEN = 2460, AT = 2400 };

static size_t stride_of(const struct attn_world *w)
{
    return (size_t)w->n_heads * (size_t)w->head_dim;
}

static float *floats(size_t n)
{
    float *p = malloc(n * sizeof *p);
    assert_non_null(p);
    return p;
}

/* Rows that the plan of the layer decoded last names for a KV group. */
static int64_t plan_rows(const struct attn_bench *b, int32_t layer, int32_t group, uint8_t *read)
{
    const struct decode_scratch *w = &b->attention->scratch;
    const sr_route_options *o = &b->seq->route;
    int32_t len = b->seq->len[layer];
    int64_t n = 0;
    memset(read, 0, (size_t)len);
    for (int32_t i = 0; i < len; i++) {
        int is_near = i < o->n_sinks || i >= len - o->window;
        read[i] = w->kind[group] == READ_ALL || (w->kind[group] != READ_NONE && is_near);
    }
    for (int32_t i = 0; w->kind[group] == READ_NEAR_LIST && i < w->n_list[group]; i++)
        read[w->list[group][i]] = 1;
    for (int32_t i = 0; i < w->n_more[group]; i++) {
        assert_false(read[w->more[group][i]]);
        read[w->more[group][i]] = 1;
    }
    for (int32_t i = 0; i < len; i++) n += read[i];
    return n;
}

/* Kernels may take a query to Q4_0 keys in steps of max |q| / 32512: its logits are then off by half a step times sum |k|
 * at most, and an output by twice that share of its values. 0 while the keys are of another type. */
static int q4_keys;

static double rounding_of_query(const struct attn_world *w, int32_t layer, int32_t head, int32_t pos)
{
    const int32_t d = w->head_dim, group = head / (w->n_heads / w->n_kv_heads);
    const float *q = sr_world_q(w, layer, pos) + head * d;
    double q_max = 0, k_most = 0, v_max = 0;
    if (!q4_keys) return 0;
    for (int32_t i = 0; i <= pos; i++) {
        double k_sum = 0;
        for (int32_t j = 0; j < d; j++) {
            k_sum += fabs((double)(sr_world_k(w, layer, i) + group * d)[j]);
            v_max = fmax(v_max, fabs((double)(sr_world_v(w, layer, i) + group * d)[j]));
            q_max = fmax(q_max, fabs((double)q[j]));
        }
        k_most = fmax(k_most, k_sum);
    }
    return 2 * v_max * k_most * q_max / sqrt(d) / 65024;
}

/* The head outputs of a group against attention over `read` in double; returns the largest true unread share.
 */
static double assert_group(const struct attn_world *w, int32_t layer, int32_t group, int32_t pos,
                           const float *out, const uint8_t *read)
{
    int32_t per = w->n_heads / w->n_kv_heads, d = w->head_dim;
    double want[256], most = 0;
    for (int32_t h = group * per; h < (group + 1) * per; h++) {
        double unread = sr_world_attend(w, layer, h, pos, read, want);
        most = unread > most ? unread : most;
        const double tol = 5e-5 + rounding_of_query(w, layer, h, pos);
        for (int32_t i = 0; i < d; i++) {
            double diff = fabs((double)out[h * d + i] - want[i]);
            if (!(diff <= tol))
                fail_msg("layer %d head %d pos %d: %g, want %g", layer, h, pos, (double)out[h * d + i],
                         want[i]);
        }
    }
    return most;
}

/* ---- paper ---- */

static void test_tau(void **state)
{
    (void)state;
    sr_route_options o = sr_world_route(SR_ROUTE_PAPER);
    o.tau[0] = .5024;
    o.tau[1] = .3814;
    o.tau[2] = -.5948;
    o.tau[3] = .2551;
    assert_float_equal(sr_route_tau(&o, 32768), .5024 + .3814 / 4 - .5948 / 16 + .2551 / 64, 1e-12);
    assert_float_equal(sr_route_tau(&o, 262144), .5024 + .3814 - .5948 + .2551, 1e-12); /* clamped at 128K */
    o.tau_min_len = 2048;
    assert_float_equal(sr_route_tau(&o, 1), sr_route_tau(&o, 2048), 0);
    o.tau[1] = o.tau[2] = o.tau[3] = 0;
    o.tau_scale = 0;
    assert_float_equal(sr_route_tau(&o, 5), .5024, 0);
}

static double mean_cosine(const struct attn_world *w, int32_t layer, int32_t group, int32_t pos)
{
    int32_t per = w->n_heads / w->n_kv_heads, d = w->head_dim;
    const float *k = sr_world_k(w, layer, 0) + group * d;
    double sum = 0;
    for (int32_t h = 0; h < per; h++) {
        const float *q = sr_world_q(w, layer, pos) + (group * per + h) * d;
        double qk = 0, qq = 0, kk = 0;
        for (int32_t i = 0; i < d; i++) {
            qk += (double)q[i] * (double)k[i];
            qq += (double)q[i] * (double)q[i];
            kk += (double)k[i] * (double)k[i];
        }
        sum += qk / sqrt(qq * kk);
    }
    return sum / per;
}

static void test_paper(void **state)
{
    enum { N = 120, FROM = 40 };
    struct attn_world *w = sr_world_new(4, 2, 3, 64, N, 3);
    struct attn_bench b;
    sr_route_options o = sr_world_route(SR_ROUTE_PAPER);
    sr_route_stats st, want = {0};
    float *out = floats(4 * stride_of(w));
    uint8_t all[N];
    (void)state;
    memset(all, 1, sizeof all);
    o.min_len = 0;
    o.tau_set = 1;
    o.tau[0] = .05; /* falls with the length, so that both decisions occur */
    o.tau[1] = .4;
    o.tau[2] = -.3;
    o.tau_scale = 100;
    o.tau_max_len = 100;
    o.audit = 1;
    sr_bench_open(&b, w, SR_DTYPE_F32, SR_DTYPE_F32, &o, 2, NULL);
    sr_bench_fill(&b, w, 0, FROM);
    for (int32_t p = FROM; p < N; p++) {
        double x = (p + 1 < 100 ? p + 1 : 100) / 100.0, tau = .05 + .4 * x - .3 * x * x;
        sr_bench_step(&b, w, p, out);
        for (int32_t l = 0; l < 4; l++) {
            for (int32_t g = 0; g < 2; g++) {
                double cos = mean_cosine(w, l, g, p);
                const float *o_unit = out + (size_t)l * stride_of(w) + g * 3 * 64;
                assert_true(fabs(cos - tau) > 1e-6);
                want.k_rows += l > 1;
                if (l > 1 && cos > tau) {
                    for (int i = 0; i < 3 * 64; i++) assert_true(o_unit[i] == 0);
                    want.units_none++;
                } else {
                    assert_group(w, l, g, p, out + (size_t)l * stride_of(w), all);
                    want.units_all++;
                    want.k_rows += p + 1;
                    want.v_rows += p + 1;
                }
            }
        }
    }
    sr_attn_seq_stats(b.seq, &st);
    print_message("# %d skipped, %d read\n", (int)want.units_none, (int)want.units_all);
    assert_true(want.units_none > 10 && want.units_all > 4 * (N - FROM) + 10);
    assert_int_equal(st.units_none, want.units_none);
    assert_int_equal(st.units_all, want.units_all);
    assert_int_equal(st.k_rows, want.k_rows);
    assert_int_equal(st.v_rows, want.v_rows);
    assert_int_equal(st.broken,
                     3 * want.units_none); /* unread is 1 for each head of a skipped group, else 0 */
    assert_float_equal(st.unread_sum, 3.0 * (double)want.units_none, 0);
    assert_int_equal(st.cases, 3 * (want.units_none + want.units_all));
    sr_bench_close(&b);
    sr_world_free(w);
    free(out);
}

/* ---- window and mass, every row accounted for ---- */

struct expected {
    int64_t k_rows, v_rows, sketch_rows, cases, above, broken;
    double unread;
};

static void expect_unit(struct attn_bench *b, const struct attn_world *w, int32_t layer, int32_t group,
                        int32_t pos, const float *out, struct expected *e)
{
    int32_t per = w->n_heads / w->n_kv_heads;
    const sr_route_options *o = &b->seq->route;
    uint8_t *read = malloc((size_t)pos + 1);
    double ignored[256];
    assert_non_null(read);
    int64_t n = plan_rows(b, layer, group, read);
    assert_group(w, layer, group, pos, out, read);
    e->k_rows += n;
    e->v_rows += n;
    if (o->mode == SR_ROUTE_MASS) e->sketch_rows += pos + 1 - o->n_sinks - o->window;
    for (int32_t h = group * per; h < (group + 1) * per; h++) {
        double unread = sr_world_attend(w, layer, h, pos, read, ignored);
        e->cases++;
        e->unread += unread;
        e->above += unread > (double)o->eps;
        e->broken += unread > 2 * (double)o->eps;
    }
    free(read);
}

static void check_mode(struct attn_world *w, const char *moments, const sr_route_options *o, sr_dtype type,
                       int32_t n_steps)
{
    struct attn_bench b;
    struct expected e = {0};
    sr_route_stats st;
    float *out = floats(stride_of(w));
    sr_bench_open(&b, w, type, type, o, 2, moments);
    sr_bench_fill(&b, w, 0, AT);
    for (int32_t p = AT; p < AT + n_steps; p++) {
        assert_int_equal(sr_attn_seq_reserve(b.seq, p + 1, NULL), SR_OK);
        for (int32_t l = 0; l < w->n_layers; l++) {
            sr_attn_append(b.seq, l, sr_world_k(w, l, p), sr_world_v(w, l, p), 1);
            sr_bench_again(&b, w, l, p, out);
            for (int32_t g = 0; g < w->n_kv_heads; g++) expect_unit(&b, w, l, g, p, out, &e);
        }
    }
    /* every far row was projected once, the first ones at the first step */
    int64_t units = (int64_t)w->n_layers * w->n_kv_heads;
    if (o->mode == SR_ROUTE_MASS) e.k_rows += units * (AT + n_steps - o->window - o->n_sinks);
    sr_attn_seq_stats(b.seq, &st);
    assert_int_equal(st.steps, n_steps);
    assert_int_equal(st.units, units * n_steps);
    assert_int_equal(st.k_rows, e.k_rows);
    assert_int_equal(st.v_rows, e.v_rows);
    assert_int_equal(st.sketch_rows, e.sketch_rows);
    /* of the sketch the first coordinates of every far row, the others of some; twice where rows of little weight are needed */
    size_t row = sr_row_bytes(type, w->head_dim), sketch = b.seq->sketch.row_bytes, first = (size_t)(4 * b.seq->sketch.bits / 8);
    size_t projected = (size_t)(e.k_rows - e.v_rows) * row, scanned = (size_t)st.sketch_bytes - projected;
    assert_in_range(scanned, (size_t)e.sketch_rows * first, 2 * (size_t)e.sketch_rows * sketch);
    assert_int_equal(st.kv_bytes, (size_t)(e.k_rows + e.v_rows) * row + scanned);
    size_t dense = 0;
    for (int32_t p = AT; p < AT + n_steps; p++) dense += 2 * row * (size_t)units * (size_t)(p + 1);
    assert_int_equal(st.dense_bytes, dense);
    assert_int_equal(st.audit_bytes, dense); /* every unit was audited, none read all */
    assert_int_equal(st.cases, e.cases);
    assert_int_equal(st.above_eps, e.above);
    assert_int_equal(st.broken, e.broken);
    assert_float_equal(st.unread_sum, e.unread, 1e-5 * (double)e.cases);
    sr_bench_close(&b);
    free(out);
}

static void test_window_rows(void **state)
{
    (void)state;
    sr_route_options o = sr_world_route(SR_ROUTE_WINDOW);
    o.audit = 1;
    check_mode(sr_shared.world, NULL, &o, SR_DTYPE_F16, 3);
}

static void test_mass_rows(void **state)
{
    (void)state;
    sr_route_options o = sr_world_route(SR_ROUTE_MASS);
    o.audit = 1;
    check_mode(sr_shared.world, sr_shared.moments, &o, SR_DTYPE_F16, 3);
    o.bits = 8;
    o.rank = 5;
    o.n_sinks = 1;
    o.window = 100;
    check_mode(sr_shared.world, sr_shared.moments, &o, SR_DTYPE_F16, 2);
}

static void test_mass_shapes(void **state)
{
    static const int32_t groups[] = {1, 2, 3, 4, 7, 8}, dims[] = {64, 80, 128};
    static const sr_dtype types[] = {SR_DTYPE_F16, SR_DTYPE_F32, SR_DTYPE_BF16, SR_DTYPE_Q8_0, SR_DTYPE_Q4_0, SR_DTYPE_F8_E4M3};
    (void)state;
    for (int i = 0; i < 6; i++) {
        sr_dtype type = types[i];
        int32_t dim = sr_kv_is_blocked(type) ? 64 : dims[i % 3];
        struct attn_world *w = sr_world_new(1, 1, groups[i], dim, LEN, 20 + (uint64_t)i);
        sr_route_options o = sr_world_route(SR_ROUTE_MASS);
        char moments[64];
        o.audit = 1;
        w->rope.kind = ROPE_NORM;
        sr_world_round(w, type, type);
        sr_world_moments(w, moments);
        q4_keys = type == SR_DTYPE_Q4_0;
        check_mode(w, moments, &o, type, 2);
        q4_keys = 0;
        unlink(moments);
        sr_world_free(w);
    }
}

/* ---- poison ---- */

static void poison_rows(struct attn_bench *b, int32_t layer, int32_t group, const uint8_t *read)
{
    struct attn_unit units[8];
    sr_cache_units(b->seq, layer, units);
    for (int32_t i = 0; i < b->seq->len[layer]; i++) {
        if (read[i]) continue;
        size_t at = (size_t)(i % SR_CHUNK_ROWS);
        memset((uint8_t *)units[group].k.chunk[i / SR_CHUNK_ROWS] + at * b->seq->shape.k_row_bytes, 0xff,
               b->seq->shape.k_row_bytes);
        memset((uint8_t *)units[group].v.chunk[i / SR_CHUNK_ROWS] + at * b->seq->shape.v_row_bytes, 0xff,
               b->seq->shape.v_row_bytes);
    }
}

/* Takes away, or gives back, every page that holds no row that is read; returns how many there are. */
static int protect_pages(uint8_t *run, size_t row_bytes, int32_t first, int32_t len, const uint8_t *read,
                         int prot)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n_pages = SR_CHUNK_ROWS * row_bytes / page;
    int n = 0;
    for (size_t p = 0; p < n_pages; p++) {
        int is_read = 0;
        for (size_t at = p * page / row_bytes; at <= (p * page + page - 1) / row_bytes; at++) {
            int32_t row = first + (int32_t)at;
            is_read |= row >= len || read[row];
        }
        if (is_read) continue;
        assert_int_equal(mprotect(run + p * page, page, prot), 0);
        n++;
    }
    return n;
}

static int protect(struct attn_bench *b, int32_t layer, int32_t group, const uint8_t *read, int prot)
{
    struct attn_unit units[8];
    int32_t len = b->seq->len[layer];
    int n = 0;
    sr_cache_units(b->seq, layer, units);
    for (int32_t first = 0; first < len; first += SR_CHUNK_ROWS) {
        n += protect_pages(units[group].k.chunk[first / SR_CHUNK_ROWS], b->seq->shape.k_row_bytes, first, len,
                           read, prot);
        n += protect_pages(units[group].v.chunk[first / SR_CHUNK_ROWS], b->seq->shape.v_row_bytes, first, len,
                           read, prot);
    }
    return n;
}

static void poison_mode(const sr_route_options *o, sr_dtype type)
{
    struct attn_world *w = sr_shared.world;
    struct attn_bench b;
    float *want = floats((size_t)w->n_layers * stride_of(w)), *out = floats(stride_of(w));
    uint8_t *read = malloc((size_t)w->n_kv_heads * LEN);
    int n_pages = 0;
    assert_non_null(read);
    sr_bench_open(&b, w, type, type, o, 2, sr_shared.moments);
    sr_bench_fill(&b, w, 0, AT);
    sr_bench_step(&b, w, AT, want); /* projects the far keys; they are not read again within the band */
    for (int32_t l = 0; l < w->n_layers; l++) {
        sr_bench_again(&b, w, l, AT, out);
        assert_memory_equal(out, want + (size_t)l * stride_of(w), stride_of(w) * sizeof *out);
        for (int32_t g = 0; g < w->n_kv_heads; g++) {
            plan_rows(&b, l, g, read + g * LEN);
            if (o->mode == SR_ROUTE_PAPER) read[g * LEN] = 1; /* the cosine reads the first key */
        }
        for (int32_t g = 0; g < w->n_kv_heads; g++) poison_rows(&b, l, g, read + g * LEN);
        sr_bench_again(&b, w, l, AT, out);
        assert_memory_equal(out, want + (size_t)l * stride_of(w), stride_of(w) * sizeof *out);
        for (int32_t g = 0; g < w->n_kv_heads; g++) n_pages += protect(&b, l, g, read + g * LEN, PROT_NONE);
        sr_bench_again(&b, w, l, AT, out);
        assert_memory_equal(out, want + (size_t)l * stride_of(w), stride_of(w) * sizeof *out);
        for (int32_t g = 0; g < w->n_kv_heads; g++) protect(&b, l, g, read + g * LEN, PROT_READ | PROT_WRITE);
    }
    print_message("# %d pages out of reach\n", n_pages);
    if (o->mode != SR_ROUTE_PAPER) assert_true(n_pages > 0);
    /* the poison does reach an output that reads it */
    sr_route_options dense = sr_world_route(SR_ROUTE_DENSE);
    assert_int_equal(sr_attn_seq_route_set(b.seq, &dense, NULL), SR_OK);
    sr_bench_again(&b, w, 0, AT, out);
    int has_nan = 0;
    for (size_t i = 0; i < stride_of(w); i++) has_nan |= isnan(out[i]);
    assert_int_equal(has_nan, o->mode != SR_ROUTE_PAPER);
    sr_bench_close(&b);
    free(want);
    free(out);
    free(read);
}

static void test_poison(void **state)
{
    static const sr_dtype types[] = {SR_DTYPE_F32, SR_DTYPE_F16, SR_DTYPE_BF16, SR_DTYPE_Q8_0, SR_DTYPE_Q4_0, SR_DTYPE_F8_E4M3};
    (void)state;
    for (int i = 0; i < 6; i++) {
        sr_route_options o = sr_world_route(SR_ROUTE_MASS);
        poison_mode(&o, types[i]);
    }
    sr_route_options o = sr_world_route(SR_ROUTE_WINDOW);
    poison_mode(&o, SR_DTYPE_F16);
    o = sr_world_route(SR_ROUTE_PAPER);
    o.tau_set = 1;
    o.tau[0] = -1.5; /* skips every group but those of the first layers */
    poison_mode(&o, SR_DTYPE_F16);
}

/* ---- a sketch that lies ---- */

static void run_audited(int corrupt, sr_route_stats *st)
{
    struct attn_world *w = sr_shared.world;
    struct attn_bench b;
    sr_route_options o = sr_world_route(SR_ROUTE_MASS);
    float *out = floats((size_t)w->n_layers * stride_of(w));
    o.audit = 1;
    o.breaker = 0; /* test_contract.c has it open */
    o.look = 0;    /* would notice, and read on */
    sr_bench_open(&b, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, 2, sr_shared.moments);
    sr_bench_fill(&b, w, 0, AT);
    sr_bench_step(&b, w, AT, out);
    sr_attn_seq_stats_reset(b.seq);
    if (corrupt) sr_spoil_sketch(b.seq);
    for (int32_t p = AT + 1; p < AT + 21; p++) sr_bench_step(&b, w, p, out);
    sr_attn_seq_stats(b.seq, st);
    sr_bench_close(&b);
    free(out);
}

static void test_corrupted_sketch(void **state)
{
    sr_route_stats good, bad;
    (void)state;
    run_audited(0, &good);
    run_audited(1, &bad);
    print_message("# broken: %d of %d, corrupted %d; unread %.4f, %.4f; error %.4f, %.4f\n", (int)good.broken,
                  (int)good.cases, (int)bad.broken, good.unread_sum, bad.unread_sum, good.output_error_sum,
                  bad.output_error_sum);
    assert_int_equal(good.cases, bad.cases);
    assert_true(good.broken * 50 <= good.cases);
    assert_true(bad.broken * 10 >= bad.cases);
    assert_true(bad.unread_sum > 1.5 * good.unread_sum);
    assert_true(bad.output_error_sum > good.output_error_sum);
}

/* A share of units is audited, the same for the same seed, another for another. */
static void test_audit_fraction(void **state)
{
    struct attn_world *w = sr_shared.world;
    int64_t audits[3];
    double unread[3];
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct attn_bench b;
        sr_route_options o = sr_world_route(SR_ROUTE_WINDOW);
        sr_route_stats st;
        float *out = floats((size_t)w->n_layers * stride_of(w));
        o.audit = 0.25f;
        o.seed = i == 2;
        sr_bench_open(&b, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, 2, NULL);
        sr_bench_fill(&b, w, 0, AT);
        for (int32_t p = AT; p < LEN; p++) sr_bench_step(&b, w, p, out);
        sr_attn_seq_stats(b.seq, &st);
        audits[i] = st.audits;
        unread[i] = st.unread_sum;
        double mean = 0.25 * (double)st.units, sd = sqrt(mean * 0.75);
        assert_true(fabs((double)st.audits - mean) < 4 * sd);
        sr_bench_close(&b);
        free(out);
    }
    assert_int_equal(audits[0], audits[1]);
    assert_true(unread[0] == unread[1] && unread[0] != unread[2]);
}

/* ---- no allocation per token ---- */

static void test_no_allocation(void **state)
{
    static const sr_route_mode modes[] = {SR_ROUTE_DENSE, SR_ROUTE_MASS, SR_ROUTE_WINDOW, SR_ROUTE_PAPER};
    struct attn_world *w = sr_shared.world;
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct attn_bench b;
        sr_route_options o = sr_world_route(modes[i]);
        float *out = floats((size_t)w->n_layers * stride_of(w));
        o.audit = 1;
        o.tau_set = 1;
        o.tau[0] = .3;
        sr_bench_open(&b, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, 2, sr_shared.moments);
        sr_bench_fill(&b, w, 0, AT);
        sr_bench_step(&b, w, AT, out); /* the band's bases */
        uint64_t before = sr_alloc_count();
        for (int32_t p = AT + 1; p < LEN; p++) sr_bench_step(&b, w, p, out);
        assert_int_equal(sr_alloc_count(), before);
        sr_bench_close(&b);
        free(out);
    }
}

static int make_world(void **state)
{
    (void)state;
    sr_shared.world = sr_world_new(3, 2, 3, 64, LEN, 11);
    sr_world_round(sr_shared.world, SR_DTYPE_F16, SR_DTYPE_F16);
    sr_world_moments(sr_shared.world, sr_shared.moments);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tau),
        cmocka_unit_test(test_paper),
        cmocka_unit_test(test_window_rows),
        cmocka_unit_test(test_mass_rows),
        cmocka_unit_test(test_mass_shapes),
        cmocka_unit_test(test_poison),
        cmocka_unit_test(test_corrupted_sketch),
        cmocka_unit_test(test_audit_fraction),
        cmocka_unit_test(test_no_allocation),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, make_world, sr_shared_free);
}
