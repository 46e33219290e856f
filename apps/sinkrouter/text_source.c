/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading whole texts.
 */
#include "text_source.h"
#include "diag.h"
#include "interrupt.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const size_t MOST_BYTES = (size_t)1 << 30;

size_t sr_text_valid(const char *text, size_t n)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;
    while (i < n) {
        unsigned c = s[i];
        size_t len = c < 0x80                ? 1
                     : c >= 0xc2 && c < 0xe0 ? 2
                     : c >= 0xe0 && c < 0xf0 ? 3
                     : c >= 0xf0 && c < 0xf5 ? 4
                                             : 0;
        if (len == 0 || len > n - i) return i;
        for (size_t k = 1; k < len; k++)
            if ((s[i + k] & 0xc0) != 0x80) return i;
        if ((c == 0xe0 && s[i + 1] < 0xa0) || (c == 0xed && s[i + 1] > 0x9f) ||
            (c == 0xf0 && s[i + 1] < 0x90) || (c == 0xf4 && s[i + 1] > 0x8f))
            return i;
        i += len;
    }
    return n;
}

static sr_status read_all(int fd, struct text *t, const char *what, sr_error *err)
{
    size_t room = 0;
    for (;;) {
        if (room - t->bytes < 65536) {
            room = room ? 2 * room : 1 << 17;
            char *grown = realloc(t->data, room + 1);
            if (!grown) return sr_refuse(err, SR_ERR_RESOURCE, "%s: no memory for %zu bytes", what, room);
            t->data = grown;
        }
        ssize_t n = read(fd, t->data + t->bytes, room - t->bytes);
        if (n < 0 && errno == EINTR && !sr_interrupt_pending()) continue;
        if (n < 0 && errno == EINTR) return (sr_status)(128 + sr_interrupt_pending()); /* the exit status: nothing to say */
        if (n < 0) return sr_refuse(err, SR_ERR_IO, "%s: %s", what, strerror(errno));
        if (n == 0) break;
        t->bytes += (size_t)n;
        if (t->bytes > MOST_BYTES)
            return sr_refuse(err, SR_ERR_RESOURCE, "%s: larger than %zu bytes", what, MOST_BYTES);
    }
    t->data[t->bytes] = '\0';
    return SR_OK;
}

sr_status sr_text_read(struct text *out, const char *flag, const char *path, sr_error *err)
{
    char name[120], what[160];
    struct text t = {0};
    int is_stdin = strcmp(path, "-") == 0;
    snprintf(what, sizeof what, "%s %s", flag,
             is_stdin ? "(standard input)" : sr_visible(name, sizeof name, path));
    int fd = is_stdin ? 0 : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return sr_refuse(err, SR_ERR_IO, "%s: %s", what, strerror(errno));
    sr_status st = read_all(fd, &t, what, err);
    if (!is_stdin) close(fd);
    if (!st && t.bytes == 0) st = sr_refuse(err, SR_ERR_FORMAT, "%s: empty", what);
    if (!st) {
        size_t good = sr_text_valid(t.data, t.bytes);
        if (good < t.bytes)
            st = sr_refuse(err, SR_ERR_FORMAT, "%s: byte %zu (0x%02x) is not UTF-8", what, good,
                           (unsigned char)t.data[good]);
    }
    if (st)
        sr_text_free(&t);
    else
        *out = t;
    return st;
}

static int hex_value(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The character after a backslash at s[1]; 0 where it is none of ours. *used = bytes taken. */
static int unescape(const char *s, char *out, size_t *used)
{
    static const char from[] = "ntr\\'\"", to[] = "\n\t\r\\'\"";
    const char *at = s[1] ? strchr(from, s[1]) : NULL;
    *used = 2;
    if (at) {
        *out = to[at - from];
        return 1;
    }
    if (s[1] == 'x' && hex_value(s[2]) >= 0 && hex_value(s[3]) >= 0) {
        *out = (char)(hex_value(s[2]) * 16 + hex_value(s[3]));
        *used = 4;
        return *out != '\0';
    }
    return 0;
}

sr_status sr_text_copy(struct text *out, const char *s, int escapes, sr_error *err)
{
    size_t n = strlen(s), w = 0;
    char *copy = malloc(n + 1);
    if (!copy) return sr_refuse(err, SR_ERR_RESOURCE, "no memory for a text of %zu bytes", n);
    for (size_t i = 0, used; i < n; i += used) {
        used = 1;
        copy[w] = s[i];
        if (escapes && s[i] == '\\' && !unescape(s + i, copy + w, &used)) {
            copy[w] = s[i];
            used = 1;
        }
        w++;
    }
    copy[w] = '\0';
    size_t good = sr_text_valid(copy, w);
    if (good < w) {
        free(copy);
        return sr_refuse(err, SR_ERR_USAGE, "-p, -sys or -r: byte %zu is not UTF-8", good);
    }
    *out = (struct text){copy, w};
    return SR_OK;
}

sr_status sr_text_add(struct text *t, const char *between, const char *s, size_t bytes, sr_error *err)
{
    size_t gap = t->bytes ? strlen(between) : 0;
    char *grown = realloc(t->data, t->bytes + gap + bytes + 1);
    if (!grown) return sr_refuse(err, SR_ERR_RESOURCE, "no memory for a text of %zu bytes", t->bytes + bytes);
    t->data = grown;
    memcpy(t->data + t->bytes, between, gap);
    memcpy(t->data + t->bytes + gap, s, bytes);
    t->bytes += gap + bytes;
    t->data[t->bytes] = '\0';
    return SR_OK;
}

void sr_text_free(struct text *t)
{
    free(t->data);
    *t = (struct text){0};
}

size_t sr_text_offset(const char *s, size_t bytes, int64_t chars)
{
    size_t i = 0;
    while (i < bytes && chars > 0) {
        i++;
        while (i < bytes && ((unsigned char)s[i] & 0xc0) == 0x80) i++;
        chars--;
    }
    return i;
}
