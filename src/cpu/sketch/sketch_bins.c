/* SPDX-License-Identifier: Apache-2.0
 *
 * A unit's scan, and the histogram of its kept rows.
 */
#include "cpu/sketch/sketch_bins.h"

#include <math.h>
#include <string.h>

/* So many nats above the cut the upper part ends. With true keys (SmolLM2 and Qwen2.5-Coder-0.5B, 2,048 and 6,800 rows) one unit
 * of 250 or fewer needs a bin below; with 1.5 nats one of 5 to 8 (one of 40 and fewer of SmolLM2 from 4,096 rows on). */
#define UPPER_NATS 1.0f

static struct choose_unit *unit_of(const struct unit_job *j)
{
    return &j->s->choose[j->unit];
}

static float *kept_of(const struct unit_job *j, int32_t span)
{
    return j->s->kept + (size_t)span * (size_t)j->a->shape->group * SR_SKETCH_STRIDE;
}

static int32_t *rows_of(const struct unit_job *j, int32_t span)
{
    return j->s->kept_rows + (size_t)span * SR_CHUNK_ROWS;
}

static uint16_t *bins_of(const struct unit_job *j, int32_t span)
{
    return j->s->kept_bins + (size_t)span * SR_CHUNK_ROWS;
}

/* ---- scan ---- */

float sr_bins_upper(float cut)
{
    return cut < -2 * UPPER_NATS ? cut + UPPER_NATS : cut;
}

/* Whether the sums say something: no exponential has left the range of its type. Where nothing is near, what they were
 * taken relative to is only a guess. */
static int is_in_range(const struct choose_unit *w, const struct sketch_scan *scan)
{
    for (int32_t g = 0; g < scan->group; g++) {
        const float above = scan->max[g] - scan->from[g];
        if (isfinite(scan->max[g]) && (above > SR_SCAN_ABOVE || (above < -SR_SCAN_ABOVE && !w->has_near[g]))) return 0;
    }
    return 1;
}

/* What the sketch says of rows that were read already counts for nothing: it is far from the truth for rows as unlike the
 * others as sinks are, and the near state has them. */
static void skip_found(const struct unit_job *j, struct sketch_scan *scan)
{
    if (!j->a->found) return;
    const int32_t *found = j->a->found[j->unit], n = j->a->n_found[j->unit];
    for (int32_t f = 0; f < n && found[f] < scan->first_row + scan->row1; f++) {
        if (found[f] < scan->first_row + scan->row0) continue;
        if (scan->n_skip++ == 0) scan->skip = found + f;
    }
}

int sr_span_scan(const struct unit_job *j, int32_t span, const float *floor, float cut, struct attn_touched *touched)
{
    const struct choose_span *after = span + 1 < j->s->n_spans ? &j->s->spans[span + 1] : NULL;
    const struct choose_unit *w = unit_of(j);
    const size_t at = (size_t)span * SR_ATTN_MAX_GROUP, from_bytes = (size_t)j->a->shape->group * sizeof(float);
    float *from = j->s->span_from + at;
    struct choose_span *s = &j->s->spans[span];
    const struct attn_touched before = *touched;
    struct sketch_scan scan = {
        .sketch = j->a->sketch, .y_chunk = j->a->units[j->unit].y.chunk[s->chunk],
        .next = after ? j->a->units[after->unit].y.chunk[after->chunk] : NULL, .group = j->a->shape->group, .row0 = s->row0,
        .row1 = s->row1, .w = w->w, .base = w->base, .more = w->more, .open = w->open, .from = from, .floor = floor, .cut = cut,
        .first_row = s->chunk * SR_CHUNK_ROWS, .logits = sr_attn_thread_scratch(j->s, j->thread), .max = j->s->span_max + at,
        .sum = j->s->span_sum + at, .kept_rows = rows_of(j, span), .kept = kept_of(j, span), .touched = touched,
    };
    skip_found(j, &scan);
    memcpy(from, w->from, from_bytes);
    j->c->k.sketch_scan(&scan);
    const int is_usual = is_in_range(w, &scan);
    if (!is_usual) {
        memcpy(from, scan.max, from_bytes);
        *touched = before;
        j->c->k.sketch_scan(&scan);
    }
    s->n_kept = scan.n_kept;
    return is_usual;
}

/* Keeps all rows from the cut on; the total is known now. */
void sr_bins_scan_again(const struct unit_job *j, int32_t span)
{
    const struct choose_unit *w = unit_of(j);
    float floor[SR_ATTN_MAX_GROUP];
    for (int32_t g = 0; g < j->a->shape->group; g++) floor[g] = w->log_total[g] - (0.01f + 1e-5f * fabsf(w->log_total[g]));
    j->s->span_touched[span] = (struct attn_touched){0};
    sr_span_scan(j, span, floor, w->cut, &j->s->span_touched[span]);
}

/* ---- bins ---- */

/* Rows of a log share of `cut` and more. */
static void fill(const struct unit_job *j, float cut)
{
    const struct choose_unit *w = unit_of(j);
    const int32_t group = j->a->shape->group;
    memset(w->sums, 0, (size_t)(SR_SKETCH_BINS * sr_sketch_width(group)) * sizeof(*w->sums));
    for (int32_t i = w->first; i < w->first + w->n; i++)
        j->c->k.sketch_share(&(struct sketch_share){
            .group = group, .n = j->s->spans[i].n_kept, .kept = kept_of(j, i), .log_total = w->log_total, .cut = cut,
            .bins_per_nat = SR_SKETCH_BINS / -w->cut, .bin = bins_of(j, i), .sums = w->sums});
}

/* The bin that the upper part ends in is not whole, nor perhaps, with rounding, the one above. */
void sr_bins_fill(const struct unit_job *j)
{
    struct choose_unit *w = unit_of(j);
    const float upper = sr_bins_upper(w->cut);
    w->n_bins = upper > w->cut ? (int32_t)(SR_SKETCH_BINS * (upper / w->cut)) - 1 : SR_SKETCH_BINS;
    fill(j, upper);
}

int sr_bins_has(const struct unit_job *j, int32_t i)
{
    return i < unit_of(j)->n_bins;
}

void sr_bins_fill_all(const struct unit_job *j)
{
    struct choose_unit *w = unit_of(j);
    w->n_bins = SR_SKETCH_BINS;
    for (int32_t i = w->first; i < w->first + w->n; i++) /* their rows are counted already */
        j->a->touched[j->unit].y_bytes += j->s->span_touched[i].y_bytes;
    fill(j, w->cut);
}

void sr_bins_take(const struct unit_job *j, int32_t i, double *unread)
{
    const struct choose_unit *w = unit_of(j);
    const int32_t group = j->a->shape->group, width = sr_sketch_width(group);
    if (!sr_bins_has(j, i)) {
        for (int32_t k = w->first; k < w->first + w->n; k++) sr_bins_scan_again(j, k);
        sr_bins_fill_all(j);
    }
    for (int32_t g = 0; g < group; g++) unread[g] -= w->sums[i * width + g];
}

/* Four heads side by side: a head's sum waits for itself. */
int32_t sr_bins_take_first(const struct unit_job *j, int32_t end, double *unread)
{
    const struct choose_unit *w = unit_of(j);
    const int32_t group = j->a->shape->group, width = sr_sketch_width(group), n = end < w->n_bins ? end : w->n_bins;
    for (int32_t g = 0; g < group; g += 4) {
        const float *sums = w->sums + g;
        double left[4] = {0};
        for (int h = 0; h < 4 && g + h < group; h++) left[h] = unread[g + h];
        double a = left[0], b = left[1], c = left[2], d = left[3];
        for (int32_t i = 0; i < n; i++, sums += width) {
            a -= sums[0];
            b -= sums[1];
            c -= sums[2];
            d -= sums[3];
        }
        const double now[4] = {a, b, c, d};
        for (int h = 0; h < 4 && g + h < group; h++) unread[g + h] = now[h];
    }
    return n;
}

int32_t sr_bins_list(const struct unit_job *j, int32_t first, int32_t end, int32_t *list)
{
    const struct choose_unit *w = unit_of(j);
    int32_t n = 0;
    for (int32_t i = w->first; i < w->first + w->n; i++)
        n += j->c->k.sketch_pick(&(struct sketch_pick){
            .n = j->s->spans[i].n_kept, .first = first, .end = end, .bin = bins_of(j, i), .rows = rows_of(j, i), .list = list + n});
    return n;
}

int32_t sr_bins_top(const struct unit_job *j, int32_t end, int32_t *rows, int32_t n)
{
    const struct choose_unit *w = unit_of(j);
    int32_t n_top = 0;
    for (int32_t i = w->first; i < w->first + w->n; i++) {
        const uint16_t *bin = bins_of(j, i);
        for (int32_t k = 0; k < j->s->spans[i].n_kept && n_top < n; k++)
            if (bin[k] < end) rows[n_top++] = rows_of(j, i)[k];
    }
    return n_top;
}
