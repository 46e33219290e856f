/* SPDX-License-Identifier: Apache-2.0
 *
 * Split GGUF models: row GT16 of the bad-input contract. Every refusal must name the shard at fault.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "gguf_expect.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define FIRST "m-00001-of-00003.gguf"
#define SECOND "m-00002-of-00003.gguf"
#define THIRD "m-00003-of-00003.gguf"

static struct sr_tb b;

/* What a shard says of itself, and the one tensor in it. */
struct shard {
    const char *file;
    uint16_t no, count;
    int32_t tensors;
    const char *tensor;
    const char *name; /* general.name; NULL: none */
};

static void save_shard(const struct shard *s)
{
    sr_tb_begin(&b, s->tensor ? 1 : 0, s->name ? 4 : 3);
    if (s->name) sr_tb_kv_str(&b, "general.name", s->name);
    sr_tb_key(&b, "split.no", GGUF_U16), sr_tb_put(&b, &s->no, 2);
    sr_tb_key(&b, "split.count", GGUF_U16), sr_tb_put(&b, &s->count, 2);
    sr_tb_key(&b, "split.tensors.count", GGUF_I32), sr_tb_put(&b, &s->tensors, 4);
    if (s->tensor) {
        sr_tb_info(&b, s->tensor, 1, (uint64_t[]){8}, SR_DTYPE_F32, 0);
        sr_tb_pad(&b, 32);
        for (int i = 0; i < 8; i++) sr_tb_u32(&b, 0x3f800000u + (uint32_t)s->no);
    }
    sr_tb_save(&b, s->file);
}

static void save_model(void)
{
    static const struct shard good[3] = {
        {FIRST, 0, 3, 3, "a", "one"}, {SECOND, 1, 3, 3, "b", NULL}, {THIRD, 2, 3, 3, "c", NULL}};
    for (int i = 0; i < 3; i++) save_shard(&good[i]);
}

/* The good model with one shard replaced must be refused with words of `needle`. */
static void refuse_with(const struct shard *bad, const char *needle)
{
    save_model();
    save_shard(bad);
    struct gguf *g = NULL;
    sr_error err = {0};
    assert_int_equal(sr_gguf_open(&g, sr_tb_path(FIRST), &err), SR_ERR_FORMAT);
    assert_null(g);
    if (!strstr(err.text, needle)) fail_msg("\"%s\" is not in: %s", needle, err.text);
    if (!strstr(err.text, bad->file)) fail_msg("%s is not named in: %s", bad->file, err.text);
}

static void opens_all_parts(void **state)
{
    (void)state;
    save_model();
    struct gguf *g = sr_tb_opened_file(sr_tb_path(FIRST));
    assert_int_equal(sr_gguf_n_parts(g), 3);
    assert_int_equal(sr_gguf_n_tensors(g), 3);
    assert_int_equal(sr_gguf_n_values(g), 4);
    for (int i = 0; i < 3; i++) {
        const char name[2] = {(char)('a' + i), 0};
        const struct gguf_tensor *t = sr_gguf_find_tensor(g, name);
        uint32_t bits;
        assert_ptr_equal(t, sr_gguf_tensor(g, i));
        assert_int_equal(t->part, i);
        memcpy(&bits, t->data, 4);
        assert_int_equal(bits, 0x3f800000u + (uint32_t)i);
    }
    assert_non_null(strstr(sr_gguf_path(g), FIRST));
    sr_gguf_close(g);
}

static void opens_empty_first_shard(void **state)
{
    (void)state;
    save_model(); /* vocabulary alone in the first shard */
    save_shard(&(struct shard){FIRST, 0, 3, 2, NULL, "one"});
    save_shard(&(struct shard){SECOND, 1, 3, 2, "b", "one"});
    save_shard(&(struct shard){THIRD, 2, 3, 2, "c", "one"});
    struct gguf *g = sr_tb_opened_file(sr_tb_path(FIRST));
    assert_int_equal(sr_gguf_n_tensors(g), 2);
    assert_int_equal(sr_gguf_find_tensor(g, "c")->part, 2);
    sr_gguf_close(g);
}

static void one_shard_needs_no_name(void **state)
{
    (void)state;
    save_shard(&(struct shard){"single.gguf", 0, 1, 1, "a", NULL});
    struct gguf *g = sr_tb_opened_file(sr_tb_path("single.gguf"));
    assert_int_equal(sr_gguf_n_parts(g), 1);
    sr_gguf_close(g);
    save_shard(&(struct shard){"single.gguf", 1, 1, 1, "a", NULL});
    sr_tb_refused_file(sr_tb_path("single.gguf"), SR_ERR_FORMAT, "split.no is 1");
}

static void gt16_missing(void **state)
{
    (void)state;
    static const char *const names[] = {SECOND, THIRD};
    for (int i = 0; i < 2; i++) {
        struct gguf *g = NULL;
        sr_error err = {0};
        save_model();
        unlink(sr_tb_path(names[i]));
        assert_int_equal(sr_gguf_open(&g, sr_tb_path(FIRST), &err), SR_ERR_FORMAT);
        assert_non_null(strstr(err.text, names[i]));
        assert_non_null(strstr(err.text, "is missing"));
    }
}

static void gt16_repeated(void **state)
{
    (void)state;
    refuse_with(&(struct shard){THIRD, 1, 3, 3, "b", NULL}, "split.no is 1, must be 2");
    refuse_with(&(struct shard){THIRD, 2, 3, 3, "b", NULL}, "tensor b is also in shard 2");
    refuse_with(&(struct shard){SECOND, 0, 3, 3, "a", "one"}, "split.no is 0, must be 1");
}

static void gt16_foreign(void **state)
{
    (void)state;
    refuse_with(&(struct shard){SECOND, 1, 3, 4, "b", NULL}, "split.tensors.count is 4, the first shard says 3");
    refuse_with(&(struct shard){SECOND, 1, 4, 3, "b", NULL}, "split.count is 4, the first shard says 3");
    refuse_with(&(struct shard){SECOND, 1, 3, 3, "b", "two"}, "another model");
    refuse_with(&(struct shard){SECOND, 1, 3, 3, "a", NULL}, "tensor a is also in shard 1");
    save_model(); /* a shard that says nothing of splits */
    sr_tb_begin(&b, 0, 0);
    sr_tb_save(&b, SECOND);
    struct gguf *g = NULL;
    sr_error err = {0};
    assert_int_equal(sr_gguf_open(&g, sr_tb_path(FIRST), &err), SR_ERR_FORMAT);
    assert_non_null(strstr(err.text, SECOND));
}

static void gt16_counts(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0, 65536, 0xffffffffu};
    for (int i = 0; i < 3; i++) {
        sr_tb_begin(&b, 0, 1);
        sr_tb_kv_u32(&b, "split.count", bad[i]);
        sr_tb_save(&b, FIRST);
        sr_tb_refused_file(sr_tb_path(FIRST), SR_ERR_FORMAT, "split.count: ");
    }
    sr_tb_begin(&b, 0, 1);
    sr_tb_kv_str(&b, "split.count", "3");
    sr_tb_save(&b, FIRST);
    sr_tb_refused_file(sr_tb_path(FIRST), SR_ERR_FORMAT, "is no integer");
    refuse_with(&(struct shard){FIRST, 0, 2, 3, "a", "one"}, "the name says 3 shards, split.count says 2");
}

static void gt16_tensor_total(void **state)
{
    (void)state;
    save_shard(&(struct shard){FIRST, 0, 3, 4, "a", "one"});
    save_shard(&(struct shard){SECOND, 1, 3, 4, "b", NULL});
    save_shard(&(struct shard){THIRD, 2, 3, 4, "c", NULL});
    sr_tb_refused_file(sr_tb_path(FIRST), SR_ERR_FORMAT, "have 3 tensors, split.tensors.count says 4");
}

static void gt16_wrong_number(void **state)
{
    (void)state;
    refuse_with(&(struct shard){FIRST, 1, 3, 3, "a", "one"}, "the name says shard 1, split.no is 1");
    refuse_with(&(struct shard){SECOND, 2, 3, 3, "b", NULL}, "split.no is 2, must be 1");
    save_model();
    sr_tb_refused_file(sr_tb_path(SECOND), SR_ERR_FORMAT, "this is shard 2 of 3: open shard 1");
    save_shard(&(struct shard){"renamed.gguf", 0, 3, 3, "a", NULL});
    sr_tb_refused_file(sr_tb_path("renamed.gguf"), SR_ERR_FORMAT, "PREFIX-00001-of-00003.gguf");
}

static void broken_shard_is_named(void **state)
{
    (void)state;
    save_model();
    const char *path = sr_tb_path(THIRD);
    assert_int_equal(truncate(path, 40), 0);
    struct gguf *g = NULL;
    sr_error err = {0};
    assert_int_equal(sr_gguf_open(&g, sr_tb_path(FIRST), &err), SR_ERR_FORMAT);
    assert_non_null(strstr(err.text, THIRD));
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    save_model();
    for (uint64_t n = 1;; n++) {
        struct gguf *g = NULL;
        sr_error err = {0};
        assert_true(n < 100);
        sr_alloc_fail_at(n);
        const sr_status st = sr_gguf_open(&g, sr_tb_path(FIRST), &err);
        sr_alloc_fail_at(0);
        if (st == SR_OK) {
            sr_gguf_close(g);
            assert_true(n > 15);
            return;
        }
        assert_int_equal(st, SR_ERR_RESOURCE);
    }
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
        cmocka_unit_test(opens_all_parts), cmocka_unit_test(opens_empty_first_shard), cmocka_unit_test(one_shard_needs_no_name),
        cmocka_unit_test(gt16_missing),    cmocka_unit_test(gt16_repeated),           cmocka_unit_test(gt16_foreign),
        cmocka_unit_test(gt16_counts),     cmocka_unit_test(gt16_tensor_total),       cmocka_unit_test(gt16_wrong_number),
        cmocka_unit_test(broken_shard_is_named), cmocka_unit_test(every_allocation_may_fail),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("gguf split", tests, NULL, clean);
}
