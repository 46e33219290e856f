/* SPDX-License-Identifier: Apache-2.0
 *
 * Hashed index over the names of an array of records, for keys and tensors of untrusted files. Borrows the array:
 * the record's first field is its struct gguf_str and the array must not move while the table is used. The hash is
 * seeded at random, so a file cannot be built to make its names collide.
 */
#ifndef SR_FORMATS_NAME_TABLE_H
#define SR_FORMATS_NAME_TABLE_H

#include "formats/gguf.h"

struct name_slot;

struct name_table {
    struct name_slot *slots; /* power of two, at most half full */
    uint64_t mask, seed;
    const uint8_t *records;
    size_t record_bytes;
};

/* Room for n records, n < 2^31; none is added yet. */
sr_status sr_name_table_init(struct name_table *t, const void *records, size_t record_bytes, int64_t n, sr_error *err);
void sr_name_table_fini(struct name_table *t); /* fine on a zeroed table */

/* Adds record i; returns -1, or the index of the record that already has this name (and adds nothing). */
int64_t sr_name_table_add(struct name_table *t, int64_t i);

/* Index of the record of this name, -1 if absent (or the table is zeroed). */
int64_t sr_name_table_find(const struct name_table *t, const char *name, size_t bytes);

#endif
