/* SPDX-License-Identifier: Apache-2.0
 *
 * A device without room: weights and sessions that do not fit are refused before anything is sent, in one line with the
 * bytes that are missing and the context or -ngl that fits, and that does fit. And weights that it has no kernel for. The
 * device is a number of free bytes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/model.h"
#include "engine/placement.h"

#include "backend/device_attn.h"
#include "ok.h"
#include "tiny_model.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LAYERS = 5, CONTEXT = 60000 };

static uint64_t left; /* on the device */
static uint64_t mem_available(struct backend *b) { return (void)b, left; }
static void mem_free(struct backend *b, void *block) { (void)b, assert_null(block); }
static void weight_release(struct backend *b, struct weight *w) { (void)b, assert_null(w->packed); }
static sr_status mem_new(struct backend *b, void **out, size_t bytes, const char *what, sr_error *e)
{
    return (void)b, (void)bytes, (void)what, (void)e, *out = NULL, SR_OK;
}

/* Of all tensors those of feed-forwards are of a type that is not known. */
static sr_status weight_prepare(struct backend *b, struct weight *w, sr_error *e)
{
    (void)b;
    return w->n_in == w->n_out || w->n_out == TINY_VOCAB || w->n_out < w->n_in ? SR_OK : sr_fail(e, SR_ERR_UNSUPPORTED, "weights of type f32: want others");
}

static size_t row_bytes(int32_t rank, int32_t bits) { return (size_t)(rank * bits / 8 + 3); }

static const struct device_attn_ops device_attn = {.sketch_row_bytes = row_bytes};
static const struct backend_ops device_ops = {.device_attn = &device_attn, .mem_available = mem_available, .mem_free = mem_free,
                                             .weight_release = weight_release, .mem_new = mem_new, .weight_prepare = weight_prepare};
static struct backend device = {.ops = &device_ops, .has_own_memory = 1};

static char path[64];
static sr_model *model;

static int open_model(void **state)
{
    (void)state;
    struct tiny_spec spec = tiny_spec_default();
    sr_model_options o = sr_model_options_default();
    spec.n_layers = LAYERS;
    spec.n_ctx = CONTEXT;
    snprintf(path, sizeof path, "/tmp/sr-test-device-room-%d.gguf", (int)getpid());
    tiny_model_write(path, &spec);
    o.device = "none";
    return sr_model_open(&model, path, &o, &err) != SR_OK;
}

static int close_model(void **state)
{
    (void)state;
    sr_model_close(model);
    return unlink(path);
}

static void expect_text(const char *want)
{
    if (!strstr(err.text, want)) fail_msg("\"%s\" has no \"%s\"", err.text, want);
    assert_null(strchr(err.text, '\n'));
}

static void weights(void **state)
{
    (void)state;
    const uint64_t all = sr_weights_upper_bytes(model->file, &model->config, 0);
    for (int32_t fit = 0; fit < LAYERS; fit++) {
        struct model_weights w = {0};
        const struct weights_options o = {0};
        char want[96];
        left = fit ? sr_weights_upper_bytes(model->file, &model->config, LAYERS - fit) : 1;
        assert_true(left < all);
        assert_int_equal(sr_weights_load(&w, model->file, &model->config, &device, &o, &err), SR_ERR_RESOURCE);
        snprintf(want, sizeof want, "%d layers need %llu bytes of device memory, %llu free: %llu are missing; -ngl %d fits", LAYERS,
                 (unsigned long long)all, (unsigned long long)left, (unsigned long long)(all - left), fit);
        expect_text(want);
        expect_text(path);
    }
}

static void no_kernel(void **state)
{
    (void)state;
    struct model_weights w = {0};
    const struct weights_options o = {0};
    left = (uint64_t)1 << 40;
    assert_int_equal(sr_weights_load(&w, model->file, &model->config, &device, &o, &err), SR_ERR_UNSUPPORTED);
    assert_string_equal(err.text, "blk.0.ffn_gate.weight: weights of type f32: want others; --device none computes with it on the CPU");
}

static uint64_t need_of(const sr_session_options *o, int32_t n_ctx, int32_t n_lower)
{
    sr_session_options s = *o;
    struct placement_need need;
    s.n_ctx = n_ctx;
    OK(sr_placement_need(model, &s, n_lower, &need, &err));
    return need.device;
}

/* The model's weights lie there already: `left` is what they leave. */
static void refuse_session(const sr_session_options *o, uint64_t free_bytes)
{
    const uint64_t all = sr_weights_upper_bytes(model->file, &model->config, 0), need = need_of(o, o->n_ctx, 0);
    unsigned long long missing = 0;
    int fits = 0, layers = 0;
    sr_session *s;
    left = free_bytes;
    assert_int_equal(sr_session_new(&s, model, o, &err), SR_ERR_RESOURCE);
    const char *at = strstr(err.text, "free: ");
    assert_true(at && sscanf(at, "free: %llu are missing; %d tokens would fit, or -ngl %d", &missing, &fits, &layers) == 3);
    expect_text("bytes of device memory");
    assert_true(missing == need - left && fits < o->n_ctx && layers < LAYERS);
    if (fits) assert_true(need_of(o, fits, 0) <= left);
    assert_true(need_of(o, fits + 1, 0) > left);
    const uint64_t room = left + all;
    if (layers) assert_true(need_of(o, o->n_ctx, LAYERS - layers) + sr_weights_upper_bytes(model->file, &model->config, LAYERS - layers) <= room);
    assert_int_equal(layers, sr_placement_fit(model, o, room));
}

static void sessions(void **state)
{
    (void)state;
    struct backend *mine = model->backend;
    sr_session_options o = sr_session_options_default();
    o.n_ctx = CONTEXT;
    model->backend = &device;
    for (int route = 0; route < 2; route++) {
        o.route.mode = route ? SR_ROUTE_MASS : SR_ROUTE_DENSE;
        const uint64_t need = need_of(&o, CONTEXT, 0);
        refuse_session(&o, need - 1);
        refuse_session(&o, need / 2);
        refuse_session(&o, 0);
    }
    model->backend = mine;
}

/* What -ngl auto takes grows with the room, one layer after the other. */
static void layers_that_fit(void **state)
{
    (void)state;
    struct backend *mine = model->backend;
    sr_session_options o = sr_session_options_default();
    int32_t before = 0;
    o.n_ctx = CONTEXT;
    model->backend = &device;
    const uint64_t most = (uint64_t)1 << 30, step = need_of(&o, CONTEXT, 0) / LAYERS / 3;
    for (uint64_t room = 0; room <= most; room += step) {
        const int32_t n = sr_placement_fit(model, &o, room);
        assert_in_range(n, before, before + 1);
        before = n;
    }
    assert_int_equal(before, LAYERS);
    model->backend = mine;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(weights), cmocka_unit_test(no_kernel), cmocka_unit_test(sessions), cmocka_unit_test(layers_that_fit)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, open_model, close_model);
}
