/* SPDX-License-Identifier: Apache-2.0
 *
 * See replace_file.h. The lock file is removed by its holder; who finds the file it has locked no longer under its
 * name locked a dead one and tries again.
 */
#include "engine/replace_file.h"

#include "base/mapfile.h"
#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BUFFER = 1 << 18, NAME = 120 };

static sr_status fail_io(const struct replacement *r, const char *what, sr_error *err)
{
    const int cause = errno;
    char name[NAME];
    const int scarce = cause == EMFILE || cause == ENFILE || cause == ENOMEM;
    return sr_fail(err, scarce ? SR_ERR_RESOURCE : SR_ERR_IO, "%s: %s: %s", sr_escape(name, sizeof(name), r->path, strlen(r->path)),
                   what, strerror(cause));
}

static sr_status make_names(struct replacement *r, sr_error *err)
{
    const size_t n = strlen(r->path) + 32;
    r->names = sr_alloc(2 * n);
    if (!r->names) return sr_fail_memory(err, 2 * n, "file name");
    snprintf(r->names, n, "%s.lock", r->path);
    snprintf(r->names + n, n, "%s.part", r->path);
    r->lock = r->names;
    r->part = r->names + n;
    return SR_OK;
}

static sr_status take_lock(struct replacement *r, sr_error *err)
{
    for (;;) {
        struct stat mine, named;
        char name[NAME];
        const int fd = open(r->lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0) return fail_io(r, "cannot create its lock file", err);
        if (flock(fd, LOCK_EX | LOCK_NB)) {
            const int busy = errno == EWOULDBLOCK;
            const sr_status st = busy ? sr_fail(err, SR_ERR_IO, "%s: locked by another writer",
                                                sr_escape(name, sizeof(name), r->path, strlen(r->path)))
                                      : fail_io(r, "cannot lock", err);
            close(fd);
            return st;
        }
        if (fstat(fd, &mine) == 0 && lstat(r->lock, &named) == 0 && mine.st_ino == named.st_ino && mine.st_dev == named.st_dev) {
            r->lock_fd = fd;
            return SR_OK;
        }
        close(fd);
    }
}

static void drop_lock(struct replacement *r)
{
    if (r->lock_fd >= 0) {
        unlink(r->lock);
        close(r->lock_fd);
    }
    r->lock_fd = -1;
    sr_free(r->buffer);
    sr_free(r->names);
    r->buffer = NULL;
    r->names = NULL;
}

sr_status sr_replace_begin(struct replacement *r, const char *path, sr_error *err)
{
    *r = (struct replacement){.path = path, .lock_fd = -1, .fd = -1};
    sr_status st;
    SR_TRY(sr_mapfile_check_target(r->path, err));
    SR_TRY(make_names(r, err));
    SR_TRY_GOTO(take_lock(r, err));
    r->buffer = sr_alloc(BUFFER);
    if (!r->buffer) {
        st = sr_fail_memory(err, BUFFER, "file buffer");
        goto fail;
    }
    unlink(r->part); /* of a writer that died: the lock is ours */
    r->fd = open(r->part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (r->fd < 0) {
        st = fail_io(r, "cannot create its temporary file", err);
        goto fail;
    }
    return SR_OK;
fail:
    drop_lock(r);
    return st;
}

static sr_status flush(struct replacement *r, sr_error *err)
{
    for (size_t at = 0; at < r->held;) {
        const ssize_t n = write(r->fd, r->buffer + at, r->held - at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_io(r, "cannot write", err);
        at += (size_t)n;
    }
    r->held = 0;
    return SR_OK;
}

sr_status sr_replace_write(struct replacement *r, const void *data, size_t bytes, sr_error *err)
{
    const uint8_t *p = data;
    while (bytes) {
        if (r->held == BUFFER) SR_TRY(flush(r, err));
        const size_t room = BUFFER - r->held, n = bytes < room ? bytes : room;
        memcpy(r->buffer + r->held, p, n);
        r->held += n;
        p += n;
        bytes -= n;
    }
    return SR_OK;
}

/* The folder's entry for the new file must reach the disk too. */
static sr_status sync_folder(const struct replacement *r, sr_error *err)
{
    const char *slash = strrchr(r->path, '/');
    const size_t n = slash ? (size_t)(slash - r->path) + 1 : 1;
    char *folder = sr_alloc(n + 1);
    if (!folder) return sr_fail_memory(err, n + 1, "folder name");
    memcpy(folder, slash ? r->path : ".", n);
    folder[n] = '\0';
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    sr_free(folder);
    if (fd < 0) return fail_io(r, "cannot open its folder", err);
    const int bad = fsync(fd) && errno != EINVAL; /* some file systems cannot sync a folder */
    const sr_status st = bad ? fail_io(r, "cannot sync its folder", err) : SR_OK;
    close(fd);
    return st;
}

sr_status sr_replace_commit(struct replacement *r, sr_error *err)
{
    sr_status st = flush(r, err);
    if (st == SR_OK && fsync(r->fd)) st = fail_io(r, "cannot sync", err);
    const int close_failed = close(r->fd);
    r->fd = -1;
    if (st == SR_OK && close_failed) st = fail_io(r, "cannot close", err);
    if (st == SR_OK) st = sr_mapfile_check_target(r->path, err); /* rename would replace a link that came meanwhile, not follow it */
    if (st == SR_OK && rename(r->part, r->path)) st = fail_io(r, "cannot rename its temporary file", err);
    if (st != SR_OK) unlink(r->part);
    else st = sync_folder(r, err);
    drop_lock(r);
    return st;
}

void sr_replace_abort(struct replacement *r)
{
    if (r->fd >= 0) {
        close(r->fd);
        unlink(r->part);
    }
    r->fd = -1;
    drop_lock(r);
}
