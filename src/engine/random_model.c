/* SPDX-License-Identifier: Apache-2.0
 *
 * Synthetic models: a GGUF file of a published model's shape with random weights. Each tensor is a window on a pool of
 * random blocks of its type and width, repeated; a pool's number of blocks is prime, so that no two rows of a matrix of
 * fewer rows are alike. Making the pools takes a second; the rest is as fast as the disk.
 */
#include "engine/random_vocab.h"
#include "sinkrouter/engine.h"

#include "base/memory.h"
#include "formats/quant_random.h"
#include "model/shapes.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/statvfs.h>

enum { POOL_FLOATS = 1048573, POOL_32 = 65521, POOL_256 = 16381, MAX_POOLS = 16, PIECE = 1 << 20 };

struct pool_key { sr_dtype dtype; int64_t n_in; };
struct block_pool { struct pool_key key; uint8_t *data; size_t bytes; };

/* A file being made. */
struct maker {
    const struct model_shape *s;
    const sr_random_options *o;
    sr_dtype base;
    int mix; /* 4 or 5: the types of Q4_K_M or Q5_K_M; else 0 */
    struct gguf_writer *w;
    struct block_pool pools[MAX_POOLS];
    int n_pools;
    uint64_t done, total; /* bytes of tensors */
    sr_error *err;
};

sr_random_options sr_random_options_default(void) { return (sr_random_options){.type = "q4_k_m", .seed = 1}; }

const char *sr_model_random_name(int32_t i)
{
    const struct model_shape *s = sr_model_shape(i);
    return s ? s->name : NULL;
}

/* ---- types: what llama.cpp's quantizer gives each tensor ---------------------------------------------------------- */

static sr_status find_type(struct maker *m, const char *name)
{
    static const sr_dtype types[] = {SR_DTYPE_F32,  SR_DTYPE_F16,  SR_DTYPE_BF16, SR_DTYPE_Q4_0, SR_DTYPE_Q4_1, SR_DTYPE_Q5_0, SR_DTYPE_Q5_1,
                                     SR_DTYPE_Q8_0, SR_DTYPE_Q2_K, SR_DTYPE_Q3_K, SR_DTYPE_Q4_K, SR_DTYPE_Q5_K, SR_DTYPE_Q6_K, SR_DTYPE_IQ4_NL};
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        if (strcasecmp(name, sr_dtype_name(types[i])) == 0) {
            m->base = types[i];
            return SR_OK;
        }
    m->mix = strcasecmp(name, "q4_k_m") == 0 ? 4 : strcasecmp(name, "q5_k_m") == 0 ? 5 : 0;
    m->base = m->mix == 5 ? SR_DTYPE_Q5_K : SR_DTYPE_Q4_K;
    char text[24];
    if (m->mix) return SR_OK;
    return sr_fail(m->err, SR_ERR_USAGE,
                   "type \"%s\": want q4_k_m, q5_k_m, f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k or iq4_nl",
                   sr_escape(text, sizeof(text), name, strlen(name)));
}

static int more_bits(int32_t i, int32_t n) { return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2; }

static sr_dtype narrower(sr_dtype dtype, int64_t n_in)
{
    if (n_in % sr_dtype_find((int64_t)dtype)->block_elems == 0) return dtype;
    if (n_in % 32) return SR_DTYPE_F16;
    switch (dtype) {
    case SR_DTYPE_Q4_K: return SR_DTYPE_Q5_0;
    case SR_DTYPE_Q5_K: return SR_DTYPE_Q5_1;
    case SR_DTYPE_Q6_K: return SR_DTYPE_Q8_0;
    default: return SR_DTYPE_IQ4_NL;
    }
}

/* With eight experts attention is a small part, and gets more bits. */
static sr_dtype beside_experts(const struct maker *m, const struct shape_tensor *t, sr_dtype type)
{
    if (strstr(t->name, ".attn_k.") || strstr(t->name, ".attn_v.")) return SR_DTYPE_Q8_0;
    return strstr(t->name, ".attn_output.") && m->base == SR_DTYPE_Q4_K ? SR_DTYPE_Q5_K : type;
}

static sr_dtype type_of(const struct maker *m, const struct shape_tensor *t)
{
    sr_dtype type = m->base;
    if (t->role == ROLE_NORM || t->role == ROLE_BIAS || t->role == ROLE_FREQS || t->role == ROLE_ROUTER) return SR_DTYPE_F32;
    if (m->mix && (t->role == ROLE_OUTPUT || (t->role == ROLE_EMBED && m->s->tied))) type = SR_DTYPE_Q6_K;
    if (m->mix && (t->role == ROLE_ATTN_V || t->role == ROLE_FFN_DOWN) && more_bits(t->layer, m->s->n_layers)) type = SR_DTYPE_Q6_K;
    if (m->mix && m->s->n_experts == 8) type = beside_experts(m, t, type);
    return narrower(type, t->ne[0]);
}

/* ---- header --------------------------------------------------------------------------------------------------------- */

static sr_status put_u32(struct maker *m, const char *name, int32_t v)
{
    char key[96];
    snprintf(key, sizeof(key), "%s.%s", m->s->architecture, name);
    return v ? sr_gguf_put_u32(m->w, key, (uint32_t)v, m->err) : SR_OK;
}

static sr_status put_f32(struct maker *m, const char *name, double v)
{
    char key[96];
    snprintf(key, sizeof(key), "%s.%s", m->s->architecture, name);
    return sr_gguf_put_f32(m->w, key, (float)v, m->err);
}

static sr_status put_values(struct maker *m)
{
    const struct model_shape *s = m->s;
    char name[64];
    snprintf(name, sizeof(name), "%s with random weights", s->name);
    SR_TRY(sr_gguf_put_str(m->w, "general.architecture", s->architecture, m->err));
    SR_TRY(sr_gguf_put_str(m->w, "general.type", "model", m->err));
    SR_TRY(sr_gguf_put_str(m->w, "general.name", name, m->err));
    SR_TRY(sr_gguf_put_str(m->w, "general.description", SR_SYNTHETIC ": random weights, a vocabulary of bytes padded to the true size", m->err));
    SR_TRY(sr_gguf_put_u32(m->w, "general.quantization_version", 2, m->err));
    const struct { const char *name; int32_t v; } numbers[] = {
        {"block_count", s->n_layers}, {"context_length", s->n_ctx}, {"embedding_length", s->n_embd}, {"feed_forward_length", s->n_ff},
        {"attention.head_count", s->n_heads}, {"attention.head_count_kv", s->n_kv_heads}, {"attention.key_length", s->head_dim},
        {"attention.value_length", s->head_dim}, {"rope.dimension_count", s->head_dim}, {"expert_count", s->n_experts},
        {"expert_used_count", s->n_used}, {"expert_feed_forward_length", s->n_ff_expert == s->n_ff ? 0 : s->n_ff_expert}};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) SR_TRY(put_u32(m, numbers[i].name, numbers[i].v));
    SR_TRY(put_f32(m, "rope.freq_base", s->rope_base));
    SR_TRY(put_f32(m, "attention.layer_norm_rms_epsilon", s->norm_eps));
    return sr_random_vocab_put(m->w, s, m->err);
}

static sr_status put_infos(struct maker *m)
{
    struct shape_tensor t;
    for (int32_t i = 0; sr_shape_tensor(m->s, i, &t); i++) {
        const sr_dtype type = type_of(m, &t);
        SR_TRY(sr_gguf_put_tensor(m->w, t.name, type, t.n_dims, t.ne, m->err));
        m->total += sr_row_bytes(type, t.ne[0]) * (uint64_t)(t.ne[1] * t.ne[2]);
    }
    return SR_OK;
}

/* ---- data ----------------------------------------------------------------------------------------------------------- */

static sr_status find_pool(struct maker *m, struct pool_key key, const struct block_pool **out)
{
    const struct dtype_traits *type = sr_dtype_find((int64_t)key.dtype);
    for (int i = 0; i < m->n_pools; i++)
        if (m->pools[i].key.dtype == key.dtype && m->pools[i].key.n_in == key.n_in) {
            *out = &m->pools[i];
            return SR_OK;
        }
    if (m->n_pools == MAX_POOLS) sr_free(m->pools[--m->n_pools].data);
    struct block_pool *p = &m->pools[m->n_pools];
    const int64_t blocks = type->block_elems == 1 ? POOL_FLOATS : type->block_elems == 32 ? POOL_32 : POOL_256;
    *p = (struct block_pool){.key = key, .bytes = (size_t)blocks * (size_t)type->block_bytes};
    p->data = sr_alloc(p->bytes);
    if (!p->data) return sr_fail_memory(m->err, p->bytes, "random weights");
    struct rng rng;
    sr_rng_seed(&rng, m->o->seed * 1000003u + (uint64_t)key.dtype * 65537u + (uint64_t)key.n_in);
    sr_random_row(key.dtype, &rng, 1.0 / sqrt((double)key.n_in), p->data, blocks * type->block_elems);
    m->n_pools++;
    *out = p;
    return SR_OK;
}

static sr_status put_bytes(struct maker *m, const void *data, size_t bytes)
{
    SR_TRY(sr_gguf_put_data(m->w, data, bytes, m->err));
    m->done += bytes;
    if (m->o->progress && m->o->progress(m->o->progress_user, "write", (double)m->done / (double)m->total))
        return sr_fail(m->err, SR_ERR_USAGE, "writing was cancelled");
    return SR_OK;
}

/* Where the tensor's window on its pool begins: some block, by its number and the seed. */
static size_t window_of(const struct maker *m, const struct block_pool *p, int32_t index)
{
    const size_t block = (size_t)sr_dtype_find((int64_t)p->key.dtype)->block_bytes;
    struct rng rng;
    sr_rng_seed(&rng, m->o->seed + (uint64_t)index * 0x9e3779b97f4a7c15u);
    return (size_t)(sr_rng_u64(&rng) % (p->bytes / block)) * block;
}

static sr_status put_matrix(struct maker *m, const struct shape_tensor *t, int32_t index)
{
    const sr_dtype dtype = type_of(m, t);
    const struct block_pool *p = NULL;
    uint64_t left = sr_row_bytes(dtype, t->ne[0]) * (uint64_t)(t->ne[1] * t->ne[2]);
    SR_TRY(find_pool(m, (struct pool_key){dtype, t->ne[0]}, &p));
    for (size_t at = window_of(m, p, index); left > 0;) {
        size_t n = p->bytes - at < PIECE ? p->bytes - at : PIECE;
        if (n > left) n = (size_t)left;
        SR_TRY(put_bytes(m, p->data + at, n));
        left -= n;
        at = at + n == p->bytes ? 0 : at + n;
    }
    return SR_OK;
}

/* Llama 3.1's divisors of the frequencies: low 1, high 4, 8,192 positions. */
static float divisor_of(const struct model_shape *s, int32_t i)
{
    const double old = 8192, wave = 6.283185307179586 * pow(s->rope_base, 2.0 * i / s->head_dim), ramp = (old / wave - 1) / 3;
    return (float)(wave < old / 4 ? 1 : wave > old ? s->llama3_factor : 1 / ((1 - ramp) / s->llama3_factor + ramp));
}

static sr_status put_vector(struct maker *m, const struct shape_tensor *t, int32_t index)
{
    struct rng rng;
    sr_rng_seed(&rng, m->o->seed + 77 * (uint64_t)index);
    for (int64_t i = 0; i < t->ne[0]; i++) {
        const float u = (float)(2 * sr_rng_unit(&rng) - 1);
        const float x = t->role == ROLE_FREQS ? divisor_of(m->s, (int32_t)i) : t->role == ROLE_NORM ? 1 + u / 8 : u / 16;
        SR_TRY(put_bytes(m, &x, sizeof(x)));
    }
    return SR_OK;
}

static sr_status put_tensors(struct maker *m)
{
    struct shape_tensor t;
    for (int32_t i = 0; sr_shape_tensor(m->s, i, &t); i++) {
        if (t.n_dims == 1) SR_TRY(put_vector(m, &t, i));
        else SR_TRY(put_matrix(m, &t, i));
    }
    return SR_OK;
}

/* ---- the file --------------------------------------------------------------------------------------------------------- */

static sr_status check_space(struct maker *m, const char *path)
{
    char folder[4096];
    struct statvfs v;
    const char *slash = strrchr(path, '/');
    const int n = slash ? (int)(slash - path) + 1 : 1;
    if (n >= (int)sizeof(folder)) return SR_OK; /* the writer says what is wrong with such a name */
    snprintf(folder, sizeof(folder), "%.*s", n, slash ? path : ".");
    if (statvfs(folder, &v) != 0) return SR_OK;
    const uint64_t have = (uint64_t)v.f_bavail * v.f_frsize, need = m->total + (uint64_t)m->s->n_vocab * 40;
    if (need <= have) return SR_OK;
    char shown[96];
    return sr_fail(m->err, SR_ERR_RESOURCE, "%s: %llu bytes needed, %llu free on its disk", sr_escape(shown, sizeof(shown), path, strlen(path)),
                   (unsigned long long)need, (unsigned long long)have);
}

static sr_status make(struct maker *m, const char *path)
{
    SR_TRY(put_values(m));
    SR_TRY(put_infos(m));
    SR_TRY(check_space(m, path));
    return put_tensors(m);
}

sr_status sr_model_make_random(const char *path, const char *name, const sr_random_options *o, sr_error *err)
{
    const sr_random_options defaults = sr_random_options_default();
    if (!path || !name) return sr_fail(err, SR_ERR_USAGE, "sr_model_make_random: no %s", path ? "name" : "path");
    struct maker m = {.o = o ? o : &defaults, .s = sr_model_shape_find(name), .err = err};
    char text[48];
    if (!m.s)
        return sr_fail(err, SR_ERR_USAGE, "\"%s\" is no model whose shape is known here", sr_escape(text, sizeof(text), name, strlen(name)));
    SR_TRY(find_type(&m, m.o->type ? m.o->type : defaults.type));
    SR_TRY(sr_gguf_writer_new(&m.w, path, err));
    const sr_status st = make(&m, path);
    for (int i = 0; i < m.n_pools; i++) sr_free(m.pools[i].data);
    if (st == SR_OK) return sr_gguf_writer_finish(m.w, err);
    sr_gguf_writer_abort(m.w);
    return st;
}
