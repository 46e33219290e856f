/* SPDX-License-Identifier: Apache-2.0
 *
 * Rotary embedding of config.json: rope_theta and rope_scaling, or rope_parameters of newer writers, which holds both.
 * Linear and YaRN become the values that GGUF has for them. The scaling of Llama 3.1 becomes the tensor that GGUF has
 * for it: one divisor for each frequency.
 */
#include "formats/hf_parts.h"

#include "base/memory.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const double two_pi = 6.283185307179586476925286766559;

enum { MAX_HEAD_DIM = 1024 };

struct hf_rope {
    struct json_at at;   /* the object with the scaling; object NULL: none */
    const char *type;
    double theta;
};

static sr_status find_rope(const struct hf *h, struct hf_rope *r)
{
    const struct json_at a = {h->config_path, "$", h->config};
    const json_t *o;
    int found;
    *r = (struct hf_rope){.at = {h->config_path, "$.rope_parameters", NULL}, .type = "default", .theta = 10000.0};
    SR_TRY(sr_json_member(&a, "rope_parameters", JSON_OBJECT, &o, &found, h->err));
    if (!o) {
        r->at.where = "$.rope_scaling";
        SR_TRY(sr_json_member(&a, "rope_scaling", JSON_OBJECT, &o, &found, h->err));
    }
    SR_TRY(sr_json_number(&a, "rope_theta", &r->theta, &found, h->err));
    r->at.object = o;
    if (!o) return SR_OK;
    SR_TRY(sr_json_number(&r->at, "rope_theta", &r->theta, &found, h->err));
    SR_TRY(sr_json_string(&r->at, "type", &r->type, &found, h->err));
    return sr_json_string(&r->at, "rope_type", &r->type, &found, h->err);
}

static int is_type(const struct hf_rope *r, const char *type) { return r->at.object && strcmp(r->type, type) == 0; }

static sr_status put(struct hf *h, const char *name, double v)
{
    char key[96];
    snprintf(key, sizeof(key), "%s.rope.%s", h->arch, name);
    return sr_source_put_float(h->g, key, v, h->err);
}

static sr_status put_type(struct hf *h, const char *type)
{
    char key[96];
    snprintf(key, sizeof(key), "%s.rope.scaling.type", h->arch);
    return sr_source_put_str(h->g, key, type, strlen(type), h->err);
}

/* A number above 0, or its default where the field is absent. */
static sr_status positive(const struct hf *h, const struct hf_rope *r, const char *key, double *out, int required)
{
    int found;
    SR_TRY(sr_json_number(&r->at, key, out, required ? NULL : &found, h->err));
    if (!(*out > 0.0 && *out <= 1e9)) return sr_json_reject(&r->at, h->err, key, "%g, want a number above 0", *out);
    return SR_OK;
}

static sr_status put_yarn(struct hf *h, const struct hf_rope *r)
{
    static const char *const refused[] = {"mscale", "mscale_all_dim", "truncate"};
    double factor = 1, fast = 32, slow = 1, attention = 0;
    int64_t original = 0;
    int found, has_attention;
    char key[96];
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        const json_t *v = json_object_get(r->at.object, refused[i]);
        if (v && !json_is_null(v) && !json_is_true(v)) return sr_json_unsupported(&r->at, h->err, refused[i], "is set, and is not supported");
    }
    SR_TRY(positive(h, r, "factor", &factor, 1));
    SR_TRY(positive(h, r, "beta_fast", &fast, 0));
    SR_TRY(positive(h, r, "beta_slow", &slow, 0));
    SR_TRY(sr_json_number(&r->at, "attention_factor", &attention, &has_attention, h->err));
    SR_TRY(sr_json_int(&r->at, "original_max_position_embeddings", 1, INT32_MAX, &original, &found, h->err));
    SR_TRY(put_type(h, "yarn"));
    SR_TRY(put(h, "scaling.factor", factor));
    SR_TRY(put(h, "scaling.yarn_beta_fast", fast));
    SR_TRY(put(h, "scaling.yarn_beta_slow", slow));
    /* GGUF's factor multiplies the usual magnitude, this one replaces it */
    if (has_attention) SR_TRY(put(h, "scaling.yarn_attn_factor", attention / (0.1 * log(factor) + 1.0)));
    if (!found) return SR_OK;
    snprintf(key, sizeof(key), "%s.rope.scaling.original_context_length", h->arch);
    return sr_source_put_u32(h->g, key, (uint32_t)original, h->err);
}

sr_status sr_hf_read_rope(struct hf *h)
{
    struct hf_rope r;
    double factor = 1;
    char text[32];
    SR_TRY(find_rope(h, &r));
    SR_TRY(put(h, "freq_base", r.theta));
    if (!r.at.object || strcmp(r.type, "default") == 0 || strcmp(r.type, "llama3") == 0) return SR_OK;
    if (strcmp(r.type, "yarn") == 0) return put_yarn(h, &r);
    if (strcmp(r.type, "linear") == 0) {
        SR_TRY(positive(h, &r, "factor", &factor, 1));
        SR_TRY(put_type(h, "linear"));
        return put(h, "scaling.factor", factor);
    }
    return sr_json_unsupported(&r.at, h->err, "rope_type", "\"%s\" is not known here; known: default, linear, llama3, yarn",
                               sr_escape(text, sizeof(text), r.type, strlen(r.type)));
}

int sr_hf_has_rope_tensor(const struct hf *h)
{
    struct hf_rope r;
    return find_rope(h, &r) == SR_OK && is_type(&r, "llama3");
}

/* Llama 3.1: waves longer than old/low turn `factor` times slower, those shorter than old/high stay, between them the
 * two are mixed. */
static void fill_divisors(float *divisor, int32_t n, double theta, const double p[4])
{
    const double factor = p[0], low = p[1], high = p[2], old = p[3];
    for (int32_t i = 0; i < n; i++) {
        const double wave = two_pi * pow(theta, (double)i / n), mix = (old / wave - low) / (high - low);
        double d = 1.0 / ((1.0 - mix) / factor + mix);
        if (wave < old / high) d = 1.0;
        if (wave > old / low) d = factor;
        divisor[i] = (float)d;
    }
}

sr_status sr_hf_add_rope_tensor(struct hf *h)
{
    static const char *const keys[4] = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"};
    struct hf_rope r;
    double p[4] = {0};
    SR_TRY(find_rope(h, &r));
    for (int i = 0; i < 4; i++) SR_TRY(positive(h, &r, keys[i], &p[i], 1));
    if (p[2] <= p[1]) return sr_json_reject(&r.at, h->err, "high_freq_factor", "%g, want more than low_freq_factor %g", p[2], p[1]);
    if (h->head_dim > MAX_HEAD_DIM) return sr_json_reject(&r.at, h->err, NULL, "head size %d, limit %d", h->head_dim, MAX_HEAD_DIM);
    const int32_t n = h->head_dim / 2;
    float *divisor = sr_alloc((size_t)n * sizeof(*divisor));
    SR_TRY(sr_source_keep(h->g, divisor, (size_t)n * sizeof(*divisor), h->err));
    fill_divisors(divisor, n, r.theta, p);
    const struct gguf_tensor t = {.name = {"rope_freqs.weight", 17}, .dtype = SR_DTYPE_F32, .n_dims = 1, .ne = {n, 1, 1, 1},
                                  .data = divisor, .bytes = (size_t)n * sizeof(*divisor), .owned = 1};
    return sr_source_add_tensor(h->g, &t, h->err);
}
