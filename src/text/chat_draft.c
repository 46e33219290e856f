/* SPDX-License-Identifier: Apache-2.0
 *
 * Text grows in one block; cuts remember where the origin changes and become pieces at the end.
 */
#include "text/chat_draft.h"

#include <string.h>

#include "base/memory.h"
#include "text/utf8.h"

static void *grow(void *block, size_t elem, size_t n, size_t *cap)
{
    size_t want = *cap ? *cap * 2 : 64;
    void *p;

    while (want < n) want *= 2;
    p = sr_realloc(block, *cap * elem, want * elem);
    if (p) *cap = want;
    return p;
}

static void mark_origin(struct chat_draft *d, int from_user)
{
    size_t cap = (size_t)d->cap_cuts;

    if (d->n_cuts > 0 && d->cut[d->n_cuts - 1].from_user == from_user) return;
    if (d->n_cuts == d->cap_cuts) {
        struct chat_cut *cut = grow(d->cut, sizeof *cut, cap + 1, &cap);
        if (!cut) {
            d->status = sr_fail_memory(d->err, cap * sizeof *cut, "chat pieces");
            return;
        }
        d->cut = cut;
        d->cap_cuts = (int32_t)cap;
    }
    d->cut[d->n_cuts++] = (struct chat_cut){d->n, from_user};
}

static void append(struct chat_draft *d, const char *text, size_t bytes, int from_user)
{
    if (d->status != SR_OK || bytes == 0) return;
    if (bytes > SIZE_MAX / 4 - d->n) {
        d->status = sr_fail_memory(d->err, bytes, "chat text");
        return;
    }
    mark_origin(d, from_user);
    if (d->status != SR_OK) return;
    if (d->n + bytes > d->cap) {
        char *p = grow(d->text, 1, d->n + bytes, &d->cap);
        if (!p) {
            d->status = sr_fail_memory(d->err, d->n + bytes, "chat text");
            return;
        }
        d->text = p;
    }
    memcpy(d->text + d->n, text, bytes);
    d->n += bytes;
}

void sr_chat_draft_fixed(struct chat_draft *d, const char *text)
{
    append(d, text, strlen(text), 0);
}
void sr_chat_draft_user(struct chat_draft *d, const char *text, size_t bytes)
{
    append(d, text, bytes, 1);
}

sr_status sr_chat_draft_finish(struct chat_draft *d, struct chat_text *out)
{
    struct chat_piece *pieces = NULL;

    if (d->status == SR_OK) {
        pieces = sr_alloc((size_t)d->n_cuts * sizeof *pieces);
        if (!pieces) d->status = sr_fail_memory(d->err, (size_t)d->n_cuts * sizeof *pieces, "chat pieces");
    }
    if (d->status != SR_OK) {
        sr_free(d->text);
    } else {
        for (int32_t i = 0; i < d->n_cuts; i++) {
            size_t end = i + 1 < d->n_cuts ? d->cut[i + 1].begin : d->n;
            pieces[i] =
                (struct chat_piece){d->text + d->cut[i].begin, end - d->cut[i].begin, d->cut[i].from_user};
        }
        *out = (struct chat_text){.text = d->text, .bytes = d->n, .pieces = pieces, .n_pieces = d->n_cuts};
    }
    sr_free(d->cut);
    d->text = NULL;
    d->cut = NULL;
    return d->status;
}

/* ---- string functions ---- */

static int is_python_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
           c == 0x3000;
}

/* Length of the white-space character at the front, 0 if none is there. */
static size_t space_at_front(struct chat_slice x)
{
    uint32_t c;
    int valid, n;

    if (x.n == 0) return 0;
    n = sr_utf8_decode((const uint8_t *)x.s, x.n, &c, &valid);
    return valid && is_python_space(c) ? (size_t)n : 0;
}

struct chat_slice sr_chat_rstrip(struct chat_slice x)
{
    while (x.n > 0) {
        size_t at = x.n - 1;
        while (at > 0 && x.n - at < 4 && ((uint8_t)x.s[at] & 0xC0) == 0x80) at--;
        if (space_at_front((struct chat_slice){x.s + at, x.n - at}) != x.n - at) break;
        x.n = at;
    }
    return x;
}

struct chat_slice sr_chat_strip(struct chat_slice x)
{
    size_t n;

    while ((n = space_at_front(x)) > 0) {
        x.s += n;
        x.n -= n;
    }
    return sr_chat_rstrip(x);
}

struct chat_slice sr_chat_lstrip_newlines(struct chat_slice x)
{
    while (x.n > 0 && x.s[0] == '\n') {
        x.s++;
        x.n--;
    }
    return x;
}

struct chat_slice sr_chat_rstrip_newlines(struct chat_slice x)
{
    while (x.n > 0 && x.s[x.n - 1] == '\n') x.n--;
    return x;
}

struct chat_slice sr_chat_before(struct chat_slice x, const char *mark)
{
    const char *p = x.n > 0 ? memmem(x.s, x.n, mark, strlen(mark)) : NULL;

    return p ? (struct chat_slice){x.s, (size_t)(p - x.s)} : x;
}

struct chat_slice sr_chat_after_last(struct chat_slice x, const char *mark)
{
    for (;;) {
        const char *p = x.n > 0 ? memmem(x.s, x.n, mark, strlen(mark)) : NULL;
        if (!p) return x;
        p += strlen(mark);
        x = (struct chat_slice){p, x.n - (size_t)(p - x.s)};
    }
}
