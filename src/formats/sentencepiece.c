/* SPDX-License-Identifier: Apache-2.0
 *
 * Protobuf as far as it is needed: fields of a message one after another, each a number (field, wire type) and a
 * varint, 4 or 8 bytes, or a length and bytes. Unknown fields are skipped, as the format asks. Groups (wire types 3, 4)
 * do not occur in this file. Nothing recurses: messages within messages are read by a cursor of their own.
 */
#include "formats/sentencepiece.h"

#include "base/memory.h"
#include "formats/gguf_part.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum wire { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

struct pb {
    const uint8_t *base;
    size_t at, end;
    const char *path;
    sr_error *err;
};

struct pb_field {
    uint32_t number;
    enum wire wire;
    uint64_t value;      /* of numbers; of bytes their length */
    const uint8_t *data; /* of bytes */
};

static sr_status reject(const struct pb *p, size_t at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

static sr_status reject(const struct pb *p, size_t at, const char *fmt, ...)
{
    char text[SR_ERROR_TEXT_BYTES], path[GGUF_SHOWN_PATH_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    return sr_fail(p->err, SR_ERR_FORMAT, "%s: offset %zu: %s", sr_gguf_shown_path(path, p->path), at, text);
}

static sr_status read_varint(struct pb *p, uint64_t *out)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (p->at >= p->end) return reject(p, p->at, "the message ends within a number");
        const uint8_t b = p->base[p->at++];
        v |= (uint64_t)(b & 127) << shift;
        if (!(b & 128)) {
            *out = v;
            return SR_OK;
        }
    }
    return reject(p, p->at, "a number of more than 10 bytes");
}

static sr_status read_fixed(struct pb *p, size_t bytes, uint64_t *out)
{
    if (p->end - p->at < bytes) return reject(p, p->at, "the message ends within a number");
    *out = 0;
    memcpy(out, p->base + p->at, bytes); /* little-endian, as this machine */
    p->at += bytes;
    return SR_OK;
}

/* *more = 0 at the end of the message. */
static sr_status next_field(struct pb *p, struct pb_field *f, int *more)
{
    uint64_t tag;
    *more = p->at < p->end;
    if (!*more) return SR_OK;
    SR_TRY(read_varint(p, &tag));
    if (tag >> 3 == 0 || tag >> 3 > 536870911) return reject(p, p->at, "field number %llu", (unsigned long long)(tag >> 3));
    *f = (struct pb_field){.number = (uint32_t)(tag >> 3), .wire = (enum wire)(tag & 7)};
    switch (tag & 7) {
    case WIRE_VARINT: return read_varint(p, &f->value);
    case WIRE_64: return read_fixed(p, 8, &f->value);
    case WIRE_32: return read_fixed(p, 4, &f->value);
    case WIRE_BYTES: break;
    default: return reject(p, p->at, "wire type %d", (int)(tag & 7));
    }
    SR_TRY(read_varint(p, &f->value));
    if (f->value > p->end - p->at)
        return reject(p, p->at, "field %u of %llu bytes, %zu left", f->number, (unsigned long long)f->value, p->end - p->at);
    f->data = p->base + p->at;
    p->at += (size_t)f->value;
    return SR_OK;
}

static sr_status want(const struct pb *p, const struct pb_field *f, enum wire wire)
{
    return f->wire == wire ? SR_OK : reject(p, p->at, "field %u has wire type %d, must be %d", f->number, (int)f->wire, (int)wire);
}

static struct pb inside(const struct pb *p, const struct pb_field *f)
{
    const size_t at = (size_t)(f->data - p->base);
    return (struct pb){p->base, at, at + (size_t)f->value, p->path, p->err};
}

/* ---- messages ---- */

static sr_status read_piece(struct pb p, struct sp_piece *out)
{
    struct pb_field f;
    int more;
    const size_t begin = p.at;
    *out = (struct sp_piece){.text = "", .kind = 1};
    for (;;) {
        SR_TRY(next_field(&p, &f, &more));
        if (!more) break;
        if (f.number == 1) {
            SR_TRY(want(&p, &f, WIRE_BYTES));
            out->text = (const char *)f.data;
            out->bytes = (size_t)f.value;
        } else if (f.number == 2) {
            SR_TRY(want(&p, &f, WIRE_32));
            const uint32_t bits = (uint32_t)f.value;
            memcpy(&out->score, &bits, sizeof(bits));
        } else if (f.number == 3) {
            SR_TRY(want(&p, &f, WIRE_VARINT));
            if (f.value < 1 || f.value > 6) return reject(&p, begin, "piece of type %llu, want 1..6", (unsigned long long)f.value);
            out->kind = (int32_t)f.value;
        }
    }
    if (out->bytes > SP_MAX_PIECE_BYTES) return reject(&p, begin, "piece of %zu bytes, limit %d", out->bytes, SP_MAX_PIECE_BYTES);
    if (!isfinite(out->score)) return reject(&p, begin, "score of a piece is not a finite number");
    return SR_OK;
}

/* Numbers of a message to places of the model, by field number. */
struct number_field { uint32_t number; int32_t *out; };

static sr_status read_numbers(struct pb p, const struct number_field *fields, int n, size_t *charsmap_bytes)
{
    struct pb_field f;
    int more;
    for (;;) {
        SR_TRY(next_field(&p, &f, &more));
        if (!more) return SR_OK;
        if (charsmap_bytes && f.number == 2 && f.wire == WIRE_BYTES) *charsmap_bytes = (size_t)f.value;
        for (int i = 0; i < n; i++) {
            if (fields[i].number != f.number) continue;
            SR_TRY(want(&p, &f, WIRE_VARINT));
            *fields[i].out = (int32_t)(int64_t)f.value; /* a negative number is ten bytes long */
        }
    }
}

static sr_status read_message(struct sp_model *m, struct pb *p, int counting)
{
    const struct number_field trainer[] = {{3, &m->algorithm}, {24, &m->whitespace_suffix}, {35, &m->byte_fallback},
                                           {40, &m->unk_id}, {41, &m->bos_id}, {42, &m->eos_id}};
    const struct number_field normalizer[] = {{3, &m->add_dummy_prefix}, {4, &m->remove_extra_whitespaces}, {5, &m->escape_whitespaces}};
    struct pb_field f;
    int more;
    int32_t n = 0;
    for (;;) {
        SR_TRY(next_field(p, &f, &more));
        if (!more) break;
        if (f.number == 1 && n == SP_MAX_PIECES) return reject(p, p->at, "more than %d pieces", SP_MAX_PIECES);
        if (f.number >= 1 && f.number <= 3) SR_TRY(want(p, &f, WIRE_BYTES));
        if (f.number == 1 && counting) n++;
        else if (f.number == 1) SR_TRY(read_piece(inside(p, &f), &m->pieces[n++]));
        else if (f.number == 2) SR_TRY(read_numbers(inside(p, &f), trainer, 6, NULL));
        else if (f.number == 3) SR_TRY(read_numbers(inside(p, &f), normalizer, 3, &m->charsmap_bytes));
    }
    m->n = n;
    return SR_OK;
}

sr_status sr_sp_read(struct sp_model *m, const uint8_t *data, size_t bytes, const char *path, sr_error *err)
{
    struct pb p = {data, 0, bytes, path, err};
    sr_status st;
    *m = (struct sp_model){.algorithm = 1, .unk_id = 0, .bos_id = 1, .eos_id = 2, .add_dummy_prefix = 1,
                           .remove_extra_whitespaces = 1, .escape_whitespaces = 1}; /* what the format's fields default to */
    SR_TRY_GOTO(read_message(m, &p, 1)); /* a piece takes at least two bytes, so the count is bounded by the file */
    m->pieces = sr_alloc_zero((size_t)m->n, sizeof(*m->pieces));
    if (!m->pieces) {
        st = sr_fail_memory(err, (size_t)m->n * sizeof(*m->pieces), "pieces of a vocabulary");
        goto fail;
    }
    p.at = 0;
    SR_TRY_GOTO(read_message(m, &p, 0));
    return SR_OK;
fail:
    sr_sp_free(m);
    return st;
}

void sr_sp_free(struct sp_model *m)
{
    sr_free(m->pieces);
    *m = (struct sp_model){0};
}
