/* SPDX-License-Identifier: Apache-2.0
 *
 * The GGUF writer against the reader: what goes in comes out, and nothing half-written is ever seen.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "formats/gguf_write.h"
#include "gguf_expect.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char path[512], part[520];

static struct gguf_writer *new_writer(const char *name)
{
    struct gguf_writer *w = NULL;
    sr_error err = {0};
    snprintf(path, sizeof(path), "%s", sr_tb_path(name));
    snprintf(part, sizeof(part), "%s.part", path);
    if (sr_gguf_writer_new(&w, path, &err) != SR_OK) fail_msg("%s", err.text);
    assert_int_equal(access(part, F_OK), 0);
    assert_int_not_equal(access(path, F_OK), 0);
    return w;
}

static void fill(float *x, int n)
{
    for (int i = 0; i < n; i++) x[i] = (float)((i * 37) % 101 - 50) / 25.0f;
}

/* ---- values ------------------------------------------------------------------------------------------------- */

static void put_values(struct gguf_writer *w)
{
    static const char *const tokens[] = {"<s>", "", "\xe2\x96\x81the"};
    static const float scores[] = {0.0f, -1.5f, 3e38f};
    static const int32_t kinds[] = {3, -1, INT32_MIN};
    assert_int_equal(sr_gguf_put_str(w, "general.architecture", "llama", NULL), SR_OK);
    assert_int_equal(sr_gguf_put_u32(w, "llama.block_count", 0xfffffffeu, NULL), SR_OK);
    assert_int_equal(sr_gguf_put_f32(w, "llama.eps", 1e-5f, NULL), SR_OK);
    assert_int_equal(sr_gguf_put_bool(w, "yes", 2, NULL), SR_OK);
    assert_int_equal(sr_gguf_put_bool(w, "no", 0, NULL), SR_OK);
    assert_int_equal(sr_gguf_put_strs(w, "tokens", tokens, 3, NULL), SR_OK);
    assert_int_equal(sr_gguf_put_f32s(w, "scores", scores, 3, NULL), SR_OK);
    assert_int_equal(sr_gguf_put_i32s(w, "kinds", kinds, 3, NULL), SR_OK);
    assert_int_equal(sr_gguf_put_strs(w, "nothing", NULL, 0, NULL), SR_OK);
    assert_int_equal(sr_gguf_put_i32s(w, "no ints", NULL, 0, NULL), SR_OK);
}

static void check_values(const struct gguf *g)
{
    int64_t n;
    double d;
    int truth;
    struct gguf_str s;
    assert_int_equal(sr_gguf_n_values(g), 10);
    assert_int_equal(sr_gguf_get_str(g, "general.architecture", &s, NULL, NULL), SR_OK);
    assert_memory_equal(s.data, "llama", 5);
    assert_int_equal(sr_gguf_get_int(g, "llama.block_count", 0, UINT32_MAX, &n, NULL, NULL), SR_OK);
    assert_int_equal(n, 0xfffffffe);
    assert_int_equal(sr_gguf_get_float(g, "llama.eps", &d, NULL, NULL), SR_OK);
    assert_true(d == (double)1e-5f);
    assert_int_equal(sr_gguf_get_bool(g, "yes", &truth, NULL, NULL), SR_OK);
    assert_int_equal(truth, 1);
    assert_int_equal(sr_gguf_get_bool(g, "no", &truth, NULL, NULL), SR_OK);
    assert_int_equal(truth, 0);
    const struct gguf_value *v = sr_gguf_find(g, "scores");
    assert_int_equal(v->elem_type, GGUF_F32);
    assert_int_equal(v->count, 3);
    assert_true(sr_gguf_number(v, 2) == (double)3e38f);
    assert_int_equal(sr_gguf_integer(sr_gguf_find(g, "kinds"), 2), INT32_MIN);
    assert_int_equal(sr_gguf_find(g, "nothing")->count, 0);
    assert_int_equal(sr_gguf_find(g, "no ints")->count, 0);
    const uint8_t *at = NULL;
    uint64_t i = 0;
    v = sr_gguf_find(g, "tokens");
    assert_int_equal(sr_gguf_next_str(v, &at, &i, &s), 1);
    assert_memory_equal(s.data, "<s>", 3);
    assert_int_equal(sr_gguf_next_str(v, &at, &i, &s), 1);
    assert_int_equal(s.bytes, 0);
    assert_int_equal(sr_gguf_next_str(v, &at, &i, &s), 1);
    assert_int_equal(s.bytes, 6);
    assert_memory_equal(s.data, "\xe2\x96\x81the", 6);
    assert_int_equal(sr_gguf_next_str(v, &at, &i, &s), 0);
}

static void values_round_trip(void **state)
{
    (void)state;
    struct gguf_writer *w = new_writer("values.gguf");
    put_values(w);
    assert_int_equal(sr_gguf_writer_finish(w, NULL), SR_OK);
    assert_int_not_equal(access(part, F_OK), 0);
    sr_tb_count_warnings();
    struct gguf *g = sr_tb_opened_file(path);
    check_values(g);
    assert_int_equal(sr_gguf_version(g), 3);
    assert_int_equal(sr_tb_warnings(), 0);
    sr_gguf_close(g);
}

/* ---- tensors ------------------------------------------------------------------------------------------------ */

static const sr_dtype types[] = {SR_DTYPE_F32, SR_DTYPE_F16, SR_DTYPE_BF16, SR_DTYPE_Q4_0, SR_DTYPE_Q4_1, SR_DTYPE_Q5_0, SR_DTYPE_Q5_1, SR_DTYPE_Q8_0};
enum { N_TYPES = 8, COLS = 96, ROWS = 3 };

static void put_infos(struct gguf_writer *w)
{
    static const int64_t ne[4] = {COLS, ROWS, 1, 1};
    for (int t = 0; t < N_TYPES; t++) {
        char name[32];
        snprintf(name, sizeof(name), "blk.%d.weight", t);
        assert_int_equal(sr_gguf_put_tensor(w, name, types[t], 2 + t % 3, ne, NULL), SR_OK);
    }
}

static size_t quantized(sr_dtype dtype, uint8_t *dst)
{
    float x[COLS * ROWS];
    fill(x, COLS * ROWS);
    assert_int_equal(sr_quantize_row(dtype, x, dst, COLS * ROWS, NULL), SR_OK);
    return sr_row_bytes(dtype, COLS * ROWS);
}

static void check_tensors(const struct gguf *g)
{
    assert_int_equal(sr_gguf_n_tensors(g), N_TYPES);
    for (int t = 0; t < N_TYPES; t++) {
        char name[32];
        uint8_t want[COLS * ROWS * 4];
        snprintf(name, sizeof(name), "blk.%d.weight", t);
        const struct gguf_tensor *have = sr_gguf_find_tensor(g, name);
        assert_non_null(have);
        assert_int_equal(have->dtype, types[t]);
        assert_int_equal(have->n_dims, 2 + t % 3);
        assert_int_equal(have->ne[0], COLS);
        assert_int_equal(have->ne[1], ROWS);
        assert_int_equal(have->file_offset % 32, 0);
        assert_int_equal(have->bytes, quantized(types[t], want));
        assert_memory_equal(have->data, want, have->bytes);
    }
}

/* Data given in pieces of `piece` bytes, across tensor ends (0: one piece per tensor). */
static void round_trip(size_t piece)
{
    static uint8_t all[N_TYPES * COLS * ROWS * 4];
    struct gguf_writer *w = new_writer("tensors.gguf");
    size_t n = 0;
    put_values(w);
    put_infos(w);
    for (int t = 0; t < N_TYPES; t++) {
        const size_t bytes = quantized(types[t], all + n);
        if (piece == 0) assert_int_equal(sr_gguf_put_data(w, all + n, bytes, NULL), SR_OK);
        n += bytes;
    }
    for (size_t at = 0; piece && at < n; at += piece)
        assert_int_equal(sr_gguf_put_data(w, all + at, n - at < piece ? n - at : piece, NULL), SR_OK);
    assert_int_equal(sr_gguf_writer_finish(w, NULL), SR_OK);
    struct gguf *g = sr_tb_opened_file(path);
    check_values(g);
    check_tensors(g);
    sr_gguf_close(g);
    unlink(path);
}

static void tensors_round_trip(void **state)
{
    (void)state;
    static const size_t pieces[] = {0, 1, 7, 1000, 1 << 20};
    for (int i = 0; i < 5; i++) round_trip(pieces[i]);
}

static void empty_file(void **state)
{
    (void)state;
    struct gguf_writer *w = new_writer("empty.gguf");
    assert_int_equal(sr_gguf_writer_finish(w, NULL), SR_OK);
    struct gguf *g = sr_tb_opened_file(path);
    assert_int_equal(sr_gguf_n_values(g) + sr_gguf_n_tensors(g), 0);
    assert_int_equal(sr_gguf_file_bytes(g), 24);
    sr_gguf_close(g);
}

/* ---- what is refused ---------------------------------------------------------------------------------------- */

static void wrong_order(void **state)
{
    (void)state;
    static const int64_t ne[1] = {8};
    static const float x[9];
    sr_error err;
    struct gguf_writer *w = new_writer("order.gguf");
    assert_int_equal(sr_gguf_put_tensor(w, "t", SR_DTYPE_F32, 1, ne, &err), SR_OK);
    assert_int_equal(sr_gguf_put_u32(w, "late", 1, &err), SR_ERR_USAGE);
    assert_non_null(strstr(err.text, "late"));
    assert_int_equal(sr_gguf_put_data(w, x, 4, &err), SR_OK);
    assert_int_equal(sr_gguf_put_tensor(w, "u", SR_DTYPE_F32, 1, ne, &err), SR_ERR_USAGE);
    assert_int_equal(sr_gguf_put_data(w, x, 32, &err), SR_ERR_USAGE);
    sr_gguf_writer_abort(w);
    assert_int_not_equal(access(part, F_OK), 0);
    assert_int_not_equal(access(path, F_OK), 0);

    w = new_writer("order.gguf");
    assert_int_equal(sr_gguf_put_tensor(w, "t", SR_DTYPE_F32, 1, ne, &err), SR_OK);
    assert_int_equal(sr_gguf_put_data(w, x, 31, &err), SR_OK);
    assert_int_equal(sr_gguf_writer_finish(w, &err), SR_ERR_USAGE);
    assert_int_not_equal(access(part, F_OK), 0);
    assert_int_not_equal(access(path, F_OK), 0);
}

static void illegal_names_and_shapes(void **state)
{
    (void)state;
    static const struct { sr_dtype dtype; int32_t n_dims; int64_t ne[4]; } bad[] = {
        {SR_DTYPE_F32, 0, {8, 1, 1, 1}}, {SR_DTYPE_F32, 5, {8, 1, 1, 1}}, {SR_DTYPE_F32, 1, {0, 1, 1, 1}}, {SR_DTYPE_F32, 2, {8, -1, 1, 1}},
        {SR_DTYPE_Q4_0, 1, {33, 1, 1, 1}}, {(sr_dtype)17, 1, {256, 1, 1, 1}}, {SR_DTYPE_F32, 2, {INT64_MAX, INT64_MAX, 1, 1}},
        {SR_DTYPE_F32, 1, {INT64_MAX, 1, 1, 1}}};
    static const int64_t ne[1] = {8};
    struct gguf_writer *w = new_writer("shapes.gguf");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(sr_gguf_put_tensor(w, "t", bad[i].dtype, bad[i].n_dims, bad[i].ne, NULL), SR_ERR_USAGE);
    assert_int_equal(sr_gguf_put_tensor(w, "", SR_DTYPE_F32, 1, ne, NULL), SR_ERR_USAGE);
    assert_int_equal(sr_gguf_put_tensor(w, "1234567890123456789012345678901234567890123456789012345678901234", SR_DTYPE_F32, 1, ne, NULL), SR_ERR_USAGE);
    assert_int_equal(sr_gguf_put_u32(w, "", 1, NULL), SR_ERR_USAGE);
    sr_gguf_writer_abort(w);
    sr_gguf_writer_abort(NULL);
}

static void directory_is_absent(void **state)
{
    (void)state;
    struct gguf_writer *w = NULL;
    sr_error err;
    assert_int_equal(sr_gguf_writer_new(&w, sr_tb_path("no/such/dir.gguf"), &err), SR_ERR_IO);
    assert_null(w);
    assert_non_null(strstr(err.text, "dir.gguf.part"));
    assert_int_equal(symlink("/dev/null", sr_tb_path("link")), 0); /* as a device: a rename would replace it */
    assert_int_equal(sr_gguf_writer_new(&w, sr_tb_path("link"), &err), SR_ERR_IO);
    assert_non_null(strstr(err.text, "is a symbolic link"));
    assert_int_equal(unlink(sr_tb_path("link")), 0);
}

static void disk_is_full(void **state)
{
    (void)state;
    static const int64_t ne[1] = {1 << 18};
    static uint8_t data[1 << 20];
    struct gguf_writer *w = NULL;
    sr_error err;
    if (access("/dev/full", W_OK) != 0) skip();
    snprintf(path, sizeof(path), "%s", sr_tb_path("full.gguf"));
    snprintf(part, sizeof(part), "%s.part", path);
    assert_int_equal(symlink("/dev/full", part), 0);
    assert_int_equal(sr_gguf_writer_new(&w, path, &err), SR_OK);
    assert_int_equal(sr_gguf_put_tensor(w, "t", SR_DTYPE_F32, 1, ne, &err), SR_OK);
    assert_int_equal(sr_gguf_put_data(w, data, sizeof(data), &err), SR_ERR_IO);
    assert_non_null(strstr(err.text, "No space"));
    sr_gguf_writer_abort(w);
    assert_int_not_equal(access(part, F_OK), 0);

    assert_int_equal(symlink("/dev/full", part), 0); /* so little that only the close writes */
    assert_int_equal(sr_gguf_writer_new(&w, path, &err), SR_OK);
    assert_int_equal(sr_gguf_writer_finish(w, &err), SR_ERR_IO);
    assert_int_not_equal(access(part, F_OK), 0);
    assert_int_not_equal(access(path, F_OK), 0);
}

/* Writes a model; the first failure aborts. */
static sr_status write_model(sr_error *err)
{
    static const int64_t ne[1] = {1024};
    static const float data[1024];
    struct gguf_writer *w;
    sr_status st;
    SR_TRY(sr_gguf_writer_new(&w, path, err));
    SR_TRY_GOTO(sr_gguf_put_str(w, "general.architecture", "llama", err));
    SR_TRY_GOTO(sr_gguf_put_tensor(w, "t", SR_DTYPE_F32, 1, ne, err));
    SR_TRY_GOTO(sr_gguf_put_data(w, data, sizeof(data), err));
    return sr_gguf_writer_finish(w, err);
fail:
    sr_gguf_writer_abort(w);
    return st;
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    snprintf(path, sizeof(path), "%s", sr_tb_path("fault.gguf"));
    snprintf(part, sizeof(part), "%s.part", path);
    for (uint64_t n = 1;; n++) {
        assert_true(n < 50);
        sr_alloc_fail_at(n);
        const sr_status st = write_model(NULL);
        sr_alloc_fail_at(0);
        assert_int_not_equal(access(part, F_OK), 0);
        if (st == SR_OK) {
            assert_true(n > 4);
            sr_gguf_close(sr_tb_opened_file(path));
            return;
        }
        assert_int_equal(st, SR_ERR_RESOURCE);
        assert_int_not_equal(access(path, F_OK), 0);
    }
}

static int clean(void **state)
{
    (void)state;
    sr_tb_clean();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_round_trip), cmocka_unit_test(tensors_round_trip),       cmocka_unit_test(empty_file),
        cmocka_unit_test(wrong_order),       cmocka_unit_test(illegal_names_and_shapes), cmocka_unit_test(directory_is_absent),
        cmocka_unit_test(disk_is_full),      cmocka_unit_test(every_allocation_may_fail),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("gguf writer", tests, NULL, clean);
}
