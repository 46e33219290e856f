/* SPDX-License-Identifier: Apache-2.0
 *
 * --stats FILE: what the summary says and all counters behind it, as JSON.
 */
#include "diag.h"
#include "summary.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static json_t *number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

/* A float option as it was typed. */
static json_t *setting(float v)
{
    return json_real(round((double)v * 1e6) / 1e6);
}

static json_t *share(double part, double whole)
{
    return whole > 0 ? json_real(part / whole) : json_null();
}

static void put_count(json_t *j, const char *key, double v)
{
    json_object_set_new(j, key, json_integer((json_int_t)v));
}

static json_t *route_settings(const sr_route_options *r)
{
    json_t *j = json_object();
    json_object_set_new(j, "mode", json_string(sr_route_mode_name(r->mode)));
    json_object_set_new(j, "eps", setting(r->eps));
    json_object_set_new(j, "delta", setting(r->delta));
    json_object_set_new(j, "breaker", json_boolean(r->breaker));
    json_object_set_new(j, "look", json_boolean(r->look));
    json_object_set_new(j, "trail", json_boolean(r->trail));
    put_count(j, "window", r->window);
    put_count(j, "sinks", r->n_sinks);
    put_count(j, "min", r->min_len);
    put_count(j, "rank", r->rank);
    put_count(j, "bits", r->bits);
    json_object_set_new(j, "audit", setting(r->audit));
    put_count(j, "seed", (double)r->seed);
    json_object_set_new(j, "keep", r->keep > 0 ? setting(r->keep) : json_null()); /* keys drawn at random */
    json_object_set_new(j, "tau",
                        r->tau_set ? json_pack("[f,f,f,f]", r->tau[0], r->tau[1], r->tau[2], r->tau[3])
                                   : json_null());
    return j;
}

static json_t *routing(const sr_route_stats *r)
{
    const struct {
        const char *key;
        double value;
    } counts[] = {{"steps", (double)r->steps},
                  {"units", (double)r->units},
                  {"units_all", (double)r->units_all},
                  {"units_near", (double)r->units_near},
                  {"units_list", (double)r->units_list},
                  {"units_none", (double)r->units_none},
                  {"k_rows", (double)r->k_rows},
                  {"v_rows", (double)r->v_rows},
                  {"sketch_rows", (double)r->sketch_rows},
                  {"kv_bytes", (double)r->kv_bytes},
                  {"sketch_bytes", (double)r->sketch_bytes},
                  {"dense_bytes", (double)r->dense_bytes},
                  {"audit_bytes", (double)r->audit_bytes},
                  {"again_bytes", (double)r->again_bytes},
                  {"audits", (double)r->audits},
                  {"cases", (double)r->cases},
                  {"above_eps", (double)r->above_eps},
                  {"contract_broken", (double)r->broken},
                  {"sketch_clipped", (double)r->clipped},
                  {"sketch_values", (double)r->encoded},
                  {"units_open", (double)r->units_open},
                  {"breaker_unread", (double)r->breaker_opened[SR_BREAK_UNREAD]},
                  {"breaker_lost", (double)r->breaker_opened[SR_BREAK_LOST]},
                  {"breaker_numeric", (double)r->breaker_opened[SR_BREAK_NUMERIC]},
                  {"breaker_closed", (double)r->breaker_closed},
                  {"far_rows_audited", (double)r->far_rows},
                  {"far_rows_uncorrected", (double)r->far_rows_uncorrected}};
    json_t *j = json_object();
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        put_count(j, counts[i].key, counts[i].value);
    json_object_set_new(j, "read", share((double)r->kv_bytes, (double)r->dense_bytes));
    json_object_set_new(j, "kv_bytes_per_token", share((double)r->kv_bytes, (double)r->steps));
    json_object_set_new(j, "near_only", share((double)(r->units_near + r->units_none), (double)r->units));
    json_object_set_new(j, "unread_mean", share(r->unread_sum, (double)r->cases));
    json_object_set_new(j, "unread_max", r->cases ? number(r->unread_max) : json_null());
    json_object_set_new(j, "estimate_mean", share(r->estimate_sum, (double)r->cases));
    json_object_set_new(j, "output_error_mean", share(r->output_error_sum, (double)r->cases));
    json_object_set_new(j, "output_error_max", r->cases ? number(r->output_error_max) : json_null());
    json_object_set_new(j, "threshold_mean", share(r->threshold_sum, (double)r->thresholds));
    return j;
}

static json_t *thinking_json(const struct answer *a)
{
    json_t *j = json_object();
    put_count(j, "tokens", a->thinking.thinking);
    put_count(j, "answer_tokens", a->thinking.answer);
    put_count(j, "forced_tokens", a->thinking.forced);
    json_object_set_new(j, "ended_by_budget", json_boolean(a->thinking.ended_by_budget));
    json_object_set_new(j, "open", json_boolean(a->thinking.is_open));
    json_object_set_new(j, "reasoning_content", json_stringn(a->reasoning.data ? a->reasoning.data : "", a->reasoning.bytes));
    return j;
}

static json_t *answer_json(const struct answer *a)
{
    const sr_session_stats *s = &a->stats;
    json_t *j = json_object();
    put_count(j, "prompt_tokens", a->prompt_tokens);
    put_count(j, "reused", a->reused);
    put_count(j, "prefilled", a->prefilled);
    put_count(j, "generated", a->generated);
    put_count(j, "decoded", (double)s->decode_tokens);
    json_object_set_new(j, "stop", json_string(sr_stop_name(a->stop)));
    json_object_set_new(j, "prefill_ms", number(s->prefill_ms));
    json_object_set_new(j, "decode_ms", number(s->decode_ms));
    json_object_set_new(j, "prefill_per_second", share(1e3 * (double)s->prefill_tokens, s->prefill_ms));
    json_object_set_new(j, "decode_per_second", share(1e3 * (double)s->decode_tokens, s->decode_ms));
    json_object_set_new(j, "routing", routing(&s->route));
    if (a->thinks) json_object_set_new(j, "thinking", thinking_json(a));
    return j;
}

/* Share of near-only decisions per layer (rows) and KV group; null where none was made. */
static json_t *heat_json(const struct talk *t)
{
    int32_t layers = t->info.n_layers, groups = t->info.n_kv_heads;
    float *heat = malloc((size_t)layers * (size_t)groups * sizeof *heat);
    if (!heat) return json_null();
    sr_session_heat(t->session, heat);
    json_t *rows = json_array();
    for (int32_t l = 0; l < layers; l++) {
        json_t *row = json_array();
        for (int32_t g = 0; g < groups; g++) json_array_append_new(row, number((double)heat[l * groups + g]));
        json_array_append_new(rows, row);
    }
    free(heat);
    return rows;
}

static json_t *model_json(const sr_model_info *m)
{
    json_t *j = json_object();
    json_object_set_new(j, "path", json_string(m->path)); /* null if the path is not UTF-8 */
    if (!json_object_get(j, "path")) json_object_set_new(j, "path", json_null());
    json_object_set_new(j, "architecture", json_string(m->architecture));
    json_object_set_new(j, "type", json_string(m->type_name));
    json_object_set_new(j, "backend", json_string(m->backend));
    put_count(j, "layers", m->n_layers);
    put_count(j, "kv_heads", m->n_kv_heads);
    put_count(j, "threads", m->n_threads);
    json_object_set_new(j, "moments_file", json_boolean(m->has_moments));
    return j;
}

static json_t *all_json(const struct talk *t, const struct answer *answers, int32_t n)
{
    uint64_t kv = 0, sketch = 0;
    json_t *j = json_object(), *list = json_array();
    sr_session_memory(t->session, &kv, &sketch);
    json_object_set_new(j, "version", json_string(sr_version()));
    json_object_set_new(j, "model", model_json(&t->info));
    put_count(j, "context", sr_session_n_ctx(t->session));
    put_count(j, "tokens", sr_session_len(t->session));
    json_object_set_new(j, "seed", json_integer((json_int_t)t->seed));
    json_object_set_new(j, "route", route_settings(&t->route));
    put_count(j, "kv_memory_bytes", (double)kv);
    put_count(j, "sketch_memory_bytes", (double)sketch);
    for (int32_t i = 0; i < n; i++) json_array_append_new(list, answer_json(&answers[i]));
    json_object_set_new(j, "answers", list);
    json_object_set_new(j, "heat", heat_json(t));
    return j;
}

/* The new file is complete on disk before it takes the name. What is no regular file keeps its name and is written as it
 * is: a pipe, a device, a link. */
static sr_status write_file(const char *path, const char *text, sr_error *err)
{
    char temporary[4096], shown[120];
    struct stat is;
    size_t n = strlen(text), at = 0;
    const int directly = lstat(path, &is) == 0 && !S_ISREG(is.st_mode);
    const int bytes = directly ? snprintf(temporary, sizeof temporary, "%s", path)
                               : snprintf(temporary, sizeof temporary, "%s.tmp.%ld", path, (long)getpid());
    int ok = bytes < (int)sizeof temporary;
    if (!ok) errno = ENAMETOOLONG;
    int fd = ok ? open(temporary, O_WRONLY | (directly ? 0 : O_CREAT) | O_TRUNC | O_CLOEXEC, 0666) : -1;
    ok = fd >= 0;
    while (ok && at < n) {
        ssize_t w = write(fd, text + at, n - at);
        if (w < 0 && errno == EINTR) continue;
        ok = w > 0;
        at += ok ? (size_t)w : 0;
    }
    ok = ok && (fsync(fd) == 0 || (directly && errno == EINVAL)); /* nothing to sync */
    if (fd >= 0 && close(fd) != 0) ok = 0;
    ok = ok && (directly || rename(temporary, path) == 0);
    if (ok) return SR_OK;
    int saved = errno;
    if (fd >= 0 && !directly) unlink(temporary);
    return sr_refuse(err, SR_ERR_IO, "--stats %s: %s", sr_visible(shown, sizeof shown, path),
                     strerror(saved));
}

sr_status sr_stats_write(const struct talk *t, const struct answer *answers, int32_t n, sr_error *err)
{
    if (!t->o->stats || !t->session) return SR_OK;
    json_t *j = all_json(t, answers, n);
    char *text = json_dumps(j, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    json_decref(j);
    if (!text) return sr_refuse(err, SR_ERR_RESOURCE, "--stats: no memory for the report");
    size_t len = strlen(text);
    char *with_end = realloc(text, len + 2);
    if (with_end) {
        text = with_end;
        memcpy(text + len, "\n", 2);
    }
    sr_status st = write_file(t->o->stats, text, err);
    free(text);
    return st;
}
