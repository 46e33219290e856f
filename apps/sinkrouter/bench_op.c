/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows of bench --op: for each number of threads, shape, K/V types and length one probe, and a row for each way of routing.
 */
#include "bench_op.h"
#include "bench_row.h"
#include "diag.h"
#include "interrupt.h"
#include "progress.h"
#include "setup.h"

#include "sinkrouter/measure.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct shape {
    int32_t n_heads, n_kv_heads, head_dim;
};

struct op_bench {
    const struct options *o;
    struct shape shapes[LIST_MAX];
    int32_t n_shapes;
    sr_probe_options at; /* settings of the loops around it */
    double *samples;     /* [o->repetitions] */
    json_t *rows;
};

/* ---- one row ---- */

static json_t *rate(double bytes, double ns) { return ns > 0 ? json_real(bytes / ns) : json_null(); }

static void put_shape(json_t *j, const struct op_bench *b, const sr_probe *p, const sr_probe_result *r)
{
    json_object_set_new(j, "backends", json_string(sr_probe_backend(p)));
    json_object_set_new(j, "n_threads", json_integer(r->n_threads));
    json_object_set_new(j, "op", json_string("attention"));
    json_object_set_new(j, "n_heads", json_integer(b->at.n_heads));
    json_object_set_new(j, "n_kv_heads", json_integer(b->at.n_kv_heads));
    json_object_set_new(j, "head_dim", json_integer(b->at.head_dim));
    json_object_set_new(j, "type_k", json_string(sr_dtype_name(b->at.k_type)));
    json_object_set_new(j, "type_v", json_string(sr_dtype_name(b->at.v_type)));
    json_object_set_new(j, "n_depth", json_integer(b->at.len));
    json_object_set_new(j, "fill", json_string("random"));
    json_object_set_new(j, "n_layers", json_integer(r->n_layers));
}

static void put_result(json_t *j, const struct op_bench *b, const sr_probe_result *r)
{
    json_t *all = json_array();
    for (int64_t i = 0; i < b->o->repetitions; i++) json_array_append_new(all, json_real(b->samples[i]));
    json_object_set_new(j, "layer_ns", json_real(r->ns));
    json_object_set_new(j, "samples_ns", all);
    json_object_set_new(j, "bytes", json_integer((json_int_t)r->bytes));
    json_object_set_new(j, "sketch_bytes", json_integer((json_int_t)r->sketch_bytes));
    json_object_set_new(j, "single_bytes", json_integer((json_int_t)r->single_bytes));
    json_object_set_new(j, "dense_bytes", json_integer((json_int_t)r->dense_bytes));
    json_object_set_new(j, "read", rate((double)r->bytes, (double)r->dense_bytes));
    json_object_set_new(j, "gbs", rate((double)r->bytes, r->ns));
    json_object_set_new(j, "read_gbs", r->read_gbs > 0 ? json_real(r->read_gbs) : json_null());
    json_object_set_new(j, "gather_gbs", r->gather_gbs > 0 ? json_real(r->gather_gbs) : json_null());
    json_object_set_new(j, "limit_ns", json_real(r->limit_ns));
    json_object_set_new(j, "limit_share", rate(r->limit_ns, r->ns));
}

/* keep below 0: the router chooses. */
static sr_status one_row(struct op_bench *b, sr_probe *p, const char *mode, double keep, int32_t skipped, sr_error *err)
{
    sr_route_options route;
    sr_probe_result r;
    struct options o = *b->o;
    if (!o.tau.n && !o.tau_file) o.tau.n = 1; /* paper's threshold is the probe's */
    sr_status st = sr_setup_route(&route, &o, mode, err);
    if (b->o->audit < 0) route.audit = 0;
    route.keep = keep < 0 ? 0 : sr_setup_keep(keep);
    if (!st) st = sr_probe_run(p, &route, skipped, (int32_t)b->o->repetitions, b->samples, &r, err);
    if (st) return st;
    json_t *j = json_object();
    sr_bench_put_build(j, sr_probe_backend(p));
    put_shape(j, b, p, &r);
    json_object_set_new(j, "route", json_string(mode));
    json_object_set_new(j, "route_keep", keep < 0 ? json_null() : json_real(keep));
    json_object_set_new(j, "groups_skipped", route.mode == SR_ROUTE_PAPER ? json_integer(skipped) : json_null());
    sr_bench_put_time(j);
    put_result(j, b, &r);
    json_array_append_new(b->rows, j);
    return SR_OK;
}

/* ---- loops ---- */

static sr_status run_routes(struct op_bench *b, sr_probe *p, sr_error *err)
{
    const struct options *o = b->o;
    sr_status st = SR_OK;
    for (int32_t i = 0; i < o->route.n; i++) {
        const char *mode = o->route.v[i];
        const int is_mass = strcmp(mode, "mass") == 0, is_paper = strcmp(mode, "paper") == 0;
        const int32_t n = is_mass && o->keep.n ? o->keep.n : is_paper && o->skip_groups.n ? o->skip_groups.n : 1;
        for (int32_t k = 0; k < n && !st && !sr_interrupt_pending(); k++) {
            const int64_t skipped = o->skip_groups.n ? o->skip_groups.v[k] : b->at.n_kv_heads / 2;
            if (is_paper && skipped > b->at.n_kv_heads) continue; /* of a shape that has so many */
            st = one_row(b, p, mode, is_mass && o->keep.n ? o->keep.v[k] : -1, is_paper ? (int32_t)skipped : 0, err);
        }
    }
    return st;
}

static sr_status run_length(struct op_bench *b, int64_t len, sr_error *err)
{
    sr_probe *p;
    char stage[64];
    b->at.len = (int32_t)len;
    snprintf(stage, sizeof stage, "%d/%d d%d, %d", b->at.n_heads, b->at.n_kv_heads, b->at.head_dim, b->at.len);
    sr_progress_show(NULL, stage, 0);
    sr_status st = sr_probe_new(&p, &b->at, err);
    if (!st) {
        st = run_routes(b, p, err);
        sr_probe_free(p);
    }
    sr_progress_clear();
    return st;
}

/* K and V of one type where only one of them was named. */
static sr_status run_types(struct op_bench *b, sr_error *err)
{
    const struct options *o = b->o;
    const struct text_list *k = o->type_k.n ? &o->type_k : &o->type_v, *v = o->type_v.n ? &o->type_v : &o->type_k;
    const int is_pair = !o->type_k.n || !o->type_v.n;
    sr_status st = SR_OK;
    for (int32_t i = 0; i < k->n && !st; i++)
        for (int32_t j = is_pair ? i : 0; j < (is_pair ? i + 1 : v->n) && !st; j++) {
            st = sr_setup_dtype(&b->at.k_type, k->v[i], err);
            if (!st) st = sr_setup_dtype(&b->at.v_type, v->v[j], err);
            for (int32_t d = 0; d < o->depth.n && !st && !sr_interrupt_pending(); d++) st = run_length(b, o->depth.v[d], err);
        }
    return st;
}

static sr_status run_all(struct op_bench *b, sr_error *err)
{
    sr_status st = SR_OK;
    for (int32_t t = 0; t < b->o->threads.n; t++)
        for (int32_t i = 0; i < b->n_shapes && !st && !sr_interrupt_pending(); i++) {
            b->at = (sr_probe_options){.device = b->o->gpu_layers == 0 ? "none" : b->o->device,
                                       .n_threads = (int)b->o->threads.v[t], .n_heads = b->shapes[i].n_heads,
                                       .n_kv_heads = b->shapes[i].n_kv_heads, .head_dim = b->shapes[i].head_dim,
                                       .bytes = (uint64_t)b->o->op_bytes << 20};
            st = run_types(b, err);
        }
    return st;
}

/* ---- Markdown ---- */

static void cell_heads(char *dst, size_t n, const json_t *row)
{
    snprintf(dst, n, "%.0f/%.0f", sr_field(row, "n_heads"), sr_field(row, "n_kv_heads"));
}

static void cell_types(char *dst, size_t n, const json_t *row)
{
    snprintf(dst, n, "%s/%s", json_string_value(json_object_get(row, "type_k")), json_string_value(json_object_get(row, "type_v")));
}

static void cell_backend(char *dst, size_t n, const json_t *row)
{
    snprintf(dst, n, "%s", json_string_value(json_object_get(row, "backends")));
}

static void cell_route(char *dst, size_t n, const json_t *row)
{
    const double skipped = sr_field(row, "groups_skipped");
    sr_bench_route_cell(dst, n, row);
    const size_t used = strlen(dst);
    if (skipped == skipped) snprintf(dst + used, n - used, " -%.0f/%.0f", skipped, sr_field(row, "n_kv_heads"));
}

TABLE_CELL(cell_dim, "head_dim", "%.0f", 1)
TABLE_CELL(cell_depth, "n_depth", "%.0f random", 1)
TABLE_CELL(cell_us, "layer_ns", "%.1f", 1e-3)
TABLE_CELL(cell_bytes, "bytes", "%.3f", 1e-6)
TABLE_CELL(cell_gbs, "gbs", "%.1f", 1)
TABLE_CELL(cell_read, "read_gbs", "%.1f", 1)
TABLE_CELL(cell_gather, "gather_gbs", "%.1f", 1)
TABLE_CELL(cell_limit, "limit_ns", "%.1f", 1e-3)
TABLE_CELL(cell_share, "limit_share", "%.2f", 1)

static const struct column columns[] = {
    {"device", 0, cell_backend}, {"heads", 1, cell_heads},   {"d", 1, cell_dim},          {"K/V", 0, cell_types},
    {"rows", 1, cell_depth},     {"route", 0, cell_route},   {"us/layer", 1, cell_us},    {"MB", 1, cell_bytes},
    {"GB/s", 1, cell_gbs},       {"plain read", 1, cell_read}, {"single rows", 1, cell_gather}, {"limit us", 1, cell_limit},
    {"of limit", 1, cell_share}};

static void print(const struct op_bench *b)
{
    const int n = (int)(sizeof columns / sizeof columns[0]);
    sr_table_print(stdout, sr_table_format(b->o->output, TABLE_MD), b->rows, columns, n);
    if (b->o->output_err) sr_table_print(stderr, sr_table_format(b->o->output_err, TABLE_MD), b->rows, columns, n);
}

/* ---- set-up ---- */

sr_status sr_bench_op_check(const struct options *o, sr_error *err)
{
    const struct {
        const char *name;
        int given;
    } model[] = {{"-m", o->models.n},        {"-f", o->file != NULL},  {"-p", o->n_prompt.n},   {"-n", o->n_gen.n},
                 {"-pg", o->prompt_gen.n},   {"-npl", o->parallel.n},  {"--fill", o->fill != NULL}, {"--profile", o->profile}},
      op[] = {{"--heads", o->heads != NULL}, {"--head-dim", o->head_dim.n}, {"--skip-groups", o->skip_groups.n},
              {"--op-size", o->op_bytes != 0}};
    for (size_t i = 0; o->op && i < sizeof model / sizeof model[0]; i++)
        if (model[i].given) return sr_refuse(err, SR_ERR_USAGE, "%s: not with --op, which runs no model", model[i].name);
    for (int32_t i = 0; o->op && i < o->depth.n; i++)
        if (o->depth.v[i] < 1) return sr_refuse(err, SR_ERR_USAGE, "-d %lld: --op wants at least one row", (long long)o->depth.v[i]);
    for (size_t i = 0; !o->op && i < sizeof op / sizeof op[0]; i++)
        if (op[i].given) return sr_refuse(err, SR_ERR_USAGE, "%s: only with --op", op[i].name);
    if (!o->op && o->keep.n > 1) return sr_refuse(err, SR_ERR_USAGE, "--route-keep: more than one value only with --op");
    if (o->head_dim.n && !o->heads) return sr_refuse(err, SR_ERR_USAGE, "--head-dim: only with --heads");
    return SR_OK;
}

/* "32/8,9/3": the i-th with the i-th head size, or the last there is. */
static sr_status read_shapes(struct op_bench *b, sr_error *err)
{
    const struct options *o = b->o;
    static const struct shape usual[] = {{32, 8, 128}, {9, 3, 64}, {14, 2, 64}, {32, 32, 128}};
    char shown[64];
    int used;
    if (!o->heads) {
        memcpy(b->shapes, usual, sizeof usual);
        b->n_shapes = sizeof usual / sizeof usual[0];
        return SR_OK;
    }
    for (const char *s = o->heads;; s++) {
        struct shape *x = &b->shapes[b->n_shapes];
        const int32_t n_dims = o->head_dim.n, i = b->n_shapes;
        if (i == LIST_MAX || sscanf(s, "%4d/%4d%n", &x->n_heads, &x->n_kv_heads, &used) != 2 ||
            (s[used] && s[used] != ',') || x->n_heads < 1 || x->n_kv_heads < 1)
            return sr_refuse(err, SR_ERR_USAGE, "--heads %s: want query heads / KV heads, as 32/8,9/3",
                             sr_visible(shown, sizeof shown, o->heads));
        if (x->n_heads % x->n_kv_heads)
            return sr_refuse(err, SR_ERR_USAGE, "--heads %d/%d: want a multiple of the KV heads as query heads", x->n_heads, x->n_kv_heads);
        x->head_dim = n_dims ? (int32_t)o->head_dim.v[i < n_dims ? i : n_dims - 1] : 128;
        b->n_shapes++;
        s += used;
        if (!*s) return SR_OK;
    }
}

/* Each number of --skip-groups is for shapes that have so many KV heads; one that is for none is a slip. */
static sr_status check_skipped(const struct op_bench *b, sr_error *err)
{
    const struct int_list *skipped = &b->o->skip_groups;
    int32_t most = 0;
    for (int32_t i = 0; i < b->n_shapes; i++)
        if (b->shapes[i].n_kv_heads > most) most = b->shapes[i].n_kv_heads;
    for (int32_t i = 0; i < skipped->n; i++)
        if (skipped->v[i] > most)
            return sr_refuse(err, SR_ERR_USAGE, "--skip-groups %lld: the shapes have at most %d KV heads", (long long)skipped->v[i], most);
    return SR_OK;
}

static void fill_lists(struct options *o)
{
    static const int64_t lengths[] = {4096, 32768, 131072};
    if (!o->depth.n) {
        o->depth.n = 3;
        memcpy(o->depth.v, lengths, sizeof lengths);
    }
    if (!o->threads.n) o->threads.n = 1;
    if (!o->type_k.n && !o->type_v.n) {
        o->type_k.n = 1;
        o->type_k.v[0] = "f16";
    }
    if (!o->route.n) {
        o->route.v[o->route.n++] = "dense";
        if (o->keep.n) o->route.v[o->route.n++] = "mass";
        if (o->skip_groups.n) o->route.v[o->route.n++] = "paper";
    }
}

int sr_bench_op(const struct options *given, sr_error *err)
{
    struct options o = *given;
    struct op_bench b = {.o = &o};
    fill_lists(&o);
    sr_status st = read_shapes(&b, err);
    if (!st) st = check_skipped(&b, err);
    if (st) return st;
    sr_setup_note_unused(&o);
    b.samples = calloc((size_t)o.repetitions, sizeof *b.samples);
    if (!b.samples) return sr_refuse(err, SR_ERR_RESOURCE, "-r %lld: no memory", (long long)o.repetitions);
    b.rows = json_array();
    st = run_all(&b, err);
    if (!st || json_array_size(b.rows)) print(&b);
    json_decref(b.rows);
    free(b.samples);
    return st ? (int)st : sr_interrupt_pending() ? 128 + sr_interrupt_pending() : 0;
}
