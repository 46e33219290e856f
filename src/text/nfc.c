/* SPDX-License-Identifier: Apache-2.0
 *
 * The Unicode library decomposes one character and composes a sequence, both in linear time; the ordering of combining
 * marks between the two is done here by counting, because the library's own takes quadratic time on marks that
 * alternate. Characters below U+0300 never change and never join what precedes them, so the text is worked on
 * in stretches that begin with the last such character before one that may.
 */
#include "text/nfc.h"

#include "base/memory.h"
#include "text/utf8.h"

#include <string.h>
#include <utf8proc.h>

enum { FIRST_MARK = 0x300, MOST_DECOMPOSED = 20 };

struct nfc {
    int32_t *cp; /* the stretch, decomposed */
    int32_t *spare;
    size_t n, cap;
    char *out;
    size_t used, out_cap;
};

static int class_of(int32_t cp) { return utf8proc_get_property(cp)->combining_class; }

static sr_status grow(struct nfc *s, sr_error *err)
{
    const size_t cap = s->cap ? 2 * s->cap : 256;
    int32_t *cp = sr_realloc(s->cp, s->n * sizeof(*cp), cap * sizeof(*cp)), *spare;
    if (!cp) return sr_fail_memory(err, cap * sizeof(*cp), "normalizing a text");
    s->cp = cp;
    spare = sr_realloc(s->spare, 0, cap * sizeof(*spare));
    if (!spare) return sr_fail_memory(err, cap * sizeof(*spare), "normalizing a text");
    s->spare = spare;
    s->cap = cap;
    return SR_OK;
}

static sr_status put_bytes(struct nfc *s, const char *p, size_t n, sr_error *err)
{
    if (n > s->out_cap - s->used) {
        const size_t cap = 2 * s->out_cap + n;
        char *out = sr_realloc(s->out, s->used, cap);
        if (!out) return sr_fail_memory(err, cap, "normalizing a text");
        s->out = out;
        s->out_cap = cap;
    }
    memcpy(s->out + s->used, p, n);
    s->used += n;
    return SR_OK;
}

/* Marks cp[0..n) by class, those of one class in their order. */
static void order_marks(const struct nfc *s, int32_t *cp, size_t n)
{
    size_t at[257] = {0};
    for (size_t i = 0; i < n; i++) at[class_of(cp[i]) + 1]++;
    for (int c = 0; c < 256; c++) at[c + 1] += at[c];
    for (size_t i = 0; i < n; i++) s->spare[at[class_of(cp[i])]++] = cp[i];
    memcpy(cp, s->spare, n * sizeof(*cp));
}

static void order(const struct nfc *s)
{
    for (size_t i = 0; i < s->n;) {
        size_t end = i;
        while (end < s->n && class_of(s->cp[end]) != 0) end++;
        if (end > i + 1) order_marks(s, s->cp + i, end - i);
        i = end > i ? end : i + 1;
    }
}

static sr_status flush(struct nfc *s, sr_error *err)
{
    if (s->n == 0) return SR_OK;
    order(s);
    const utf8proc_ssize_t n = utf8proc_normalize_utf32(s->cp, (utf8proc_ssize_t)s->n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    s->n = 0;
    for (utf8proc_ssize_t i = 0; i < n; i++) {
        char one[4];
        SR_TRY(put_bytes(s, one, (size_t)sr_utf8_encode((uint32_t)s->cp[i], one), err));
    }
    return SR_OK;
}

static sr_status push(struct nfc *s, int32_t cp, sr_error *err)
{
    int boundary = 0;
    while (s->cap - s->n < MOST_DECOMPOSED) SR_TRY(grow(s, err));
    const utf8proc_ssize_t n = utf8proc_decompose_char(cp, s->cp + s->n, (utf8proc_ssize_t)(s->cap - s->n),
                                                       UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundary);
    if (n < 1 || n > MOST_DECOMPOSED) return sr_fail(err, SR_ERR_UNSUPPORTED, "normalizing a text: U+%04X", (unsigned)cp);
    s->n += (size_t)n;
    return SR_OK;
}

static sr_status normalize(struct nfc *s, const uint8_t *p, size_t bytes, sr_error *err)
{
    for (size_t at = 0; at < bytes;) {
        uint32_t cp;
        int valid;
        const int len = sr_utf8_decode(p + at, bytes - at, &cp, &valid);
        if (!valid || cp < FIRST_MARK) SR_TRY(flush(s, err)); /* nothing before it can change any more */
        if (!valid) SR_TRY(put_bytes(s, (const char *)p + at, (size_t)len, err));
        else SR_TRY(push(s, (int32_t)cp, err));
        at += (size_t)len;
    }
    return flush(s, err);
}

static int may_change(const uint8_t *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (p[i] >= 0xCC) return 1; /* the lead bytes of U+0300 and above */
    return 0;
}

sr_status sr_nfc(const char *text, size_t bytes, char **out, size_t *out_bytes, sr_error *err)
{
    struct nfc s = {0};
    *out = NULL;
    *out_bytes = bytes;
    if (!may_change((const uint8_t *)text, bytes)) return SR_OK;
    const sr_status st = normalize(&s, (const uint8_t *)text, bytes, err);
    sr_free(s.cp);
    sr_free(s.spare);
    if (st == SR_OK && (s.used != bytes || memcmp(s.out, text, bytes) != 0)) {
        *out = s.out;
        *out_bytes = s.used;
        return SR_OK;
    }
    sr_free(s.out);
    return st;
}
