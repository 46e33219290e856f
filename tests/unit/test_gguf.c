/* SPDX-License-Identifier: Apache-2.0
 *
 * GGUF header and values: rows GH and GM of the bad-input contract by name, and the typed reads.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "gguf_expect.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WHOLE_BYTES 2048
#define MAX_COUNT 262144

static struct sr_tb b;

/* A legal file of every value type and two tensors whose last byte is the file's last: 2 KiB. */
static void build_whole(void)
{
    const float eps = 1e-5f;
    const double wide = 0.25;
    sr_tb_begin(&b, 2, 17);
    sr_tb_kv_str(&b, "general.architecture", "llama");
    sr_tb_kv_u32(&b, "general.alignment", 64);
    sr_tb_key(&b, "t.u8", GGUF_U8), sr_tb_u8(&b, 200);
    sr_tb_key(&b, "t.i8", GGUF_I8), sr_tb_u8(&b, 0xff);
    sr_tb_key(&b, "t.u16", GGUF_U16), sr_tb_put(&b, "\x01\x80", 2);
    sr_tb_key(&b, "t.i16", GGUF_I16), sr_tb_put(&b, "\x01\x80", 2);
    sr_tb_kv_u32(&b, "t.u32", 0xfffffff0u);
    sr_tb_key(&b, "t.i32", GGUF_I32), sr_tb_u32(&b, 0xfffffff0u);
    sr_tb_key(&b, "t.f32", GGUF_F32), sr_tb_put(&b, &eps, 4);
    sr_tb_key(&b, "t.bool", GGUF_BOOL), sr_tb_u8(&b, 1);
    sr_tb_key(&b, "t.u64", GGUF_U64), sr_tb_u64(&b, UINT64_MAX);
    sr_tb_key(&b, "t.i64", GGUF_I64), sr_tb_u64(&b, (uint64_t)-5);
    sr_tb_key(&b, "t.f64", GGUF_F64), sr_tb_put(&b, &wide, 8);
    sr_tb_kv_array(&b, "t.strings", GGUF_STRING, 3), sr_tb_text(&b, "one"), sr_tb_text(&b, ""), sr_tb_text(&b, "three");
    sr_tb_kv_array(&b, "t.ints", GGUF_I32, 2), sr_tb_u32(&b, 7), sr_tb_u32(&b, (uint32_t)-7);
    sr_tb_kv_array(&b, "t.bools", GGUF_BOOL, 3), sr_tb_put(&b, "\0\1\1", 3);
    sr_tb_kv_array(&b, "t.none", GGUF_STRING, 0);
    sr_tb_info(&b, "a.weight", 1, (uint64_t[]){8}, SR_DTYPE_F32, 0);
    const size_t infos_end = b.bytes + 8 + 8 + 4 + 8 + 4 + 8, data = (infos_end + 63) / 64 * 64;
    sr_tb_info(&b, "b.weight", 1, (uint64_t[]){(WHOLE_BYTES - data - 64) / 4}, SR_DTYPE_F32, 64);
    assert_int_equal(b.bytes, infos_end);
    sr_tb_zeros(&b, WHOLE_BYTES - b.bytes);
}

/* One value of key "k" and nothing else; the caller writes the value. */
static void build_value(uint32_t type)
{
    sr_tb_begin(&b, 0, 1);
    sr_tb_key(&b, "k", type);
}

/* ---- header ------------------------------------------------------------------------------------------------- */

static void gh1_empty_and_short(void **state)
{
    (void)state;
    static const uint8_t junk[23] = {0x47, 0x47, 0x55, 0x46, 3};
    for (size_t n = 0; n < 24; n++) {
        b.bytes = 0;
        sr_tb_put(&b, junk, n);
        sr_tb_refused(&b, SR_ERR_FORMAT, "too short");
    }
}

static void gh2_only_magic(void **state)
{
    (void)state;
    b.bytes = 0;
    sr_tb_put(&b, "GGUF", 4);
    sr_tb_refused(&b, SR_ERR_FORMAT, "4 bytes");
}

static void gh3_magic_and_byte_order(void **state)
{
    (void)state;
    build_whole();
    b.data[3] = 'f';
    sr_tb_refused(&b, SR_ERR_FORMAT, "47 47 55 66");
    for (uint32_t v = 1; v < 4; v++) {
        build_whole();
        sr_tb_set_u32(&b, 4, v << 24);
        sr_tb_refused(&b, SR_ERR_UNSUPPORTED, "big-endian");
    }
}

static void gh4_version(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0, 1, 4, 0xffffffffu};
    for (int i = 0; i < 4; i++) {
        build_whole();
        sr_tb_set_u32(&b, 4, bad[i]);
        sr_tb_refused(&b, SR_ERR_UNSUPPORTED, "supported are 2 and 3");
    }
    build_whole();
    sr_tb_set_u32(&b, 4, 2);
    struct gguf *g = sr_tb_opened(&b);
    assert_int_equal(sr_gguf_version(g), 2);
    sr_gguf_close(g);
}

/* The counts that a reader must not believe, at the header's offset `at`. */
static void refuse_counts(size_t at, size_t record_bytes)
{
    const uint64_t counts[] = {UINT64_MAX, (uint64_t)1 << 63, UINT64_MAX / record_bytes + 1, UINT64_MAX / record_bytes, (uint64_t)1 << 32,
                               MAX_COUNT + 1, 60, 100000};
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        build_whole();
        sr_tb_set_u64(&b, at, counts[i]);
        sr_tb_refused(&b, SR_ERR_FORMAT, "offset ");
    }
}

static void gh5_tensor_count(void **state)
{
    (void)state;
    refuse_counts(8, sizeof(struct gguf_tensor));
    sr_tb_begin(&b, MAX_COUNT, 0);
    for (uint64_t i = 0; i < MAX_COUNT; i++) {
        char name[24];
        snprintf(name, sizeof(name), "t%llu", (unsigned long long)i);
        sr_tb_info(&b, name, 1, (uint64_t[]){1}, SR_DTYPE_F32, 32 * i);
    }
    sr_tb_pad(&b, 32);
    sr_tb_zeros(&b, (size_t)32 * MAX_COUNT);
    const double from = sr_tb_seconds();
    for (uint64_t n = MAX_COUNT - 1; n <= MAX_COUNT; n++) {
        sr_tb_set_u64(&b, 8, n);
        struct gguf *g = sr_tb_opened(&b);
        assert_int_equal(sr_gguf_n_tensors(g), n);
        assert_ptr_equal(sr_gguf_find_tensor(g, "t261000"), sr_gguf_tensor(g, 261000));
        sr_gguf_close(g);
    }
    assert_true(sr_tb_seconds() - from < 5.0);
    sr_tb_set_u64(&b, 8, MAX_COUNT + 1);
    sr_tb_refused(&b, SR_ERR_FORMAT, "262145 tensors, limit 262144");
}

static void gh6_value_count(void **state)
{
    (void)state;
    refuse_counts(16, sizeof(struct gguf_value));
    sr_tb_begin(&b, 0, MAX_COUNT);
    for (int i = 0; i < MAX_COUNT; i++) {
        char key[24];
        snprintf(key, sizeof(key), "k%d", i);
        sr_tb_key(&b, key, GGUF_U8);
        sr_tb_u8(&b, (uint8_t)i);
    }
    for (uint64_t n = MAX_COUNT - 1; n <= MAX_COUNT; n++) {
        sr_tb_set_u64(&b, 16, n);
        struct gguf *g = sr_tb_opened(&b);
        assert_int_equal(sr_gguf_n_values(g), n);
        sr_gguf_close(g);
    }
    sr_tb_set_u64(&b, 16, MAX_COUNT + 1);
    sr_tb_refused(&b, SR_ERR_FORMAT, "262145 values, limit 262144");
}

static void gh7_every_prefix(void **state)
{
    (void)state;
    build_whole();
    sr_gguf_close(sr_tb_opened(&b));
    const char *path = sr_tb_save(&b, "prefix.gguf");
    char kept[512];
    snprintf(kept, sizeof(kept), "%s", path);
    for (off_t n = WHOLE_BYTES - 1; n >= 0; n--) {
        assert_int_equal(truncate(kept, n), 0);
        sr_tb_refused_file(kept, SR_ERR_FORMAT, "offset ");
    }
}

static void gh8_appended_junk(void **state)
{
    (void)state;
    sr_tb_count_warnings();
    build_whole();
    sr_gguf_close(sr_tb_opened(&b));
    assert_int_equal(sr_tb_warnings(), 0);
    sr_tb_put(&b, "PK\003\004", 4);
    sr_gguf_close(sr_tb_opened(&b));
    assert_int_equal(sr_tb_warnings(), 1);
    sr_tb_zeros(&b, 1 << 20);
    struct gguf *g = sr_tb_opened(&b);
    assert_int_equal(sr_gguf_n_tensors(g), 2);
    sr_gguf_close(g);
    assert_int_equal(sr_tb_warnings(), 2);
    assert_non_null(strstr(sr_tb_last_warning(), "1048580 bytes after the data"));
}

static void gh9_not_a_file(void **state)
{
    (void)state;
    const char *fifo = sr_tb_path("fifo.gguf");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    sr_tb_refused_file(fifo, SR_ERR_IO, "FIFO");
    remove(fifo);
    sr_tb_refused_file("/tmp", SR_ERR_IO, "directory");
    sr_tb_refused_file("/dev/zero", SR_ERR_IO, "device");
    sr_tb_refused_file(sr_tb_path("absent.gguf"), SR_ERR_IO, "No such file");
    build_whole();
    const char *path = sr_tb_save(&b, "secret.gguf");
    assert_int_equal(chmod(path, 0), 0);
    if (geteuid() != 0) sr_tb_refused_file(path, SR_ERR_IO, "ermission");
    remove(path);
}

static void gh10_something_else(void **state)
{
    (void)state;
    static const struct { const char *text; size_t bytes; const char *hint; } others[] = {
        {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", 0, "Git LFS pointer"},
        {"<!DOCTYPE html><html><body>404</body></html>", 0, "HTML"},
        {"\n\n  <html lang=\"en\"><head></head></html>", 0, "HTML"},
        {"\x40\0\0\0\0\0\0\0{\"a.weight\":{\"dtype\":\"F32\",\"shape\":[1]}}", 48, "safetensors file: give the folder"},
        {"{\"error\": \"model not found on this server\"}", 0, "JSON"},
        {"PK\003\004 and then some more bytes of a ZIP archive", 0, "ZIP"},
        {"tjgg\003\0\0\0 a file of the year 2023 ......", 36, "old GGML"},
    };
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        b.bytes = 0;
        sr_tb_put(&b, others[i].text, others[i].bytes ? others[i].bytes : strlen(others[i].text));
        sr_tb_zeros(&b, 40);
        sr_tb_refused(&b, SR_ERR_FORMAT, others[i].hint);
    }
}

/* ---- values ------------------------------------------------------------------------------------------------- */

static void gm1_key_length(void **state)
{
    (void)state;
    static const uint64_t bad[] = {UINT64_MAX, (uint64_t)1 << 63, 65536, UINT64_MAX - 7, 300};
    for (int i = 0; i < 5; i++) {
        sr_tb_begin(&b, 0, 1);
        sr_tb_u64(&b, bad[i]);
        sr_tb_zeros(&b, 200);
        sr_tb_refused(&b, SR_ERR_FORMAT, "key");
    }
    sr_tb_begin(&b, 0, 1); /* the longest legal key */
    sr_tb_u64(&b, 65535);
    for (int i = 0; i < 65535; i++) sr_tb_u8(&b, 'k');
    sr_tb_u32(&b, GGUF_U8), sr_tb_u8(&b, 1);
    sr_gguf_close(sr_tb_opened(&b));
}

static void gm2_key_text(void **state)
{
    (void)state;
    static const struct { const char *text; size_t bytes; } bad[] = {
        {"", 0}, {"a\0b", 3}, {"\0", 1}, {"\xff", 1}, {"a\x80", 2}, {"\xc0\xaf", 2}, {"\xed\xa0\x80", 3}, {"\xf4\x90\x80\x80", 4}, {"\xe2\x82", 2},
        {"\xe0\x80\xaf", 3}, {"\xf0\x80\x80\xaf", 4}, {"\xf8\x88\x80\x80\x80", 5},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        sr_tb_begin(&b, 0, 1);
        sr_tb_u64(&b, bad[i].bytes);
        sr_tb_put(&b, bad[i].text, bad[i].bytes);
        sr_tb_u32(&b, GGUF_U32), sr_tb_u32(&b, 1);
        sr_tb_refused(&b, SR_ERR_FORMAT, "key");
    }
    sr_tb_begin(&b, 0, 1);
    sr_tb_kv_u32(&b, "gr\xc3\xb6\xc3\x9f" "e.\xe2\x82\xac.\xf0\x9f\x90\x8b", 1);
    sr_gguf_close(sr_tb_opened(&b));
}

static void gm2_hostile_key_is_escaped(void **state)
{
    (void)state;
    sr_tb_begin(&b, 0, 2);
    sr_tb_kv_u32(&b, "%s%n\n\x1b[31m", 1);
    sr_tb_kv_u32(&b, "%s%n\n\x1b[31m", 2);
    sr_tb_refused(&b, SR_ERR_FORMAT, "%s%n\\x0a\\x1b[31m");
}

static void gm3_duplicate_key(void **state)
{
    (void)state;
    sr_tb_begin(&b, 0, 3);
    sr_tb_kv_u32(&b, "twice", 1);
    sr_tb_kv_u32(&b, "once", 1);
    sr_tb_kv_str(&b, "twice", "no");
    sr_tb_refused(&b, SR_ERR_FORMAT, "duplicate key twice");
}

static void gm6_value_type(void **state)
{
    (void)state;
    static const uint32_t bad[] = {13, 0x80000000u, 0xffffffffu};
    for (int i = 0; i < 3; i++) {
        build_value(bad[i]);
        sr_tb_u64(&b, 0);
        sr_tb_refused(&b, SR_ERR_FORMAT, "k: value type");
        build_value(GGUF_ARRAY);
        sr_tb_u32(&b, bad[i]), sr_tb_u64(&b, 0);
        sr_tb_refused(&b, SR_ERR_FORMAT, "k: array element type");
    }
    build_value(GGUF_BOOL);
    sr_tb_u8(&b, 7);
    sr_tb_refused(&b, SR_ERR_FORMAT, "bool byte 7");
    build_value(GGUF_ARRAY);
    sr_tb_u32(&b, GGUF_BOOL), sr_tb_u64(&b, 3), sr_tb_put(&b, "\1\0\2", 3);
    sr_tb_refused(&b, SR_ERR_FORMAT, "bool byte 2");
}

static void gm7_string_length(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++) {
        build_value(GGUF_STRING);
        const size_t at = b.bytes;
        sr_tb_u64(&b, 0), sr_tb_put(&b, "abc", 3);
        const uint64_t bad[] = {UINT64_MAX, UINT64_MAX - at - 7, b.bytes + 1, 4, (uint64_t)1 << 63, (uint64_t)1 << 32};
        sr_tb_set_u64(&b, at, bad[i]);
        const uint64_t before = sr_alloc_count();
        sr_tb_refused(&b, SR_ERR_FORMAT, "string length");
        assert_true(sr_alloc_count() - before < 10);
    }
}

static void gm8_array_length(void **state)
{
    (void)state;
    static const struct { uint32_t type; uint64_t count; } bad[] = {
        {GGUF_F32, (uint64_t)1 << 61}, {GGUF_F32, (uint64_t)1 << 62}, {GGUF_F64, (uint64_t)1 << 61}, {GGUF_U8, UINT64_MAX}, {GGUF_STRING, (uint64_t)1 << 32},
        {GGUF_STRING, (uint64_t)1 << 61}, {GGUF_STRING, UINT64_MAX}, {GGUF_STRING, 9}, {GGUF_I16, 33}, {GGUF_BOOL, 65}};
    const long before = sr_tb_peak_kib();
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        build_value(GGUF_ARRAY);
        sr_tb_u32(&b, bad[i].type), sr_tb_u64(&b, bad[i].count);
        sr_tb_zeros(&b, 64); /* eight empty strings */
        sr_tb_refused(&b, SR_ERR_FORMAT, "left in the file");
    }
    assert_true(sr_tb_peak_kib() - before < 64 * 1024);
}

static void gm9_nested_arrays(void **state)
{
    (void)state;
    for (int depth = 2; depth <= 10000; depth += 9998) {
        build_value(GGUF_ARRAY);
        for (int i = 1; i < depth; i++) sr_tb_u32(&b, GGUF_ARRAY), sr_tb_u64(&b, 1);
        sr_tb_u32(&b, GGUF_U8), sr_tb_u64(&b, 1), sr_tb_u8(&b, 1);
        sr_tb_refused(&b, SR_ERR_FORMAT, "array of arrays");
    }
}

static void gm10_alignment(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0, 3, 4, 48, 0x80000000u, 0xffffffffu};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        sr_tb_begin(&b, 0, 1);
        sr_tb_kv_u32(&b, "general.alignment", bad[i]);
        sr_tb_refused(&b, SR_ERR_FORMAT, "general.alignment");
    }
    for (uint32_t type = GGUF_U8; type <= GGUF_F64; type++) {
        sr_tb_begin(&b, 0, 1);
        sr_tb_key(&b, "general.alignment", type);
        if (type == GGUF_BOOL) sr_tb_u8(&b, 1);
        else if (type == GGUF_ARRAY) sr_tb_u32(&b, GGUF_U32), sr_tb_u64(&b, 1), sr_tb_u32(&b, 32);
        else if (type == GGUF_STRING) sr_tb_text(&b, "32");
        else sr_tb_u64(&b, 32);
        if (type == GGUF_U32) sr_gguf_close(sr_tb_opened(&b));
        else sr_tb_refused(&b, SR_ERR_FORMAT, "must be u32");
    }
}

static void gm17_many_values(void **state)
{
    (void)state;
    const int n = 100000;
    sr_tb_begin(&b, 0, (uint64_t)n);
    for (int i = 0; i < n; i++) {
        char key[32];
        snprintf(key, sizeof(key), "some.longer.prefix.%d", i);
        sr_tb_kv_u32(&b, key, (uint32_t)i);
    }
    const double from = sr_tb_seconds();
    struct gguf *g = sr_tb_opened(&b);
    for (int i = 0; i < n; i++) {
        char key[32];
        int64_t v;
        snprintf(key, sizeof(key), "some.longer.prefix.%d", i);
        assert_int_equal(sr_gguf_get_int(g, key, i, i, &v, NULL, NULL), SR_OK);
    }
    sr_gguf_close(g);
    assert_true(sr_tb_seconds() - from < 2.0);
}

static void long_string_array(void **state)
{
    (void)state;
    const uint64_t n = 1 << 20;
    build_value(GGUF_ARRAY);
    sr_tb_u32(&b, GGUF_STRING), sr_tb_u64(&b, n);
    for (uint64_t i = 0; i < n; i++) sr_tb_text(&b, "ab cd");
    const uint64_t before = sr_alloc_count();
    const double from = sr_tb_seconds();
    struct gguf *g = sr_tb_opened(&b);
    assert_true(sr_alloc_count() - before < 20);
    const uint8_t *at = NULL;
    struct gguf_str s;
    uint64_t i = 0, seen = 0;
    while (sr_gguf_next_str(sr_gguf_find(g, "k"), &at, &i, &s)) {
        assert_int_equal(i, seen);
        assert_int_equal(s.bytes, 5);
        seen++;
    }
    assert_int_equal(seen, n);
    sr_gguf_close(g);
    assert_true(sr_tb_seconds() - from < 1.0);
}

/* ---- typed reads -------------------------------------------------------------------------------------------- */

static void reads_integers(void **state)
{
    (void)state;
    static const struct { const char *key; int64_t value; } want[] = {
        {"t.u8", 200}, {"t.i8", -1}, {"t.u16", 0x8001}, {"t.i16", -32767}, {"t.u32", 0xfffffff0}, {"t.i32", -16}, {"t.i64", -5}};
    sr_error err;
    int found;
    build_whole();
    struct gguf *g = sr_tb_opened(&b);
    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        int64_t v = 99;
        assert_int_equal(sr_gguf_get_int(g, want[i].key, want[i].value, want[i].value, &v, &found, &err), SR_OK);
        assert_true(found);
        assert_int_equal(v, want[i].value);
        v = 99;
        assert_int_equal(sr_gguf_get_int(g, want[i].key, want[i].value + 1, INT64_MAX, &v, &found, &err), SR_ERR_FORMAT);
        assert_int_equal(v, 99);
        assert_non_null(strstr(err.text, want[i].key));
        assert_int_equal(sr_gguf_get_int(g, want[i].key, INT64_MIN, want[i].value - 1, &v, NULL, &err), SR_ERR_FORMAT);
    }
    int64_t v = 99;
    assert_int_equal(sr_gguf_get_int(g, "t.u64", INT64_MIN, INT64_MAX, &v, NULL, &err), SR_ERR_FORMAT);
    assert_non_null(strstr(err.text, "18446744073709551615"));
    static const char *const no_ints[] = {"t.f32", "t.bool", "t.f64", "t.strings", "t.ints", "general.architecture"};
    for (int i = 0; i < 6; i++) assert_int_equal(sr_gguf_get_int(g, no_ints[i], INT64_MIN, INT64_MAX, &v, NULL, &err), SR_ERR_FORMAT);
    assert_int_equal(sr_gguf_get_int(g, "absent", 0, 1, &v, &found, &err), SR_OK);
    assert_false(found);
    assert_int_equal(v, 99);
    assert_int_equal(sr_gguf_get_int(g, "absent", 0, 1, &v, NULL, &err), SR_ERR_FORMAT);
    assert_non_null(strstr(err.text, "opened.gguf: absent"));
    sr_gguf_close(g);
}

static void reads_other_types(void **state)
{
    (void)state;
    double d = 0;
    int truth = 0, found;
    struct gguf_str s;
    sr_error err;
    build_whole();
    struct gguf *g = sr_tb_opened(&b);
    assert_int_equal(sr_gguf_get_float(g, "t.f32", &d, NULL, &err), SR_OK);
    assert_true(d == (double)1e-5f);
    assert_int_equal(sr_gguf_get_float(g, "t.f64", &d, &found, &err), SR_OK);
    assert_true(d == 0.25);
    assert_int_equal(sr_gguf_get_float(g, "t.u32", &d, NULL, &err), SR_ERR_FORMAT);
    assert_int_equal(sr_gguf_get_bool(g, "t.bool", &truth, NULL, &err), SR_OK);
    assert_int_equal(truth, 1);
    assert_int_equal(sr_gguf_get_bool(g, "t.u8", &truth, NULL, &err), SR_ERR_FORMAT);
    assert_int_equal(sr_gguf_get_str(g, "general.architecture", &s, NULL, &err), SR_OK);
    assert_int_equal(s.bytes, 5);
    assert_memory_equal(s.data, "llama", 5);
    assert_int_equal(sr_gguf_get_str(g, "t.strings", &s, NULL, &err), SR_ERR_FORMAT);
    assert_non_null(strstr(err.text, "has type array"));
    assert_true(sr_gguf_number(sr_gguf_find(g, "t.ints"), 1) == -7.0);
    assert_int_equal(sr_gguf_integer(sr_gguf_find(g, "t.bools"), 2), 1);
    assert_int_equal(sr_gguf_integer(sr_gguf_find(g, "t.u64"), 0), INT64_MAX);
    const uint8_t *at = NULL;
    uint64_t i = 0;
    assert_int_equal(sr_gguf_next_str(sr_gguf_find(g, "t.none"), &at, &i, &s), 0);
    assert_null(sr_gguf_find(g, "t.non"));
    assert_null(sr_gguf_find(g, ""));
    assert_null(sr_gguf_find_tensor(g, "nothing"));
    assert_int_equal(sr_gguf_n_parts(g), 1);
    assert_int_equal(sr_gguf_file_bytes(g), WHOLE_BYTES);
    sr_gguf_close(g);
}

static void reject_escapes(void **state)
{
    (void)state;
    sr_error err;
    build_whole();
    struct gguf *g = sr_tb_opened(&b);
    assert_int_equal(sr_gguf_reject(g, &err, "key: %s is %d", "\x1b[0m\n", 7), SR_ERR_FORMAT);
    assert_non_null(strstr(err.text, "opened.gguf: key: \\x1b[0m\\x0a is 7"));
    sr_gguf_close(g);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    build_whole();
    const char *path = sr_tb_save(&b, "fault.gguf");
    for (uint64_t n = 1;; n++) {
        struct gguf *g = NULL;
        sr_error err = {0};
        assert_true(n < 100);
        sr_alloc_fail_at(n);
        const sr_status st = sr_gguf_open(&g, path, &err);
        sr_alloc_fail_at(0);
        if (st == SR_OK) {
            sr_gguf_close(g);
            assert_true(n > 5);
            return;
        }
        assert_int_equal(st, SR_ERR_RESOURCE);
        assert_true(err.text[0] != 0);
    }
}

static void real_vocabularies(void **state)
{
    (void)state;
    char dir[512];
    const char *first = sr_tb_shared("data/tokenizer-vectors");
    if (!first) skip();
    snprintf(dir, sizeof(dir), "%s", first);
    int seen = 0;
    sr_tb_count_warnings();
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char path[800];
        const size_t n = strlen(e->d_name);
        if (n < 5 || strcmp(e->d_name + n - 5, ".gguf") != 0) continue;
        snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
        struct gguf *g = sr_tb_opened_file(path);
        assert_non_null(sr_gguf_find(g, "tokenizer.ggml.tokens"));
        assert_int_equal(sr_gguf_n_tensors(g), 0);
        sr_gguf_close(g);
        seen++;
    }
    closedir(d);
    assert_int_equal(seen, 10);
    assert_int_equal(sr_tb_warnings(), 0);
}

static int clean(void **state)
{
    (void)state;
    sr_tb_free(&b);
    sr_tb_clean();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gh1_empty_and_short), cmocka_unit_test(gh2_only_magic),   cmocka_unit_test(gh3_magic_and_byte_order),
        cmocka_unit_test(gh4_version),         cmocka_unit_test(gm8_array_length), cmocka_unit_test(gh5_tensor_count),
        cmocka_unit_test(gh6_value_count),     cmocka_unit_test(gh7_every_prefix), cmocka_unit_test(gh8_appended_junk),
        cmocka_unit_test(gh9_not_a_file),      cmocka_unit_test(gh10_something_else), cmocka_unit_test(gm1_key_length),
        cmocka_unit_test(gm2_key_text),        cmocka_unit_test(gm2_hostile_key_is_escaped), cmocka_unit_test(gm3_duplicate_key),
        cmocka_unit_test(gm6_value_type),      cmocka_unit_test(gm7_string_length), cmocka_unit_test(gm9_nested_arrays),
        cmocka_unit_test(gm10_alignment),      cmocka_unit_test(gm17_many_values), cmocka_unit_test(long_string_array),
        cmocka_unit_test(reads_integers),      cmocka_unit_test(reads_other_types), cmocka_unit_test(reject_escapes),
        cmocka_unit_test(every_allocation_may_fail), cmocka_unit_test(real_vocabularies),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("gguf", tests, NULL, clean);
}
