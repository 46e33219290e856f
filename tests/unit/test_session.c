/* SPDX-License-Identifier: Apache-2.0
 *
 * Sessions on tiny random models: what a step changes, what it leaves alone when it fails, prefix reuse, determinism,
 * no allocation per token. Text of the model: tokens and chat.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "sinkrouter/engine.h"

#include "attention/timeline.h"
#include "base/memory.h"
#include "engine/session.h"
#include "ok.h"
#include "tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N = 90 };

static int32_t ids[512];

static sr_model *open_tiny(const struct tiny_spec *s, int n_threads)
{
    static int n;
    char name[32];
    sr_model *m = NULL;
    sr_model_options o = sr_model_options_default();
    o.n_threads = n_threads;
    snprintf(name, sizeof(name), "m%d.gguf", n++);
    tiny_model_write(tiny_path(name), s);
    OK(sr_model_open(&m, tiny_path(name), &o, &err));
    return m;
}

static sr_model *open_default(void)
{
    const struct tiny_spec s = tiny_spec_default();
    tiny_tokens(5, ids, 512);
    return open_tiny(&s, 1);
}

static sr_session *new_session(sr_model *m, int32_t n_batch)
{
    sr_session *s = NULL;
    sr_session_options o = sr_session_options_default();
    o.k_type = o.v_type = SR_DTYPE_F32;
    if (n_batch) o.n_batch = n_batch;
    OK(sr_session_new(&s, m, &o, &err));
    return s;
}

static void prefill(sr_session *s, const int32_t *x, int32_t n) { OK(sr_session_prefill(s, x, n, NULL, NULL, NULL, &err)); }

static double distance(const float *a, const float *b, int n)
{
    double d = 0, top = 0;
    for (int i = 0; i < n; i++) {
        d = fmax(d, fabs((double)a[i] - (double)b[i]));
        top = fmax(top, fabs((double)a[i]));
    }
    return d / top;
}

static void near(const sr_session *s, const float *logits, double tolerance)
{
    const double d = distance(sr_session_logits(s), logits, TINY_VOCAB);
    if (!(d <= tolerance)) fail_msg("logits differ by %g of the largest, tolerance %g", d, tolerance);
}

/* Prefill in any batches, and token by token through decode, give the same logits: within what float sums in another order
 * leave, so on kernels that compute in float; int8 activations of q8_0 fall on other sides of a rounding. */
static void prefill_is_decode(void **state)
{
    (void)state;
    const struct { int heads, kv; sr_dtype type; double tolerance; } cases[] = {
        {4, 4, SR_DTYPE_F32, 1e-4}, {4, 2, SR_DTYPE_F32, 1e-4}, {4, 1, SR_DTYPE_F32, 1e-4}, {4, 2, SR_DTYPE_Q8_0, 0.05}};
    const int is_capped = getenv("SR_ISA") != NULL;
    if (!is_capped) setenv("SR_ISA", "bf16", 1); /* AMX rounds q, k, p and v to bf16 */
    tiny_tokens(5, ids, 512);
    for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++) {
        struct tiny_spec spec = tiny_spec_default();
        spec.n_heads = cases[k].heads;
        spec.n_kv_heads = cases[k].kv;
        spec.dtype = cases[k].type;
        sr_model *m = open_tiny(&spec, 1);
        sr_session *a = new_session(m, 512), *b = new_session(m, 7), *c = new_session(m, 0), *d = new_session(m, 16);
        float *all = malloc(sizeof(float) * N * TINY_VOCAB);
        prefill(a, ids, N);
        prefill(b, ids, N);
        for (int i = 0; i < N; i++) OK(sr_session_decode(c, ids[i], &err));
        OK(sr_session_prefill_logits(d, ids, N, all, &err));
        near(a, sr_session_logits(b), cases[k].tolerance);
        near(a, sr_session_logits(c), cases[k].tolerance);
        assert_memory_equal(sr_session_logits(d), all + (N - 1) * TINY_VOCAB, sizeof(float) * TINY_VOCAB);
        sr_session_truncate(a, 0, &err);
        for (int i = 0; i < N; i += 13) { /* every row of prefill_logits, not the last only */
            OK(sr_session_sync(a, ids, i + 1, NULL, NULL, NULL, &err));
            near(a, all + i * TINY_VOCAB, cases[k].tolerance);
        }
        free(all);
        sr_session_free(a);
        sr_session_free(b);
        sr_session_free(c);
        sr_session_free(d);
        sr_model_close(m);
    }
    if (!is_capped) unsetenv("SR_ISA");
}

static void same_bits(void **state)
{
    (void)state;
    const struct tiny_spec spec = tiny_spec_default();
    tiny_tokens(5, ids, 512);
    float first[TINY_VOCAB];
    for (int threads = 1; threads <= 3; threads++) {
        sr_model *m = open_tiny(&spec, threads);
        sr_session *s = new_session(m, 0);
        prefill(s, ids, N);
        for (int i = 0; i < 20; i++) OK(sr_session_decode(s, ids[N + i], &err));
        if (threads == 1) memcpy(first, sr_session_logits(s), sizeof(first));
        assert_memory_equal(sr_session_logits(s), first, sizeof(first));
        sr_session_free(s);
        sr_model_close(m);
    }
}

static void decode_allocates_nothing(void **state)
{
    (void)state;
    sr_model *m = open_default();
    sr_session *s = new_session(m, 0);
    prefill(s, ids, N);
    OK(sr_session_decode(s, ids[0], &err));
    const uint64_t before = sr_alloc_count();
    for (int i = 0; i < 50; i++) OK(sr_session_decode(s, ids[i], &err));
    assert_int_equal(sr_alloc_count(), before);
    sr_session_stats st;
    sr_session_get_stats(s, &st);
    assert_int_equal(st.prefill_tokens, N);
    assert_int_equal(st.decode_tokens, 51);
    assert_int_equal(st.route.steps, 51);
    assert_true(st.route.kv_bytes == st.route.dense_bytes && st.route.kv_bytes > 0);
    double ms;
    int64_t calls;
    int n = 0;
    for (const char *op; (op = sr_session_profile(s, n, &ms, &calls)) != NULL; n++) {
        const int of_experts = strcmp(op, "router") == 0 || strcmp(op, "experts") == 0;
        assert_true(ms >= 0 && (calls > 0) == !of_experts); /* this model has none */
    }
    assert_true(n >= 10);
    sr_session_stats_reset(s);
    assert_non_null(sr_session_profile(s, 0, &ms, &calls));
    assert_int_equal(calls, 0);
    sr_session_free(s);
    sr_model_close(m);
}

/* Routed steps too, between the steps that make a band's bases or begin a chunk. */
static void routed_decode_allocates_nothing(void **state)
{
    (void)state;
    struct tiny_spec spec = tiny_spec_default();
    spec.n_ctx = 4096;
    sr_model *m = open_tiny(&spec, 1);
    sr_session *s;
    sr_session_options o = sr_session_options_default();
    static int32_t text[2100];
    o.route.mode = SR_ROUTE_MASS;
    o.route.window = 64;
    o.route.audit = 0.2f;
    tiny_tokens(5, text, 2100);
    OK(sr_session_new(&s, m, &o, &err));
    prefill(s, text, 2100);
    assert_true(s->seq->n_chunks == 3 && s->seq->region[0] && !s->seq->region[1] && !s->seq->region[2]); /* a prompt is one region */
    OK(sr_session_decode(s, 1, &err));
    const uint64_t before = sr_alloc_count();
    for (int i = 0; i < 60; i++) OK(sr_session_decode(s, text[i], &err));
    assert_int_equal(sr_alloc_count(), before);
    sr_session_stats st;
    sr_session_get_stats(s, &st);
    assert_true(st.route.units_list + st.route.units_near > 0 && st.route.audits > 0);
    float heat[4];
    sr_session_heat(s, heat);
    for (int i = 0; i < 4; i++) assert_true(heat[i] >= 0 && heat[i] <= 1);
    sr_session_free(s);
    sr_model_close(m);
}

static void usage_changes_nothing(void **state)
{
    (void)state;
    sr_model *m = open_default();
    sr_session *s = new_session(m, 0);
    int32_t bad[3] = {1, 2, -1};
    assert_null(sr_session_logits(s));
    assert_int_equal(sr_session_n_ctx(s), 512);
    assert_int_equal(sr_session_prefill(s, bad, 3, NULL, NULL, NULL, &err), SR_ERR_USAGE);
    bad[2] = TINY_VOCAB;
    assert_int_equal(sr_session_prefill(s, bad, 3, NULL, NULL, NULL, &err), SR_ERR_USAGE);
    assert_non_null(strstr(err.text, "264"));
    assert_int_equal(sr_session_prefill(s, bad, 0, NULL, NULL, NULL, &err), SR_ERR_USAGE);
    assert_int_equal(sr_session_len(s), 0);
    prefill(s, ids, 500);
    const float before = sr_session_logits(s)[3];
    assert_int_equal(sr_session_prefill(s, ids, 13, NULL, NULL, NULL, &err), SR_ERR_USAGE);
    assert_non_null(strstr(err.text, "512"));
    assert_int_equal(sr_session_len(s), 500);
    assert_true(sr_session_logits(s)[3] == before);
    for (int i = 0; i < 12; i++) OK(sr_session_decode(s, ids[i], &err));
    assert_int_equal(sr_session_decode(s, 1, &err), SR_ERR_USAGE);
    assert_int_equal(sr_session_len(s), 512);
    assert_int_equal(sr_session_truncate(s, 513, &err), SR_ERR_USAGE);
    assert_int_equal(sr_session_truncate(s, -1, &err), SR_ERR_USAGE);
    sr_session_free(s);
    sr_model_close(m);
}

static int cancel_at_half(void *user, const char *stage, double share)
{
    (void)user;
    assert_string_equal(stage, "prefill");
    return share >= 0.5;
}

static void cancelled_prefill(void **state)
{
    (void)state;
    sr_model *m = open_default();
    sr_session *s = new_session(m, 10), *t = new_session(m, 10);
    int32_t done = -1;
    OK(sr_session_prefill(s, ids, 80, cancel_at_half, NULL, &done, &err));
    assert_int_equal(done, 40);
    assert_int_equal(sr_session_len(s), 40);
    assert_null(sr_session_logits(s));
    prefill(s, ids + 40, 40);
    prefill(t, ids, 80);
    assert_memory_equal(sr_session_logits(s), sr_session_logits(t), sizeof(float) * TINY_VOCAB);
    sr_session_free(s);
    sr_session_free(t);
    sr_model_close(m);
}

static void sync_keeps_the_prefix(void **state)
{
    (void)state;
    sr_model *m = open_default();
    sr_session *s = new_session(m, 0), *fresh = new_session(m, 0);
    sr_session_stats st;
    int32_t reused = -1, changed[200];
    memcpy(changed, ids, sizeof(changed));
    OK(sr_session_sync(s, ids, 100, NULL, NULL, &reused, &err));
    assert_int_equal(reused, 0);
    OK(sr_session_sync(s, ids, 130, NULL, NULL, &reused, &err));
    assert_int_equal(reused, 100);
    sr_session_get_stats(s, &st);
    assert_int_equal(st.prefill_tokens, 130);
    OK(sr_session_sync(s, ids, 130, NULL, NULL, &reused, &err)); /* nothing to do */
    assert_int_equal(reused, 130);
    assert_non_null(sr_session_logits(s));
    changed[60] = (ids[60] + 1) % TINY_VOCAB;
    OK(sr_session_sync(s, changed, 120, NULL, NULL, &reused, &err));
    assert_int_equal(reused, 60);
    assert_int_equal(sr_session_len(s), 120);
    prefill(fresh, changed, 60);
    prefill(fresh, changed + 60, 60);
    assert_memory_equal(sr_session_logits(s), sr_session_logits(fresh), sizeof(float) * TINY_VOCAB);
    OK(sr_session_sync(s, changed, 50, NULL, NULL, &reused, &err)); /* shorter: the last token is fed again */
    assert_int_equal(reused, 49);
    assert_int_equal(sr_session_len(s), 50);
    assert_memory_equal(sr_session_tokens(s), changed, sizeof(int32_t) * 50);
    uint64_t kv, sketch;
    OK(sr_session_truncate(s, 0, &err));
    sr_session_memory(s, &kv, &sketch);
    assert_int_equal(kv, 0);
    assert_null(sr_session_logits(s));
    sr_session_free(s);
    sr_session_free(fresh);
    sr_model_close(m);
}

/* CL2: 4 KiB a token, so that no machine has the memory for all of them. */
static void contexts_refused(void **state)
{
    (void)state;
    struct tiny_spec spec = tiny_spec_default();
    spec.n_ctx = 1 << 30;
    spec.n_kv_heads = 4;
    spec.head_dim = 64;
    sr_model *m = open_tiny(&spec, 1);
    sr_session *s = NULL;
    sr_session_options o = sr_session_options_default();
    o.k_type = o.v_type = SR_DTYPE_F32;
    assert_int_equal(sr_session_new(&s, m, &o, &err), SR_ERR_RESOURCE);
    assert_null(s);
    assert_non_null(strstr(err.text, "needs "));
    const char *fit = strstr(err.text, "available; ");
    assert_non_null(fit);
    const long tokens = atol(fit + 11);
    assert_true(tokens > 1000 && tokens < 1 << 30);
    sr_model_close(m);
    m = open_default();
    o.n_ctx = 513;
    assert_int_equal(sr_session_new(&s, m, &o, &err), SR_ERR_USAGE);
    assert_non_null(strstr(err.text, "513"));
    assert_non_null(strstr(err.text, "512"));
    o.allow_extrapolation = 1;
    OK(sr_session_new(&s, m, &o, &err));
    sr_session_free(s);
    const struct { int32_t n_ctx, n_batch; sr_dtype k; } bad[] = {{-1, 512, SR_DTYPE_F16}, {0, 0, SR_DTYPE_F16}, {0, 4097, SR_DTYPE_F16},
                                                                  {0, 512, SR_DTYPE_Q4_1}, {0, 512, (sr_dtype)77}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        o = sr_session_options_default();
        o.n_ctx = bad[i].n_ctx;
        o.n_batch = bad[i].n_batch;
        o.k_type = bad[i].k;
        assert_int_equal(sr_session_new(&s, m, &o, &err), SR_ERR_USAGE);
    }
    sr_model_close(m);
}

static long mapped_bytes(void)
{
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld", &pages) != 1) pages = 0;
    if (f) fclose(f);
    return pages * sysconf(_SC_PAGESIZE);
}

/* RX3: in a child with 4 MiB of address space left for a file of 13. */
static void model_beyond_address_space(void **state)
{
    (void)state;
    struct tiny_spec spec = tiny_spec_default();
    spec.n_ff = 8192;
    const char *path = tiny_path("large.gguf");
    tiny_model_write(path, &spec);
    const pid_t child = fork();
    if (child == 0) {
        struct rlimit limit;
        sr_model *m = NULL;
        const sr_model_options o = {.n_threads = 1};
        getrlimit(RLIMIT_AS, &limit);
        limit.rlim_cur = (rlim_t)mapped_bytes() + (4 << 20);
        setrlimit(RLIMIT_AS, &limit);
        const sr_status st = sr_model_open(&m, path, &o, &err);
        _exit(st == SR_ERR_RESOURCE && !m && strstr(err.text, "needs") && strstr(err.text, "available") ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
}

static void memory_need_is_true(void **state)
{
    (void)state;
    sr_model *m = open_default();
    sr_session *s = new_session(m, 0);
    sr_session_options o = sr_session_options_default();
    sr_memory_need need;
    uint64_t kv, sketch;
    o.k_type = o.v_type = SR_DTYPE_F32;
    OK(sr_model_memory_need(m, &o, &need, &err));
    prefill(s, ids, 512);
    sr_session_memory(s, &kv, &sketch);
    assert_int_equal(kv, need.kv);
    assert_int_equal(need.total, need.weights + need.kv + need.sketch + need.scratch);
    sr_session_free(s);
    sr_model_close(m);
}

/* GT17: in a child, because a lost page stays lost for the process; and the first test, because cmocka puts its own
 * handler for SIGBUS in place before each test, and the library installs its one once. */
static void file_cut_while_decoding(void **state)
{
    (void)state;
    struct tiny_spec spec = tiny_spec_default();
    spec.n_ff = 4096; /* some pages of weights */
    const char *path = tiny_path("cut.gguf"), *saved = tiny_path("cut.session");
    tiny_model_write(path, &spec);
    tiny_tokens(5, ids, 512);
    const pid_t child = fork();
    if (child == 0) {
        sr_model *m;
        sr_session *s;
        sr_session_options o = sr_session_options_default();
        sr_model_options mo = {.n_threads = 1, .load = SR_LOAD_MAP};
        int bad = sr_model_open(&m, path, &mo, &err) != SR_OK || sr_session_new(&s, m, &o, &err) != SR_OK;
        bad = bad || sr_session_prefill(s, ids, 40, NULL, NULL, NULL, &err) != SR_OK;
        const float *before = bad ? NULL : sr_session_logits(s);
        const float first = bad ? 0 : before[0];
        bad = bad || truncate(path, 8192) != 0;
        if (!bad && sr_session_decode(s, 1, &err) != SR_ERR_IO) bad = 2;
        if (!bad && (sr_session_len(s) != 40 || sr_session_logits(s)[0] != first)) bad = 3;
        if (!bad && sr_session_save(s, saved, &err) != SR_OK) bad = 4;
        _exit(bad);
    }
    int status = -1;
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    tiny_model_write(path, &spec); /* whole again: what was saved goes on where it stood */
    sr_model *m;
    OK(sr_model_open(&m, path, NULL, &err));
    sr_session *s, *t;
    sr_session_options o = sr_session_options_default();
    OK(sr_session_new(&s, m, &o, &err));
    OK(sr_session_new(&t, m, &o, &err));
    OK(sr_session_restore(s, saved, &err));
    prefill(t, ids, 40);
    OK(sr_session_decode(s, 1, &err));
    OK(sr_session_decode(t, 1, &err));
    assert_memory_equal(sr_session_logits(s), sr_session_logits(t), sizeof(float) * TINY_VOCAB);
    sr_session_free(s);
    sr_session_free(t);
    sr_model_close(m);
}

/* From a copy as from the mapping. */
static void weights_in_memory(void **state)
{
    (void)state;
    const struct tiny_spec spec = tiny_spec_default();
    const char *path = tiny_path("copy.gguf");
    sr_model *m[2];
    float logits[2][TINY_VOCAB];
    tiny_model_write(path, &spec);
    tiny_tokens(5, ids, 512);
    for (int copy = 0; copy < 2; copy++) {
        sr_model_options o = {.n_threads = 1, .load = copy ? SR_LOAD_COPY : SR_LOAD_MAP, .mlock = copy, .check = copy};
        OK(sr_model_open(&m[copy], path, &o, &err));
        sr_session *s = new_session(m[copy], 0);
        prefill(s, ids, 30);
        memcpy(logits[copy], sr_session_logits(s), sizeof(logits[copy]));
        sr_session_free(s);
        sr_model_close(m[copy]);
    }
    assert_memory_equal(logits[0], logits[1], sizeof(logits[0]));
}

/* ---- text ---- */

static void check_tokens(const sr_model *m, const char *text, int special, const int32_t *want, int n_want)
{
    int32_t *got, n;
    OK(sr_tokenize(m, text, strlen(text), SR_BOS_AUTO, special, &got, &n, &err));
    assert_int_equal(n, n_want);
    assert_memory_equal(got, want, sizeof(int32_t) * (size_t)n);
    sr_tokens_free(got);
}

static void tokens(void **state)
{
    (void)state;
    sr_model *m = open_default();
    check_tokens(m, "the a", 0, (const int32_t[]){257, 258}, 2);
    check_tokens(m, "", 0, (const int32_t[]){0}, 0);
    check_tokens(m, "<|im_end|>", 1, (const int32_t[]){TINY_END}, 1);
    int32_t *got, n;
    OK(sr_tokenize(m, "<|im_end|>", 10, SR_BOS_OFF, 0, &got, &n, &err));
    assert_true(n > 1);
    sr_tokens_free(got);
    assert_int_equal(sr_tokenize(m, "x", 1, SR_BOS_ON, 0, &got, &n, &err), SR_ERR_USAGE); /* the file names none */
    char text[8];
    assert_int_equal(sr_token_text(m, 258, 0, text, sizeof(text)), 2);
    assert_memory_equal(text, " a", 2);
    assert_int_equal(sr_token_text(m, TINY_END, 0, text, sizeof(text)), 0);
    assert_int_equal(sr_token_text(m, -1, 0, text, sizeof(text)), 0);
    assert_true(sr_token_is_end(m, TINY_END));
    assert_false(sr_token_is_end(m, 5));
    assert_false(sr_token_is_end(m, 1 << 30));
    sr_model_close(m);
}

static void chat(void **state)
{
    (void)state;
    sr_model *m = open_default();
    const sr_message msgs[] = {{.role = SR_ROLE_USER, .text = "the<|im_end|>", .bytes = 13}};
    int32_t *got, n, ends = 0;
    OK(sr_chat_tokens(m, NULL, msgs, 1, &got, &n, &err));
    assert_int_equal(got[0], TINY_START);
    for (int i = 0; i < n; i++) ends += got[i] == TINY_END;
    assert_int_equal(ends, 1); /* the user's stays text */
    sr_tokens_free(got);
    const char *const *stops;
    sr_chat_options named = sr_chat_options_default();
    OK(sr_chat_template_check(m, NULL, &stops, &err));
    assert_null(stops[0]);
    named.template_name = "vicuna";
    OK(sr_chat_template_check(m, &named, &stops, &err));
    assert_non_null(stops[0]);
    named.template_name = "nosuch";
    assert_int_equal(sr_chat_template_check(m, &named, &stops, &err), SR_ERR_USAGE);
    assert_int_equal(sr_chat_tokens(m, NULL, msgs, 0, &got, &n, &err), SR_ERR_USAGE);
    sr_model_close(m);
    struct tiny_spec spec = tiny_spec_default();
    spec.changes = &(struct tiny_change){.key = "tokenizer.chat_template", .kind = TINY_OMIT};
    spec.n_changes = 1;
    m = open_tiny(&spec, 1);
    assert_int_equal(sr_chat_tokens(m, NULL, msgs, 1, &got, &n, &err), SR_ERR_UNSUPPORTED);
    sr_model_close(m);
    spec.changes = &(struct tiny_change){.key = "tokenizer.chat_template", .kind = TINY_STR, .str = "{{ x | nosuch }}"};
    m = open_tiny(&spec, 1);
    assert_int_equal(sr_chat_tokens(m, NULL, msgs, 1, &got, &n, &err), SR_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "filter \"nosuch\" is not known"));
    named.template_name = "chatml";
    OK(sr_chat_tokens(m, &named, msgs, 1, &got, &n, &err));
    sr_tokens_free(got);
    sr_model_close(m);
}

static void inspection(void **state)
{
    (void)state;
    sr_model *m = open_default();
    char key[64], type[16], value[64];
    int seen = 0;
    for (int64_t i = 0; i < sr_model_n_metadata(m); i++) {
        assert_int_equal(sr_model_metadata(m, i, key, sizeof(key), type, sizeof(type), value, sizeof(value)), SR_OK);
        assert_true(strlen(value) < sizeof(value));
        if (strcmp(key, "llama.block_count") == 0) seen += strcmp(type, "u32") == 0 && strcmp(value, "2") == 0;
        if (strcmp(key, "general.name") == 0) seen += strcmp(type, "str") == 0 && strcmp(value, "tiny") == 0;
        if (strcmp(key, "tokenizer.ggml.token_type") == 0) seen += strcmp(type, "i32[264]") == 0 && strncmp(value, "[1, 1, ", 7) == 0;
        if (strcmp(key, "tokenizer.ggml.merges") == 0) seen += strcmp(type, "str[4]") == 0 && strncmp(value, "[\"t h\", ", 8) == 0;
    }
    assert_int_equal(seen, 4);
    assert_int_equal(sr_model_metadata(m, 999, key, sizeof(key), type, sizeof(type), value, sizeof(value)), SR_ERR_USAGE);
    sr_tensor_info t;
    assert_int_equal(sr_model_tensor(m, 0, &t), SR_OK);
    assert_string_equal(t.name, "token_embd.weight");
    assert_int_equal(t.ne[1], TINY_VOCAB);
    assert_int_equal(t.bytes, 64 * TINY_VOCAB * 4);
    assert_int_equal(sr_model_tensor(m, -1, &t), SR_ERR_USAGE);
    sr_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(file_cut_while_decoding), cmocka_unit_test(prefill_is_decode), cmocka_unit_test(same_bits), cmocka_unit_test(decode_allocates_nothing), cmocka_unit_test(routed_decode_allocates_nothing),
        cmocka_unit_test(usage_changes_nothing), cmocka_unit_test(cancelled_prefill), cmocka_unit_test(sync_keeps_the_prefix),
        cmocka_unit_test(contexts_refused), cmocka_unit_test(model_beyond_address_space), cmocka_unit_test(memory_need_is_true),
        cmocka_unit_test(weights_in_memory), cmocka_unit_test(tokens), cmocka_unit_test(chat), cmocka_unit_test(inspection)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
