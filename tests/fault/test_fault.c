/* SPDX-License-Identifier: Apache-2.0
 *
 * Every allocation of opening, prefill, decode, saving and restoring fails once (row RX1). Each time the call must end in
 * SR_ERR_RESOURCE with a text, leave its object as it was, and work when tried again. Under ASan leaks show too.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../unit/ok.h"

#include "sinkrouter/engine.h"

#include "../unit/hf_write.h"
#include "../unit/tiny_model.h"
#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LIMIT = 5000, N = 2060, END = 3080 }; /* over ends of chunks, so that prefill and decode allocate; `mass` makes bases after 2,048 */

static int32_t ids[4096];

/* Runs `call` with the n-th allocation failing, n = 1, 2, ..., until it succeeds; how often it failed. */
typedef sr_status call_fn(void *ctx);
typedef void after_fn(void *ctx);

static int exhaust(call_fn *call, after_fn *after_failure, void *ctx)
{
    for (int n = 1; n < LIMIT; n++) {
        err = (sr_error){0};
        sr_alloc_fail_at((uint64_t)n);
        const sr_status st = call(ctx);
        sr_alloc_fail_at(0);
        if (st == SR_OK) return n - 1;
        if (st != SR_ERR_RESOURCE) fail_msg("allocation %d: %s: %s", n, sr_status_name(st), err.text);
        assert_int_equal(err.status, SR_ERR_RESOURCE);
        assert_true(err.text[0] != '\0');
        if (after_failure) after_failure(ctx);
    }
    fail_msg("%s", "no end to the failures");
    return 0;
}

struct world {
    const char *model_path, *path;
    sr_model *m;
    sr_session *s;
    sr_sampler *p;
    float before[TINY_VOCAB];
    int32_t len;
};

static sr_status call_open(void *ctx)
{
    struct world *w = ctx;
    const sr_model_options o = {.n_threads = 2};
    return sr_model_open(&w->m, w->model_path, &o, &err);
}

static void no_model(void *ctx) { assert_null(((struct world *)ctx)->m); }

static sr_status call_new(void *ctx)
{
    struct world *w = ctx;
    sr_session_options o = sr_session_options_default();
    o.route.mode = SR_ROUTE_MASS;
    o.route.min_len = 64;
    o.route.window = 32;
    o.n_batch = 64;
    return sr_session_new(&w->s, w->m, &o, &err);
}

static sr_status call_sampler(void *ctx) { return sr_sampler_new(&((struct world *)ctx)->p, NULL, TINY_VOCAB, &err); }

static sr_status call_prefill(void *ctx)
{
    struct world *w = ctx;
    return sr_session_prefill(w->s, ids, N, NULL, NULL, NULL, &err);
}

static void still_empty(void *ctx)
{
    struct world *w = ctx;
    assert_int_equal(sr_session_len(w->s), 0);
    assert_null(sr_session_logits(w->s));
}

static void remember(struct world *w)
{
    w->len = sr_session_len(w->s);
    memcpy(w->before, sr_session_logits(w->s), sizeof(w->before));
}

static void unchanged(void *ctx)
{
    struct world *w = ctx;
    assert_int_equal(sr_session_len(w->s), w->len);
    assert_memory_equal(sr_session_logits(w->s), w->before, sizeof(w->before));
}

/* Through the end of a chunk: the step that begins one allocates. */
static sr_status call_decode(void *ctx)
{
    struct world *w = ctx;
    return sr_session_decode(w->s, ids[sr_session_len(w->s)], &err);
}

static sr_status call_save(void *ctx)
{
    struct world *w = ctx;
    return sr_session_save(w->s, w->path, &err);
}

static void nothing_left_behind(void *ctx)
{
    struct world *w = ctx;
    char name[200];
    unchanged(ctx);
    snprintf(name, sizeof(name), "%s.lock", w->path);
    assert_int_not_equal(access(name, F_OK), 0);
    snprintf(name, sizeof(name), "%s.part", w->path);
    assert_int_not_equal(access(name, F_OK), 0);
}

static sr_status call_restore(void *ctx)
{
    struct world *w = ctx;
    return sr_session_restore(w->s, w->path, &err);
}

static sr_status call_tokenize(void *ctx)
{
    struct world *w = ctx;
    int32_t *got, n;
    const sr_status st = sr_tokenize(w->m, "the a the b", 11, SR_BOS_AUTO, 1, &got, &n, &err);
    if (st == SR_OK) sr_tokens_free(got);
    return st;
}

static sr_status call_chat(void *ctx)
{
    struct world *w = ctx;
    int32_t *got, n;
    const sr_message msg = {.role = SR_ROLE_USER, .text = "the a", .bytes = 5};
    const sr_status st = sr_chat_tokens(w->m, NULL, &msg, 1, &got, &n, &err);
    if (st == SR_OK) sr_tokens_free(got);
    return st;
}

static void begin_spec(struct world *w, struct tiny_spec spec)
{
    spec.n_ctx = 4096;
    *w = (struct world){.model_path = tiny_path("fault.gguf"), .path = tiny_path("fault.session")};
    tiny_model_write(w->model_path, &spec);
    tiny_tokens(3, ids, 4096);
    OK(call_open(w));
}

static void begin(struct world *w) { begin_spec(w, tiny_spec_default()); }

static void end(struct world *w)
{
    sr_sampler_free(w->p);
    sr_session_free(w->s);
    sr_model_close(w->m);
}

static void opening(void **state)
{
    (void)state;
    struct world w;
    begin(&w);
    sr_model_close(w.m);
    w.m = NULL;
    assert_true(exhaust(call_open, no_model, &w) > 10);
    assert_true(exhaust(call_new, NULL, &w) > 5);
    assert_true(exhaust(call_sampler, NULL, &w) >= 3);
    assert_true(exhaust(call_tokenize, NULL, &w) >= 1);
    assert_true(exhaust(call_chat, NULL, &w) >= 2);
    end(&w);
}

/* The same of a model with experts, whose scratch is the backend's; and of making one. */
static void experts(void **state)
{
    (void)state;
    struct world w;
    struct tiny_spec spec = tiny_spec_default();
    spec.architecture = "qwen3moe";
    spec.n_experts = 8;
    spec.n_used = 2;
    begin_spec(&w, spec);
    sr_model_close(w.m);
    w.m = NULL;
    assert_true(exhaust(call_open, no_model, &w) > 10);
    assert_true(exhaust(call_new, NULL, &w) > 6);
    assert_true(exhaust(call_prefill, still_empty, &w) >= 1);
    remember(&w);
    exhaust(call_decode, unchanged, &w); /* makes the sketch */
    remember(&w);
    assert_int_equal(exhaust(call_decode, unchanged, &w), 0);
    end(&w);
}

static sr_status call_make(void *ctx)
{
    (void)ctx;
    return sr_model_make_random(tiny_path("made.gguf"), "tiny-yi", NULL, &err);
}

static void no_file(void *ctx)
{
    (void)ctx;
    assert_int_not_equal(access(tiny_path("made.gguf"), F_OK), 0);
    assert_int_not_equal(access(tiny_path("made.gguf.part"), F_OK), 0);
}

static void making(void **state)
{
    (void)state;
    assert_true(exhaust(call_make, no_file, NULL) > 5);
    assert_int_equal(access(tiny_path("made.gguf"), F_OK), 0);
}

/* A step after failures gives the bits of a run without any. */
static void steps(void **state)
{
    (void)state;
    struct world w, calm;
    begin(&w);
    begin(&calm);
    OK(call_new(&w));
    OK(call_new(&calm));
    assert_true(exhaust(call_prefill, still_empty, &w) >= 1);
    OK(call_prefill(&calm));
    remember(&w);
    assert_memory_equal(w.before, sr_session_logits(calm.s), sizeof(w.before));
    int failures = 0;
    while (sr_session_len(w.s) < END) {
        remember(&w);
        failures += exhaust(call_decode, unchanged, &w);
        OK(call_decode(&calm));
    }
    assert_true(failures > 3);
    assert_memory_equal(sr_session_logits(w.s), sr_session_logits(calm.s), sizeof(w.before));
    end(&w);
    end(&calm);
}

static void files(void **state)
{
    (void)state;
    struct world w;
    begin(&w);
    OK(call_new(&w));
    OK(sr_session_prefill(w.s, ids, 2100, NULL, NULL, NULL, &err)); /* with a sketch */
    OK(call_decode(&w));
    remember(&w);
    assert_true(exhaust(call_save, nothing_left_behind, &w) >= 3);
    OK(call_decode(&w));
    remember(&w);
    assert_true(exhaust(call_restore, unchanged, &w) >= 5);
    assert_int_equal(sr_session_len(w.s), 2101);
    end(&w);
}

static sr_status call_open_folder(void *ctx)
{
    struct world *w = ctx;
    const sr_model_options o = {.n_threads = 2, .quantize = "q8_0"};
    return sr_model_open(&w->m, w->model_path, &o, &err);
}

/* A folder with shards and experts, whose tensors are put together and quantized at load. */
static void folders(void **state)
{
    struct tiny_spec spec = tiny_spec_default();
    struct world w = {.model_path = tiny_path("folder")};
    const char *gguf = tiny_path("moe.gguf");
    (void)state;
    spec.architecture = "qwen3moe";
    spec.n_experts = 4;
    spec.n_used = 2;
    tiny_model_write(gguf, &spec);
    assert_int_equal(mkdir(w.model_path, 0700), 0);
    hf_write_folder(gguf, w.model_path, &(struct hf_write){.n_shards = 2});
    assert_true(exhaust(call_open_folder, no_model, &w) > 50);
    sr_model_close(w.m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(opening), cmocka_unit_test(experts), cmocka_unit_test(making),
                                       cmocka_unit_test(folders), cmocka_unit_test(steps), cmocka_unit_test(files)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
