/* SPDX-License-Identifier: Apache-2.0
 *
 * calibrate: runs a few thousand tokens of any text through the model and writes the moments of its queries
 * and keys, which the mass router then takes instead of those of each session's own first tokens.
 */
#include "calibrate_paper.h"
#include "commands.h"
#include "diag.h"
#include "interrupt.h"
#include "progress.h"
#include "setup.h"
#include "text_source.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char DEFAULT_TEXT[] = "/usr/share/common-licenses/GPL-3";
enum { DEFAULT_TOKENS = 4096, LEAST_TOKENS = 2048, OUTPUT_BYTES = 4200 };

/* Adds at most `most` tokens of a text. */
static sr_status add_text(const struct options *o, const sr_model *m, const char *path, int32_t most, int32_t **ids,
                          int32_t *n, sr_error *err)
{
    struct text t;
    int32_t *own = NULL, n_own = 0;
    sr_status st = sr_text_read(&t, "-f", path, err);
    if (st) return st;
    size_t from = sr_text_offset(t.data, t.bytes, o->offset);
    st = sr_tokenize(m, t.data + from, t.bytes - from, *n ? 0 : sr_setup_bos(o), 0, &own, &n_own, err);
    sr_text_free(&t);
    if (st) return st;
    if (n_own > most) n_own = most;
    size_t bytes = ((size_t)*n + (size_t)n_own) * sizeof **ids;
    int32_t *all = realloc(*ids, bytes + 1);
    if (!all) st = sr_refuse(err, SR_ERR_RESOURCE, "-f: %zu bytes of memory for tokens are not there", bytes);
    if (!st) {
        memcpy(all + *n, own, (size_t)n_own * sizeof *own);
        *ids = all;
        *n += n_own;
    }
    sr_tokens_free(own);
    return st;
}

/* The texts of -f, an equal share of `most` tokens of each; the caller frees *ids. */
static sr_status read_ids(const struct options *o, const sr_model *m, int32_t most, int32_t **ids, int32_t *n,
                          sr_error *err)
{
    sr_status st = SR_OK;
    if (!o->texts.n && access(DEFAULT_TEXT, R_OK) != 0)
        return sr_refuse(err, SR_ERR_USAGE, "-f: missing, and %s is not on this machine", DEFAULT_TEXT);
    if (!o->texts.n) return add_text(o, m, DEFAULT_TEXT, most, ids, n, err);
    for (int i = 0; i < o->texts.n && !st; i++) st = add_text(o, m, o->texts.v[i], most / o->texts.n, ids, n, err);
    return st;
}

static sr_status collect(sr_session *s, const int32_t *ids, int32_t n, const char *to, sr_error *err)
{
    int32_t done = 0;
    sr_status st = sr_session_moments_all(s, err);
    if (!st) st = sr_session_prefill(s, ids, n, sr_progress_show, NULL, &done, err);
    sr_progress_clear();
    if (st || done < n) return st;
    return sr_session_moments_save(s, to, err);
}

static int calibrate_threshold(const struct options *o, sr_model *m, sr_error *err)
{
    int32_t *ids = NULL, n = 0;
    sr_status st = read_ids(o, m, INT32_MAX, &ids, &n, err);
    if (!st) st = sr_calibrate_paper(o, m, ids, n, err);
    free(ids);
    return st ? (int)st : sr_interrupt_pending() ? 128 + sr_interrupt_pending() : 0;
}

static sr_status output_name(char to[OUTPUT_BYTES], const struct options *o, sr_error *err)
{
    const char *end = o->output ? "" : o->paper ? ".tau.json" : ".moments";
    if (snprintf(to, OUTPUT_BYTES, "%s%s", o->output ? o->output : o->models.v[0], end) < OUTPUT_BYTES) return SR_OK;
    return sr_refuse(err, SR_ERR_USAGE, "-o: longer than %d bytes", OUTPUT_BYTES - 1);
}

static int calibrate(const struct options *o, sr_model *m, sr_error *err)
{
    char to[OUTPUT_BYTES], shown[120];
    int32_t *ids = NULL, n = 0;
    sr_session *s = NULL;
    sr_session_options so;
    sr_model_info info;
    sr_model_get_info(m, &info);
    int32_t most = o->n_ctx ? (int32_t)o->n_ctx : DEFAULT_TOKENS;
    if (most > info.n_ctx_train) most = info.n_ctx_train;
    sr_status st = output_name(to, o, err);
    if (!st) st = read_ids(o, m, most, &ids, &n, err);
    if (!st) st = sr_setup_session(&so, o, err);
    if (!st && n < LEAST_TOKENS)
        st = sr_refuse(err, SR_ERR_USAGE, "%s: %d tokens to calibrate on, at least %d are needed",
                       most < LEAST_TOKENS ? "-c" : "-f", n, LEAST_TOKENS);
    if (!st) {
        so.n_ctx = n;
        st = sr_session_new(&s, m, &so, err);
    }
    if (!st) st = collect(s, ids, n, to, err);
    if (!st && !sr_interrupt_pending())
        sr_note("moments of %d tokens written to %s", n, sr_visible(shown, sizeof shown, to));
    sr_session_free(s);
    free(ids);
    return st ? (int)st : sr_interrupt_pending() ? 128 + sr_interrupt_pending() : 0;
}

/* Before the work, not after it: the folder takes a file, and moments find a name that a rename may take. */
static sr_status check_output(const struct options *o, sr_error *err)
{
    char to[OUTPUT_BYTES], shown[120];
    struct stat is;
    sr_status st = output_name(to, o, err);
    if (st) return st;
    const int exists = lstat(to, &is) == 0;
    if (exists && o->paper && !S_ISDIR(is.st_mode)) return SR_OK; /* written where it is */
    if (exists && !S_ISREG(is.st_mode) && !S_ISDIR(is.st_mode))
        return sr_refuse(err, SR_ERR_IO, "-o %s: not a regular file", sr_visible(shown, sizeof shown, to));
    return sr_setup_check_output("-o", to, err);
}

int sr_cmd_calibrate(const struct options *o, sr_error *err)
{
    sr_model *m;
    sr_status st = sr_setup_check_model(o, 0, err);
    const char *alone = o->lengths.n ? "--lengths" : o->skip >= 0 ? "--skip" : o->n_predict >= 0 ? "-n" : NULL;
    if (!st && alone && !o->paper) st = sr_refuse(err, SR_ERR_USAGE, "%s: only with --paper", alone);
    if (!st) st = check_output(o, err);
    struct options own = *o; /* the file being made is not read */
    own.moments = "none";
    if (own.skip < 0) own.skip = 0.6;
    if (!st) st = sr_setup_model(&m, &own, 0, 0, err);
    if (st) return st;
    int rc = o->paper ? calibrate_threshold(&own, m, err) : calibrate(o, m, err);
    sr_model_close(m);
    return rc;
}
