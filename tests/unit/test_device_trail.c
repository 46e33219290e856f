/* SPDX-License-Identifier: Apache-2.0
 *
 * The trail of a sequence on a device against the CPU's: the same rows after every step, cut or goes on, and in session files
 * either way. The device is made of the CPU's ops (host_device.h); what heads look for is planted.
 */
#include "attn_world.h"
#include "host_device.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "ok.h"

#include "attention/timeline.h"

enum { LEN = 2460, AT = 2400, LAYERS = 3, KV = 2, GROUP = 3, DIM = 64, STRIDE = KV * GROUP * DIM };

/* Of two positions in three some head asks for a key: a logit of 40, as a match has it. */
static void plant(struct attn_world *w)
{
    for (int32_t p = AT; p < LEN; p++) {
        const int32_t layer = p % LAYERS, head = p % (KV * GROUP), row = 300 + 29 * (p - AT);
        const float *k = sr_world_k(w, layer, row) + head / GROUP * DIM;
        float *q = sr_world_q(w, layer, p) + head * DIM;
        double sum = 0;
        for (int32_t i = 0; i < DIM; i++) sum += (double)k[i] * (double)k[i];
        for (int32_t i = 0; i < DIM && p % 3; i++) q[i] = (float)(40 * sqrt((double)DIM) / sum) * k[i];
    }
}

static sr_route_options options(void)
{
    sr_route_options o = sr_route_options_default();
    o.mode = SR_ROUTE_MASS;
    o.rank = 16; /* each has a default of its own */
    return o;
}

static void open_host(struct attn_bench *b, const sr_route_options *o) { sr_bench_open(b, sr_shared.world, SR_DTYPE_F16, SR_DTYPE_F16, o, 2, sr_shared.moments); }

static void open_device(struct attn_bench *b, const sr_route_options *o)
{
    const struct attn_world *w = sr_shared.world;
    const struct attention_config c = {w->n_layers, w->n_heads, w->n_kv_heads, w->head_dim, w->rope, 0, NULL};
    const struct attn_seq_config sc = {SR_DTYPE_F16, SR_DTYPE_F16, w->len, *o};
    OK(sr_host_device_open(&b->backend, 2, &err));
    OK(sr_attn_new(&b->attention, b->backend, &c, &err));
    OK(sr_attn_load_moments(b->attention, sr_shared.moments, &err));
    OK(sr_attn_seq_new(&b->seq, b->attention, &sc, &err));
}

static void step(struct attn_bench *b, int32_t pos, float *out)
{
    const struct attn_world *w = sr_shared.world;
    if (!b->seq->device) {
        sr_bench_step(b, w, pos, out);
        return;
    }
    OK(sr_attn_seq_reserve(b->seq, pos + 1, &err));
    OK(sr_attn_step_begin(b->seq, &err));
    for (int32_t l = 0; l < LAYERS; l++)
        sr_attn_step(&b->seq, 1, l, sr_world_q(w, l, pos), sr_world_k(w, l, pos), sr_world_v(w, l, pos), out + l * STRIDE);
    sr_attn_step_end(b->seq);
}

/* Returns how many rows both have for the step to come. */
static int32_t same_trail(struct attn_bench *cpu, struct attn_bench *gpu)
{
    const struct trail *x = &cpu->seq->trail, *y = &gpu->seq->trail;
    OK(sr_device_trail_fetch(gpu->seq, &err));
    assert_int_equal(x->n, y->n);
    assert_int_equal(x->n_now, y->n_now);
    assert_memory_equal(x->rows, y->rows, (size_t)x->n * sizeof *x->rows);
    assert_memory_equal(x->now, y->now, (size_t)x->n_now * sizeof *x->now);
    for (int32_t i = 0; i < x->n_now; i++) assert_float_equal(x->share[i], y->share[i], 1e-4); /* sums in another order */
    return x->n_now;
}

static int32_t same_steps(struct attn_bench *cpu, struct attn_bench *gpu, int32_t from, int32_t to)
{
    float want[LAYERS * STRIDE], got[LAYERS * STRIDE];
    int32_t n = 0;
    for (int32_t p = from; p < to; p++) {
        step(cpu, p, want);
        step(gpu, p, got);
        assert_memory_equal(got, want, sizeof want);
        n += same_trail(cpu, gpu);
    }
    return n;
}

static void cut(struct attn_bench *cpu, struct attn_bench *gpu, int32_t len)
{
    OK(sr_attn_seq_truncate(cpu->seq, len, &err));
    OK(sr_attn_seq_truncate(gpu->seq, len, &err));
    same_trail(cpu, gpu);
}

static void test_steps(void **state)
{
    (void)state;
    for (int look = 1; look >= 0; look--) {
        struct attn_bench cpu, gpu;
        sr_route_options o = options();
        o.look = look;
        open_host(&cpu, &o);
        open_device(&gpu, &o);
        sr_bench_fill(&cpu, sr_shared.world, 0, AT);
        sr_bench_fill(&gpu, sr_shared.world, 0, AT);
        assert_true(same_steps(&cpu, &gpu, AT, AT + 12) >= 3);
        cut(&cpu, &gpu, AT + 11); /* the last step is made again, then several */
        assert_true(same_steps(&cpu, &gpu, AT + 11, AT + 14) > 0);
        cut(&cpu, &gpu, AT + 12);
        same_steps(&cpu, &gpu, AT + 12, AT + 15);
        cut(&cpu, &gpu, AT + 14); /* another row comes instead of the last, and nothing looks at it */
        sr_bench_fill(&cpu, sr_shared.world, AT + 14, AT + 15);
        sr_bench_fill(&gpu, sr_shared.world, AT + 14, AT + 15);
        same_steps(&cpu, &gpu, AT + 15, AT + 17);
        sr_bench_fill(&cpu, sr_shared.world, AT + 17, AT + 20);
        sr_bench_fill(&gpu, sr_shared.world, AT + 17, AT + 20);
        assert_true(same_steps(&cpu, &gpu, AT + 20, AT + 23) > 0);
        o.trail = 0; /* and without one for a while */
        OK(sr_attn_seq_route_set(cpu.seq, &o, &err));
        OK(sr_attn_seq_route_set(gpu.seq, &o, &err));
        same_steps(&cpu, &gpu, AT + 23, AT + 26);
        o.trail = 1;
        OK(sr_attn_seq_route_set(cpu.seq, &o, &err));
        OK(sr_attn_seq_route_set(gpu.seq, &o, &err));
        assert_true(same_steps(&cpu, &gpu, AT + 26, AT + 30) > 0);
        sr_bench_close(&cpu);
        sr_bench_close(&gpu);
    }
}

/* What the trail names is read by every unit. */
static void test_reads(void **state)
{
    struct attn_bench on, off;
    float out[LAYERS * STRIDE];
    sr_route_options o = options();
    sr_route_stats x, y;
    (void)state;
    o.eps = .9f; /* hardly anything far is worth reading */
    open_device(&on, &o);
    o.trail = 0;
    open_device(&off, &o);
    sr_bench_fill(&on, sr_shared.world, 0, AT + 4);
    sr_bench_fill(&off, sr_shared.world, 0, AT + 4);
    for (int32_t p = AT + 4; p < AT + 6; p++) { /* the first one looks for a row whose estimate is good enough */
        step(&on, p, out);
        step(&off, p, out);
    }
    sr_attn_seq_stats(on.seq, &x);
    sr_attn_seq_stats(off.seq, &y);
    assert_in_range(x.v_rows - y.v_rows, 4 * LAYERS * KV - 8, 4 * LAYERS * KV + 8); /* one row noted; some were read before */
    sr_bench_close(&on);
    sr_bench_close(&off);
}

/* ---- session files ---- */

static void copy(struct attn_bench *from, struct attn_bench *to)
{
    struct tape t = {0};
    struct attn_seq_state st;
    sr_attn_seq_state_get(from->seq, &st);
    OK(sr_attn_seq_visit(from->seq, sr_tape_record, &t, &err));
    OK(sr_attn_seq_state_set(to->seq, &st, &err));
    OK(sr_attn_seq_visit(to->seq, sr_tape_play, &t, &err));
    assert_true(t.at == t.used);
    OK(sr_attn_seq_check(to->seq, &err));
    free(t.data);
}

static void test_files(void **state)
{
    struct attn_bench cpu, gpu, cpu2, gpu2;
    const sr_route_options o = options();
    (void)state;
    open_host(&cpu, &o);
    open_device(&gpu, &o);
    open_host(&cpu2, &o);
    open_device(&gpu2, &o);
    sr_bench_fill(&cpu, sr_shared.world, 0, AT);
    sr_bench_fill(&gpu, sr_shared.world, 0, AT);
    assert_true(same_steps(&cpu, &gpu, AT, AT + 6) > 0);
    copy(&cpu, &gpu2);
    copy(&gpu, &cpu2);
    assert_true(same_trail(&cpu2, &gpu2) > 0);
    assert_true(gpu2.seq->trail.step == AT + 6 && cpu2.seq->trail.n > 0);
    for (int32_t p = AT + 6; p < AT + 9; p++) {
        same_steps(&cpu2, &gpu2, p, p + 1);
        same_steps(&cpu, &gpu, p, p + 1);
        same_trail(&cpu, &gpu2);
    }
    cut(&cpu2, &gpu2, AT + 8); /* of rows that came by a file and steps */
    assert_true(same_steps(&cpu2, &gpu2, AT + 8, AT + 10) > 0);
    struct attn_bench *all[] = {&cpu, &gpu, &cpu2, &gpu2};
    for (int i = 0; i < 4; i++) sr_bench_close(all[i]);
}

static int make_shared(void **state)
{
    struct attn_world *w = sr_world_new(LAYERS, KV, GROUP, DIM, LEN, 11);
    (void)state;
    sr_world_moments(w, sr_shared.moments);
    plant(w);
    sr_shared.world = w;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steps), cmocka_unit_test(test_reads), cmocka_unit_test(test_files)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, make_shared, sr_shared_free);
}
