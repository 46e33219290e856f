/* SPDX-License-Identifier: Apache-2.0
 *
 * The scan around rest_of_block(), which the file that includes this has: it leaves in x what the second plane adds to the
 * logits of a block. A part's logits by the first plane are stored and its open runs asked for, block by block, while the
 * part before it gets its second plane, its mass and its kept rows: all that is touched meanwhile is in the first cache.
 */
#ifndef SR_CPU_SKETCH_SKETCH_SCAN_BODY_AVX512_H
#define SR_CPU_SKETCH_SKETCH_SCAN_BODY_AVX512_H

#include "cpu/sketch/sketch_first_avx512.h"

#include <math.h>

/* A head's constants, its sums and maxima so far. exp(x - from) is taken in base 2. */
struct scan_head { __m512 shift, least, sum, max; };

struct scan { struct sketch_scan *a; struct rest_plane plane; struct rest_factors factors; struct scan_head head[SR_ATTN_MAX_GROUP]; };

/* Open runs to be asked for meanwhile: from block `at` of a second plane on. */
struct ahead { const uint8_t *at; const __mmask16 *lanes; int32_t n; };

/* Heads of a tile from g0 on over the blocks of a part. keep: rows to be kept, added to. */
struct scan_tile { struct scan *s; int32_t g0; const struct part *p; struct ahead ahead; __mmask16 *keep; };

/* Of a block with open runs, or on the edge of the range: logits as they remain. */
SR_INLINE void finish_block(const int bits, const int heads, const struct scan_tile *t, int32_t row, __mmask16 lanes, __mmask16 inside, __m512 *x)
{
    float *logits = t->s->a->logits + t->g0 * SR_SKETCH_STRIDE + row;
    __m512 more[TILE_HEADS];
    if (lanes) {
        rest_of_block(bits, heads, t->s, t->g0, row, lanes, more);
        SR_UNROLL for (int g = 0; g < heads; g++) x[g] = _mm512_mask_add_ps(x[g], lanes, x[g], more[g]);
    }
    SR_UNROLL for (int g = 0; g < heads; g++) {
        x[g] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), inside, x[g]);
        _mm512_storeu_ps(logits + g * SR_SKETCH_STRIDE, x[g]);
    }
}

SR_INLINE void scan_heads(const int bits, const int heads, const struct scan_tile *t)
{
    const __m512 log2e = _mm512_set1_ps(0x1.715476p+0f);
    const struct part *p = t->p;
    struct scan_head *head = t->s->head + t->g0;
    const float *logits = t->s->a->logits + t->g0 * SR_SKETCH_STRIDE;
    const size_t block_bytes = t->s->plane.block_bytes;
    struct ahead ahead = t->ahead;
    __m512 sum[TILE_HEADS], max[TILE_HEADS];
    SR_UNROLL for (int g = 0; g < heads; g++) sum[g] = head[g].sum, max[g] = head[g].max;
    for (int32_t row = p->row0; row < p->row1; row += BLOCK_ROWS) {
        const __mmask16 lanes = p->lanes[block_of((uint32_t)row)], inside = p->is_whole ? 0xffff : inside_of(t->s->a, row);
        __m512 x[TILE_HEADS];
        __mmask16 keep = 0;
        if (ahead.n-- > 0) {
            fetch_rest(ahead.at, block_bytes, *ahead.lanes++);
            ahead.at += block_bytes;
        }
        SR_UNROLL for (int g = 0; g < heads; g++) x[g] = _mm512_loadu_ps(logits + g * SR_SKETCH_STRIDE + row);
        if (lanes || inside != 0xffff) finish_block(bits, heads, t, row, lanes, inside, x);
        SR_UNROLL for (int g = 0; g < heads; g++) {
            keep |= _mm512_cmp_ps_mask(x[g], head[g].least, _CMP_GE_OQ);
            max[g] = _mm512_max_ps(max[g], x[g]); /* of anything and a NaN it is the NaN, until the next row */
            sum[g] = _mm512_add_ps(sum[g], sr_exp2_rough_avx512(_mm512_fmadd_ps(x[g], log2e, head[g].shift)));
        }
        t->keep[block_of((uint32_t)row)] |= keep & inside;
    }
    SR_UNROLL for (int g = 0; g < heads; g++) head[g].sum = sum[g], head[g].max = max[g];
}

SR_INLINE void scan_tile(const int bits, int32_t heads, const struct scan_tile *t)
{
    switch (heads) {
    case 1: scan_heads(bits, 1, t); return;
    case 2: scan_heads(bits, 2, t); return;
    case 3: scan_heads(bits, 3, t); return;
    case 4: scan_heads(bits, 4, t); return;
    case 5: scan_heads(bits, 5, t); return;
    case 6: scan_heads(bits, 6, t); return;
    case 7: scan_heads(bits, 7, t); return;
    default: scan_heads(bits, 8, t); return;
    }
}

/* Rows are compressed in the register and stored whole: what lies beyond the last one kept is overwritten by the next ones,
 * and there is room for it. */
SR_INLINE void keep_rows(struct sketch_scan *a, int32_t row, __mmask16 keep)
{
    const __m512i rows = _mm512_add_epi32(sr_iota_avx512(), _mm512_set1_epi32(a->first_row + row));
    _mm512_storeu_si512(a->kept_rows + a->n_kept, _mm512_maskz_compress_epi32(keep, rows));
    for (int32_t g = 0; g < a->group; g++) {
        const __m512 x = _mm512_loadu_ps(a->logits + g * SR_SKETCH_STRIDE + row);
        _mm512_storeu_ps(a->kept + g * SR_SKETCH_STRIDE + a->n_kept, _mm512_maskz_compress_ps(keep, x));
    }
    a->n_kept += __builtin_popcount(keep);
}

static void scan_part(struct scan *s, const struct part *p, const struct ahead *ahead)
{
    const struct ahead none = {NULL, NULL, 0};
    struct sketch_scan *a = s->a;
    __mmask16 keep[PART_ROWS / BLOCK_ROWS] = {0};
    for (int32_t g = 0; g < a->group; g += tile_of(a, g)) {
        const struct scan_tile t = {s, g, p, g == 0 ? *ahead : none, keep};
        if (a->sketch->bits == 4) scan_tile(4, tile_of(a, g), &t);
        else scan_tile(8, tile_of(a, g), &t);
    }
    for (int32_t row = p->row0; row < p->row1; row += BLOCK_ROWS)
        if (keep[block_of((uint32_t)row)]) keep_rows(a, row, keep[block_of((uint32_t)row)]);
}

/* Runs of a part that was scored, or, where nearly all of the last part's were open, those that the next chunk begins with. */
static struct ahead runs_ahead(const struct scan *s, const struct part *p, int is_last)
{
    const size_t block = (size_t)(p->row0 / BLOCK_ROWS);
    int32_t n_open = 0;
    if (!is_last)
        return (struct ahead){s->plane.y + block * s->plane.block_bytes, p->lanes + block % (PART_ROWS / BLOCK_ROWS), (p->row1 - p->row0 + BLOCK_ROWS - 1) / BLOCK_ROWS};
    for (int32_t i = 0; i < PART_ROWS / BLOCK_ROWS; i++) n_open += __builtin_popcount(p->lanes[i]);
    if (!s->a->next || n_open < PART_ROWS * 3 / 4) return (struct ahead){NULL, NULL, 0};
    return (struct ahead){s->a->next + (s->plane.y - s->a->y_chunk), p->lanes, PART_ROWS / BLOCK_ROWS};
}

static void scan(struct sketch_scan *a)
{
    const int32_t first = a->row0 / PART_ROWS, last = (a->row1 - 1) / PART_ROWS;
    const int64_t first_bytes = (int64_t)sr_sketch_first_bytes(a->sketch);
    struct scan s = {.a = a, .plane = rest_plane(a)};
    struct part parts[2];
    int64_t n_rest = 0;
    rest_factors(a, &s.factors);
    for (int32_t g = 0; g < a->group; g++)
        s.head[g] = (struct scan_head){_mm512_set1_ps(-a->from[g] * 0x1.715476p+0f), _mm512_set1_ps(a->floor[g] + a->cut),
                                       _mm512_setzero_ps(), _mm512_set1_ps(-INFINITY)};
    a->n_kept = 0;
    fetch_first(a, a->y_chunk, first);
    for (int32_t i = first; i <= last + 1; i++) {
        struct part *now = &parts[i % 2], *before = &parts[(i + 1) % 2];
        if (i < last) fetch_first(a, a->y_chunk, i + 1);
        else if (i == last && a->next) fetch_first(a, a->next, 0);
        if (i <= last) n_rest += first_plane(a, i, now);
        struct ahead ahead = i <= last ? runs_ahead(&s, now, 0) : runs_ahead(&s, before, 1);
        if (i > first) scan_part(&s, before, &ahead);
        else
            for (; ahead.n > 0; ahead.n--, ahead.at += s.plane.block_bytes) fetch_rest(ahead.at, s.plane.block_bytes, *ahead.lanes++);
    }
    for (int32_t g = 0; g < a->group; g++) {
        a->sum[g] = _mm512_reduce_add_ps(s.head[g].sum);
        a->max[g] = _mm512_reduce_max_ps(s.head[g].max);
    }
    a->touched->y_rows += a->row1 - a->row0;
    a->touched->y_bytes += (a->row1 - a->row0) * first_bytes + n_rest * ((int64_t)a->sketch->row_bytes - first_bytes);
}

#endif
