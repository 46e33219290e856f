/* SPDX-License-Identifier: Apache-2.0
 *
 * Builds GGUF bytes piece by piece, so that a test can put anything anywhere; nothing is checked. Files go to a
 * directory of the process that sr_tb_clean removes.
 */
#ifndef SR_TESTS_GGUF_BUILD_H
#define SR_TESTS_GGUF_BUILD_H

#include "formats/gguf.h"

struct sr_tb {
    uint8_t *data;
    size_t bytes, room;
};

/* Magic, version 3 and the two counts; frees what was there. Start from a zeroed struct. */
void sr_tb_begin(struct sr_tb *b, uint64_t n_tensors, uint64_t n_values);
void sr_tb_free(struct sr_tb *b);

void sr_tb_put(struct sr_tb *b, const void *data, size_t bytes);
void sr_tb_u8(struct sr_tb *b, uint8_t v);
void sr_tb_u32(struct sr_tb *b, uint32_t v);
void sr_tb_u64(struct sr_tb *b, uint64_t v);
void sr_tb_zeros(struct sr_tb *b, size_t bytes);
void sr_tb_pad(struct sr_tb *b, size_t alignment);
void sr_tb_text(struct sr_tb *b, const char *text);               /* length + bytes */
void sr_tb_key(struct sr_tb *b, const char *key, uint32_t type);  /* key + value type */
void sr_tb_kv_u32(struct sr_tb *b, const char *key, uint32_t v);
void sr_tb_kv_str(struct sr_tb *b, const char *key, const char *text);
void sr_tb_kv_array(struct sr_tb *b, const char *key, uint32_t elem_type, uint64_t count); /* without elements */
void sr_tb_info(struct sr_tb *b, const char *name, uint32_t n_dims, const uint64_t *ne, uint32_t type, uint64_t offset);
void sr_tb_set_u32(struct sr_tb *b, size_t at, uint32_t v);
void sr_tb_set_u64(struct sr_tb *b, size_t at, uint64_t v);

/* Path of a file of that name in the test directory; good until four calls later. */
const char *sr_tb_path(const char *name);
/* Writes the bytes to that file and returns its path. */
const char *sr_tb_save(const struct sr_tb *b, const char *name);
void sr_tb_clean(void);

/* Path of a file under the shared test data, NULL if it is not there. */
const char *sr_tb_shared(const char *name);

#endif
