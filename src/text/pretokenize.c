/* SPDX-License-Identifier: Apache-2.0
 *
 * Matchers for the pre-tokenization rules. Each tries the alternatives of its rule in order at one position
 * and consumes what it scanned, up to one character, so that the whole text costs a constant number of visits
 * per byte.
 */
#include "text/pretokenize.h"

#include <string.h>
#include <utf8proc.h>

#include "text/utf8.h"

/* clang-format off */
static const struct pretokenizer table[] = {
    /* name              rule        digits apart bos whole */
    {"gpt-2",            PRE_GPT2,   0,     0,    0,  0},
    {"mpt",              PRE_GPT2,   0,     0,    0,  0},
    {"smollm",           PRE_GPT2,   0,     1,    0,  0},
    {"starcoder",        PRE_GPT2,   0,     1,    0,  0},
    {"refact",           PRE_GPT2,   0,     1,    0,  0},
    {"llama-bpe",        PRE_LLAMA3, 3,     0,    1,  1},
    {"llama3",           PRE_LLAMA3, 3,     0,    1,  1},
    {"llama-v3",         PRE_LLAMA3, 3,     0,    1,  1},
    {"qwen2",            PRE_LLAMA3, 1,     0,    0,  0},
    {"deepseek-r1-qwen", PRE_LLAMA3, 1,     0,    0,  0},
};
/* clang-format on */

const struct pretokenizer *sr_pretokenizer_find(const char *name, size_t bytes)
{
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (strlen(table[i].name) == bytes && memcmp(table[i].name, name, bytes) == 0) return &table[i];
    return NULL;
}

const char *sr_pretokenizer_names(void)
{
    return "gpt-2, mpt, smollm, starcoder, refact, llama-bpe, llama3, llama-v3, qwen2, deepseek-r1-qwen";
}

/* ---- character classes ---- */

enum char_class { CLASS_END, CLASS_LETTER, CLASS_NUMBER, CLASS_SPACE, CLASS_OTHER };

static int is_white_space(uint32_t c) /* Unicode White_Space above ASCII */
{
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

static enum char_class class_of(uint32_t c)
{
    if (c < 0x80) {
        uint32_t lower = c | 0x20;
        if (lower >= 'a' && lower <= 'z') return CLASS_LETTER;
        if (c >= '0' && c <= '9') return CLASS_NUMBER;
        return c == ' ' || (c >= 9 && c <= 13) ? CLASS_SPACE : CLASS_OTHER;
    }
    if (is_white_space(c)) return CLASS_SPACE;
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: return CLASS_LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return CLASS_NUMBER;
    default: return CLASS_OTHER;
    }
}

struct span {
    const uint8_t *s;
    size_t n;
};

/* Class of the character at `at`, which may be the end; *next is the position after it. */
static enum char_class class_at(struct span t, size_t at, size_t *next)
{
    uint32_t cp;
    int valid;

    *next = at;
    if (at >= t.n) return CLASS_END;
    *next = at + (size_t)sr_utf8_decode(t.s + at, t.n - at, &cp, &valid);
    return valid ? class_of(cp) : CLASS_OTHER;
}

/* End of the run of `c` that begins at `at`, at most `most` characters long. */
static size_t run_end(struct span t, size_t at, enum char_class c, size_t most)
{
    size_t next;

    while (most-- > 0 && class_at(t, at, &next) == c) at = next;
    return at;
}

static int is_newline(struct span t, size_t at)
{
    return at < t.n && (t.s[at] == '\r' || t.s[at] == '\n');
}

/* ---- alternatives shared by the rules ---- */

/* End of 's 't 're 've 'm 'll 'd at `at`, or `at`. */
static size_t contraction(struct span t, size_t at, int any_case)
{
    static const char *const tails[] = {"s", "t", "re", "ve", "m", "ll", "d"};

    if (at >= t.n || t.s[at] != '\'') return at;
    for (size_t i = 0; i < sizeof tails / sizeof tails[0]; i++) {
        size_t bytes = strlen(tails[i]), k = 0;
        if (t.n - at - 1 < bytes) continue;
        while (k < bytes) {
            uint8_t b = t.s[at + 1 + k];
            if (any_case && b >= 'A' && b <= 'Z') b |= 0x20;
            if (b != (uint8_t)tails[i][k]) break;
            k++;
        }
        if (k == bytes) return at + 1 + bytes;
    }
    return at;
}

/* White space at `at`: \s+(?!\S)|\s+ : all of the run at the end of the text, else all but its last
 * character, which belongs to the next word, unless it is the only one. With digits_apart a number ends the
 * text. */
static size_t spaces(struct span t, size_t at, int digits_apart)
{
    size_t next, last = at, p = at;
    enum char_class c;

    while ((c = class_at(t, p, &next)) == CLASS_SPACE) {
        last = p;
        p = next;
    }
    return c == CLASS_END || (digits_apart && c == CLASS_NUMBER) || last == at ? p : last;
}

/* \s*[\r\n]+ : through the last newline of the run of white space at `at`, or `at` if it has none. */
static size_t spaces_with_newline(struct span t, size_t at)
{
    size_t next, p = at, end = at;

    while (class_at(t, p, &next) == CLASS_SPACE) {
        if (is_newline(t, p)) end = next;
        p = next;
    }
    return end;
}

/* ---- rules ---- */

/* With digits_apart every number character is a fragment of its own, and the rule sees one fragment at a
 * time: a number is a word, no word runs into one, and the look-ahead of white space ends before one. */
static size_t word_gpt2(struct span t, size_t at, int digits_apart)
{
    size_t next, begin, end = contraction(t, at, 0);
    enum char_class c;

    if (end > at) return end;
    begin = t.s[at] == ' ' ? at + 1 : at;
    c = class_at(t, begin, &next);
    if (c == CLASS_NUMBER && digits_apart) return begin > at ? begin : next;
    if (c != CLASS_END && c != CLASS_SPACE) return run_end(t, begin, c, SIZE_MAX);
    return spaces(t, at, digits_apart);
}

static size_t word_llama3(struct span t, size_t at, size_t digits)
{
    size_t next, after, begin, end = contraction(t, at, 1);
    enum char_class c;

    if (end > at) return end;
    c = class_at(t, at, &next);
    if (c == CLASS_LETTER) return run_end(t, at, CLASS_LETTER, SIZE_MAX);
    if (c == CLASS_NUMBER) return run_end(t, at, CLASS_NUMBER, digits);
    if (!is_newline(t, at) && class_at(t, next, &after) == CLASS_LETTER)
        return run_end(t, next, CLASS_LETTER, SIZE_MAX);
    begin = t.s[at] == ' ' ? at + 1 : at;
    end = run_end(t, begin, CLASS_OTHER, SIZE_MAX);
    if (end > begin) {
        while (is_newline(t, end)) end++;
        return end;
    }
    end = spaces_with_newline(t, at);
    return end > at ? end : spaces(t, at, 0);
}

size_t sr_pretokenizer_word(const struct pretokenizer *p, const uint8_t *s, size_t n, size_t at)
{
    struct span t = {s, n};

    if (p->rule == PRE_LLAMA3) return word_llama3(t, at, (size_t)p->digits);
    return word_gpt2(t, at, p->digits_apart);
}
