/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside of a struct gguf, for the readers of this folder that fill one: gguf.c from GGUF files, source.c from
 * values and tensors put together in memory, settle.c once more at load.
 */
#ifndef SR_FORMATS_GGUF_MODEL_H
#define SR_FORMATS_GGUF_MODEL_H

#include "formats/gguf_part.h"

/* A tensor that does not lie in its files as it is used: in ne[2] equal pieces (the matrices of experts), or with its
 * rows in another order. Its data is NULL until settle.c has put it together. */
struct gguf_gather {
    int64_t tensor;
    const uint8_t **pieces; /* [ne[2]], one of g->blocks */
    int64_t head_rows;      /* d > 0: of each d rows, row 2i + s is row s * d/2 + i of the file */
};

struct gguf {
    struct gguf_part **parts; /* heap each: a mapped file may not move. Of a folder the first has the values and no file */
    int32_t n_parts;
    int is_folder;
    struct gguf_tensor *tensors; /* of all parts; parts[i]->tensors is NULL */
    int64_t n_tensors, tensors_room;
    struct name_table names;
    void **blocks; /* heap blocks that values, names and small tensors of a folder borrow from */
    int64_t n_blocks;
    struct gguf_gather *gathers; /* ordered by tensor */
    int64_t n_gathers;
    void *settled; /* region with the tensors that were made at load */
    size_t settled_bytes;
};

/* An empty part at the end of the list, closed with the gguf. */
sr_status sr_gguf_new_part(struct gguf *g, struct gguf_part **out, sr_error *err);

/* Fills g->names; a name that comes twice is SR_ERR_FORMAT. */
sr_status sr_gguf_index_tensors(struct gguf *g, sr_error *err);

#endif
