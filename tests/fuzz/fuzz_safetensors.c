/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes as a safetensors file: its header is read or refused with one clean line; what is read tiles the data.
 */
#include "fuzz_folder.h"

#include "formats/safetensors.h"

#include <sys/mman.h>

static void walk(const struct st_header *h, const struct mapfile *f)
{
    size_t at = h->n ? h->tensors[0].file_offset : f->bytes, sum = 0;
    for (int64_t i = 0; i < h->n; i++) {
        const struct st_tensor *t = &h->tensors[i];
        if (t->file_offset != at || t->n_dims < 0 || t->n_dims > ST_MAX_DIMS || t->name.bytes == 0) abort();
        for (size_t k = 0; k < t->bytes; k++) sum += t->data[k];
        at += t->bytes;
    }
    if (at != f->bytes || sum == SIZE_MAX) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    char path[64];
    struct mapfile f;
    struct st_header h;
    sr_error err = {0};
    const int fd = memfd_create("safetensors", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, bytes) != (ssize_t)bytes) exit(99);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (sr_mapfile_open(&f, path, &err) != SR_OK) exit(99);
    const sr_status st = sr_st_header_read(&h, &f, 0, &err);
    if (st != SR_OK) {
        fuzz_check_refusal(st, &err);
    } else {
        walk(&h, &f);
        sr_st_header_free(&h);
    }
    sr_mapfile_close(&f);
    close(fd);
    return 0;
}

__attribute__((unused)) static void (*const not_used)(const char *, const void *, size_t) = fuzz_write;
