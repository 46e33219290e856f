/* SPDX-License-Identifier: Apache-2.0
 *
 * What a model file may say about itself, and what is refused: rows GM11-GM16 and GT12, GT13, GT15 of the bad-input
 * contract, rotary frequencies against published numbers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "sinkrouter/engine.h"

#include "base/memory.h"
#include "model/config.h"
#include "model/rotary.h"
#include "tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static sr_error err;

static sr_status open_model(const char *path, int check)
{
    sr_model *m = NULL;
    sr_model_options o = sr_model_options_default();
    o.n_threads = 1;
    o.check = check;
    err.text[0] = '\0';
    const sr_status st = sr_model_open(&m, path, &o, &err);
    sr_model_close(m);
    return st;
}

/* Opening must fail so, with one clean line that holds `needle`. */
static void refused_at(const struct tiny_spec *s, sr_status want, const char *needle, int check)
{
    const char *path = tiny_path("bad.gguf");
    tiny_model_write(path, s);
    const sr_status st = open_model(path, check);
    if (st != want || !strstr(err.text, needle))
        fail_msg("wanted %s with \"%s\", got %s: %s", sr_status_name(want), needle, sr_status_name(st), err.text);
    assert_int_equal(err.status, want);
    for (const char *c = err.text; *c; c++) assert_true((unsigned char)*c >= 0x20);
}

static void refused(const struct tiny_change *changes, int n, sr_status want, const char *needle)
{
    struct tiny_spec s = tiny_spec_default();
    s.changes = changes;
    s.n_changes = n;
    refused_at(&s, want, needle, 0);
}

static void refused_u32(const char *key, uint32_t v, sr_status want)
{
    refused(&(struct tiny_change){.key = key, .kind = TINY_U32, .u32 = v}, 1, want, key);
}

static void refused_f32(const char *key, double v, sr_status want)
{
    refused(&(struct tiny_change){.key = key, .kind = TINY_F32, .f32 = v}, 1, want, key);
}

static void good_model_opens(void **state)
{
    (void)state;
    struct tiny_spec s = tiny_spec_default();
    const char *path = tiny_path("good.gguf");
    tiny_model_write(path, &s);
    sr_model *m;
    assert_int_equal(sr_model_open(&m, path, NULL, &err), SR_OK);
    sr_model_info i;
    sr_model_get_info(m, &i);
    assert_string_equal(i.architecture, "llama");
    assert_string_equal(i.name, "tiny");
    assert_string_equal(i.type_name, "F32");
    assert_string_equal(i.chat_template, "jinja");
    assert_int_equal(i.n_layers, 2);
    assert_int_equal(i.n_vocab, TINY_VOCAB);
    assert_int_equal(i.n_kv_heads, 2);
    assert_int_equal(i.head_dim, 16);
    assert_int_equal(i.n_ctx_train, 512);
    assert_true(i.tied_embeddings);
    assert_int_equal(sr_model_kv_bytes(m, SR_DTYPE_F16, SR_DTYPE_F32), 2 * 2 * 16 * 6);
    sr_model_close(m);
}

/* Where routed steps were measured faster than dense ones: later where many heads share a key. */
static void route_min(void **state)
{
    static const struct { int32_t n_heads, n_kv_heads, want; } cases[] = {{4, 2, 2048}, {8, 2, 2048}, {10, 2, 4096}, {8, 1, 4096}};
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct tiny_spec s = tiny_spec_default();
        s.n_heads = cases[i].n_heads;
        s.n_kv_heads = cases[i].n_kv_heads;
        const char *path = tiny_path("heads.gguf");
        tiny_model_write(path, &s);
        sr_model *m;
        sr_model_info info;
        assert_int_equal(sr_model_open(&m, path, NULL, &err), SR_OK);
        sr_model_get_info(m, &info);
        assert_int_equal(info.route_min, cases[i].want);
        sr_model_close(m);
    }
}

/* GM11 */
static void architecture(void **state)
{
    (void)state;
    static char huge[(1 << 20) + 1];
    memset(huge, 'a', sizeof(huge) - 1);
    const char *bad[] = {"%s%n", "../x", "gpt9", huge, "\n\x1b[2J"};
    refused(&(struct tiny_change){.key = "general.architecture", .kind = TINY_OMIT}, 1, SR_ERR_FORMAT, "general.architecture");
    refused(&(struct tiny_change){.key = "general.architecture", .kind = TINY_STR, .str = ""}, 1, SR_ERR_FORMAT, "general.architecture");
    refused_u32("general.architecture", 7, SR_ERR_FORMAT);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        refused(&(struct tiny_change){.key = "general.architecture", .kind = TINY_STR, .str = bad[i]}, 1, SR_ERR_UNSUPPORTED,
                "known: llama, qwen2, qwen3, qwen3moe");
}

/* GM12, GM14 */
static void sizes(void **state)
{
    (void)state;
    refused_u32("llama.block_count", 0, SR_ERR_FORMAT);
    refused_u32("llama.block_count", 513, SR_ERR_FORMAT);
    refused_u32("llama.block_count", UINT32_MAX, SR_ERR_FORMAT);
    refused(&(struct tiny_change){.key = "llama.block_count", .kind = TINY_STR, .str = "2"}, 1, SR_ERR_FORMAT, "llama.block_count");
    refused(&(struct tiny_change){.key = "llama.block_count", .kind = TINY_OMIT}, 1, SR_ERR_FORMAT, "llama.block_count");
    refused_u32("llama.embedding_length", 0, SR_ERR_FORMAT);
    refused_u32("llama.embedding_length", 1u << 31, SR_ERR_FORMAT);
    const struct tiny_change odd[] = {{.key = "llama.attention.key_length", .kind = TINY_OMIT},
                                      {.key = "llama.embedding_length", .kind = TINY_U32, .u32 = 66}};
    refused(odd, 2, SR_ERR_FORMAT, "not divisible by 4 heads");
    refused_u32("llama.feed_forward_length", 0, SR_ERR_FORMAT);
    refused_u32("llama.feed_forward_length", UINT32_MAX, SR_ERR_FORMAT);
}

/* GM13 */
static void heads(void **state)
{
    (void)state;
    const int32_t one[] = {4}, zero[] = {4, 0}, differ[] = {4, 2}, same[] = {4, 4};
    const char *key = "llama.attention.head_count";
    refused_u32(key, 0, SR_ERR_FORMAT);
    refused_u32("llama.attention.head_count_kv", 0, SR_ERR_FORMAT);
    refused_u32("llama.attention.head_count_kv", 3, SR_ERR_FORMAT);
    refused_u32("llama.attention.head_count_kv", 8, SR_ERR_FORMAT);
    refused(&(struct tiny_change){.key = key, .kind = TINY_I32S, .i32s = one, .n = 1}, 1, SR_ERR_FORMAT, "1 values for 2 layers");
    refused(&(struct tiny_change){.key = key, .kind = TINY_I32S, .i32s = zero, .n = 2}, 1, SR_ERR_FORMAT, "layer 1");
    refused(&(struct tiny_change){.key = key, .kind = TINY_I32S, .i32s = differ, .n = 2}, 1, SR_ERR_UNSUPPORTED, "layers differ");
    struct tiny_spec s = tiny_spec_default();
    s.changes = &(struct tiny_change){.key = key, .kind = TINY_I32S, .i32s = same, .n = 2};
    s.n_changes = 1;
    tiny_model_write(tiny_path("per-layer.gguf"), &s);
    assert_int_equal(open_model(tiny_path("per-layer.gguf"), 0), SR_OK);
    refused_u32("llama.attention.value_length", 8, SR_ERR_UNSUPPORTED);
}

/* GM15 */
static void rotary_and_norm_values(void **state)
{
    (void)state;
    const double bad_base[] = {0, -1, NAN, INFINITY, 1};
    const double bad_factor[] = {0, -2, NAN, INFINITY};
    const double bad_eps[] = {0, -1, NAN, INFINITY, 2};
    for (size_t i = 0; i < 5; i++) refused_f32("llama.rope.freq_base", bad_base[i], SR_ERR_FORMAT);
    for (size_t i = 0; i < 4; i++) refused_f32("llama.rope.scaling.factor", bad_factor[i], SR_ERR_FORMAT);
    for (size_t i = 0; i < 5; i++) refused_f32("llama.attention.layer_norm_rms_epsilon", bad_eps[i], SR_ERR_FORMAT);
    refused_u32("llama.context_length", 0, SR_ERR_FORMAT);
    refused_u32("llama.rope.dimension_count", 8, SR_ERR_FORMAT);
    refused(&(struct tiny_change){.key = "llama.rope.scaling.type", .kind = TINY_STR, .str = "longrope"}, 1, SR_ERR_UNSUPPORTED,
            "known: none, linear, yarn");
}

/* GM16 */
static void experts(void **state)
{
    (void)state;
    const struct tiny_change none[] = {{.key = "llama.expert_count", .kind = TINY_U32, .u32 = 0},
                                       {.key = "llama.expert_used_count", .kind = TINY_U32, .u32 = 8}};
    const struct tiny_change more[] = {{.key = "llama.expert_count", .kind = TINY_U32, .u32 = 4},
                                       {.key = "llama.expert_used_count", .kind = TINY_U32, .u32 = 8}};
    const struct tiny_change valid[] = {{.key = "llama.expert_count", .kind = TINY_U32, .u32 = 8},
                                        {.key = "llama.expert_used_count", .kind = TINY_U32, .u32 = 2}};
    refused(none, 2, SR_ERR_FORMAT, "8 of 0");
    refused(more, 2, SR_ERR_FORMAT, "8 of 4");
    refused(valid, 2, SR_ERR_FORMAT, "blk.0.ffn_gate_exps.weight");
    struct tiny_spec other = tiny_spec_default(), apart = tiny_spec_default();
    apart.changes = valid;
    apart.n_changes = 2;
    apart.n_extra = 1;
    apart.extra_name = "blk.0.ffn_gate.0.weight";
    refused_at(&apart, SR_ERR_UNSUPPORTED, "converted anew", 0);
    const struct tiny_change qwen2[] = {{.key = "qwen2.expert_count", .kind = TINY_U32, .u32 = 8},
                                        {.key = "qwen2.expert_used_count", .kind = TINY_U32, .u32 = 2}};
    other.architecture = "qwen2";
    other.biases = 1;
    other.changes = qwen2;
    other.n_changes = 2;
    refused_at(&other, SR_ERR_UNSUPPORTED, "experts", 0);
    refused_u32("llama.expert_count", 1u << 31, SR_ERR_FORMAT);
}

static struct tiny_spec mixture(void)
{
    struct tiny_spec s = tiny_spec_default();
    s.architecture = "qwen3moe";
    s.n_experts = 8;
    s.n_used = 2;
    s.n_ff = 32;
    return s;
}

/* A family of experts needs them, of the right shape; the width of one may be left to feed_forward_length. */
static void mixtures(void **state)
{
    (void)state;
    const struct { struct tiny_change c[2]; int n; sr_status st; const char *needle; } bad[] = {
        {{{.key = "qwen3moe.expert_count", .kind = TINY_OMIT}, {.key = "qwen3moe.expert_used_count", .kind = TINY_OMIT}}, 2,
         SR_ERR_FORMAT, "qwen3moe.expert_count: 0 experts"},
        {{{.key = "qwen3moe.expert_used_count", .kind = TINY_U32, .u32 = 9}}, 1, SR_ERR_FORMAT, "9 of 8"},
        {{{.key = "qwen3moe.expert_used_count", .kind = TINY_U32, .u32 = 0}}, 1, SR_ERR_FORMAT, "none of 8"},
        {{{.key = "qwen3moe.expert_feed_forward_length", .kind = TINY_U32, .u32 = 0}}, 1, SR_ERR_FORMAT, "expert_feed_forward_length"},
        {{{.key = "qwen3moe.expert_count", .kind = TINY_U32, .u32 = 7}}, 1, SR_ERR_FORMAT, "want [64, 32, 7]"},
        {{{.key = "qwen3moe.expert_feed_forward_length", .kind = TINY_U32, .u32 = 48}}, 1, SR_ERR_FORMAT, "want [64, 48, 8]"}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct tiny_spec s = mixture();
        s.changes = bad[i].c;
        s.n_changes = bad[i].n;
        refused_at(&s, bad[i].st, bad[i].needle, 0);
    }
    struct tiny_spec s = mixture();
    s.changes = &(struct tiny_change){.key = "qwen3moe.expert_feed_forward_length", .kind = TINY_OMIT};
    s.n_changes = 1;
    tiny_model_write(tiny_path("mixture.gguf"), &s);
    assert_int_equal(open_model(tiny_path("mixture.gguf"), 1), SR_OK);
    const struct tiny_tensor_change missing[] = {{.name = "blk.1.ffn_gate_inp.weight", .omit = 1, .nan_at = -1},
                                                 {.name = "blk.0.ffn_up_exps.weight", .omit = 1, .nan_at = -1},
                                                 {.name = "blk.0.attn_k_norm.weight", .omit = 1, .nan_at = -1}};
    for (size_t i = 0; i < sizeof(missing) / sizeof(missing[0]); i++) {
        struct tiny_spec less = mixture();
        less.tensor_changes = &missing[i];
        less.n_tensor_changes = 1;
        refused_at(&less, SR_ERR_FORMAT, missing[i].name, 0);
    }
}

/* ---- tensors ---- */

static void refused_tensor(const struct tiny_tensor_change *c, sr_status want, const char *needle, int check)
{
    struct tiny_spec s = tiny_spec_default();
    s.tensor_changes = c;
    s.n_tensor_changes = 1;
    s.dtype = c->bad_scale ? SR_DTYPE_Q8_0 : SR_DTYPE_F32;
    refused_at(&s, want, needle, check);
}

static char warning[400];
static int n_warnings;

static void on_log(void *user, sr_log_level level, const char *line)
{
    (void)user;
    if (level != SR_LOG_WARN) return;
    n_warnings++;
    snprintf(warning, sizeof(warning), "%s", line);
}

/* GT12 */
static void missing_and_extra(void **state)
{
    (void)state;
    const struct tiny_tensor_change two[] = {{.name = "blk.1.ffn_up.weight", .omit = 1, .nan_at = -1},
                                             {.name = "output_norm.weight", .omit = 1, .nan_at = -1}};
    struct tiny_spec s = tiny_spec_default();
    s.tensor_changes = two;
    s.n_tensor_changes = 2;
    refused_at(&s, SR_ERR_FORMAT, "2 tensors are missing: output_norm.weight, blk.1.ffn_up.weight", 0);
    refused_tensor(&(struct tiny_tensor_change){.name = "token_embd.weight", .omit = 1, .nan_at = -1}, SR_ERR_FORMAT, "token_embd.weight", 0);
    s = tiny_spec_default();
    s.n_extra = 100;
    tiny_model_write(tiny_path("extra.gguf"), &s);
    sr_log_set(on_log, NULL);
    n_warnings = 0;
    assert_int_equal(open_model(tiny_path("extra.gguf"), 0), SR_OK);
    sr_log_set(NULL, NULL);
    assert_int_equal(n_warnings, 1);
    assert_non_null(strstr(warning, "100 tensors are not used, the first is extra.0.weight"));
}

/* A tensor that belongs to a layer and that nobody computes with. */
static void tensors_that_matter(void **state)
{
    (void)state;
    const char *const names[] = {"blk.0.attn_output.bias", "blk.1.ffn_gate.scale", "output_norm.bias", "blk.0.attn_sinks.weight"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct tiny_spec s = tiny_spec_default();
        s.extra_name = names[i];
        s.n_extra = 3;
        refused_at(&s, SR_ERR_UNSUPPORTED, names[i], 0);
    }
    struct tiny_spec s = tiny_spec_default();
    s.extra_name = "blk.0.attn_rot_embd.weight";
    s.n_extra = 1;
    tiny_model_write(tiny_path("old.gguf"), &s);
    assert_int_equal(open_model(tiny_path("old.gguf"), 0), SR_OK);
}

/* Keys of a known architecture that ask for what the pass does not compute. */
static void keys_that_matter(void **state)
{
    (void)state;
    const struct { struct tiny_change c; sr_status st; } cases[] = {
        {{.key = "llama.attention.flux_capacity", .kind = TINY_U32, .u32 = 1}, SR_ERR_UNSUPPORTED},
        {{.key = "llama.attention.sliding_window", .kind = TINY_U32, .u32 = 128}, SR_ERR_UNSUPPORTED},
        {{.key = "llama.attention.sliding_window", .kind = TINY_U32, .u32 = 512}, SR_OK},
        {{.key = "llama.logit_scale", .kind = TINY_F32, .f32 = 0.5}, SR_ERR_UNSUPPORTED},
        {{.key = "llama.logit_scale", .kind = TINY_F32, .f32 = 1}, SR_OK},
        {{.key = "llama.final_logit_softcapping", .kind = TINY_F32, .f32 = 30}, SR_ERR_UNSUPPORTED},
        {{.key = "llama.residual_scale", .kind = TINY_F32, .f32 = NAN}, SR_ERR_UNSUPPORTED},
        {{.key = "llama.expert_gating_func", .kind = TINY_U32, .u32 = 2}, SR_ERR_UNSUPPORTED},
        {{.key = "llama.attention.clamp_kqv", .kind = TINY_STR, .str = "0"}, SR_ERR_FORMAT},
        {{.key = "llama.rope.dimension_sections", .kind = TINY_U32, .u32 = 0}, SR_ERR_UNSUPPORTED},
        {{.key = "llama.vocab_size", .kind = TINY_U32, .u32 = TINY_VOCAB}, SR_OK},
        {{.key = "llamas.anything", .kind = TINY_U32, .u32 = 1}, SR_OK}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tiny_spec s = tiny_spec_default();
        s.changes = &cases[i].c;
        s.n_changes = 1;
        if (cases[i].st) {
            refused_at(&s, cases[i].st, cases[i].c.key, 0);
            continue;
        }
        tiny_model_write(tiny_path("neutral.gguf"), &s);
        if (open_model(tiny_path("neutral.gguf"), 0)) fail_msg("%s: %s", cases[i].c.key, err.text);
    }
}

/* GT13 */
static void shapes(void **state)
{
    (void)state;
    refused_tensor(&(struct tiny_tensor_change){.name = "blk.0.attn_k.weight", .ne = {64, 64}, .nan_at = -1}, SR_ERR_FORMAT,
                   "blk.0.attn_k.weight: shape [64, 64, 1, 1], want [64, 32]", 0);
    refused_tensor(&(struct tiny_tensor_change){.name = "token_embd.weight", .ne = {64, TINY_VOCAB - 1}, .nan_at = -1},
                   SR_ERR_FORMAT, "token_embd.weight", 0);
    refused_tensor(&(struct tiny_tensor_change){.name = "blk.1.ffn_norm.weight", .ne = {32, 0}, .nan_at = -1}, SR_ERR_FORMAT,
                   "blk.1.ffn_norm.weight", 0);
}

/* GT15 */
static void not_finite(void **state)
{
    (void)state;
    refused_tensor(&(struct tiny_tensor_change){.name = "blk.1.attn_norm.weight", .nan_at = 5}, SR_ERR_FORMAT, "blk.1.attn_norm.weight", 0);
    refused_tensor(&(struct tiny_tensor_change){.name = "blk.0.ffn_down.weight", .nan_at = 96 * 3 + 7}, SR_ERR_FORMAT, "blk.0.ffn_down.weight", 1);
    refused_tensor(&(struct tiny_tensor_change){.name = "blk.0.attn_v.weight", .nan_at = -1, .bad_scale = 1}, SR_ERR_FORMAT,
                   "blk.0.attn_v.weight", 1);
}

/* A bad scale that nobody looked for at open shows at the first step, and names its tensor. */
static void bad_scale_found_in_use(void **state)
{
    (void)state;
    const struct tiny_tensor_change c = {.name = "blk.0.attn_v.weight", .nan_at = -1, .bad_scale = 1};
    struct tiny_spec s = tiny_spec_default();
    s.dtype = SR_DTYPE_Q8_0;
    s.tensor_changes = &c;
    s.n_tensor_changes = 1;
    const char *path = tiny_path("scale.gguf");
    tiny_model_write(path, &s);
    sr_model *m;
    sr_session *x;
    assert_int_equal(sr_model_open(&m, path, NULL, &err), SR_OK);
    assert_int_equal(sr_session_new(&x, m, NULL, &err), SR_OK);
    const int32_t ids[] = {1, 2, 3};
    assert_int_equal(sr_session_prefill(x, ids, 3, NULL, NULL, NULL, &err), SR_ERR_NUMERIC);
    assert_non_null(strstr(err.text, "blk.0.attn_v.weight"));
    assert_int_equal(sr_session_len(x), 0);
    assert_int_equal(sr_session_decode(x, 1, &err), SR_ERR_NUMERIC);
    assert_int_equal(sr_session_len(x), 0);
    assert_null(sr_session_logits(x));
    sr_session_free(x);
    sr_model_close(m);
}

/* ---- rotary frequencies ---- */

static void near(double have, double want, double rel)
{
    if (!(fabs(have - want) <= rel * fabs(want))) fail_msg("%.10g, want %.10g", have, want);
}

static void yarn_numbers(void **state)
{
    (void)state;
    struct rope_spec r = {.kind = ROPE_NEOX, .n_dims = 128};
    const struct rope_params p = {.scaling = ROPE_SCALING_YARN, .base = 1e6, .factor = 4, .original_len = 32768, .ext_factor = 1, .beta_fast = 32,
                                  .beta_slow = 1, .attn_factor = 1};
    const struct { int i; double inv; } want[] = {{0, 1}, {23, 0.00697830585}, {24, 0.00537532149}, {31, 0.000802959728},
                                                  {39, 6.49039432e-05}, {40, 4.44569853e-05}, {63, 3.1023444e-07}};
    sr_rotary_fill(&r, &p);
    for (size_t k = 0; k < sizeof(want) / sizeof(want[0]); k++) near(r.inv_freq[want[k].i], want[k].inv, 1e-7);
    near(r.magnitude, 1.1386294361, 1e-10);
}

static void read_config(struct tiny_spec *s, struct model_config *c)
{
    struct gguf *g;
    const char *path = tiny_path("rope.gguf");
    tiny_model_write(path, s);
    if (sr_gguf_open(&g, path, &err) != SR_OK || sr_config_read(c, g, &err) != SR_OK) fail_msg("%s", err.text);
    sr_gguf_close(g);
}

static void scaling_keys(void **state)
{
    (void)state;
    struct model_config c;
    struct tiny_spec s = tiny_spec_default();
    read_config(&s, &c);
    assert_int_equal(c.rope.kind, ROPE_NORM);
    near(c.rope.inv_freq[3], pow(10000.0, -6.0 / 16), 1e-15);
    const struct tiny_change old = {.key = "llama.rope.scale_linear", .kind = TINY_F32, .f32 = 4};
    s.changes = &old;
    s.n_changes = 1;
    read_config(&s, &c);
    near(c.rope.inv_freq[3], pow(10000.0, -6.0 / 16) / 4, 1e-15);
    const struct tiny_change yarn[] = {{.key = "llama.rope.scaling.type", .kind = TINY_STR, .str = "yarn"},
                                       {.key = "llama.rope.scaling.factor", .kind = TINY_F32, .f32 = 4},
                                       {.key = "llama.rope.scaling.original_context_length", .kind = TINY_U32, .u32 = 512}};
    s.changes = yarn;
    s.n_changes = 3;
    read_config(&s, &c);
    near(c.rope.magnitude, 0.1 * log(4.0) + 1, 1e-12);
    near(c.rope.inv_freq[0], 1.0, 1e-15);
    near(c.rope.inv_freq[7], pow(10000.0, -14.0 / 16) / 4, 1e-12);
    assert_int_equal(c.n_ctx_train, 2048);
}

static void override(struct model_config *c, const struct rope_override *o)
{
    struct tiny_spec s = tiny_spec_default();
    read_config(&s, c);
    if (sr_config_override_rope(c, o, &err) != SR_OK) fail_msg("%s", err.text);
}

/* Scaling by the caller: the frequencies, and the context that counts as trained. */
static void other_scaling(void **state)
{
    (void)state;
    struct model_config c, from_file;
    override(&c, &(struct rope_override){0});
    near(c.rope.inv_freq[3], pow(10000.0, -6.0 / 16), 1e-15);
    assert_int_equal(c.n_ctx_train, 512);
    override(&c, &(struct rope_override){.factor = 8});
    near(c.rope.inv_freq[3], pow(10000.0, -6.0 / 16) / 8, 1e-15);
    assert_int_equal(c.n_ctx_train, 4096);
    override(&c, &(struct rope_override){.base = 5e5});
    near(c.rope.inv_freq[3], pow(5e5, -6.0 / 16), 1e-15);
    assert_int_equal(c.n_ctx_train, 512);
    const struct tiny_change keys[] = {{.key = "llama.rope.scaling.type", .kind = TINY_STR, .str = "yarn"},
                                       {.key = "llama.rope.scaling.factor", .kind = TINY_F32, .f32 = 4},
                                       {.key = "llama.rope.scaling.original_context_length", .kind = TINY_U32, .u32 = 256}};
    struct tiny_spec s = tiny_spec_default();
    s.changes = keys;
    s.n_changes = 3;
    read_config(&s, &from_file);
    override(&c, &(struct rope_override){.has_scaling = 1, .scaling = ROPE_SCALING_YARN, .factor = 4, .original_len = 256});
    assert_memory_equal(c.rope.inv_freq, from_file.rope.inv_freq, 8 * sizeof(double));
    assert_true(c.rope.magnitude == from_file.rope.magnitude);
    assert_int_equal(c.n_ctx_train, 1024);
    assert_int_equal(sr_config_override_rope(&from_file, &(struct rope_override){.has_scaling = 1, .scaling = ROPE_SCALING_NONE}, &err), SR_OK);
    near(from_file.rope.inv_freq[7], pow(10000.0, -14.0 / 16), 1e-15);
    assert_int_equal(from_file.n_ctx_train, 256);
    /* without the ramp's share YaRN is linear, with the attention factor alone as magnitude */
    override(&c, &(struct rope_override){.has_scaling = 1, .scaling = ROPE_SCALING_YARN, .factor = 4, .has_ext_factor = 1, .attn_factor = 1.5});
    for (int i = 0; i < 8; i++) near(c.rope.inv_freq[i], pow(10000.0, -2.0 * i / 16) / 4, 1e-15);
    near(c.rope.magnitude, 1.5, 1e-15);
    const struct rope_override bad[] = {{.base = 0.5}, {.factor = -1}, {.factor = NAN}, {.original_len = -5}, {.beta_fast = 1e7},
                                        {.has_ext_factor = 1, .ext_factor = -1}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(sr_config_override_rope(&c, &bad[i], &err), SR_ERR_USAGE);
}

/* Llama 3.1 and 3.2: the file's divisors against the published formula (factor, 1, 4, 8192). */
static void divisors(void **state)
{
    (void)state;
    float freqs[8];
    struct model_config c;
    struct tiny_spec s = tiny_spec_default();
    for (int i = 0; i < 8; i++) freqs[i] = i < 4 ? 1.0f : 8.0f;
    freqs[4] = 2.5f;
    s.rope_freqs = freqs;
    read_config(&s, &c);
    for (int i = 0; i < 8; i++) near(c.rope.inv_freq[i], pow(10000.0, -2.0 * i / 16) / (double)freqs[i], 1e-15);
    const float bad[] = {0.0f, -1.0f, INFINITY, NAN};
    for (size_t i = 0; i < 4; i++) {
        freqs[6] = bad[i];
        refused_at(&s, SR_ERR_FORMAT, "rope_freqs.weight", 0);
    }
}

static void qwen2_needs_biases(void **state)
{
    (void)state;
    struct model_config c;
    struct tiny_spec s = tiny_spec_default();
    s.architecture = "qwen2";
    refused_at(&s, SR_ERR_FORMAT, "6 tensors are missing: blk.0.attn_q.bias", 0);
    s.biases = 1;
    read_config(&s, &c);
    assert_int_equal(c.rope.kind, ROPE_NEOX);
    assert_int_equal(open_model(tiny_path("rope.gguf"), 0), SR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_model_opens), cmocka_unit_test(route_min), cmocka_unit_test(architecture), cmocka_unit_test(sizes), cmocka_unit_test(heads),
        cmocka_unit_test(rotary_and_norm_values), cmocka_unit_test(experts), cmocka_unit_test(mixtures), cmocka_unit_test(missing_and_extra),
        cmocka_unit_test(tensors_that_matter), cmocka_unit_test(keys_that_matter), cmocka_unit_test(other_scaling),
        cmocka_unit_test(shapes), cmocka_unit_test(not_finite), cmocka_unit_test(bad_scale_found_in_use),
        cmocka_unit_test(yarn_numbers), cmocka_unit_test(scaling_keys), cmocka_unit_test(divisors),
        cmocka_unit_test(qwen2_needs_biases)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
