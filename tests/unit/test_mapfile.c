/* SPDX-License-Identifier: Apache-2.0
 *
 * Mapped files: what is refused and how, bounded reads, and a file that shrinks while it is mapped. The guard
 * is a property of the process, so each test of it runs in a child.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/mapfile.h"
#include "base/memory.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[64];

static const char *in_dir(const char *name)
{
    static char path[2][128];
    static int turn;
    turn ^= 1;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}

static int make_dir(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%.40s/sr-map-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_dir(void **state)
{
    (void)state;
    unlink(in_dir("f"));
    unlink(in_dir("fifo"));
    return rmdir(dir);
}

static void write_file(const char *path, const void *data, size_t bytes)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

static void refused(const char *path, const char *reason)
{
    struct mapfile f = {.path = (char *)"untouched"};
    sr_error err;
    assert_int_equal(sr_mapfile_open(&f, path, &err), SR_ERR_IO);
    if (!strstr(err.text, reason)) fail_msg("'%s' does not say '%s'", err.text, reason);
    assert_string_equal(f.path, "untouched");
}

static void target_refused(const char *path, const char *reason)
{
    sr_error err;
    assert_int_equal(sr_mapfile_check_target(path, &err), SR_ERR_IO);
    if (!strstr(err.text, reason)) fail_msg("'%s' does not say '%s'", err.text, reason);
}

static void targets_are_files(void **state)
{
    (void)state;
    assert_int_equal(sr_mapfile_check_target(in_dir("absent"), NULL), SR_OK);
    write_file(in_dir("f"), "x", 1);
    assert_int_equal(sr_mapfile_check_target(in_dir("f"), NULL), SR_OK);
    target_refused(in_dir("f/x"), "Not a directory");
    target_refused(dir, "is a directory");
    target_refused("/dev/null", "is a device");
    assert_int_equal(symlink("f", in_dir("link")), 0);
    target_refused(in_dir("link"), "is a symbolic link");
    unlink(in_dir("link"));
}

static void odd_files_are_refused(void **state)
{
    (void)state;
    assert_int_equal(mkfifo(in_dir("fifo"), 0600), 0);
    alarm(5); /* a FIFO without a writer must not block */
    refused(in_dir("fifo"), "FIFO");
    alarm(0);
    refused(dir, "directory");
    refused("/dev/null", "device");
    refused(in_dir("absent"), "No such file");
    refused("bad\n\xffname", "bad\\x0a\\xffname: ");
    char *many = malloc(5001);
    memset(many, 'a', 5000);
    many[5000] = '\0';
    refused(many, "too long");
    free(many);
    if (geteuid() != 0) {
        write_file(in_dir("f"), "x", 1);
        chmod(in_dir("f"), 0);
        refused(in_dir("f"), "Permission denied");
        chmod(in_dir("f"), 0600);
    }
}

static void content_is_mapped(void **state)
{
    (void)state;
    struct mapfile f;
    write_file(in_dir("f"), "hello", 5);
    char path[128];
    strcpy(path, in_dir("f"));
    assert_int_equal(sr_mapfile_open(&f, path, NULL), SR_OK);
    path[0] = '#'; /* the name is copied */
    assert_int_equal(f.bytes, 5);
    assert_memory_equal(f.data, "hello", 5);
    assert_string_equal(f.path, in_dir("f"));
    sr_mapfile_close(&f);
    assert_null(f.data);
    sr_mapfile_close(&f);
    sr_mapfile_close(NULL);
    write_file(in_dir("f"), "", 0);
    assert_int_equal(sr_mapfile_open(&f, in_dir("f"), NULL), SR_OK);
    assert_int_equal(f.bytes, 0);
    assert_null(f.data);
    sr_mapfile_close(&f);
    sr_alloc_fail_at(1);
    assert_int_equal(sr_mapfile_open(&f, in_dir("f"), NULL), SR_ERR_RESOURCE);
    sr_alloc_fail_at(0);
}

static void reads_are_bounded(void **state)
{
    (void)state;
    uint8_t data[15];
    for (int i = 0; i < 15; i++) data[i] = (uint8_t)(0x81 + i);
    write_file(in_dir("f"), data, sizeof data);
    struct mapfile f;
    assert_int_equal(sr_mapfile_open(&f, in_dir("f"), NULL), SR_OK);
    struct cursor c = {.file = &f};
    uint8_t a;
    uint16_t b;
    uint32_t d;
    uint64_t e = 77;
    const uint8_t *span = NULL;
    sr_error err;
    assert_int_equal(sr_read_u8(&c, &a, "a", &err), SR_OK);
    assert_int_equal(sr_read_u16(&c, &b, "b", &err), SR_OK);
    assert_int_equal(sr_read_u32(&c, &d, "d", &err), SR_OK);
    assert_int_equal(a, 0x81);
    assert_int_equal(b, 0x8382);
    assert_int_equal(d, 0x87868584u);
    struct cursor at7 = c;
    assert_int_equal(sr_read_u64(&c, &e, "e", &err), SR_OK);
    assert_int_equal(e, 0x8f8e8d8c8b8a8988u);
    assert_int_equal(sr_read_span(&c, 0, &span, "nothing", &err), SR_OK);
    assert_int_equal(sr_read_u8(&c, &a, "past", &err), SR_ERR_FORMAT);
    assert_int_equal(c.at, 15);
    c = at7;
    c.at = 8;
    e = 77;
    assert_int_equal(sr_read_u64(&c, &e, "key length", &err), SR_ERR_FORMAT);
    assert_int_equal(e, 77);
    assert_int_equal(c.at, 8);
    assert_non_null(strstr(err.text, ": offset 8: key length: needs 8 bytes, 7 left"));
    assert_int_equal(sr_read_span(&c, UINT64_MAX, &span, "string", &err), SR_ERR_FORMAT);
    assert_int_equal(sr_read_span(&c, 7, &span, "rest", &err), SR_OK);
    assert_memory_equal(span, data + 8, 7);
    c.at = SIZE_MAX;
    assert_int_equal(sr_read_u8(&c, &a, "far", &err), SR_ERR_FORMAT);
    sr_mapfile_close(&f);
}

static int status_of_child(int (*body)(void))
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGBUS, SIG_DFL); /* a sanitizer's own handler would hide what the process does */
        _exit(body());
    }
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

enum { PAGES = 8 };

static int shrink(void)
{
    long page = sysconf(_SC_PAGESIZE);
    struct mapfile f, g;
    sr_mapfile_guard_install();
    if (sr_mapfile_open(&f, in_dir("f"), NULL) != SR_OK || sr_mapfile_open(&g, in_dir("f"), NULL) != SR_OK)
        return 10;
    volatile const uint8_t *p = f.data;
    if (p[5 * page] != 'x' || sr_mapfile_lost()) return 11;
    if (truncate(f.path, 2 * page)) return 12;
    if (p[page] != 'x' || sr_mapfile_lost()) return 13;
    if (p[5 * page + 3] != 0) return 14;
    if (!sr_mapfile_lost()) return 15;
    if (p[PAGES * page - 1] != 0 || p[2 * page - 1] != 'x') return 16;
    sr_mapfile_close(&f);
    p = g.data; /* the other mapping of the file is still guarded */
    if (p[3 * page] != 0) return 17;
    sr_mapfile_close(&g);
    return 0;
}

static int foreign_fault(void)
{
    long page = sysconf(_SC_PAGESIZE);
    sr_mapfile_guard_install();
    int fd = open(in_dir("f"), O_RDWR);
    volatile const uint8_t *p = mmap(NULL, (size_t)page * PAGES, PROT_READ, MAP_SHARED, fd, 0);
    if (ftruncate(fd, 0)) return 1;
    return p[page] + 2;
}

static int
closed_fault(void) /* a range that is closed is guarded no more, though something else is mapped there */
{
    long page = sysconf(_SC_PAGESIZE);
    struct mapfile f;
    sr_mapfile_guard_install();
    if (sr_mapfile_open(&f, in_dir("f"), NULL) != SR_OK) return 1;
    uint8_t *at = (uint8_t *)(uintptr_t)f.data;
    sr_mapfile_close(&f);
    int fd = open(in_dir("f"), O_RDWR);
    volatile const uint8_t *p = mmap(at, (size_t)page * PAGES, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
    if (ftruncate(fd, 0)) return 1;
    return p[page] + 2;
}

static int sent_signal(void)
{
    sr_mapfile_guard_install();
    kill(getpid(), SIGBUS);
    return 1;
}

static volatile sig_atomic_t n_earlier;
static void earlier_handler(int sig)
{
    (void)sig;
    n_earlier = n_earlier + 1;
}

static int chained(void)
{
    signal(SIGBUS, earlier_handler);
    sr_mapfile_guard_install();
    sr_mapfile_guard_install(); /* twice must not chain to itself */
    raise(SIGBUS);
    return n_earlier == 1 && !sr_mapfile_lost() ? 0 : 1;
}

static void fill_pages(void)
{
    size_t bytes = (size_t)sysconf(_SC_PAGESIZE) * PAGES;
    uint8_t *data = malloc(bytes);
    memset(data, 'x', bytes);
    write_file(in_dir("f"), data, bytes);
    free(data);
}

static void shrinking_file_reads_zeros(void **state)
{
    (void)state;
    fill_pages();
    assert_int_equal(status_of_child(shrink), 0);
}

static void dies_of_sigbus(int (*body)(void))
{
    fill_pages();
    int status = status_of_child(body);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGBUS);
}

static void other_faults_still_kill(void **state)
{
    (void)state;
    dies_of_sigbus(foreign_fault);
    dies_of_sigbus(closed_fault);
    dies_of_sigbus(sent_signal);
    assert_int_equal(status_of_child(chained), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(odd_files_are_refused),   cmocka_unit_test(content_is_mapped),
        cmocka_unit_test(reads_are_bounded),       cmocka_unit_test(shrinking_file_reads_zeros),
        cmocka_unit_test(other_faults_still_kill), cmocka_unit_test(targets_are_files),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("mapfile", tests, make_dir, drop_dir);
}
