/* SPDX-License-Identifier: Apache-2.0
 *
 * Estimated logits, their mass, and the shares of the rows kept: the specification.
 */
#include "cpu/kernels.h"

#include <math.h>
#include <string.h>

static float logit_of(const struct sketch_score *a, const float *w, float base, int32_t row)
{
    const int32_t bits = a->sketch->bits, per_word = 32 / bits;
    const float centre = (float)(1 << (bits - 1)) - 0.5f;
    for (int32_t j = 0; j < a->sketch->rank; j++) {
        uint32_t word;
        memcpy(&word, a->y_chunk + sr_sketch_word_at(row, j / per_word, a->sketch->row_bytes), 4);
        const uint32_t code = word >> (j % per_word * bits) & ((1u << bits) - 1u);
        base += w[j] * ((float)code - centre);
    }
    return base;
}

void sr_sketch_score_scalar(const struct sketch_score *a)
{
    const int32_t first = a->row0 & ~15, last = (a->row1 + 15) & ~15, stride = sr_sketch_padded(a->sketch->rank);
    for (int32_t g = 0; g < a->group; g++) a->max[g] = -INFINITY;
    for (int32_t i = first; i < last; i++) {
        const int inside = i >= a->row0 && i < a->row1;
        *a->y_rows += inside;
        for (int32_t g = 0; g < a->group; g++) {
            const float x = inside ? logit_of(a, a->w + g * stride, a->base[g], i) : -INFINITY;
            a->logits[g * SR_CHUNK_ROWS + i] = x;
            if (x > a->max[g]) a->max[g] = x;
        }
    }
}

static int is_kept(const struct sketch_mass *a, int32_t i)
{
    for (int32_t g = 0; g < a->group; g++)
        if (a->logits[g * SR_CHUNK_ROWS + i] >= a->floor[g] + a->cut) return 1;
    return 0;
}

void sr_sketch_mass_scalar(struct sketch_mass *a)
{
    int32_t n = 0;
    memset(a->sum, 0, (size_t)a->group * sizeof(float));
    for (int32_t i = a->row0; i < a->row1; i++) {
        for (int32_t g = 0; g < a->group; g++) a->sum[g] += expf(a->logits[g * SR_CHUNK_ROWS + i] - a->max[g]);
        if (!is_kept(a, i)) continue;
        for (int32_t g = 0; g < a->group; g++) a->kept[g * SR_CHUNK_ROWS + n] = a->logits[g * SR_CHUNK_ROWS + i];
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
            const float x = a->kept[g * SR_CHUNK_ROWS + i] - a->log_total[g];
            t = x > t ? x : t;
        }
        float bin = -t * a->bins_per_nat;
        bin = bin > 0 ? bin : 0;
        bin = bin < SR_SKETCH_BINS - 1 ? bin : SR_SKETCH_BINS - 1;
        a->bin[i] = t >= a->cut ? (uint16_t)bin : (uint16_t)(SR_SKETCH_BINS + i % 16);
        for (int32_t g = 0; g < a->group; g++)
            a->sums[a->bin[i] * width + g] += expf(a->kept[g * SR_CHUNK_ROWS + i] - a->log_total[g]);
    }
}

int32_t sr_sketch_pick_scalar(const struct sketch_pick *a)
{
    int32_t n = 0;
    for (int32_t i = 0; i < a->n; i++)
        if (a->bin[i] >= a->first && a->bin[i] < a->end) a->list[n++] = a->rows[i];
    return n;
}
