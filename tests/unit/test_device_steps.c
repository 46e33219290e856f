/* SPDX-License-Identifier: Apache-2.0
 *
 * Steps of several sequences on a device that is made of the CPU's ops (host_device.h): the whole pass, with logits that go
 * each to a place of its own, gives what the CPU gives the same sessions in a batch, the same bits as long as the products are the same.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "backend/device_attn.h"
#include "engine/session.h"
#include "host_device.h"
#include "ok.h"
#include "tiny_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MANY = 35, LONG = 2046, STEPS = 5 }; /* over the end of a chunk */

/* A model on the CPU, and a pass over its weights on the device. */
struct both {
    sr_model *m;
    struct backend *device;
    struct attention *attention;
    struct forward *forward;
};

static struct both open_both(void)
{
    struct both x;
    struct tiny_spec spec = tiny_spec_default();
    sr_model_options mo = sr_model_options_default();
    spec.n_ctx = 4096;
    mo.n_threads = 2;
    mo.device = "none";
    tiny_model_write(tiny_path("steps.gguf"), &spec);
    OK(sr_model_open(&x.m, tiny_path("steps.gguf"), &mo, &err));
    OK(sr_host_device_open(&x.device, 2, &err));
    const struct model_config *c = &x.m->config;
    const struct attention_config a = {.n_layers = c->n_layers, .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim, .rope = c->rope};
    OK(sr_attn_new(&x.attention, x.device, &a, &err));
    OK(sr_forward_new(&x.forward, c, &x.m->weights, x.device, 512, &err));
    return x;
}

static void close_both(struct both *x)
{
    sr_forward_free(x->forward);
    sr_attn_free(x->attention);
    sr_backend_close(x->device);
    sr_model_close(x->m);
}

/* Session i has a length and a mode of its own; the first are long enough to be routed. */
static sr_session_options options_of(int i)
{
    static const sr_route_mode modes[] = {SR_ROUTE_DENSE, SR_ROUTE_MASS, SR_ROUTE_DENSE, SR_ROUTE_WINDOW};
    sr_session_options o = sr_session_options_default();
    o.n_ctx = 4096;
    o.route.mode = modes[i % 4];
    o.route.min_len = 512;
    o.route.rank = 8; /* the default is another on a device */
    o.route.window = 64;
    return o;
}

static int32_t length_of(int i) { return i < 4 ? LONG - i : 5 + 3 * i; }

static void prefill(struct forward *f, struct attn_seq *s, const int32_t *ids, int32_t n)
{
    OK(sr_attn_seq_reserve(s, n, &err));
    for (int32_t at = 0; at < n; at += 512) OK(sr_forward_prefill(f, s, ids + at, n - at < 512 ? n - at : 512, 0, NULL, &err));
}

static void expect_near(const float *got, const float *want, int32_t n, float tolerance, int i)
{
    float top = 0;
    for (int32_t v = 0; v < n; v++) top = fmaxf(top, fabsf(want[v]));
    for (int32_t v = 0; v < n; v++)
        if (!(fabsf(got[v] - want[v]) <= tolerance * top)) fail_msg("sequence %d: logit %d is %g, want %g", i, v, (double)got[v], (double)want[v]);
}

static void check_size(int n, float tolerance)
{
    struct both x = open_both();
    const int32_t n_vocab = x.m->config.n_vocab;
    struct attn_seq *seqs[MANY];
    sr_session *s[MANY];
    sr_batch *b = NULL;
    float *rows[MANY];
    int32_t ids[LONG + MANY + STEPS], next[MANY];
    tiny_tokens(21, ids, LONG + MANY + STEPS);
    OK(sr_batch_new(&b, x.m, n, &err));
    for (int i = 0; i < n; i++) {
        const sr_session_options o = options_of(i);
        const struct attn_seq_config q = {.k_type = o.k_type, .v_type = o.v_type, .max_len = o.n_ctx, .route = o.route};
        OK(sr_session_new(&s[i], x.m, &o, &err));
        OK(sr_session_prefill(s[i], ids + i, length_of(i), NULL, NULL, NULL, &err));
        OK(sr_attn_seq_new(&seqs[i], x.attention, &q, &err));
        prefill(x.forward, seqs[i], ids + i, length_of(i));
        assert_non_null(rows[i] = malloc((size_t)n_vocab * sizeof *rows[i]));
    }
    for (int t = 0; t < STEPS; t++) {
        for (int i = 0; i < n; i++) {
            next[i] = ids[i + length_of(i) + t];
            OK(sr_attn_seq_reserve(seqs[i], length_of(i) + t + 1, &err));
        }
        OK(sr_batch_decode(b, s, next, n, &err));
        OK(sr_forward_decode(x.forward, x.attention, seqs, next, n, rows, &err));
        for (int i = 0; i < n; i++) expect_near(rows[i], sr_session_logits(s[i]), n_vocab, tolerance, i);
    }
    sr_batch_free(b);
    for (int i = 0; i < n; i++) {
        sr_session_free(s[i]);
        sr_attn_seq_free(seqs[i]);
        free(rows[i]);
    }
    close_both(&x);
}

static void few(void **state)
{
    (void)state;
    check_size(1, 0);
    check_size(5, 0);
    check_size(SR_BATCH_SAME, 0);
}

/* More than attention takes at once, and than logits are made at once: the last ones by other products, which round otherwise. */
static void many(void **state)
{
    (void)state;
    check_size(SR_STEP_SEQS + 1, 1e-5f);
    check_size(MANY, 1e-5f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(few), cmocka_unit_test(many)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
