/* SPDX-License-Identifier: Apache-2.0
 *
 * Sketch rows from K rows: the specification. Code of y: floor(y / step) + 2^(bits-1), clamped to the range and then
 * counted as clipped; the level it stands for is (code - 2^(bits-1) + 1/2) step. NaN becomes code 0, clipped.
 */
#include "cpu/kernels.h"
#include "cpu/attn/kv_row.h"

#include <math.h>

static uint32_t code_of(float y, float step, int32_t bits, int64_t *clipped)
{
    const float half = (float)(1 << (bits - 1)), c = floorf(y / step) + half;
    if (c >= 0 && c < 2 * half) return (uint32_t)c;
    ++*clipped;
    return c >= 2 * half ? (uint32_t)(2 * half) - 1u : 0u;
}

void sr_sketch_encode_scalar(const struct sketch_rows *a)
{
    const int32_t d = a->shape->head_dim;
    float k[SR_ATTN_MAX_DIM];
    for (int32_t row = a->row0; row < a->row1; row++) {
        uint32_t first = 0, words[SR_ATTN_MAX_DIM] = {0};
        sr_row_load(a->shape->k_type, a->k_chunk + (size_t)row * a->shape->k_row_bytes, k, d);
        ++*a->k_rows;
        for (int32_t i = 0; i < d; i++) k[i] = k[i] * a->k_scale - a->basis->mu[i];
        for (int32_t j = 0; j < a->sketch->rank; j++) {
            float y = 0;
            for (int32_t i = 0; i < d; i++) y += a->basis->analysis[j * d + i] * k[i];
            const uint32_t code = code_of(y, a->basis->step[j], sr_sketch_code_bits(a->sketch, j), a->clipped);
            if (j < SR_SKETCH_FIRST) first |= code << 8 * j;
            else sr_sketch_put(a->sketch, j, code, words);
        }
        sr_sketch_store_first(a->y_chunk, a->sketch->bits, row, first);
        for (int32_t w = 0; w < sr_sketch_words(a->sketch); w++) memcpy(a->y_chunk + sr_sketch_word_at(a->sketch, row, w), &words[w], 4);
    }
}
