/* SPDX-License-Identifier: Apache-2.0
 *
 * Allocation with counting and fault injection, large regions, and how much memory the system still has.
 */
#include "base/memory.h"
#include "base/nodes.h"

#include <assert.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

enum { ALIGN = 64, HUGE_PAGE = 2 << 20 };

static atomic_uint_fast64_t n_allocs;
static atomic_int_fast64_t fail_in; /* allocations until the one that fails; <= 0: none will */

uint64_t sr_alloc_count(void)
{
    return atomic_load_explicit(&n_allocs, memory_order_relaxed);
}

void sr_alloc_fail_at(uint64_t n)
{
    atomic_store(&fail_in, n > INT64_MAX ? 0 : (int64_t)n);
}

/* Counts one allocation; non-zero where a test wants it to fail. */
static int must_fail(void)
{
    atomic_fetch_add_explicit(&n_allocs, 1, memory_order_relaxed);
    if (atomic_load_explicit(&fail_in, memory_order_relaxed) <= 0) return 0;
    return atomic_fetch_sub(&fail_in, 1) == 1;
}

void *sr_alloc(size_t bytes)
{
    if (must_fail() || bytes > SIZE_MAX - ALIGN) return NULL;
    size_t rounded = bytes ? (bytes + ALIGN - 1) / ALIGN * ALIGN : ALIGN;
    return aligned_alloc(ALIGN, rounded);
}

void *sr_alloc_zero(size_t count, size_t bytes)
{
    size_t total;
    if (sr_mul_size(count, bytes, &total)) return NULL;
    void *block = sr_alloc(total);
    if (block) memset(block, 0, total);
    return block;
}

void *sr_realloc(void *block, size_t old_bytes, size_t bytes)
{
    void *bigger = sr_alloc(bytes);
    if (!bigger) return NULL;
    if (block) memcpy(bigger, block, old_bytes < bytes ? old_bytes : bytes);
    free(block);
    return bigger;
}

void sr_free(void *block)
{
    free(block);
}

static size_t page_round(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (bytes == 0) return page;
    return bytes > SIZE_MAX - page ? 0 : (bytes + page - 1) / page * page;
}

/* What is more than half a huge page becomes one: the kernel gives no smaller region any. */
static size_t region_round(size_t bytes)
{
    return bytes > HUGE_PAGE / 2 && bytes < HUGE_PAGE ? HUGE_PAGE : page_round(bytes);
}

/* Regions of a huge page or more start on a huge page: map more and cut both ends off. */
void *sr_region_map(size_t bytes)
{
    size_t want = region_round(bytes), slack = want >= HUGE_PAGE ? HUGE_PAGE : 0, all;
    if (must_fail() || want == 0 || sr_add_size(want, slack, &all)) return NULL;
    uint8_t *p = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    if (slack) {
        size_t head = (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE, tail = slack - head;
        if (head) munmap(p, head);
        p += head;
        if (tail) munmap(p + want, tail);
        madvise(p, want, MADV_HUGEPAGE); /* advice, as the next line: a kernel without it is slower, not wrong */
        sr_nodes_spread_here(p, want);
    }
    return p;
}

void sr_region_unmap(void *region, size_t bytes)
{
    if (region) munmap(region, region_round(bytes));
}

/* ---- memory that can still be had ---- */

/* Reads a small text file whole; 0, or -1 where it cannot be read. */
static int read_text(const char *path, char *buf, size_t buf_bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    size_t used = 0;
    ssize_t n;
    while (used + 1 < buf_bytes && (n = read(fd, buf + used, buf_bytes - 1 - used)) > 0) used += (size_t)n;
    close(fd);
    buf[used] = '\0';
    return used ? 0 : -1;
}

/* The number after `key` at the start of a line, times `unit`; UINT64_MAX where absent. */
static uint64_t field(const char *text, const char *key, uint64_t unit)
{
    size_t n = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
        if (strncmp(line, key, n) != 0) continue;
        unsigned long long v;
        if (sscanf(line + n, "%llu", &v) == 1) return v > UINT64_MAX / unit ? UINT64_MAX : v * unit;
    }
    return UINT64_MAX;
}

/* What one control group leaves: limit - used, where file cache that can be dropped does not count as used.
 */
static uint64_t cgroup_left(const char *dir, const char *limit_name, const char *used_name,
                            const char *cache_key)
{
    char path[1280], text[8192];
    snprintf(path, sizeof path, "%s/%s", dir, limit_name);
    if (read_text(path, text, sizeof text)) return UINT64_MAX;
    uint64_t limit = field(text, "", 1); /* "max" is no number: no limit */
    if (limit >= (uint64_t)INT64_MAX / 4096 * 4096) return UINT64_MAX;
    snprintf(path, sizeof path, "%s/%s", dir, used_name);
    if (read_text(path, text, sizeof text)) return limit;
    uint64_t used = field(text, "", 1), cache = UINT64_MAX;
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    if (read_text(path, text, sizeof text) == 0) cache = field(text, cache_key, 1);
    if (cache != UINT64_MAX) used -= cache < used ? cache : used;
    return used < limit ? limit - used : 0;
}

/* The group of this process and every one above it up to the mount; v1 or v2 by the line's controller list.
 */
static uint64_t cgroup_available(void)
{
    char text[4096], dir[1024];
    uint64_t least = UINT64_MAX;
    if (read_text("/proc/self/cgroup", text, sizeof text)) return least;
    for (char *save = NULL, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *list = strchr(line, ':'), *group = list ? strchr(list + 1, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        int v2 = list[1] == '\0';
        if (!v2 && !strstr(list, "memory")) continue;
        const char *mount = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
        int n = snprintf(dir, sizeof dir, "%s%s", mount, group);
        if (n < 0 || (size_t)n >= sizeof dir) continue;
        for (;;) {
            uint64_t left = v2 ? cgroup_left(dir, "memory.max", "memory.current", "inactive_file ")
                               : cgroup_left(dir, "memory.limit_in_bytes", "memory.usage_in_bytes",
                                             "total_inactive_file ");
            if (left < least) least = left;
            char *slash = strrchr(dir, '/');
            if (strlen(dir) <= strlen(mount) || !slash) break;
            *slash = '\0';
        }
    }
    return least;
}

static uint64_t address_space_available(void)
{
    struct rlimit lim;
    char text[256];
    if (getrlimit(RLIMIT_AS, &lim) || lim.rlim_cur == RLIM_INFINITY) return UINT64_MAX;
    if (read_text("/proc/self/statm", text, sizeof text)) return lim.rlim_cur;
    uint64_t used = field(text, "", (uint64_t)sysconf(_SC_PAGESIZE));
    return used < lim.rlim_cur ? lim.rlim_cur - used : 0;
}

uint64_t sr_memory_available(void)
{
    char text[8192];
    uint64_t least = UINT64_MAX, group = cgroup_available(), space = address_space_available();
    if (read_text("/proc/meminfo", text, sizeof text) == 0) least = field(text, "MemAvailable:", 1024);
    if (group < least) least = group;
    return space < least ? space : least;
}

/* ---- arena ---- */

void *sr_arena_take(struct arena *a, size_t count, size_t elem_bytes)
{
    size_t bytes, end;
    /* A total that wraps saturates, so that the allocation sized by it fails instead of being too small. */
    if (sr_mul_size(count, elem_bytes, &bytes) || sr_add_size(a->used, bytes, &end) ||
        end > SIZE_MAX - ALIGN) {
        assert(!a->base);
        a->used = SIZE_MAX - ALIGN;
        return NULL;
    }
    void *p = a->base ? a->base + a->used : NULL;
    a->used = (end + ALIGN - 1) / ALIGN * ALIGN;
    return p;
}
