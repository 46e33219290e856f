/* SPDX-License-Identifier: Apache-2.0
 *
 * From a shape to its tensors.
 */
#include "model/shapes.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

const struct model_shape *sr_model_shape_find(const char *name)
{
    const struct model_shape *s;
    for (int32_t i = 0; (s = sr_model_shape(i)); i++)
        if (strcasecmp(s->name, name) == 0) return s;
    return NULL;
}

struct part { const char *name; enum shape_role role; int64_t n_in, n_out, n_experts; }; /* n_in 0: not of this model */

static int give(struct shape_tensor *t, const struct part *p, int32_t layer)
{
    *t = (struct shape_tensor){.role = p->role, .layer = layer, .n_dims = p->n_experts ? 3 : p->n_out ? 2 : 1,
                               .ne = {p->n_in, p->n_out ? p->n_out : 1, p->n_experts ? p->n_experts : 1}};
    if (layer < 0) snprintf(t->name, sizeof(t->name), "%s", p->name);
    else snprintf(t->name, sizeof(t->name), "blk.%d.%s", layer, p->name);
    return 1;
}

/* The i-th of the n parts that this model has, NULL past them; *count is their number. */
static const struct part *pick(const struct part *parts, size_t n, int32_t i, int32_t *count)
{
    const struct part *found = NULL;
    *count = 0;
    for (size_t k = 0; k < n; k++) {
        if (parts[k].n_in == 0) continue;
        if ((*count)++ == i) found = &parts[k];
    }
    return found;
}

static int layer_tensor(const struct model_shape *s, int32_t i, struct shape_tensor *t)
{
    const int64_t d = s->n_embd, h = s->head_dim, q = s->n_heads * h, kv = s->n_kv_heads * h, e = s->n_experts;
    const int64_t dense = e ? 0 : d, mixed = e ? d : 0, ff = e ? s->n_ff_expert : s->n_ff;
    const int64_t bias = strcmp(s->architecture, "qwen2") == 0, norm = strncmp(s->architecture, "qwen3", 5) == 0 ? h : 0;
    const struct part parts[] = {
        {"attn_norm.weight", ROLE_NORM, d, 0, 0},          {"attn_q.weight", ROLE_MATRIX, d, q, 0},
        {"attn_q.bias", ROLE_BIAS, bias * q, 0, 0},        {"attn_k.weight", ROLE_MATRIX, d, kv, 0},
        {"attn_k.bias", ROLE_BIAS, bias * kv, 0, 0},       {"attn_v.weight", ROLE_ATTN_V, d, kv, 0},
        {"attn_v.bias", ROLE_BIAS, bias * kv, 0, 0},       {"attn_output.weight", ROLE_MATRIX, q, d, 0},
        {"attn_q_norm.weight", ROLE_NORM, norm, 0, 0},     {"attn_k_norm.weight", ROLE_NORM, norm, 0, 0},
        {"ffn_norm.weight", ROLE_NORM, d, 0, 0},           {"ffn_gate.weight", ROLE_MATRIX, dense, ff, 0},
        {"ffn_up.weight", ROLE_MATRIX, dense, ff, 0},      {"ffn_down.weight", ROLE_FFN_DOWN, dense ? ff : 0, d, 0},
        {"ffn_gate_inp.weight", ROLE_ROUTER, mixed, e, 0}, {"ffn_gate_exps.weight", ROLE_MATRIX, mixed, ff, e},
        {"ffn_up_exps.weight", ROLE_MATRIX, mixed, ff, e}, {"ffn_down_exps.weight", ROLE_FFN_DOWN, mixed ? ff : 0, d, e}};
    const size_t n = sizeof(parts) / sizeof(parts[0]);
    int32_t count;
    pick(parts, n, 0, &count);
    if (i / count >= s->n_layers) return 0;
    return give(t, pick(parts, n, i % count, &count), i / count);
}

int sr_shape_tensor(const struct model_shape *s, int32_t i, struct shape_tensor *t)
{
    const int64_t d = s->n_embd, v = s->n_vocab;
    const struct part parts[] = {{"token_embd.weight", ROLE_EMBED, d, v, 0},
                                 {"rope_freqs.weight", ROLE_FREQS, s->llama3_factor > 0 ? s->head_dim / 2 : 0, 0, 0},
                                 {"output_norm.weight", ROLE_NORM, d, 0, 0},
                                 {"output.weight", ROLE_OUTPUT, s->tied ? 0 : d, v, 0}};
    int32_t count;
    const struct part *p = pick(parts, sizeof(parts) / sizeof(parts[0]), i, &count);
    return p ? give(t, p, -1) : layer_tensor(s, i - count, t);
}
