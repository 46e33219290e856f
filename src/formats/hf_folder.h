/* SPDX-License-Identifier: Apache-2.0
 *
 * A model folder as published for transformers: config.json, generation_config.json, tokenizer.json or
 * tokenizer.model with tokenizer_config.json, a chat template, and weights in model.safetensors or in the shards that
 * model.safetensors.index.json names. Opened, it is a struct gguf like any other: values under GGUF's keys, tensors
 * under GGUF's names, data borrowed from the mapped files. What has no such key stands under tokenizer.hf.* and
 * general.sampling.*; docs/formats.md lists all. Knows names of files, fields and tensors, not what a pass computes.
 *
 * Rows SF1-SF10, TK and JT5 of the bad-input contract end here.
 */
#ifndef SR_FORMATS_HF_FOLDER_H
#define SR_FORMATS_HF_FOLDER_H

#include "formats/gguf.h"

enum hf_what {
    HF_MODEL,
    HF_TOKENIZER /* no weights are looked for, and config.json may be absent: for a vocabulary alone */
};

sr_status sr_hf_open(struct gguf **out, const char *path, enum hf_what what, sr_error *err);

int sr_is_folder(const char *path);

#endif
