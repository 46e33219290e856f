/* SPDX-License-Identifier: Apache-2.0
 *
 * What synthetic models have in common: a mark, and a small tokenizer, padded to the true size. Every byte is a token, the
 * special tokens of the family have their texts and, where the vocabulary is large enough, their true ids; the rest is unused.
 */
#ifndef SR_ENGINE_RANDOM_VOCAB_H
#define SR_ENGINE_RANDOM_VOCAB_H

#include "formats/gguf_write.h"
#include "model/shapes.h"

/* What general.description begins with, before a colon: the mark of a file with random weights. */
#define SR_SYNTHETIC "synthetic"

sr_status sr_random_vocab_put(struct gguf_writer *w, const struct model_shape *s, sr_error *err);

#endif
