/* SPDX-License-Identifier: Apache-2.0
 *
 * Several heads over Q8_0 rows on the matrix units, as whole numbers. Widening codes to floats costs more than the products,
 * so codes stay bytes and what they meet becomes bytes:
 *
 *   logits  [16 keys][2 heads]   = codes [16 keys][32] x q [32][2 heads]       for each block of 32 elements
 *   outputs [3 group][16]        = weights [3 group][64 keys] x codes [64][16] for each half of a block
 *
 * An element of a query is a whole number of two signed bytes, off by max |q| / 65024 at most; a weight times the scale of its
 * row's block has three, off by 2^-22 of the largest of the 64 rows at most. Sums are exact. Keys are read where they lie;
 * values have their bytes turned four rows to a lane.
 *
 * Each phase runs some steps behind the one before it and between its instructions, so that none waits for what it reads: a load
 * of a tile that was just stored row by row waits a hundred cycles. Rows that do not lie together are copied together first.
 */
#include "cpu/attn/attn_codes_amx.h"

/* ---- outputs ---- */

/* [64][blocks] to [blocks][64]. */
SR_INLINE void turn_scales(const int32_t n_blocks, const uint16_t *from, uint16_t *to)
{
    const __m512i four = _mm512_set_epi16(31, 27, 23, 19, 15, 11, 7, 3, 30, 26, 22, 18, 14, 10, 6, 2, 29, 25, 21, 17, 13, 9, 5, 1, 28, 24,
                                          20, 16, 12, 8, 4, 0);
    const __m512i two = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12,
                                         10, 8, 6, 4, 2, 0);
    if (n_blocks != 2 && n_blocks != 4) {
        for (int32_t b = 0; b < n_blocks; b++)
            for (int32_t i = 0; i < ALL; i++) to[b * ALL + i] = from[i * n_blocks + b];
        return;
    }
    for (int32_t i = 0; i < ALL; i += 32 / n_blocks, from += 32, to += 32 / n_blocks) {
        const __m512i x = _mm512_permutexvar_epi16(n_blocks == 4 ? four : two, _mm512_loadu_si512(from));
        if (n_blocks == 2) {
            _mm256_storeu_si256((__m256i *)(void *)to, _mm512_castsi512_si256(x));
            _mm256_storeu_si256((__m256i *)(void *)(to + ALL), _mm512_extracti64x4_epi64(x, 1));
        } else {
            _mm_storeu_si128((__m128i *)(void *)to, _mm512_castsi512_si128(x));
            _mm_storeu_si128((__m128i *)(void *)(to + ALL), _mm512_extracti32x4_epi32(x, 1));
            _mm_storeu_si128((__m128i *)(void *)(to + 2 * ALL), _mm512_extracti32x4_epi32(x, 2));
            _mm_storeu_si128((__m128i *)(void *)(to + 3 * ALL), _mm512_extracti32x4_epi32(x, 3));
        }
    }
}

SR_INLINE void multiply_values(struct sr_codes_work *w, int32_t group, int32_t turn, const int half)
{
    in_memory();
    for (int32_t t = 0; t * 16 < DIGITS * group; t++) {
        if (half) {
            _tile_zero(4);
            _tile_loadd(6, w->weights[turn] + t * TILE, 64);
            _tile_loadd(7, w->values[turn][1], 64);
            _tile_dpbssd(4, 6, 7);
            _tile_stored(4, w->outs[turn].half[1][16 * t], 64);
        } else {
            _tile_zero(5);
            _tile_loadd(6, w->weights[turn] + t * TILE, 64);
            _tile_loadd(7, w->values[turn][0], 64);
            _tile_dpbssd(5, 6, 7);
            _tile_stored(5, w->outs[turn].half[0][16 * t], 64);
        }
    }
    in_memory();
}

/* Of block b of the rows, [i, end) of 16 lanes of 4 rows. */
SR_INLINE void turn_block(const int32_t n_blocks, struct sr_codes_work *w, const uint8_t *rows, int32_t b, const int32_t first,
                          const int32_t end, struct ahead *h)
{
    const size_t row_bytes = (size_t)n_blocks * BLOCK_BYTES;
    uint8_t (*to)[TILE] = w->values[b % 2];
    SR_UNROLL for (int32_t i = first; i < end; i++) {
        if (i % 4 == 0) fetch_rows(h);
        fetch_part(BLOCK_BYTES * ALL / SR_LINE, 2 * i, 32, h);
        turn_q8_values(rows + (size_t)i * row_bytes + (size_t)b * BLOCK_BYTES, row_bytes, to[0] + 64 * i, to[1] + 64 * i);
        fetch_part(BLOCK_BYTES * ALL / SR_LINE, 2 * i + 1, 32, h);
    }
}

SR_INLINE void outputs_of(const int32_t n_blocks, const struct attn_block *a, struct sr_codes_work *w, sr_block_weights p)
{
    const int32_t group = a->shape->group;
    const size_t row_bytes = (size_t)n_blocks * BLOCK_BYTES;
    const uint8_t *rows = all_rows(w->rows, a->v, a->n, row_bytes);
    const size_t k_bytes = a->shape->k_row_bytes;
    const int stream = sr_is_stream_avx512(a), follows = stream && a->n_next > 0 && a->next_k[0] == a->k[a->n - 1] + k_bytes;
    struct ahead ahead = ahead_of(stream ? rows : NULL, a->next_k, follows ? 0 : a->n_next, k_bytes, 4 * n_blocks);
    float base[SR_ATTN_MAX_GROUP] = {0}, top[SR_ATTN_MAX_GROUP], shrink[SR_ATTN_MAX_GROUP], most[MAX_BLOCKS];
    take_scales(n_blocks, n_blocks, rows, w->v_row_half);
    tops_of_all(a, p, base);
    turn_block(n_blocks, w, rows, 0, 0, 8, &ahead); /* in the shade of what the weights wait for */
    weights_of(a, p, base, top, shrink);
    turn_block(n_blocks, w, rows, 0, 8, 16, &ahead);
    turn_scales(n_blocks, w->v_row_half, w->v_half);
    for (int32_t b = 0; b < n_blocks + 2; b++) {
        const int multiplies = b > 0 && b <= n_blocks;
        if (b < n_blocks) {
            __m512 level[4];
            uint8_t *to = w->weights[b % 2];
            SR_UNROLL for (int i = 0; i < 4; i++) level[i] = widen_scales(w->v_half + b * ALL + 16 * i);
            most[b] = level_scales(level, (float)WEIGHT_ONE) / (float)WEIGHT_ONE;
            for (int32_t g = 0; g < group; g++) split_weights(p[g], level, to + g * 64, to + (group + g) * 64, to + (2 * group + g) * 64);
        }
        if (multiplies) multiply_values(w, group, (b - 1) % 2, 0);
        if (b > 0 && b < n_blocks) turn_block(n_blocks, w, rows, b, 0, 16, &ahead);
        if (multiplies) multiply_values(w, group, (b - 1) % 2, 1);
        if (b > 1) add_values(w->outs[b % 2].half[0], w->outs[b % 2].half[1], a, most[b - 2], top, shrink, a->o + (b - 2) * SR_KV_BLOCK);
    }
    *a->v_rows += a->n;
}

SR_INLINE void outputs_by_size(const struct attn_block *a, struct sr_codes_work *w, sr_block_weights p)
{
    const int32_t n_blocks = a->shape->head_dim / SR_KV_BLOCK;
    if (n_blocks == 2) outputs_of(2, a, w, p);
    else if (n_blocks == 4) outputs_of(4, a, w, p);
    else outputs_of(n_blocks, a, w, p);
}

/* ---- the block ---- */

void sr_attn_bytes_amx(const struct attn_block *a)
{
    struct sr_codes_work *w = a->scratch;
    if (a->begins) sr_attn_keys_begin_amx(a, w);
    if (a->shape->k_type == SR_DTYPE_Q8_0) sr_attn_keys_amx(a, w, w->p);
    else sr_attn_logits_avx512(a, w->p);
    if (a->shape->v_type == SR_DTYPE_Q8_0) outputs_by_size(a, w, w->p);
    else sr_attn_outputs_avx512(a, w->p);
    if (a->ends) _tile_release();
}
