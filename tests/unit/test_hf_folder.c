/* SPDX-License-Identifier: Apache-2.0
 *
 * Model folders that are not as they should be: safetensors headers (rows SF1-SF10 of the bad-input contract), indexes
 * of shards, config.json (JT5), and what is made of tensors at load.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "sinkrouter/engine.h"

#include "hf_write.h"
#include "tiny_family.h"

#include "base/memory.h"
#include "formats/hf_folder.h"
#include "formats/settle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static sr_error err;

/* ---- folders ---- */

static const char *fresh_folder(void)
{
    static char path[256];
    static int n;
    char name[32];
    snprintf(name, sizeof(name), "f%d", n++);
    snprintf(path, sizeof(path), "%s", tiny_path(name));
    assert_int_equal(mkdir(path, 0700), 0);
    return path;
}

static const char *within(const char *folder, const char *name)
{
    static char path[512];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

/* A good folder of one of the families. */
static const char *good_folder(const char *family, const struct hf_write *o)
{
    int n;
    const struct tiny_family *f = tiny_families(&n);
    const char *gguf = tiny_path("good.gguf"), *folder = fresh_folder();
    struct hf_write defaults = {.llama3_old_len = 256};
    while (n > 0 && strcmp(f->name, family) != 0) f++, n--;
    assert_true(n > 0);
    tiny_model_write(gguf, &f->spec);
    hf_write_folder(gguf, folder, o ? o : &defaults);
    return folder;
}

static sr_status open_only(const char *folder)
{
    struct gguf *g = NULL;
    const sr_status st = sr_gguf_open(&g, folder, &err);
    sr_gguf_close(g);
    return st;
}

static sr_status open_model(const char *folder)
{
    sr_model *m = NULL;
    const sr_model_options o = {.n_threads = 1};
    const sr_status st = sr_model_open(&m, folder, &o, &err);
    sr_model_close(m);
    return st;
}

static void says(sr_status got, sr_status want, const char *text)
{
    if (got != want || (want != SR_OK && !strstr(err.text, text))) fail_msg("status %d \"%s\", want %d \"%s\"", (int)got, err.text, (int)want, text);
    for (const char *c = err.text; want != SR_OK && *c; c++) assert_true((unsigned char)*c >= ' ');
}

/* ---- safetensors headers ---- */

static const char *header_folder(void)
{
    static char path[256];
    if (!path[0]) snprintf(path, sizeof(path), "%s", good_folder("llama2", NULL));
    return path;
}

static void header(const char *json, size_t data_bytes, sr_status want, const char *text)
{
    const char *folder = header_folder();
    hf_write_raw(within(folder, "model.safetensors"), json, data_bytes);
    says(open_only(folder), want, text);
}

static void bytes_of(const void *data, size_t bytes, off_t file_bytes, const char *text)
{
    const char *folder = header_folder(), *path = within(folder, "model.safetensors");
    FILE *f = fopen(path, "wb");
    fwrite(data, 1, bytes, f);
    fclose(f);
    assert_int_equal(truncate(path, file_bytes), 0);
    says(open_only(folder), SR_ERR_FORMAT, text);
}

#define T(name, dtype, shape, span) "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" span "}"

static void lengths(void **state)
{
    (void)state;
    bytes_of("\x02\0\0\0\0\0\0", 7, 7, "needs 8 bytes, 7 left");
    bytes_of("\0\0\0\0\0\0\0\0", 8, 8, "does not begin with {");
    bytes_of("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F", 8, 100, "left in the file");
    bytes_of("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8, 100, "left in the file");
    bytes_of("\x03\0\0\0\0\0\0\0{}", 10, 10, "header of 3 bytes, 2 left");
    bytes_of("\x01\xE1\xF5\x05\0\0\0\0{", 9, 100000009, "limit 33554432"); /* 100,000,001 bytes, sparse */
    bytes_of("GGUF\x03\0\0\0", 8, 100, "a GGUF file");
    bytes_of("version https://git-lfs", 23, 100, "Git LFS");
}

static void not_json(void **state)
{
    (void)state;
    header("[]", 0, SR_ERR_FORMAT, "does not begin with {");
    header(" {}", 0, SR_ERR_FORMAT, "does not begin with {");
    header("{}x", 0, SR_ERR_FORMAT, "line 1");
    header("{", 0, SR_ERR_FORMAT, "does not begin with {");
    header("{\"a\":", 0, SR_ERR_FORMAT, "line 1");
    header("{\"a\xFF\":1}", 0, SR_ERR_FORMAT, "line 1");
    header("{\"a\":1}", 0, SR_ERR_FORMAT, "not an object");
    header("{\"a\":{}}", 0, SR_ERR_FORMAT, "a.dtype: missing");
    header("{\"\":{}}", 0, SR_ERR_FORMAT, "no name");
}

static void duplicates(void **state)
{
    (void)state;
    header("{" T("a", "U8", "[1]", "[0,1]") "," T("a", "U8", "[1]", "[1,2]") "}", 2, SR_ERR_FORMAT, "duplicate");
    header("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, SR_ERR_FORMAT, "duplicate");
}

static void spans(void **state)
{
    (void)state;
    header("{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[2]", "[1,3]") "}", 3, SR_ERR_FORMAT, "tensors a and b overlap");
    header("{" T("a", "U8", "[1]", "[0,1]") "," T("b", "U8", "[1]", "[2,3]") "}", 3, SR_ERR_FORMAT, "1 bytes before tensor b");
    header("{" T("a", "U8", "[1]", "[1,2]") "}", 2, SR_ERR_FORMAT, "1 bytes before tensor a");
    header("{" T("a", "U8", "[1]", "[2,1]") "}", 2, SR_ERR_FORMAT, "a.data_offsets: [2, 1]");
    header("{" T("a", "U8", "[1]", "[0,1]") "}", 2, SR_ERR_FORMAT, "1 bytes after the last tensor");
    header("{" T("a", "U8", "[2]", "[0,2]") "}", 1, SR_ERR_FORMAT, "within 1 bytes");
    header("{" T("a", "U8", "[1]", "[0]") "}", 1, SR_ERR_FORMAT, "1 numbers, want 2");
    header("{" T("a", "U8", "[1]", "[-1,0]") "}", 1, SR_ERR_FORMAT, "number 0 is no whole number");
    header("{" T("a", "U8", "[1]", "[0,18446744073709551616]") "}", 1, SR_ERR_FORMAT, "line 1");
}

static void shapes(void **state)
{
    (void)state;
    header("{" T("a", "U8", "[4294967296,4294967296]", "[0,1]") "}", 1, SR_ERR_FORMAT, "more than 2^63");
    header("{" T("a", "F64", "[1152921504606846977,2]", "[0,16]") "}", 16, SR_ERR_FORMAT, "16 bytes for");
    header("{" T("a", "F32", "[2]", "[0,4]") "}", 4, SR_ERR_FORMAT, "4 bytes for 2 elements of F32");
    header("{" T("a", "F4", "[3]", "[0,1]") "}", 1, SR_ERR_FORMAT, "1 bytes for 3 elements of F4");
    header("{" T("a", "U8", "[-1]", "[0,1]") "}", 1, SR_ERR_FORMAT, "dimension 0");
    header("{" T("a", "U8", "[1.5]", "[0,1]") "}", 1, SR_ERR_FORMAT, "dimension 0");
    header("{" T("a", "U8", "[\"4\"]", "[0,4]") "}", 4, SR_ERR_FORMAT, "dimension 0");
    header("{" T("a", "U8", "[1e3]", "[0,1000]") "}", 1000, SR_ERR_FORMAT, "dimension 0");
    header("{" T("a", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, SR_ERR_FORMAT, "9 dimensions");
    header("{" T("a", "U8", "4", "[0,4]") "}", 4, SR_ERR_FORMAT, "a.shape: an integer, want an array");
}

static void dtypes(void **state)
{
    (void)state;
    header("{" T("a", "F128", "[1]", "[0,16]") "}", 16, SR_ERR_FORMAT, "\"F128\" is no dtype");
    header("{" T("a", "f32", "[1]", "[0,4]") "}", 4, SR_ERR_FORMAT, "\"f32\" is no dtype");
    header("{\"a\":{\"dtype\":null,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, SR_ERR_FORMAT, "a.dtype: missing");
    header("{" T("model.norm.weight", "F8_E4M3", "[1]", "[0,1]") "}", 1, SR_ERR_UNSUPPORTED, "dtype F8_E4M3 is not supported");
    header("{\"__metadata__\":{\"a\":1}}", 0, SR_ERR_FORMAT, "__metadata__.a: not a string");
    header("{\"__metadata__\":[]}", 0, SR_ERR_FORMAT, "not an object");
}

/* Legal, though not for a tensor of a model: the file is read and the tensor that is needed is missing. */
static void legal_oddities(void **state)
{
    (void)state;
    header("{" T("a", "U8", "[0,4]", "[0,0]") "}", 0, SR_ERR_FORMAT, "lm_head.weight is missing");
    header("{" T("a", "U8", "[]", "[0,1]") "}   ", 1, SR_ERR_FORMAT, "lm_head.weight is missing");
    header("{" T("model.norm.weight", "F32", "[0,4]", "[0,0]") "}", 0, SR_ERR_FORMAT, "none of them 0");
    header("{" T("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", "[1]", "[0,4]") "}", 4, SR_ERR_FORMAT, "lm_head.weight is missing");
    header("{" T("model.layers.0.self_attn.o_proj.bias", "F32", "[1]", "[0,4]") "}", 4, SR_ERR_UNSUPPORTED, "o_proj.bias: not known here");
    header("{" T("model.layers.0.mlp.experts.0.up_proj.weight", "F32", "[1]", "[0,4]") "}", 4, SR_ERR_UNSUPPORTED, "does not call for");
    header("{" T("model.layers.0.self_attn.q_proj.weight", "F32", "[1,1]", "[0,4]") "}", 4, SR_ERR_FORMAT, "no whole heads");
}

/* ---- shards ---- */

static const char *sharded(void) { return good_folder("qwen2", &(struct hf_write){.n_shards = 2}); }

static void set_index(const char *folder, const char *text)
{
    FILE *f = fopen(within(folder, "model.safetensors.index.json"), "wb");
    fputs(text, f);
    fclose(f);
}

static void index_names(void **state)
{
    static const struct { const char *name, *text; } rows[] = {
        {"../model-00001-of-00002.safetensors", "is no name of a safetensors file"},
        {"/etc/passwd", "is no name of a safetensors file"},
        {"config.json", "is no name of a safetensors file"},
        {".safetensors", "is no name of a safetensors file"},
        {"model-00003-of-00002.safetensors", "is missing"},
        {"link.safetensors", "is a link to outside"}};
    const char *folder = sharded();
    char text[256];
    (void)state;
    assert_int_equal(symlink("/dev/null", within(folder, "link.safetensors")), 0);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        snprintf(text, sizeof(text), "{\"weight_map\":{\"model.norm.weight\":\"%s\"}}", rows[i].name);
        set_index(folder, text);
        says(open_only(folder), SR_ERR_FORMAT, rows[i].text);
    }
    set_index(folder, "{}");
    says(open_only(folder), SR_ERR_FORMAT, "$.weight_map: missing");
    set_index(folder, "{\"weight_map\":{}}");
    says(open_only(folder), SR_ERR_FORMAT, "empty");
    set_index(folder, "{\"weight_map\":{\"a\":1}}");
    says(open_only(folder), SR_ERR_FORMAT, "$.weight_map.a: not a string");
    set_index(folder, "{\"weight_map\":{\"absent\":\"model-00001-of-00002.safetensors\"}}");
    says(open_only(folder), SR_ERR_FORMAT, "absent: this tensor is not in");
    set_index(folder, "{\"weight_map\":{\"absent\":\"model-00001-of-00002.safetensors\"}");
    says(open_only(folder), SR_ERR_FORMAT, "line 1");
}

/* A link within the folder is fine, and so is one into the blobs of the cache that the folder is a snapshot in. */
static void links_within(void **state)
{
    char root[256], folder[300], line[2400];
    (void)state;
    snprintf(root, sizeof(root), "%s", fresh_folder());
    const char *from = sharded();
    snprintf(folder, sizeof(folder), "%s/snapshots/abc", root);
    snprintf(line, sizeof(line), "mkdir -p %s %s/blobs && cp %s/*.json %s && for f in %s/*.safetensors; do cp $f %s/blobs/; ln -s ../../blobs/$(basename $f) %s/; done",
             folder, root, from, folder, from, root, folder);
    assert_int_equal(system(line), 0);
    says(open_model(folder), SR_OK, "");
    snprintf(line, sizeof(line), "rm -r %s/blobs %s/snapshots", root, root);
    assert_int_equal(system(line), 0);
}

static void tensor_twice(void **state)
{
    const char *folder = sharded();
    char line[1200];
    (void)state;
    snprintf(line, sizeof(line), "cp %s/model-00001-of-00002.safetensors %s/model-00002-of-00002.safetensors", folder, folder);
    assert_int_equal(system(line), 0);
    says(open_only(folder), SR_ERR_FORMAT, "is in two files");
}

static void no_weights(void **state)
{
    const char *folder = good_folder("qwen2", NULL);
    (void)state;
    assert_int_equal(unlink(within(folder, "model.safetensors")), 0);
    says(open_only(folder), SR_ERR_IO, "neither model.safetensors nor");
    assert_int_equal(unlink(within(folder, "config.json")), 0);
    says(open_only(folder), SR_ERR_IO, "config.json");
}

/* ---- config.json ---- */

/* Opens a good folder of the family after `change` was merged over its config.json. */
static void config(const char *family, const char *change, sr_status want, const char *text)
{
    json_error_t at;
    const struct hf_write o = {.llama3_old_len = 256, .config = json_loads(change, 0, &at)};
    assert_non_null(o.config);
    says(open_model(good_folder(family, &o)), want, text);
}

static void config_text(const char *text, const char *what)
{
    const char *folder = header_folder();
    FILE *f = fopen(within(folder, "config.json"), "wb");
    fputs(text, f);
    fclose(f);
    says(open_only(folder), SR_ERR_FORMAT, what);
}

static void broken_config(void **state)
{
    static char deep[100002];
    (void)state;
    memset(deep, '[', sizeof(deep) - 1);
    memcpy(deep, "{\"a\":", 5);
    config_text(deep, "depth");
    config_text("{\"model_type\":\"llama\",\"model_type\":\"llama\"}", "duplicate");
    config_text("{\"rms_norm_eps\":1e400}", "overflow");
    config_text("{\"rms_norm_eps\":NaN}", "line 1");
    config_text("{}", "$.model_type: missing");
    config_text("{\"model_type\":7}", "an integer, want a string");
}

static void wrong_fields(void **state)
{
    (void)state;
    config("llama2", "{\"num_hidden_layers\":\"2\"}", SR_ERR_FORMAT, "$.num_hidden_layers: a string, want an integer");
    config("llama2", "{\"num_hidden_layers\":2.5}", SR_ERR_FORMAT, "a number, want an integer");
    config("llama2", "{\"num_hidden_layers\":-1}", SR_ERR_FORMAT, "$.num_hidden_layers: -1");
    config("llama2", "{\"num_hidden_layers\":1000000}", SR_ERR_FORMAT, "1000000, want 1..512");
    config("llama2", "{\"num_hidden_layers\":3}", SR_ERR_FORMAT, "tensors are missing");
    config("llama2", "{\"hidden_size\":null}", SR_ERR_FORMAT, "$.hidden_size: missing");
    config("llama2", "{\"hidden_size\":128}", SR_ERR_FORMAT, "want [128");
    config("llama2", "{\"vocab_size\":4}", SR_ERR_FORMAT, "vocab_size is 4");
    config("llama2", "{\"vocab_size\":300}", SR_ERR_FORMAT, "token_embd.weight: shape");
    config("llama2", "{\"rms_norm_eps\":-1}", SR_ERR_FORMAT, "layer_norm_rms_epsilon");
    config("llama2", "{\"num_attention_heads\":0}", SR_ERR_FORMAT, "head_count");
    config("llama2", "{\"tie_word_embeddings\":\"no\"}", SR_ERR_FORMAT, "a string, want true or false");
    config("llama3.2", "{\"tie_word_embeddings\":false}", SR_ERR_FORMAT, "lm_head.weight is missing");
    config("llama2", "{\"eos_token_id\":[2,100000]}", SR_ERR_FORMAT, "not a token id below");
}

static void other_models(void **state)
{
    (void)state;
    config("mixtral", "{\"sliding_window\":4096}", SR_ERR_UNSUPPORTED, "sliding_window");
    config("mixtral", "{\"num_local_experts\":7}", SR_ERR_UNSUPPORTED, "config.json does not call for");
    config("mixtral", "{\"num_local_experts\":9}", SR_ERR_FORMAT, "block_sparse_moe.experts.8.w1.weight is missing");
    config("mixtral", "{\"num_experts_per_tok\":9}", SR_ERR_FORMAT, "9 of 8");
    config("llama2", "{\"model_type\":\"gemma2\"}", SR_ERR_UNSUPPORTED, "\"gemma2\" is not known here; known: llama");
    config("llama2", "{\"hidden_act\":\"gelu\"}", SR_ERR_UNSUPPORTED, "$.hidden_act: \"gelu\" is not supported");
    config("llama2", "{\"mlp_bias\":true}", SR_ERR_UNSUPPORTED, "mlp_bias");
    config("llama2", "{\"quantization_config\":{\"quant_method\":\"gptq\"}}", SR_ERR_UNSUPPORTED, "quantization_config: \"gptq\"");
    config("llama2", "{\"final_logit_softcapping\":30.0}", SR_ERR_UNSUPPORTED, "final_logit_softcapping: 30 is not supported");
    config("qwen2", "{\"use_sliding_window\":true}", SR_ERR_UNSUPPORTED, "use_sliding_window");
    config("qwen3", "{\"layer_types\":[\"full_attention\",\"sliding_attention\"]}", SR_ERR_UNSUPPORTED, "layer 1 is \"sliding_attention\"");
    config("qwen3moe", "{\"norm_topk_prob\":false}", SR_ERR_UNSUPPORTED, "norm_topk_prob");
    config("qwen3moe", "{\"num_experts\":17}", SR_ERR_FORMAT, "experts.16.gate_proj.weight is missing");
    config("qwen3moe", "{\"num_experts\":15}", SR_ERR_UNSUPPORTED, "does not call for");
    config("llama2", "{\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":2.0}}", SR_ERR_UNSUPPORTED, "\"dynamic\" is not known here");
    config("llama2", "{\"rope_scaling\":{\"rope_type\":\"linear\"}}", SR_ERR_FORMAT, "$.rope_scaling.factor: missing");
    config("llama2", "{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0}}", SR_ERR_FORMAT, "low_freq_factor: missing");
    config("qwen2", "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"mscale\":0.7}}", SR_ERR_UNSUPPORTED, "mscale");
}

static void other_spellings(void **state)
{
    (void)state;
    config("qwen3", "{\"rope_theta\":null,\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":1000000.0},\"dtype\":\"bfloat16\"}", SR_OK, "");
    config("yi", "{\"model_type\":\"Yi\",\"sliding_window\":null,\"mlp_only_layers\":[]}", SR_OK, "");
    config("llama2", "{\"eos_token_id\":[2,262],\"hidden_act\":\"silu\",\"layer_types\":[\"full_attention\",\"full_attention\"]}", SR_OK, "");
}

/* ---- values and tensors ---- */

static void bad_norm(void **state)
{
    const struct tiny_tensor_change nan[] = {{.name = "blk.1.ffn_norm.weight", .nan_at = 3}};
    struct tiny_spec s = tiny_spec_default();
    const char *gguf = tiny_path("nan.gguf"), *folder = fresh_folder();
    (void)state;
    s.tensor_changes = nan;
    s.n_tensor_changes = 1;
    tiny_model_write(gguf, &s);
    hf_write_folder(gguf, folder, &(struct hf_write){0});
    says(open_model(folder), SR_ERR_FORMAT, "blk.1.ffn_norm.weight: row 0, element 3: NaN");
}

/* A matrix that no block can hold is named with its row. */
static void bad_matrix(void **state)
{
    const struct tiny_tensor_change nan[] = {{.name = "blk.0.ffn_up.weight", .nan_at = 64 * 5 + 7}};
    struct tiny_spec s = tiny_spec_default();
    const char *gguf = tiny_path("nan.gguf");
    const sr_model_options o = {.n_threads = 2, .quantize = "q4_0"};
    sr_model *m = NULL;
    (void)state;
    s.tensor_changes = nan;
    s.n_tensor_changes = 1;
    tiny_model_write(gguf, &s);
    says(sr_model_open(&m, gguf, &o, &err), SR_ERR_FORMAT, "blk.0.ffn_up.weight, row 5");
    const sr_model_options other = {.n_threads = 1, .quantize = "q9_9"};
    says(sr_model_open(&m, gguf, &other, &err), SR_ERR_USAGE, "\"q9_9\" is not one of q4_0");
}

static const struct gguf_tensor *tensor(const struct gguf *g, const char *name)
{
    const struct gguf_tensor *t = sr_gguf_find_tensor(g, name);
    if (!t) fail_msg("no tensor %s", name);
    return t;
}

/* The bytes of the blocks are those of quantizing each row; vectors and routers stay, the tables at both ends get q8_0. */
static void made_blocks(void **state)
{
    static const sr_dtype types[] = {SR_DTYPE_Q8_0, SR_DTYPE_Q5_1, SR_DTYPE_Q5_0, SR_DTYPE_Q4_1, SR_DTYPE_Q4_0};
    char folder[256];
    (void)state;
    snprintf(folder, sizeof(folder), "%s", good_folder("qwen3moe", NULL));
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        struct gguf *floats, *blocks;
        const struct settle_options keep = {0}, make = {.quantize = sr_dtype_name(types[i])};
        assert_int_equal(sr_gguf_open(&floats, folder, &err), SR_OK);
        assert_int_equal(sr_gguf_open(&blocks, folder, &err), SR_OK);
        assert_int_equal(sr_gguf_settle(floats, &keep, NULL, &err), SR_OK);
        assert_int_equal(sr_gguf_settle(blocks, &make, NULL, &err), SR_OK);
        static const char *const names[] = {"blk.1.attn_q.weight", "blk.0.ffn_up_exps.weight", "token_embd.weight", "output.weight"};
        for (int k = 0; k < 4; k++) {
            const struct gguf_tensor *a = tensor(floats, names[k]), *b = tensor(blocks, names[k]);
            const sr_dtype want = k < 2 ? types[i] : SR_DTYPE_Q8_0;
            assert_int_equal(b->dtype, want);
            uint8_t *row = sr_alloc(sr_row_bytes(want, a->ne[0]));
            for (int64_t r = 0; r < a->ne[1] * a->ne[2]; r++) {
                const float *x = (const float *)(const void *)sr_gguf_row(a, r);
                assert_int_equal(sr_quantize_row(want, x, row, a->ne[0], &err), SR_OK);
                assert_memory_equal(row, (const uint8_t *)b->data + (size_t)r * sr_row_bytes(want, a->ne[0]), sr_row_bytes(want, a->ne[0]));
            }
            sr_free(row);
        }
        assert_int_equal(tensor(blocks, "blk.0.attn_norm.weight")->dtype, SR_DTYPE_F32);
        assert_int_equal(tensor(blocks, "blk.0.ffn_gate_inp.weight")->dtype, SR_DTYPE_F32);
        assert_true(sr_gguf_weight_bytes(blocks) < sr_gguf_weight_bytes(floats) / 2);
        sr_gguf_close(floats);
        sr_gguf_close(blocks);
    }
}

/* Rows that blocks do not divide become f16; what lies at an even address in the file is not copied. */
static void kept_in_place(void **state)
{
    struct gguf *g;
    (void)state;
    assert_int_equal(sr_gguf_open(&g, good_folder("qwen2", NULL), &err), SR_OK);
    const void *before = tensor(g, "blk.0.ffn_up.weight")->data;
    assert_int_equal(sr_gguf_settle(g, &(struct settle_options){0}, NULL, &err), SR_OK);
    assert_ptr_equal(tensor(g, "blk.0.ffn_up.weight")->data, before);
    assert_false(tensor(g, "blk.0.ffn_up.weight")->owned);
    assert_int_equal(sr_gguf_settle(g, &(struct settle_options){.quantize = "q4_0"}, NULL, &err), SR_OK);
    assert_int_equal(tensor(g, "blk.0.ffn_up.weight")->dtype, SR_DTYPE_F16); /* 112 columns */
    sr_gguf_close(g);
    assert_int_equal(sr_gguf_open(&g, good_folder("qwen3moe", NULL), &err), SR_OK);
    assert_int_equal(sr_gguf_settle(g, &(struct settle_options){0}, NULL, &err), SR_OK);
    const struct gguf_tensor *experts = tensor(g, "blk.0.ffn_up_exps.weight");
    assert_true(experts->pieces && !experts->owned);
    assert_ptr_equal(sr_gguf_row(experts, experts->ne[1] * 3), experts->pieces[3]);
    sr_gguf_close(g);
}

/* Which matrix gets which type, of 8 layers: the first, the last, and each third one between get more. */
static void mixed_types(void **state)
{
    static const sr_dtype more[8] = {SR_DTYPE_Q6_K, SR_DTYPE_Q4_K, SR_DTYPE_Q4_K, SR_DTYPE_Q6_K, SR_DTYPE_Q4_K, SR_DTYPE_Q4_K, SR_DTYPE_Q6_K, SR_DTYPE_Q6_K};
    struct tiny_spec spec = tiny_spec_default();
    struct gguf *g;
    char name[64];
    (void)state;
    spec.n_layers = 8;
    spec.n_embd = 256;
    spec.n_heads = 4;
    spec.n_kv_heads = 1;
    spec.head_dim = 64;
    spec.n_ff = 256;
    const char *gguf = tiny_path("mixed.gguf");
    tiny_model_write(gguf, &spec);
    assert_int_equal(sr_gguf_open(&g, gguf, &err), SR_OK);
    assert_int_equal(sr_gguf_settle(g, &(struct settle_options){.quantize = "q4_k"}, NULL, &err), SR_OK);
    assert_int_equal(tensor(g, "blk.0.attn_v.weight")->dtype, SR_DTYPE_Q4_K);
    sr_gguf_close(g);
    assert_int_equal(sr_gguf_open(&g, gguf, &err), SR_OK);
    assert_int_equal(sr_gguf_settle(g, &(struct settle_options){.quantize = "q4_k_m"}, NULL, &err), SR_OK);
    for (int i = 0; i < 8; i++) {
        snprintf(name, sizeof(name), "blk.%d.attn_v.weight", i);
        assert_int_equal(tensor(g, name)->dtype, more[i]);
        snprintf(name, sizeof(name), "blk.%d.ffn_down.weight", i);
        assert_int_equal(tensor(g, name)->dtype, more[i]);
        snprintf(name, sizeof(name), "blk.%d.attn_q.weight", i);
        assert_int_equal(tensor(g, name)->dtype, SR_DTYPE_Q4_K);
    }
    assert_int_equal(tensor(g, "token_embd.weight")->dtype, SR_DTYPE_Q6_K);
    sr_gguf_close(g);
    assert_int_equal(sr_gguf_open(&g, good_folder("qwen3", NULL), &err), SR_OK); /* rows of 64 */
    assert_int_equal(sr_gguf_settle(g, &(struct settle_options){.quantize = "q4_k"}, NULL, &err), SR_OK);
    assert_int_equal(tensor(g, "blk.0.attn_q.weight")->dtype, SR_DTYPE_Q5_0);
    assert_int_equal(tensor(g, "token_embd.weight")->dtype, SR_DTYPE_Q8_0);
    sr_gguf_close(g);
}

static int cancel(void *user, const char *stage, double share)
{
    (void)user;
    (void)share;
    return strcmp(stage, "quantize") == 0;
}

static void cancelled(void **state)
{
    const sr_model_options o = {.n_threads = 1, .quantize = "q8_0", .progress = cancel};
    sr_model *m = NULL;
    (void)state;
    says(sr_model_open(&m, good_folder("qwen3", NULL), &o, &err), SR_ERR_USAGE, "cancelled");
}

/* What the model says of itself is what the GGUF of the same weights says; the identity tells folder, blocks and weights
 * apart, which a session shows. */
static void sessions_know_their_folder(void **state)
{
    char a[256], b[256];
    const char *file = tiny_path("x.session");
    const sr_model_options plain = {.n_threads = 1}, blocks = {.n_threads = 1, .quantize = "q8_0"};
    const sr_session_options so = sr_session_options_default();
    sr_model *m;
    sr_session *s;
    int32_t ids[20];
    (void)state;
    snprintf(a, sizeof(a), "%s/", good_folder("qwen3", NULL));
    snprintf(b, sizeof(b), "%s", good_folder("qwen3", &(struct hf_write){.config = json_loads("{\"rms_norm_eps\":2e-5}", 0, NULL)}));
    tiny_tokens(5, ids, 20);
    assert_int_equal(sr_model_open(&m, a, &plain, &err), SR_OK);
    assert_int_equal(sr_session_new(&s, m, &so, &err), SR_OK);
    assert_int_equal(sr_session_prefill(s, ids, 20, NULL, NULL, NULL, &err), SR_OK);
    assert_int_equal(sr_session_save(s, file, &err), SR_OK);
    sr_session_free(s);
    sr_model_close(m);
    static const struct { int other, quantize; sr_status want; } rows[] = {{0, 0, SR_OK}, {0, 1, SR_ERR_UNSUPPORTED}, {1, 0, SR_ERR_UNSUPPORTED}};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(sr_model_open(&m, rows[i].other ? b : a, rows[i].quantize ? &blocks : &plain, &err), SR_OK);
        assert_int_equal(sr_session_new(&s, m, &so, &err), SR_OK);
        assert_int_equal(sr_session_restore(s, file, &err), rows[i].want);
        sr_session_free(s);
        sr_model_close(m);
    }
}

static void information(void **state)
{
    const char *gguf = tiny_path("info.gguf"), *folder = fresh_folder();
    struct tiny_spec s = tiny_spec_default();
    sr_model_info x, y;
    sr_model *a, *b;
    (void)state;
    s.untied = 1;
    tiny_model_write(gguf, &s);
    hf_write_folder(gguf, folder, &(struct hf_write){.n_shards = 3});
    assert_int_equal(sr_model_open(&a, gguf, &(sr_model_options){.n_threads = 1}, &err), SR_OK);
    assert_int_equal(sr_model_open(&b, folder, &(sr_model_options){.n_threads = 1}, &err), SR_OK);
    sr_model_get_info(a, &x);
    sr_model_get_info(b, &y);
    assert_string_equal(x.architecture, y.architecture);
    assert_string_equal(x.tokenizer, y.tokenizer);
    assert_string_equal(x.chat_template, y.chat_template);
    assert_string_equal(x.type_name, y.type_name);
    assert_int_equal(x.n_params, y.n_params);
    assert_int_equal(x.n_vocab, y.n_vocab);
    assert_int_equal(x.n_tensors, y.n_tensors);
    assert_int_equal(x.n_ctx_train, y.n_ctx_train);
    assert_int_equal(y.n_parts, 3);
    assert_false(y.tied_embeddings);
    assert_string_equal(y.name, strrchr(folder, '/') + 1);
    sr_model_close(a);
    sr_model_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lengths), cmocka_unit_test(not_json), cmocka_unit_test(duplicates), cmocka_unit_test(spans), cmocka_unit_test(shapes),
        cmocka_unit_test(dtypes), cmocka_unit_test(legal_oddities), cmocka_unit_test(index_names), cmocka_unit_test(links_within),
        cmocka_unit_test(tensor_twice), cmocka_unit_test(no_weights), cmocka_unit_test(broken_config), cmocka_unit_test(wrong_fields),
        cmocka_unit_test(other_models), cmocka_unit_test(other_spellings), cmocka_unit_test(bad_norm), cmocka_unit_test(bad_matrix),
        cmocka_unit_test(made_blocks), cmocka_unit_test(kept_in_place), cmocka_unit_test(mixed_types), cmocka_unit_test(cancelled),
        cmocka_unit_test(sessions_know_their_folder), cmocka_unit_test(information),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("hf_folder", tests, NULL, NULL);
}
