/* SPDX-License-Identifier: Apache-2.0
 *
 * The text and tokens of a prompt: document, question, system message, from the flags.
 */
#ifndef SR_APP_PROMPT_H
#define SR_APP_PROMPT_H

#include "talk.h"

/* The document of -f (cut to --file-tokens) and the text of -p, in that order; empty if neither is given. */
sr_status sr_prompt_text(struct text *out, const struct talk *t, sr_error *err);
/* -sys or -sysf; empty without. */
sr_status sr_prompt_system(struct text *out, const struct options *o, sr_error *err);
/* Prints ids on standard error (--verbose-prompt). */
void sr_prompt_show_ids(const struct talk *t, const int32_t *ids, int32_t n);

#endif
