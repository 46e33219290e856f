/* SPDX-License-Identifier: Apache-2.0
 *
 * An answer on its way to standard output: whole UTF-8 characters only, nothing of a stop text, unbuffered. A
 * copy is kept for the conversation. A write that fails is remembered; later ones do nothing.
 */
#ifndef SR_APP_STREAM_H
#define SR_APP_STREAM_H

#include "sinkrouter/engine.h"
#include "text_source.h"

struct stream {
    int fd;                      /* -1: nothing is written, only kept */
    int error;                   /* errno of the write that failed, or 0 */
    int is_stopped;              /* a stop text has come */
    int skips_newlines;          /* those before the first other character are dropped; set by the caller */
    const char *before;          /* written before the first character; set by the caller */
    int drops_newlines;          /* those at the end too */
    const char *const *stops[2]; /* two NULL-terminated lists, borrowed; either may be NULL */
    struct text kept;            /* all that was written */
    sr_utf8_hold hold;
    char *held; /* characters that may be the beginning of a stop text */
    size_t n_held, held_room;
};

/* stop lists are borrowed. */
void sr_stream_init(struct stream *s, int fd, const char *const *stops, const char *const *more_stops);
void sr_stream_fini(struct stream *s);
/* Begins the next answer. */
void sr_stream_restart(struct stream *s);
sr_status sr_stream_push(struct stream *s, const char *bytes, size_t n, sr_error *err);
/* Writes what was held back, unless a stop text has come. */
sr_status sr_stream_finish(struct stream *s, sr_error *err);
/* Text of ours around the answer: written, not kept. */
void sr_stream_raw(struct stream *s, const char *text);

#endif
