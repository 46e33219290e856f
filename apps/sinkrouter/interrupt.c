/* SPDX-License-Identifier: Apache-2.0
 *
 * Signals.
 */
#include "interrupt.h"

#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static volatile sig_atomic_t pending;

static void on_signal(int sig)
{
    if (pending == sig) _exit(128 + sig);
    pending = sig;
}

void sr_interrupt_init(void)
{
    struct sigaction a = {.sa_handler = on_signal};
    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGHUP, &a, NULL);
    a.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &a, NULL);
    sigaction(SIGXFSZ, &a, NULL); /* a file beyond ulimit -f: writing it fails, as on a full disk */
}

int sr_interrupt_pending(void)
{
    return pending;
}

void sr_interrupt_clear(void)
{
    pending = 0;
}
