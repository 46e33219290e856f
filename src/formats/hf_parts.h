/* SPDX-License-Identifier: Apache-2.0
 *
 * A folder while it is being read, for the hf_*.c files only. Each of them reads some of its files and puts what they
 * say into the gguf.
 */
#ifndef SR_FORMATS_HF_PARTS_H
#define SR_FORMATS_HF_PARTS_H

#include "formats/json_file.h"
#include "formats/source.h"

enum { HF_MAX_PATH = 4096, HF_MAX_CONFIG_BYTES = 16 << 20, HF_MAX_TOKENIZER_BYTES = 128 << 20 };

struct hf {
    const char *folder;
    struct gguf *g;
    json_t *config, *generation, *tok_config; /* NULL: the file is not there */
    char config_path[HF_MAX_PATH], generation_path[HF_MAX_PATH], tok_config_path[HF_MAX_PATH];
    char path[HF_MAX_PATH];  /* of the file at hand */
    const char *arch;        /* "llama": GGUF's name of the family; NULL without config.json */
    const char *experts_in;  /* what names of experts begin with within a layer; NULL without experts */
    int32_t n_layers, n_experts, n_vocab, n_kv_heads, head_dim;
    int tied;
    sr_error *err;
};

/* "<folder>/<name>" in dst; SR_ERR_IO where it is too long. */
sr_status sr_hf_join(const struct hf *h, char dst[HF_MAX_PATH], const char *name);
int sr_hf_exists(struct hf *h, const char *name);

/* config.json and generation_config.json to "<arch>.*" and general.*; fills the facts above. */
sr_status sr_hf_read_config(struct hf *h);
/* The scaling of rotary frequencies that config.json asks for; the Llama 3 kind is a tensor, added with the others. */
sr_status sr_hf_read_rope(struct hf *h);
int sr_hf_has_rope_tensor(const struct hf *h);
sr_status sr_hf_add_rope_tensor(struct hf *h);

/* Weights to tensors. */
sr_status sr_hf_read_tensors(struct hf *h);

/* tokenizer.json or tokenizer.model, tokenizer_config.json, chat template. */
sr_status sr_hf_read_tokenizer(struct hf *h);
sr_status sr_hf_read_chat_template(struct hf *h);

/* ---- between the files of the tokenizer ---- */

/* A vocabulary by id. */
struct hf_token {
    const char *text; /* borrowed */
    size_t bytes;
    int32_t kind; /* token type of GGUF; 0: no token has this id */
    float score;
};
struct hf_vocab {
    struct hf_token *token; /* [n] */
    int32_t n, cap;
};
/* Puts a token at id; the list grows. A second one of the same id replaces the first. */
sr_status sr_hf_vocab_set(struct hf_vocab *v, int64_t id, struct hf_token t, sr_error *err);
int32_t sr_hf_vocab_find(const struct hf_vocab *v, const char *text);

/* tokenizer.json: vocabulary and the values that only it has. `doc` must outlive v. */
sr_status sr_hf_read_tokenizer_json(struct hf *h, const json_t *doc, struct hf_vocab *v, int *adds_bos);

#endif
