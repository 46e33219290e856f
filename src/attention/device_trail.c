/* SPDX-License-Identifier: Apache-2.0
 *
 * The trail of a sequence on a device (backend/trail_rows.h): kept there, by parity of kv_len. Of it the host knows the last step
 * that noted (attn_seq.trail.step) and nothing else, until a session file wants the rows.
 */
#include "attention/device_seq.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

void sr_device_trail_layout(struct arena *a, struct attn_seq *s, struct device_seq *d)
{
    const int32_t max_len = d->cache.max_pages * SR_PAGE_ROWS, units = (int32_t)sr_device_units(s);
    d->trail = (struct device_trail){.max_len = max_len, .n_units = units};
    d->trail.words = sr_arena_take(a, SR_TRAIL_WORDS(max_len), sizeof *d->trail.words);
    d->trail.always = sr_arena_take(a, (size_t)units, sizeof *d->trail.always);
}

/* Rows by lot say nothing of where heads look. */
int sr_device_trail_begin(struct attn_seq *s)
{
    const int follows = s->device->policy->needs_sketch && s->route.trail && !(s->route.keep > 0);
    if (follows) s->trail.step = s->len[0];
    return follows;
}

/* ---- cuts ---- */

/* A half of no step: what it noted is gone once a step takes it. */
static void forget(struct attn_seq *s, int32_t half)
{
    s->a->backend->ops->mem_clear(s->a->backend, s->device->trail.words + SR_TRAIL_STEPS + half, sizeof *s->device->trail.words);
}

/* As sr_trail_truncate says. */
void sr_device_trail_truncate(struct attn_seq *s, int32_t len)
{
    const int32_t step = s->trail.step;
    if (step <= len) return;
    forget(s, step % 2);
    if (step == len + 1) return;
    forget(s, (step - 1) % 2);
    s->trail = (struct trail){0};
}

/* ---- session files ---- */

static int by_row(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* The rows that a step over kv_len rows noted, in `to`: as if the host had noted them. */
static void take_half(const int32_t *words, int32_t max_len, int32_t kv_len, struct trail *to)
{
    const int32_t half = kv_len % 2, n = words[SR_TRAIL_COUNTS + half];
    int32_t *rows = (int32_t *)(uintptr_t)(words + SR_TRAIL_ROWS_AT(max_len, half));
    if (kv_len <= 0 || words[SR_TRAIL_STEPS + half] != kv_len || n < 0 || n > max_len) return;
    qsort(rows, (size_t)n, sizeof *rows, by_row);
    for (int32_t i = 0; i < n; i++) {
        float share;
        memcpy(&share, words + SR_TRAIL_SHARES_AT(max_len, half) + rows[i], sizeof share);
        sr_trail_note(to, rows[i], share);
    }
}

sr_status sr_device_trail_fetch(struct attn_seq *s, sr_error *err)
{
    struct backend *b = s->a->backend;
    const struct device_trail *t = &s->device->trail;
    const size_t bytes = SR_TRAIL_WORDS(t->max_len) * sizeof *t->words;
    struct trail old = {0}, now = {.step = s->trail.step};
    if (now.step == 0) return SR_OK;
    int32_t *words = sr_alloc(bytes);
    if (!words) return sr_fail_memory(err, bytes, "session");
    const sr_status st = b->ops->download(b, words, t->words, bytes, err);
    if (st == SR_OK) {
        take_half(words, t->max_len, now.step - 1, &old);
        take_half(words, t->max_len, now.step, &now);
        now.n = old.n_now;
        memcpy(now.rows, old.now, sizeof now.rows);
        s->trail = now;
    }
    sr_free(words);
    return st;
}

/* The rows before the last step's have no shares any more: none of them is too many. */
static void put_half(int32_t *words, int32_t max_len, int32_t kv_len, int32_t n, const int32_t *rows, const float *shares)
{
    const int32_t half = kv_len % 2;
    const float most = 1;
    words[SR_TRAIL_STEPS + half] = kv_len;
    words[SR_TRAIL_COUNTS + half] = n;
    for (int32_t i = 0; i < n; i++) {
        words[SR_TRAIL_ROWS_AT(max_len, half) + (size_t)i] = rows[i];
        memcpy(words + SR_TRAIL_SHARES_AT(max_len, half) + rows[i], shares ? &shares[i] : &most, sizeof most);
    }
}

sr_status sr_device_trail_place(struct attn_seq *s, sr_error *err)
{
    struct backend *b = s->a->backend;
    const struct device_trail *t = &s->device->trail;
    const size_t bytes = SR_TRAIL_WORDS(t->max_len) * sizeof *t->words;
    int32_t *words = sr_alloc_zero(SR_TRAIL_WORDS(t->max_len), sizeof *words);
    if (!words) return sr_fail_memory(err, bytes, "session");
    if (s->trail.step > 0) {
        put_half(words, t->max_len, s->trail.step - 1, s->trail.n, s->trail.rows, NULL);
        put_half(words, t->max_len, s->trail.step, s->trail.n_now, s->trail.now, s->trail.share);
    }
    b->ops->upload(b, t->words, words, bytes);
    sr_free(words);
    return SR_OK;
}
