/* SPDX-License-Identifier: Apache-2.0
 *
 * White space outside of tags follows the settings that chat templates are published for: trim_blocks and
 * lstrip_blocks on, one newline at the very end dropped.
 */
#include "text/chat_program.h"

#include <string.h>

#include "base/memory.h"

struct reader {
    const char *s;
    size_t n, at;
    struct chat_program *p;
    int strip_next;   /* the last tag closed with '-' */
    int newline_next; /* the last tag was a block or comment: one newline after it is dropped */
};

static int is_space(char c)
{
    return c == ' ' || (c >= 9 && c <= 13);
}
static int is_name_start(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
static int is_name(char c)
{
    return is_name_start(c) || (c >= '0' && c <= '9');
}

/* ---- canonical text ---- */

static struct program_token *token_back(struct chat_program *p, int32_t i)
{
    return i <= p->n_tokens ? &p->token[p->n_tokens - i] : NULL;
}

static int is_mark(const struct chat_program *p, const struct program_token *t, char c)
{
    return t && t->kind == PROGRAM_MARK && t->bytes == 1 && p->canon[t->at] == c;
}

static void put(struct chat_program *p, enum program_kind kind, const char *s, size_t n)
{
    const struct program_token *last = token_back(p, 1);

    if (kind == PROGRAM_NAME && last && last->kind == PROGRAM_NAME) p->canon[p->n++] = ' ';
    if (kind == PROGRAM_TEXT) p->canon[p->n++] = '"';
    p->token[p->n_tokens++] = (struct program_token){kind, (uint32_t)p->n, (uint32_t)n};
    memcpy(p->canon + p->n, s, n);
    p->n += n;
    if (kind == PROGRAM_TEXT) p->canon[p->n++] = '"';
}

/* "a" + "b" becomes "ab": the token before the plus takes the new text in. */
static int join_text(struct chat_program *p, const char *s, size_t n)
{
    struct program_token *plus = token_back(p, 1), *left = token_back(p, 2);

    if (!is_mark(p, plus, '+') || !left || left->kind != PROGRAM_TEXT) return 0;
    p->n = left->at + left->bytes;
    memmove(p->canon + p->n, s, n);
    left->bytes += (uint32_t)n;
    p->n += n;
    p->canon[p->n++] = '"';
    p->n_tokens--;
    return 1;
}

/* x["y"] becomes x.y when the closing bracket arrives. */
static int close_subscript(struct chat_program *p)
{
    struct program_token *text = token_back(p, 1), *bracket = token_back(p, 2), *before = token_back(p, 3);
    size_t n;

    if (!text || text->kind != PROGRAM_TEXT || text->bytes == 0 || !is_mark(p, bracket, '[') || !before)
        return 0;
    if (before->kind != PROGRAM_NAME && !is_mark(p, before, ']')) return 0;
    n = text->bytes;
    for (size_t i = 0; i < n; i++)
        if (!is_name(p->canon[text->at + i])) return 0;
    p->canon[bracket->at] = '.';
    memmove(p->canon + bracket->at + 1, p->canon + text->at, n);
    *text = (struct program_token){PROGRAM_NAME, bracket->at + 1, (uint32_t)n};
    p->n = text->at + n;
    return 1;
}

/* ---- inside tags ---- */

static char escaped(char c)
{
    switch (c) {
    case 'n': return '\n';
    case 't': return '\t';
    case 'r': return '\r';
    default: return c;
    }
}

/* A string literal at r->at. It is decoded into the end of canon's buffer, which has room for the whole
 * program. */
static int read_string(struct reader *r, char *decoded)
{
    char quote = r->s[r->at++];
    size_t n = 0;

    while (r->at < r->n && r->s[r->at] != quote) {
        char c = r->s[r->at++];
        if (c == '\\' && r->at < r->n) c = escaped(r->s[r->at++]);
        decoded[n++] = c;
    }
    if (r->at == r->n) return 0;
    r->at++;
    if (!join_text(r->p, decoded, n)) put(r->p, PROGRAM_TEXT, decoded, n);
    return 1;
}

static void read_name(struct reader *r)
{
    size_t begin = r->at;

    while (r->at < r->n && is_name(r->s[r->at])) r->at++;
    put(r->p, PROGRAM_NAME, r->s + begin, r->at - begin);
}

/* Whether the tag closes at r->at; moves past it. */
static int tag_closes(struct reader *r, char first)
{
    size_t dash = r->at < r->n && (r->s[r->at] == '-' || r->s[r->at] == '+') ? 1 : 0;

    if (r->n - r->at < dash + 2 || r->s[r->at + dash] != first || r->s[r->at + dash + 1] != '}') return 0;
    r->strip_next = dash && r->s[r->at] == '-';
    r->newline_next = first == '%';
    put(r->p, PROGRAM_MARK, r->s + r->at + dash, 2);
    r->at += dash + 2;
    return 1;
}

/* A {{ }} or {% %} tag; r->at is after the opening. */
static int read_tag(struct reader *r, char open, char *decoded)
{
    char close = open == '{' ? '}' : '%';

    while (r->at < r->n) {
        char c = r->s[r->at];
        if (is_space(c)) {
            r->at++;
        } else if (tag_closes(r, close)) {
            return 1;
        } else if (c == '\'' || c == '"') {
            if (!read_string(r, decoded)) return 0;
        } else if (is_name_start(c)) {
            read_name(r);
        } else {
            r->at++;
            if (c != ']' || !close_subscript(r->p)) put(r->p, PROGRAM_MARK, &c, 1);
        }
    }
    return 0;
}

/* ---- outside of tags ---- */

/* Position of the next "{{", "{%" or "{#", or the end. */
static size_t find_tag(const struct reader *r)
{
    for (size_t i = r->at; i + 1 < r->n; i++)
        if (r->s[i] == '{' && (r->s[i + 1] == '{' || r->s[i + 1] == '%' || r->s[i + 1] == '#')) return i;
    return r->n;
}

/* Text in [r->at, end) with what white-space control removes taken off. */
static void read_outside(struct reader *r, size_t end)
{
    size_t begin = r->at;
    int dash = end + 2 < r->n && r->s[end + 2] == '-';

    if (r->strip_next) {
        while (begin < end && is_space(r->s[begin])) begin++;
    } else if (r->newline_next && begin < end && r->s[begin] == '\n') {
        begin++;
    }
    if (end == r->n) {
        if (begin < end && r->s[end - 1] == '\n') end--;
    } else if (dash) {
        while (begin < end && is_space(r->s[end - 1])) end--;
    } else if (r->s[end + 1] != '{') { /* lstrip_blocks: a block alone on its line so far */
        size_t line = end;
        while (line > begin && (r->s[line - 1] == ' ' || r->s[line - 1] == '\t')) line--;
        if (line == 0 || r->s[line - 1] == '\n') end = line;
    }
    if (begin < end) put(r->p, PROGRAM_TEXT, r->s + begin, end - begin);
}

static int skip_comment(struct reader *r)
{
    const char *close = r->at < r->n ? memmem(r->s + r->at, r->n - r->at, "#}", 2) : NULL;

    if (!close) return 0;
    r->strip_next = close[-1] == '-';
    r->newline_next = 1;
    r->at = (size_t)(close - r->s) + 2;
    return 1;
}

static int read_program(struct reader *r, char *decoded)
{
    for (;;) {
        size_t tag = find_tag(r);
        char open;
        read_outside(r, tag);
        if (tag == r->n) return 1;
        open = r->s[tag + 1];
        r->at = tag + 2;
        if (open == '#') {
            if (!skip_comment(r)) return 0;
            continue;
        }
        put(r->p, PROGRAM_MARK, r->s + tag, 2);
        if (r->at < r->n && (r->s[r->at] == '-' || r->s[r->at] == '+')) r->at++;
        if (!read_tag(r, open, decoded)) return 0;
    }
}

sr_status sr_chat_program_read(struct chat_program *p, const char *text, size_t bytes, sr_error *err)
{
    struct reader r = {.s = text, .n = bytes, .p = p};
    size_t room =
        2 * bytes + 16; /* quotes or a separating space for each token, which is one character at least */
    char *decoded;
    int ok;

    *p = (struct chat_program){0};
    if (bytes > SR_CHAT_PROGRAM_MAX_BYTES)
        return sr_fail(err, SR_ERR_FORMAT, "chat template: %zu bytes, at most %zu", bytes,
                       SR_CHAT_PROGRAM_MAX_BYTES);
    p->canon = sr_alloc(room);
    p->token = sr_alloc((bytes + 1) * sizeof *p->token);
    decoded = sr_alloc(bytes + 1);
    if (!p->canon || !p->token || !decoded) {
        sr_free(decoded);
        sr_chat_program_free(p);
        return sr_fail_memory(err, room, "chat template");
    }
    ok = read_program(&r, decoded);
    sr_free(decoded);
    if (ok) return SR_OK;
    sr_chat_program_free(p);
    return sr_fail(err, SR_ERR_FORMAT, "chat template: a tag or string near offset %zu does not end", r.at);
}

void sr_chat_program_free(struct chat_program *p)
{
    sr_free(p->canon);
    sr_free(p->token);
    *p = (struct chat_program){0};
}

int sr_chat_program_has(const struct chat_program *p, const char *s)
{
    return p->n > 0 && memmem(p->canon, p->n, s, strlen(s)) != NULL;
}
