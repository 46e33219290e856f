/* SPDX-License-Identifier: Apache-2.0
 *
 * Errors, log lines and escaping. Nothing here allocates, so that a failure can always be reported.
 */
#include "base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static struct {
    sr_log_fn *fn;
    void *user;
} log_sink;

const char *sr_version(void)
{
    return SR_VERSION_TEXT;
}

const char *sr_status_name(sr_status status)
{
    switch (status) {
    case SR_OK: return "ok";
    case SR_ERR_USAGE: return "usage";
    case SR_ERR_FORMAT: return "format";
    case SR_ERR_IO: return "io";
    case SR_ERR_RESOURCE: return "resource";
    case SR_ERR_UNSUPPORTED: return "unsupported";
    case SR_ERR_NUMERIC: return "numeric";
    case SR_ERR_SERVICE: return "service";
    case SR_ERR_RANK: return "rank";
    }
    return "unknown";
}

/* Code point at s, or -1 where s does not start a well-formed sequence; *len = its bytes (1 if malformed). */
static int32_t code_point(const unsigned char *s, size_t left, size_t *len)
{
    static const int32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = s[0] < 0x80                   ? 1
               : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
               : (s[0] & 0xf0) == 0xe0       ? 3
               : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                             : 0;
    *len = 1;
    if (n == 0 || n > left) return -1;
    int32_t c = n == 1 ? s[0] : s[0] & (0x7f >> n);
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80) return -1;
        c = (c << 6) | (s[i] & 0x3f);
    }
    if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return -1;
    *len = n;
    return c;
}

/* Controls, and the invisible characters that break a line or reorder it (U+2028.., bidirectional marks). */
static int is_unprintable(int32_t c)
{
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x2028 && c <= 0x202e) ||
           (c >= 0x2066 && c <= 0x2069) || c == 0xfeff;
}

const char *sr_escape(char *dst, size_t dst_bytes, const char *src, size_t src_bytes)
{
    static const char hex[] = "0123456789abcdef";
    const unsigned char *s = (const unsigned char *)src;
    size_t out = 0, keep = 0; /* keep: the longest prefix that leaves room for "..." */

    for (size_t i = 0, len; i < src_bytes; i += len) {
        char item[16];
        size_t n = 0;
        int32_t c = code_point(s + i, src_bytes - i, &len);
        if (is_unprintable(c) || c == '"' || c == '\'' || c == '\\') {
            for (size_t k = 0; k < len; k++) {
                item[n++] = '\\';
                item[n++] = 'x';
                item[n++] = hex[s[i + k] >> 4];
                item[n++] = hex[s[i + k] & 15];
            }
        } else {
            memcpy(item, s + i, len);
            n = len;
        }
        if (out + n + 1 > dst_bytes) {
            memcpy(dst + keep, "...", 4);
            return dst;
        }
        memcpy(dst + out, item, n);
        out += n;
        if (out + 4 <= dst_bytes) keep = out;
    }
    dst[out] = '\0';
    return dst;
}

/* Formats one line. Arguments may hold anything, so controls and stray bytes become '?'; a line that was cut
 * in the middle of a character loses the rest of it. */
__attribute__((format(printf, 3, 0))) static void format_line(char *text, size_t bytes, const char *fmt,
                                                              va_list ap)
{
    int wanted = vsnprintf(text, bytes, fmt, ap);
    if (wanted < 0) text[0] = '\0';
    size_t n = strlen(text);
    int is_cut = wanted > 0 && (size_t)wanted >= bytes;
    for (size_t i = 0, len; i < n; i += len) {
        int32_t c = code_point((unsigned char *)text + i, n - i, &len);
        if (c >= 0 && !is_unprintable(c)) continue;
        if (c < 0 && is_cut && n - i < 4) {
            text[i] = '\0';
            return;
        }
        memset(text + i, '?', len);
    }
}

sr_status sr_fail(sr_error *err, sr_status status, const char *fmt, ...)
{
    if (!err) return status;
    int saved = errno;
    char text[SR_ERROR_TEXT_BYTES]; /* apart from *err: an argument may be err->text itself */
    va_list ap;
    va_start(ap, fmt);
    format_line(text, sizeof text, fmt, ap);
    va_end(ap);
    memcpy(err->text, text, sizeof text);
    err->status = status;
    errno = saved;
    return status;
}

sr_status sr_fail_memory(sr_error *err, size_t bytes, const char *what)
{
    return sr_fail(err, SR_ERR_RESOURCE, "%s: no memory for %zu bytes", what, bytes);
}

void sr_log_set(sr_log_fn *fn, void *user)
{
    log_sink.fn = fn;
    log_sink.user = user;
}

void sr_log(sr_log_level level, const char *fmt, ...)
{
    if (!log_sink.fn) return;
    char line[512];
    va_list ap;
    va_start(ap, fmt);
    format_line(line, sizeof line, fmt, ap);
    va_end(ap);
    log_sink.fn(log_sink.user, level, line);
}
