/* SPDX-License-Identifier: Apache-2.0
 *
 * Words of a Jinja program, one at a time. White space outside of tags follows the settings that chat
 * templates are published for: trim_blocks and lstrip_blocks on, one newline at the very end dropped.
 */
#ifndef SR_TEXT_JINJA_LEX_H
#define SR_TEXT_JINJA_LEX_H

#include "text/jinja_value.h"

enum jtoken {
    JTOK_END,
    JTOK_TEXT,      /* outside of tags; s */
    JTOK_BLOCK,     /* {% */
    JTOK_BLOCK_END, /* %} */
    JTOK_VAR,       /* {{ */
    JTOK_VAR_END,   /* }} */
    JTOK_NAME,      /* s */
    JTOK_STRING,    /* s, decoded */
    JTOK_INT,       /* i */
    JTOK_FLOAT,     /* f */
    JTOK_MARK,      /* s: an operator or bracket of one or two characters */
    JTOK_BAD        /* the run has failed */
};

struct jlex {
    struct jrun *r; /* memory and the place for failures */
    const char *p;  /* newlines are '\n' only */
    size_t n, at;
    int32_t line;
    int inside;         /* 0 outside of tags, else '%' or '{' */
    int open;           /* brackets open inside the tag */
    int strip, newline; /* what the last tag takes from the text after it: all white space, or one newline */
    enum jtoken kind;   /* the current token */
    struct jstr s;
    int64_t i;
    double f;
};

/* Copies text into the run's memory and reads the first token. */
void sr_jinja_lex_begin(struct jlex *x, struct jrun *r, const char *text, size_t bytes);
void sr_jinja_lex_next(struct jlex *x);
/* Whether the current token is this mark or name. */
int sr_jinja_lex_is(const struct jlex *x, enum jtoken kind, const char *s);

#endif
