/* SPDX-License-Identifier: Apache-2.0
 *
 * Estimated logits, their mass, and the shares of the rows kept: the specification.
 */
#include "cpu/kernels.h"

#include <math.h>
#include <string.h>

static float level_of(uint32_t field, int32_t bits)
{
    return (float)(field & ((1u << bits) - 1u)) - ((float)(1 << (bits - 1)) - 0.5f);
}

/* By the first plane. */
static float first_of(const struct sketch_scan *a, int32_t g, int32_t row)
{
    const float *w = a->w + g * sr_sketch_padded(a->sketch);
    float x = a->base[g];
    uint32_t word;
    memcpy(&word, a->y_chunk + sr_sketch_first_at(a->sketch->bits, row), 4);
    for (int32_t j = 0; j < SR_SKETCH_FIRST; j++)
        x += w[j] * level_of(word >> (sr_sketch_first_shift(a->sketch->bits, row) + 8 * j), a->sketch->bits == 8 ? 8 : 4);
    return x;
}

/* What the second plane adds. */
static float rest_of(const struct sketch_scan *a, int32_t g, int32_t row)
{
    const float *w = a->w + g * sr_sketch_padded(a->sketch) + SR_SKETCH_FIRST;
    float x = a->more[g];
    for (int32_t i = 0; i < sr_sketch_words(a->sketch); i++) {
        const int32_t bits = sr_sketch_field_bits(a->sketch, i);
        uint32_t word;
        memcpy(&word, a->y_chunk + sr_sketch_word_at(a->sketch, row, i), 4);
        for (int32_t shift = 0; shift < 32; shift += bits) x += *w++ * level_of(word >> shift, bits);
    }
    return x;
}

static int is_skipped(const struct sketch_scan *a, int32_t row)
{
    for (int32_t i = 0; i < a->n_skip; i++)
        if (a->skip[i] == a->first_row + row) return 1;
    return 0;
}

static int opens(const struct sketch_scan *a, int32_t row)
{
    for (int32_t g = 0; g < a->group; g++)
        if (!(a->logits[g * SR_SKETCH_STRIDE + row] < a->open[g])) return 1;
    return 0;
}

/* The rows of a run that are in the range. */
static void score_run(const struct sketch_scan *a, int32_t from, int32_t to)
{
    int open = 0;
    for (int32_t i = from; i < to; i++) {
        for (int32_t g = 0; g < a->group; g++) a->logits[g * SR_SKETCH_STRIDE + i] = first_of(a, g, i);
        open |= !is_skipped(a, i) && opens(a, i);
    }
    a->touched->y_rows += to - from;
    for (int32_t i = from; i < to; i++)
        a->touched->y_bytes += (int64_t)(open && !is_skipped(a, i) ? a->sketch->row_bytes : sr_sketch_first_bytes(a->sketch));
    for (int32_t i = from; open && i < to; i++)
        for (int32_t g = 0; g < a->group; g++) a->logits[g * SR_SKETCH_STRIDE + i] += rest_of(a, g, i);
}

static void score(const struct sketch_scan *a)
{
    const int32_t first = a->row0 & ~15, last = (a->row1 + 15) & ~15;
    for (int32_t run = first; run < last; run += SR_SKETCH_RUN) {
        const int32_t from = run > a->row0 ? run : a->row0, to = run + SR_SKETCH_RUN < a->row1 ? run + SR_SKETCH_RUN : a->row1;
        if (from < to) score_run(a, from, to);
    }
    for (int32_t g = 0; g < a->group; g++) {
        a->max[g] = -INFINITY;
        for (int32_t i = first; i < last; i++) {
            float *x = a->logits + g * SR_SKETCH_STRIDE + i;
            if (i < a->row0 || i >= a->row1 || is_skipped(a, i)) *x = -INFINITY;
            if (*x > a->max[g]) a->max[g] = *x;
        }
    }
}

static int is_kept(const struct sketch_scan *a, int32_t i)
{
    for (int32_t g = 0; g < a->group; g++)
        if (a->logits[g * SR_SKETCH_STRIDE + i] >= a->floor[g] + a->cut) return 1;
    return 0;
}

void sr_sketch_scan_scalar(struct sketch_scan *a)
{
    int32_t n = 0;
    score(a);
    memset(a->sum, 0, (size_t)a->group * sizeof(float));
    for (int32_t i = a->row0; i < a->row1; i++) {
        for (int32_t g = 0; g < a->group; g++) a->sum[g] += expf(a->logits[g * SR_SKETCH_STRIDE + i] - a->from[g]);
        if (is_skipped(a, i) || !is_kept(a, i)) continue;
        for (int32_t g = 0; g < a->group; g++) a->kept[g * SR_SKETCH_STRIDE + n] = a->logits[g * SR_SKETCH_STRIDE + i];
        a->kept_rows[n++] = a->first_row + i;
    }
    a->n_kept = n;
}

void sr_sketch_share_scalar(const struct sketch_share *a)
{
    const int32_t width = sr_sketch_width(a->group);
    for (int32_t i = 0; i < a->n; i++) {
        float t = -INFINITY;
        for (int32_t g = 0; g < a->group; g++) {
            const float x = a->kept[g * SR_SKETCH_STRIDE + i] - a->log_total[g];
            t = x > t ? x : t;
        }
        float bin = -t * a->bins_per_nat;
        bin = bin > 0 ? bin : 0;
        bin = bin < SR_SKETCH_BINS - 1 ? bin : SR_SKETCH_BINS - 1;
        a->bin[i] = t >= a->cut ? (uint16_t)bin : SR_SKETCH_BINS;
        for (int32_t g = 0; t >= a->cut && g < a->group; g++)
            a->sums[a->bin[i] * width + g] += expf(a->kept[g * SR_SKETCH_STRIDE + i] - a->log_total[g]);
    }
}

int32_t sr_sketch_pick_scalar(const struct sketch_pick *a)
{
    int32_t n = 0;
    for (int32_t i = 0; i < a->n; i++)
        if (a->bin[i] >= a->first && a->bin[i] < a->end) a->list[n++] = a->rows[i];
    return n;
}
