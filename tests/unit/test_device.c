/* SPDX-License-Identifier: Apache-2.0
 *
 * A sequence on a device against one on the CPU: the same rows, outputs, counters, audits and what they teach, bit for bit,
 * on a device that is made of the CPU's ops (host_device.h). Then what only the host's side of a device does: recordings
 * that hold, steps that fail, session files, refusals.
 */
#include "attn_world.h"
#include "host_device.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "ok.h"

#include "attention/timeline.h"
#include "base/memory.h"

enum { LEN = 2460, AT = 2400, LAYERS = 3, KV = 2, GROUP = 3, DIM = 64, STRIDE = KV * GROUP * DIM, UNITS = LAYERS * KV };

static sr_route_options options(sr_route_mode mode)
{
    sr_route_options o = sr_route_options_default();
    o.mode = mode;
    o.rank = 16; /* each has a default of its own */
    return o;
}

static void open_device(struct attn_bench *b, const sr_route_options *o, const char *moments)
{
    const struct attn_world *w = sr_shared.world;
    const struct attention_config c = {w->n_layers, w->n_heads, w->n_kv_heads, w->head_dim, w->rope, 0, NULL};
    const struct attn_seq_config sc = {SR_DTYPE_F16, SR_DTYPE_F16, w->len, *o};
    OK(sr_host_device_open(&b->backend, 2, &err));
    OK(sr_attn_new(&b->attention, b->backend, &c, &err));
    if (moments) OK(sr_attn_load_moments(b->attention, moments, &err));
    OK(sr_attn_seq_new(&b->seq, b->attention, &sc, &err));
}

/* Position pos of the world through all layers; q is the device's and not scaled. */
static void device_step(struct attn_bench *b, int32_t pos, float *out)
{
    const struct attn_world *w = sr_shared.world;
    OK(sr_attn_seq_reserve(b->seq, pos + 1, &err));
    OK(sr_attn_step_begin(b->seq, &err));
    assert_int_equal(*sr_attn_step_len(b->seq), pos + 1);
    for (int32_t l = 0; l < LAYERS; l++)
        sr_attn_step(&b->seq, 1, l, sr_world_q(w, l, pos), sr_world_k(w, l, pos), sr_world_v(w, l, pos), out + l * STRIDE);
    sr_attn_step_end(b->seq);
}

/* ---- what a watcher was told ---- */

struct told {
    int64_t n;
    double sum[6];
};

static void listen(void *user, const sr_route_case *c)
{
    struct told *t = user;
    t->n++;
    for (int32_t h = 0; h < c->n_heads; h++) {
        t->sum[0] += (double)c->unread[h] * (1 + c->layer + 3 * c->kv_head);
        t->sum[1] += isnan(c->estimate[h]) ? 1 : (double)c->estimate[h];
        t->sum[2] += (double)c->sink[h] * (1 + h);
        t->sum[3] += isnan(c->sink_estimate[h]) ? 1 : (double)c->sink_estimate[h];
    }
    t->sum[4] += (double)c->cosine * c->kv_len;
    t->sum[5] += c->is_routed;
}

static void same_told(const struct told *x, const struct told *y)
{
    assert_true(x->n == y->n);
    for (int i = 0; i < 6; i++) assert_float_equal(x->sum[i], y->sum[i], 1e-5 * (1 + fabs(y->sum[i])));
}

/* The device encodes the row that leaves the window once more where it has brought the sketch up to date: `again` rows.
 * Its sketch counts as read whole. Sums are added in another order. */
static void same_stats(const sr_route_stats *x, const sr_route_stats *y, int64_t again)
{
    const int64_t pairs[][2] = {
        {x->steps, y->steps}, {x->units, y->units}, {x->units_all, y->units_all}, {x->units_near, y->units_near},
        {x->units_list, y->units_list}, {x->units_none, y->units_none}, {x->k_rows, y->k_rows + again}, {x->v_rows, y->v_rows},
        {x->sketch_rows, y->sketch_rows}, {(int64_t)(x->kv_bytes - x->sketch_bytes), (int64_t)(y->kv_bytes - y->sketch_bytes)},
        {(int64_t)x->dense_bytes, (int64_t)y->dense_bytes}, {x->audits, y->audits}, {x->cases, y->cases},
        {x->above_eps, y->above_eps}, {x->broken, y->broken}, {x->far_rows, y->far_rows},
        {x->far_rows_uncorrected, y->far_rows_uncorrected}, {x->thresholds, y->thresholds}, {x->breaker_opened[0], y->breaker_opened[0]},
        {x->breaker_opened[1], y->breaker_opened[1]}, {x->breaker_opened[2], y->breaker_opened[2]},
        {x->breaker_closed, y->breaker_closed}, {x->units_open, y->units_open}};
    const double sums[][2] = {{x->unread_sum, y->unread_sum}, {x->unread_max, y->unread_max}, {x->estimate_sum, y->estimate_sum},
                              {x->output_error_sum, y->output_error_sum}, {x->output_error_max, y->output_error_max},
                              {x->threshold_sum, y->threshold_sum}};
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        if (pairs[i][0] != pairs[i][1]) fail_msg("counter %zu: %lld on the device, %lld on the CPU", i, (long long)pairs[i][0], (long long)pairs[i][1]);
    for (size_t i = 0; i < sizeof sums / sizeof sums[0]; i++) assert_float_equal(sums[i][0], sums[i][1], 1e-9 * (1 + fabs(sums[i][1])));
}

static sr_route_stats compare(const sr_route_options *o, int is_spoiled, int is_watched)
{
    struct attn_world *w = sr_shared.world;
    struct attn_bench cpu, gpu;
    struct told a = {0}, b = {0};
    float want[LAYERS * STRIDE], got[LAYERS * STRIDE];
    sr_route_stats x, y;
    sr_bench_open(&cpu, w, SR_DTYPE_F16, SR_DTYPE_F16, o, 2, sr_shared.moments);
    open_device(&gpu, o, sr_shared.moments);
    sr_bench_fill(&cpu, w, 0, AT);
    for (int32_t at = 0; at < AT; at += 400) sr_bench_fill(&gpu, w, at, at + 400);
    if (is_watched) sr_attn_seq_watch(cpu.seq, listen, &a);
    if (is_watched) sr_attn_seq_watch(gpu.seq, listen, &b);
    for (int32_t p = AT; p < LEN; p++) {
        sr_bench_step(&cpu, w, p, want);
        device_step(&gpu, p, got);
        assert_memory_equal(got, want, sizeof want);
        if (p == AT && is_spoiled) sr_spoil_sketch(cpu.seq);
        if (p == AT && is_spoiled) sr_spoil_sketch(gpu.seq);
    }
    sr_attn_seq_stats(cpu.seq, &x);
    sr_attn_seq_stats(gpu.seq, &y);
    same_stats(&y, &x, o->mode == SR_ROUTE_MASS ? UNITS : 0);
    same_told(&b, &a);
    assert_true(b.n == (is_watched ? (int64_t)(LEN - AT) * UNITS : 0));
    sr_bench_close(&cpu);
    sr_bench_close(&gpu);
    return y;
}

static void test_modes(void **state)
{
    sr_route_options o = options(SR_ROUTE_DENSE);
    (void)state;
    for (int watched = 0; watched < 2; watched++) {
        o = options(SR_ROUTE_DENSE);
        compare(&o, 0, watched);
        o = options(SR_ROUTE_WINDOW);
        o.audit = .3f;
        assert_true(compare(&o, 0, watched).audits > 0);
        o = options(SR_ROUTE_PAPER);
        o.tau_set = 1;
        o.tau[0] = .35;
        o.audit = .3f;
        const sr_route_stats s = compare(&o, 0, watched);
        assert_true(s.units_none > 0 && s.units_all > 2 * KV * (LEN - AT)); /* more than the dense layers */
        o = options(SR_ROUTE_MASS);
        o.audit = .3f;
        const sr_route_stats looked = compare(&o, 0, watched);
        o.look = 0;
        const sr_route_stats once = compare(&o, 0, watched);
        assert_true(once.units_list > 0 && looked.units_list > 0 && once.v_rows != looked.v_rows);
    }
    o.eps = .9f; /* hardly anything far is worth reading but the sinks found, which one unit has: listed, or before a choice that is looked at */
    o.audit = 0;
    o.look = 1;
    const sr_route_stats looked = compare(&o, 0, 0);
    o.look = 0;
    const sr_route_stats s = compare(&o, 0, 0);
    assert_in_range(s.units_list, LEN - AT, 2 * (LEN - AT) - 1);
    assert_true(looked.units_list < LEN - AT && looked.v_rows > looked.units * (o.n_sinks + o.window));
}

/* Audits move the threshold and open breakers, at the same positions; a watched session learns no more than another. */
static void test_contract(void **state)
{
    (void)state;
    for (int watched = 0; watched < 2; watched++) {
        sr_route_options o = options(SR_ROUTE_MASS);
        o.delta = .05f;
        o.audit = .1f;
        const sr_route_stats corrected = compare(&o, 0, watched);
        assert_true(corrected.far_rows > corrected.far_rows_uncorrected && corrected.far_rows_uncorrected > 0);
        assert_true(corrected.threshold_sum < .9 * .1 * (double)corrected.units);
        o.audit = .5f;
        const sr_route_stats spoiled = compare(&o, 1, watched);
        assert_true(spoiled.units_open > 0 && spoiled.units_all == spoiled.units_open);
        assert_true(spoiled.breaker_opened[SR_BREAK_UNREAD] + spoiled.breaker_opened[SR_BREAK_LOST] > 0);
        o.breaker = 0;
        o.delta = 0;
        assert_int_equal(compare(&o, 1, watched).units_open, 0);
    }
}

/* ---- steps ---- */

static void test_recordings(void **state)
{
    struct attn_bench b;
    struct told t = {0};
    float out[LAYERS * STRIDE];
    sr_route_options o = options(SR_ROUTE_MASS);
    (void)state;
    o.audit = .5f;
    open_device(&b, &o, sr_shared.moments);
    sr_bench_fill(&b, sr_shared.world, 0, AT);
    device_step(&b, AT, out);
    const uint64_t key = sr_attn_step_key(b.seq);
    sr_spoil_sketch(b.seq);
    for (int32_t p = AT + 1; p < AT + 30; p++) device_step(&b, p, out);
    assert_true(sr_attn_step_key(b.seq) == key); /* breakers opened and closed meanwhile: data */
    sr_attn_seq_watch(b.seq, listen, &t);
    device_step(&b, AT + 30, out);
    assert_true(sr_attn_step_key(b.seq) != key && t.n == UNITS);
    sr_attn_seq_watch(b.seq, NULL, NULL);
    device_step(&b, AT + 31, out);
    assert_true(t.n == UNITS);
    sr_bench_close(&b);
}

/* New chunks of rows, at 1,024 and 2,048, change tables and not what is launched. */
static void test_growth(void **state)
{
    static const sr_route_mode modes[] = {SR_ROUTE_DENSE, SR_ROUTE_WINDOW, SR_ROUTE_PAPER, SR_ROUTE_MASS};
    float out[LAYERS * STRIDE];
    (void)state;
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++)
        for (int32_t end = SR_CHUNK_ROWS; end <= 2 * SR_CHUNK_ROWS; end += SR_CHUNK_ROWS) {
            struct attn_bench b;
            uint64_t before, after, sketch;
            sr_route_options o = options(modes[i]);
            o.min_len = 512;
            o.tau_set = 1;
            o.tau[0] = .35;
            open_device(&b, &o, sr_shared.moments);
            sr_bench_fill(&b, sr_shared.world, 0, end - 5);
            device_step(&b, end - 5, out);
            const uint64_t key = sr_attn_step_key(b.seq);
            sr_attn_seq_memory(b.seq, &before, &sketch);
            for (int32_t p = end - 4; p < end + 5; p++) device_step(&b, p, out);
            sr_attn_seq_memory(b.seq, &after, &sketch);
            assert_true(after > before && sr_attn_step_key(b.seq) == key);
            sr_bench_close(&b);
        }
}

/* What a step that failed has left is not taken for the next one's. */
static void test_failed_step(void **state)
{
    struct attn_bench a, b;
    float want[LAYERS * STRIDE], got[LAYERS * STRIDE];
    sr_route_stats x, y;
    sr_route_options o = options(SR_ROUTE_MASS);
    (void)state;
    o.audit = 1;
    o.delta = .05f;
    open_device(&a, &o, sr_shared.moments);
    open_device(&b, &o, sr_shared.moments);
    sr_bench_fill(&a, sr_shared.world, 0, AT);
    sr_bench_fill(&b, sr_shared.world, 0, AT);
    device_step(&a, AT, want);
    device_step(&b, AT, got);
    OK(sr_attn_seq_reserve(b.seq, AT + 2, &err)); /* its first layer alone ran */
    OK(sr_attn_step_begin(b.seq, &err));
    sr_attn_step(&b.seq, 1, 0, sr_world_q(sr_shared.world, 0, 9), sr_world_k(sr_shared.world, 0, 9), sr_world_v(sr_shared.world, 0, 9), got);
    OK(sr_attn_seq_truncate(b.seq, AT + 1, &err));
    sr_attn_seq_stats_reset(a.seq);
    sr_attn_seq_stats_reset(b.seq);
    for (int32_t p = AT + 1; p < AT + 20; p++) {
        device_step(&a, p, want);
        device_step(&b, p, got);
        assert_memory_equal(got, want, sizeof want);
    }
    sr_attn_seq_stats(a.seq, &x);
    sr_attn_seq_stats(b.seq, &y);
    same_stats(&y, &x, 0);
    sr_bench_close(&a);
    sr_bench_close(&b);
}

/* Own moments: from the first token on, summed by the device. Not the CPU's bits, whose sums are in blocks. */
static void test_own_moments(void **state)
{
    struct attn_bench cpu, gpu;
    float want[LAYERS * STRIDE], got[LAYERS * STRIDE];
    sr_route_options o = options(SR_ROUTE_MASS);
    sr_route_stats x, y;
    (void)state;
    sr_bench_open(&cpu, sr_shared.world, SR_DTYPE_F16, SR_DTYPE_F16, &o, 2, NULL);
    open_device(&gpu, &o, NULL);
    sr_bench_prefill(&cpu, sr_shared.world, 0, 2047, 512, NULL);
    sr_bench_prefill(&gpu, sr_shared.world, 0, 2047, 512, NULL);
    for (int32_t p = 2047; p < 2100; p++) {
        sr_bench_step(&cpu, sr_shared.world, p, want);
        device_step(&gpu, p, got);
    }
    sr_attn_seq_stats(cpu.seq, &x);
    sr_attn_seq_stats(gpu.seq, &y);
    assert_true(y.units_list > 0 && y.units == x.units && y.units_all == x.units_all);
    assert_float_equal((double)(y.kv_bytes - y.sketch_bytes), (double)(x.kv_bytes - x.sketch_bytes), .01 * (double)x.kv_bytes);
    sr_bench_close(&cpu);
    sr_bench_close(&gpu);
}

/* The moments of a sequence as the file that would be written of them. */
static size_t moments_of(struct attn_bench *b, uint8_t *out, size_t most)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/sr-test-device-%d.moments", (int)getpid());
    OK(sr_attn_seq_save_moments(b->seq, path, &err));
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    const size_t n = fread(out, 1, most, f);
    fclose(f);
    unlink(path);
    return n;
}

/* Rows that come by steps count as those of a prefill do, whether their slots were full or not when another came. */
static void test_kept_rows(void **state)
{
    enum { MOST = 1 << 20 };
    struct attn_bench whole, parts;
    float out[LAYERS * STRIDE];
    sr_route_options o = options(SR_ROUTE_DENSE);
    uint8_t *a = malloc(MOST), *b = malloc(MOST);
    (void)state;
    open_device(&whole, &o, NULL);
    open_device(&parts, &o, NULL);
    sr_bench_prefill(&whole, sr_shared.world, 0, 2100, 512, NULL);
    sr_bench_prefill(&parts, sr_shared.world, 0, 1000, 512, NULL);
    for (int32_t p = 1000; p < 1050; p++) device_step(&parts, p, out);
    sr_bench_prefill(&parts, sr_shared.world, 1050, 1990, 512, NULL);
    for (int32_t p = 1990; p < 2100; p++) device_step(&parts, p, out);
    const size_t n = moments_of(&whole, a, MOST);
    assert_true(n > 0 && n < MOST && moments_of(&parts, b, MOST) == n);
    assert_memory_equal(a, b, n);
    free(a);
    free(b);
    sr_bench_close(&whole);
    sr_bench_close(&parts);
}

/* ---- session files ---- */

/* With the sinks found, the threshold and open breakers; the sketch is made anew. */
static void test_restore(void **state)
{
    struct attn_bench a, b;
    struct tape t = {0};
    struct attn_seq_state st;
    float want[LAYERS * STRIDE], got[LAYERS * STRIDE];
    sr_route_options o = options(SR_ROUTE_MASS);
    sr_route_stats x, y;
    (void)state;
    o.audit = .5f;
    o.delta = .05f;
    open_device(&a, &o, sr_shared.moments);
    open_device(&b, &o, sr_shared.moments);
    sr_bench_fill(&a, sr_shared.world, 0, AT);
    for (int32_t p = AT; p < AT + 20; p++) {
        device_step(&a, p, want);
        if (p == AT) sr_spoil_sketch(a.seq);
    }
    OK(sr_attn_seq_truncate(a.seq, AT + 18, &err));
    sr_attn_seq_state_get(a.seq, &st);
    OK(sr_attn_seq_visit(a.seq, sr_tape_record, &t, &err));
    OK(sr_attn_seq_state_set(b.seq, &st, &err));
    OK(sr_attn_seq_visit(b.seq, sr_tape_play, &t, &err));
    assert_true(t.at == t.used);
    OK(sr_attn_seq_check(b.seq, &err));
    sr_sketch_drop(a.seq); /* the spoiled one; files leave a device's sketch out */
    sr_attn_seq_stats_reset(a.seq);
    sr_attn_seq_stats_reset(b.seq);
    for (int32_t p = AT + 18; p < AT + 40; p++) {
        device_step(&a, p, want);
        device_step(&b, p, got);
        assert_memory_equal(got, want, sizeof want);
    }
    sr_attn_seq_stats(a.seq, &x);
    sr_attn_seq_stats(b.seq, &y);
    assert_true(x.units_open > 0);
    same_stats(&y, &x, 0);
    free(t.data);
    sr_bench_close(&a);
    sr_bench_close(&b);
}

/* The CPU's file has a sketch, of the CPU's rank: it is read past. One out of range is refused. */
static void test_host_file(void **state)
{
    struct attn_bench cpu, gpu;
    struct tape t = {0};
    struct attn_seq_state st;
    float out[LAYERS * STRIDE];
    sr_route_options o = options(SR_ROUTE_MASS);
    (void)state;
    open_device(&gpu, &o, sr_shared.moments);
    o.rank = 0;
    sr_bench_open(&cpu, sr_shared.world, SR_DTYPE_F16, SR_DTYPE_F16, &o, 2, sr_shared.moments);
    sr_bench_fill(&cpu, sr_shared.world, 0, AT);
    sr_bench_step(&cpu, sr_shared.world, AT, out);
    sr_attn_seq_state_get(cpu.seq, &st);
    assert_int_equal(st.rank, DIM / 4 + 4);
    OK(sr_attn_seq_visit(cpu.seq, sr_tape_record, &t, &err));
    OK(sr_attn_seq_state_set(gpu.seq, &st, &err));
    OK(sr_attn_seq_visit(gpu.seq, sr_tape_play, &t, &err));
    assert_true(t.at == t.used);
    OK(sr_attn_seq_check(gpu.seq, &err));
    device_step(&gpu, AT + 1, out);
    st.rank = DIM + 1;
    assert_int_equal(sr_attn_seq_state_set(gpu.seq, &st, &err), SR_ERR_FORMAT);
    free(t.data);
    sr_bench_close(&cpu);
    sr_bench_close(&gpu);
}

/* ---- memory that ends ---- */

/* A prompt gets room whole or not at all; what was there, and what comes after another try, is as if nothing had failed. */
static void test_no_room(void **state)
{
    enum { SHORT = 700 };
    const struct attn_world *w = sr_shared.world;
    const sr_route_options o = options(SR_ROUTE_MASS);
    struct attn_bench cpu, gpu;
    float want[LAYERS * STRIDE], got[LAYERS * STRIDE];
    uint64_t kv, sketch, kv_now, sketch_now;
    uint64_t k = 0;
    sr_status st;
    (void)state;
    sr_bench_open(&cpu, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, 2, sr_shared.moments);
    open_device(&gpu, &o, sr_shared.moments);
    sr_bench_fill(&cpu, w, 0, AT);
    sr_bench_fill(&gpu, w, 0, SHORT);
    sr_attn_seq_memory(gpu.seq, &kv, &sketch);
    do {
        sr_alloc_fail_at(++k);
        st = sr_attn_seq_reserve(gpu.seq, LEN, &err);
        sr_alloc_fail_at(0);
        if (st == SR_OK) break;
        assert_int_equal(st, SR_ERR_RESOURCE);
        sr_attn_seq_memory(gpu.seq, &kv_now, &sketch_now);
        assert_true(kv_now == kv && sketch_now == sketch);
    } while (k < 100);
    assert_int_equal(k, 5); /* two chunks more of rows, two of sketch rows */
    sr_attn_seq_memory(gpu.seq, &kv_now, &sketch_now);
    assert_true(kv_now == 3 * kv && sketch_now == 3 * sketch);
    sr_bench_fill(&gpu, w, SHORT, AT);
    sr_bench_step(&cpu, w, AT, want);
    device_step(&gpu, AT, got);
    assert_memory_equal(got, want, sizeof want);
    sr_bench_close(&cpu);
    sr_bench_close(&gpu);
}

static sr_status try_step(struct attn_bench *b, int32_t pos, uint64_t fail_at, float *out)
{
    sr_alloc_fail_at(fail_at);
    sr_status st = sr_attn_seq_reserve(b->seq, pos + 1, &err);
    if (st == SR_OK) st = sr_attn_step_begin(b->seq, &err);
    sr_alloc_fail_at(0);
    for (int32_t l = 0; l < LAYERS && st == SR_OK; l++)
        sr_attn_step(&b->seq, 1, l, sr_world_q(sr_shared.world, l, pos), sr_world_k(sr_shared.world, l, pos), sr_world_v(sr_shared.world, l, pos),
                     out + l * STRIDE);
    if (st == SR_OK) sr_attn_step_end(b->seq);
    else OK(sr_attn_seq_truncate(b->seq, pos, &err));
    return st;
}

/* Steps over a change of bands, each failing at its first allocation, its second, ...; after a failure in the new band the
 * session goes back into the old one. */
static void test_no_memory_for_a_step(void **state)
{
    const struct attn_world *w = sr_shared.world;
    sr_route_options o = options(SR_ROUTE_MASS);
    struct attn_bench cpu, gpu;
    float want[2][LAYERS * STRIDE], got[LAYERS * STRIDE];
    int32_t first = 0, n_failed = 0;
    (void)state;
    o.min_len = 512;
    sr_bench_open(&cpu, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, 2, sr_shared.moments);
    open_device(&gpu, &o, sr_shared.moments);
    while (sr_band_of(&gpu.attention->rotation, first + 1) == 0) first++; /* the step at `first` begins band 1 */
    assert_in_range(first, 1000, LEN - 4);
    sr_bench_fill(&cpu, w, 0, first - 2);
    sr_bench_fill(&gpu, w, 0, first - 2);
    for (int32_t p = first - 2; p < first + 2; p++) {
        sr_bench_step(&cpu, w, p, want[p & 1]);
        if (p >= first) OK(sr_attn_seq_route_set(gpu.seq, &o, &err)); /* the bases get other memory */
        for (uint64_t k = 1; try_step(&gpu, p, k, got) != SR_OK; k++) {
            assert_int_equal(err.status, SR_ERR_RESOURCE);
            n_failed++;
            if (p != first) continue;
            OK(sr_attn_seq_truncate(gpu.seq, p - 1, &err));
            device_step(&gpu, p - 1, got);
            assert_memory_equal(got, want[(p - 1) & 1], sizeof got);
            OK(sr_attn_seq_route_set(gpu.seq, &o, &err));
        }
        assert_memory_equal(got, want[p & 1], sizeof got);
    }
    assert_true(n_failed >= 8);
    sr_bench_close(&cpu);
    sr_bench_close(&gpu);
}

/* Sequences that are not made, and files that are not restored, leave nothing behind. */
static void test_no_memory_to_begin(void **state)
{
    enum { SHORT = 1100 };
    const sr_route_options o = options(SR_ROUTE_MASS);
    const struct attn_seq_config c = {SR_DTYPE_F16, SR_DTYPE_F16, LEN, o};
    struct attn_bench b;
    struct tape t = {0};
    struct attn_seq_state saved;
    uint64_t k = 0;
    sr_status st;
    (void)state;
    open_device(&b, &o, NULL);
    sr_bench_fill(&b, sr_shared.world, 0, SHORT);
    sr_attn_seq_state_get(b.seq, &saved);
    OK(sr_attn_seq_visit(b.seq, sr_tape_record, &t, &err));
    do {
        struct attn_seq *s = NULL;
        t.at = 0;
        sr_alloc_fail_at(++k);
        st = sr_attn_seq_new(&s, b.attention, &c, &err);
        if (st == SR_OK) st = sr_attn_seq_state_set(s, &saved, &err);
        if (st == SR_OK) st = sr_attn_seq_visit(s, sr_tape_play, &t, &err);
        sr_alloc_fail_at(0);
        assert_true(st == SR_OK || st == SR_ERR_RESOURCE);
        sr_attn_seq_free(s);
    } while (st != SR_OK && k < 1000);
    assert_true(st == SR_OK && t.at == t.used && k > 40);
    free(t.data);
    sr_bench_close(&b);
}

/* ---- what is the CPU's ---- */

static void test_refusals(void **state)
{
    struct attn_bench b;
    struct attn_seq *other;
    sr_route_options o = options(SR_ROUTE_MASS), quest = options(SR_ROUTE_QUEST);
    (void)state;
    quest.budget = 512;
    open_device(&b, &o, NULL);
    assert_int_equal(sr_attn_seq_route_set(b.seq, &quest, &err), SR_ERR_UNSUPPORTED);
    assert_string_equal(err.text, "route mode quest: on the CPU only (--device none)");
    assert_int_equal(sr_attn_seq_observe(b.seq, &err), SR_ERR_UNSUPPORTED);
    assert_int_equal(sr_attn_seq_new(&other, b.attention, &(struct attn_seq_config){SR_DTYPE_F16, SR_DTYPE_F16, LEN, quest}, &err),
                     SR_ERR_UNSUPPORTED);
    sr_bench_close(&b);
}

static void shrink(struct attn_world *w, int32_t layer, int32_t group, int32_t pos)
{
    float *k = sr_world_k(w, layer, pos) + group * DIM, *v = sr_world_v(w, layer, pos) + group * DIM;
    for (int32_t i = 0; i < DIM; i++) {
        k[i] *= .1f;
        v[i] *= .1f;
    }
}

static int make_world(void **state)
{
    (void)state;
    sr_shared.world = sr_world_new(LAYERS, KV, GROUP, DIM, LEN, 11);
    for (int32_t pos = 30; pos < LEN; pos += 670) shrink(sr_shared.world, 2, 0, pos); /* sinks: 30, 700, 1370, 2040 */
    shrink(sr_shared.world, 2, 0, AT + 19); /* and one that a test cuts off */
    sr_world_round(sr_shared.world, SR_DTYPE_F16, SR_DTYPE_F16);
    sr_world_moments(sr_shared.world, sr_shared.moments);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_modes),       cmocka_unit_test(test_contract), cmocka_unit_test(test_recordings), cmocka_unit_test(test_growth),
        cmocka_unit_test(test_failed_step), cmocka_unit_test(test_own_moments), cmocka_unit_test(test_kept_rows),
        cmocka_unit_test(test_restore), cmocka_unit_test(test_host_file), cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_no_memory_for_a_step), cmocka_unit_test(test_no_memory_to_begin),
        cmocka_unit_test(test_refusals),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, make_world, sr_shared_free);
}
