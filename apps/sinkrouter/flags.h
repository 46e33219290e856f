/* SPDX-License-Identifier: Apache-2.0
 *
 * One table of flags for all commands (flags_table.c), one parser (flags.c), help made from the same table
 * (flags_help.c). A row says which commands have the flag, what values it takes and where they go. Wrong
 * usage is one line that begins with the flag's name, SR_ERR_USAGE.
 */
#ifndef SR_APP_FLAGS_H
#define SR_APP_FLAGS_H

#include "options.h"

enum flag_kind {
    FLAG_SET,    /* int = min */
    FLAG_INT,    /* int64_t in min..max */
    FLAG_REAL,   /* double in min..max */
    FLAG_TEXT,   /* const char *, not empty */
    FLAG_TEXTS,  /* text_list, one more each time, not split */
    FLAG_INTS,   /* int_list: 1,2  1-9  1-9+2  1-64*2; at most `most` values (0: LIST_MAX) */
    FLAG_REALS,  /* real_list: comma list */
    FLAG_NAMES,  /* text_list: comma list of the names in `names_of` */
    FLAG_PAIRS,  /* pair_list: a,b once per flag */
    FLAG_CHOICE, /* enum on_off: on, off */
    FLAG_SWITCH, /* enum on_off: on, off, auto, or bare */
    FLAG_NAME,   /* const char *: one of the names in `names_of` */
    FLAG_LAYERS, /* int64_t: a number of layers; all and auto are -1 */
    FLAG_IDLE,   /* accepted without effect, said once; takes no value */
    FLAG_IDLE_1, /* the same with a value */
    FLAG_NO      /* refused by name; help says why */
};

struct flag {
    const char *names; /* "-t --threads" */
    const char *value; /* how the value is called in help; NULL: none */
    enum flag_kind kind;
    int commands;
    size_t at;
    double min, max;
    int most;
    const char *names_of; /* "md csv json" */
    const char *help;     /* NULL: not shown */
};

/* Rows end with names == NULL; a row whose kind is FLAG_SET and names "" is a heading. */
extern const struct flag sr_flag_table[];

void sr_options_default(struct options *o, enum command command);
/* argv[0..argc) are the arguments after the command. */
sr_status sr_flags_parse(struct options *o, int argc, char **argv, sr_error *err);
void sr_flags_note_idle(const struct options *o); /* once standard error's lines are open */

/* Command names. */
const char *sr_command_name(enum command command);
int sr_command_find(enum command *out, const char *name);
/* Nearest known word of a space-separated list, or NULL when none is near; copied to out. */
const char *sr_nearest(char *out, size_t out_bytes, const char *word, const char *list);

void sr_flags_help(enum command command);
void sr_help(void);

#endif
