/* SPDX-License-Identifier: Apache-2.0
 *
 * Line editing. libedit's own reader tries again when a signal interrupts it, so characters are read here:
 * Ctrl-C must come back to the conversation.
 */
#include "line_input.h"
#include "interrupt.h"

#include <errno.h>
#include <histedit.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CTRL_D = 4 };

struct line_input {
    EditLine *el; /* NULL: plain lines */
    History *history;
    int is_continued, color;
    char *plain;
    size_t plain_room;
};

static char *prompt(EditLine *el)
{
    static char first[] = "> ", next[] = ". ", green[] = "\1\033[32m\1> \1\033[0m\1";
    struct line_input *l = NULL;
    el_get(el, EL_CLIENTDATA, &l);
    return l && l->is_continued ? next : l && l->color ? green : first;
}

/* Waits until a byte can be read: 0, or -1 when Ctrl-C or its like has come. Signals are let in only while
 * waiting, so that one that came a moment before is seen too and does not wait for the next key. */
static int wait_for_byte(void)
{
    struct pollfd in = {.fd = 0, .events = POLLIN};
    sigset_t ours, before;
    sigemptyset(&ours);
    sigaddset(&ours, SIGINT);
    sigaddset(&ours, SIGTERM);
    sigaddset(&ours, SIGHUP);
    sigprocmask(SIG_BLOCK, &ours, &before);
    while (!sr_interrupt_pending() && ppoll(&in, 1, NULL, &before) < 0 && errno == EINTR) {
    } /* a window that changed its size */
    sigprocmask(SIG_SETMASK, &before, NULL);
    return sr_interrupt_pending() ? -1 : 0;
}

/* One character from the terminal, -1 on a signal, 0 at the end. */
static int read_character(EditLine *el, wchar_t *out)
{
    unsigned char bytes[4];
    size_t have = 0, want = 1;
    (void)el;
    while (have < want) {
        if (wait_for_byte()) return -1;
        ssize_t n = read(0, bytes + have, 1);
        if (n < 0 && errno == EINTR && !sr_interrupt_pending()) continue;
        if (n <= 0) return n < 0 ? -1 : 0;
        if (bytes[0] == 0) bytes[0] = CTRL_D; /* typed ahead, before the terminal was in character mode */
        if (have++ == 0) want = bytes[0] < 0xc0 ? 1 : bytes[0] < 0xe0 ? 2 : bytes[0] < 0xf0 ? 3 : 4;
    }
    unsigned c = want == 1 ? bytes[0] : bytes[0] & (0x7fu >> want);
    for (size_t i = 1; i < want; i++) c = (c << 6) | (bytes[i] & 0x3fu);
    *out = (wchar_t)c;
    return 1;
}

struct line_input *sr_line_input_new(int color)
{
    struct line_input *l = calloc(1, sizeof *l);
    HistEvent event;
    if (!l || !isatty(0)) return l;
    l->color = color;
    l->el = el_init("sinkrouter", stdin, stdout, stderr);
    l->history = history_init();
    if (!l->el || !l->history) return l;
    history(l->history, &event, H_SETSIZE, 200);
    el_set(l->el, EL_CLIENTDATA, l);
    el_set(l->el, EL_PROMPT_ESC, prompt, '\1');
    el_set(l->el, EL_EDITOR, "emacs");
    el_set(l->el, EL_HIST, history, l->history);
    el_set(l->el, EL_SIGNAL, 0);
    el_set(l->el, EL_GETCFN, read_character);
    return l;
}

void sr_line_input_free(struct line_input *l)
{
    if (!l) return;
    if (l->el) el_end(l->el);
    if (l->history) history_end(l->history);
    free(l->plain);
    free(l);
}

int sr_line_input_is_terminal(const struct line_input *l)
{
    return l->el != NULL;
}

/* A line with its newline, borrowed; NULL at the end or on a signal. */
static const char *next_line(struct line_input *l, size_t *n)
{
    if (l->el) {
        int count = 0;
        el_set(l->el, EL_PREP_TERM, 1); /* libedit itself does so only after it has shown the prompt */
        const char *s = el_gets(l->el, &count);
        *n = s && count > 0 ? (size_t)count : 0;
        return *n ? s : NULL;
    }
    clearerr(stdin);
    ssize_t count = getline(&l->plain, &l->plain_room, stdin);
    *n = count > 0 ? (size_t)count : 0;
    return *n ? l->plain : NULL;
}

enum line_result sr_line_input_read(struct line_input *l, struct text *out)
{
    sr_error ignored;
    HistEvent event;
    sr_text_free(out);
    for (l->is_continued = 0;; l->is_continued = 1) {
        size_t n;
        const char *s = next_line(l, &n);
        if (!s) {
            if (sr_interrupt_pending()) return LINE_INTERRUPTED;
            return out->bytes ? LINE_OK : LINE_END;
        }
        if (s[n - 1] == '\n') n--;
        int goes_on = n > 0 && s[n - 1] == '\\';
        if (l->history && n > 0) history(l->history, &event, H_ENTER, s);
        if (sr_text_add(out, "\n", s, n - (size_t)goes_on, &ignored)) return LINE_END;
        if (!goes_on) return LINE_OK;
    }
}
