/* SPDX-License-Identifier: Apache-2.0
 *
 * Several sessions in one step: each gets what it would get alone, in every mode and at any length; who takes part may
 * change; a step that cannot be made changes nothing.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "sinkrouter/engine.h"
#include "ok.h"
#include "tiny_model.h"

enum { MANY = 20, LONG = 2100, STEPS = 6 };

static int32_t ids[LONG + MANY + STEPS];

static sr_model *open_model(int n_threads)
{
    struct tiny_spec spec = tiny_spec_default();
    sr_model_options o = sr_model_options_default();
    sr_model *m = NULL;
    spec.n_ctx = 4096;
    spec.dtype = SR_DTYPE_Q8_0;
    o.n_threads = n_threads;
    tiny_model_write(tiny_path("batch.gguf"), &spec);
    OK(sr_model_open(&m, tiny_path("batch.gguf"), &o, &err));
    tiny_tokens(5, ids, LONG + MANY + STEPS);
    return m;
}

/* Session i: its own length and mode; the first three are long enough to be routed. */
static sr_session *new_session(sr_model *m, int i, int look)
{
    static const sr_route_mode modes[] = {SR_ROUTE_MASS, SR_ROUTE_WINDOW, SR_ROUTE_DENSE};
    sr_session_options o = sr_session_options_default();
    sr_session *s = NULL;
    o.n_ctx = 4096;
    o.route.mode = modes[i % 3];
    o.route.look = look;
    OK(sr_session_new(&s, m, &o, &err));
    OK(sr_session_prefill(s, ids + i, i < 3 ? LONG : 5 + 3 * i, NULL, NULL, NULL, &err));
    return s;
}

static void check_size(sr_model *m, int n, float tolerance)
{
    sr_model_info info;
    sr_session *alone[MANY], *together[MANY];
    sr_batch *b = NULL;
    sr_model_get_info(m, &info);
    OK(sr_batch_new(&b, m, n, &err));
    for (int i = 0; i < n; i++) {
        /* where results are near and not equal, rounding may decide whether there is a second look, which is no small change */
        alone[i] = new_session(m, i, tolerance == 0);
        together[i] = new_session(m, i, tolerance == 0);
    }
    for (int t = 0; t < STEPS; t++) {
        int32_t next[MANY];
        for (int i = 0; i < n; i++) next[i] = ids[LONG + i + t];
        for (int i = 0; i < n; i++) OK(sr_session_decode(alone[i], next[i], &err));
        OK(sr_batch_decode(b, together, next, n, &err));
        for (int i = 0; i < n; i++) {
            const float *x = sr_session_logits(alone[i]), *y = sr_session_logits(together[i]);
            for (int32_t v = 0; v < info.n_vocab; v++)
                if (!(fabsf(x[v] - y[v]) <= tolerance))
                    fail_msg("batch of %d, step %d, session %d: logit %d is %g, alone %g", n, t, i, v, (double)y[v],
                             (double)x[v]);
        }
    }
    for (int i = 0; i < n; i++) {
        sr_session_stats a, c;
        sr_session_get_stats(alone[i], &a);
        sr_session_get_stats(together[i], &c);
        assert_int_equal(c.decode_tokens, STEPS);
        if (tolerance == 0) assert_int_equal(a.route.kv_bytes, c.route.kv_bytes);
        assert_int_equal(a.route.dense_bytes, c.route.dense_bytes);
        sr_session_free(alone[i]);
        sr_session_free(together[i]);
    }
    sr_batch_free(b);
}

static void same_bits(void **state)
{
    (void)state;
    sr_model *m = open_model(1);
    check_size(m, 1, 0);
    check_size(m, 4, 0);
    check_size(m, SR_BATCH_SAME, 0);
    sr_model_close(m);
    m = open_model(2);
    check_size(m, 4, 0);
    sr_model_close(m);
}

/* From SR_BATCH_SAME + 1 on the products are prefill's, whose rounding differs: near, not equal. */
static void wide(void **state)
{
    (void)state;
    sr_model *m = open_model(2);
    check_size(m, MANY, 0.3f);
    sr_model_close(m);
}

static void come_and_go(void **state)
{
    (void)state;
    sr_model *m = open_model(1);
    sr_session *s[3], *t[3];
    sr_batch *b = NULL;
    OK(sr_batch_new(&b, m, 3, &err));
    for (int i = 0; i < 3; i++) s[i] = new_session(m, i + 3, 1), t[i] = new_session(m, i + 3, 1);
    OK(sr_batch_decode(b, (sr_session *[]){s[0], s[1]}, (int32_t[]){7, 8}, 2, &err));
    OK(sr_batch_decode(b, (sr_session *[]){s[2], s[1], s[0]}, (int32_t[]){9, 10, 11}, 3, &err));
    sr_session_free(s[1]);
    OK(sr_batch_decode(b, (sr_session *[]){s[2]}, (int32_t[]){12}, 1, &err));
    OK(sr_session_decode(t[0], 7, &err));
    OK(sr_session_decode(t[0], 11, &err));
    OK(sr_session_decode(t[2], 9, &err));
    OK(sr_session_decode(t[2], 12, &err));
    assert_memory_equal(sr_session_logits(s[0]), sr_session_logits(t[0]), TINY_VOCAB * sizeof(float));
    assert_memory_equal(sr_session_logits(s[2]), sr_session_logits(t[2]), TINY_VOCAB * sizeof(float));
    for (int i = 0; i < 3; i++) {
        if (i != 1) sr_session_free(s[i]);
        sr_session_free(t[i]);
    }
    sr_batch_free(b);
    sr_model_close(m);
}

static void refuse(sr_batch *b, sr_session *const *s, const int32_t *x, int32_t n, const char *says)
{
    assert_int_equal(sr_batch_decode(b, s, x, n, &err), SR_ERR_USAGE);
    if (!strstr(err.text, says)) fail_msg("\"%s\" does not say \"%s\"", err.text, says);
}

static void refusals(void **state)
{
    (void)state;
    sr_model *m = open_model(1), *other = open_model(1);
    sr_session *s[2] = {new_session(m, 3, 1), new_session(m, 4, 1)}, *foreign = new_session(other, 3, 1);
    float before[TINY_VOCAB];
    sr_batch *b = NULL;
    assert_int_equal(sr_batch_new(&b, m, 0, &err), SR_ERR_USAGE);
    assert_int_equal(sr_batch_new(&b, m, SR_BATCH_MAX + 1, &err), SR_ERR_USAGE);
    OK(sr_batch_new(&b, m, 2, &err));
    memcpy(before, sr_session_logits(s[0]), sizeof before);
    refuse(b, s, (int32_t[]){1, 2}, 0, "0 sessions");
    refuse(b, s, (int32_t[]){1, 2}, 3, "3 sessions");
    refuse(b, (sr_session *[]){s[0], s[0]}, (int32_t[]){1, 2}, 2, "the same");
    refuse(b, (sr_session *[]){s[0], foreign}, (int32_t[]){1, 2}, 2, "another model");
    refuse(b, s, (int32_t[]){1, TINY_VOCAB}, 2, "id 264");
    assert_int_equal(sr_session_len(s[0]), 5 + 9);
    assert_memory_equal(before, sr_session_logits(s[0]), sizeof before);
    OK(sr_batch_decode(b, s, (int32_t[]){1, 2}, 2, &err));
    for (int i = 0; i < 2; i++) sr_session_free(s[i]);
    sr_session_free(foreign);
    sr_batch_free(b);
    sr_model_close(m);
    sr_model_close(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_bits), cmocka_unit_test(wide), cmocka_unit_test(come_and_go),
                                       cmocka_unit_test(refusals)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
