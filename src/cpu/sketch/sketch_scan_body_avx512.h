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

struct scan { struct sketch_scan *a; struct inside inside; struct rest_plane plane; struct rest_factors factors; struct scan_head head[SR_ATTN_MAX_GROUP]; };

/* Open runs to be asked for meanwhile: from block `at` of a second plane on. */
struct ahead { const uint8_t *at; const __mmask16 *lanes; int32_t n; };

/* Heads of a tile from g0 on over the blocks of a part. */
struct scan_tile { struct scan *s; int32_t g0; const struct part *p; struct ahead ahead; };

/* Of a block with open runs, or on the edge of the range: logits as they remain. */
SR_INLINE void finish_block(const int bits, const int heads, const struct scan_tile *t, int32_t row, __mmask16 lanes, __mmask16 inside)
{
    float *logits = t->s->a->logits + t->g0 * SR_SKETCH_STRIDE + row;
    __m512 more[TILE_HEADS];
    SR_UNROLL for (int g = 0; g < heads; g++) more[g] = _mm512_setzero_ps();
    if (lanes) rest_of_block(bits, heads, t->s, t->g0, row, lanes, more);
    SR_UNROLL for (int g = 0; g < heads; g++) {
        const __m512 x = _mm512_loadu_ps(logits + g * SR_SKETCH_STRIDE);
        const __m512 both = _mm512_mask_add_ps(x, lanes, x, more[g]);
        _mm512_storeu_ps(logits + g * SR_SKETCH_STRIDE, _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), inside, both));
    }
}

SR_INLINE void rest_heads(const int bits, const int heads, const struct scan_tile *t)
{
    const struct part *p = t->p;
    const size_t block_bytes = t->s->plane.block_bytes;
    struct ahead ahead = t->ahead;
    for (int32_t row = p->row0; row < p->row1; row += BLOCK_ROWS) {
        const __mmask16 lanes = p->lanes[block_of((uint32_t)row)], inside = (__mmask16)inside_at(&t->s->inside, row, BLOCK_ROWS);
        if (ahead.n-- > 0) {
            fetch_rest(ahead.at, block_bytes, *ahead.lanes++);
            ahead.at += block_bytes;
        }
        if (lanes || inside != 0xffff) finish_block(bits, heads, t, row, lanes, inside);
    }
}

SR_INLINE void rest_tile(const int bits, int32_t heads, const struct scan_tile *t)
{
    switch (heads) {
    case 1: rest_heads(bits, 1, t); return;
    case 2: rest_heads(bits, 2, t); return;
    case 3: rest_heads(bits, 3, t); return;
    case 4: rest_heads(bits, 4, t); return;
    case 5: rest_heads(bits, 5, t); return;
    case 6: rest_heads(bits, 6, t); return;
    case 7: rest_heads(bits, 7, t); return;
    default: rest_heads(bits, 8, t); return;
    }
}

/* Sums and maxima of a part, and the rows to be kept. One head after the other: its constants and sums stay in registers, which
 * those of seven heads at once do not. */
static void sum_part(struct scan *s, const struct part *p, __mmask16 *keep)
{
    const __m512 log2e = _mm512_set1_ps(0x1.715476p+0f);
    const uint32_t first = block_of((uint32_t)p->row0), n = (uint32_t)(p->row1 - p->row0 + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (int32_t g = 0; g < s->a->group; g++) {
        const float *logits = s->a->logits + g * SR_SKETCH_STRIDE + p->row0;
        const __m512 shift = s->head[g].shift, least = s->head[g].least;
        __m512 sum = s->head[g].sum, max = s->head[g].max;
        for (uint32_t i = 0; i < n; i++) {
            const __m512 x = _mm512_loadu_ps(logits + i * BLOCK_ROWS);
            keep[first + i] |= _mm512_cmp_ps_mask(x, least, _CMP_GE_OQ);
            max = _mm512_max_ps(max, x); /* of anything and a NaN it is the NaN, until the next row */
            sum = _mm512_add_ps(sum, sr_exp2_rough_avx512(_mm512_fmadd_ps(x, log2e, shift)));
        }
        s->head[g].sum = sum;
        s->head[g].max = max;
    }
}

/* Blocks with rows that are kept, and where these go. */
struct kept_blocks { int32_t n, row[PART_ROWS / BLOCK_ROWS], to[PART_ROWS / BLOCK_ROWS]; __mmask16 keep[PART_ROWS / BLOCK_ROWS]; };

static void find_kept(struct scan *s, const struct part *p, const __mmask16 *keep, struct kept_blocks *k)
{
    struct sketch_scan *a = s->a;
    k->n = 0;
    for (int32_t row = p->row0; row < p->row1; row += BLOCK_ROWS) {
        const __mmask16 rows = keep[block_of((uint32_t)row)] & (__mmask16)inside_at(&s->inside, row, BLOCK_ROWS);
        k->row[k->n] = row;
        k->to[k->n] = a->n_kept;
        k->keep[k->n] = rows;
        k->n += rows != 0;
        a->n_kept += __builtin_popcount(rows);
    }
}

/* Rows are compressed in the register and stored whole: what lies beyond the last one kept is overwritten by the next ones,
 * and there is room for it. */
static void keep_rows(const struct sketch_scan *a, const struct kept_blocks *k)
{
    for (int32_t i = 0; i < k->n; i++) {
        const __m512i rows = _mm512_add_epi32(sr_iota_avx512(), _mm512_set1_epi32(a->first_row + k->row[i]));
        _mm512_storeu_si512(a->kept_rows + k->to[i], _mm512_maskz_compress_epi32(k->keep[i], rows));
    }
    for (int32_t g = 0; g < a->group; g++) {
        const float *logits = a->logits + g * SR_SKETCH_STRIDE;
        float *kept = a->kept + g * SR_SKETCH_STRIDE;
        for (int32_t i = 0; i < k->n; i++) _mm512_storeu_ps(kept + k->to[i], _mm512_maskz_compress_ps(k->keep[i], _mm512_loadu_ps(logits + k->row[i])));
    }
}

static void scan_part(struct scan *s, const struct part *p, const struct ahead *ahead)
{
    const struct ahead none = {NULL, NULL, 0};
    struct sketch_scan *a = s->a;
    __mmask16 keep[PART_ROWS / BLOCK_ROWS] = {0};
    struct kept_blocks kept;
    for (int32_t g = 0; g < a->group; g += tile_of(a, g)) {
        const struct scan_tile t = {s, g, p, g == 0 ? *ahead : none};
        if (a->sketch->bits == 4) rest_tile(4, tile_of(a, g), &t);
        else if (a->sketch->bits == 8) rest_tile(8, tile_of(a, g), &t);
        else rest_tile(SR_SKETCH_MIXED, tile_of(a, g), &t);
    }
    sum_part(s, p, keep);
    find_kept(s, p, keep, &kept);
    keep_rows(a, &kept);
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
    struct scan s; /* some KB: not cleared */
    struct part parts[2];
    int64_t n_rest = 0;
    s.a = a;
    mark_inside(a, &s.inside);
    s.plane = rest_plane(a);
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
        if (i <= last) n_rest += first_plane(a, &s.inside, i, now);
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
