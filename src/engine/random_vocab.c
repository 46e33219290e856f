/* SPDX-License-Identifier: Apache-2.0
 *
 * The tokenizer of a synthetic model: special tokens first, then bytes and a few words on the lowest ids that are free.
 */
#include "engine/random_vocab.h"

#include "base/memory.h"

#include <stdio.h>
#include <string.h>

enum { TEXT = 32, NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER = 4, UNUSED = 5, BYTE = 6 };

struct special { int32_t id, kind; const char *text; };

/* One family of tokenizers. eos and bos are texts; NULL: none. */
struct vocabulary {
    const char *model, *pre, *bos, *eos, *chat;
    int add_bos;
    struct special special[32];
};

#define CHATML                                                                                                          \
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}" \
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
#define LLAMA3                                                                                                          \
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "     \
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"    \
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"          \
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"

/* clang-format off */
static const struct vocabulary vocabularies[] = {
    [VOCAB_LLAMA2] = {"llama", NULL, "<s>", "</s>", NULL, 1, {{0, UNKNOWN, "<unk>"}, {1, CONTROL, "<s>"}, {2, CONTROL, "</s>"}}},
    [VOCAB_YI] = {"llama", NULL, "<|startoftext|>", "<|im_end|>", CHATML, 0,
                  {{0, UNKNOWN, "<unk>"}, {1, CONTROL, "<|startoftext|>"}, {2, CONTROL, "<|endoftext|>"}, {6, CONTROL, "<|im_start|>"},
                   {7, CONTROL, "<|im_end|>"}, {8, CONTROL, "<|im_sep|>"}}},
    [VOCAB_LLAMA3] = {"gpt2", "llama-bpe", "<|begin_of_text|>", "<|eot_id|>", LLAMA3, 1,
                      {{128000, CONTROL, "<|begin_of_text|>"}, {128001, CONTROL, "<|end_of_text|>"}, {128006, CONTROL, "<|start_header_id|>"},
                       {128007, CONTROL, "<|end_header_id|>"}, {128008, CONTROL, "<|eom_id|>"}, {128009, CONTROL, "<|eot_id|>"},
                       {128010, CONTROL, "<|python_tag|>"}}},
    [VOCAB_QWEN] = {"gpt2", "qwen2", NULL, "<|im_end|>", CHATML, 0,
                    {{151643, CONTROL, "<|endoftext|>"}, {151644, CONTROL, "<|im_start|>"}, {151645, CONTROL, "<|im_end|>"},
                     {151657, USER, "<tool_call>"}, {151658, USER, "</tool_call>"}, {151659, CONTROL, "<|fim_prefix|>"},
                     {151660, CONTROL, "<|fim_middle|>"}, {151661, CONTROL, "<|fim_suffix|>"}, {151662, CONTROL, "<|fim_pad|>"},
                     {151663, CONTROL, "<|repo_name|>"}, {151664, CONTROL, "<|file_sep|>"}, {151665, USER, "<tool_response>"},
                     {151666, USER, "</tool_response>"}, {151667, USER, "<think>"}, {151668, USER, "</think>"}}},
    [VOCAB_SMOLLM] = {"gpt2", "smollm", "<|im_start|>", "<|im_end|>", CHATML, 0,
                      {{0, CONTROL, "<|endoftext|>"}, {1, CONTROL, "<|im_start|>"}, {2, CONTROL, "<|im_end|>"}}},
};
/* clang-format on */

struct draft {
    const struct vocabulary *v;
    int32_t n, next;      /* size; lowest id that may be free */
    char (*text)[TEXT];   /* [n] */
    const char **texts;   /* [n] */
    int32_t *kind;        /* [n], 0: free */
    float *score;         /* [n] */
    uint8_t *block;
};

static sr_status draft_new(struct draft *d, const struct vocabulary *v, int32_t n, sr_error *err)
{
    const size_t count = (size_t)n, bytes = count * (TEXT + sizeof(char *) + sizeof(int32_t) + sizeof(float)) + 256;
    *d = (struct draft){.v = v, .n = n, .block = sr_alloc_zero(1, bytes)};
    if (!d->block) return sr_fail_memory(err, bytes, "synthetic vocabulary");
    struct arena a = {d->block, 0};
    d->text = sr_arena_take(&a, count, TEXT);
    d->texts = sr_arena_take(&a, count, sizeof(char *));
    d->kind = sr_arena_take(&a, count, sizeof(int32_t));
    d->score = sr_arena_take(&a, count, sizeof(float));
    return SR_OK;
}

static void set(struct draft *d, int32_t id, int32_t kind, const char *text)
{
    snprintf(d->text[id], TEXT, "%s", text);
    d->kind[id] = kind;
    d->score[id] = kind == NORMAL ? -(float)id : 0.0f;
}

static void add(struct draft *d, int32_t kind, const char *text)
{
    while (d->kind[d->next]) d->next++;
    set(d, d->next, kind, text);
}

/* True ids, or the last of a vocabulary that is too small for them. */
static void put_special(struct draft *d)
{
    int32_t n = 0, most = 0;
    for (; d->v->special[n].text; n++)
        if (d->v->special[n].id > most) most = d->v->special[n].id;
    for (int32_t i = 0; i < n; i++)
        set(d, most < d->n ? d->v->special[i].id : d->n - n + i, d->v->special[i].kind, d->v->special[i].text);
}

/* The usual character of a byte in byte-level BPE: itself where it is printable, else the next from U+0100 on. */
static void put_bytes_bpe(struct draft *d)
{
    char text[4];
    int next = 256;
    for (int b = 0; b < 256; b++) {
        const int plain = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae, c = plain ? b : next++;
        if (c < 0x80) snprintf(text, sizeof(text), "%c", c);
        else snprintf(text, sizeof(text), "%c%c", 0xc0 | c >> 6, 0x80 | (c & 63));
        add(d, NORMAL, text);
    }
}

static void put_bytes_spm(struct draft *d)
{
    char text[8];
    for (int b = 0; b < 256; b++) {
        snprintf(text, sizeof(text), "<0x%02X>", b);
        add(d, BYTE, text);
    }
    add(d, NORMAL, "\xe2\x96\x81"); /* the mark of a space */
    for (int c = 0x21; c < 0x7f; c++) {
        snprintf(text, sizeof(text), "%c", c);
        add(d, NORMAL, text);
    }
}

static const char *const merges[] = {"t h", "th e", "\304\240 a", "e r", "i n", "o n"};
static const char *const merged[] = {"th", "the", "\304\240a", "er", "in", "on"};
enum { N_MERGES = sizeof(merges) / sizeof(merges[0]) };

static void fill(struct draft *d)
{
    char text[TEXT];
    put_special(d);
    if (d->v->pre) put_bytes_bpe(d);
    else put_bytes_spm(d);
    for (int i = 0; d->v->pre && i < N_MERGES; i++) add(d, NORMAL, merged[i]);
    for (int32_t id = 0; id < d->n; id++) {
        d->texts[id] = d->text[id];
        if (d->kind[id]) continue;
        snprintf(text, sizeof(text), "[PAD%d]", id);
        set(d, id, UNUSED, text);
        d->score[id] = -1000.0f;
    }
}

static uint32_t id_of(const struct draft *d, const char *text)
{
    int32_t id = 0;
    while (id < d->n - 1 && strcmp(d->text[id], text) != 0) id++;
    return (uint32_t)id;
}

static sr_status put(struct gguf_writer *w, const struct draft *d, sr_error *err)
{
    const struct vocabulary *v = d->v;
    const uint64_t n = (uint64_t)d->n;
    SR_TRY(sr_gguf_put_str(w, "tokenizer.ggml.model", v->model, err));
    if (v->pre) SR_TRY(sr_gguf_put_str(w, "tokenizer.ggml.pre", v->pre, err));
    SR_TRY(sr_gguf_put_strs(w, "tokenizer.ggml.tokens", d->texts, n, err));
    SR_TRY(sr_gguf_put_i32s(w, "tokenizer.ggml.token_type", d->kind, n, err));
    if (v->pre) SR_TRY(sr_gguf_put_strs(w, "tokenizer.ggml.merges", merges, N_MERGES, err));
    else SR_TRY(sr_gguf_put_f32s(w, "tokenizer.ggml.scores", d->score, n, err));
    if (v->bos) SR_TRY(sr_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", id_of(d, v->bos), err));
    SR_TRY(sr_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", id_of(d, v->eos), err));
    SR_TRY(sr_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", v->add_bos, err));
    return v->chat ? sr_gguf_put_str(w, "tokenizer.chat_template", v->chat, err) : SR_OK;
}

sr_status sr_random_vocab_put(struct gguf_writer *w, const struct model_shape *s, sr_error *err)
{
    struct draft d;
    SR_TRY(draft_new(&d, &vocabularies[s->vocab], s->n_vocab, err));
    fill(&d);
    const sr_status st = put(w, &d, err);
    sr_free(d.block);
    return st;
}
