/* SPDX-License-Identifier: Apache-2.0
 *
 * Standard error and the log file.
 */
#include "diag.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static struct {
    FILE *log;
    const char *log_name;
    int log_error; /* errno of the first line that did not get there */
    int quiet, verbose;
    void (*clear)(void);
} diag;

void sr_diag_before_line(void (*clear)(void))
{
    diag.clear = clear;
}

int sr_diag_quiet(void)
{
    return diag.quiet;
}

/* Bytes of the well-formed UTF-8 sequence at s, 0 where there is none. Overlong forms are let through here:
 * this only decides what is shown. */
static size_t sequence(const unsigned char *s)
{
    size_t n = s[0] >= 0xc2 && s[0] < 0xe0   ? 2
               : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
               : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                             : 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    return n;
}

const char *sr_visible(char *dst, size_t dst_bytes, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t out = 0;
    while (*s) {
        char item[8];
        size_t n = *s < 0x80 ? 1 : sequence(s), used = n ? n : 1;
        if (n == 0 || *s < 0x20 || *s == 0x7f || *s == '"' || *s == '\\' ||
            (n == 2 && *s == 0xc2 && s[1] < 0xa0)) {
            n = (size_t)snprintf(item, sizeof item, "\\x%02x", *s);
            used = 1;
        } else {
            memcpy(item, s, n);
        }
        if (out + n + 4 > dst_bytes) {
            memcpy(dst + out, "...", 4);
            return dst;
        }
        memcpy(dst + out, item, n);
        out += n;
        s += used;
    }
    dst[out] = '\0';
    return dst;
}

/* Columns of the terminal that standard error is; 0: it is none. */
static size_t columns(void)
{
    struct winsize w;
    return isatty(2) && ioctl(2, TIOCGWINSZ, &w) == 0 ? w.ws_col : 0;
}

static size_t characters(const char *s, size_t n)
{
    size_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += ((unsigned char)s[i] & 0xc0) != 0x80;
    return sum;
}

/* One line; on a terminal broken at spaces, not within words. */
static void show(const char *text)
{
    const size_t width = columns();
    size_t at = (size_t)fprintf(stderr, "sinkrouter:");
    for (int is_first = 1; *text; is_first = 0) {
        const size_t gap = strspn(text, " "), n = gap + strcspn(text + gap, " "), used = characters(text, n) + (size_t)is_first;
        const int breaks = width > 40 && !is_first && at + used > width;
        fprintf(stderr, "%s%.*s", is_first ? " " : breaks ? "\n  " : "", (int)(breaks ? n - gap : n), text + (breaks ? gap : 0));
        at = breaks ? 2 + used - gap : at + used;
        text += n;
    }
    fputc('\n', stderr);
}

static void line(int shown, const char *text)
{
    if (shown) {
        if (diag.clear) diag.clear();
        show(text);
    }
    if (diag.log && !diag.log_error && (fprintf(diag.log, "%s\n", text) < 0 || fflush(diag.log) != 0)) diag.log_error = errno;
}

void sr_say(const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    line(1, text);
}

void sr_note(const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    line(!diag.quiet, text);
}

sr_status sr_refuse(sr_error *err, sr_status status, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
    err->status = status;
    return status;
}

static void from_library(void *user, sr_log_level level, const char *text)
{
    (void)user;
    line(level == SR_LOG_WARN ? !diag.quiet : diag.verbose, text);
}

sr_status sr_diag_open(const char *log_file, int quiet, int verbose, sr_error *err)
{
    diag.quiet = quiet;
    diag.verbose = verbose && !quiet;
    if (log_file) {
        diag.log = fopen(log_file, "a");
        diag.log_name = log_file;
        char shown[120];
        if (!diag.log)
            return sr_refuse(err, SR_ERR_IO, "--log-file %s: %s", sr_visible(shown, sizeof shown, log_file),
                             strerror(errno));
    }
    sr_log_set(from_library, NULL);
    return SR_OK;
}

int sr_diag_close(int rc)
{
    char shown[120];
    sr_log_set(NULL, NULL);
    if (diag.log && fclose(diag.log) != 0 && !diag.log_error) diag.log_error = errno;
    diag.log = NULL;
    if (rc || !diag.log_error) return rc;
    sr_say("--log-file %s: %s", sr_visible(shown, sizeof shown, diag.log_name), strerror(diag.log_error));
    return SR_ERR_IO;
}
