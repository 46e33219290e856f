/* SPDX-License-Identifier: Apache-2.0
 *
 * The sketch kernels in terms of the vector layer: a vector holds as many rows as it has lanes.
 */
#ifndef SR_CPU_SKETCH_SKETCH_BODY_H
#define SR_CPU_SKETCH_SKETCH_BODY_H

#include "cpu/kernels.h"
#include "cpu/attn/vec_math_body.h"

#include <math.h>

/* ---- encode ---- */

SR_INLINE uint32_t code_of(float y, float step, int32_t bits, int64_t *clipped)
{
    const float half = (float)(1 << (bits - 1)), c = floorf(y / step) + half;
    if (c >= 0 && c < 2 * half) return (uint32_t)c;
    ++*clipped;
    return c >= 2 * half ? (uint32_t)(2 * half) - 1u : 0u;
}

/* Four coordinates of one row at a time. */
SR_INLINE void project(const struct sketch_rows *a, const float *k, float *y)
{
    const int32_t d = a->shape->head_dim, rank = a->sketch->rank;
    for (int32_t j = 0; j < rank; j += 4) {
        const int32_t n = rank - j < 4 ? rank - j : 4;
        const float *b[4];
        vec acc[4];
        SR_UNROLL for (int c = 0; c < 4; c++) {
            b[c] = a->basis->analysis + (j + (c < n ? c : n - 1)) * d;
            acc[c] = vec_all(0);
        }
        for (int32_t i = 0; i < d; i += VEC)
            SR_UNROLL for (int c = 0; c < 4; c++) acc[c] = vec_fma(vec_load(b[c] + i), vec_load(k + i), acc[c]);
        SR_UNROLL for (int c = 0; c < 4; c++) y[j + c] = vec_sum(acc[c]);
    }
}

SR_INLINE void sketch_encode_body(const struct sketch_rows *a)
{
    const int32_t d = a->shape->head_dim, bits = a->sketch->bits, per_word = 32 / bits;
    float k[SR_ATTN_MAX_DIM], y[SR_ATTN_MAX_DIM + 4];
    for (int32_t row = a->row0; row < a->row1; row++) {
        vec_unpack_any(a->shape->k_type, a->k_chunk + (size_t)row * a->shape->k_row_bytes, d, k);
        ++*a->k_rows;
        for (int32_t i = 0; i < d; i += VEC) vec_store(k + i, vec_sub(vec_mul(vec_load(k + i), vec_all(a->k_scale)), vec_load(a->basis->mu + i)));
        project(a, k, y);
        for (int32_t w = 0; w < (int32_t)(a->sketch->row_bytes / 4); w++) {
            uint32_t word = 0;
            for (int32_t j = w * per_word; j < a->sketch->rank && j < (w + 1) * per_word; j++)
                word |= code_of(y[j], a->basis->step[j], bits, a->clipped) << (j % per_word * bits);
            memcpy(a->y_chunk + sr_sketch_word_at(row, w, a->sketch->row_bytes), &word, 4);
        }
    }
}

/* ---- score ---- */

enum { SCORE_HEADS = 4 };

/* VEC rows from `row` on and `heads` heads. The centre of the codes is in `start`. */
SR_INLINE void score_rows(const struct sketch_score *a, const int heads, int32_t g0, int32_t row, const float *start)
{
    const int32_t padded = sr_sketch_padded(a->sketch->rank), bits = a->sketch->bits, per_word = 32 / bits;
    const uint8_t *y = a->y_chunk + sr_sketch_word_at(row, 0, a->sketch->row_bytes);
    const float *w = a->w + g0 * padded;
    vec acc[SCORE_HEADS];
    SR_UNROLL for (int g = 0; g < heads; g++) acc[g] = vec_all(start[g0 + g]);
    for (int32_t i = 0; i * per_word < a->sketch->rank; i++) {
        const veci words = vec_words(y + i * 64);
        for (int32_t j = 0; j < per_word; j++) {
            const vec code = vec_code(words, j * bits, (1 << bits) - 1);
            SR_UNROLL for (int g = 0; g < heads; g++) acc[g] = vec_fma(code, vec_all(w[g * padded + i * per_word + j]), acc[g]);
        }
    }
    SR_UNROLL for (int g = 0; g < heads; g++) vec_store(a->logits + (g0 + g) * SR_CHUNK_ROWS + row, acc[g]);
}

SR_INLINE void score_heads(const struct sketch_score *a, int32_t g, int32_t row, const float *start)
{
    switch (a->group - g < SCORE_HEADS ? a->group - g : SCORE_HEADS) {
    case 1: score_rows(a, 1, g, row, start); return;
    case 2: score_rows(a, 2, g, row, start); return;
    case 3: score_rows(a, 3, g, row, start); return;
    default: score_rows(a, 4, g, row, start); return;
    }
}

SR_INLINE void sketch_score_body(const struct sketch_score *a)
{
    const int32_t first = a->row0 & ~15, end = (a->row1 + 15) & ~15, padded = sr_sketch_padded(a->sketch->rank);
    const float centre = (float)(1 << (a->sketch->bits - 1)) - 0.5f;
    float start[SR_ATTN_MAX_GROUP];
    for (int32_t g = 0; g < a->group; g++) {
        float sum = 0;
        for (int32_t j = 0; j < a->sketch->rank; j++) sum += a->w[g * padded + j];
        start[g] = a->base[g] - centre * sum;
    }
    for (int32_t row = first; row < end; row += VEC) {
        const int32_t from = row > a->row0 ? row : a->row0, to = row + VEC < a->row1 ? row + VEC : a->row1;
        for (int32_t g = 0; g < a->group; g += SCORE_HEADS) score_heads(a, g, row, start);
        *a->y_rows += to > from ? to - from : 0;
    }
    for (int32_t g = 0; g < a->group; g++) {
        float *x = a->logits + g * SR_CHUNK_ROWS;
        vec max = vec_all(-INFINITY);
        for (int32_t i = first; i < a->row0; i++) x[i] = -INFINITY;
        for (int32_t i = a->row1; i < end; i++) x[i] = -INFINITY;
        for (int32_t i = first; i < end; i += VEC) max = vec_max(vec_load(x + i), max);
        a->max[g] = vec_top(max);
    }
}

/* ---- mass and shares ---- */

SR_INLINE int32_t keep_rows(const struct sketch_mass *a, int32_t row, unsigned keep, int32_t n)
{
    for (; keep; keep &= keep - 1) {
        const int32_t i = row + __builtin_ctz(keep);
        a->kept_rows[n] = a->first_row + i;
        for (int32_t g = 0; g < a->group; g++) a->kept[g * SR_CHUNK_ROWS + n] = a->logits[g * SR_CHUNK_ROWS + i];
        n++;
    }
    return n;
}

SR_INLINE void sketch_mass_body(struct sketch_mass *a)
{
    vec sum[SR_ATTN_MAX_GROUP];
    int32_t n = 0;
    for (int32_t g = 0; g < a->group; g++) sum[g] = vec_all(0);
    for (int32_t row = a->row0 & ~15; row < a->row1; row += VEC) {
        unsigned keep = 0;
        for (int32_t g = 0; g < a->group; g++) {
            const vec x = vec_load(a->logits + g * SR_CHUNK_ROWS + row);
            sum[g] = vec_add(sum[g], vec_exp(vec_sub(x, vec_all(a->max[g]))));
            keep |= vec_not_less(x, vec_all(a->floor[g] + a->cut));
        }
        if (row < a->row0) keep = row + VEC <= a->row0 ? 0 : keep & (~0u << (a->row0 - row));
        if (row + VEC > a->row1) keep &= (1u << (a->row1 - row)) - 1u;
        n = keep_rows(a, row, keep, n);
    }
    for (int32_t g = 0; g < a->group; g++) a->sum[g] = vec_sum(sum[g]);
    a->n_kept = n;
}

/* The last vector may reach beyond n: kept has whole chunks, and what is there is not used. */
SR_INLINE void sketch_share_body(const struct sketch_share *a)
{
    const int32_t width = sr_sketch_width(a->group);
    for (int32_t i = 0; i < a->n; i += VEC) {
        float t[VEC], share[SR_ATTN_MAX_GROUP][VEC];
        vec top = vec_all(-INFINITY);
        for (int32_t g = 0; g < a->group; g++) {
            const vec x = vec_sub(vec_load(a->kept + g * SR_CHUNK_ROWS + i), vec_all(a->log_total[g]));
            top = vec_max(x, top);
            vec_store(share[g], vec_exp(x));
        }
        vec_store(t, top);
        for (int32_t j = 0; j < VEC && i + j < a->n; j++) {
            float bin = -t[j] * a->bins_per_nat;
            bin = bin > 0 ? bin : 0;
            bin = bin < SR_SKETCH_BINS - 1 ? bin : SR_SKETCH_BINS - 1;
            a->bin[i + j] = t[j] >= a->cut ? (uint16_t)bin : (uint16_t)(SR_SKETCH_BINS + (i + j) % 16);
            for (int32_t g = 0; g < a->group; g++) a->sums[a->bin[i + j] * width + g] += share[g][j];
        }
    }
}

#endif
