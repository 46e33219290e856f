/* SPDX-License-Identifier: Apache-2.0
 *
 * --help: the table as text, at most 80 columns.
 */
#include "flags.h"

#include <stdio.h>
#include <string.h>

enum { COLUMNS = 79, HELP_AT = 30 };

static const struct {
    enum command command;
    const char *what, *usage;
} about[] = {
    {CMD_RUN, "answer one prompt, or a question about a document",
     "-m MODEL -p TEXT | -f FILE [-p QUESTION]"},
    {CMD_CHAT, "talk; only the new tokens of a turn are prefilled", "-m MODEL [-sys TEXT]"},
    {CMD_BENCH, "tokens per second and bytes read, by depth and mode",
     "-m MODEL [-p N] [-n N] [-d N,..] [--route MODE,..]"},
    {CMD_PERPLEXITY, "what routing costs: KL and perplexity against dense",
     "-m MODEL -f TEXT [-c N] [-n N] [--modes MODE,..]"},
    {CMD_CALIBRATE, "write MODEL.moments, which the mass router uses",
     "-m MODEL [-f TEXT] [-o FILE] [--paper]"},
    {CMD_INSPECT, "metadata, tensors, memory need of a model file", "-m MODEL [--tensors] | --make-random NAME -o FILE"},
};
enum { N_ABOUT = sizeof about / sizeof about[0] };

static void wrapped(const char *text, int at)
{
    int column = at;
    while (*text) {
        text += strspn(text, " ");
        int n = (int)strcspn(text, " ");
        if (column > at && column + 1 + n > COLUMNS) {
            printf("\n%*s", at, "");
            column = at;
        }
        column += printf("%s%.*s", column > at ? " " : "", n, text);
        text += n;
    }
    putchar('\n');
}

static void row(const struct flag *f)
{
    char left[96];
    size_t n = 0;
    for (const char *s = f->names; *s && n + 2 < sizeof left; s++) {
        if (*s == ' ') left[n++] = ',';
        left[n++] = *s;
    }
    left[n] = '\0';
    int column = printf("  %s%s%s", left, f->value ? " " : "", f->value ? f->value : "");
    if (column > HELP_AT - 2) {
        putchar('\n');
        column = 0;
    }
    printf("%*s", HELP_AT - column, "");
    wrapped(f->help, HELP_AT);
}

static int is_shown(const struct flag *f, enum command command)
{
    return f->help && (f->commands & (int)command) && f->kind < FLAG_IDLE;
}

static int is_heading(const struct flag *f)
{
    return f->names && !*f->names;
}

void sr_flags_help(enum command command)
{
    for (int i = 0; i < N_ABOUT; i++)
        if (about[i].command == command)
            printf("sinkrouter %s: %s\n\nusage: sinkrouter %s %s\n", sr_command_name(command), about[i].what,
                   sr_command_name(command), about[i].usage);
    const struct flag *heading = NULL;
    for (const struct flag *f = sr_flag_table; f->names; f++) {
        if (is_heading(f)) {
            heading = f;
        } else if (is_shown(f, command)) {
            if (heading) printf("\n%s\n", heading->help);
            heading = NULL;
            row(f);
        }
    }
    puts("\nOther flags of llama.cpp are accepted without effect or refused, by name.");
}

void sr_help(void)
{
    printf("sinkrouter %s: language models over long contexts, reading only the part of\n"
           "the KV cache that matters, with a stated bound on what it leaves unread\n\n"
           "usage: sinkrouter [COMMAND] [FLAGS]      (run is the default command)\n\n",
           sr_version());
    for (int i = 0; i < N_ABOUT; i++) printf("  %-12s%s\n", sr_command_name(about[i].command), about[i].what);
    puts("\nsinkrouter COMMAND --help lists the flags of a command; --version prints the\n"
         "version. Exit status: 0 done, 2 usage, 3 file rejected, 4 input or output,\n"
         "5 memory, 6 not supported, 7 NaN, 130 interrupted, 143 terminated.");
}
