/* SPDX-License-Identifier: Apache-2.0
 *
 * What run and chat share: a model with a session and a sampler, and one answer at a time from a list of
 * tokens. Answers go to standard output as they come.
 */
#ifndef SR_APP_TALK_H
#define SR_APP_TALK_H

#include "options.h"
#include "stream.h"

enum stop_reason {
    STOP_END,    /* an end token, or a stop text */
    STOP_LIMIT,  /* -n */
    STOP_FULL,   /* the context */
    STOP_SIGNAL, /* Ctrl-C, SIGTERM */
    STOP_OUTPUT  /* standard output failed */
};
const char *sr_stop_name(enum stop_reason reason);

/* One answer: counts and times of it alone. */
struct answer {
    int32_t prompt_tokens, reused, prefilled, generated;
    enum stop_reason stop;
    sr_session_stats stats;
    int thinks; /* thinking was followed: the counts are of this answer */
    sr_thinking_counts thinking;
    struct text reasoning; /* owned */
};
void sr_answer_free(struct answer *a);

struct talk {
    const struct options *o;
    sr_model *model;
    sr_model_info info;
    sr_session *session;
    sr_sampler *sampler[2]; /* for answers without and with thinking */
    sr_thinks thinks;
    sr_thinking *thinking;  /* NULL: the model does not think, or its thinking is left in the text */
    struct stream thoughts;
    int thoughts_shown, thoughts_open;
    sr_route_options route;
    uint64_t seed;
    int told_seed;
    int use_template; /* apply the chat template */
    sr_chat_options chat;
    struct text template_text; /* of --chat-template-file */
    struct stream out;
    const char **stop_list; /* -r, NULL-terminated; texts in stop_texts */
    struct text stop_texts[LIST_MAX];
    float *logits; /* copy without end tokens, for --ignore-eos */
    int restored;  /* the session came from a file */
    int is_ahead;  /* the session holds more than its file */
    int color;
    int batch_threads, decode_threads; /* 0: all the model has */
};

/* Opens all of it; says what happened on standard error. */
sr_status sr_talk_open(struct talk *t, const struct options *o, sr_error *err);
/* Answers ids[0..n): keeps what the session has of it, prefills the rest, decodes. with_thinking: see sr_talk_mode. */
sr_status sr_talk_answer(struct talk *t, const int32_t *ids, int32_t n, int with_thinking, struct answer *a, sr_error *err);
/* Whether the answer to these messages will begin with thinking, as far as one can tell. */
int sr_talk_mode(const struct talk *t, const sr_message *msgs, int32_t n_msgs);
/* --session: nothing without it. */
sr_status sr_talk_save(struct talk *t, sr_error *err);
/* The same where an answer failed, if there is something new: every step happened or left the session as it was. */
void sr_talk_rescue(struct talk *t);
void sr_talk_close(struct talk *t);

#endif
