/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory nodes: lists, a machine of four nodes told by files, and what the kernel says about placed pages. More nodes than
 * the machine has cannot be had, so the interleaving itself is tried with node 0 named twice over in the count.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/nodes.h"
#include "tiny_model.h"

static const char *file(const char *name, const char *text)
{
    const char *path = tiny_path(name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    return path;
}

static void lists(void **state)
{
    static const struct {
        const char *text;
        int n;
        unsigned long bits;
    } rows[] = {{"0", 1, 1}, {"0\n", 1, 1}, {"0-1", 2, 3}, {"0-1,4\n", 3, 0x13}, {"1,1-2", 2, 6}, {"63", 1, 1ul << 63}};
    static const char *const wrong[] = {"", "\n", "a", "0-", "-1", "1-0", "0,", "0-1x", "0-1024", "1024", "0--1", ","};
    struct node_set s;
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_int_equal(sr_nodes_parse(&s, rows[i].text), 0);
        assert_int_equal(s.n, rows[i].n);
        assert_true(s.bits[0] == rows[i].bits && s.bits[1] == 0);
    }
    assert_int_equal(sr_nodes_parse(&s, "1000-1023"), 0);
    assert_int_equal(s.n, 24);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) assert_int_equal(sr_nodes_parse(&s, wrong[i]), -1);
    assert_int_equal(s.n, 24); /* untouched */
}

static void files(void **state)
{
    struct node_set s = {{0}, 7};
    (void)state;
    const char *memory = file("has_memory", "0-3\n"), *status = file("status", "Name:\tx\nMems_allowed:\t5\nMems_allowed_list:\t0,2,5\n");
    assert_int_equal(sr_nodes_read(&s, memory, status), 0);
    assert_int_equal(s.n, 2);
    assert_true(s.bits[0] == 5);
    assert_int_equal(sr_nodes_read(&s, "/absent", status), -1);
    assert_int_equal(sr_nodes_read(&s, memory, file("other", "Name:\tx\n")), -1);
    assert_int_equal(s.n, 2);
}

/* The policy of the page at p; -1 where the system does not tell. */
static int policy_at(void *p)
{
    int policy = -1;
    enum { OF_ADDRESS = 2 }; /* MPOL_F_ADDR */
    return syscall(SYS_get_mempolicy, &policy, NULL, 0ul, p, (unsigned long)OF_ADDRESS) == 0 ? policy : -1;
}

static void placing(void **state)
{
    enum { BYTES = 8 << 20, INTERLEAVE = 3 };
    struct node_set s, here;
    (void)state;
    uint8_t *p = sr_region_map(BYTES);
    assert_non_null(p);
    p[0] = 1;
    if (policy_at(p) < 0) {
        sr_region_unmap(p, BYTES);
        skip(); /* the calls are forbidden */
    }
    if (sr_nodes_read(&here, "/sys/devices/system/node/has_memory", "/proc/self/status")) here.n = 1;
    assert_int_equal(policy_at(p), here.n > 1 ? INTERLEAVE : 0); /* nothing is done on a machine of one node */
    sr_region_unmap(p, BYTES);

    p = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    assert_int_equal(sr_nodes_parse(&s, "0"), 0);
    assert_int_equal(sr_nodes_spread(&s, p, BYTES), 0); /* one node */
    assert_int_equal(policy_at(p), 0);
    s.n = 2;
    assert_int_equal(sr_nodes_spread(&s, p, BYTES), 1);
    assert_int_equal(policy_at(p), INTERLEAVE);
    assert_int_equal(policy_at(p + BYTES - 1), INTERLEAVE);
    memset(p, 3, BYTES);
    munmap(p, BYTES);

    assert_int_equal(sr_nodes_parse(&s, "1000-1001"), 0); /* nodes that are not there: refused, and the memory is good */
    p = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_int_equal(sr_nodes_spread(&s, p, BYTES), 0);
    memset(p, 3, BYTES);
    assert_int_equal(policy_at(p), 0);
    munmap(p, BYTES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(lists), cmocka_unit_test(files), cmocka_unit_test(placing)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
