/* SPDX-License-Identifier: Apache-2.0
 *
 * Replacing a file in one step: written beside it, synced, renamed. A reader sees the old content or the new one,
 * whatever happens to the writer. One writer at a time, by a lock file beside the target; the target must be absent
 * or a regular file, never a link. Files are for their owner only (0600).
 */
#ifndef SR_ENGINE_REPLACE_FILE_H
#define SR_ENGINE_REPLACE_FILE_H

#include "base/status.h"

struct replacement {
    const char *path;      /* borrowed */
    char *names;           /* owned: the lock's and the temporary file's name */
    const char *lock, *part;
    int lock_fd, fd;
    uint8_t *buffer;
    size_t held;
};

/* SR_ERR_IO "locked" while another writer is at it. On failure nothing is left behind. */
sr_status sr_replace_begin(struct replacement *r, const char *path, sr_error *err);
sr_status sr_replace_write(struct replacement *r, const void *data, size_t bytes, sr_error *err);
/* Either ends it. commit syncs file and folder; if it fails the old file is untouched. */
sr_status sr_replace_commit(struct replacement *r, sr_error *err);
void sr_replace_abort(struct replacement *r);

#endif
