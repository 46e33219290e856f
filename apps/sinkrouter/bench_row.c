/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows of bench.
 */
#include "bench_row.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static json_t *number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *share(double a, double b)
{
    return b > 0 ? json_real(a / b) : json_null();
}

/* "model name" of the first processor; "" where the system does not say. */
static const char *cpu_name(void)
{
    static char name[128];
    char line[256];
    FILE *f = *name ? NULL : fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
        break;
    }
    if (f) fclose(f);
    return name;
}

static void put(json_t *j, const char *key, json_t *value)
{
    json_object_set_new(j, key, value ? value : json_null());
}

/* "cuda, NAME, compute capability 9.0": the name. "" for the CPU. */
static json_t *gpu_name(const char *backend)
{
    const char *name = strncmp(backend, "cuda, ", 6) == 0 ? backend + 6 : "", *end = strstr(name, ", compute");
    return json_stringn(name, end ? (size_t)(end - name) : strlen(name));
}

void sr_bench_put_build(json_t *j, const char *backend)
{
    put(j, "build_commit", json_string(sr_version()));
    put(j, "build_number", json_integer(0));
    put(j, "cpu_info", json_string(cpu_name()));
    put(j, "gpu_info", gpu_name(backend));
}

void sr_bench_put_time(json_t *j)
{
    char when[32];
    time_t now = time(NULL);
    struct tm utc;
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    put(j, "test_time", json_string(when));
}

static void put_machine(json_t *j, const struct bench_test *t)
{
    char type[96];
    snprintf(type, sizeof type, "%s %s", t->model->architecture, t->model->type_name);
    sr_bench_put_build(j, t->model->backend);
    put(j, "backends", json_string(t->model->backend));
    put(j, "model_filename", json_string(t->model->path));
    put(j, "model_type", json_string(type));
    put(j, "model_size", json_integer((json_int_t)t->model->file_bytes));
    put(j, "model_n_params", json_integer((json_int_t)t->model->n_params));
    put(j, "weights", json_string(t->model->is_synthetic ? "random" : "file"));
    put(j, "n_batch", json_integer(t->n_batch));
    put(j, "n_ubatch", json_integer(t->n_ubatch));
    put(j, "n_threads", json_integer(t->model->n_threads));
    put(j, "cpu_mask", json_string("0x0"));
    put(j, "cpu_strict", json_false());
    put(j, "poll", json_integer(0));
    put(j, "type_k", json_string(t->type_k));
    put(j, "type_v", json_string(t->type_v));
    const int is_gpu = strncmp(t->model->backend, "cuda", 4) == 0;
    put(j, "n_gpu_layers", json_integer(t->model->n_gpu_layers));
    put(j, "split_mode", json_string("none"));
    put(j, "main_gpu", json_integer(0));
    put(j, "no_kv_offload", json_false());
    put(j, "flash_attn", json_string(t->flash));
    put(j, "devices", json_string(is_gpu ? "CUDA" : "none"));
    put(j, "tensor_split", json_string("0.00"));
    put(j, "tensor_buft_overrides", json_string("none"));
    put(j, "use_mmap", json_boolean(t->model->is_mapped));
    put(j, "embeddings", json_false());
}

/* Mean and sample standard deviation of samples_ns, and of the rates they give. */
static void put_times(json_t *j, const struct bench_test *t)
{
    double n = (double)t->n_samples, tokens = (double)(t->n_prompt + t->n_gen * t->n_parallel), ns = 0, ts = 0, ns2 = 0,
           ts2 = 0;
    json_t *all_ns = json_array(), *all_ts = json_array();
    for (int64_t i = 0; i < t->n_samples; i++) {
        double x = (double)t->samples_ns[i], rate = 1e9 * tokens / x;
        ns += x / n;
        ts += rate / n;
        json_array_append_new(all_ns, json_integer((json_int_t)t->samples_ns[i]));
        json_array_append_new(all_ts, json_real(rate));
    }
    for (int64_t i = 0; i < t->n_samples; i++) {
        double x = (double)t->samples_ns[i], rate = 1e9 * tokens / x;
        ns2 += (x - ns) * (x - ns);
        ts2 += (rate - ts) * (rate - ts);
    }
    put(j, "avg_ns", json_integer((json_int_t)ns));
    put(j, "stddev_ns", json_integer(n > 1 ? (json_int_t)sqrt(ns2 / (n - 1)) : 0));
    put(j, "avg_ts", json_real(ts));
    put(j, "stddev_ts", json_real(n > 1 ? sqrt(ts2 / (n - 1)) : 0));
    put(j, "max_step_ns", t->n_gen ? json_integer((json_int_t)t->max_step_ns) : NULL);
    put(j, "samples_ns", all_ns);
    put(j, "samples_ts", all_ts);
}

static void put_routing(json_t *j, const struct bench_test *t)
{
    const sr_route_stats *s = t->stats;
    int is_mass = t->route.mode == SR_ROUTE_MASS;
    put(j, "route", s ? json_string(sr_route_mode_name(t->route.mode)) : json_string("exact"));
    put(j, "route_keep", s && is_mass && t->route.keep > 0 ? number(round((double)t->route.keep * 1e6) / 1e6) : NULL);
    put(j, "read", s ? share((double)s->kv_bytes, (double)s->dense_bytes) : NULL);
    put(j, "kv_bytes_per_token", s ? share((double)s->kv_bytes, (double)s->steps) : NULL);
    put(j, "audit_bytes_per_token", s ? share((double)s->audit_bytes, (double)s->steps) : NULL);
    put(j, "route_eps", s && is_mass ? number(round((double)t->route.eps * 1e6) / 1e6) : NULL);
    put(j, "route_rank",
        s && is_mass ? json_integer(t->route.rank ? t->route.rank : t->model->sketch_rank) : NULL);
    put(j, "route_audit", s ? number(round((double)t->route.audit * 1e6) / 1e6) : NULL);
    if (!t->compared) return;
    put(j, "kl", number(t->compared->kl));
    put(j, "ppl_ratio", number(t->compared->ppl_ratio));
    put(j, "top1", number(t->compared->top1));
    put(j, "contract_broken", share((double)t->compared->route.broken, (double)t->compared->route.cases));
}

json_t *sr_bench_row(const struct bench_test *t)
{
    json_t *j = json_object();
    put_machine(j, t);
    put(j, "n_prompt", json_integer(t->n_prompt));
    put(j, "n_gen", json_integer(t->n_gen));
    put(j, "n_depth", json_integer(t->n_depth));
    put(j, "fill", json_string(t->is_random ? "random" : "prefill"));
    put(j, "n_parallel", json_integer(t->n_parallel));
    sr_bench_put_time(j);
    put_times(j, t);
    put_routing(j, t);
    put(j, "ratio", NULL);
    return j;
}

void sr_bench_ratios(json_t *rows, size_t first)
{
    double dense = NAN;
    for (size_t i = first; i < json_array_size(rows); i++) {
        json_t *row = json_array_get(rows, i);
        if (strcmp(json_string_value(json_object_get(row, "route")), "dense") == 0)
            dense = sr_field(row, "avg_ts");
    }
    for (size_t i = first; i < json_array_size(rows); i++) {
        json_t *row = json_array_get(rows, i);
        put(row, "ratio", number(sr_field(row, "avg_ts") / dense));
    }
}

/* ---- Markdown
 * ----------------------------------------------------------------------------------------------------- */

static const char *text_of(const json_t *row, const char *key)
{
    const char *s = json_string_value(json_object_get(row, key));
    return s ? s : "";
}

static void cell_model(char *dst, size_t n, const json_t *row)
{
    const char *path = text_of(row, "model_filename"), *base = strrchr(path, '/');
    snprintf(dst, n, "%.40s%s", base ? base + 1 : path, strcmp(text_of(row, "weights"), "random") ? "" : ", random");
}

static void cell_types(char *dst, size_t n, const json_t *row)
{
    snprintf(dst, n, "%s/%s", text_of(row, "type_k"), text_of(row, "type_v"));
}

static void cell_test(char *dst, size_t n, const json_t *row)
{
    double p = sr_field(row, "n_prompt"), g = sr_field(row, "n_gen"), d = sr_field(row, "n_depth");
    char depth[40] = "";
    if (sr_field(row, "n_parallel") > 1) snprintf(depth, sizeof depth, " x%.0f", sr_field(row, "n_parallel"));
    const char *fill = json_string_value(json_object_get(row, "fill"));
    if (d > 0)
        snprintf(depth + strlen(depth), sizeof depth - strlen(depth), " @ d%.0f%s", d, fill && *fill == 'r' ? " random" : "");
    if (p > 0 && g > 0)
        snprintf(dst, n, "pp%.0f+tg%.0f%s", p, g, depth);
    else
        snprintf(dst, n, "%s%.0f%s", p > 0 ? "pp" : "tg", p > 0 ? p : g, depth);
}

static void cell_speed(char *dst, size_t n, const json_t *row)
{
    snprintf(dst, n, "%.2f ± %.2f", sr_field(row, "avg_ts"), sr_field(row, "stddev_ts"));
}

void sr_bench_route_cell(char *dst, size_t n, const json_t *row)
{
    const double keep = sr_field(row, "route_keep");
    const int used = snprintf(dst, n, "%s", text_of(row, "route"));
    if (keep == keep) snprintf(dst + used, n - (size_t)used, " %g %% random", 100 * keep);
}

TABLE_CELL(cell_threads, "n_threads", "%.0f", 1)
TABLE_CELL(cell_ubatch, "n_ubatch", "%.0f", 1)
TABLE_CELL(cell_bytes, "kv_bytes_per_token", "%.2f MB", 1e-6)
TABLE_CELL(cell_read, "read", "%.3f", 1)
TABLE_CELL(cell_ratio, "ratio", "%.2f", 1)
TABLE_CELL(cell_kl, "kl", "%.4f", 1)
TABLE_CELL(cell_broken, "contract_broken", "%.2f %%", 100)

const struct column sr_bench_columns[] = {
    {"model", 0, cell_model},   {"threads", 1, cell_threads}, {"K/V", 0, cell_types},
    {"ubatch", 1, cell_ubatch}, {"test", 1, cell_test},       {"route", 0, sr_bench_route_cell},
    {"t/s", 1, cell_speed},     {"x dense", 1, cell_ratio},   {"KV read/token", 1, cell_bytes},
    {"read", 1, cell_read},     {"KL", 1, cell_kl},           {"> 2 eps", 1, cell_broken}};
const int sr_bench_n_columns = (int)(sizeof sr_bench_columns / sizeof sr_bench_columns[0]);
