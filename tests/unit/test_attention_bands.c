/* SPDX-License-Identifier: Apache-2.0
 *
 * Bands of the sketch: a change, and the work for it done ahead; rows repeated at other positions. Whatever the way there, a
 * step gives the bits that a fresh sequence gives.
 */
#include "attn_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "attention/timeline.h"
#include "base/memory.h"

enum { LAYERS = 2, KV = 2, GROUP = 2, DIM = 64, LEN = 4030, STRIDE = KV * GROUP * DIM, RANK = DIM / 4 + 4 };

/* ---- bands ---- */

/* Too near the change to share the work: the two steps before it do it all, and no step does it twice. */
static void test_band_change(void **state)
{
    struct attn_bench b;
    sr_route_options o = sr_world_route(SR_ROUTE_MASS);
    sr_route_stats st;
    float out[LAYERS * STRIDE];
    (void)state;
    sr_shared_open(&b, &o, 3997);
    sr_bench_step(&b, sr_shared.world, 3997, out);
    sr_attn_seq_stats_reset(b.seq);
    sr_bench_step(&b, sr_shared.world, 3998, out);
    sr_bench_step(&b, sr_shared.world, 3999, out);
    assert_int_equal(b.seq->band, 1);
    sr_bench_step(&b, sr_shared.world, 4000, out);
    sr_attn_seq_stats(b.seq, &st);
    assert_int_equal(b.seq->band, 2);
    int64_t units = LAYERS * KV, far = 4001 - 256 - 4, rows = st.encoded / (units * RANK);
    assert_int_equal(st.encoded, rows * units * RANK);
    assert_in_range(rows, 2 + far / 3, 2 + far); /* of the new band, and of the old one for two steps */
    uint64_t scanned = st.sketch_bytes - (uint64_t)(units * rows * DIM * 2);
    assert_in_range(scanned, st.sketch_rows * 2, st.sketch_rows * 10);
    assert_int_equal(st.kv_bytes, (uint64_t)(st.k_rows + st.v_rows) * DIM * 2 + scanned);
    float want[LAYERS * STRIDE];
    sr_shared_fresh(&o, 4000, want);
    assert_memory_equal(out, want, sizeof out);
    sr_shared_assert_step(&b, 4001);
    /* back into the old band */
    assert_int_equal(sr_attn_seq_truncate(b.seq, 3990, NULL), SR_OK);
    sr_shared_assert_step(&b, 3990);
    assert_int_equal(b.seq->band, 1);
    sr_bench_close(&b);
}

/* The steps from `from` on until 4000 share the work for the band; returns what the busiest of them encoded, in rows of
 * every unit, and in *at_change what the step that begins the band did. */
static int64_t busiest_step(struct attn_bench *b, int32_t from, int64_t *at_change)
{
    const int64_t row = LAYERS * KV * 16;
    int64_t before, most = 0;
    sr_route_stats st;
    float out[LAYERS * STRIDE];
    sr_attn_seq_stats(b->seq, &st);
    for (int32_t p = from; p <= 4000; p++) {
        before = st.encoded;
        sr_bench_step(b, sr_shared.world, p, out);
        sr_attn_seq_stats(b->seq, &st);
        *at_change = (st.encoded - before) / row;
        if (p < 4000 && *at_change > most) most = *at_change;
    }
    return most;
}

static void test_band_ahead(void **state)
{
    static const int32_t starts[] = {4000 - SR_BAND_LEAD - 3, 3600, 3996};
    sr_route_options o = sr_world_route(SR_ROUTE_MASS);
    (void)state;
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++) {
        struct attn_bench b;
        float out[LAYERS * STRIDE];
        int64_t at_change, left = 4000 - starts[i], half = (left < SR_BAND_LEAD ? left : SR_BAND_LEAD) / 2;
        sr_shared_open(&b, &o, starts[i] - 1);
        sr_bench_step(&b, sr_shared.world, starts[i] - 1, out);
        sr_bases_unref(b.seq->next); /* begun there where the lead is passed: as if the prefill ended one later */
        b.seq->next = NULL;
        assert_in_range(busiest_step(&b, starts[i], &at_change), 2, 2 + (4000 + half - 1) / half);
        assert_int_equal(at_change, 1); /* the row that left the window */
        assert_int_equal(b.seq->band, 2);
        assert_null(b.seq->next);
        sr_shared_assert_step(&b, 4001);
        sr_bench_close(&b);
    }
}

/* Cut back while the next band is half ready, then on: rows that went and came again are encoded again. */
static void test_band_ahead_truncated(void **state)
{
    struct attn_bench b;
    sr_route_options o = sr_world_route(SR_ROUTE_MASS);
    float out[LAYERS * STRIDE];
    (void)state;
    sr_shared_open(&b, &o, 3940);
    for (int32_t p = 3940; p < 3990; p++) sr_bench_step(&b, sr_shared.world, p, out);
    assert_non_null(b.seq->next);
    assert_int_equal(sr_bases_left(b.seq->next), 0);
    assert_in_range(b.seq->next_to[1], 100, 3990 - 256);
    assert_int_equal(sr_attn_seq_truncate(b.seq, 300, NULL), SR_OK);
    assert_in_range(b.seq->next_to[1], 4, 300);
    sr_bench_fill(&b, sr_shared.world, 300, 3995);
    for (int32_t p = 3995; p < 4000; p++) sr_bench_step(&b, sr_shared.world, p, out);
    sr_shared_assert_step(&b, 4000);
    /* far back: what was begun is of no use */
    for (int32_t p = 4001; p < 4010; p++) sr_bench_step(&b, sr_shared.world, p, out);
    assert_int_equal(sr_attn_seq_truncate(b.seq, 3980, NULL), SR_OK);
    sr_bench_step(&b, sr_shared.world, 3980, out);
    sr_shared_assert_step(&b, 3981);
    assert_int_equal(sr_attn_seq_truncate(b.seq, 1990, NULL), SR_OK);
    o.min_len = 0;
    assert_int_equal(sr_attn_seq_route_set(b.seq, &o, NULL), SR_OK);
    sr_shared_assert_step(&b, 1990);
    assert_int_equal(b.seq->band, 0);
    sr_bench_close(&b);
}

/* Two sequences on the model's moments make the next bases once, whoever is ahead. */
static void test_band_ahead_shared(void **state)
{
    struct attn_bench b;
    sr_route_options o = sr_world_route(SR_ROUTE_MASS);
    struct attn_seq *second;
    struct attn_seq_config c = {SR_DTYPE_F16, SR_DTYPE_F16, LEN, o};
    float out[LAYERS * STRIDE];
    (void)state;
    sr_shared_open(&b, &o, 3900);
    assert_int_equal(sr_attn_seq_new(&second, b.attention, &c, NULL), SR_OK);
    struct attn_bench other = {b.backend, b.attention, second};
    sr_bench_fill(&other, sr_shared.world, 0, 3998);
    sr_bench_step(&b, sr_shared.world, 3900, out);
    struct band_bases *next = b.seq->next;
    assert_int_not_equal(sr_bases_left(next), 0);
    sr_bench_step(&other, sr_shared.world, 3998, out); /* in more of a hurry */
    assert_ptr_equal(second->next, next);
    assert_int_equal(sr_bases_refs(next), 2);
    assert_int_equal(sr_bases_left(next), 0);
    sr_bench_step(&b, sr_shared.world, 3901, out);
    assert_true(b.seq->next_to[0] > b.seq->sketch_first);
    sr_bench_step(&other, sr_shared.world, 3999, out);
    sr_shared_assert_step(&other, 4000);
    assert_ptr_equal(second->bases, next);
    sr_attn_seq_free(second);
    assert_int_equal(sr_bases_refs(next), 1);
    sr_shared_assert_step(&b, 3902);
    sr_bench_close(&b);
}

/* A layer that is ahead of the others by a band makes bases come and go, and still gives the right bits. */
static void test_layers_out_of_step(void **state)
{
    struct attn_world *w = sr_shared.world;
    struct attn_bench b;
    sr_route_options o = sr_world_route(SR_ROUTE_MASS);
    float out[STRIDE], want[LAYERS * STRIDE];
    (void)state;
    sr_shared_open(&b, &o, 3999);
    assert_int_equal(sr_attn_seq_reserve(b.seq, 4001, NULL), SR_OK);
    for (int32_t p = 3999; p < 4001; p++) {
        sr_attn_append(b.seq, 0, sr_world_k(w, 0, p), sr_world_v(w, 0, p), 1);
        sr_bench_again(&b, w, 0, p, out);
    }
    sr_attn_append(b.seq, 1, sr_world_k(w, 1, 3999), sr_world_v(w, 1, 3999), 1);
    sr_bench_again(&b, w, 1, 3999, out);
    sr_shared_fresh(&o, 3999, want);
    assert_memory_equal(out, want + STRIDE, sizeof out);
    sr_bench_again(&b, w, 0, 4000, out);
    sr_shared_fresh(&o, 4000, want);
    assert_memory_equal(out, want, sizeof out);
    sr_bench_close(&b);
}

/* ---- rows repeated ---- */

static const float *row_at(const struct attn_seq *s, void **table, int32_t unit, int32_t row)
{
    const float *run = table[(size_t)unit * (size_t)s->table_room + (size_t)(row / SR_CHUNK_ROWS)];
    return run + (size_t)(row % SR_CHUNK_ROWS) * DIM;
}

/* Before rotation a copy's key is the key that it copies, and its value is the same. */
static void test_tile(void **state)
{
    enum { HAVE = 700, ALL = 4 + 3 * (HAVE - 4) };
    struct attn_bench b;
    sr_route_options o = sr_world_route(SR_ROUTE_MASS);
    struct rotation r;
    sr_error err;
    float turn[DIM], x[DIM], y[DIM], out[LAYERS * STRIDE];
    (void)state;
    sr_bench_open(&b, sr_shared.world, SR_DTYPE_F32, SR_DTYPE_F32, &o, 2, sr_shared.moments);
    sr_bench_fill(&b, sr_shared.world, 0, HAVE);
    assert_int_equal(sr_attn_seq_tile(b.seq, 1, &err), SR_OK);
    assert_int_equal(sr_attn_seq_len(b.seq, 1), HAVE);
    assert_int_equal(sr_attn_seq_tile(b.seq, 6, &err), SR_ERR_USAGE); /* beyond LEN */
    assert_int_equal(sr_attn_seq_tile(b.seq, 3, &err), SR_OK);
    assert_int_equal(sr_attn_seq_len(b.seq, 0), ALL);
    assert_int_equal(sr_attn_seq_len(b.seq, 1), ALL);
    sr_rotation_init(&r, &sr_shared.world->rope, DIM);
    for (int32_t u = 0; u < LAYERS * KV; u++) {
        for (int32_t p = HAVE; p < ALL; p++) {
            const int32_t from = 4 + (p - 4) % (HAVE - 4);
            assert_memory_equal(row_at(b.seq, b.seq->v, u, p), row_at(b.seq, b.seq->v, u, from), DIM * sizeof(float));
            sr_rotation_turn(&r, p, turn);
            sr_rotation_undo(&r, turn, row_at(b.seq, b.seq->k, u, p), x);
            sr_rotation_turn(&r, from, turn);
            sr_rotation_undo(&r, turn, row_at(b.seq, b.seq->k, u, from), y);
            float norm = 0, diff = 0;
            for (int i = 0; i < DIM; i++) {
                norm += y[i] * y[i];
                diff += (x[i] - y[i]) * (x[i] - y[i]);
            }
            assert_true(diff <= norm * 8 * 1e-13f); /* three turns, each within 2^-22 of its pair's length */
        }
    }
    sr_bench_step(&b, sr_shared.world, ALL, out);
    assert_int_equal(b.seq->band, 1);
    sr_bench_close(&b);
}

static int make_world(void **state)
{
    (void)state;
    sr_shared.world = sr_world_new(LAYERS, KV, GROUP, DIM, LEN, 13);
    sr_world_moments(sr_shared.world, sr_shared.moments);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_band_change),
        cmocka_unit_test(test_layers_out_of_step),
        cmocka_unit_test(test_band_ahead),
        cmocka_unit_test(test_band_ahead_truncated),
        cmocka_unit_test(test_band_ahead_shared),
        cmocka_unit_test(test_tile),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, make_world, sr_shared_free);
}
