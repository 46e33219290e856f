/* SPDX-License-Identifier: Apache-2.0
 *
 * MODEL.moments: little-endian, no padding.
 *     "SRMOMENT" | u32 version | u32 n_layers n_heads n_kv_heads head_dim | u32 rope kind, rotated elements
 *     | f64 magnitude | f64 inv_freq[rotated / 2] | f32 units[n_layers][n_kv_heads][M_q d*d, M_k d*d, m_k d]
 * | u64 checksum The checksum is XXH3-64 of everything before it. The size follows from the header, so that a
 * cut file and trailing bytes are told before anything is read.
 */
#include "attention/moments_parts.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/mapfile.h"
#include "base/memory.h"

enum { VERSION = 1, HEAD_BYTES = 8 + 7 * 4 + 8 };
static const char magic[8] = "SRMOMENT";

static size_t put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> (8 * i));
    return 4;
}

static size_t put_u64(uint8_t *p, uint64_t v)
{
    return put_u32(p, (uint32_t)v) + put_u32(p + 4, (uint32_t)(v >> 32));
}

static size_t put_f64(uint8_t *p, double v)
{
    uint64_t u;
    memcpy(&u, &v, 8);
    return put_u64(p, u);
}

static double get_f64(const uint8_t *p)
{
    uint64_t u = 0;
    double v;
    for (int i = 7; i >= 0; i--) u = u << 8 | p[i];
    memcpy(&v, &u, 8);
    return v;
}

static size_t n_freq(const struct rope_spec *rope)
{
    return rope->kind == ROPE_NONE ? 0 : (size_t)rope->n_dims / 2;
}

static size_t file_bytes(const struct moments_shape *s, size_t freqs)
{
    return HEAD_BYTES + 8 * freqs + sr_moments_units(s) * sr_moments_unit(s) * 4 + 8;
}

/* ---- saving ---- */

static size_t put_head(uint8_t *p, const struct moments_shape *s, const struct rope_spec *rope)
{
    size_t at = 8;
    memcpy(p, magic, 8);
    at += put_u32(p + at, VERSION);
    at += put_u32(p + at, (uint32_t)s->n_layers);
    at += put_u32(p + at, (uint32_t)s->n_heads);
    at += put_u32(p + at, (uint32_t)s->n_kv_heads);
    at += put_u32(p + at, (uint32_t)s->head_dim);
    at += put_u32(p + at, (uint32_t)rope->kind);
    at += put_u32(p + at, (uint32_t)(2 * n_freq(rope)));
    at += put_f64(p + at, n_freq(rope) ? rope->magnitude : 1.0);
    for (size_t i = 0; i < n_freq(rope); i++) at += put_f64(p + at, rope->inv_freq[i]);
    return at;
}

/* scratch [unit] */
static size_t put_unit(uint8_t *p, const struct moments *m, int32_t layer, int32_t group, double *scratch)
{
    size_t d = (size_t)m->shape.head_dim, at = 0;
    sr_moments_get(m, layer, group, scratch, scratch + d * d, scratch + 2 * d * d);
    for (size_t i = 0; i < sr_moments_unit(&m->shape); i++) {
        float f = (float)scratch[i];
        uint32_t u;
        memcpy(&u, &f, 4);
        at += put_u32(p + at, u);
    }
    return at;
}

static sr_status write_all(int fd, const uint8_t *p, size_t n, const char *path, sr_error *err)
{
    while (n) {
        ssize_t w = write(fd, p, n);
        if (w < 0 && errno == EINTR) continue;
        if (w < 0) return sr_fail(err, SR_ERR_IO, "%s: %s", path, strerror(errno));
        p += w;
        n -= (size_t)w;
    }
    return SR_OK;
}

/* The name is complete only once the bytes are on the disk: temporary file beside it, fsync, rename. */
static sr_status write_file(const char *path, const uint8_t *data, size_t bytes, sr_error *err)
{
    sr_status st = SR_OK;
    size_t room = strlen(path) + 8;
    SR_TRY(sr_mapfile_check_target(path, err));
    char *temp = sr_alloc(room);
    if (!temp) return sr_fail_memory(err, room, "path");
    snprintf(temp, room, "%s.XXXXXX", path);
    int fd = mkstemp(temp);
    if (fd < 0) {
        st = sr_fail(err, SR_ERR_IO, "%s: %s", path, strerror(errno));
        goto done;
    }
    st = write_all(fd, data, bytes, path, err);
    if (st == SR_OK && (fchmod(fd, 0644) || fsync(fd)))
        st = sr_fail(err, SR_ERR_IO, "%s: %s", path, strerror(errno));
    if (close(fd) && st == SR_OK) st = sr_fail(err, SR_ERR_IO, "%s: %s", path, strerror(errno));
    if (st == SR_OK && rename(temp, path)) st = sr_fail(err, SR_ERR_IO, "%s: %s", path, strerror(errno));
    if (st != SR_OK) unlink(temp);
done:
    sr_free(temp);
    return st;
}

sr_status sr_moments_save(const struct moments *m, const struct rope_spec *rope, const char *path,
                          sr_error *err)
{
    if (!sr_moments_ready(m)) {
        return sr_fail(err, SR_ERR_USAGE, "moments: %lld of %d positions collected",
                       (long long)sr_moments_rows(m), SR_MOMENTS_LAST - SR_MOMENTS_FIRST);
    }
    size_t bytes = file_bytes(&m->shape, n_freq(rope));
    uint8_t *data = sr_alloc(bytes);
    double *scratch = sr_alloc(sr_moments_unit(&m->shape) * sizeof *scratch);
    sr_status st = SR_OK;
    if (!data || !scratch) {
        st = sr_fail_memory(err, bytes, "moments file");
        goto fail;
    }
    size_t at = put_head(data, &m->shape, rope);
    for (int32_t l = 0; l < m->shape.n_layers; l++) {
        for (int32_t g = 0; g < m->shape.n_kv_heads; g++) at += put_unit(data + at, m, l, g, scratch);
    }
    at += put_u64(data + at, XXH3_64bits(data, at));
    st = write_file(path, data, at, err);
fail:
    sr_free(data);
    sr_free(scratch);
    return st;
}

/* ---- loading ---- */

static sr_status check_field(const char *path, const char *name, uint32_t found, int32_t want, sr_error *err)
{
    if (found == (uint32_t)want) return SR_OK;
    return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: moments of another model: %s %u, this model has %d", path,
                   name, found, want);
}

/* Magic, version and that the size is what the header's own numbers say. */
static sr_status check_frame(const struct mapfile *f, uint32_t head[7], sr_error *err)
{
    static const char *const what[7] = {"version",  "n_layers",  "n_heads",  "n_kv_heads",
                                        "head_dim", "rope kind", "rope dims"};
    static const uint32_t limit[7] = {UINT32_MAX, 1u << 16, 1u << 16, 1u << 16, 256, ROPE_NEOX, 256};
    struct cursor c = {f, 0};
    const uint8_t *p;
    SR_TRY(sr_read_span(&c, 8, &p, "magic", err));
    if (memcmp(p, magic, 8)) return sr_fail(err, SR_ERR_FORMAT, "%s: offset 0: not a moments file", f->path);
    for (int i = 0; i < 7; i++) SR_TRY(sr_read_u32(&c, &head[i], what[i], err));
    if (head[0] != VERSION) {
        return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: moments file version %u, this build reads %d", f->path,
                       head[0], VERSION);
    }
    for (int i = 1; i < 7; i++) {
        if (head[i] > limit[i])
            return sr_fail(err, SR_ERR_FORMAT, "%s: offset %d: %s %u, limit %u", f->path, 8 + 4 * i, what[i],
                           head[i], limit[i]);
    }
    /* The product of limits fits 64 bits: 2^32 units of 2^17 values of 4 bytes. */
    uint64_t unit = 2 * (uint64_t)head[4] * head[4] + head[4];
    uint64_t want = HEAD_BYTES + 8 * (uint64_t)(head[6] / 2) + (uint64_t)head[1] * head[3] * unit * 4 + 8;
    if (want != f->bytes) {
        return sr_fail(err, SR_ERR_FORMAT, "%s: %zu bytes, its header asks for %llu", f->path, f->bytes,
                       (unsigned long long)want);
    }
    struct cursor end = {f, f->bytes - 8};
    uint64_t sum;
    SR_TRY(sr_read_u64(&end, &sum, "checksum", err));
    if (sum != XXH3_64bits(f->data, f->bytes - 8))
        return sr_fail(err, SR_ERR_FORMAT, "%s: offset %zu: checksum does not match", f->path, f->bytes - 8);
    return SR_OK;
}

static int is_near(double a, double b)
{
    return fabs(a - b) <= 1e-6 * fabs(b);
}

static sr_status check_rope(const struct mapfile *f, const struct rope_spec *rope, sr_error *err)
{
    const uint8_t *p = f->data + HEAD_BYTES - 8;
    double magnitude = get_f64(p), want = n_freq(rope) ? rope->magnitude : 1.0;
    if (!is_near(magnitude, want)) {
        return sr_fail(err, SR_ERR_UNSUPPORTED,
                       "%s: moments of another model: rope magnitude %g, this model has %g", f->path,
                       magnitude, want);
    }
    for (size_t i = 0; i < n_freq(rope); i++) {
        double v = get_f64(p + 8 + 8 * i);
        if (is_near(v, rope->inv_freq[i])) continue;
        return sr_fail(err, SR_ERR_UNSUPPORTED,
                       "%s: moments of another model: rope frequency %zu is %g, this model has %g", f->path,
                       i, v, rope->inv_freq[i]);
    }
    return SR_OK;
}

static sr_status read_units(struct moments *m, const struct mapfile *f, size_t at, sr_error *err)
{
    size_t unit = sr_moments_unit(&m->shape), n = sr_moments_units(&m->shape) * unit;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *p = f->data + at + 4 * i;
        uint32_t u = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        memcpy(&m->stored[i], &u, 4);
        if (!isfinite(m->stored[i])) {
            size_t g = i / unit, n_kv = (size_t)m->shape.n_kv_heads;
            return sr_fail(err, SR_ERR_NUMERIC,
                           "%s: offset %zu: layer %zu, KV group %zu: value is not finite", f->path,
                           at + 4 * i, g / n_kv, g % n_kv);
        }
    }
    return SR_OK;
}

void sr_moments_keep_layers(struct moments *m, int32_t first, int32_t n)
{
    const size_t layer = (size_t)m->shape.n_kv_heads * sr_moments_unit(&m->shape);
    assert(m->stored && first >= 0 && first + n <= m->shape.n_layers);
    memmove(m->stored, m->stored + (size_t)first * layer, (size_t)n * layer * sizeof(float));
    m->shape.n_layers = n;
}

sr_status sr_moments_load(struct moments **out, const struct moments_shape *shape,
                          const struct rope_spec *rope, const char *path, sr_error *err)
{
    struct mapfile f;
    struct moments *m = NULL;
    uint32_t head[7];
    sr_status st;
    SR_TRY(sr_mapfile_open(&f, path, err));
    SR_TRY_GOTO(check_frame(&f, head, err));
    SR_TRY_GOTO(check_field(path, "n_layers", head[1], shape->n_layers, err));
    SR_TRY_GOTO(check_field(path, "n_heads", head[2], shape->n_heads, err));
    SR_TRY_GOTO(check_field(path, "n_kv_heads", head[3], shape->n_kv_heads, err));
    SR_TRY_GOTO(check_field(path, "head_dim", head[4], shape->head_dim, err));
    SR_TRY_GOTO(check_field(path, "rope kind", head[5], (int32_t)rope->kind, err));
    SR_TRY_GOTO(check_field(path, "rope dims", head[6], (int32_t)(2 * n_freq(rope)), err));
    SR_TRY_GOTO(check_rope(&f, rope, err));

    size_t n = sr_moments_units(shape) * sr_moments_unit(shape);
    m = sr_alloc_zero(1, sizeof *m);
    if (m) m->stored = sr_alloc(n * sizeof(float));
    if (!m || !m->stored) {
        st = sr_fail_memory(err, n * sizeof(float), "moments");
        goto fail;
    }
    m->shape = *shape;
    SR_TRY_GOTO(read_units(m, &f, HEAD_BYTES + 8 * n_freq(rope), err));
    m->id = XXH3_64bits(f.data, f.bytes - 8);
    sr_mapfile_close(&f);
    *out = m;
    return SR_OK;
fail:
    sr_moments_free(m);
    sr_mapfile_close(&f);
    return st;
}
