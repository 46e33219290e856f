/* SPDX-License-Identifier: Apache-2.0
 *
 * Session files: exact continuation after a restore, and rows KV1-KV10 and RX5 of the bad-input contract. A refused file
 * must leave the live session and its next answer as they were.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "sinkrouter/engine.h"

#include "base/rng.h"
#include "ok.h"
#include "tiny_model.h"

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

enum { N = 60, HEADER = 176, LEN_AT = 128, TOKENS_AT = HEADER };

static int32_t ids[4096];
static sr_model *model;

static sr_model *open_spec(const char *name, const struct tiny_spec *s)
{
    sr_model *m = NULL;
    const sr_model_options o = {.n_threads = 1};
    tiny_model_write(tiny_path(name), s);
    OK(sr_model_open(&m, tiny_path(name), &o, &err));
    return m;
}

static int open_shared(void **state)
{
    (void)state;
    struct tiny_spec s = tiny_spec_default();
    s.n_ctx = 4096;
    tiny_tokens(5, ids, 4096);
    model = open_spec("shared.gguf", &s);
    return 0;
}

static int close_shared(void **state)
{
    (void)state;
    sr_model_close(model);
    return 0;
}

static sr_session *session_of(sr_model *m, sr_dtype k, sr_dtype v, sr_route_mode mode)
{
    sr_session *s = NULL;
    sr_session_options o = sr_session_options_default();
    o.k_type = k;
    o.v_type = v;
    o.route.mode = mode;
    o.route.min_len = 64;
    o.route.window = 32;
    OK(sr_session_new(&s, m, &o, &err));
    return s;
}

static sr_session *dense(void) { return session_of(model, SR_DTYPE_F16, SR_DTYPE_F16, SR_ROUTE_DENSE); }

static void prefill(sr_session *s, int n) { OK(sr_session_prefill(s, ids, n, NULL, NULL, NULL, &err)); }

static void same_logits(const sr_session *a, const sr_session *b)
{
    assert_memory_equal(sr_session_logits(a), sr_session_logits(b), sizeof(float) * TINY_VOCAB);
}

/* ---- files as bytes ---- */

struct bytes { uint8_t *data; size_t n; };

static struct bytes slurp(const char *path)
{
    struct bytes b = {0};
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    b.n = (size_t)ftell(f);
    rewind(f);
    b.data = malloc(b.n + 64);
    assert_int_equal(fread(b.data, 1, b.n, f), b.n);
    fclose(f);
    return b;
}

static void spill(const char *path, const uint8_t *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
}

/* A checksum that is right for what stands before it. */
static void seal(struct bytes *b)
{
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, XXH3_128bits(b->data, b->n - 16));
    memcpy(b->data + b->n - 16, c.digest, 16);
}

/* Restoring path into a live session fails so, and the session answers on as if nothing had been tried. */
static void refused(sr_session *s, const char *path, sr_status want, const char *needle)
{
    const int32_t len = sr_session_len(s);
    float logits[TINY_VOCAB];
    memcpy(logits, sr_session_logits(s), sizeof(logits));
    err.text[0] = '\0';
    const sr_status st = sr_session_restore(s, path, &err);
    if (st != want || !strstr(err.text, needle) || strncmp(err.text, path, strlen(path)) != 0)
        fail_msg("wanted %s with \"%s\", got %s: %s", sr_status_name(want), needle, sr_status_name(st), err.text);
    assert_int_equal(sr_session_len(s), len);
    assert_memory_equal(sr_session_logits(s), logits, sizeof(logits));
}

static void next_answers_equal(sr_session *a, sr_session *b, int n)
{
    for (int i = 0; i < n; i++) {
        OK(sr_session_decode(a, ids[i], &err));
        OK(sr_session_decode(b, ids[i], &err));
        same_logits(a, b);
    }
}

/* ---- what works ---- */

static void continues(sr_model *m, sr_dtype k, sr_dtype v, sr_route_mode mode, int n)
{
    const char *path = tiny_path("exact.session");
    sr_session *a = session_of(m, k, v, mode), *b = session_of(m, k, v, mode);
    prefill(a, n);
    for (int i = 0; i < 5; i++) OK(sr_session_decode(a, ids[i], &err));
    OK(sr_session_save(a, path, &err));
    OK(sr_session_restore(b, path, &err));
    assert_int_equal(sr_session_len(b), n + 5);
    assert_memory_equal(sr_session_tokens(a), sr_session_tokens(b), sizeof(int32_t) * (size_t)sr_session_len(b));
    same_logits(a, b);
    next_answers_equal(a, b, 40);
    sr_session_free(a);
    sr_session_free(b);
}

static void continues_exactly(void **state)
{
    (void)state;
    continues(model, SR_DTYPE_F32, SR_DTYPE_F32, SR_ROUTE_DENSE, N);
    continues(model, SR_DTYPE_F16, SR_DTYPE_BF16, SR_ROUTE_DENSE, N);
    continues(model, SR_DTYPE_F16, SR_DTYPE_F16, SR_ROUTE_WINDOW, 100);
    continues(model, SR_DTYPE_F16, SR_DTYPE_F16, SR_ROUTE_MASS, 1500);
    continues(model, SR_DTYPE_F32, SR_DTYPE_F16, SR_ROUTE_MASS, 2600);
    continues(model, SR_DTYPE_F8_E4M3, SR_DTYPE_F8_E4M3, SR_ROUTE_MASS, 1500);
    continues(model, SR_DTYPE_F16, SR_DTYPE_F8_E4M3, SR_ROUTE_DENSE, N);
    struct stat st;
    assert_int_equal(stat(tiny_path("exact.session"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_not_equal(access(tiny_path("exact.session.lock"), F_OK), 0);
}

/* Heads of 32, the block of these types. */
static void blocks_continue_exactly(void **state)
{
    (void)state;
    struct tiny_spec s = tiny_spec_default();
    s.n_ctx = 4096;
    s.head_dim = 32;
    sr_model *m = open_spec("heads32.gguf", &s);
    continues(m, SR_DTYPE_Q8_0, SR_DTYPE_Q4_0, SR_ROUTE_DENSE, N);
    continues(m, SR_DTYPE_Q4_0, SR_DTYPE_Q8_0, SR_ROUTE_WINDOW, 100);
    continues(m, SR_DTYPE_Q4_0, SR_DTYPE_Q4_0, SR_ROUTE_MASS, 1500);
    sr_model_close(m);
}

/* KV6 */
static void empty_session(void **state)
{
    (void)state;
    const char *path = tiny_path("empty.session");
    sr_session *a = dense(), *b = dense(), *c = dense();
    OK(sr_session_save(a, path, &err));
    prefill(b, N);
    refused(b, tiny_path("missing.session"), SR_ERR_IO, "missing.session");
    OK(sr_session_restore(b, path, &err));
    assert_int_equal(sr_session_len(b), 0);
    assert_null(sr_session_logits(b));
    prefill(b, N);
    prefill(c, N);
    same_logits(b, c);
    sr_session_free(a);
    sr_session_free(b);
    sr_session_free(c);
}

/* ---- what is refused ---- */

/* KV1, KV3 */
static void cuts(void **state)
{
    (void)state;
    const char *path = tiny_path("whole.session"), *bad = tiny_path("cut.session");
    sr_session *s = dense(), *live = dense();
    prefill(s, N);
    prefill(live, 20);
    OK(sr_session_save(s, path, &err));
    struct bytes b = slurp(path);
    spill(bad, b.data, 0);
    refused(live, bad, SR_ERR_FORMAT, "0 bytes");
    for (size_t n = 1; n < b.n; n += n < 400 ? 13 : 4096) {
        spill(bad, b.data, n);
        refused(live, bad, SR_ERR_FORMAT, "bytes");
    }
    memset(b.data + b.n, 0, 8);
    spill(bad, b.data, b.n + 8);
    refused(live, bad, SR_ERR_FORMAT, "the header says");
    b.data[0] ^= 1;
    spill(bad, b.data, b.n);
    refused(live, bad, SR_ERR_FORMAT, "not a session file");
    b.data[0] ^= 1;
    b.data[8] = 5;
    seal(&b);
    spill(bad, b.data, b.n);
    refused(live, bad, SR_ERR_FORMAT, "version 5");
    b.data[8] = 4;
    b.data[12] ^= 1;
    seal(&b);
    spill(bad, b.data, b.n);
    refused(live, bad, SR_ERR_FORMAT, "offset 12: a header of 177 bytes, want 176");
    free(b.data);
    sr_session_free(s);
    sr_session_free(live);
}

/* KV2 */
static void bit_flips(void **state)
{
    (void)state;
    const char *path = tiny_path("flip.session"), *bad = tiny_path("flipped.session");
    sr_session *s = dense(), *live = dense(), *still = dense();
    struct rng r;
    prefill(s, 8);
    prefill(live, 20);
    prefill(still, 20);
    OK(sr_session_save(s, path, &err));
    struct bytes b = slurp(path);
    spill(bad, b.data, b.n);
    const int fd = open(bad, O_RDWR);
    sr_rng_seed(&r, 4);
    for (int i = 0; i < 10000; i++) {
        const size_t at = sr_rng_u64(&r) % b.n;
        const uint8_t flipped = b.data[at] ^ (uint8_t)(1u << (sr_rng_u64(&r) % 8));
        assert_int_equal(pwrite(fd, &flipped, 1, (off_t)at), 1);
        if (sr_session_restore(live, bad, &err) != SR_ERR_FORMAT) fail_msg("flip at %zu: %s", at, err.text);
        assert_int_equal(pwrite(fd, &b.data[at], 1, (off_t)at), 1);
    }
    close(fd);
    next_answers_equal(live, still, 3);
    OK(sr_session_restore(live, bad, &err)); /* all flips undone */
    free(b.data);
    sr_session_free(s);
    sr_session_free(live);
    sr_session_free(still);
}

static void patched(sr_session *live, const struct bytes *b, size_t at, int32_t value, sr_status want, const char *needle)
{
    const char *bad = tiny_path("patched.session");
    struct bytes c = {.data = malloc(b->n), .n = b->n};
    memcpy(c.data, b->data, b->n);
    memcpy(c.data + at, &value, 4);
    seal(&c);
    spill(bad, c.data, c.n);
    refused(live, bad, want, needle);
    free(c.data);
}

/* fp8: the scales, which come behind the tokens, are powers of two. */
static void scales_are_checked(void **state)
{
    (void)state;
    static const float wrong[] = {0.0f, -0.5f, 3.0f, INFINITY, NAN, 0x1p-130f};
    const char *path = tiny_path("scales.session");
    sr_session *s = session_of(model, SR_DTYPE_F8_E4M3, SR_DTYPE_F8_E4M3, SR_ROUTE_DENSE);
    sr_session *live = session_of(model, SR_DTYPE_F8_E4M3, SR_DTYPE_F8_E4M3, SR_ROUTE_DENSE);
    prefill(s, N);
    prefill(live, 20);
    OK(sr_session_save(s, path, &err));
    struct bytes b = slurp(path);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        int32_t bits;
        memcpy(&bits, &wrong[i], 4);
        patched(live, &b, TOKENS_AT + 4 * N + 4 * (i % 2), bits, SR_ERR_FORMAT, i % 2 ? "scale 1" : "scale 0");
    }
    free(b.data);
    sr_session_free(s);
    sr_session_free(live);
}

/* KV4, KV9, KV10: checksum right, content wrong. */
static void sealed_lies(void **state)
{
    (void)state;
    const char *path = tiny_path("lies.session");
    sr_session *s = session_of(model, SR_DTYPE_F32, SR_DTYPE_F32, SR_ROUTE_DENSE);
    sr_session *live = session_of(model, SR_DTYPE_F32, SR_DTYPE_F32, SR_ROUTE_DENSE);
    prefill(s, N);
    prefill(live, 20);
    OK(sr_session_save(s, path, &err));
    struct bytes b = slurp(path);
    int32_t len;
    memcpy(&len, b.data + LEN_AT, 4);
    assert_int_equal(len, N); /* the place is right */
    const int32_t lens[] = {-1, INT32_MAX, 4097, N + 1, N - 1, 0};
    for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) patched(live, &b, LEN_AT, lens[i], SR_ERR_FORMAT, "session");
    patched(live, &b, LEN_AT + 4, 2, SR_ERR_FORMAT, "logits flag");
    patched(live, &b, LEN_AT + 8, 5, SR_ERR_FORMAT, "band"); /* beyond what so few tokens have */
    patched(live, &b, LEN_AT + 12, 9, SR_ERR_FORMAT, "own_moments");
    patched(live, &b, TOKENS_AT + 4 * 7, TINY_VOCAB, SR_ERR_FORMAT, "token 7");
    patched(live, &b, TOKENS_AT, -1, SR_ERR_FORMAT, "token 0");
    patched(live, &b, TOKENS_AT + 4 * N + 100, 0x7fc00000, SR_ERR_NUMERIC, "K is not finite");
    patched(live, &b, b.n - 16 - 8, 0x7f800000, SR_ERR_NUMERIC, "logit");
    free(b.data);
    sr_session_free(s);
    sr_session_free(live);
}

/* KV5 */
static void other_settings(void **state)
{
    (void)state;
    const char *path = tiny_path("other.session");
    sr_session *s = dense();
    prefill(s, N);
    OK(sr_session_save(s, path, &err));
    struct { struct tiny_spec spec; const char *field; } others[6];
    for (int i = 0; i < 6; i++) {
        others[i].spec = tiny_spec_default();
        others[i].spec.n_ctx = 4096;
    }
    others[0].spec.seed = 2;
    others[0].field = "weights or metadata";
    others[1].spec.n_layers = 3;
    others[1].field = "layer count is 2";
    others[2].spec.dtype = SR_DTYPE_F16;
    others[2].field = "model file size";
    others[3].spec.rope_base = 20000;
    others[3].field = "rope";
    others[4].spec.n_kv_heads = 4;
    others[4].field = "KV head count is 2";
    others[5].spec.architecture = "qwen2";
    others[5].spec.biases = 1;
    others[5].field = "architecture is llama";
    for (int i = 0; i < 6; i++) {
        sr_model *m = open_spec("other.gguf", &others[i].spec);
        sr_session *live = session_of(m, SR_DTYPE_F16, SR_DTYPE_F16, SR_ROUTE_DENSE);
        prefill(live, 20);
        refused(live, path, SR_ERR_UNSUPPORTED, others[i].field);
        sr_session_free(live);
        sr_model_close(m);
    }
    sr_session *k = session_of(model, SR_DTYPE_F32, SR_DTYPE_F16, SR_ROUTE_DENSE), *v = session_of(model, SR_DTYPE_F16, SR_DTYPE_BF16, SR_ROUTE_DENSE);
    prefill(k, 20);
    prefill(v, 20);
    refused(k, path, SR_ERR_UNSUPPORTED, "K cache type is f16, this session's is f32");
    refused(v, path, SR_ERR_UNSUPPORTED, "V cache type is f16, this session's is bf16");
    sr_session_free(k);
    sr_session_free(v);
    sr_session_options o = sr_session_options_default();
    sr_session *few;
    o.n_ctx = N - 1;
    OK(sr_session_new(&few, model, &o, &err));
    prefill(few, 20);
    refused(few, path, SR_ERR_FORMAT, "this session's context holds 0..59");
    sr_session_free(few);
    struct bytes b = slurp(path);
    b.data[24] = '9'; /* the build's version */
    seal(&b);
    spill(path, b.data, b.n);
    refused(s, path, SR_ERR_UNSUPPORTED, "build");
    free(b.data);
    sr_session_free(s);
}

/* The sketch is part of what must match; a file without one serves any route mode. */
static void other_routes(void **state)
{
    (void)state;
    const char *path = tiny_path("mass.session");
    sr_session *mass = session_of(model, SR_DTYPE_F16, SR_DTYPE_F16, SR_ROUTE_MASS), *live = NULL, *d = dense();
    sr_session_options o = sr_session_options_default();
    o.route.mode = SR_ROUTE_MASS;
    o.route.min_len = 64;
    o.route.window = 32;
    prefill(d, 2200);
    prefill(mass, 2200);
    OK(sr_session_save(d, path, &err));
    OK(sr_session_new(&live, model, &o, &err));
    OK(sr_session_restore(live, path, &err));
    next_answers_equal(mass, live, 10);
    OK(sr_session_save(mass, path, &err));
    OK(sr_session_restore(live, path, &err));
    next_answers_equal(mass, live, 10);
    sr_session_free(live);
    o.route.rank = 7;
    OK(sr_session_new(&live, model, &o, &err));
    prefill(live, 20);
    refused(live, path, SR_ERR_UNSUPPORTED, "rank");
    sr_session_free(live);
    sr_session_free(mass);
    sr_session_free(d);
}

/* KV8 */
static void targets(void **state)
{
    (void)state;
    const char *real = tiny_path("real.session"), *link = tiny_path("link.session"), *dir = tiny_path("folder");
    sr_session *s = dense();
    prefill(s, N);
    OK(sr_session_save(s, real, &err));
    assert_int_equal(symlink(real, link), 0);
    mkdir(dir, 0700);
    assert_int_equal(sr_session_save(s, link, &err), SR_ERR_IO);
    assert_non_null(strstr(err.text, "symbolic link"));
    refused(s, link, SR_ERR_IO, "symbolic link");
    assert_int_equal(sr_session_save(s, dir, &err), SR_ERR_IO);
    assert_non_null(strstr(err.text, "directory"));
    refused(s, dir, SR_ERR_IO, "not a regular file");
    assert_int_equal(sr_session_save(s, "/dev/null", &err), SR_ERR_IO);
    assert_int_equal(sr_session_restore(s, "/dev/zero", &err), SR_ERR_IO);
    assert_int_equal(sr_session_save(s, tiny_path("no/such/folder"), &err), SR_ERR_IO);
    assert_int_equal(sr_session_save(s, "", &err), SR_ERR_USAGE);
    assert_int_equal(unlink(link), 0); /* still a link */
    sr_session_free(s);
}

/* KV7 */
static void locked(void **state)
{
    (void)state;
    const char *path = tiny_path("locked.session");
    char lock[200], part[200];
    snprintf(lock, sizeof(lock), "%s.lock", path);
    snprintf(part, sizeof(part), "%s.part", path);
    sr_session *s = dense();
    prefill(s, N);
    const int fd = open(lock, O_RDWR | O_CREAT, 0600);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    assert_int_equal(sr_session_save(s, path, &err), SR_ERR_IO);
    assert_non_null(strstr(err.text, "locked"));
    assert_int_not_equal(access(path, F_OK), 0);
    flock(fd, LOCK_UN);
    close(fd);
    assert_int_equal(symlink("x", part), 0);
    OK(sr_session_save(s, path, &err)); /* what a dead writer left holds nobody up and does not stay */
    assert_int_not_equal(access(lock, F_OK), 0);
    assert_int_not_equal(faccessat(AT_FDCWD, part, F_OK, AT_SYMLINK_NOFOLLOW), 0);
    sr_session_free(s);
}

/* KV7: two processes at one file; who reads always finds a whole one. */
static void two_writers(void **state)
{
    (void)state;
    const char *path = tiny_path("race.session");
    sr_session *s = dense(), *t = dense();
    prefill(s, N);
    OK(sr_session_save(s, path, &err));
    const pid_t child = fork();
    for (int i = 0; i < 200; i++) {
        const sr_status st = sr_session_save(s, path, &err);
        if (st != SR_OK && !(st == SR_ERR_IO && strstr(err.text, "locked"))) {
            if (child == 0) _exit(1);
            fail_msg("%s", err.text);
        }
        if (child != 0) OK(sr_session_restore(t, path, &err));
    }
    if (child == 0) _exit(0);
    int status = -1;
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
    same_logits(s, t);
    sr_session_free(s);
    sr_session_free(t);
}

/* RX5: a file size limit stands in for a full disk, at every length; the old file stays. */
static void disk_full(void **state)
{
    (void)state;
    const char *path = tiny_path("full.session");
    sr_session *s = dense(), *more = dense();
    prefill(s, 20);
    prefill(more, 300);
    OK(sr_session_save(s, path, &err));
    struct bytes before = slurp(path);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, limit;
    getrlimit(RLIMIT_FSIZE, &old);
    for (rlim_t n = 0; n < 80000; n += 9000) {
        limit = old;
        limit.rlim_cur = n;
        setrlimit(RLIMIT_FSIZE, &limit);
        const sr_status st = sr_session_save(more, path, &err);
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(st, SR_ERR_IO);
        struct bytes after = slurp(path);
        assert_int_equal(after.n, before.n);
        assert_memory_equal(after.data, before.data, before.n);
        free(after.data);
        char part[200];
        snprintf(part, sizeof(part), "%s.part", path);
        assert_int_not_equal(access(part, F_OK), 0);
    }
    free(before.data);
    sr_session_free(s);
    sr_session_free(more);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(continues_exactly), cmocka_unit_test(blocks_continue_exactly), cmocka_unit_test(empty_session), cmocka_unit_test(cuts), cmocka_unit_test(bit_flips),
        cmocka_unit_test(scales_are_checked), cmocka_unit_test(sealed_lies), cmocka_unit_test(other_settings), cmocka_unit_test(other_routes), cmocka_unit_test(targets), cmocka_unit_test(locked),
        cmocka_unit_test(two_writers), cmocka_unit_test(disk_full)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
