/* SPDX-License-Identifier: Apache-2.0
 *
 * Characters to tokens. Escapes in strings are Python's.
 */
#include "text/jinja_lex.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "text/utf8.h"

static int is_space(char c)
{
    return c == ' ' || (c >= 9 && c <= 13);
}
static int is_digit(char c)
{
    return c >= '0' && c <= '9';
}
static int is_name_start(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static void bad(struct jlex *x, const char *what)
{
    x->r->line = x->line;
    x->kind = JTOK_BAD;
    sr_jinja_fail(x->r, SR_ERR_FORMAT, "%s", what);
}

/* Lines are counted where text is passed over. */
static void move_to(struct jlex *x, size_t end)
{
    for (; x->at < end; x->at++) x->line += x->p[x->at] == '\n';
}

static int looking_at(const struct jlex *x, size_t at, const char *s)
{
    size_t n = strlen(s);
    return x->n - at >= n && memcmp(x->p + at, s, n) == 0;
}

/* ---- outside of tags ---- */

static size_t find_tag(const struct jlex *x)
{
    for (size_t i = x->at; i + 1 < x->n; i++)
        if (x->p[i] == '{' && (x->p[i + 1] == '{' || x->p[i + 1] == '%' || x->p[i + 1] == '#')) return i;
    return x->n;
}

/* The text in [x->at, end) less what white-space control takes; the token is set when anything is left. */
static int take_text(struct jlex *x, size_t end)
{
    size_t begin = x->at, tag = end;
    char after = end + 2 < x->n ? x->p[end + 2] : 0;

    if (x->strip) {
        while (begin < end && is_space(x->p[begin])) begin++;
    } else if (x->newline && begin < end && x->p[begin] == '\n') {
        begin++;
    }
    x->strip = x->newline = 0;
    if (end == x->n) {
        if (begin < end && x->p[end - 1] == '\n') end--;
    } else if (after == '-') {
        while (begin < end && is_space(x->p[end - 1])) end--;
    } else if (x->p[end + 1] != '{' && after != '+') { /* a block alone on its line so far */
        size_t l = end;
        while (l > begin && is_space(x->p[l - 1]) && x->p[l - 1] != '\n') l--;
        if (l == 0 || x->p[l - 1] == '\n') end = l;
    }
    x->s = (struct jstr){x->p + begin, end - begin, NULL};
    move_to(x, tag);
    return begin < end;
}

/* x->at is behind the mark that ends a tag: what it takes from the text. `sign` is the character before the
 * mark. */
static void after_tag(struct jlex *x, char sign, int is_block)
{
    x->strip = sign == '-';
    x->newline = is_block && sign != '+' && sign != '-';
}

static void skip_comment(struct jlex *x)
{
    const char *close = x->n - x->at > 2 ? memmem(x->p + x->at + 2, x->n - x->at - 2, "#}", 2) : NULL;

    if (!close) {
        bad(x, "a comment does not end");
        return;
    }
    move_to(x, (size_t)(close - x->p) + 2);
    after_tag(x, close[-1], 1);
}

/* At "{%": whether it is a tag with only this name; its end in *end and the sign before it in *sign. */
static int is_plain_tag(const struct jlex *x, size_t at, const char *name, size_t *end, char *sign)
{
    at += 2;
    if (at < x->n && (x->p[at] == '-' || x->p[at] == '+')) at++;
    while (at < x->n && is_space(x->p[at])) at++;
    if (!looking_at(x, at, name)) return 0;
    at += strlen(name);
    while (at < x->n && is_space(x->p[at])) at++;
    *sign = at < x->n ? x->p[at] : 0;
    if (*sign == '-' || *sign == '+') at++;
    *end = at + 2;
    return looking_at(x, at, "%}");
}

/* {% raw %} ... {% endraw %}: the text between is the token. */
static void take_raw(struct jlex *x, size_t begin, char sign)
{
    size_t end;
    char end_sign;

    move_to(x, begin);
    after_tag(x, sign, 1);
    for (size_t i = begin; i + 1 < x->n; i++) {
        if (!looking_at(x, i, "{%") || !is_plain_tag(x, i, "endraw", &end, &end_sign)) continue;
        take_text(x, i);
        x->kind = JTOK_TEXT;
        move_to(x, end);
        after_tag(x, end_sign, 1);
        return;
    }
    bad(x, "raw does not end");
}

static void next_outside(struct jlex *x)
{
    for (;;) {
        size_t tag = find_tag(x), end;
        char sign;
        if (take_text(x, tag)) {
            x->kind = JTOK_TEXT;
            return;
        }
        if (tag == x->n) {
            x->kind = JTOK_END;
            return;
        }
        if (x->p[tag + 1] == '#') {
            skip_comment(x);
            if (x->kind == JTOK_BAD) return;
            continue;
        }
        if (x->p[tag + 1] == '%' && is_plain_tag(x, tag, "raw", &end, &sign)) {
            take_raw(x, end, sign);
            return;
        }
        x->kind = x->p[tag + 1] == '%' ? JTOK_BLOCK : JTOK_VAR;
        x->inside = x->p[tag + 1];
        x->open = 0;
        x->at = tag + 2;
        if (x->at < x->n && (x->p[x->at] == '-' || x->p[x->at] == '+')) x->at++;
        return;
    }
}

/* ---- strings ---- */

static int hex_digit(char c)
{
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* n hexadecimal digits at *at; -1 when they are not there. */
static int64_t read_hex(const struct jlex *x, size_t *at, int n)
{
    int64_t v = 0;

    if (x->n - *at < (size_t)n) return -1;
    for (int i = 0; i < n; i++) {
        int d = hex_digit(x->p[*at + (size_t)i]);
        if (d < 0) return -1;
        v = v * 16 + d;
    }
    *at += (size_t)n;
    return v;
}

/* An escape at *at, behind the backslash, written to out; returns the bytes written (at most 4). */
static size_t read_escape(struct jlex *x, size_t *at, char *out)
{
    static const char letters[] = "n\nt\tr\r\\\\'\'\"\"a\ab\bf\fv\v";
    char c = x->p[(*at)++];
    int64_t cp = -1;

    for (size_t i = 0; i + 1 < sizeof letters; i += 2)
        if (letters[i] == c) {
            out[0] = letters[i + 1];
            return 1;
        }
    if (c == '\n') return 0;
    if (c >= '0' && c <= '7') {
        cp = c - '0';
        for (int i = 0; i < 2 && *at < x->n && x->p[*at] >= '0' && x->p[*at] <= '7'; i++)
            cp = cp * 8 + (x->p[(*at)++] - '0');
    } else if (c == 'x' || c == 'u' || c == 'U') {
        cp = read_hex(x, at, c == 'x' ? 2 : c == 'u' ? 4 : 8);
        if (cp < 0 || cp > 0x10FFFF || (cp >= 0xD800 && cp < 0xE000)) {
            bad(x, "a string has an escape that is no character");
            return 0;
        }
    }
    if (cp >= 0) return (size_t)sr_utf8_encode((uint32_t)cp, out);
    out[0] = '\\';
    out[1] = c;
    return 2;
}

static void read_string(struct jlex *x)
{
    char quote = x->p[x->at];
    size_t end = x->at + 1, at = x->at + 1, n = 0;
    char *out;

    while (end < x->n && x->p[end] != quote) end += x->p[end] == '\\' ? 2 : 1;
    if (end >= x->n) {
        bad(x, "a string does not end");
        return;
    }
    out = sr_jinja_take(x->r, end - at + 4);
    x->kind = out ? JTOK_STRING : JTOK_BAD;
    while (at < end && x->kind != JTOK_BAD) {
        char c = x->p[at++];
        if (c == '\\')
            n += read_escape(x, &at, out + n);
        else
            out[n++] = c;
    }
    x->s = (struct jstr){out, n, NULL};
    if (x->kind != JTOK_BAD) move_to(x, end + 1);
}

/* ---- inside tags ---- */

static void read_number(struct jlex *x)
{
    char digits[64];
    size_t n = 0, at = x->at;
    int real = 0;
    char *end;

    for (; at < x->n && n + 1 < sizeof digits; at++) {
        char c = x->p[at];
        if (c == '_') continue;
        if (c == '.' && (real || at + 1 == x->n || !is_digit(x->p[at + 1]))) break;
        int sign = (c == '+' || c == '-') && n > 0 && (digits[n - 1] == 'e' || digits[n - 1] == 'E');
        if (!is_digit(c) && c != '.' && c != 'e' && c != 'E' && !sign) break;
        real |= c == '.' || c == 'e' || c == 'E';
        digits[n++] = c;
    }
    digits[n] = 0;
    errno = 0;
    x->kind = real ? JTOK_FLOAT : JTOK_INT;
    if (real)
        x->f = strtod(digits, &end);
    else
        x->i = strtoll(digits, &end, 10);
    if (*end || (errno == ERANGE && !real) || n + 1 == sizeof digits)
        bad(x, "a number cannot be read");
    else
        x->at = at;
}

/* Whether the tag closes here; moves past it. A bracket that is open takes the characters for itself. */
static int tag_closes(struct jlex *x)
{
    size_t sign = x->at < x->n && (x->p[x->at] == '-' || x->p[x->at] == '+') ? 1 : 0;
    char close = x->inside == '%' ? '%' : '}';

    if (x->open > 0 || x->n - x->at < sign + 2) return 0;
    if (x->p[x->at + sign] != close || x->p[x->at + sign + 1] != '}') return 0;
    x->kind = close == '%' ? JTOK_BLOCK_END : JTOK_VAR_END;
    after_tag(x, sign ? x->p[x->at] : 0, close == '%');
    x->at += sign + 2;
    x->inside = 0;
    return 1;
}

static void read_mark(struct jlex *x)
{
    static const char two[][3] = {"==", "!=", "<=", ">=", "//", "**"};
    size_t n = 1;
    char c = x->p[x->at];

    for (size_t i = 0; i < sizeof two / sizeof two[0]; i++)
        if (looking_at(x, x->at, two[i])) n = 2;
    if (n == 1 && !strchr("+-*/%~<>=.,:|()[]{}", c)) {
        bad(x, "a character in a tag cannot be read");
        return;
    }
    x->open += c == '(' || c == '[' || c == '{';
    x->open -= c == ')' || c == ']' || c == '}';
    x->kind = JTOK_MARK;
    x->s = (struct jstr){x->p + x->at, n, NULL};
    x->at += n;
}

static void next_inside(struct jlex *x)
{
    size_t begin;

    while (x->at < x->n && is_space(x->p[x->at])) move_to(x, x->at + 1);
    if (x->at == x->n) {
        bad(x, "a tag does not end");
    } else if (tag_closes(x)) {
        return;
    } else if (x->p[x->at] == '\'' || x->p[x->at] == '"') {
        read_string(x);
    } else if (is_digit(x->p[x->at])) {
        read_number(x);
    } else if (is_name_start(x->p[x->at])) {
        for (begin = x->at; x->at < x->n && (is_name_start(x->p[x->at]) || is_digit(x->p[x->at])); x->at++) {}
        x->kind = JTOK_NAME;
        x->s = (struct jstr){x->p + begin, x->at - begin, NULL};
    } else {
        read_mark(x);
    }
}

void sr_jinja_lex_next(struct jlex *x)
{
    if (x->kind == JTOK_BAD || !sr_jinja_step(x->r, 1)) {
        x->kind = JTOK_BAD;
        return;
    }
    if (x->inside)
        next_inside(x);
    else
        next_outside(x);
}

void sr_jinja_lex_begin(struct jlex *x, struct jrun *r, const char *text, size_t bytes)
{
    char *copy = sr_jinja_take(r, bytes + 1);

    *x = (struct jlex){.r = r, .p = copy, .line = 1, .kind = copy ? JTOK_END : JTOK_BAD};
    for (size_t i = 0; copy && i < bytes; i++) {
        if (text[i] == '\r' && i + 1 < bytes && text[i + 1] == '\n') continue;
        copy[x->n++] = text[i] == '\r' ? '\n' : text[i];
    }
    sr_jinja_lex_next(x);
}

int sr_jinja_lex_is(const struct jlex *x, enum jtoken kind, const char *s)
{
    return x->kind == kind && x->s.n == strlen(s) && memcmp(x->s.p, s, x->s.n) == 0;
}
