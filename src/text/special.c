/* SPDX-License-Identifier: Apache-2.0
 *
 * A few hundred short texts at most in real files, most positions of a text match none of them: the table by
 * first byte answers those at once.
 */
#include "text/special.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

static int is_candidate(const struct vocab *v, int32_t id)
{
    enum token_kind k = v->kind[id];

    return sr_vocab_bytes(v, id) > 0 && (k == TOKEN_CONTROL || k == TOKEN_UNKNOWN || k == TOKEN_USER);
}

static int by_text(const void *a, const void *b)
{
    const struct special_text *x = a, *y = b;
    int c = memcmp(x->text, y->text, x->bytes < y->bytes ? x->bytes : y->bytes);

    if (c != 0) return c;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

sr_status sr_specials_load(struct specials *s, const struct vocab *v, sr_error *err)
{
    int32_t n = 0;

    for (int32_t id = 0; id < v->n; id++) n += is_candidate(v, id);
    s->row = sr_alloc((size_t)n * sizeof *s->row);
    if (!s->row) return sr_fail_memory(err, (size_t)n * sizeof *s->row, "special tokens");
    for (int32_t id = 0; id < v->n; id++)
        if (is_candidate(v, id))
            s->row[s->n++] = (struct special_text){sr_vocab_text(v, id), (uint32_t)sr_vocab_bytes(v, id), id};
    qsort(s->row, (size_t)n, sizeof *s->row, by_text);
    for (int32_t i = 0; i < n; i++) s->first[(uint8_t)s->row[i].text[0] + 1]++;
    for (int b = 0; b < 256; b++) s->first[b + 1] += s->first[b];
    return SR_OK;
}

void sr_specials_fini(struct specials *s)
{
    sr_free(s->row);
    *s = (struct specials){0};
}

/* First row in [lo, hi) whose byte at `depth` is at least c; all rows there agree on the bytes before. A row
 * that ends at `depth` sorts before all others. */
static int32_t lower_bound(const struct specials *s, int32_t lo, int32_t hi, uint32_t depth, int c)
{
    while (lo < hi) {
        int32_t mid = lo + (hi - lo) / 2;
        const struct special_text *r = &s->row[mid];
        int at = r->bytes > depth ? (uint8_t)r->text[depth] : -1;
        if (at < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

size_t sr_specials_match(const struct specials *s, const struct vocab *v, const char *text, size_t bytes,
                         enum token_special mode, int32_t *id)
{
    int32_t lo = s->first[(uint8_t)text[0]], hi = s->first[(uint8_t)text[0] + 1];
    size_t best = 0;

    for (uint32_t depth = 1; lo < hi; depth++) {
        /* rows that end here come first; of those of equal text the lowest id that the mode allows */
        for (int32_t i = lo; i < hi && s->row[i].bytes == depth; i++) {
            if (mode == SPECIAL_AS_TEXT && v->kind[s->row[i].id] != TOKEN_USER) continue;
            best = depth;
            *id = s->row[i].id;
            break;
        }
        if (depth >= bytes) break;
        int c = (uint8_t)text[depth];
        lo = lower_bound(s, lo, hi, depth, c);
        hi = lower_bound(s, lo, hi, depth, c + 1);
    }
    return best;
}
