/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening a model: file, numbers, tokenizer, chat template, backend, weights, attention, each checked before the next
 * is touched, and the hash by which session files know their model.
 */
#include "engine/model.h"
#include "engine/placement.h"

#include "base/memory.h"
#include "base/pool.h"
#include "engine/pick_device.h"
#include "engine/random_vocab.h"
#include "formats/settle.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#define XXH_STATIC_LINKING_ONLY /* the state as a plain struct: nothing is allocated */
#include <xxhash.h>

sr_model_options sr_model_options_default(void) { return (sr_model_options){.n_gpu_layers = -1}; }

int sr_device_get(int index, char *line, size_t line_bytes) { return index >= 0 && line && sr_backend_cuda_device(index, line, line_bytes); }

/* ---- facts about the file ---- */

/* Upper case of the type that holds most elements, "mixed" where none holds half of them. */
static void find_type_name(struct sr_model *m)
{
    int64_t count[64] = {0};
    int best = 0;
    m->n_params = 0;
    for (int64_t i = 0; i < sr_gguf_n_tensors(m->file); i++) {
        const struct gguf_tensor *t = sr_gguf_tensor(m->file, i);
        const int64_t n = t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
        m->n_params += n;
        if ((int)t->dtype < 0 || (int)t->dtype >= 64) continue;
        count[t->dtype] += n;
        if (count[t->dtype] > count[best]) best = (int)t->dtype;
    }
    const char *name = sr_dtype_name((sr_dtype)best);
    snprintf(m->type_name, sizeof(m->type_name), "%s", 2 * count[best] < m->n_params || !name ? "mixed" : name);
    if (strcmp(m->type_name, "mixed") != 0)
        for (char *c = m->type_name; *c; c++) *c = (char)toupper((unsigned char)*c);
}

/* Bytes of part `part` that precede its tensor data, found from where its tensors lie in the mapping. */
static size_t header_of(const struct gguf *g, int32_t part, const uint8_t **base)
{
    size_t first = 0;
    *base = NULL;
    for (int64_t i = 0; i < sr_gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = sr_gguf_tensor(g, i);
        if (t->owned || t->part != part || (*base && t->file_offset >= first)) continue;
        first = t->file_offset;
        *base = (const uint8_t *)t->data - t->file_offset;
    }
    return first;
}

/* A folder's values and names come from several files, so they are hashed as read. */
static void hash_values(const struct gguf *g, XXH3_state_t *h)
{
    for (int64_t i = 0; i < sr_gguf_n_values(g); i++) {
        const struct gguf_value *v = sr_gguf_value(g, i);
        const uint8_t *at = NULL;
        uint64_t k = 0;
        struct gguf_str s;
        XXH3_128bits_update(h, v->key.data, v->key.bytes);
        if (v->elem_type != GGUF_STRING)
            for (; k < v->count; k++) {
                const double x = sr_gguf_number(v, k);
                XXH3_128bits_update(h, &x, sizeof(x));
            }
        else
            while (sr_gguf_next_str(v, &at, &k, &s)) XXH3_128bits_update(h, s.data, s.bytes);
    }
}

/* Cheap but sound: a model with the same metadata, shapes and sampled weights is the same model. */
static void hash_identity(struct sr_model *m)
{
    enum { SAMPLE = 4096 };
    XXH3_state_t h;
    XXH3_INITSTATE(&h);
    XXH3_128bits_reset(&h);
    if (sr_gguf_is_folder(m->file)) hash_values(m->file, &h);
    for (int32_t part = 0; part < sr_gguf_n_parts(m->file); part++) {
        const uint8_t *base;
        const size_t bytes = header_of(m->file, part, &base);
        if (base) XXH3_128bits_update(&h, base, bytes);
    }
    for (int64_t i = 0; i < sr_gguf_n_tensors(m->file); i++) {
        const struct gguf_tensor *t = sr_gguf_tensor(m->file, i);
        const size_t whole = t->pieces ? t->bytes / (size_t)t->ne[2] : t->bytes, n = whole < SAMPLE ? whole : SAMPLE;
        if (t->owned) XXH3_128bits_update(&h, &t->dtype, sizeof(t->dtype)); /* not what the header says */
        XXH3_128bits_update(&h, t->data, n);
        const uint8_t *last = sr_gguf_row(t, t->ne[1] * t->ne[2] * t->ne[3] - 1) + sr_row_bytes(t->dtype, t->ne[0]);
        XXH3_128bits_update(&h, last - n, n);
    }
    const XXH128_hash_t d = XXH3_128bits_digest(&h);
    m->identity[0] = d.low64;
    m->identity[1] = d.high64;
}

static void read_names(struct sr_model *m)
{
    struct gguf_str s;
    int found;
    if (sr_gguf_get_str(m->file, "general.architecture", &s, &found, NULL) == SR_OK && found)
        sr_escape(m->architecture, sizeof(m->architecture), s.data, s.bytes);
    if (sr_gguf_get_str(m->file, "general.name", &s, &found, NULL) == SR_OK && found)
        sr_escape(m->name, sizeof(m->name), s.data, s.bytes);
    const size_t n = strlen(SR_SYNTHETIC);
    m->is_synthetic = sr_gguf_get_str(m->file, "general.description", &s, &found, NULL) == SR_OK && found && s.bytes > n &&
                      memcmp(s.data, SR_SYNTHETIC, n) == 0 && ((const char *)s.data)[n] == ':';
}

/* A template that cannot be used is no fault until somebody asks for it. */
static sr_status find_chat_template(struct sr_model *m, sr_error *err)
{
    struct gguf_str s;
    SR_TRY(sr_gguf_get_str(m->file, "tokenizer.chat_template", &s, &m->has_chat, err));
    if (m->has_chat && s.bytes == 0) m->has_chat = 0;
    if (!m->has_chat) return SR_OK;
    const sr_status st = sr_chat_template_open(&m->chat, s.data, s.bytes, NULL);
    return st == SR_ERR_RESOURCE ? sr_fail_memory(err, s.bytes, "chat template") : SR_OK;
}

/* ---- open, in stages ---- */

static sr_status override_rope(struct model_config *c, const sr_rope_options *r, sr_error *err)
{
    static const enum rope_scaling types[] = {[SR_ROPE_SCALING_NONE] = ROPE_SCALING_NONE, [SR_ROPE_SCALING_LINEAR] = ROPE_SCALING_LINEAR,
                                              [SR_ROPE_SCALING_YARN] = ROPE_SCALING_YARN};
    if ((unsigned)r->scaling > SR_ROPE_SCALING_YARN) return sr_fail(err, SR_ERR_USAGE, "rope scaling %d: want 0..3", (int)r->scaling);
    const struct rope_override o = {.has_scaling = r->scaling != SR_ROPE_SCALING_FILE, .scaling = types[r->scaling], .base = r->freq_base,
                                    .factor = r->scale, .original_len = r->original_ctx, .beta_fast = r->beta_fast,
                                    .beta_slow = r->beta_slow, .attn_factor = r->attn_factor, .ext_factor = r->ext_factor,
                                    .has_ext_factor = r->has_ext_factor};
    return sr_config_override_rope(c, &o, err);
}

static sr_status open_text(struct sr_model *m, const sr_model_options *o, sr_error *err)
{
    read_names(m);
    find_type_name(m);
    sr_status st = sr_config_read(&m->config, m->file, o->vocab_only ? NULL : err);
    if (st != SR_OK && !o->vocab_only) return st;
    m->has_config = st == SR_OK;
    if (m->has_config) SR_TRY(override_rope(&m->config, &o->rope, err));
    const int lenient = o->vocab_only && o->metadata_only;
    st = sr_tokenizer_open(&m->tokenizer, m->file, lenient ? NULL : err);
    if (st == SR_OK) st = find_chat_template(m, lenient ? NULL : err);
    return lenient ? SR_OK : st;
}

static int is_overridden(const sr_rope_options *r)
{
    return r->scaling != SR_ROPE_SCALING_FILE || r->scale > 0 || r->freq_base > 0 || r->original_ctx > 0 || r->attn_factor > 0 ||
           r->beta_fast > 0 || r->beta_slow > 0 || r->has_ext_factor;
}

/* The file named, or "<model>.moments" if it is there. */
static sr_status load_moments(struct sr_model *m, const sr_model_options *o, sr_error *err)
{
    char beside[4096];
    const char *path = o->moments_path;
    if (path && !*path) return SR_OK;
    if (!path) {
        size_t bytes = strlen(m->path);
        while (bytes > 1 && m->path[bytes - 1] == '/') bytes--; /* of a folder */
        const int n = snprintf(beside, sizeof(beside), "%.*s.moments", (int)bytes, m->path);
        if (n < 0 || (size_t)n >= sizeof(beside) || access(beside, F_OK) != 0) return SR_OK;
        path = beside;
    }
    const sr_status st = sr_attn_load_moments(m->attention, path, err);
    if (st != SR_ERR_UNSUPPORTED || o->moments_path || !is_overridden(&o->rope)) return st;
    /* a file that lies beside the model is of the model as its file says, and nobody asked for it here */
    sr_log(SR_LOG_WARN, "%s is not used with this rope scaling", path);
    return SR_OK;
}

/* Tensors that must be made before they can be used; their types may be others than the file's. */
static sr_status settle(struct sr_model *m, const sr_model_options *o, sr_error *err)
{
    const struct settle_options s = {.quantize = o->quantize, .progress = o->progress, .user = o->progress_user};
    SR_TRY(sr_gguf_settle(m->file, &s, sr_backend_pool(m->backend), err));
    find_type_name(m);
    return SR_OK;
}

static int wants_copy(const struct sr_model *m, const sr_model_options *o)
{
    if (o->load != SR_LOAD_AUTO) return o->load == SR_LOAD_COPY;
    return !o->quantize && sr_gguf_file_bytes(m->file) <= sr_memory_available() / 4; /* what is quantized is in memory */
}

static sr_status open_backend(struct sr_model *m, const sr_model_options *o, sr_error *err)
{
    int index;
    SR_TRY(sr_device_index(&index, o->device, err));
    return sr_device_open(&m->backend, o->n_gpu_layers ? index : -1, o->n_threads, err);
}

static sr_status open_lower(struct sr_model *m, int32_t n_lower, const sr_model_options *o, sr_error *err)
{
    SR_TRY(sr_backend_cpu_open(&m->lower, o->n_threads, err));
    m->n_lower = n_lower;
    return SR_OK;
}

/* Layers beyond -ngl, or beyond what fits. */
static sr_status place_layers(struct sr_model *m, const sr_model_options *o, sr_error *err)
{
    const sr_session_options plain = sr_session_options_default();
    const int32_t n_layers = m->config.n_layers;
    int32_t n = o->n_gpu_layers;
    if (!m->backend->has_own_memory || n == -1 || n >= n_layers) return SR_OK;
    if (n != SR_GPU_LAYERS_AUTO) return open_lower(m, n_layers - n, o, err);
    sr_session_options probe = o->fit ? *o->fit : plain;
    if (sr_session_options_check(m, &probe, NULL) != SR_OK) return SR_OK; /* no session will be made with them */
    n = sr_placement_fit(m, &probe, m->backend->ops->mem_available(m->backend));
    if (n == n_layers) return SR_OK;
    sr_log(SR_LOG_WARN, "%d of %d layers fit into the GPU's free memory; the rest runs on the CPU (a smaller context leaves room for more)", n, n_layers);
    if (n > 0) return open_lower(m, n_layers - n, o, err);
    sr_backend_close(m->backend);
    m->backend = NULL;
    return sr_backend_cpu_open(&m->backend, o->n_threads, err);
}

static void describe_placement(struct sr_model *m)
{
    const char *text = m->backend->ops->describe(m->backend);
    if (!m->n_lower) snprintf(m->placed, sizeof(m->placed), "%s", text);
    else snprintf(m->placed, sizeof(m->placed), "%s; the first %d of %d layers: %s", text, m->n_lower, m->config.n_layers,
                  m->lower->ops->describe(m->lower));
}

static sr_status open_compute(struct sr_model *m, const sr_model_options *o, sr_error *err)
{
    const struct model_config *c = &m->config;
    SR_TRY(open_backend(m, o, err));
    SR_TRY(settle(m, o, err));
    SR_TRY(place_layers(m, o, err));
    describe_placement(m);
    const struct weights_options w = {.check = o->check, .copy = wants_copy(m, o), .lock = o->mlock, .n_lower = m->n_lower,
                                      .lower = m->lower, .progress = o->progress, .user = o->progress_user};
    SR_TRY(sr_weights_load(&m->weights, m->file, c, m->backend, &w, err));
    hash_identity(m);
    const struct attention_config a = {.n_layers = c->n_layers, .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads,
                                       .head_dim = c->head_dim, .rope = c->rope, .n_lower = m->n_lower, .lower = m->lower};
    SR_TRY(sr_attn_new(&m->attention, m->backend, &a, err));
    return load_moments(m, o, err);
}

sr_status sr_model_open(sr_model **out, const char *path, const sr_model_options *o, sr_error *err)
{
    const sr_model_options defaults = sr_model_options_default();
    if (!out || !path) return sr_fail(err, SR_ERR_USAGE, "sr_model_open: no %s", out ? "path" : "place for the model");
    if (!o) o = &defaults;
    struct sr_model *m = sr_alloc_zero(1, sizeof(*m));
    if (!m) return sr_fail_memory(err, sizeof(*m), "model");
    sr_status st = SR_OK;
    const size_t n = strlen(path) + 1;
    m->path = sr_alloc(n);
    if (!m->path) {
        st = sr_fail_memory(err, n, "model path");
        goto fail;
    }
    memcpy(m->path, path, n);
    sr_mapfile_guard_install(); /* a file that shrinks while it is used must not end the process */
    SR_TRY_GOTO(sr_gguf_open(&m->file, path, err));
    SR_TRY_GOTO(open_text(m, o, err));
    if (!o->vocab_only) SR_TRY_GOTO(open_compute(m, o, err));
    if (sr_mapfile_lost()) {
        st = sr_fail(err, SR_ERR_IO, "%s: the file became shorter while it was read", path);
        goto fail;
    }
    *out = m;
    return SR_OK;
fail:
    sr_model_close(m);
    return st;
}

void sr_model_close(sr_model *m)
{
    if (!m) return;
    sr_attn_free(m->attention);
    if (m->backend) sr_weights_free(&m->weights, m->backend);
    sr_backend_close(m->lower);
    sr_backend_close(m->backend);
    sr_chat_template_close(m->chat);
    sr_tokenizer_close(m->tokenizer);
    sr_gguf_close(m->file);
    sr_free(m->path);
    sr_free(m);
}

/* ---- information ---- */

static const char *chat_name(const struct sr_model *m)
{
    if (!m->has_chat) return "none";
    return m->chat ? sr_chat_template_name(m->chat) : "unknown";
}

/* On an H200 with the shape of Llama-3.1-8B mass is 1.05 to 1.10 times as fast as dense at 32,768 tokens and 1.4 to 1.8 at 131,072,
 * both where 8 % are read, and real texts have more read at 32,768 (docs/speed-gpu.md). On a CPU it is ahead from 2,048 on; where more
 * than 4 heads share a key dense has fewer rows to read for them, and it is ahead from 4,096 on (docs/routing.md, "`--route-min`"). */
static int32_t route_min_of(const struct sr_model *m)
{
    const int has_many = m->config.n_heads > 4 * m->config.n_kv_heads;
    if (m->backend && m->backend->ops->device_attn && !m->n_lower) return 65536;
    return has_many ? 4096 : sr_route_options_default().min_len;
}

void sr_model_get_info(const sr_model *m, sr_model_info *out)
{
    const struct model_config *c = &m->config;
    *out = (sr_model_info){
        .path = m->path, .architecture = m->architecture, .name = m->name, .type_name = m->type_name,
        .tokenizer = m->tokenizer ? sr_tokenizer_model_name(m->tokenizer) : "none", .chat_template = chat_name(m),
        .backend = m->backend ? m->placed : "none",
        .n_layers = c->n_layers, .n_embd = c->n_embd, .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads,
        .head_dim = c->head_dim, .sketch_rank = sr_model_sketch_rank(m), .n_ff = c->n_ff, .n_ctx_train = c->n_ctx_train,
        .n_vocab = m->tokenizer ? sr_tokenizer_vocab_size(m->tokenizer) : c->n_vocab,
        .n_experts = c->n_experts, .n_experts_used = c->n_experts_used, .rope_base = c->scaling.base, .norm_eps = (double)c->norm_eps, .n_params = m->n_params,
        .tied_embeddings = !sr_gguf_find_tensor(m->file, "output.weight"),
        .has_moments = m->attention && sr_attn_has_moments(m->attention),
        .file_bytes = sr_gguf_file_bytes(m->file), .n_parts = sr_gguf_n_parts(m->file),
        .n_tensors = (int32_t)sr_gguf_n_tensors(m->file),
        .n_threads = m->backend ? sr_pool_threads(sr_backend_pool(m->backend)) : 0,
        .n_gpu_layers = m->backend && m->backend->has_own_memory ? c->n_layers - m->n_lower : 0,
        .is_mapped = m->backend && !m->weights.copy, .is_synthetic = m->is_synthetic,
        .route_min = route_min_of(m)};
}

sr_status sr_model_limit_threads(sr_model *m, int n_threads, sr_error *err)
{
    if (!m || !m->backend) return sr_fail(err, SR_ERR_USAGE, "threads: the model was not opened for computing");
    const int most = sr_pool_threads(sr_backend_pool(m->backend));
    if (n_threads < 0 || n_threads > most) return sr_fail(err, SR_ERR_USAGE, "threads: %d, the model has %d", n_threads, most);
    sr_pool_limit(sr_backend_pool(m->backend), n_threads);
    if (m->lower) sr_pool_limit(sr_backend_pool(m->lower), n_threads);
    return SR_OK;
}
