/* SPDX-License-Identifier: Apache-2.0
 *
 * A sequence over time: truncation and going on, changes of route, several sequences in one step,
 * saving and restoring, running out of memory. Whatever the way there, a step gives the bits that a fresh
 * sequence gives.
 */
#include "attn_world.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "attention/timeline.h"
#include "base/memory.h"

enum { LAYERS = 2, KV = 2, GROUP = 2, DIM = 64, LEN = 4030, STRIDE = KV * GROUP * DIM };

/* The step that completes a session's own moments reads everything in every layer, the next one routes in all. */
static void test_own_moments_begin(void **state)
{
    enum { ALL = LAYERS * KV };
    struct attn_bench b;
    sr_route_options o = sr_world_route(SR_ROUTE_MASS);
    sr_route_stats st;
    float out[LAYERS * STRIDE];
    (void)state;
    sr_bench_open(&b, sr_shared.world, SR_DTYPE_F16, SR_DTYPE_F16, &o, 2, NULL);
    sr_bench_prefill(&b, sr_shared.world, 0, SR_MOMENTS_LAST - 1, 512, NULL);
    sr_bench_step(&b, sr_shared.world, SR_MOMENTS_LAST - 1, out);
    sr_attn_seq_stats(b.seq, &st);
    assert_int_equal(st.units_all, ALL);
    sr_bench_step(&b, sr_shared.world, SR_MOMENTS_LAST, out);
    sr_attn_seq_stats(b.seq, &st);
    assert_int_equal(st.units, 2 * ALL);
    assert_int_equal(st.units_all, ALL);
    sr_bench_close(&b);
}

/* ---- truncation, routes ---- */

static void test_truncate_and_go_on(void **state)
{
    static const sr_route_mode modes[] = {SR_ROUTE_DENSE, SR_ROUTE_MASS, SR_ROUTE_WINDOW, SR_ROUTE_PAPER};
    struct attn_bench b;
    float out[LAYERS * STRIDE];
    (void)state;
    for (int i = 0; i < 4; i++) {
        sr_route_options o = sr_world_route(modes[i]);
        sr_shared_open(&b, &o, 2500);
        for (int32_t p = 2500; p < 2510; p++) sr_bench_step(&b, sr_shared.world, p, out);
        assert_int_equal(sr_attn_seq_truncate(b.seq, 2505, NULL), SR_OK);
        assert_int_equal(sr_attn_seq_len(b.seq, 1), 2505);
        sr_shared_assert_step(&b, 2505);
        assert_int_equal(sr_attn_seq_truncate(b.seq, 2100, NULL),
                         SR_OK); /* rows that had left the window are in it again */
        sr_shared_assert_step(&b, 2100);
        sr_bench_fill(&b, sr_shared.world, 2101, 2600);
        sr_shared_assert_step(&b, 2600);
        assert_int_equal(sr_attn_seq_truncate(b.seq, 0, NULL), SR_OK);
        sr_bench_fill(&b, sr_shared.world, 0, 2300);
        sr_shared_assert_step(&b, 2300);
        sr_attn_seq_clear(b.seq);
        uint64_t kv, sketch;
        sr_attn_seq_memory(b.seq, &kv, &sketch);
        assert_int_equal(kv + sketch, 0);
        sr_bench_fill(&b, sr_shared.world, 0, 2300);
        sr_shared_assert_step(&b, 2300);
        assert_int_equal(sr_attn_seq_truncate(b.seq, -1, NULL), SR_ERR_USAGE);
        sr_bench_close(&b);
    }
}

static void test_route_changes(void **state)
{
    struct attn_bench b;
    sr_route_options o = sr_world_route(SR_ROUTE_DENSE);
    int32_t pos = 2400;
    (void)state;
    sr_shared_open(&b, &o, pos);
    sr_shared_assert_step(&b, pos++);
    for (int i = 0; i < 8; i++) {
        o = sr_world_route(i % 4 == 3 ? SR_ROUTE_DENSE : SR_ROUTE_MASS);
        if (i == 1) o.rank = 8;
        if (i == 2) o.bits = 8;
        if (i == 4) o.n_sinks = 1;
        if (i == 5) o.window = 100;
        if (i == 6) o.window = 600;
        assert_int_equal(sr_attn_seq_route_set(b.seq, &o, NULL), SR_OK);
        sr_shared_assert_step(&b, pos++);
        sr_shared_assert_step(&b, pos++);
    }
    o = sr_world_route(SR_ROUTE_DENSE); /* grows past a chunk while there is no sketch */
    assert_int_equal(sr_attn_seq_route_set(b.seq, &o, NULL), SR_OK);
    sr_bench_fill(&b, sr_shared.world, pos, 3100);
    o = sr_world_route(SR_ROUTE_MASS);
    assert_int_equal(sr_attn_seq_route_set(b.seq, &o, NULL), SR_OK);
    sr_shared_assert_step(&b, 3100);
    sr_route_options bad = o;
    bad.eps = 0;
    assert_int_equal(sr_attn_seq_route_set(b.seq, &bad, NULL), SR_ERR_USAGE);
    sr_shared_assert_step(&b, 3101);
    sr_bench_close(&b);
}

/* ---- several sequences ---- */

/* Lengths, modes and eps differ; one step for all gives what each gives alone, and bases are shared. */
static void test_batch_of_sequences(void **state)
{
    enum { N = 6 };
    static const int32_t lens[N] = {2500, 2300, 4005, 100, 2222, 2600};
    static const sr_route_mode modes[N] = {SR_ROUTE_MASS, SR_ROUTE_MASS,   SR_ROUTE_MASS,
                                           SR_ROUTE_MASS, SR_ROUTE_WINDOW, SR_ROUTE_MASS};
    struct attn_world *w = sr_shared.world;
    struct attn_bench b;
    struct attn_seq *seqs[N];
    float want[LAYERS * STRIDE], q[N * STRIDE], out[LAYERS][N * STRIDE];
    sr_route_options o[N];
    (void)state;
    o[0] = sr_world_route(SR_ROUTE_MASS);
    sr_shared_open(&b, &o[0], 0);
    for (int i = 0; i < N; i++) {
        o[i] = sr_world_route(modes[i]);
        if (i == 1) o[i].eps = .3f;
        if (i == 5) o[i].rank = 8;
        struct attn_seq_config c = {SR_DTYPE_F16, SR_DTYPE_F16, LEN, o[i]};
        if (i == 0)
            seqs[0] = b.seq;
        else
            assert_int_equal(sr_attn_seq_new(&seqs[i], b.attention, &c, NULL), SR_OK);
        struct attn_bench one = {b.backend, b.attention, seqs[i]};
        sr_bench_fill(&one, w, 0, lens[i]);
        assert_int_equal(sr_attn_seq_reserve(seqs[i], lens[i] + 1, NULL), SR_OK);
    }
    for (int l = 0; l < LAYERS; l++) {
        for (int i = 0; i < N; i++) {
            sr_attn_append(seqs[i], l, sr_world_k(w, l, lens[i]), sr_world_v(w, l, lens[i]), 1);
            memcpy(q + i * STRIDE, sr_world_q(w, l, lens[i]), STRIDE * sizeof *q);
        }
        assert_int_equal(sr_attn_decode(b.attention, seqs, N, l, q, out[l], NULL), SR_OK);
    }
    for (int i = 0; i < N; i++) {
        sr_shared_fresh(&o[i], lens[i], want);
        for (int l = 0; l < LAYERS; l++)
            assert_memory_equal(out[l] + i * STRIDE, want + l * STRIDE, STRIDE * sizeof *want);
    }
    assert_ptr_equal(seqs[0]->bases, seqs[1]->bases);
    assert_int_equal(sr_bases_refs(seqs[0]->bases), 2);
    assert_ptr_not_equal(seqs[0]->bases, seqs[2]->bases);
    for (int i = 1; i < N; i++) sr_attn_seq_free(seqs[i]);
    assert_int_equal(sr_bases_refs(seqs[0]->bases), 1);
    sr_bench_close(&b);
}

/* ---- saving ---- */

static void check_restore(const sr_route_options *o, const char *moments, int32_t len)
{
    struct attn_world *w = sr_shared.world;
    struct attn_bench a, b;
    struct tape t = {0};
    struct attn_seq_state st;
    float want[LAYERS * STRIDE], got[LAYERS * STRIDE];
    sr_error err = {SR_OK, ""};
    sr_bench_open(&a, w, SR_DTYPE_F16, SR_DTYPE_Q8_0, o, 2, moments);
    sr_bench_open(&b, w, SR_DTYPE_F16, SR_DTYPE_Q8_0, o, 2, moments);
    if (moments)
        sr_bench_fill(&a, w, 0, len);
    else
        sr_bench_prefill(&a, w, 0, len, 512, NULL);
    sr_bench_step(&a, w, len, want);
    sr_attn_seq_state_get(a.seq, &st);
    assert_int_equal(st.len, len + 1);
    assert_int_equal(sr_attn_seq_visit(a.seq, sr_tape_record, &t, &err), SR_OK);
    if (sr_attn_seq_state_set(b.seq, &st, &err) || sr_attn_seq_visit(b.seq, sr_tape_play, &t, &err))
        fail_msg("%s", err.text);
    assert_int_equal(t.at, t.used);
    assert_int_equal(t.n, 0);
    assert_int_equal(sr_attn_seq_check(b.seq, &err), SR_OK);
    sr_attn_seq_stats_reset(a.seq);
    for (int32_t p = len + 1; p < len + 8; p++) {
        sr_bench_step(&a, w, p, want);
        sr_bench_step(&b, w, p, got);
        assert_memory_equal(got, want, sizeof got);
    }
    sr_route_stats x, y; /* the same work too: sketch rows came with the file */
    sr_attn_seq_stats(a.seq, &x);
    sr_attn_seq_stats(b.seq, &y);
    assert_memory_equal(&x, &y, sizeof x);
    free(t.data);
    sr_bench_close(&a);
    sr_bench_close(&b);
}

static void test_save_and_restore(void **state)
{
    (void)state;
    sr_route_options o = sr_world_route(SR_ROUTE_MASS);
    check_restore(&o, sr_shared.moments, 2500);
    check_restore(&o, NULL, 2100); /* stands on its own moments */
    check_restore(&o, NULL, 2043); /* in the middle of collecting */
    o = sr_world_route(SR_ROUTE_DENSE);
    check_restore(&o, NULL, 300);
}

static void test_restore_refuses(void **state)
{
    struct attn_bench b;
    sr_route_options o = sr_world_route(SR_ROUTE_MASS);
    struct attn_seq_state good, st;
    sr_error err = {SR_OK, ""};
    float out[LAYERS * STRIDE];
    (void)state;
    sr_shared_open(&b, &o, 2400);
    sr_bench_step(&b, sr_shared.world, 2400, out);
    sr_attn_seq_state_get(b.seq, &good);
    struct {
        const char *word;
        int32_t *field, value;
        sr_status want;
    } rows[] = {
        {"max_len", &st.len, LEN + 1, SR_ERR_FORMAT},
        {"tokens", &st.len, -1, SR_ERR_FORMAT},
        {"band", &st.band, 9, SR_ERR_FORMAT},
        {"band", &st.band, -2, SR_ERR_FORMAT},
        {"rank", &st.rank, 7, SR_ERR_UNSUPPORTED},
        {"bits", &st.bits, 8, SR_ERR_UNSUPPORTED},
        {"n_sinks", &st.n_sinks, 3, SR_ERR_UNSUPPORTED},
        {"own", &st.own_moments, 3, SR_ERR_FORMAT},
        {"own", &st.own_moments, 1, SR_ERR_UNSUPPORTED},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        st = good;
        *rows[i].field = rows[i].value;
        assert_int_equal(sr_attn_seq_state_set(b.seq, &st, &err), rows[i].want);
        if (!strstr(err.text, rows[i].word)) fail_msg("\"%s\" does not name %s", err.text, rows[i].word);
    }
    st = good;
    st.moments_id ^= 1;
    assert_int_equal(sr_attn_seq_state_set(b.seq, &st, &err), SR_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "moments"));
    /* refusals changed nothing */
    sr_shared_assert_step(&b, 2401);
    /* a sketch that claims rows beyond the end */
    struct tape t = {0};
    sr_attn_seq_state_get(b.seq, &st);
    b.seq->sketch_to[1] = st.len + 1;
    assert_int_equal(sr_attn_seq_visit(b.seq, sr_tape_record, &t, &err), SR_ERR_FORMAT);
    assert_non_null(strstr(err.text, "layer 1"));
    free(t.data);
    sr_shared_assert_step(&b, 2402); /* it is encoded anew */
    struct attn_unit units[KV];
    sr_cache_units(b.seq, 1, units);
    memset((uint8_t *)units[1].v.chunk[1] + 5 * b.seq->shape.v_row_bytes, 0xff, 2);
    assert_int_equal(sr_attn_seq_check(b.seq, &err), SR_ERR_NUMERIC);
    assert_non_null(strstr(err.text, "layer 1, KV group 1, row 1029"));
    sr_bench_close(&b);
}

/* ---- chunks ahead ---- */

/* The second half of a chunk maps the next one and commits it bit by bit, not beyond max_len, and not if there is no memory. */
static void test_chunk_ahead(void **state)
{
    enum { HALF = SR_CHUNK_ROWS / 2 };
    struct attn_bench b;
    sr_route_options o = sr_world_route(SR_ROUTE_WINDOW);
    float out[LAYERS * STRIDE];
    (void)state;
    sr_shared_open(&b, &o, 2 * SR_CHUNK_ROWS + HALF - 1);
    sr_bench_step(&b, sr_shared.world, 2 * SR_CHUNK_ROWS + HALF - 1, out);
    assert_int_equal(b.seq->n_chunks, 3);
    sr_alloc_fail_at(1);
    sr_bench_step(&b, sr_shared.world, 2 * SR_CHUNK_ROWS + HALF, out); /* a step needs no allocation */
    sr_alloc_fail_at(0);
    assert_int_equal(b.seq->n_chunks, 3);
    sr_bench_step(&b, sr_shared.world, 2 * SR_CHUNK_ROWS + HALF + 1, out);
    assert_int_equal(b.seq->n_chunks, 4);
    const size_t bytes = sr_cache_chunk_bytes(b.seq), first = b.seq->touched;
    assert_in_range(first, 1, bytes / HALF * 2 + 4096);
    for (int32_t p = 2 * SR_CHUNK_ROWS + HALF + 2; p < 3 * SR_CHUNK_ROWS; p++) {
        const size_t before = b.seq->touched;
        sr_bench_step(&b, sr_shared.world, p, out);
        assert_in_range(b.seq->touched - before, 0, bytes / HALF + 4096);
    }
    assert_in_range(b.seq->touched, bytes, bytes + 4095);
    sr_shared_assert_step(&b, 3 * SR_CHUNK_ROWS);
    for (int32_t p = 3 * SR_CHUNK_ROWS + 1; p < LEN; p++) sr_bench_step(&b, sr_shared.world, p, out);
    assert_int_equal(b.seq->n_chunks, 4); /* LEN is max_len */
    sr_bench_close(&b);
}

/* Rows that are reserved at once lie in one region, a unit's one after another through its chunks; the bits are those of chunks
 * that came one by one. So with sketches of another rank, whose chunks are all made anew. */
static void test_one_region(void **state)
{
    static const sr_route_mode modes[] = {SR_ROUTE_DENSE, SR_ROUTE_MASS};
    float out[2][LAYERS * STRIDE];
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct attn_bench whole, apart;
        sr_route_options o = sr_world_route(modes[i]);
        sr_shared_open(&whole, &o, 0);
        sr_shared_open(&apart, &o, 0);
        assert_int_equal(sr_attn_seq_reserve(whole.seq, 3500, NULL), SR_OK);
        for (int32_t at = 0; at < 3500; at += 500) {
            sr_bench_fill(&whole, sr_shared.world, at, at + 500);
            sr_bench_fill(&apart, sr_shared.world, at, at + 500);
        }
        const struct attn_seq *s = whole.seq;
        const uint8_t *const *k = (const uint8_t *const *)(s->k + s->table_room); /* of the second group */
        assert_int_equal(s->n_chunks, 4);
        assert_true(s->region[0] && !s->region[1] && !s->region[3] && apart.seq->region[1] && apart.seq->region[3]);
        assert_ptr_equal(k[3], k[0] + 3 * SR_CHUNK_ROWS * s->shape.k_row_bytes);
        for (int32_t p = 3500; p < 3504; p++) {
            sr_bench_step(&whole, sr_shared.world, p, out[0]);
            sr_bench_step(&apart, sr_shared.world, p, out[1]);
            assert_memory_equal(out[0], out[1], sizeof out[0]);
        }
        o.rank = 24;
        assert_int_equal(sr_attn_seq_route_set(whole.seq, &o, NULL), SR_OK);
        assert_int_equal(sr_attn_seq_route_set(apart.seq, &o, NULL), SR_OK);
        sr_bench_step(&whole, sr_shared.world, 3504, out[0]);
        sr_bench_step(&apart, sr_shared.world, 3504, out[1]);
        assert_memory_equal(out[0], out[1], sizeof out[0]);
        sr_bench_close(&whole);
        sr_bench_close(&apart);
    }
}

/* ---- no memory ---- */

static sr_status whole_life(const struct attn_world *w, struct backend *backend)
{
    struct attention_config c = {
        .n_layers = w->n_layers, .n_heads = w->n_heads, .n_kv_heads = w->n_kv_heads, .head_dim = w->head_dim, .rope = w->rope};
    struct attn_seq_config sc = {SR_DTYPE_F16, SR_DTYPE_F16, LEN, sr_world_route(SR_ROUTE_MASS)};
    struct attention *a = NULL;
    struct attn_seq *s = NULL;
    float q[STRIDE], out[STRIDE];
    sr_status st;
    SR_TRY_GOTO(sr_attn_new(&a, backend, &c, NULL));
    SR_TRY_GOTO(sr_attn_load_moments(a, sr_shared.moments, NULL));
    SR_TRY_GOTO(sr_attn_seq_new(&s, a, &sc, NULL));
    SR_TRY_GOTO(sr_attn_seq_reserve(s, 2300, NULL));
    sr_attn_append(s, 0, sr_world_k(w, 0, 0), sr_world_v(w, 0, 0), 2300);
    memcpy(q, sr_world_q(w, 0, 2299), sizeof q);
    SR_TRY_GOTO(sr_attn_decode(a, &s, 1, 0, q, out, NULL));
    sc.route.rank = 20;
    SR_TRY_GOTO(sr_attn_seq_route_set(s, &sc.route, NULL));
    memcpy(q, sr_world_q(w, 0, 2299), sizeof q);
    SR_TRY_GOTO(sr_attn_decode(a, &s, 1, 0, q, out, NULL));
fail:
    sr_attn_seq_free(s);
    sr_attn_free(a);
    return st;
}

static void test_every_allocation_may_fail(void **state)
{
    int n = 1;
    (void)state;
    for (;; n++) {
        struct backend *backend;
        assert_int_equal(sr_backend_cpu_open(&backend, 1, NULL), SR_OK);
        sr_alloc_fail_at((uint64_t)n);
        sr_status st = whole_life(sr_shared.world, backend);
        sr_alloc_fail_at(0);
        sr_backend_close(backend);
        if (st == SR_OK) break;
        assert_int_equal(st, SR_ERR_RESOURCE);
    }
    print_message("# %d allocations failed in turn\n", n - 1);
    assert_true(n > 20);
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
        cmocka_unit_test(test_own_moments_begin),
        cmocka_unit_test(test_truncate_and_go_on), cmocka_unit_test(test_route_changes),
        cmocka_unit_test(test_batch_of_sequences), cmocka_unit_test(test_save_and_restore),
        cmocka_unit_test(test_chunk_ahead),        cmocka_unit_test(test_one_region),
        cmocka_unit_test(test_restore_refuses),    cmocka_unit_test(test_every_allocation_may_fail),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, make_world, sr_shared_free);
}
