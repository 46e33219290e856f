/* SPDX-License-Identifier: Apache-2.0
 *
 * Strings of the template interpreter: building, slicing, searching, all of it keeping the origin of each
 * byte. Results of slicing and stripping share the bytes of what they were cut from.
 */
#ifndef SR_TEXT_JINJA_TEXT_H
#define SR_TEXT_JINJA_TEXT_H

#include "text/jinja_value.h"

/* A string that grows, in the run's memory; {0} to begin with. */
struct jbuf {
    char *p;
    uint8_t *from;
    size_t n, cap;
};
void sr_jinja_add(struct jrun *r, struct jbuf *b, const struct jval *string);
void sr_jinja_add_bytes(struct jrun *r, struct jbuf *b, const char *p, size_t n, int user);
void sr_jinja_add_text(struct jrun *r, struct jbuf *b, const char *s); /* the template's */
struct jval sr_jinja_built(struct jrun *r, struct jbuf *b);

struct jval sr_jinja_concat(struct jrun *r, const struct jval *a, const struct jval *b);
struct jval sr_jinja_part(const struct jval *s, size_t begin, size_t end); /* bytes */
/* Byte offset of `what` in s from `at` on, or SIZE_MAX. */
size_t sr_jinja_search(struct jrun *r, const struct jval *s, size_t at, const struct jval *what);
enum { JINJA_STRIP_LEFT = 1, JINJA_STRIP_RIGHT = 2 };
/* chars NULL: white space as Python has it. */
struct jval sr_jinja_strip(struct jrun *r, const struct jval *s, const struct jval *chars, int sides);
struct jval sr_jinja_replace(struct jrun *r, const struct jval *s, const struct jval *old,
                             const struct jval *fresh, int64_t most);
/* Pieces between sep, or between runs of white space (NULL); at most `most` cuts (< 0: all), from the right
 * if asked. */
struct jval sr_jinja_split(struct jrun *r, const struct jval *s, const struct jval *sep, int64_t most,
                           int from_right);
enum jinja_case { JINJA_UPPER, JINJA_LOWER, JINJA_CAPITAL, JINJA_TITLE };
struct jval sr_jinja_case(struct jrun *r, const struct jval *s, enum jinja_case c);

/* [begin:end:step] of a list or string; NULL where left out. */
struct jval sr_jinja_slice(struct jrun *r, const struct jval *v, const int64_t *begin, const int64_t *end,
                           int64_t step);

/* Python's str() and json.dumps(ensure_ascii=False). indent < 0: on one line. */
struct jval sr_jinja_str(struct jrun *r, const struct jval *v);
struct jdump {
    int64_t indent;
    int sort_keys;
    struct jval item_separator, key_separator;
};
struct jval sr_jinja_dump(struct jrun *r, const struct jval *v, const struct jdump *how);
/* A value from JSON text, all of its strings a user's. SR_ERR_USAGE names `what` and where the text is wrong.
 */
struct jval sr_jinja_load(struct jrun *r, const char *what, const char *json, size_t bytes);

#endif
