/* SPDX-License-Identifier: Apache-2.0
 *
 * All tensors of a folder's safetensors files as one list with one name space. A name of a file that comes from the
 * index is not trusted: it must be a plain name, of a file that lies in the folder (or, where the folder is a snapshot
 * of the hub's cache, in the cache's blobs).
 */
#ifndef SR_FORMATS_HF_SHARDS_H
#define SR_FORMATS_HF_SHARDS_H

#include "formats/hf_parts.h"
#include "formats/safetensors.h"

struct hf_shards {
    struct st_header *headers; /* [n_headers] */
    int32_t n_headers;
    struct st_tensor *tensors; /* [n] of all files, in order of the files */
    int64_t n;
    struct name_table names;
};

/* s must be zeroed; free it also on failure. The files are mapped by h->g. */
sr_status sr_hf_shards_open(struct hf_shards *s, struct hf *h);
void sr_hf_shards_free(struct hf_shards *s);

/* NULL if there is none of this name. */
struct st_tensor *sr_hf_shards_find(const struct hf_shards *s, const char *name);

#endif
