/* SPDX-License-Identifier: Apache-2.0
 *
 * A damaged session file: restoring it into a live session must end in one clean line and leave the live one as it was, or
 * be good for a further step. Input: one byte of flags, then edits of three bytes offset (from the front, or from the end
 * of the header) and one byte value on a file that this build saved; so inputs stay deep whatever version or model hash
 * files carry. Flags: 1 the rest is a whole file instead, 2 right checksum, 4 right size, 8 a session with a sketch,
 * 16 cut at the first edit's offset.
 */
#include "fuzz.h"

#include "sinkrouter/engine.h"

#include "formats/gguf_write.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

enum { VOCAB = 8, WIDTH = 8, LONG = 2060, MAX_FILE = 1 << 20, HEADER = 176, SIZE_AT = 16, CHECKSUM = 16 };

static const char *const folder = "/tmp";
static char model_path[64], file_path[64];
static sr_model *model;
static struct { uint8_t *data; size_t n; } saved[2];
static int32_t ids[LONG + 8];

static void require(int holds, const char *what)
{
    if (holds) return;
    fprintf(stderr, "fuzz_session: not true: %s\n", what);
    abort();
}

static void remove_files(void)
{
    unlink(model_path);
    unlink(file_path);
}

/* ---- a model of one layer and one head ---- */

static void put_tensors(struct gguf_writer *w)
{
    static const struct { const char *name; int64_t n_in, n_out; } all[] = {
        {"token_embd.weight", WIDTH, VOCAB},  {"output_norm.weight", WIDTH, 0},    {"blk.0.attn_norm.weight", WIDTH, 0},
        {"blk.0.ffn_norm.weight", WIDTH, 0},  {"blk.0.attn_q.weight", WIDTH, WIDTH}, {"blk.0.attn_k.weight", WIDTH, WIDTH},
        {"blk.0.attn_v.weight", WIDTH, WIDTH}, {"blk.0.attn_output.weight", WIDTH, WIDTH}, {"blk.0.ffn_gate.weight", WIDTH, WIDTH},
        {"blk.0.ffn_up.weight", WIDTH, WIDTH}, {"blk.0.ffn_down.weight", WIDTH, WIDTH}};
    enum { N = sizeof(all) / sizeof(all[0]) };
    float x[WIDTH * WIDTH];
    for (int i = 0; i < N; i++)
        sr_gguf_put_tensor(w, all[i].name, SR_DTYPE_F32, all[i].n_out ? 2 : 1, (int64_t[]){all[i].n_in, all[i].n_out}, NULL);
    for (int i = 0; i < N; i++) {
        const int n = (int)(all[i].n_in * (all[i].n_out ? all[i].n_out : 1));
        for (int k = 0; k < n; k++) x[k] = all[i].n_out ? (float)sin(i * 100 + k * 1.7) : 1.0f;
        sr_gguf_put_data(w, x, (size_t)n * sizeof(float), NULL);
    }
}

static void write_model(void)
{
    static const char *const tokens[VOCAB] = {"<unk>", "<s>", "</s>", "a", "b", "c", "d", "e"};
    static const int32_t types[VOCAB] = {2, 3, 3, 1, 1, 1, 1, 1};
    static const float scores[VOCAB] = {0};
    static const struct { const char *key; uint32_t v; } numbers[] = {
        {"llama.block_count", 1}, {"llama.context_length", 4096}, {"llama.embedding_length", WIDTH},
        {"llama.feed_forward_length", WIDTH}, {"llama.attention.head_count", 1}, {"tokenizer.ggml.bos_token_id", 1}};
    struct gguf_writer *w = NULL;
    require(sr_gguf_writer_new(&w, model_path, NULL) == SR_OK, "model file");
    sr_gguf_put_str(w, "general.architecture", "llama", NULL);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) sr_gguf_put_u32(w, numbers[i].key, numbers[i].v, NULL);
    sr_gguf_put_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f, NULL);
    sr_gguf_put_str(w, "tokenizer.ggml.model", "llama", NULL);
    sr_gguf_put_strs(w, "tokenizer.ggml.tokens", tokens, VOCAB, NULL);
    sr_gguf_put_f32s(w, "tokenizer.ggml.scores", scores, VOCAB, NULL);
    sr_gguf_put_i32s(w, "tokenizer.ggml.token_type", types, VOCAB, NULL);
    put_tensors(w);
    require(sr_gguf_writer_finish(w, NULL) == SR_OK, "model file");
}

static sr_session *new_session(int with_sketch)
{
    sr_session *s = NULL;
    sr_session_options o = sr_session_options_default();
    o.route.mode = with_sketch ? SR_ROUTE_MASS : SR_ROUTE_DENSE;
    o.route.window = 32;
    o.route.rank = 8; /* both planes */
    require(sr_session_new(&s, model, &o, NULL) == SR_OK, "session");
    return s;
}

/* ---- files ---- */

static size_t load(uint8_t *data)
{
    FILE *f = fopen(file_path, "rb");
    require(f != NULL, "session file");
    const size_t n = fread(data, 1, MAX_FILE, f);
    fclose(f);
    return n;
}

static void store(const uint8_t *data, size_t n)
{
    FILE *f = fopen(file_path, "wb");
    if (!f || fwrite(data, 1, n, f) != n) exit(99);
    fclose(f);
}

static void set_up(void)
{
    sr_error err;
    const sr_model_options o = {.n_threads = 1};
    snprintf(model_path, sizeof(model_path), "%s/sr-fuzz-%ld.gguf", folder, (long)getpid());
    snprintf(file_path, sizeof(file_path), "%s/sr-fuzz-%ld.session", folder, (long)getpid());
    atexit(remove_files);
    write_model();
    if (sr_model_open(&model, model_path, &o, &err) != SR_OK) require(0, err.text);
    for (int i = 0; i < LONG + 8; i++) ids[i] = 3 + i * i % 5;
    for (int k = 0; k < 2; k++) {
        sr_session *s = new_session(k);
        const int n = k ? LONG : 5;
        require(sr_session_prefill(s, ids, n, NULL, NULL, NULL, &err) == SR_OK, "prefill");
        require(sr_session_decode(s, 3, &err) == SR_OK, "decode");
        require(sr_session_save(s, file_path, &err) == SR_OK, "save");
        sr_session_free(s);
        saved[k].data = malloc(MAX_FILE);
        saved[k].n = load(saved[k].data);
        require(saved[k].n > HEADER + CHECKSUM && saved[k].n < MAX_FILE, "size of the file");
    }
}

static size_t edit(uint8_t *file, size_t n, int flags, const uint8_t *edits, size_t n_edits)
{
    size_t cut = n;
    for (size_t i = 0; i + 4 <= n_edits; i += 4) {
        const size_t at = (edits[i] | (size_t)edits[i + 1] << 8 | (size_t)edits[i + 2] << 16) % n;
        file[at] = edits[i + 3];
        if ((flags & 16) && i == 0) cut = at;
    }
    return cut;
}

static void seal(uint8_t *file, size_t n, int flags)
{
    const uint64_t size = n;
    XXH128_canonical_t sum;
    if (n < HEADER + CHECKSUM) return;
    if (flags & 4) memcpy(file + SIZE_AT, &size, sizeof(size));
    if (!(flags & 2)) return;
    XXH128_canonicalFromHash(&sum, XXH3_128bits(file, n - CHECKSUM));
    memcpy(file + n - CHECKSUM, sum.digest, CHECKSUM);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t file[MAX_FILE];
    if (size == 0 || size > MAX_FILE / 2) return 0;
    if (!model) set_up();
    const int flags = data[0], k = (flags & 8) != 0;
    size_t n = size - 1;
    if (flags & 1) {
        memcpy(file, data + 1, n);
    } else {
        memcpy(file, saved[k].data, saved[k].n);
        n = edit(file, saved[k].n, flags, data + 1, size - 1);
    }
    seal(file, n, flags);
    store(file, n);
    sr_session *s = new_session(k);
    sr_error err = {0};
    float logits[VOCAB];
    require(sr_session_prefill(s, ids, 9, NULL, NULL, NULL, &err) == SR_OK, "prefill");
    memcpy(logits, sr_session_logits(s), sizeof(logits));
    const sr_status st = sr_session_restore(s, file_path, &err);
    if (st != SR_OK) {
        require(st == SR_ERR_FORMAT || st == SR_ERR_UNSUPPORTED || st == SR_ERR_NUMERIC, err.text);
        for (const char *c = err.text; *c; c++) require((unsigned char)*c >= ' ' && *c != 0x7f, "a printable line");
        require(err.text[0] && sr_session_len(s) == 9 && memcmp(logits, sr_session_logits(s), sizeof(logits)) == 0, "the live session stays");
    }
    const sr_status step = sr_session_decode(s, 4, &err);
    require(step == SR_OK || (st == SR_OK && (step == SR_ERR_NUMERIC || step == SR_ERR_USAGE)), err.text);
    sr_session_free(s);
    return 0;
}
