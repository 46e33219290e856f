/* SPDX-License-Identifier: Apache-2.0
 *
 * A read-only mapped file and a bounded cursor over it. Every read is checked against the bytes that are left;
 * errors carry the file's name and the byte offset.
 *
 * A file that shrinks while mapped raises SIGBUS on access. mapfile installs no handler by itself; a program calls
 * sr_mapfile_guard_install() once, after which such an access sets a flag (sr_mapfile_lost) and reads zeros.
 */
#ifndef SR_BASE_MAPFILE_H
#define SR_BASE_MAPFILE_H

#include "base/status.h"

struct mapfile {
    const uint8_t *data; /* NULL for an empty file */
    size_t bytes;
    char *path;          /* owned copy, as given */
};

/* Opens a regular file read-only. SR_ERR_IO names the reason (absent, directory, FIFO, device, permission). */
sr_status sr_mapfile_open(struct mapfile *f, const char *path, sr_error *err);
void sr_mapfile_close(struct mapfile *f);

/* A name that a finished file may be renamed to: absent, or a regular file. A rename would put a file in the place of a
 * device or a link, not write through it. SR_ERR_IO says what it is instead. */
sr_status sr_mapfile_check_target(const char *path, sr_error *err);

void sr_mapfile_guard_install(void);
int sr_mapfile_lost(void); /* non-zero after a mapped page could not be read */

struct cursor {
    const struct mapfile *file;
    size_t at;
};

/* Each fails with SR_ERR_FORMAT "<path>: offset N: <what>: needs M bytes, K left". Values are little-endian. */
sr_status sr_read_u8(struct cursor *c, uint8_t *out, const char *what, sr_error *err);
sr_status sr_read_u16(struct cursor *c, uint16_t *out, const char *what, sr_error *err);
sr_status sr_read_u32(struct cursor *c, uint32_t *out, const char *what, sr_error *err);
sr_status sr_read_u64(struct cursor *c, uint64_t *out, const char *what, sr_error *err);
/* Borrow `bytes` bytes in place. */
sr_status sr_read_span(struct cursor *c, uint64_t bytes, const uint8_t **out, const char *what, sr_error *err);

#endif
