/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening the CPU backend: the ISA cap of the environment, the number of threads, what it says of itself.
 */
#include "backend/backend.h"
#include "base/memory.h"
#include "base/pool.h"
#include "cpu/kernels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct backend *opened(int n_threads)
{
    struct backend *b = NULL;
    sr_error err;
    assert_int_equal(sr_backend_cpu_open(&b, n_threads, &err), SR_OK);
    return b;
}

static void test_describes_itself(void **state)
{
    (void)state;
    struct backend *b = opened(2);
    assert_string_equal(b->ops->name, "cpu");
    assert_non_null(strstr(b->ops->describe(b), "2 threads"));
    assert_int_equal(sr_pool_threads(sr_backend_pool(b)), 2);
    sr_backend_close(b);
    sr_backend_close(NULL);
}

static void test_cap(void **state)
{
    (void)state;
    for (int i = 0; i < ISA_COUNT; i++) {
        setenv("SR_ISA", sr_cpu_isa_name((enum cpu_isa)i), 1);
        struct backend *b = opened(1);
        if (i == ISA_SCALAR) assert_string_equal(b->ops->describe(b), "cpu, scalar, 1 thread");
        sr_backend_close(b);
    }
    unsetenv("SR_ISA");
}

static void test_unknown_cap(void **state)
{
    (void)state;
    struct backend *b = NULL;
    sr_error err;
    setenv("SR_ISA", "sse9", 1);
    assert_int_equal(sr_backend_cpu_open(&b, 1, &err), SR_ERR_USAGE);
    assert_string_equal(err.text, "SR_ISA: \"sse9\" is not one of scalar, avx2, avx512, vnni, bf16, amx, neon");
    assert_null(b);
    unsetenv("SR_ISA");
}

static void test_bad_threads(void **state)
{
    (void)state;
    struct backend *b = NULL;
    sr_error err;
    assert_int_equal(sr_backend_cpu_open(&b, -1, &err), SR_ERR_USAGE);
    assert_int_equal(sr_backend_cpu_open(&b, 100000, &err), SR_ERR_USAGE);
    assert_null(b);
}

/* Every allocation of open and reserve fails once: a clean error, nothing lost (the sanitizer run sees leaks). */
static void test_no_memory(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 100; n++) {
        struct backend *b = NULL;
        sr_error err;
        sr_alloc_fail_at(n);
        sr_status st = sr_backend_cpu_open(&b, 2, &err);
        if (st == SR_OK) st = b->ops->matmul_reserve(b, 64, 256, 256, &err);
        sr_alloc_fail_at(0);
        sr_backend_close(b);
        if (st == SR_OK) return;
        assert_int_equal(st, SR_ERR_RESOURCE);
    }
    fail_msg("100 allocations were not enough");
}

static void test_masks(void **state)
{
    (void)state;
    const uint32_t mask = sr_cpu_isa_mask();
    assert_true(mask & 1u << ISA_SCALAR);
    for (int i = ISA_AVX512; i <= ISA_AMX; i++) /* each implies the one before */
        if (mask >> i & 1u) assert_true(mask >> (i - 1) & 1u);
    assert_int_equal(sr_cpu_isa_below(ISA_SCALAR), 1u << ISA_SCALAR);
    assert_int_equal(sr_cpu_isa_below(ISA_AVX512), 1u << ISA_SCALAR | 1u << ISA_AVX2 | 1u << ISA_AVX512);
    assert_int_equal(sr_cpu_isa_below(ISA_NEON), 1u << ISA_SCALAR | 1u << ISA_NEON);
    assert_int_equal(sr_cpu_isa_find("vnni"), ISA_VNNI);
    assert_int_equal(sr_cpu_isa_find(""), ISA_COUNT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_describes_itself), cmocka_unit_test(test_cap), cmocka_unit_test(test_unknown_cap),
        cmocka_unit_test(test_bad_threads), cmocka_unit_test(test_no_memory), cmocka_unit_test(test_masks),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
