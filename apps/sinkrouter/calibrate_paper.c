/* SPDX-License-Identifier: Apache-2.0
 *
 * See calibrate_paper.h. At each length some tokens are decoded densely, and every (layer, KV group) from layer 2 on gives
 * its mean cosine with the first key. The threshold of a length is the cosine that a share `skip` of them is above; a
 * cubic in length / scale goes through the thresholds. The same tokens decoded by `mass` show how well the router's
 * own estimate finds the label (mean share of the first row above .65), beside the cosine.
 */
#include "calibrate_paper.h"
#include "compare.h"
#include "detector.h"
#include "diag.h"
#include "interrupt.h"
#include "progress.h"
#include "setup.h"
#include "table.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DENSE_LAYERS = 2, LEAST_LENGTHS = 4, LEAST_LENGTH = 16, DEFAULT_SAMPLES = 50 };

struct sweep {
    const struct options *o;
    sr_session *session;
    const int32_t *ids;
    int32_t n_samples, n_lengths;
    int32_t length[LIST_MAX];
    double tau[LIST_MAX];
    struct detector dense[LIST_MAX]; /* of dense decoding, layers from DENSE_LAYERS on */
    struct detector routed[LIST_MAX];
    double c[4];
};

/* ---- the cubic ---- */

int sr_fit_cubic(const double *x, const double *y, int32_t n, double c[4])
{
    double a[4][5] = {{0}};
    for (int32_t i = 0; i < n; i++) {
        double p[4] = {1, x[i], x[i] * x[i], x[i] * x[i] * x[i]};
        for (int r = 0; r < 4; r++) {
            for (int k = 0; k < 4; k++) a[r][k] += p[r] * p[k];
            a[r][4] += p[r] * y[i];
        }
    }
    for (int r = 0; r < 4; r++) { /* Gauss, the largest pivot of the column */
        int top = r;
        for (int k = r + 1; k < 4; k++) top = fabs(a[k][r]) > fabs(a[top][r]) ? k : top;
        if (fabs(a[top][r]) < 1e-12) return -1;
        for (int k = 0; k < 5; k++) {
            double t = a[r][k];
            a[r][k] = a[top][k];
            a[top][k] = t;
        }
        for (int k = r + 1; k < 4; k++) {
            double f = a[k][r] / a[r][r];
            for (int j = r; j < 5; j++) a[k][j] -= f * a[r][j];
        }
    }
    for (int r = 3; r >= 0; r--) {
        c[r] = a[r][4];
        for (int k = r + 1; k < 4; k++) c[r] -= a[r][k] * c[k];
        c[r] /= a[r][r];
    }
    return 0;
}

static double cubic(const double c[4], double x)
{
    return c[0] + x * (c[1] + x * (c[2] + x * c[3]));
}

/* ---- measuring ---- */

static int rising(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The cosine that a share `skip` of the decisions is above. */
static double threshold(const struct detector *d, double skip)
{
    float *cosines = malloc((d->n ? d->n : 1) * sizeof *cosines);
    if (!cosines || !d->n) {
        free(cosines);
        return NAN;
    }
    for (size_t i = 0; i < d->n; i++) cosines[i] = d->v[i].cosine;
    qsort(cosines, d->n, sizeof *cosines, rising);
    size_t at = (size_t)((1 - skip) * (double)d->n);
    double tau = (double)cosines[at < d->n ? at : d->n - 1];
    free(cosines);
    return tau;
}

static double share_above(const struct detector *d, double tau)
{
    size_t n = 0;
    for (size_t i = 0; i < d->n; i++) n += (double)d->v[i].cosine > tau;
    return d->n ? (double)n / (double)d->n : NAN;
}

/* The first layers are never skipped: their decisions are no part of the ratio. */
static void drop_first_layers(struct detector *d)
{
    size_t n = 0;
    for (size_t i = 0; i < d->n; i++)
        if (d->v[i].layer >= DENSE_LAYERS) d->v[n++] = d->v[i];
    d->n = n;
}

static sr_status decode_samples(struct sweep *s, sr_route_mode mode, int32_t at, struct detector *d, sr_error *err)
{
    sr_route_options ro = sr_route_options_default();
    ro.mode = mode;
    sr_status st = sr_session_route_set(s->session, &ro, err);
    if (st) return st;
    sr_session_watch(s->session, sr_detector_watch, d);
    for (int32_t i = 0; i < s->n_samples && !st && !sr_interrupt_pending(); i++)
        st = sr_session_decode(s->session, s->ids[at + i], err);
    sr_session_watch(s->session, NULL, NULL);
    drop_first_layers(d);
    if (!st && d->is_short) st = sr_refuse(err, SR_ERR_RESOURCE, "no memory for %zu decisions", d->n);
    return st ? st : sr_session_truncate(s->session, at, err);
}

static sr_status measure_length(struct sweep *s, int32_t i, sr_error *err)
{
    int32_t done = 0, at = s->length[i], held = sr_session_len(s->session);
    sr_status st = sr_session_prefill(s->session, s->ids + held, at - held, sr_progress_show, NULL, &done, err);
    sr_progress_clear();
    if (!st) st = decode_samples(s, SR_ROUTE_DENSE, at, &s->dense[i], err);
    if (!st && at >= sr_route_options_default().min_len) st = decode_samples(s, SR_ROUTE_MASS, at, &s->routed[i], err);
    s->tau[i] = threshold(&s->dense[i], s->o->skip);
    return st;
}

/* ---- lengths ---- */

/* --lengths, or eighths of the longest context that text and model allow. */
static sr_status choose_lengths(struct sweep *s, int32_t trained, int32_t n_ids, sr_error *err)
{
    static const int32_t eighths[] = {1, 2, 3, 4, 6, 8};
    int32_t most = (trained < n_ids ? trained : n_ids) - s->n_samples;
    const struct int_list *given = &s->o->lengths;
    s->n_lengths = given->n ? given->n : 6;
    if (!given->n && most < 8 * LEAST_LENGTH)
        return sr_refuse(err, SR_ERR_USAGE, "-f has %d tokens, the model was trained on %d: %d samples need %d of both, or --lengths",
                         n_ids, trained, s->n_samples, 8 * LEAST_LENGTH + s->n_samples);
    for (int32_t i = 0; i < s->n_lengths; i++) {
        int64_t length = given->n ? given->v[i] : (int64_t)most * eighths[i] / 8;
        if (length > most)
            return sr_refuse(err, SR_ERR_USAGE, "--lengths %lld: with %d samples at most %d (-f has %d tokens, trained on %d)",
                             (long long)length, s->n_samples, most, n_ids, trained);
        if (length < LEAST_LENGTH || (i && length <= s->length[i - 1]))
            return sr_refuse(err, SR_ERR_USAGE, "--lengths %lld: want rising lengths from %d on", (long long)length, LEAST_LENGTH);
        s->length[i] = (int32_t)length;
    }
    if (s->n_lengths < LEAST_LENGTHS)
        return sr_refuse(err, SR_ERR_USAGE, "--lengths: %d given, a cubic needs at least %d", s->n_lengths, LEAST_LENGTHS);
    return SR_OK;
}

/* ---- what was found ---- */

static json_t *number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *length_row(const struct sweep *s, int32_t i)
{
    json_t *j = json_object();
    double fitted = cubic(s->c, (double)s->length[i] / s->length[s->n_lengths - 1]);
    json_object_set_new(j, "length", json_integer(s->length[i]));
    json_object_set_new(j, "tau", number(s->tau[i]));
    json_object_set_new(j, "fitted", number(fitted));
    json_object_set_new(j, "skip", number(share_above(&s->dense[i], fitted)));
    json_object_set_new(j, "sink_rate", number(sr_detector_rate(&s->dense[i])));
    json_object_set_new(j, "auprc_cosine", number(sr_detector_auprc(&s->dense[i], SCORE_COSINE)));
    json_object_set_new(j, "auprc_estimate", number(sr_detector_auprc(&s->routed[i], SCORE_ESTIMATE)));
    return j;
}

TABLE_CELL(cell_length, "length", "%.0f", 1)
TABLE_CELL(cell_tau, "tau", "%.4f", 1)
TABLE_CELL(cell_fitted, "fitted", "%.4f", 1)
TABLE_CELL(cell_skip, "skip", "%.3f", 1)
TABLE_CELL(cell_rate, "sink_rate", "%.3f", 1)
TABLE_CELL(cell_cosine, "auprc_cosine", "%.3f", 1)
TABLE_CELL(cell_estimate, "auprc_estimate", "%.3f", 1)

static void show(const json_t *rows)
{
    static const struct column columns[] = {{"length", 1, cell_length},          {"tau", 1, cell_tau},
                                            {"tau of the cubic", 1, cell_fitted}, {"skipped by it", 1, cell_skip},
                                            {"a_0 > .65", 1, cell_rate},         {"AUPRC, cosine", 1, cell_cosine},
                                            {"AUPRC, estimate", 1, cell_estimate}};
    sr_table_print(stdout, TABLE_MD, rows, columns, (int)(sizeof columns / sizeof columns[0]));
}

static sr_status write_result(const struct sweep *s, const char *model, sr_error *err)
{
    json_t *j = json_object(), *tau = json_array(), *rows = json_array();
    char to[4200], shown[120];
    for (int i = 0; i < 4; i++) json_array_append_new(tau, json_real(s->c[i]));
    json_object_set_new(j, "tau", tau);
    json_object_set_new(j, "scale", json_integer(s->length[s->n_lengths - 1]));
    json_object_set_new(j, "min_len", json_integer(s->length[0]));
    json_object_set_new(j, "max_len", json_integer(s->length[s->n_lengths - 1]));
    json_object_set_new(j, "skip", json_real(s->o->skip));
    json_object_set_new(j, "samples", json_integer(s->n_samples));
    for (int32_t i = 0; i < s->n_lengths; i++) json_array_append_new(rows, length_row(s, i));
    json_object_set_new(j, "lengths", rows);
    sr_status st = SR_OK;
    snprintf(to, sizeof to, "%s%s", s->o->output ? s->o->output : model, s->o->output ? "" : ".tau.json");
    sr_visible(shown, sizeof shown, to);
    if (json_dump_file(j, to, JSON_INDENT(1) | JSON_REAL_PRECISION(9)))
        st = sr_refuse(err, SR_ERR_IO, "-o %s: %s", shown, strerror(errno));
    if (!st) {
        show(rows);
        sr_note("threshold for %.0f %% skipped written to %s (--route-tau-file)", 100 * s->o->skip, shown);
    }
    json_decref(j);
    return st;
}

sr_status sr_calibrate_paper(const struct options *o, sr_model *m, const int32_t *ids, int32_t n, sr_error *err)
{
    struct sweep s = {.o = o, .ids = ids, .n_samples = o->n_predict > 0 ? (int32_t)o->n_predict : DEFAULT_SAMPLES};
    double x[LIST_MAX];
    sr_model_info info;
    sr_session_options so;
    sr_model_get_info(m, &info);
    sr_status st = choose_lengths(&s, info.n_ctx_train, n, err);
    if (!st) st = sr_setup_session(&so, o, err);
    if (!st) {
        so.n_ctx = s.length[s.n_lengths - 1] + s.n_samples;
        st = sr_session_new(&s.session, m, &so, err);
    }
    for (int32_t i = 0; i < s.n_lengths && !st && !sr_interrupt_pending(); i++) {
        st = measure_length(&s, i, err);
        x[i] = (double)s.length[i] / s.length[s.n_lengths - 1];
    }
    if (!st && !sr_interrupt_pending()) {
        if (sr_fit_cubic(x, s.tau, s.n_lengths, s.c))
            st = sr_refuse(err, SR_ERR_NUMERIC, "the thresholds of %d lengths determine no cubic", s.n_lengths);
        else
            st = write_result(&s, info.path, err);
    }
    for (int32_t i = 0; i < s.n_lengths; i++) {
        sr_detector_free(&s.dense[i]);
        sr_detector_free(&s.routed[i]);
    }
    sr_session_free(s.session);
    return st;
}
