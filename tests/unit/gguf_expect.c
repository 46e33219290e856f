/* SPDX-License-Identifier: Apache-2.0
 *
 * Test helper: see gguf_expect.h.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "gguf_expect.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static int n_warnings;
static char last_warning[512];

void sr_tb_refused_file(const char *path, sr_status status, const char *needle)
{
    struct gguf *g = NULL;
    sr_error err = {0};
    const char *slash = strrchr(path, '/');
    const sr_status st = sr_gguf_open(&g, path, &err);
    if (st == SR_OK) sr_gguf_close(g);
    if (st != status) fail_msg("status %d, want %d: %s", st, status, st ? err.text : "opened");
    assert_null(g);
    assert_int_equal(err.status, status);
    for (const char *c = err.text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f) fail_msg("control character in: %s", err.text);
    if (!strstr(err.text, slash ? slash + 1 : path)) fail_msg("the file is not named in: %s", err.text);
    if (!strstr(err.text, needle)) fail_msg("\"%s\" is not in: %s", needle, err.text);
}

void sr_tb_refused(const struct sr_tb *b, sr_status status, const char *needle)
{
    sr_tb_refused_file(sr_tb_save(b, "refused.gguf"), status, needle);
}

struct gguf *sr_tb_opened_file(const char *path)
{
    struct gguf *g = NULL;
    sr_error err = {0};
    if (sr_gguf_open(&g, path, &err) != SR_OK) fail_msg("not opened: %s", err.text);
    assert_non_null(g);
    return g;
}

struct gguf *sr_tb_opened(const struct sr_tb *b)
{
    return sr_tb_opened_file(sr_tb_save(b, "opened.gguf"));
}

static void on_log(void *user, sr_log_level level, const char *line)
{
    (void)user;
    if (level != SR_LOG_WARN) return;
    n_warnings++;
    snprintf(last_warning, sizeof(last_warning), "%s", line);
}

void sr_tb_count_warnings(void)
{
    n_warnings = 0;
    last_warning[0] = 0;
    sr_log_set(on_log, NULL);
}

int sr_tb_warnings(void) { return n_warnings; }
const char *sr_tb_last_warning(void) { return last_warning; }

double sr_tb_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

long sr_tb_peak_kib(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_maxrss;
}
