/* SPDX-License-Identifier: Apache-2.0
 *
 * Session files: a header that names the model and the cache, then tokens, the attention state in the pieces that
 * attention gives, logits, and a checksum of everything before it.
 *
 * Restoring believes nothing: size, version and checksum are verified over the whole file first, then the header
 * against this model and session, then a second sequence is filled and checked. Only when all of that was good does it
 * take the place of the live one.
 */
#include "engine/session.h"

#include "base/memory.h"
#include "engine/replace_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_STATIC_LINKING_ONLY /* the state as a plain struct: nothing is allocated */
#include <xxhash.h>

enum { FILE_VERSION = 4, CHECKSUM = 16, BUFFER = 1 << 18, NAME = 100 };

static const char magic[8] = "SRSESS\r\n";

/* As it lies in the file: little-endian, no padding. */
struct header {
    char magic[8];
    uint32_t version, header_bytes;
    uint64_t total_bytes; /* of the file, checksum included */
    char build[16], architecture[16];
    uint64_t model[2], model_bytes;
    int32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, rope_kind;
    uint64_t rope; /* hash of the frequencies */
    uint32_t k_type, v_type;
    int32_t len, has_logits;
    int32_t band, own_moments, rank, bits, n_sinks;
    int32_t n_lower; /* layers that are not the device's */
    int64_t moments_rows;
    uint64_t moments_id;
};
_Static_assert(sizeof(struct header) == 176, "a header has no padding");

static uint64_t hash_rope(const struct rope_spec *r)
{
    XXH3_state_t h;
    XXH3_INITSTATE(&h);
    XXH3_64bits_reset(&h);
    XXH3_64bits_update(&h, &r->n_dims, sizeof(r->n_dims));
    XXH3_64bits_update(&h, &r->magnitude, sizeof(r->magnitude));
    XXH3_64bits_update(&h, r->inv_freq, (size_t)(r->n_dims / 2) * sizeof(r->inv_freq[0]));
    return XXH3_64bits_digest(&h);
}

/* What a file of this session says about itself; total_bytes is left to the caller. */
static struct header describe(const struct sr_session *s)
{
    const struct model_config *c = &s->model->config;
    struct attn_seq_state a;
    sr_attn_seq_state_get(s->seq, &a);
    struct header h = {
        .version = FILE_VERSION, .header_bytes = sizeof(h),
        .model = {s->model->identity[0], s->model->identity[1]}, .model_bytes = sr_gguf_file_bytes(s->model->file),
        .n_layers = c->n_layers, .n_embd = c->n_embd, .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads,
        .head_dim = c->head_dim, .n_ff = c->n_ff, .n_vocab = c->n_vocab, .rope_kind = (int32_t)c->rope.kind,
        .rope = hash_rope(&c->rope), .k_type = (uint32_t)s->options.k_type, .v_type = (uint32_t)s->options.v_type,
        .len = s->len, .has_logits = s->has_logits, .band = a.band, .own_moments = a.own_moments, .rank = a.rank,
        .bits = a.bits, .n_sinks = a.n_sinks, .n_lower = s->model->n_lower, .moments_rows = a.moments_rows, .moments_id = a.moments_id};
    memcpy(h.magic, magic, sizeof(h.magic));
    snprintf(h.build, sizeof(h.build), "%s", sr_version());
    snprintf(h.architecture, sizeof(h.architecture), "%s", c->architecture);
    return h;
}

static size_t logits_bytes(const struct header *h) { return h->has_logits ? (size_t)h->n_vocab * sizeof(float) : 0; }

static sr_status count_piece(void *ctx, const char *what, void *data, size_t bytes, sr_error *err)
{
    (void)what;
    (void)data;
    (void)err;
    *(uint64_t *)ctx += bytes;
    return SR_OK;
}

static sr_status file_bytes(const struct header *h, struct attn_seq *seq, uint64_t *out, sr_error *err)
{
    *out = sizeof(*h) + (uint64_t)h->len * sizeof(int32_t) + logits_bytes(h) + CHECKSUM;
    return sr_attn_seq_visit(seq, count_piece, out, err);
}

/* ---- save ---- */

struct writer {
    struct replacement file;
    XXH3_state_t hash;
};

static sr_status put(struct writer *w, const void *data, size_t bytes, sr_error *err)
{
    XXH3_128bits_update(&w->hash, data, bytes);
    return sr_replace_write(&w->file, data, bytes, err);
}

static sr_status put_piece(void *ctx, const char *what, void *data, size_t bytes, sr_error *err)
{
    (void)what;
    return put(ctx, data, bytes, err);
}

static sr_status put_session(struct writer *w, struct sr_session *s, sr_error *err)
{
    struct header h = describe(s);
    XXH128_canonical_t sum;
    SR_TRY(file_bytes(&h, s->seq, &h.total_bytes, err));
    SR_TRY(put(w, &h, sizeof(h), err));
    SR_TRY(put(w, s->tokens, (size_t)s->len * sizeof(*s->tokens), err));
    SR_TRY(sr_attn_seq_visit(s->seq, put_piece, w, err));
    SR_TRY(put(w, s->logits, logits_bytes(&h), err));
    XXH128_canonicalFromHash(&sum, XXH3_128bits_digest(&w->hash));
    return sr_replace_write(&w->file, sum.digest, CHECKSUM, err);
}

sr_status sr_session_save(sr_session *s, const char *path, sr_error *err)
{
    if (!s || !path || !*path) return sr_fail(err, SR_ERR_USAGE, "sr_session_save: no path");
    struct writer w;
    XXH3_INITSTATE(&w.hash);
    XXH3_128bits_reset(&w.hash);
    SR_TRY(sr_replace_begin(&w.file, path, err));
    const sr_status st = put_session(&w, s, err);
    if (st == SR_OK) return sr_replace_commit(&w.file, err);
    sr_replace_abort(&w.file);
    return st;
}

/* ---- restore ---- */

struct source {
    int fd;
    uint64_t bytes, at;
    uint8_t *buffer;
    size_t held, used; /* bytes of the buffer that were read, and taken */
    XXH3_state_t hash; /* of the bytes taken */
    char name[NAME];
};

static sr_status open_source(struct source *f, const char *path, sr_error *err)
{
    struct stat st;
    sr_escape(f->name, sizeof(f->name), path, strlen(path));
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (f->fd < 0) {
        const int scarce = errno == EMFILE || errno == ENFILE || errno == ENOMEM;
        return sr_fail(err, scarce ? SR_ERR_RESOURCE : SR_ERR_IO, "%s: cannot open: %s", f->name,
                       errno == ELOOP ? "is a symbolic link" : strerror(errno));
    }
    if (fstat(f->fd, &st)) return sr_fail(err, SR_ERR_IO, "%s: %s", f->name, strerror(errno));
    if (!S_ISREG(st.st_mode)) return sr_fail(err, SR_ERR_IO, "%s: is not a regular file", f->name);
    f->bytes = (uint64_t)st.st_size;
    f->buffer = sr_alloc(BUFFER);
    return f->buffer ? SR_OK : sr_fail_memory(err, BUFFER, "file buffer");
}

static sr_status rewind_source(struct source *f, sr_error *err)
{
    if (lseek(f->fd, 0, SEEK_SET)) return sr_fail(err, SR_ERR_IO, "%s: cannot seek: %s", f->name, strerror(errno));
    f->held = f->used = 0;
    f->at = 0;
    XXH3_INITSTATE(&f->hash);
    XXH3_128bits_reset(&f->hash);
    return SR_OK;
}

static sr_status refill(struct source *f, sr_error *err)
{
    for (;;) {
        const ssize_t n = read(f->fd, f->buffer, BUFFER);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return sr_fail(err, SR_ERR_IO, "%s: offset %llu: %s", f->name, (unsigned long long)f->at, strerror(errno));
        if (n == 0) return sr_fail(err, SR_ERR_IO, "%s: became shorter while it was read", f->name);
        f->held = (size_t)n;
        f->used = 0;
        return SR_OK;
    }
}

/* dst NULL: the bytes are only hashed. */
static sr_status get(struct source *f, void *dst, uint64_t bytes, sr_error *err)
{
    uint8_t *to = dst;
    while (bytes) {
        if (f->used == f->held) SR_TRY(refill(f, err));
        const size_t left = f->held - f->used, n = bytes < left ? (size_t)bytes : left;
        XXH3_128bits_update(&f->hash, f->buffer + f->used, n);
        if (to) {
            memcpy(to, f->buffer + f->used, n);
            to += n;
        }
        f->used += n;
        f->at += n;
        bytes -= n;
    }
    return SR_OK;
}

static sr_status get_piece(void *ctx, const char *what, void *data, size_t bytes, sr_error *err)
{
    (void)what;
    return get(ctx, data, bytes, err);
}

static sr_status check_sum(struct source *f, sr_error *err)
{
    XXH128_canonical_t want;
    uint8_t have[CHECKSUM];
    XXH128_canonicalFromHash(&want, XXH3_128bits_digest(&f->hash));
    SR_TRY(get(f, have, CHECKSUM, err));
    if (memcmp(have, want.digest, CHECKSUM) == 0) return SR_OK;
    return sr_fail(err, SR_ERR_FORMAT, "%s: checksum does not match: the file is damaged", f->name);
}

/* The file as a whole: everything here holds for any session of this version. */
static sr_status verify(struct source *f, struct header *h, sr_error *err)
{
    if (f->bytes < sizeof(*h) + CHECKSUM)
        return sr_fail(err, SR_ERR_FORMAT, "%s: %llu bytes are too few for a session file", f->name, (unsigned long long)f->bytes);
    SR_TRY(rewind_source(f, err));
    SR_TRY(get(f, h, sizeof(*h), err));
    if (memcmp(h->magic, magic, sizeof(magic)) != 0) return sr_fail(err, SR_ERR_FORMAT, "%s: offset 0: not a session file", f->name);
    if (h->version != FILE_VERSION)
        return sr_fail(err, SR_ERR_FORMAT, "%s: offset 8: version %u, this build reads version %d", f->name, h->version, FILE_VERSION);
    if (h->header_bytes != sizeof(*h))
        return sr_fail(err, SR_ERR_FORMAT, "%s: offset 12: a header of %u bytes, want %zu", f->name, h->header_bytes, sizeof(*h));
    if (h->total_bytes != f->bytes)
        return sr_fail(err, SR_ERR_FORMAT, "%s: %llu bytes, the header says %llu", f->name, (unsigned long long)f->bytes,
                       (unsigned long long)h->total_bytes);
    SR_TRY(get(f, NULL, f->bytes - sizeof(*h) - CHECKSUM, err));
    return check_sum(f, err);
}

static sr_status other(const struct source *f, const char *field, const char *have, const char *want, sr_error *err)
{
    char text[40];
    return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: %s is %s, this session's is %s", f->name, field,
                   sr_escape(text, sizeof(text), have, strnlen(have, 16)), want);
}

static sr_status same_number(const struct source *f, const char *field, int64_t have, int64_t want, sr_error *err)
{
    if (have == want) return SR_OK;
    return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: %s is %lld, this session's is %lld", f->name, field, (long long)have,
                   (long long)want);
}

static sr_status same_type(const struct source *f, const char *field, uint32_t have, uint32_t want, sr_error *err)
{
    if (have == want) return SR_OK;
    const char *name = sr_dtype_name((sr_dtype)have);
    return other(f, field, name ? name : "(none)", sr_dtype_name((sr_dtype)want), err);
}

/* Against this session's model and cache. */
static sr_status check_identity(const struct source *f, const struct header *h, const struct header *mine, sr_error *err)
{
    const struct { const char *name; int32_t have, want; } numbers[] = {
        {"layer count", h->n_layers, mine->n_layers},     {"embedding length", h->n_embd, mine->n_embd},
        {"head count", h->n_heads, mine->n_heads},        {"KV head count", h->n_kv_heads, mine->n_kv_heads},
        {"head size", h->head_dim, mine->head_dim},       {"feed-forward length", h->n_ff, mine->n_ff},
        {"vocabulary size", h->n_vocab, mine->n_vocab},   {"rope pairing", h->rope_kind, mine->rope_kind},
        {"count of layers on the CPU", h->n_lower, mine->n_lower}};
    if (memcmp(h->build, mine->build, sizeof(h->build)) != 0) return other(f, "build", h->build, mine->build, err);
    if (memcmp(h->architecture, mine->architecture, sizeof(h->architecture)) != 0)
        return other(f, "architecture", h->architecture, mine->architecture, err);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        SR_TRY(same_number(f, numbers[i].name, numbers[i].have, numbers[i].want, err));
    if (h->rope != mine->rope) return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: rope frequencies differ from this model's", f->name);
    SR_TRY(same_number(f, "model file size", (int64_t)h->model_bytes, (int64_t)mine->model_bytes, err));
    if (h->model[0] != mine->model[0] || h->model[1] != mine->model[1])
        return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: model weights or metadata differ from this model's", f->name);
    SR_TRY(same_type(f, "K cache type", h->k_type, mine->k_type, err));
    return same_type(f, "V cache type", h->v_type, mine->v_type, err);
}

static sr_status check_content(const struct sr_session *s, const struct source *f, const struct header *h, sr_error *err)
{
    if (h->len < 0 || h->len > s->options.n_ctx)
        return sr_fail(err, SR_ERR_FORMAT, "%s: %d tokens, this session's context holds 0..%d", f->name, h->len, s->options.n_ctx);
    if (h->has_logits < 0 || h->has_logits > 1 || (h->has_logits && h->len == 0))
        return sr_fail(err, SR_ERR_FORMAT, "%s: logits flag %d with %d tokens", f->name, h->has_logits, h->len);
    const struct sr_model *m = s->model;
    struct backend *b = m->backend;
    const uint64_t all = (uint64_t)h->len * sr_model_kv_bytes(m, s->options.k_type, s->options.v_type);
    const uint64_t need = all - all / (uint64_t)m->config.n_layers * (uint64_t)m->n_lower; /* what the lower layers need is asked for with theirs */
    if (need > b->ops->mem_available(b))
        return sr_fail(err, SR_ERR_RESOURCE, "%s: %d tokens need %llu bytes, %llu available", f->name, h->len,
                       (unsigned long long)need, (unsigned long long)b->ops->mem_available(b));
    return SR_OK;
}

/* What the file holds, beside the live session until all of it is good. */
struct loaded {
    struct attn_seq *seq;
    int32_t *tokens;
    float *logits;
};

static sr_status make_room(struct sr_session *s, const struct header *h, struct loaded *l, sr_error *err)
{
    struct attn_seq_config c = sr_session_seq_config(s);
    c.route = *sr_attn_seq_route(s->seq);
    const size_t n_tokens = (size_t)s->options.n_ctx * sizeof(*l->tokens);
    l->tokens = sr_alloc(n_tokens);
    if (!l->tokens) return sr_fail_memory(err, n_tokens, "session");
    SR_TRY(sr_session_logits_new(s->model, &l->logits, err));
    SR_TRY(sr_attn_seq_new(&l->seq, s->model->attention, &c, err));
    if (h->len) SR_TRY(sr_attn_seq_reserve(l->seq, h->len, err));
    const struct attn_seq_state a = {.len = h->len, .band = h->band, .own_moments = h->own_moments, .rank = h->rank,
                                     .bits = h->bits, .n_sinks = h->n_sinks, .moments_rows = h->moments_rows,
                                     .moments_id = h->moments_id};
    return sr_attn_seq_state_set(l->seq, &a, err);
}

static sr_status fill(struct source *f, const struct header *h, struct loaded *l, sr_error *err)
{
    uint64_t want;
    SR_TRY(file_bytes(h, l->seq, &want, err));
    if (want != f->bytes)
        return sr_fail(err, SR_ERR_FORMAT, "%s: %llu bytes, its header asks for %llu", f->name, (unsigned long long)f->bytes,
                       (unsigned long long)want);
    SR_TRY(rewind_source(f, err));
    SR_TRY(get(f, NULL, sizeof(*h), err));
    SR_TRY(get(f, l->tokens, (uint64_t)h->len * sizeof(*l->tokens), err));
    SR_TRY(sr_attn_seq_visit(l->seq, get_piece, f, err));
    SR_TRY(get(f, l->logits, logits_bytes(h), err));
    return check_sum(f, err);
}

static sr_status check_loaded(const struct source *f, const struct header *h, const struct loaded *l, sr_error *err)
{
    for (int32_t i = 0; i < h->len; i++)
        if (l->tokens[i] < 0 || l->tokens[i] >= h->n_vocab)
            return sr_fail(err, SR_ERR_FORMAT, "%s: token %d has id %d, want 0..%d", f->name, i, l->tokens[i], h->n_vocab - 1);
    for (int32_t i = 0; h->has_logits && i < h->n_vocab; i++)
        if (!isfinite(l->logits[i])) return sr_fail(err, SR_ERR_NUMERIC, "%s: logit %d is not finite", f->name, i);
    return sr_attn_seq_check(l->seq, err);
}

static void exchange(struct sr_session *s, const struct header *h, struct loaded *l)
{
    const struct loaded old = {.seq = s->seq, .tokens = s->tokens, .logits = s->logits};
    s->seq = l->seq;
    s->tokens = l->tokens;
    s->logits = l->logits;
    s->len = h->len;
    s->has_logits = h->has_logits;
    *l = old;
}

static sr_status load(struct sr_session *s, struct source *f, struct loaded *l, sr_error *err)
{
    struct header h;
    const struct header mine = describe(s);
    SR_TRY(verify(f, &h, err));
    SR_TRY(check_identity(f, &h, &mine, err));
    SR_TRY(check_content(s, f, &h, err));
    SR_TRY(make_room(s, &h, l, err));
    SR_TRY(fill(f, &h, l, err));
    SR_TRY(check_loaded(f, &h, l, err));
    exchange(s, &h, l);
    return SR_OK;
}

sr_status sr_session_restore(sr_session *s, const char *path, sr_error *err)
{
    if (!s || !path || !*path) return sr_fail(err, SR_ERR_USAGE, "sr_session_restore: no path");
    struct source f = {.fd = -1};
    struct loaded l = {0};
    sr_status st = open_source(&f, path, err);
    if (st == SR_OK) st = load(s, &f, &l, err);
    if (st != SR_OK && err && strncmp(err->text, f.name, strlen(f.name)) != 0) /* said by what knows no files */
        sr_fail(err, st, "%s: %s", f.name, err->text);
    sr_attn_seq_free(l.seq);
    sr_free(l.tokens);
    sr_session_logits_free(s->model, l.logits);
    sr_free(f.buffer);
    if (f.fd >= 0) close(f.fd);
    return st;
}
