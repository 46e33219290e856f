/* SPDX-License-Identifier: Apache-2.0
 *
 * Progress bars and lines.
 */
#include "progress.h"
#include "diag.h"
#include "interrupt.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BAR = 40, LINE_EVERY_MS = 5000 };

static struct {
    char stage[32];
    double line_ms; /* when the stage began, or its last line was printed */
    int shown;      /* columns of the bar on screen */
    int percent;    /* last one drawn */
    int quarter;    /* last one printed as a line */
} now;

static double clock_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static int on_terminal(void)
{
    static int known = -1;
    const char *term = getenv("TERM");
    if (known < 0) known = isatty(2) && term && strcmp(term, "dumb") != 0;
    return known;
}

void sr_progress_clear(void)
{
    if (now.shown) fprintf(stderr, "\r%*s\r", now.shown, "");
    now.shown = 0;
    now.percent = -1;
}

static void draw_bar(double share)
{
    char bar[BAR + 1];
    int full = (int)(share * BAR), percent = (int)(share * 100);
    if (percent == now.percent) return;
    memset(bar, '.', BAR);
    memset(bar, '#', (size_t)full);
    bar[BAR] = '\0';
    now.shown = fprintf(stderr, "\r%-10s [%s] %3d %%", now.stage, bar, percent) - 1;
    now.percent = percent;
    fflush(stderr);
    if (percent >= 100) sr_progress_clear();
}

static void print_line(double share)
{
    int quarter = (int)(share * 4);
    if (quarter <= now.quarter || clock_ms() - now.line_ms < LINE_EVERY_MS) return;
    now.quarter = quarter;
    now.line_ms = clock_ms();
    sr_note("%s %d %%", now.stage, quarter * 25);
}

int sr_progress_show(void *user, const char *stage, double share)
{
    (void)user;
    if (!sr_diag_quiet()) {
        if (strncmp(now.stage, stage, sizeof now.stage - 1) != 0 || share <= 0) {
            sr_progress_clear();
            snprintf(now.stage, sizeof now.stage, "%s", stage);
            now.line_ms = clock_ms();
            now.quarter = 0;
            sr_diag_before_line(sr_progress_clear);
        }
        share = share < 0 ? 0 : share > 1 ? 1 : share;
        if (on_terminal())
            draw_bar(share);
        else
            print_line(share);
    }
    return sr_interrupt_pending();
}
