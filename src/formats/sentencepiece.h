/* SPDX-License-Identifier: Apache-2.0
 *
 * SentencePiece's tokenizer.model, a protobuf: a bounded reader of the fields that matter. Texts are borrowed from the
 * bytes given.
 */
#ifndef SR_FORMATS_SENTENCEPIECE_H
#define SR_FORMATS_SENTENCEPIECE_H

#include "base/status.h"

enum { SP_MAX_PIECES = 1 << 24, SP_MAX_PIECE_BYTES = 65536 };

struct sp_piece {
    const char *text;
    size_t bytes;
    float score;
    int32_t kind; /* 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte: the same numbers as GGUF's */
};

struct sp_model {
    struct sp_piece *pieces; /* [n], owned */
    int32_t n;
    int32_t algorithm;       /* 1 unigram, 2 BPE, 3 word, 4 char */
    int32_t unk_id, bos_id, eos_id; /* -1: none */
    int add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces, byte_fallback, whitespace_suffix;
    size_t charsmap_bytes;   /* of the normalisation table */
};

/* `path` is for messages. On failure nothing is owned. */
sr_status sr_sp_read(struct sp_model *m, const uint8_t *data, size_t bytes, const char *path, sr_error *err);
void sr_sp_free(struct sp_model *m);

#endif
