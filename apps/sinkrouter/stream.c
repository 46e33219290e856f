/* SPDX-License-Identifier: Apache-2.0
 *
 * The answer's text: tokens -> characters -> stop texts -> write().
 */
#include "stream.h"
#include "diag.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void sr_stream_init(struct stream *s, int fd, const char *const *stops, const char *const *more_stops)
{
    *s = (struct stream){.fd = fd, .stops = {stops, more_stops}};
}

void sr_stream_fini(struct stream *s)
{
    sr_text_free(&s->kept);
    free(s->held);
    s->held = NULL;
}

void sr_stream_restart(struct stream *s)
{
    s->hold = (sr_utf8_hold){0};
    s->n_held = 0;
    s->is_stopped = s->skips_newlines = 0;
    sr_text_free(&s->kept);
}

static void write_all(struct stream *s, const char *data, size_t n)
{
    while (n && !s->error && s->fd >= 0) {
        ssize_t w = write(s->fd, data, n);
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0) {
            s->error = w < 0 ? errno : EIO;
            return;
        }
        data += w;
        n -= (size_t)w;
    }
}

void sr_stream_raw(struct stream *s, const char *text)
{
    write_all(s, text, strlen(text));
}

/* Writes the first n held bytes. */
static sr_status release(struct stream *s, size_t n, sr_error *err)
{
    if (n == 0) return SR_OK;
    if (s->before) write_all(s, s->before, strlen(s->before));
    s->before = NULL;
    write_all(s, s->held, n);
    sr_status st = sr_text_add(&s->kept, "", s->held, n, err);
    memmove(s->held, s->held + n, s->n_held - n);
    s->n_held -= n;
    return st;
}

/* Finds the first stop text in the held bytes: its offset, or SIZE_MAX. *keep = length of the longest tail
 * that could still become one. */
static size_t find_stop(const struct stream *s, size_t *keep)
{
    size_t first = SIZE_MAX;
    *keep = 0;
    for (int l = 0; l < 2; l++)
        for (const char *const *stop = s->stops[l]; stop && *stop; stop++) {
            size_t len = strlen(*stop);
            if (len == 0) continue;
            const char *at = s->n_held ? memmem(s->held, s->n_held, *stop, len) : NULL;
            if (at && (size_t)(at - s->held) < first) first = (size_t)(at - s->held);
            size_t k = len - 1 < s->n_held ? len - 1 : s->n_held;
            while (k > *keep && memcmp(s->held + s->n_held - k, *stop, k) != 0) k--;
            if (k > *keep) *keep = k;
        }
    return first;
}

static size_t newlines_at_end(const struct stream *s)
{
    size_t n = 0;
    while (n < s->n_held && s->held[s->n_held - 1 - n] == '\n') n++;
    return n;
}

static void skip_newlines(struct stream *s)
{
    size_t n = strspn(s->held, "\n");
    memmove(s->held, s->held + n, s->n_held - n + 1);
    s->n_held -= n;
    if (s->n_held) s->skips_newlines = 0;
}

/* Takes n more characters' bytes, already whole, at the end of held. */
static sr_status settle(struct stream *s, sr_error *err)
{
    s->held[s->n_held] = '\0';
    if (s->skips_newlines) skip_newlines(s);
    size_t keep, at = find_stop(s, &keep);
    if (s->drops_newlines && newlines_at_end(s) > keep) keep = newlines_at_end(s);
    if (at == SIZE_MAX) return release(s, s->n_held - keep, err);
    s->is_stopped = 1;
    sr_status st = release(s, at, err);
    s->n_held = 0;
    return st;
}

static sr_status make_room(struct stream *s, size_t more, sr_error *err)
{
    if (s->n_held + more + 1 <= s->held_room) return SR_OK; /* and a terminator */
    size_t room = 2 * (s->n_held + more) + 64;
    char *grown = realloc(s->held, room);
    if (!grown) return sr_refuse(err, SR_ERR_RESOURCE, "no memory for %zu bytes of output", room);
    s->held = grown;
    s->held_room = room;
    return SR_OK;
}

sr_status sr_stream_push(struct stream *s, const char *bytes, size_t n, sr_error *err)
{
    if (s->is_stopped || n == 0) return SR_OK;
    sr_status st = make_room(s, 3 * (n + 4), err);
    if (st) return st;
    s->n_held += sr_utf8_push(&s->hold, bytes, n, s->held + s->n_held);
    return settle(s, err);
}

sr_status sr_stream_finish(struct stream *s, sr_error *err)
{
    if (s->is_stopped) return SR_OK;
    sr_status st = make_room(s, 16, err);
    if (st) return st;
    s->n_held += sr_utf8_finish(&s->hold, s->held + s->n_held);
    st = settle(s, err);
    if (s->drops_newlines) s->n_held -= newlines_at_end(s);
    return st || s->is_stopped ? st : release(s, s->n_held, err);
}
