/* SPDX-License-Identifier: Apache-2.0
 *
 * Rotation averages against sums over positions, moments against plain sums, the moments file and its damaged
 * forms, and the basis: exact estimates at full rank, and the same definition computed another way.
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
#include <xxhash.h>

#include "attention/basis.h"
#include "attention/timeline.h"
#include "base/rng.h"

enum { D = 16, DD = D * D };

static struct rope_spec rope_of(enum rope_kind kind, int32_t n_dims, double magnitude)
{
    struct rope_spec r = {kind, n_dims, {0}, magnitude};
    for (int32_t i = 0; i < n_dims / 2; i++) r.inv_freq[i] = pow(500, -2.0 * i / n_dims);
    return r;
}

/* R_p as a matrix, from the definition. */
static void rotation_matrix(const struct rope_spec *s, int64_t pos, double m[DD])
{
    memset(m, 0, DD * sizeof *m);
    for (int i = 0; i < D; i++) m[i * D + i] = 1;
    for (int i = 0; i < s->n_dims / 2 && s->kind != ROPE_NONE; i++) {
        int a = s->kind == ROPE_NEOX ? i : 2 * i, b = s->kind == ROPE_NEOX ? i + s->n_dims / 2 : 2 * i + 1;
        double c = s->magnitude * cos((double)pos * s->inv_freq[i]),
               n = s->magnitude * sin((double)pos * s->inv_freq[i]);
        m[a * D + a] = m[b * D + b] = c;
        m[a * D + b] = -n;
        m[b * D + a] = n;
    }
}

static void random_numbers(double *x, int n, uint64_t seed)
{
    struct rng r;
    sr_rng_seed(&r, seed);
    for (int i = 0; i < n; i++) x[i] = 2 * sr_rng_unit(&r) - 1;
}

static void check_average(const struct rope_spec *spec, int64_t p0, int64_t p1)
{
    double m[DD], v[D], got[DD], got_v[D], want[DD] = {0}, want_v[D] = {0}, r[DD], half[DD];
    double diff[DD / 2], sum[DD / 2], each[D];
    struct rotation rot;
    struct rotation_means means = {diff, sum, each};
    random_numbers(m, DD, 1);
    random_numbers(v, D, 2);
    sr_rotation_init(&rot, spec, D);
    sr_rotation_means(&rot, p0, p1, &means);
    sr_rotation_mean_matrix(&rot, &means, m, got);
    sr_rotation_mean_vector(&rot, &means, v, got_v);
    for (int64_t p = p0; p <= p1; p++) {
        rotation_matrix(spec, p, r);
        for (int i = 0; i < D; i++) {
            for (int j = 0; j < D; j++) {
                half[i * D + j] = 0;
                for (int k = 0; k < D; k++) half[i * D + j] += r[i * D + k] * m[k * D + j];
                want_v[i] += r[i * D + j] * v[j] / (double)(p1 - p0 + 1);
            }
        }
        for (int i = 0; i < D; i++) {
            for (int j = 0; j < D; j++) {
                for (int k = 0; k < D; k++)
                    want[i * D + j] += half[i * D + k] * r[j * D + k] / (double)(p1 - p0 + 1);
            }
        }
    }
    for (int i = 0; i < DD; i++) assert_float_equal(got[i], want[i], 1e-10);
    for (int i = 0; i < D; i++) assert_float_equal(got_v[i], want_v[i], 1e-10);
}

static void test_rotation_averages(void **state)
{
    struct rope_spec specs[] = {rope_of(ROPE_NORM, D, 1), rope_of(ROPE_NEOX, D, 1), rope_of(ROPE_NEOX, 8, 1),
                                rope_of(ROPE_NORM, 6, 1.3), rope_of(ROPE_NONE, 0, 1)};
    (void)state;
    for (size_t i = 0; i < sizeof specs / sizeof specs[0]; i++) {
        check_average(&specs[i], 0, 999);
        check_average(&specs[i], 5000, 9000);
        check_average(&specs[i], -1000, 3000);
        check_average(&specs[i], 7, 7);
    }
    struct rope_spec wide = specs[0];
    wide.inv_freq[0] = 3.14159265358979323846; /* the sum of two frequencies is a whole turn */
    check_average(&wide, 3, 300);
    struct rotation r;
    sr_rotation_init(&r, &specs[4], D);
    assert_int_equal(sr_band_of(&r, 100000), 0);
    sr_rotation_init(&r, &specs[0], D);
    assert_int_equal(sr_band_of(&r, 2000), 0);
    assert_int_equal(sr_band_of(&r, 2001), 1);
}

/* ---- moments ---- */

/* Beyond position 2,047 rows go on counting, until the sums are frozen, by a step whose own row is
 * taken back; with a gap among the first ones
 * they are never ready. */
static void test_moments_extended(void **state)
{
    enum { DIM = 16, LEN = 2209, WHOLE = LEN - 1 /* 69 blocks */ };
    struct attn_world *w = sr_world_new(1, 1, 2, DIM, LEN + 100, 9);
    struct moments_shape shape = {1, 2, 1, DIM};
    struct rotation r;
    double want[DIM] = {0}, mq[DIM * DIM], mk[DIM * DIM], mean[2][DIM];
    (void)state;
    sr_rotation_init(&r, &w->rope, DIM);
    for (int32_t p = 4; p < WHOLE; p++) {
        float turn[DIM], x[DIM];
        sr_rotation_turn(&r, p, turn);
        sr_rotation_undo(&r, turn, sr_world_k(w, 0, p), x);
        for (int i = 0; i < DIM; i++) want[i] += (double)x[i] / (WHOLE - 4);
    }
    for (int batch = 0; batch < 2; batch++) {
        struct moments *m;
        const int32_t step = batch ? 1 : 700;
        assert_int_equal(sr_moments_new(&m, &shape, &r, NULL), SR_OK);
        sr_moments_extend(m, SR_MOMENTS_END);
        for (int32_t p = 0; p < LEN; p += step) {
            const int32_t n = LEN - p < step ? LEN - p : step;
            assert_int_equal(sr_moments_ready(m), p >= SR_MOMENTS_LAST);
            sr_moments_add_q(m, NULL, 0, sr_world_q(w, 0, p), n, p);
            sr_moments_add_k(m, NULL, 0, sr_world_k(w, 0, p), n, p);
        }
        assert_true(sr_moments_wants(m, 0));
        assert_int_equal(sr_moments_check(m), 0);
        sr_moments_freeze(m, WHOLE);
        assert_false(sr_moments_wants(m, 0));
        assert_int_equal(sr_moments_check(m), 0);
        sr_moments_add_q(m, NULL, 0, sr_world_q(w, 0, LEN), 100, LEN);
        sr_moments_add_k(m, NULL, 0, sr_world_k(w, 0, LEN), 100, LEN);
        assert_int_equal(sr_moments_ready(m), 1);
        sr_moments_get(m, 0, 0, mq, mk, mean[batch]);
        for (int i = 0; i < DIM; i++) assert_float_equal(mean[batch][i], want[i], 1e-6);
        sr_moments_free(m);
    }
    assert_memory_equal(mean[0], mean[1], sizeof mean[0]);
    struct moments *m;
    assert_int_equal(sr_moments_new(&m, &shape, &r, NULL), SR_OK);
    sr_moments_extend(m, SR_MOMENTS_END);
    sr_moments_add_q(m, NULL, 0, sr_world_q(w, 0, 0), LEN, 0);
    sr_moments_add_k(m, NULL, 0, sr_world_k(w, 0, 0), 1000, 0);
    sr_moments_add_k(m, NULL, 0, sr_world_k(w, 0, 1001), LEN - 1001, 1001);
    assert_int_equal(sr_moments_ready(m), 0);
    sr_moments_free(m);
    sr_world_free(w);
}

static void test_moments_sums(void **state)
{
    struct attn_world *w = sr_world_new(2, 2, 3, 64, SR_MOMENTS_LAST + 50, 9);
    struct moments_shape shape = {2, 6, 2, 64};
    struct moments *m;
    struct rotation r;
    double *mq = calloc(64 * 64, sizeof *mq), *got_q = malloc(64 * 64 * sizeof *mq),
           *got_k = malloc(64 * 64 * sizeof *mq), mean[64];
    float x[64], turn[64];
    (void)state;
    assert_true(mq && got_q && got_k);
    sr_rotation_init(&r, &w->rope, 64);
    assert_int_equal(sr_moments_new(&m, &shape, &r, NULL), SR_OK);
    for (int l = 0; l < 2; l++) {
        /* an odd cut, a repetition as after a truncation, and positions past the end */
        sr_moments_add_q(m, NULL, l, sr_world_q(w, l, 0), 1000, 0);
        sr_moments_add_q(m, NULL, l, sr_world_q(w, l, 500), w->len - 500, 500);
        assert_true(sr_moments_wants(m, l));
        assert_int_equal(sr_moments_ready(m), 0);
        for (int32_t p = 0; p < w->len; p++) sr_moments_add_k(m, NULL, l, sr_world_k(w, l, p), 1, p);
        assert_false(sr_moments_wants(m, l));
    }
    assert_int_equal(sr_moments_ready(m), 1);
    assert_int_equal(sr_moments_rows(m), 2044);
    sr_moments_get(m, 1, 1, got_q, got_k, mean);
    for (int32_t p = 4; p < 2048; p++) {
        sr_rotation_turn(&r, p, turn);
        for (int h = 3; h < 6; h++) {
            sr_rotation_undo(&r, turn, sr_world_q(w, 1, p) + h * 64, x);
            for (int i = 0; i < 64; i++) {
                for (int j = 0; j < 64; j++) mq[i * 64 + j] += (double)x[i] * (double)x[j] / (3 * 2044);
            }
        }
        sr_rotation_undo(&r, turn, sr_world_k(w, 1, p) + 64, x);
        for (int i = 0; i < 64; i++) mean[i] -= (double)x[i] / 2044;
    }
    for (int i = 0; i < 64 * 64; i++) assert_float_equal(got_q[i], mq[i], 1e-6 * (1 + fabs(mq[i])));
    for (int i = 0; i < 64; i++) assert_float_equal(mean[i], 0, 1e-6);
    for (int i = 0; i < 64; i++) assert_true(got_k[i * 64 + i] > 0);
    sr_moments_reset(m);
    assert_int_equal(sr_moments_rows(m), 0);
    assert_int_equal(sr_moments_save(m, &w->rope, "/nonexistent/x", NULL), SR_ERR_USAGE);
    sr_moments_free(m);
    sr_world_free(w);
    free(mq);
    free(got_q);
    free(got_k);
}

/* ---- the file ---- */

struct file {
    uint8_t *data;
    size_t bytes;
    char path[64];
};

static void put(const struct file *f, size_t bytes)
{
    FILE *o = fopen(f->path, "wb");
    assert_non_null(o);
    assert_int_equal(fwrite(f->data, 1, bytes, o), bytes);
    assert_int_equal(fclose(o), 0);
}

static void seal(struct file *f)
{
    uint64_t sum = XXH3_64bits(f->data, f->bytes - 8);
    for (int i = 0; i < 8; i++) f->data[f->bytes - 8 + (size_t)i] = (uint8_t)(sum >> (8 * i));
}

static sr_status load(const char *path, const struct moments_shape *shape, const struct rope_spec *rope,
                      sr_error *err)
{
    struct moments *m = NULL;
    sr_status st = sr_moments_load(&m, shape, rope, path, err);
    sr_moments_free(m);
    return st;
}

static void assert_refused(const struct file *f, const struct moments_shape *shape,
                           const struct rope_spec *rope, sr_status want, const char *word)
{
    sr_error err = {SR_OK, ""};
    assert_int_equal(load(f->path, shape, rope, &err), want);
    if (!strstr(err.text, word) || !strstr(err.text, f->path))
        fail_msg("\"%s\" does not name %s", err.text, word);
}

static void refuse_damage(struct file *f, const struct moments_shape *shape, const struct rope_spec *rope)
{
    static const size_t cuts[] = {0, 7, 8, 20, 43, 60, 1000};
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        put(f, cuts[i]);
        assert_refused(f, shape, rope, SR_ERR_FORMAT, "");
    }
    put(f, f->bytes - 1);
    assert_refused(f, shape, rope, SR_ERR_FORMAT, "header asks for");
    struct rng r;
    sr_rng_seed(&r, 1);
    for (int i = 0; i < 300; i++) {
        size_t bit =
            i < 200 ? (size_t)i * 2 : (size_t)(sr_rng_u64(&r) % (f->bytes * 8)); /* the head, then anywhere */
        f->data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        put(f, f->bytes);
        sr_status st = load(f->path, shape, rope, NULL);
        assert_true(st == SR_ERR_FORMAT || st == SR_ERR_UNSUPPORTED);
        f->data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

static void refuse_others(struct file *f, const struct moments_shape *shape, const struct rope_spec *rope)
{
    static const char *const names[] = {"n_layers", "n_heads", "n_kv_heads", "head_dim"};
    put(f, f->bytes);
    for (int i = 0; i < 4; i++) {
        struct moments_shape other = *shape;
        int32_t *fields[] = {&other.n_layers, &other.n_heads, &other.n_kv_heads, &other.head_dim};
        *fields[i] *= 2;
        assert_refused(f, &other, rope, SR_ERR_UNSUPPORTED, names[i]);
    }
    struct rope_spec turned = *rope;
    turned.kind = ROPE_NEOX;
    assert_refused(f, shape, &turned, SR_ERR_UNSUPPORTED, "rope kind");
    turned = *rope;
    turned.inv_freq[3] *= 1.001;
    assert_refused(f, shape, &turned, SR_ERR_UNSUPPORTED, "frequency 3");
    turned = *rope;
    turned.magnitude = 1.1;
    assert_refused(f, shape, &turned, SR_ERR_UNSUPPORTED, "magnitude");
    uint8_t *value = f->data + f->bytes - 8 - 4; /* the last float becomes NaN, under a valid checksum */
    memset(value, 0xff, 4);
    seal(f);
    put(f, f->bytes);
    assert_refused(f, shape, rope, SR_ERR_NUMERIC, "not finite");
    f->data[8] = 2;
    seal(f);
    put(f, f->bytes);
    assert_refused(f, shape, rope, SR_ERR_UNSUPPORTED, "version 2");
}

static void test_moments_file(void **state)
{
    struct attn_world *w = sr_world_new(1, 2, 2, 32, SR_MOMENTS_LAST, 4);
    struct moments_shape shape = {1, 4, 2, 32};
    struct moments *m;
    struct file f = {malloc(1 << 20), 0, ""};
    char again[80];
    sr_error err = {SR_OK, ""};
    (void)state;
    assert_non_null(f.data);
    sr_world_moments(w, f.path);
    FILE *in = fopen(f.path, "rb");
    assert_non_null(in);
    f.bytes = fread(f.data, 1, 1 << 20, in);
    fclose(in);
    /* saved again it is the same file */
    assert_int_equal(sr_moments_load(&m, &shape, &w->rope, f.path, &err), SR_OK);
    assert_int_equal(sr_moments_ready(m), 1);
    assert_true(sr_moments_id(m) != 0);
    snprintf(again, sizeof again, "%s.again", f.path);
    assert_int_equal(sr_moments_save(m, &w->rope, again, &err), SR_OK);
    uint8_t *copy = malloc(f.bytes + 1);
    in = fopen(again, "rb");
    assert_true(copy && in);
    assert_int_equal(fread(copy, 1, f.bytes + 1, in), f.bytes);
    fclose(in);
    assert_memory_equal(copy, f.data, f.bytes);
    unlink(again);
    assert_int_equal(symlink("/dev/null", again), 0); /* a rename would replace it */
    assert_int_equal(sr_moments_save(m, &w->rope, again, &err), SR_ERR_IO);
    assert_int_equal(unlink(again), 0);
    sr_moments_free(m);
    assert_int_equal(load("/nonexistent/moments", &shape, &w->rope, &err), SR_ERR_IO);
    refuse_damage(&f, &shape, &w->rope);
    refuse_others(&f, &shape, &w->rope);
    unlink(f.path);
    free(copy);
    free(f.data);
    sr_world_free(w);
}

/* A session that collected its own moments and one that loaded the file made from them read the same. */
static void test_own_equals_file(void **state)
{
    enum { N = 2100, DECODE = 2060 };
    struct attn_world *w = sr_world_new(1, 1, 2, 64, N, 6);
    struct attn_bench own, filed;
    sr_route_options o = sr_route_options_default();
    float a[128], b[128];
    char path[] = "/tmp/sr-own-XXXXXX";
    int fd = mkstemp(path);
    sr_error err = {SR_OK, ""};
    (void)state;
    assert_true(fd >= 0);
    close(fd);
    sr_bench_open(&own, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, 2, NULL);
    sr_bench_prefill(&own, w, 0, 2047, 512, NULL);
    assert_int_equal(sr_attn_seq_save_moments(own.seq, path, &err), SR_ERR_USAGE);
    assert_non_null(strstr(err.text, "2043 of 2044"));
    sr_bench_prefill(&own, w, 2047, DECODE, 512, NULL);
    assert_int_equal(sr_attn_seq_save_moments(own.seq, path, &err), SR_OK);
    sr_bench_open(&filed, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, 1, path);
    sr_bench_fill(&filed, w, 0, DECODE);
    for (int32_t p = DECODE; p < N; p++) {
        sr_bench_step(&own, w, p, a);
        sr_bench_step(&filed, w, p, b);
        assert_memory_equal(a, b, sizeof a);
    }
    sr_route_stats st;
    sr_attn_seq_stats(own.seq, &st);
    assert_true(st.sketch_rows > 0);
    /* a sequence that stands on its own moments may see a file come; one that stands on the file may not */
    assert_int_equal(sr_attn_load_moments(own.attention, path, &err), SR_OK);
    assert_int_equal(sr_attn_load_moments(filed.attention, path, &err), SR_ERR_USAGE);
    sr_bench_close(&own);
    sr_bench_close(&filed);
    unlink(path);
    sr_world_free(w);
}

/* ---- the basis ---- */

/* At full rank and 8 bits the estimate misses the logit by rounding only: half a step per coordinate,
 * weighted by |z_j|. */
static void check_full_rank(enum rope_kind kind)
{
    enum { N = 2300, HEADS = 3, DIM = 64 };
    struct attn_world *w = sr_world_new(1, 1, HEADS, DIM, N, 8);
    struct attn_bench b;
    struct attn_unit unit;
    struct sketch_basis basis;
    sr_route_options o = sr_route_options_default();
    char moments[64];
    float out[HEADS * DIM], q[HEADS * DIM], unread[HEADS], eps = .1f,
                                                           *logits = malloc(sizeof *logits * HEADS * N);
    int32_t *list = malloc(sizeof *list * N), n_list = 0;
    double *want = malloc(sizeof *want * N);
    struct attn_touched touched = {0};
    float nothing[HEADS] = {0}; /* near: every run is read whole */
    uint8_t mask = 1;
    assert_true(logits && list && want);
    w->rope.kind = kind;
    o.rank = DIM;
    o.bits = 8;
    sr_world_round(w, SR_DTYPE_F16, SR_DTYPE_F16);
    sr_world_moments(w, moments);
    sr_bench_open(&b, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, 2, moments);
    sr_bench_fill(&b, w, 0, N - 1);
    sr_bench_step(&b, w, N - 1, out);
    sr_bases_get(b.seq->bases, 0, 0, &basis);
    sr_cache_units(b.seq, 0, &unit);
    for (int i = 0; i < HEADS * DIM; i++) q[i] = sr_world_q(w, 0, N - 1)[i] / 8.0f;
    unit.q = q;
    b.backend->ops->sketch_choose(b.backend, &(struct sketch_choose_args){
                                                 .shape = &b.seq->shape,
                                                 .sketch = &b.seq->sketch,
                                                 .units = &unit,
                                                 .basis = &basis,
                                                 .mask = &mask,
                                                 .n_units = 1,
                                                 .n_sinks = o.n_sinks,
                                                 .window = o.window,
                                                 .eps = &eps,
                                                 .near_state = {NULL, nothing, nothing},
                                                 .list = &list,
                                                 .n_list = &n_list,
                                                 .unread = unread,
                                                 .logits = &logits,
                                                 .touched = &touched,
                                             });
    for (int h = 0; h < HEADS; h++) {
        double bound = 0, correction = 0;
        for (int j = 0; j < DIM; j++) {
            double z = 0;
            for (int i = 0; i < DIM; i++) z += (double)basis.synthesis[j * DIM + i] * (double)q[h * DIM + i];
            bound += fabs(z) * (double)basis.step[j] / 2;
            correction += z * z * (double)basis.step[j] * (double)basis.step[j] / 24;
        }
        sr_world_logits(w, 0, h, N - 1, want);
        double worst = 0;
        for (int32_t i = o.n_sinks; i < N - o.window; i++) {
            double e = fabs((double)logits[h * N + i] - correction - want[i]);
            worst = e > worst ? e : worst;
            if (!(e <= bound + 1e-2))
                fail_msg("head %d row %d: estimate %g, logit %g, bound %g", h, i,
                         (double)logits[h * N + i] - correction, want[i], bound);
        }
        assert_true(bound < 3); /* the bound says something: logits span tens */
        if (h == 0) print_message("# worst error %.4f, bound %.4f\n", worst, bound);
    }
    sr_bench_close(&b);
    unlink(moments);
    sr_world_free(w);
    free(logits);
    free(list);
    free(want);
}

static void test_full_rank(void **state)
{
    (void)state;
    check_full_rank(ROPE_NORM);
    check_full_rank(ROPE_NEOX);
    check_full_rank(ROPE_NONE);
}

/* analysis and synthesis invert each other; lambda falls, and is the variance that U' C_q^(1/2) C_k C_q^(1/2)
 * U has on its diagonal when computed from the moments by brute-force averages. */
static void test_basis_definition(void **state)
{
    enum { DIM = 16, BAND = 1, END = 4000 };
    struct attn_world *w = sr_world_new(1, 1, 2, DIM, SR_MOMENTS_LAST, 10);
    struct moments_shape shape = {1, 2, 1, DIM};
    struct moments *m;
    struct rotation r;
    struct band_bases *bases;
    struct sketch_basis b;
    char path[64];
    double mq[DIM * DIM], mk[DIM * DIM], mean[DIM], mu[DIM] = {0}, ck[DIM * DIM] = {0}, rp[DIM * DIM];
    (void)state;
    sr_world_moments(w, path);
    assert_int_equal(sr_moments_load(&m, &shape, &w->rope, path, NULL), SR_OK);
    unlink(path);
    sr_rotation_init(&r, &w->rope, DIM);
    struct basis_spec spec = {m, &r, shape, BAND, DIM, 4};
    assert_int_equal(sr_bases_new(&bases, &spec, NULL, NULL), SR_OK);
    sr_bases_get(bases, 0, 0, &b);
    sr_moments_get(m, 0, 0, mq, mk, mean);
    for (int p = 0; p < END; p++) {
        rotation_matrix(&w->rope, p, rp);
        double half[DIM * DIM] = {0};
        for (int i = 0; i < DIM; i++) {
            for (int j = 0; j < DIM; j++) {
                mu[i] += rp[i * DIM + j] * mean[j] / END;
                for (int k = 0; k < DIM; k++) half[i * DIM + j] += rp[i * DIM + k] * mk[k * DIM + j];
            }
        }
        for (int i = 0; i < DIM; i++) {
            for (int j = 0; j < DIM; j++) {
                for (int k = 0; k < DIM; k++) ck[i * DIM + j] += half[i * DIM + k] * rp[j * DIM + k] / END;
            }
        }
    }
    for (int i = 0; i < DIM; i++) {
        assert_float_equal((double)b.mu[i], mu[i], 1e-5);
        for (int j = 0; j < DIM; j++) ck[i * DIM + j] -= mu[i] * mu[j];
    }
    for (int i = 0; i < DIM; i++) {
        if (i) assert_true(b.lambda[i] <= b.lambda[i - 1]);
        double step = (double)b.step[i], want = 7 * sqrt((double)b.lambda[i]) / 16;
        assert_float_equal(step, want, 1e-6 + 1e-5 * want);
        for (int j = 0; j < DIM; j++) {
            double unit = 0, var = 0, half[DIM];
            for (int k = 0; k < DIM; k++)
                unit += (double)b.analysis[i * DIM + k] * (double)b.synthesis[j * DIM + k];
            assert_float_equal(unit, i == j, 1e-3);
            for (int k = 0; k < DIM; k++) {
                half[k] = 0;
                for (int n = 0; n < DIM; n++) half[k] += ck[k * DIM + n] * (double)b.analysis[j * DIM + n];
            }
            for (int k = 0; k < DIM; k++) var += (double)b.analysis[i * DIM + k] * half[k];
            assert_float_equal(var, i == j ? (double)b.lambda[i] : 0, 1e-4 * (double)b.lambda[0]);
        }
    }
    sr_bases_unref(bases);
    sr_moments_free(m);
    sr_world_free(w);
}

/* Rank, bits and bytes of a row by head size, group and what was asked for. */
static void test_host_shape(void **state)
{
    static const struct { int32_t dim, group, rank, bits, want_rank, want_bits, want_bytes; } cases[] = {
        {64, 3, 0, 4, 20, 4, 10},                {128, 4, 0, 4, 36, 4, 18},  {64, 3, 0, 8, 20, 8, 20},
        {64, 7, 0, 4, 44, SR_SKETCH_MIXED, 10},  {64, 7, 28, 4, 28, 4, 14},  {64, 7, 0, 8, 20, 8, 20},
        {128, 8, 0, 4, 84, SR_SKETCH_MIXED, 18}, {96, 5, 0, 4, 44, SR_SKETCH_MIXED, 10},
        {256, 8, 0, 4, 164, SR_SKETCH_MIXED, 34}, {32, 8, 0, 4, 32, SR_SKETCH_MIXED, 10},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct sketch_shape s = sr_sketch_host_shape(cases[i].dim, cases[i].group, cases[i].rank, cases[i].bits);
        if (s.rank != cases[i].want_rank || s.bits != cases[i].want_bits || s.row_bytes != (size_t)cases[i].want_bytes)
            fail_msg("case %zu: rank %d, bits %d, %zu bytes", i, s.rank, s.bits, s.row_bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rotation_averages), cmocka_unit_test(test_moments_sums), cmocka_unit_test(test_moments_extended),
        cmocka_unit_test(test_moments_file),      cmocka_unit_test(test_own_equals_file),
        cmocka_unit_test(test_full_rank),         cmocka_unit_test(test_basis_definition),
        cmocka_unit_test(test_host_shape),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
