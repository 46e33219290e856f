/* SPDX-License-Identifier: Apache-2.0
 *
 * inspect: what a model file says about itself, and what running it takes. Or, with --make-random, makes a
 * synthetic one.
 */
#include "commands.h"
#include "diag.h"
#include "interrupt.h"
#include "progress.h"
#include "setup.h"
#include "summary.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { KEY = 256, TYPE = 64, VALUE = 512, MOST_CONTEXTS = 24 };

/* The model was opened for computing, not only to be looked at. */
static int can_run(const sr_model_info *info)
{
    return info->n_threads > 0;
}

/* 4K, 8K, ... and the trained length last. */
static int context_lengths(int32_t trained, int32_t *out)
{
    int n = 0;
    for (int64_t c = 4096; c < trained && n < MOST_CONTEXTS - 1; c *= 2) out[n++] = (int32_t)c;
    out[n++] = trained;
    return n;
}

static sr_status need_of(const struct options *o, const sr_model *m, int32_t n_ctx, sr_memory_need *need,
                         sr_error *err)
{
    sr_session_options s;
    sr_status st = sr_setup_session(&s, o, err);
    if (st) return st;
    s.n_ctx = n_ctx;
    return sr_model_memory_need(m, &s, need, err);
}

/* ---- text
 * ------------------------------------------------------------------------------------------------------- */

static void print_info(const sr_model_info *i, uint64_t kv_bytes)
{
    char bytes[24], params[24];
    printf("file           %s, %d part%s\n", sr_bytes_text(bytes, sizeof bytes, (double)i->file_bytes),
           i->n_parts, i->n_parts == 1 ? "" : "s");
    printf("name           %s\n", *i->name ? i->name : "(none)");
    printf("architecture   %s\n", i->architecture);
    snprintf(params, sizeof params, "%.4g %c",
             i->n_params >= 1000000000 ? (double)i->n_params / 1e9 : (double)i->n_params / 1e6,
             i->n_params >= 1000000000 ? 'B' : 'M');
    printf("parameters     %s, mostly %s\n", params, i->type_name);
    printf("layers         %d, width %d, feed-forward %d\n", i->n_layers, i->n_embd, i->n_ff);
    if (i->n_experts)
        printf("experts        %d of %d per token, feed-forward %d each\n", i->n_experts_used, i->n_experts, i->n_ff);
    printf("heads          %d of %d, %d KV heads\n", i->n_heads, i->head_dim, i->n_kv_heads);
    printf("vocabulary     %d, %s\n", i->n_vocab, i->tokenizer);
    printf("chat template  %s\n", i->chat_template);
    printf("context        %d tokens trained, rope base %.10g\n", i->n_ctx_train, i->rope_base);
    if (kv_bytes) printf("K/V in f16     %" PRIu64 " bytes per token\n", kv_bytes);
    printf("moments file   %s\n", i->has_moments ? "yes" : "no");
}

static sr_status print_metadata(const sr_model *m)
{
    char key[KEY], type[TYPE], value[VALUE];
    printf("\nmetadata\n");
    for (int64_t i = 0; i < sr_model_n_metadata(m); i++) {
        sr_status st = sr_model_metadata(m, i, key, sizeof key, type, sizeof type, value, sizeof value);
        if (st) return st;
        printf("  %s %s = %s\n", type, key, value);
    }
    return SR_OK;
}

static sr_status print_tensors(const sr_model *m, int32_t n)
{
    printf("\ntensors\n");
    for (int32_t i = 0; i < n; i++) {
        sr_tensor_info t;
        char shape[96] = "";
        sr_status st = sr_model_tensor(m, i, &t);
        if (st) return st;
        for (int32_t d = 0, at = 0; d < t.n_dims && d < 4; d++)
            at += snprintf(shape + at, sizeof shape - (size_t)at, "%s%" PRId64, d ? " x " : "", t.ne[d]);
        printf("  %-28s %-7s %-20s %12" PRIu64 " bytes at %" PRIu64 ", part %d\n", t.name, t.type, shape,
               t.bytes, t.file_offset, t.part);
    }
    return SR_OK;
}

static sr_status print_memory(const struct options *o, const sr_model *m, const sr_model_info *info,
                              sr_error *err)
{
    int32_t lengths[MOST_CONTEXTS];
    int n = context_lengths(info->n_ctx_train, lengths);
    if (!can_run(info)) return SR_OK;
    printf("\nmemory, K %s and V %s\n", o->type_k.n ? o->type_k.v[0] : "f16",
           o->type_v.n ? o->type_v.v[0] : "f16");
    printf("  %10s %10s %10s %10s %10s %10s\n", "context", "weights", "K/V", "sketch", "scratch", "total");
    for (int i = 0; i < n; i++) {
        sr_memory_need need;
        char b[5][24];
        sr_status st = need_of(o, m, lengths[i], &need, err);
        if (st) return st;
        const uint64_t v[5] = {need.weights, need.kv, need.sketch, need.scratch, need.total};
        for (int k = 0; k < 5; k++) sr_bytes_text(b[k], sizeof b[k], (double)v[k]);
        printf("  %10d %10s %10s %10s %10s %10s\n", lengths[i], b[0], b[1], b[2], b[3], b[4]);
    }
    return SR_OK;
}

/* ---- json
 * ------------------------------------------------------------------------------------------------------- */

static json_t *info_json(const sr_model_info *i, uint64_t kv_bytes)
{
    return json_pack("{s:s,s:s,s:s,s:s,s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:f,s:I,s:I,s:i,s:i,s:b,s:i,s:i,s:I}",
                     "architecture", i->architecture, "name", i->name, "tokenizer", i->tokenizer,
                     "chat_template", i->chat_template, "type", i->type_name, "n_layers", i->n_layers,
                     "n_embd", i->n_embd, "n_heads", i->n_heads, "n_kv_heads", i->n_kv_heads, "head_dim",
                     i->head_dim, "n_ff", i->n_ff, "n_vocab", i->n_vocab, "n_ctx_train", i->n_ctx_train,
                     "rope_base", i->rope_base, "n_params", (json_int_t)i->n_params, "file_bytes",
                     (json_int_t)i->file_bytes, "n_parts", i->n_parts, "n_tensors", i->n_tensors,
                     "moments_file", i->has_moments, "n_experts", i->n_experts, "n_experts_used",
                     i->n_experts_used, "kv_bytes_per_token", (json_int_t)kv_bytes);
}

static json_t *metadata_json(const sr_model *m)
{
    char key[KEY], type[TYPE], value[VALUE];
    json_t *list = json_array();
    for (int64_t i = 0; i < sr_model_n_metadata(m); i++)
        if (sr_model_metadata(m, i, key, sizeof key, type, sizeof type, value, sizeof value) == SR_OK)
            json_array_append_new(list, json_pack("{s:s,s:s,s:s}", "key", key, "type", type, "value", value));
    return list;
}

static json_t *tensors_json(const sr_model *m, int32_t n)
{
    json_t *list = json_array();
    for (int32_t i = 0; i < n; i++) {
        sr_tensor_info t;
        if (sr_model_tensor(m, i, &t) != SR_OK) continue;
        json_t *shape = json_array();
        for (int32_t d = 0; d < t.n_dims && d < 4; d++)
            json_array_append_new(shape, json_integer((json_int_t)t.ne[d]));
        json_array_append_new(list, json_pack("{s:s,s:s,s:o,s:I,s:I,s:i}", "name", t.name, "type", t.type,
                                              "shape", shape, "bytes", (json_int_t)t.bytes, "offset",
                                              (json_int_t)t.file_offset, "part", t.part));
    }
    return list;
}

static json_t *memory_json(const struct options *o, const sr_model *m, const sr_model_info *info,
                           sr_error *err)
{
    int32_t lengths[MOST_CONTEXTS];
    int n = can_run(info) ? context_lengths(info->n_ctx_train, lengths) : 0;
    json_t *list = json_array();
    for (int i = 0; i < n; i++) {
        sr_memory_need v;
        if (need_of(o, m, lengths[i], &v, err)) {
            json_decref(list);
            return NULL;
        }
        json_array_append_new(list, json_pack("{s:i,s:I,s:I,s:I,s:I,s:I}", "context", lengths[i], "weights",
                                              (json_int_t)v.weights, "kv", (json_int_t)v.kv, "sketch",
                                              (json_int_t)v.sketch, "scratch", (json_int_t)v.scratch, "total",
                                              (json_int_t)v.total));
    }
    return list;
}

static sr_status print_json(const struct options *o, const sr_model *m, const sr_model_info *info,
                            sr_error *err)
{
    json_t *memory = memory_json(o, m, info, err), *j = info_json(info, sr_model_kv_bytes(m, SR_DTYPE_F16, SR_DTYPE_F16));
    if (!memory || !j) {
        json_decref(j);
        json_decref(memory);
        return memory ? sr_refuse(err, SR_ERR_FORMAT, "the model's names are not UTF-8") : err->status;
    }
    json_object_set_new(j, "metadata", metadata_json(m));
    if (o->tensors) json_object_set_new(j, "tensors", tensors_json(m, info->n_tensors));
    json_object_set_new(j, "memory", memory);
    json_dumpf(j, stdout, JSON_INDENT(1));
    putchar('\n');
    json_decref(j);
    return SR_OK;
}

/* ---- synthetic models
 * ------------------------------------------------------------------------------------------- */

static int make_random(const struct options *o, sr_error *err)
{
    sr_random_options r = sr_random_options_default();
    if (strcmp(o->make_random, "list") == 0) {
        for (int32_t i = 0; sr_model_random_name(i); i++) printf("%s\n", sr_model_random_name(i));
        return SR_OK;
    }
    int known = 0;
    for (int32_t i = 0; sr_model_random_name(i); i++)
        known |= strcasecmp(sr_model_random_name(i), o->make_random) == 0;
    char name[48];
    if (!known)
        return sr_refuse(err, SR_ERR_USAGE, "--make-random: \"%s\" is not known; --make-random list has the names",
                         sr_visible(name, sizeof name, o->make_random));
    if (!o->output) return sr_refuse(err, SR_ERR_USAGE, "-o: missing; give the file for --make-random");
    if (o->make_type) r.type = o->make_type;
    if (o->seed >= 0) r.seed = (uint64_t)o->seed;
    r.progress = sr_progress_show;
    sr_status st = sr_model_make_random(o->output, o->make_random, &r, err);
    sr_progress_clear();
    if (st && sr_interrupt_pending()) return 128 + sr_interrupt_pending();
    return st;
}

static sr_status check_format(const struct options *o, sr_error *err)
{
    char name[48];
    if (!o->output || strcmp(o->output, "text") == 0 || strcmp(o->output, "json") == 0) return SR_OK;
    return sr_refuse(err, SR_ERR_USAGE, "-o: \"%s\": must be one of: text json",
                     sr_visible(name, sizeof name, o->output));
}

int sr_cmd_inspect(const struct options *o, sr_error *err)
{
    sr_model *m;
    sr_model_info info;
    if (o->make_random) return make_random(o, err);
    sr_status st = check_format(o, err);
    if (!st) st = sr_setup_check_model(o, 0, err);
    if (!st) st = sr_setup_model(&m, o, 0, 0, err);
    if (st) return st;
    sr_model_get_info(m, &info);
    if (o->check) sr_note("every tensor was read: no NaN, no infinity");
    if (o->output && strcmp(o->output, "json") == 0) {
        st = print_json(o, m, &info, err);
    } else {
        print_info(&info, sr_model_kv_bytes(m, SR_DTYPE_F16, SR_DTYPE_F16));
        st = print_metadata(m);
        if (!st && o->tensors) st = print_tensors(m, info.n_tensors);
        if (!st)
            st = print_memory(o, m, &info, err);
        else
            sr_refuse(err, st, "metadata could not be read");
    }
    sr_model_close(m);
    return st;
}
