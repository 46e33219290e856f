/* SPDX-License-Identifier: Apache-2.0
 *
 * Bases of a band. With C_q the averaged second moment of queries, C_k the covariance of keys about their
 * mean mu and U, lambda the eigenvectors and eigenvalues of C_q^(1/2) C_k C_q^(1/2): q.k = q.mu + (U'
 * C_q^(-1/2) q) . (U' C_q^(1/2) (k - mu)), and coordinate j of the product carries the variance lambda_j of
 * the scores: the few largest are kept.
 */
#include "attention/basis.h"

#include <assert.h>
#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "attention/blas.h"
#include "base/memory.h"
#include "base/pool.h"

/* Range of a coordinate, in its standard deviations. A coarse step costs more than the outliers that are clipped, a fine one
 * less (docs/notes/routing-experiments.md). */
static double sigmas(int32_t code_bits)
{
    static const double of[] = {0, 1.6, 2.1, 2.8, 3.5, 0, 0, 0, 4.5};
    return of[code_bits];
}

static float step_of(const struct basis_spec *s, int32_t j, double variance)
{
    const int32_t bits = sr_sketch_code_bits(&(struct sketch_shape){s->rank, s->bits, 0}, j);
    return (float)(2 * sigmas(bits) * sqrt(variance > 1e-12 ? variance : 1e-12) / (double)(1 << bits));
}

static const double ridge = 1e-4; /* of the mean diagonal of C_q */

struct making;

struct band_bases {
    int refs;
    int32_t n_units, n_kv_heads, head_dim, band, rank, bits;
    int32_t n_made;        /* units [0, n_made) are there */
    struct making *making; /* NULL once all are */
    size_t bytes, unit; /* unit: floats of one (layer, KV group) */
    float *data; /* [n_layers][n_kv_heads][unit]: mu[d] analysis[r][d] synthesis[d][d] step[r] lambda[d] */
};

static int rotates(const struct rotation *r)
{
    for (int32_t i = 0; i < r->n_pairs; i++) {
        if (r->freq[i] != 0.0) return 1;
    }
    return 0;
}

int32_t sr_band_of(const struct rotation *r, int32_t kv_len)
{
    return rotates(r) ? (kv_len - 1) / SR_BAND_TOKENS : 0;
}

int32_t sr_band_left(const struct rotation *r, int32_t kv_len)
{
    return rotates(r) ? SR_BAND_TOKENS - (kv_len - 1) % SR_BAND_TOKENS : INT32_MAX;
}

/* Scratch of one thread, in doubles. */
struct workspace {
    double *mq, *mk, *mean_k, *mu, *cq, *ck, *half, *inv, *tmp, *values, *work;
    lapack_int *iwork;
};

struct making {
    struct basis_spec spec;
    struct band_bases *out;
    struct rotation_means at_q, at_k;
    struct workspace *work; /* [n_threads] */
    size_t bytes;           /* of the block that all of these lie in */
    void *block;
    int32_t first;          /* unit of the first task */
    atomic_int bad;         /* 1 + a unit whose moments or eigenvalues are not finite, or 0 */
};

/* ---- linear algebra on symmetric d x d matrices (rows and columns may be exchanged) ---- */

static void multiply(double *c, const double *a, CBLAS_TRANSPOSE ta, const double *b, int d)
{
    cblas_dgemm(CblasRowMajor, ta, CblasNoTrans, d, d, d, 1.0, a, d, b, d, 0.0, c, d);
}

static lapack_int work_len(int32_t d)
{
    return 1 + 6 * d + 2 * d * d;
}
static lapack_int iwork_len(int32_t d)
{
    return 3 + 5 * d;
}

/* a := eigenvectors, one per row; w := eigenvalues, rising. */
static int eigen(double *a, double *values, const struct workspace *w, int32_t d)
{
    return LAPACKE_dsyevd_work(LAPACK_COL_MAJOR, 'V', 'U', d, a, d, values, w->work, work_len(d), w->iwork,
                               iwork_len(d)) != 0;
}

/* cq := C_q^(1/2) in half and C_q^(-1/2) in inv; cq is destroyed. */
static int square_roots(const struct workspace *w, int32_t d)
{
    double mean = 0.0;
    for (int32_t i = 0; i < d; i++) mean += w->cq[i * d + i] / d;
    double floor_value =
        ridge * mean > 1e-20 ? ridge * mean : 1e-20; /* queries that are all 0 still give a basis */
    for (int32_t i = 0; i < d; i++) w->cq[i * d + i] += floor_value;
    if (eigen(w->cq, w->values, w, d)) return -1;
    for (int pass = 0; pass < 2; pass++) {
        for (int32_t i = 0; i < d; i++) {
            double v = w->values[i] > floor_value ? w->values[i] : floor_value,
                   f = pass ? 1.0 / sqrt(v) : sqrt(v);
            for (int32_t j = 0; j < d; j++) w->tmp[i * d + j] = w->cq[i * d + j] * f;
        }
        multiply(pass ? w->inv : w->half, w->cq, CblasTrans, w->tmp, d);
    }
    return 0;
}

/* ---- one basis ---- */

/* mu and C_k = E[R M_k R'] - mu mu' */
static void key_covariance(const struct making *m, const struct workspace *w, int32_t d)
{
    sr_rotation_mean_vector(m->spec.rotation, &m->at_k, w->mean_k, w->mu);
    sr_rotation_mean_matrix(m->spec.rotation, &m->at_k, w->mk, w->ck);
    for (int32_t i = 0; i < d; i++) {
        for (int32_t j = 0; j < d; j++) w->ck[i * d + j] -= w->mu[i] * w->mu[j];
    }
}

/* LAPACK's vectors rise and may have either sign: they are turned round so that the largest element is
 * positive, since a basis should not depend on how the library was built more than it must. */
static double sign_of(const double *v, int32_t d)
{
    int32_t top = 0;
    for (int32_t i = 1; i < d; i++) top = fabs(v[i]) > fabs(v[top]) * (1 + 1e-9) ? i : top;
    return v[top] < 0 ? -1.0 : 1.0;
}

static void write_basis(const struct making *m, const struct workspace *w, float *unit)
{
    int32_t d = m->spec.shape.head_dim, r = m->spec.rank;
    float *mu = unit, *analysis = mu + d, *synthesis = analysis + r * d, *step = synthesis + d * d,
          *lambda = step + r;
    for (int32_t i = 0; i < d; i++) mu[i] = (float)w->mu[i];
    /* tmp = U' C_q^(1/2), ck = U' C_q^(-1/2); row d - 1 - j belongs to the j-th largest eigenvalue */
    double *vectors = w->mk;
    multiply(w->tmp, vectors, CblasNoTrans, w->half, d);
    multiply(w->ck, vectors, CblasNoTrans, w->inv, d);
    for (int32_t j = 0; j < d; j++) {
        int32_t row = d - 1 - j;
        double sign = sign_of(vectors + row * d, d), v = w->values[row] > 0 ? w->values[row] : 0;
        for (int32_t i = 0; i < d; i++) synthesis[j * d + i] = (float)(sign * w->ck[row * d + i]);
        for (int32_t i = 0; j < r && i < d; i++) analysis[j * d + i] = (float)(sign * w->tmp[row * d + i]);
        if (j < r) step[j] = step_of(&m->spec, j, v);
        lambda[j] = (float)v;
    }
}

static int make_one(struct making *m, const struct workspace *w, int32_t layer, int32_t group, float *unit)
{
    int32_t d = m->spec.shape.head_dim;
    sr_moments_get(m->spec.moments, layer, group, w->mq, w->mk, w->mean_k);
    double check = 0.0;
    for (int32_t i = 0; i < d * d; i++) check += fabs(w->mq[i]) + fabs(w->mk[i]);
    if (!isfinite(check)) return -1;
    sr_rotation_mean_matrix(m->spec.rotation, &m->at_q, w->mq, w->cq);
    key_covariance(m, w, d);
    if (square_roots(w, d)) return -1;
    multiply(w->tmp, w->half, CblasNoTrans, w->ck, d);
    multiply(w->mk, w->tmp, CblasNoTrans, w->half, d);
    for (int32_t i = 0; i < d; i++) { /* rounding made it slightly unsymmetric */
        for (int32_t j = 0; j < i; j++)
            w->mk[i * d + j] = w->mk[j * d + i] = (w->mk[i * d + j] + w->mk[j * d + i]) / 2;
    }
    if (eigen(w->mk, w->values, w, d)) return -1;
    write_basis(m, w, unit);
    return 0;
}

static void make_task(void *ctx, int32_t task, int32_t thread)
{
    struct making *m = ctx;
    int32_t n_kv = m->out->n_kv_heads, unit = m->first + task;
    if (make_one(m, &m->work[thread], unit / n_kv, unit % n_kv, m->out->data + (size_t)unit * m->out->unit)) {
        int none = 0;
        atomic_compare_exchange_strong(&m->bad, &none, 1 + unit);
    }
}

/* ---- all bases of a band ---- */

static void layout(struct arena *a, struct making *m, int32_t d, int n_threads)
{
    size_t pairs = (size_t)d / 2, dd = (size_t)d * (size_t)d;
    struct rotation_means *means[2] = {&m->at_q, &m->at_k};
    for (int i = 0; i < 2; i++) {
        means[i]->diff = sr_arena_take(a, pairs * pairs * 2, sizeof(double));
        means[i]->sum = sr_arena_take(a, pairs * pairs * 2, sizeof(double));
        means[i]->each = sr_arena_take(a, pairs * 2, sizeof(double));
    }
    m->work = sr_arena_take(a, (size_t)n_threads, sizeof *m->work);
    for (int t = 0; t < n_threads; t++) {
        struct workspace w;
        double **square[] = {&w.mq, &w.mk, &w.cq, &w.ck, &w.half, &w.inv, &w.tmp};
        for (size_t i = 0; i < sizeof square / sizeof square[0]; i++)
            *square[i] = sr_arena_take(a, dd, sizeof(double));
        w.mean_k = sr_arena_take(a, (size_t)d, sizeof(double));
        w.mu = sr_arena_take(a, (size_t)d, sizeof(double));
        w.values = sr_arena_take(a, (size_t)d, sizeof(double));
        w.work = sr_arena_take(a, (size_t)work_len(d), sizeof(double));
        w.iwork = sr_arena_take(a, (size_t)iwork_len(d), sizeof(lapack_int));
        if (m->work) m->work[t] = w;
    }
}

static void making_free(struct making *m)
{
    if (!m) return;
    sr_free(m->block);
    sr_free(m);
}

static sr_status making_new(struct making **out, const struct basis_spec *spec, int n_threads, sr_error *err)
{
    int64_t now = (int64_t)spec->band * SR_BAND_TOKENS + SR_BAND_TOKENS / 2;
    struct making *m = sr_alloc_zero(1, sizeof *m);
    if (!m) return sr_fail_memory(err, sizeof *m, "sketch basis");
    m->spec = *spec;
    struct arena a = {NULL, 0};
    layout(&a, m, spec->shape.head_dim, n_threads);
    m->bytes = a.used;
    m->block = sr_alloc(m->bytes);
    if (!m->block) {
        sr_status st = sr_fail_memory(err, m->bytes, "sketch basis");
        sr_free(m);
        return st;
    }
    a = (struct arena){m->block, 0};
    layout(&a, m, spec->shape.head_dim, n_threads);
    sr_rotation_means(spec->rotation, now - SR_BAND_TOKENS, now + SR_BAND_TOKENS, &m->at_q);
    sr_rotation_means(spec->rotation, 0, now + SR_BAND_TOKENS / 2 - 1, &m->at_k);
    *out = m;
    return SR_OK;
}

sr_status sr_bases_begin(struct band_bases **out, const struct basis_spec *s, const struct pool *pool, sr_error *err)
{
    size_t d = (size_t)s->shape.head_dim, r = (size_t)s->rank, unit = d + r * d + d * d + r + d;
    struct band_bases *b = sr_alloc_zero(1, sizeof *b);
    if (!b) return sr_fail_memory(err, sizeof *b, "sketch basis");
    *b = (struct band_bases){.refs = 1,
                             .n_units = s->shape.n_layers * s->shape.n_kv_heads,
                             .n_kv_heads = s->shape.n_kv_heads,
                             .head_dim = s->shape.head_dim,
                             .band = s->band,
                             .rank = s->rank,
                             .bits = s->bits,
                             .unit = unit};
    sr_blas_single_thread();
    b->bytes = (size_t)b->n_units * unit * sizeof(float);
    b->data = sr_alloc(b->bytes);
    sr_status st = b->data ? SR_OK : sr_fail_memory(err, b->bytes, "sketch basis");
    if (st == SR_OK) st = making_new(&b->making, s, pool ? sr_pool_threads(pool) : 1, err);
    if (st != SR_OK) {
        sr_bases_unref(b);
        return st;
    }
    b->making->out = b;
    *out = b;
    return SR_OK;
}

int32_t sr_bases_left(const struct band_bases *b)
{
    return b->n_units - b->n_made;
}

sr_status sr_bases_make(struct band_bases *b, int32_t n, struct pool *pool, sr_error *err)
{
    struct making *m = b->making;
    if (n > sr_bases_left(b)) n = sr_bases_left(b);
    if (n < 1) return SR_OK;
    m->first = b->n_made;
    atomic_store(&m->bad, 0);
    sr_pool_run(pool, n, make_task, m);
    int bad = atomic_load(&m->bad) - 1;
    if (bad >= 0) {
        return sr_fail(err, SR_ERR_NUMERIC, "sketch basis: layer %d, KV group %d: moments of queries and keys are not finite",
                       bad / b->n_kv_heads, bad % b->n_kv_heads);
    }
    b->n_made += n;
    if (sr_bases_left(b) > 0) return SR_OK;
    making_free(m);
    b->making = NULL;
    return SR_OK;
}

sr_status sr_bases_new(struct band_bases **out, const struct basis_spec *spec, struct pool *pool,
                       sr_error *err)
{
    struct band_bases *b;
    SR_TRY(sr_bases_begin(&b, spec, pool, err));
    sr_status st = sr_bases_make(b, b->n_units, pool, err);
    if (st == SR_OK)
        *out = b;
    else
        sr_bases_unref(b);
    return st;
}

struct band_bases *sr_bases_ref(struct band_bases *b)
{
    b->refs++;
    return b;
}

void sr_bases_unref(struct band_bases *b)
{
    if (!b || --b->refs > 0) return;
    making_free(b->making);
    sr_free(b->data);
    sr_free(b);
}

int sr_bases_refs(const struct band_bases *b)
{
    return b->refs;
}

int sr_bases_match(const struct band_bases *b, int32_t band, int32_t rank, int32_t bits)
{
    return b->band == band && b->rank == rank && b->bits == bits;
}

void sr_bases_get(const struct band_bases *b, int32_t layer, int32_t kv_head, struct sketch_basis *out)
{
    size_t d = (size_t)b->head_dim, r = (size_t)b->rank;
    const float *p = b->data + ((size_t)layer * (size_t)b->n_kv_heads + (size_t)kv_head) * b->unit;
    out->mu = p;
    out->analysis = p + d;
    out->synthesis = out->analysis + r * d;
    out->step = out->synthesis + d * d;
    out->lambda = out->step + r;
}

size_t sr_bases_bytes(const struct band_bases *b)
{
    return b->bytes + (b->making ? b->making->bytes : 0);
}

const float *sr_bases_data(const struct band_bases *b)
{
    return b->data;
}

size_t sr_bases_unit(const struct band_bases *b)
{
    return b->unit;
}
