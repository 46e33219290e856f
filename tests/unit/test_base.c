/* SPDX-License-Identifier: Apache-2.0
 *
 * Errors, escaping, allocation hooks, arena and random numbers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/rng.h"
#include "base/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- status ---- */

static void status_names(void **state)
{
    (void)state;
    assert_string_equal(sr_status_name(SR_OK), "ok");
    assert_string_equal(sr_status_name(SR_ERR_FORMAT), "format");
    assert_string_equal(sr_status_name((sr_status)77), "unknown");
    for (int i = 0; i < 2; i++) assert_true(sr_version()[i * 2] >= '0' && sr_version()[i * 2] <= '9');
}

static void fail_fills_and_returns(void **state)
{
    (void)state;
    sr_error err;
    assert_int_equal(sr_fail(&err, SR_ERR_FORMAT, "%s: %d rows, want %d", "blk.0", 3, 4), SR_ERR_FORMAT);
    assert_int_equal(err.status, SR_ERR_FORMAT);
    assert_string_equal(err.text, "blk.0: 3 rows, want 4");
    assert_int_equal(sr_fail(NULL, SR_ERR_IO, "x"), SR_ERR_IO);
    assert_int_equal(sr_fail(&err, SR_ERR_IO, "outer: %s", err.text),
                     SR_ERR_IO); /* its own text as argument */
    assert_string_equal(err.text, "outer: blk.0: 3 rows, want 4");
    assert_int_equal(sr_fail_memory(&err, 4096, "cache"), SR_ERR_RESOURCE);
    assert_non_null(strstr(err.text, "cache"));
    assert_non_null(strstr(err.text, "4096"));
}

static void fail_keeps_one_clean_line(void **state)
{
    (void)state;
    sr_error err;
    sr_fail(&err, SR_ERR_IO, "a%sb", "\n\x1b\xff");
    assert_string_equal(err.text, "a???b");
    char text[600] = "";
    for (int i = 0; i < 199; i++)
        strcat(text, "\xe2\x82\xac"); /* three bytes each: 239 is no multiple of 3 */
    for (int shift = 0; shift < 3; shift++) {
        sr_fail(&err, SR_ERR_IO, "%.*s%s", shift, "xyz", text);
        size_t n = strlen(err.text);
        assert_true(n <= SR_ERROR_TEXT_BYTES - 1 && n >= SR_ERROR_TEXT_BYTES - 4);
        assert_int_equal((n - (size_t)shift) % 3, 0);
        assert_memory_equal(err.text + n - 3, "\xe2\x82\xac", 3);
    }
}

static void collect_line(void *user, sr_log_level level, const char *line)
{
    snprintf(user, 64, "%d:%s", (int)level, line);
}

static void log_reaches_the_sink(void **state)
{
    (void)state;
    char got[64] = "";
    sr_log(SR_LOG_INFO, "nobody hears this");
    sr_log_set(collect_line, got);
    sr_log(SR_LOG_INFO, "two\nlines %d", 7);
    assert_string_equal(got, "1:two?lines 7");
    sr_log_set(NULL, NULL);
    sr_log(SR_LOG_WARN, "gone");
    assert_string_equal(got, "1:two?lines 7");
}

static void escape_table(void **state)
{
    (void)state;
    static const struct {
        const char *in;
        size_t n;
        const char *want;
    } rows[] = {
        {"plain", 5, "plain"},
        {"", 0, ""},
        {"a\nb\t\x7f", 5, "a\\x0ab\\x09\\x7f"},
        {"\0x", 2, "\\x00x"},
        {"\"'\\", 3, "\\x22\\x27\\x5c"},
        {"%s%n", 4, "%s%n"},
        {"gr\xc3\xbc\xc3\x9f", 6, "gr\xc3\xbc\xc3\x9f"},
        {"\xe4\xbd\xa0\xf0\x9f\x98\x80", 7, "\xe4\xbd\xa0\xf0\x9f\x98\x80"},
        {"\xc3", 1, "\\xc3"},          /* cut */
        {"\xc0\xaf", 2, "\\xc0\\xaf"}, /* overlong */
        {"\xe0\x80\xaf", 3, "\\xe0\\x80\\xaf"},
        {"\xed\xa0\x80", 3, "\\xed\\xa0\\x80"}, /* surrogate */
        {"\xf4\x90\x80\x80", 4, "\\xf4\\x90\\x80\\x80"},
        {"\xff\xfe", 2, "\\xff\\xfe"},
        {"\xc2\x85", 2, "\\xc2\\x85"},          /* C1 control */
        {"\xe2\x80\xae", 3, "\\xe2\\x80\\xae"}, /* right-to-left override */
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char dst[64];
        assert_ptr_equal(sr_escape(dst, sizeof dst, rows[i].in, rows[i].n), dst);
        assert_string_equal(dst, rows[i].want);
    }
}

/* Every buffer size against every kind of item: terminated, inside the buffer, cut between items only. */
static void escape_cuts_whole_items(void **state)
{
    (void)state;
    const char *in = "ab\n\xc3\xbc\xe4\xbd\xa0\xff\"tail";
    char whole[64];
    sr_escape(whole, sizeof whole, in, strlen(in));
    for (size_t size = 8; size < strlen(whole) + 3; size++) {
        char dst[80];
        memset(dst, '#', sizeof dst);
        sr_escape(dst, size, in, strlen(in));
        size_t n = strlen(dst);
        assert_true(n < size);
        assert_int_equal(dst[size], '#');
        if (size > strlen(whole)) {
            assert_string_equal(dst, whole);
            continue;
        }
        assert_string_equal(dst + n - 3, "...");
        assert_memory_equal(dst, whole, n - 3);
        assert_true(((unsigned char)whole[n - 3] & 0xc0) != 0x80);
        for (int back = 1; back <= 3 && (size_t)back <= n - 3; back++) /* no half of \xNN */
            assert_false(dst[n - 3 - (size_t)back] == '\\');
    }
}

/* ---- memory ---- */

static void blocks_are_aligned(void **state)
{
    (void)state;
    for (size_t n = 0; n < 300; n += 7) {
        uint8_t *p = sr_alloc(n);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        memset(p, 1, n);
        sr_free(p);
    }
    uint8_t *z = sr_alloc_zero(33, 3);
    for (int i = 0; i < 99; i++) assert_int_equal(z[i], 0);
    for (int i = 0; i < 99; i++) z[i] = (uint8_t)i;
    z = sr_realloc(z, 99, 5000);
    for (int i = 0; i < 99; i++) assert_int_equal(z[i], i);
    z = sr_realloc(z, 5000, 10);
    for (int i = 0; i < 10; i++) assert_int_equal(z[i], i);
    sr_free(z);
    sr_free(NULL);
    assert_null(sr_alloc(SIZE_MAX));
    assert_null(sr_alloc_zero(SIZE_MAX / 2, 3));
}

static void hooks_count_and_fail(void **state)
{
    (void)state;
    uint64_t before = sr_alloc_count();
    void *a = sr_alloc(1), *b = sr_alloc_zero(2, 2), *c = sr_realloc(NULL, 0, 9), *d = sr_region_map(1);
    assert_int_equal(sr_alloc_count() - before, 4);
    sr_free(a);
    sr_free(b);
    sr_free(c);
    sr_region_unmap(d, 1);
    for (int kind = 0; kind < 4; kind++) {
        sr_alloc_fail_at(2);
        for (int i = 1; i <= 3; i++) {
            void *p = kind == 0   ? sr_alloc(8)
                      : kind == 1 ? sr_alloc_zero(1, 8)
                      : kind == 2 ? sr_realloc(NULL, 0, 8)
                                  : sr_region_map(8);
            if (i == 2)
                assert_null(p);
            else
                assert_non_null(p);
            if (kind == 3)
                sr_region_unmap(p, 8);
            else
                sr_free(p);
        }
    }
    sr_alloc_fail_at(1);
    sr_alloc_fail_at(0);
    void *p = sr_alloc(8);
    assert_non_null(p);
    sr_alloc_fail_at(1);
    assert_null(sr_realloc(p, 8, 16)); /* the old block lives on */
    memset(p, 0, 8);
    sr_free(p);
}

static void regions_are_zero_and_lazy(void **state)
{
    (void)state;
    size_t bytes = (size_t)1 << 36; /* more than the machine has: only what is touched counts */
    uint8_t *p = sr_region_map(bytes);
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % (2 << 20), 0);
    assert_int_equal(p[0] | p[bytes / 2] | p[bytes - 1], 0);
    p[bytes - 1] = 1;
    sr_region_unmap(p, bytes);
    assert_null(sr_region_map(SIZE_MAX - 5));
    p = sr_region_map(0);
    assert_non_null(p);
    sr_region_unmap(p, 0);
    sr_region_unmap(NULL, 77);
}

static void available_follows_the_limits(void **state)
{
    (void)state;
    uint64_t now = sr_memory_available();
    assert_true(now > (uint64_t)16 << 20 && now < (uint64_t)1 << 50);
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit lim = {(rlim_t)1 << 45, (rlim_t)1 << 45}; /* far above what a sanitizer maps, if any */
        if (setrlimit(RLIMIT_AS, &lim)) _exit(1);
        if (sr_memory_available() > (uint64_t)1 << 45) _exit(2);
        lim.rlim_cur = 4096;
        if (setrlimit(RLIMIT_AS, &lim)) _exit(3);
        _exit(sr_memory_available() == 0 ? 0 : 4);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void layout(struct arena *a, float **x, uint8_t **y)
{
    *x = sr_arena_take(a, 10, sizeof **x);
    *y = sr_arena_take(a, 3, 1);
    sr_arena_take(a, 0, 8);
}

static void arena_measures_then_places(void **state)
{
    (void)state;
    struct arena a = {0};
    float *x;
    uint8_t *y;
    layout(&a, &x, &y);
    assert_null(x);
    assert_int_equal(a.used, 128);
    struct arena b = {.base = sr_alloc(a.used)};
    layout(&b, &x, &y);
    assert_int_equal(b.used, a.used);
    assert_ptr_equal(x, b.base);
    assert_ptr_equal(y, b.base + 64);
    sr_free(b.base);
    struct arena big = {0}; /* a product that wraps must not look small */
    sr_arena_take(&big, SIZE_MAX / 2, 4);
    sr_arena_take(&big, 1, 1);
    assert_true(big.used > SIZE_MAX / 2);
}

/* ---- random numbers ---- */

static void rng_is_the_published_generator(void **state)
{
    (void)state;
    /* State 1, 2, 3, 4: the first outputs follow from the definition by hand: rotl(s1 * 5, 7) * 9. */
    struct rng r = {{1, 2, 3, 4}};
    static const uint64_t want[] = {11520, 0, 1509978240, 1215971899390074240};
    for (int i = 0; i < 4; i++) assert_int_equal(sr_rng_u64(&r), want[i]);
    sr_rng_seed(&r, 0);
    assert_int_equal(r.s[0], 0xe220a8397b1dcdafu); /* splitmix64 of 0 */
}

static void rng_repeats_and_is_even(void **state)
{
    (void)state;
    struct rng a, b, c;
    sr_rng_seed(&a, 42);
    sr_rng_seed(&b, 42);
    sr_rng_seed(&c, 43);
    int n_same = 0, bins[16] = {0};
    for (int i = 0; i < 1000; i++) {
        uint64_t x = sr_rng_u64(&a);
        assert_int_equal(x, sr_rng_u64(&b));
        n_same += x == sr_rng_u64(&c);
    }
    assert_int_equal(n_same, 0);
    enum { N = 160000 };
    for (int i = 0; i < N; i++) {
        double u = sr_rng_unit(&a);
        assert_true(u >= 0 && u < 1);
        bins[(int)(u * 16)]++;
    }
    /* Each bin is binomial with mean 10,000 and deviation 97: six of them. */
    for (int i = 0; i < 16; i++) assert_in_range(bins[i], 10000 - 582, 10000 + 582);
    assert_true(sr_random_seed() != sr_random_seed());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(status_names),
        cmocka_unit_test(fail_fills_and_returns),
        cmocka_unit_test(fail_keeps_one_clean_line),
        cmocka_unit_test(log_reaches_the_sink),
        cmocka_unit_test(escape_table),
        cmocka_unit_test(escape_cuts_whole_items),
        cmocka_unit_test(blocks_are_aligned),
        cmocka_unit_test(hooks_count_and_fail),
        cmocka_unit_test(regions_are_zero_and_lazy),
        cmocka_unit_test(available_follows_the_limits),
        cmocka_unit_test(arena_measures_then_places),
        cmocka_unit_test(rng_is_the_published_generator),
        cmocka_unit_test(rng_repeats_and_is_even),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
