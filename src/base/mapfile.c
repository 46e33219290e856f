/* SPDX-License-Identifier: Apache-2.0
 *
 * Mapped files, the guard against a file that shrinks under its mapping, and bounded little-endian reads.
 *
 * The guard's handler may only use what is safe in a signal: it looks the address up in a fixed table of
 * atomic ranges, so the number of files mapped at once has a limit.
 */
#include "base/mapfile.h"
#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_MAPPED = 1024, NAME_BYTES = 136 };

/* begin is claimed first and end published last: a range counts while end > begin. */
static struct range {
    atomic_uintptr_t begin, end;
} mapped[MAX_MAPPED];

static atomic_int lost_pages;
static uintptr_t page_bytes;
static struct sigaction previous;

int sr_mapfile_lost(void)
{
    return atomic_load(&lost_pages);
}

static int register_range(uintptr_t begin, uintptr_t end)
{
    for (int i = 0; i < MAX_MAPPED; i++) {
        uintptr_t unused = 0;
        if (!atomic_compare_exchange_strong(&mapped[i].begin, &unused, begin)) continue;
        atomic_store(&mapped[i].end, end);
        return 0;
    }
    return -1;
}

static void unregister_range(uintptr_t begin)
{
    for (int i = 0; i < MAX_MAPPED; i++) {
        if (atomic_load(&mapped[i].begin) != begin) continue;
        atomic_store(&mapped[i].end, 0);
        atomic_store(&mapped[i].begin, 0);
        return;
    }
}

static int is_mapped(uintptr_t at)
{
    for (int i = 0; i < MAX_MAPPED; i++)
        if (at < atomic_load(&mapped[i].end) && at >= atomic_load(&mapped[i].begin)) return 1;
    return 0;
}

/* A fault of somebody else's goes where it went before: to the handler installed earlier, or to the default.
 */
static void pass_on(int sig, siginfo_t *info, void *context)
{
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(sig, info, context);
    } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(sig);
    } else {
        signal(sig, SIG_DFL);
        if (info->si_code <= 0) raise(sig); /* sent by a process: no instruction will run again and fault */
    }
}

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
    int saved = errno;
    uintptr_t at = (uintptr_t)info->si_addr;
    if (info->si_code > 0 && is_mapped(at)) {
        void *zero = mmap((void *)(at / page_bytes * page_bytes), page_bytes, PROT_READ,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (zero != MAP_FAILED) {
            atomic_store(&lost_pages, 1);
            errno = saved;
            return;
        }
    }
    pass_on(sig, info, context);
    errno = saved;
}

void sr_mapfile_guard_install(void)
{
    static atomic_flag once = ATOMIC_FLAG_INIT;
    if (atomic_flag_test_and_set(&once)) return;
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    struct sigaction sa = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};
    sigemptyset(&sa.sa_mask);
    sigaction(SIGBUS, &sa, &previous);
}

/* NULL for a regular file, else what the path is instead. */
static const char *not_regular(mode_t mode)
{
    if (S_ISREG(mode)) return NULL;
    if (S_ISDIR(mode)) return "is a directory";
    if (S_ISLNK(mode)) return "is a symbolic link";
    if (S_ISFIFO(mode)) return "is a FIFO";
    if (S_ISCHR(mode) || S_ISBLK(mode)) return "is a device";
    return S_ISSOCK(mode) ? "is a socket" : "is not a regular file";
}

static const char *name_of(char buf[NAME_BYTES], const char *path)
{
    return sr_escape(buf, NAME_BYTES, path, strlen(path));
}

static sr_status map_fd(struct mapfile *f, int fd, const char *path, sr_error *err)
{
    char name[NAME_BYTES];
    struct stat st;
    if (fstat(fd, &st)) return sr_fail(err, SR_ERR_IO, "%s: %s", name_of(name, path), strerror(errno));
    const char *reason = not_regular(st.st_mode);
    if (reason) return sr_fail(err, SR_ERR_IO, "%s: %s, want a regular file", name_of(name, path), reason);
    if (st.st_size == 0) return SR_OK;
    size_t bytes = (size_t)st.st_size;
    void *p = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED && errno == ENOMEM)
        return sr_fail(err, SR_ERR_RESOURCE, "%s: mapping needs %zu bytes, %llu available",
                       name_of(name, path), bytes, (unsigned long long)sr_memory_available());
    if (p == MAP_FAILED)
        return sr_fail(err, SR_ERR_IO, "%s: cannot map: %s", name_of(name, path), strerror(errno));
    if (register_range((uintptr_t)p, (uintptr_t)p + bytes)) {
        munmap(p, bytes);
        return sr_fail(err, SR_ERR_RESOURCE, "%s: %d files are mapped already, the limit",
                       name_of(name, path), MAX_MAPPED);
    }
    f->data = p;
    f->bytes = bytes;
    return SR_OK;
}

sr_status sr_mapfile_open(struct mapfile *f, const char *path, sr_error *err)
{
    struct mapfile m = {0};
    char name[NAME_BYTES];
    /* O_NONBLOCK: a FIFO without a writer would block in open; it means nothing for a regular file. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        int scarce = errno == EMFILE || errno == ENFILE || errno == ENOMEM;
        return sr_fail(err, scarce ? SR_ERR_RESOURCE : SR_ERR_IO, "%s: cannot open: %s", name_of(name, path),
                       strerror(errno));
    }
    sr_status st = map_fd(&m, fd, path, err);
    close(fd);
    if (st != SR_OK) return st;
    size_t n = strlen(path) + 1;
    m.path = sr_alloc(n);
    if (!m.path) {
        sr_mapfile_close(&m);
        return sr_fail_memory(err, n, "file name");
    }
    memcpy(m.path, path, n);
    *f = m;
    return SR_OK;
}

sr_status sr_mapfile_check_target(const char *path, sr_error *err)
{
    struct stat st;
    char name[NAME_BYTES];
    if (lstat(path, &st)) {
        if (errno == ENOENT) return SR_OK;
        return sr_fail(err, SR_ERR_IO, "%s: cannot write: %s", name_of(name, path), strerror(errno));
    }
    const char *reason = not_regular(st.st_mode);
    return reason ? sr_fail(err, SR_ERR_IO, "%s: %s, want a regular file", name_of(name, path), reason) : SR_OK;
}

void sr_mapfile_close(struct mapfile *f)
{
    if (!f) return;
    if (f->data) {
        unregister_range((uintptr_t)f->data);
        munmap((void *)(uintptr_t)f->data, f->bytes);
    }
    sr_free(f->path);
    *f = (struct mapfile){0};
}

sr_status sr_read_span(struct cursor *c, uint64_t bytes, const uint8_t **out, const char *what, sr_error *err)
{
    size_t left = c->at < c->file->bytes ? c->file->bytes - c->at : 0;
    if (bytes > left) {
        char name[NAME_BYTES];
        return sr_fail(err, SR_ERR_FORMAT, "%s: offset %zu: %s: needs %llu bytes, %zu left",
                       name_of(name, c->file->path), c->at, what, (unsigned long long)bytes, left);
    }
    *out = bytes ? c->file->data + c->at : (const uint8_t *)"";
    c->at += (size_t)bytes;
    return SR_OK;
}

static sr_status read_le(struct cursor *c, unsigned bytes, uint64_t *out, const char *what, sr_error *err)
{
    const uint8_t *p;
    SR_TRY(sr_read_span(c, bytes, &p, what, err));
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes; i++) v |= (uint64_t)p[i] << (8 * i);
    *out = v;
    return SR_OK;
}

sr_status sr_read_u8(struct cursor *c, uint8_t *out, const char *what, sr_error *err)
{
    uint64_t v;
    SR_TRY(read_le(c, 1, &v, what, err));
    *out = (uint8_t)v;
    return SR_OK;
}

sr_status sr_read_u16(struct cursor *c, uint16_t *out, const char *what, sr_error *err)
{
    uint64_t v;
    SR_TRY(read_le(c, 2, &v, what, err));
    *out = (uint16_t)v;
    return SR_OK;
}

sr_status sr_read_u32(struct cursor *c, uint32_t *out, const char *what, sr_error *err)
{
    uint64_t v;
    SR_TRY(read_le(c, 4, &v, what, err));
    *out = (uint32_t)v;
    return SR_OK;
}

sr_status sr_read_u64(struct cursor *c, uint64_t *out, const char *what, sr_error *err)
{
    return read_le(c, 8, out, what, err);
}
