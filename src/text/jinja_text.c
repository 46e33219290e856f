/* SPDX-License-Identifier: Apache-2.0
 *
 * Offsets are bytes inside and characters only where a template counts them.
 */
#include "text/jinja_text.h"

#include <string.h>
#include <utf8proc.h>

#include "text/utf8.h"

/* ---- building ---- */

static int make_room(struct jrun *r, struct jbuf *b, size_t more)
{
    size_t cap = b->cap ? b->cap : 64;
    char *p;
    uint8_t *from;

    if (r->status != SR_OK) return 0;
    if (more > r->output_limit || b->n > r->output_limit - more) {
        sr_jinja_fail(r, SR_ERR_FORMAT, "a text of more than %zu MiB, the limit", r->output_limit >> 20);
        return 0;
    }
    if (b->cap - b->n >= more) return 1;
    while (cap < b->n + more) cap *= 2;
    p = sr_jinja_take(r, cap);
    from = sr_jinja_take(r, cap);
    if (!p || !from) return 0;
    if (b->n) memcpy(p, b->p, b->n);
    if (b->n) memcpy(from, b->from, b->n);
    b->p = p;
    b->from = from;
    b->cap = cap;
    return 1;
}

void sr_jinja_add_bytes(struct jrun *r, struct jbuf *b, const char *p, size_t n, int user)
{
    if (n == 0 || !make_room(r, b, n) || !sr_jinja_step(r, n / 64)) return;
    memcpy(b->p + b->n, p, n);
    memset(b->from + b->n, user != 0, n);
    b->n += n;
}

void sr_jinja_add(struct jrun *r, struct jbuf *b, const struct jval *string)
{
    const struct jstr *s = &string->u.s;
    size_t at = b->n;

    sr_jinja_add_bytes(r, b, s->p, s->n, string->user);
    if (r->status == SR_OK && s->from && s->n) memcpy(b->from + at, s->from, s->n);
}

void sr_jinja_add_text(struct jrun *r, struct jbuf *b, const char *s)
{
    sr_jinja_add_bytes(r, b, s, strlen(s), 0);
}

struct jval sr_jinja_built(struct jrun *r, struct jbuf *b)
{
    struct jval v = sr_jinja_string(b->p, b->n, 0);

    if (r->status != SR_OK) return sr_jinja_undefined("", 0);
    if (b->n && memchr(b->from, !b->from[0], b->n))
        v.u.s.from = b->from;
    else if (b->n)
        v.user = b->from[0];
    return v;
}

struct jval sr_jinja_concat(struct jrun *r, const struct jval *a, const struct jval *b)
{
    size_t n = a->u.s.n + b->u.s.n;
    struct jbuf out = {0};

    if (b->u.s.n == 0) return *a;
    if (a->u.s.n == 0) return *b;
    if (a->u.s.from || b->u.s.from || a->user != b->user || n > r->output_limit) {
        sr_jinja_add(r, &out, a);
        sr_jinja_add(r, &out, b);
        return sr_jinja_built(r, &out);
    }
    char *p = sr_jinja_take(r, n);
    if (!p || !sr_jinja_step(r, n / 64)) return sr_jinja_undefined("", 0);
    memcpy(p, a->u.s.p, a->u.s.n);
    memcpy(p + a->u.s.n, b->u.s.p, b->u.s.n);
    return sr_jinja_string(p, n, a->user);
}

/* ---- parts ---- */

struct jval sr_jinja_part(const struct jval *s, size_t begin, size_t end)
{
    struct jval v = sr_jinja_string(s->u.s.p + begin, end - begin, s->user);

    if (s->u.s.from) v.u.s.from = s->u.s.from + begin;
    return v;
}

size_t sr_jinja_search(struct jrun *r, const struct jval *s, size_t at, const struct jval *what)
{
    const char *hit;

    if (what->u.s.n == 0) return at;
    if (at >= s->u.s.n || s->u.s.n - at < what->u.s.n) return SIZE_MAX;
    hit = memmem(s->u.s.p + at, s->u.s.n - at, what->u.s.p, what->u.s.n);
    return sr_jinja_step(r, (hit ? (size_t)(hit - s->u.s.p) - at : s->u.s.n - at) / 32) && hit
               ? (size_t)(hit - s->u.s.p)
               : SIZE_MAX;
}

static int is_python_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
           c == 0x3000;
}

/* Length of the character at p if it is to be stripped, else 0. */
static size_t strips(const char *p, size_t n, const struct jval *chars)
{
    uint32_t c;
    int valid, len;

    if (n == 0) return 0;
    len = sr_utf8_decode((const uint8_t *)p, n, &c, &valid);
    if (chars) return chars->u.s.n && memmem(chars->u.s.p, chars->u.s.n, p, (size_t)len) ? (size_t)len : 0;
    return valid && is_python_space(c) ? (size_t)len : 0;
}

/* Begin of the character that ends at `end`. */
static size_t last_character(const char *p, size_t begin, size_t end)
{
    size_t at = end - 1;
    uint32_t c;
    int valid;

    while (at > begin && end - at < 4 && ((uint8_t)p[at] & 0xC0) == 0x80) at--;
    return (size_t)sr_utf8_decode((const uint8_t *)p + at, end - at, &c, &valid) == end - at ? at : end - 1;
}

struct jval sr_jinja_strip(struct jrun *r, const struct jval *s, const struct jval *chars, int sides)
{
    const char *p = s->u.s.p;
    size_t begin = 0, end = s->u.s.n, n;

    if (sides & JINJA_STRIP_LEFT)
        while ((n = strips(p + begin, end - begin, chars)) > 0) begin += n;
    while ((sides & JINJA_STRIP_RIGHT) && end > begin) {
        size_t at = last_character(p, begin, end);
        if (strips(p + at, end - at, chars) != end - at) break;
        end = at;
    }
    sr_jinja_step(r, (s->u.s.n - (end - begin)) / 16);
    return sr_jinja_part(s, begin, end);
}

struct jval sr_jinja_replace(struct jrun *r, const struct jval *s, const struct jval *old,
                             const struct jval *fresh, int64_t most)
{
    struct jbuf out = {0};
    size_t at = 0, hit;

    if (old->u.s.n == 0) return sr_jinja_fail(r, SR_ERR_USAGE, "replace: the text to replace is empty");
    while (most-- != 0 && (hit = sr_jinja_search(r, s, at, old)) != SIZE_MAX && sr_jinja_step(r, 1)) {
        struct jval before = sr_jinja_part(s, at, hit);
        sr_jinja_add(r, &out, &before);
        sr_jinja_add(r, &out, fresh);
        at = hit + old->u.s.n;
    }
    if (at == 0) return *s;
    struct jval rest = sr_jinja_part(s, at, s->u.s.n);
    sr_jinja_add(r, &out, &rest);
    return sr_jinja_built(r, &out);
}

/* ---- split ---- */

static struct jval split_space(struct jrun *r, const struct jval *s, int64_t most)
{
    struct jval out = sr_jinja_list(r, JINJA_LIST, 0), rest = sr_jinja_strip(r, s, NULL, JINJA_STRIP_LEFT);

    while (rest.u.s.n > 0 && r->status == SR_OK) {
        size_t at = 0;
        while (at < rest.u.s.n && (most == 0 || strips(rest.u.s.p + at, rest.u.s.n - at, NULL) == 0)) at++;
        if (most == 0) at = sr_jinja_strip(r, &rest, NULL, JINJA_STRIP_RIGHT).u.s.n;
        sr_jinja_push(r, &out, sr_jinja_part(&rest, 0, at));
        if (most == 0 || !sr_jinja_step(r, at / 16 + 1)) break;
        most--;
        rest = sr_jinja_part(&rest, at, rest.u.s.n);
        rest = sr_jinja_strip(r, &rest, NULL, JINJA_STRIP_LEFT);
    }
    return out;
}

static void reverse(struct jlist *l)
{
    for (size_t i = 0; i < l->n / 2; i++) {
        struct jval t = l->v[i];
        l->v[i] = l->v[l->n - 1 - i];
        l->v[l->n - 1 - i] = t;
    }
}

/* Begin of the last `sep` that ends at or before `end`, or SIZE_MAX. */
static size_t search_back(struct jrun *r, const struct jval *s, size_t end, const struct jval *sep)
{
    size_t n = sep->u.s.n;

    for (size_t at = end >= n ? end - n + 1 : 0; at-- > 0;)
        if (memcmp(s->u.s.p + at, sep->u.s.p, n) == 0)
            return sr_jinja_step(r, (end - at) / 8) ? at : SIZE_MAX;
    sr_jinja_step(r, end / 8);
    return SIZE_MAX;
}

static struct jval split_right(struct jrun *r, const struct jval *s, const struct jval *sep, int64_t most)
{
    struct jval out = sr_jinja_list(r, JINJA_LIST, 0);
    size_t end = s->u.s.n, hit;

    while (most-- != 0 && (hit = search_back(r, s, end, sep)) != SIZE_MAX && sr_jinja_step(r, 1)) {
        sr_jinja_push(r, &out, sr_jinja_part(s, hit + sep->u.s.n, end));
        end = hit;
    }
    sr_jinja_push(r, &out, sr_jinja_part(s, 0, end));
    if (r->status == SR_OK) reverse(out.u.list);
    return out;
}

struct jval sr_jinja_split(struct jrun *r, const struct jval *s, const struct jval *sep, int64_t most,
                           int from_right)
{
    struct jval out;
    size_t at = 0, hit;

    if (!sep && from_right && most >= 0)
        return sr_jinja_fail(r, SR_ERR_UNSUPPORTED, "rsplit with a limit needs a separator");
    if (!sep) return split_space(r, s, most);
    if (sep->u.s.n == 0) return sr_jinja_fail(r, SR_ERR_USAGE, "split: the separator is empty");
    if (from_right) return split_right(r, s, sep, most);
    out = sr_jinja_list(r, JINJA_LIST, 0);
    while (most-- != 0 && (hit = sr_jinja_search(r, s, at, sep)) != SIZE_MAX && sr_jinja_step(r, 1)) {
        sr_jinja_push(r, &out, sr_jinja_part(s, at, hit));
        at = hit + sep->u.s.n;
    }
    sr_jinja_push(r, &out, sr_jinja_part(s, at, s->u.s.n));
    return out;
}

/* ---- case ---- */

static int is_cased(uint32_t c)
{
    return utf8proc_tolower((utf8proc_int32_t)c) != (utf8proc_int32_t)c ||
           utf8proc_toupper((utf8proc_int32_t)c) != (utf8proc_int32_t)c;
}

struct jval sr_jinja_case(struct jrun *r, const struct jval *s, enum jinja_case how)
{
    struct jbuf out = {0};
    int in_word = 0;

    for (size_t at = 0; at < s->u.s.n && r->status == SR_OK;) {
        uint32_t c;
        char bytes[4];
        int valid, n = sr_utf8_decode((const uint8_t *)s->u.s.p + at, s->u.s.n - at, &c, &valid);
        int up = how == JINJA_UPPER || (how == JINJA_CAPITAL && at == 0) || (how == JINJA_TITLE && !in_word);
        int user = s->u.s.from ? s->u.s.from[at] : s->user;
        in_word = valid && is_cased(c);
        if (valid) {
            int32_t to = up ? utf8proc_toupper((utf8proc_int32_t)c) : utf8proc_tolower((utf8proc_int32_t)c);
            sr_jinja_add_bytes(r, &out, bytes, (size_t)sr_utf8_encode((uint32_t)to, bytes), user);
        } else {
            sr_jinja_add_bytes(r, &out, s->u.s.p + at, 1, user);
        }
        at += (size_t)n;
    }
    sr_jinja_step(r, s->u.s.n / 4);
    return sr_jinja_built(r, &out);
}

/* ---- slices ---- */

/* A slice's end as Python clamps it. */
static int64_t clamp(const int64_t *given, int64_t missing, int64_t n, int64_t low, int64_t high)
{
    int64_t at;

    if (!given) return missing;
    at = *given < 0 ? (*given < -n ? -1 : *given + n) : *given;
    if (*given < -n) return low;
    return at < low ? low : at > high ? high : at;
}

static struct jval slice_list(struct jrun *r, const struct jval *v, int64_t begin, int64_t end, int64_t step)
{
    struct jval out = sr_jinja_list(r, v->kind == JINJA_TUPLE ? JINJA_TUPLE : JINJA_LIST, 0);

    for (int64_t i = begin; (step > 0 ? i < end : i > end) && sr_jinja_step(r, 1); i += step)
        sr_jinja_push(r, &out, v->u.list->v[i]);
    return out;
}

/* Byte offset of character `want` counted on from character `at` at byte `byte`. */
static size_t skip_characters(const struct jval *s, size_t byte, int64_t n)
{
    uint32_t c;
    int valid;

    for (; n > 0 && byte < s->u.s.n; n--)
        byte += (size_t)sr_utf8_decode((const uint8_t *)s->u.s.p + byte, s->u.s.n - byte, &c, &valid);
    return byte;
}

struct jval sr_jinja_slice(struct jrun *r, const struct jval *v, const int64_t *begin, const int64_t *end,
                           int64_t step)
{
    int64_t n, from, to;

    if (!sr_jinja_is_list(v) && v->kind != JINJA_STRING)
        return sr_jinja_fail(r, SR_ERR_USAGE, "%s cannot be sliced", sr_jinja_kind_name(v));
    n = sr_jinja_length(r, v);
    if (step == 0) return sr_jinja_fail(r, SR_ERR_USAGE, "a slice with step 0");
    if (step > n + 1) step = n + 1;
    if (step < -n - 1) step = -n - 1;
    from = step > 0 ? clamp(begin, 0, n, 0, n) : clamp(begin, n - 1, n, -1, n - 1);
    to = step > 0 ? clamp(end, n, n, 0, n) : clamp(end, -1, n, -1, n - 1);
    if (r->status != SR_OK) return sr_jinja_undefined("", 0);
    if (sr_jinja_is_list(v)) return slice_list(r, v, from, to, step);
    if (step == 1) {
        size_t a = skip_characters(v, 0, from), b = to > from ? skip_characters(v, a, to - from) : a;
        sr_jinja_step(r, b / 32);
        return sr_jinja_part(v, a, b);
    }
    struct jval letters = {.kind = JINJA_LIST}, picked;
    struct jbuf out = {0};
    letters.u.list = (struct jlist *)sr_jinja_iterate(r, v);
    if (!letters.u.list) return sr_jinja_undefined("", 0);
    picked = slice_list(r, &letters, from, to, step);
    for (size_t i = 0; r->status == SR_OK && i < picked.u.list->n; i++)
        sr_jinja_add(r, &out, &picked.u.list->v[i]);
    return sr_jinja_built(r, &out);
}
