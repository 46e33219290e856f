/* SPDX-License-Identifier: Apache-2.0
 *
 * The sketch kernels in terms of the vector layer: a vector holds as many rows as it has lanes.
 */
#ifndef SR_CPU_SKETCH_SKETCH_BODY_H
#define SR_CPU_SKETCH_SKETCH_BODY_H

#include "cpu/kernels.h"
#include "cpu/attn/vec_math_body.h"
#include "cpu/sketch/sketch_inside_inline.h"

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
    const int32_t d = a->shape->head_dim, rank = a->sketch->rank;
    float k[SR_ATTN_MAX_DIM], y[SR_ATTN_MAX_DIM + 4];
    for (int32_t row = a->row0; row < a->row1; row++) {
        uint32_t first = 0, words[SR_ATTN_MAX_DIM] = {0};
        vec_unpack_any(a->shape->k_type, a->k_chunk + (size_t)row * a->shape->k_row_bytes, d, k);
        ++*a->k_rows;
        for (int32_t i = 0; i < d; i += VEC) vec_store(k + i, vec_sub(vec_mul(vec_load(k + i), vec_all(a->k_scale)), vec_load(a->basis->mu + i)));
        project(a, k, y);
        for (int32_t j = 0; j < rank; j++) {
            const uint32_t code = code_of(y[j], a->basis->step[j], sr_sketch_code_bits(a->sketch, j), a->clipped);
            if (j < SR_SKETCH_FIRST) first |= code << 8 * j;
            else sr_sketch_put(a->sketch, j, code, words);
        }
        sr_sketch_store_first(a->y_chunk, a->sketch->bits, row, first);
        for (int32_t w = 0; w < sr_sketch_words(a->sketch); w++) memcpy(a->y_chunk + sr_sketch_word_at(a->sketch, row, w), &words[w], 4);
    }
}

/* ---- score ---- */

enum { SCORE_HEADS = 4, RUNS = SR_CHUNK_ROWS / SR_SKETCH_RUN };

/* Per head: what a logit begins with, the centre of the codes in it; of the second plane likewise. And copies of what the first
 * plane needs: beside stores of logits nothing else is sure to stay as it is. */
struct score_starts { float first[SR_ATTN_MAX_GROUP], rest[SR_ATTN_MAX_GROUP], open[SR_ATTN_MAX_GROUP], w[SR_ATTN_MAX_GROUP][SR_SKETCH_FIRST]; };

/* VEC rows from `row` on and `heads` heads by the first plane. Bits of the rows that open their run. */
SR_INLINE unsigned score_first(const struct sketch_scan *a, const int heads, int32_t g0, int32_t row, const struct score_starts *s)
{
    const int32_t bits = a->sketch->bits == 8 ? 8 : 4, shift = sr_sketch_first_shift(bits, row);
    const veci words = vec_words(a->y_chunk + sr_sketch_first_at(bits, row));
    unsigned open = 0;
    vec acc[SCORE_HEADS];
    SR_UNROLL for (int g = 0; g < heads; g++) acc[g] = vec_all(s->first[g0 + g]);
    SR_UNROLL for (int j = 0; j < SR_SKETCH_FIRST; j++) {
        const vec code = vec_code(words, shift + 8 * j, (1 << bits) - 1);
        SR_UNROLL for (int g = 0; g < heads; g++) acc[g] = vec_fma(code, vec_all(s->w[g0 + g][j]), acc[g]);
    }
    SR_UNROLL for (int g = 0; g < heads; g++) {
        vec_store(a->logits + (g0 + g) * SR_SKETCH_STRIDE + row, acc[g]);
        open |= vec_not_less(acc[g], vec_all(s->open[g0 + g]));
    }
    return open;
}

/* The second plane is added to VEC rows of an open run. */
SR_INLINE void score_rest(const struct sketch_scan *a, const int heads, int32_t g0, int32_t row, const float *start)
{
    const int32_t padded = sr_sketch_padded(a->sketch);
    const uint8_t *y = a->y_chunk + sr_sketch_word_at(a->sketch, row, 0);
    const float *w = a->w + g0 * padded + SR_SKETCH_FIRST;
    vec acc[SCORE_HEADS];
    SR_UNROLL for (int g = 0; g < heads; g++) acc[g] = vec_all(start[g0 + g]);
    for (int32_t i = 0; i < sr_sketch_words(a->sketch); i++) {
        const veci words = vec_words(y + i * SR_SKETCH_RUN * 4);
        const int32_t bits = sr_sketch_field_bits(a->sketch, i);
        for (int32_t shift = 0; shift < 32; shift += bits, w++) {
            const vec code = vec_code(words, shift, (1 << bits) - 1);
            SR_UNROLL for (int g = 0; g < heads; g++) acc[g] = vec_fma(code, vec_all(w[g * padded]), acc[g]);
        }
    }
    SR_UNROLL for (int g = 0; g < heads; g++) {
        float *x = a->logits + (g0 + g) * SR_SKETCH_STRIDE + row;
        vec_store(x, vec_add(vec_load(x), acc[g]));
    }
}

/* Up to SCORE_HEADS heads from g on, their number a constant. */
SR_INLINE unsigned score_first_heads(const struct sketch_scan *a, int32_t g, int32_t row, const struct score_starts *s)
{
    switch (a->group - g) {
    case 1: return score_first(a, 1, g, row, s);
    case 2: return score_first(a, 2, g, row, s);
    case 3: return score_first(a, 3, g, row, s);
    default: return score_first(a, 4, g, row, s);
    }
}

SR_INLINE void score_rest_heads(const struct sketch_scan *a, int32_t g, int32_t row, const float *start)
{
    switch (a->group - g) {
    case 1: score_rest(a, 1, g, row, start); return;
    case 2: score_rest(a, 2, g, row, start); return;
    case 3: score_rest(a, 3, g, row, start); return;
    default: score_rest(a, 4, g, row, start); return;
    }
}

SR_INLINE void start_scores(const struct sketch_scan *a, struct score_starts *s)
{
    const int32_t padded = sr_sketch_padded(a->sketch);
    for (int32_t g = 0; g < a->group; g++) {
        const float *w = a->w + g * padded, *field = w + SR_SKETCH_FIRST;
        float first = 0, rest = 0;
        for (int32_t j = 0; j < SR_SKETCH_FIRST; j++) first += w[j];
        for (int32_t i = 0; i < sr_sketch_words(a->sketch); i++) {
            const int32_t bits = sr_sketch_field_bits(a->sketch, i);
            float sum = 0;
            for (int32_t j = 0; j < 32 / bits; j++) sum += *field++;
            rest += sum * ((float)(1 << (bits - 1)) - 0.5f);
        }
        s->first[g] = a->base[g] - (a->sketch->bits == 8 ? 127.5f : 7.5f) * first;
        s->open[g] = a->open[g];
        for (int32_t j = 0; j < SR_SKETCH_FIRST; j++) s->w[g][j] = w[j];
        s->rest[g] = a->more[g] - rest;
    }
}

/* An instruction set's own way to add the second plane to VEC rows of an open run. */
typedef void sketch_rest_fn(const struct sketch_scan *a, const void *with, int32_t row);

SR_INLINE void score_rows(const struct sketch_scan *a, const struct inside *in, sketch_rest_fn *rest, const void *with)
{
    const int32_t first = a->row0 & ~15, end = (a->row1 + 15) & ~15;
    const size_t rest_bytes = a->sketch->row_bytes - sr_sketch_first_bytes(a->sketch);
    uint8_t open[RUNS] = {0};
    struct score_starts s;
    start_scores(a, &s);
    for (int32_t row = first; row < end; row += VEC)
        for (int32_t g = 0; g < a->group; g += SCORE_HEADS)
            open[row / SR_SKETCH_RUN] |= (score_first_heads(a, g, row, &s) & inside_at(in, row, VEC)) != 0;
    for (int32_t row = first; row < end; row += VEC) {
        if (!open[row / SR_SKETCH_RUN]) continue;
        if (rest) rest(a, with, row);
        else
            for (int32_t g = 0; g < a->group; g += SCORE_HEADS) score_rest_heads(a, g, row, s.rest);
        a->touched->y_bytes += __builtin_popcount(inside_at(in, row, VEC)) * (int64_t)rest_bytes;
    }
    a->touched->y_rows += a->row1 - a->row0;
    a->touched->y_bytes += (a->row1 - a->row0) * (int64_t)sr_sketch_first_bytes(a->sketch);
    for (int32_t g = 0; g < a->group; g++) {
        float *x = a->logits + g * SR_SKETCH_STRIDE;
        vec max = vec_all(-INFINITY), max2 = max; /* two chains; whole blocks are at least two vectors */
        for (int32_t i = first; i < a->row0; i++) x[i] = -INFINITY;
        for (int32_t i = a->row1; i < end; i++) x[i] = -INFINITY;
        for (int32_t i = 0; i < a->n_skip; i++) x[a->skip[i] - a->first_row] = -INFINITY;
        for (int32_t i = first; i < end; i += 2 * VEC) {
            max = vec_max(vec_load(x + i), max);
            max2 = vec_max(vec_load(x + i + VEC), max2);
        }
        a->max[g] = vec_top(vec_max(max, max2));
    }
}

/* ---- mass and shares ---- */

SR_INLINE int32_t keep_rows(const struct sketch_scan *a, int32_t row, unsigned keep, int32_t n)
{
    for (; keep; keep &= keep - 1) {
        const int32_t i = row + __builtin_ctz(keep);
        a->kept_rows[n] = a->first_row + i;
        for (int32_t g = 0; g < a->group; g++) a->kept[g * SR_SKETCH_STRIDE + n] = a->logits[g * SR_SKETCH_STRIDE + i];
        n++;
    }
    return n;
}

/* rest: NULL for that of the vector layer. */
SR_INLINE void sketch_scan_body(struct sketch_scan *a, sketch_rest_fn *rest, const void *with)
{
    vec sum[SR_ATTN_MAX_GROUP];
    struct inside in;
    int32_t n = 0;
    mark_inside(a, &in);
    score_rows(a, &in, rest, with);
    for (int32_t g = 0; g < a->group; g++) sum[g] = vec_all(0);
    for (int32_t row = a->row0 & ~15; row < a->row1; row += VEC) {
        unsigned keep = 0;
        for (int32_t g = 0; g < a->group; g++) {
            const vec x = vec_load(a->logits + g * SR_SKETCH_STRIDE + row);
            sum[g] = vec_add(sum[g], vec_exp(vec_sub(x, vec_all(a->from[g]))));
            keep |= vec_at_least(x, vec_all(a->floor[g] + a->cut));
        }
        n = keep_rows(a, row, keep & inside_at(&in, row, VEC), n);
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
            const vec x = vec_sub(vec_load(a->kept + g * SR_SKETCH_STRIDE + i), vec_all(a->log_total[g]));
            top = vec_max(x, top);
            vec_store(share[g], vec_exp(x));
        }
        vec_store(t, top);
        for (int32_t j = 0; j < VEC && i + j < a->n; j++) {
            float bin = -t[j] * a->bins_per_nat;
            bin = bin > 0 ? bin : 0;
            bin = bin < SR_SKETCH_BINS - 1 ? bin : SR_SKETCH_BINS - 1;
            a->bin[i + j] = t[j] >= a->cut ? (uint16_t)bin : SR_SKETCH_BINS;
            if (a->bin[i + j] == SR_SKETCH_BINS) continue;
            for (int32_t g = 0; g < a->group; g++) a->sums[a->bin[i + j] * width + g] += share[g][j];
        }
    }
}

#endif
