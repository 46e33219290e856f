/* SPDX-License-Identifier: Apache-2.0
 *
 * Chat templates as programs: the subset of Jinja that they use, with the settings that transformers runs
 * them with (trim_blocks, lstrip_blocks, break and continue; tojson without HTML escapes; raise_exception;
 * strftime_now). docs/chat-templates.md says what is in it. A program is parsed once and run any number of
 * times, from any number of threads; a run works in memory of its own.
 *
 * Bounds: a program has at most JINJA_MAX_PROGRAM bytes; a run has limits on steps, nested evaluations,
 * memory and output, and what goes beyond one is SR_ERR_FORMAT naming the limit. A name that is not known is
 * SR_ERR_UNSUPPORTED, when the program is read for filters, tests and statements. A conversation that the
 * program refuses, or cannot work with, is SR_ERR_USAGE.
 */
#ifndef SR_TEXT_JINJA_H
#define SR_TEXT_JINJA_H

#include "text/jinja_text.h"

#define JINJA_MAX_PROGRAM ((size_t)1 << 20)

struct jinja;
sr_status sr_jinja_open(struct jinja **out, const char *text, size_t bytes, sr_error *err);
void sr_jinja_close(struct jinja *j);
/* Whether the program names this variable or attribute anywhere. */
int sr_jinja_mentions(const struct jinja *j, const char *name);
/* Whether one of its texts contains s. */
int sr_jinja_writes(const struct jinja *j, const char *s);

/* A run: begin, set variables, run, read the text, sr_jinja_run_free (also after a failure of begin).
 * input_bytes: size of what will be set, from which the limits of memory and output follow. */
sr_status sr_jinja_begin(struct jrun *r, size_t input_bytes, sr_error *err);
void sr_jinja_set(struct jrun *r, const char *name, struct jval v); /* name is kept */
/* SR_OK and the text in *out, or the failure of any step since begin. */
sr_status sr_jinja_run(struct jrun *r, const struct jinja *j, struct jval *out);

#endif
