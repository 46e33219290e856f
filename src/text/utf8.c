/* SPDX-License-Identifier: Apache-2.0
 *
 * UTF-8 decoding after the table of well-formed byte sequences in the Unicode standard: the second byte's
 * range depends on the first, which rules out overlong forms, surrogates and values above U+10FFFF at once.
 */
#include "text/utf8.h"

#include <string.h>

struct lead {
    int length;     /* of the whole sequence; 0: cannot begin one */
    uint8_t lo, hi; /* allowed second byte */
};

static struct lead lead_of(uint8_t b)
{
    if (b < 0x80) return (struct lead){1, 0, 0};
    if (b < 0xC2) return (struct lead){0, 0, 0};
    if (b < 0xE0) return (struct lead){2, 0x80, 0xBF};
    if (b == 0xE0) return (struct lead){3, 0xA0, 0xBF};
    if (b == 0xED) return (struct lead){3, 0x80, 0x9F};
    if (b < 0xF0) return (struct lead){3, 0x80, 0xBF};
    if (b == 0xF0) return (struct lead){4, 0x90, 0xBF};
    if (b < 0xF4) return (struct lead){4, 0x80, 0xBF};
    if (b == 0xF4) return (struct lead){4, 0x80, 0x8F};
    return (struct lead){0, 0, 0};
}

/* How many of the n bytes at s are a well-formed beginning of one character; *want is its full length, or 0
 * when the first byte cannot begin one. */
static int prefix_length(const uint8_t *s, size_t n, int *want)
{
    struct lead l = lead_of(s[0]);
    int have = 1;

    *want = l.length;
    if (l.length == 0) return 0;
    while (have < l.length && (size_t)have < n) {
        uint8_t lo = have == 1 ? l.lo : 0x80, hi = have == 1 ? l.hi : 0xBF;
        if (s[have] < lo || s[have] > hi) break;
        have++;
    }
    return have;
}

int sr_utf8_decode(const uint8_t *s, size_t n, uint32_t *cp, int *valid)
{
    static const uint8_t lead_mask[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    int want, have = prefix_length(s, n, &want);
    uint32_t c;

    if (want == 0 || have < want) {
        *cp = 0xFFFD;
        *valid = 0;
        return 1;
    }
    c = s[0] & lead_mask[want];
    for (int i = 1; i < want; i++) c = (c << 6) | (s[i] & 0x3Fu);
    *cp = c;
    *valid = 1;
    return want;
}

int sr_utf8_encode(uint32_t cp, char out[4])
{
    if (cp > 0x10FFFF || (cp >= 0xD800 && cp <= 0xDFFF)) cp = 0xFFFD;
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | (cp >> 6));
        out[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | (cp >> 12));
        out[1] = (char)(0x80 | ((cp >> 6) & 0x3F));
        out[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | (cp >> 18));
    out[1] = (char)(0x80 | ((cp >> 12) & 0x3F));
    out[2] = (char)(0x80 | ((cp >> 6) & 0x3F));
    out[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

int sr_utf8_valid(const void *s, size_t n)
{
    const uint8_t *p = s;
    size_t at = 0;

    while (at < n) {
        int want, have = prefix_length(p + at, n - at, &want);
        if (want == 0 || have < want) return 0;
        at += (size_t)want;
    }
    return 1;
}

static size_t put_replacement(char *out)
{
    memcpy(out, "\xEF\xBF\xBD", 3);
    return 3;
}

/* Emits what the held bytes allow: whole characters, and U+FFFD for each byte that can start nothing. */
static size_t stream_drain(struct utf8_stream *u, char *out, int final)
{
    size_t written = 0;

    while (u->n_held > 0) {
        int want, have = prefix_length(u->held, (size_t)u->n_held, &want), used;
        if (want > 0 && have == want) {
            memcpy(out + written, u->held, (size_t)want);
            written += (size_t)want;
            used = want;
        } else if (want > 0 && have == u->n_held && !final) {
            break; /* the rest may still come */
        } else {
            written += put_replacement(out + written);
            used = 1;
        }
        u->n_held -= used;
        memmove(u->held, u->held + used, (size_t)u->n_held);
    }
    return written;
}

size_t sr_utf8_stream_push(struct utf8_stream *u, const void *bytes, size_t n, char *out)
{
    const uint8_t *p = bytes;
    size_t written = 0;

    for (size_t i = 0; i < n; i++) {
        u->held[u->n_held++] = p[i]; /* at most 3 are held between drains */
        written += stream_drain(u, out + written, 0);
    }
    return written;
}

size_t sr_utf8_stream_finish(struct utf8_stream *u, char *out)
{
    return stream_drain(u, out, 1);
}
