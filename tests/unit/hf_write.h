/* SPDX-License-Identifier: Apache-2.0
 *
 * A GGUF model of byte-level BPE written as a model folder: config.json, tokenizer.json, tokenizer_config.json and
 * safetensors, with the same weights under their published names and in their published order of rows.
 */
#ifndef SR_TESTS_HF_WRITE_H
#define SR_TESTS_HF_WRITE_H

#include "formats/gguf.h"

#include <jansson.h>

struct hf_write {
    int keep_type;        /* matrices keep their type; else dtype */
    sr_dtype dtype;       /* F32 (0), F16 or BF16 */
    int n_shards;         /* above 1: that many files and an index */
    int fused_experts;    /* as newer writers have them */
    int odd_header;       /* its length is odd, so that every tensor lies at an odd address */
    double llama3_old_len;/* of the scaling behind rope_freqs.weight, with low 1 and high 4 */
    json_t *config;       /* merged over config.json, or NULL; stolen */
};

/* The folder must exist; what is in it is overwritten. Failures fail the test. */
void hf_write_folder(const char *gguf, const char *folder, const struct hf_write *o);

/* A safetensors file of any header text and `data_bytes` of zeros. */
void hf_write_raw(const char *path, const char *header, size_t data_bytes);

#endif
