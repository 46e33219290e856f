/* SPDX-License-Identifier: Apache-2.0
 *
 * What the keys and the values of Q8_0 rows share on the matrix units: the scratch, requests ahead, scales.
 * attn_keys_amx.c makes logits and sets the tiles, attn_bytes_amx.c says how and makes outputs.
 */
#ifndef SR_CPU_ATTN_ATTN_CODES_AMX_H
#define SR_CPU_ATTN_ATTN_CODES_AMX_H

#include "cpu/attn/attn_weights_amx.h"

enum { ROWS = 16, HEADS = 8, TILE = 1024, MAX_BLOCKS = SR_ATTN_MAX_DIM / SR_KV_BLOCK, ALL = SR_ATTN_BLOCK, MAX_SUMS = 2 * MAX_BLOCKS };
enum { BLOCK_BYTES = 2 + SR_KV_BLOCK };

/* In the scratch of the call. What tiles have beyond the heads has no meaning. Arrays of two are written in turns; they
 * are not whole pages apart, or a load from one would wait for stores to the other. */
struct sr_codes_work {
    uint8_t q[MAX_SUMS][TILE];                     /* [per tile of sums][per product] rows of [16 lanes][4 elements] */
    struct { int32_t sum[MAX_SUMS][ROWS][16]; uint8_t apart[2048]; } sums[2]; /* [per 8 heads][per blocks][16 keys][lanes] */
    uint16_t k_half[ALL * MAX_BLOCKS];             /* scales: [64][width], 0 beyond the blocks */
    uint16_t v_row_half[ALL * MAX_BLOCKS], v_half[ALL * MAX_BLOCKS]; /* [64][blocks]; [blocks][64] */
    float k_scale[ALL * MAX_BLOCKS];               /* [64][width] */
    uint8_t weights[2][WEIGHT_TILES * TILE];       /* [3: low byte first][group] rows of [64 keys] */
    uint8_t values[2][2][TILE];                    /* [][half of the block][16][16 elements][4 keys] */
    struct { int32_t half[2][WEIGHT_TILES * 16][16]; uint8_t apart[2048]; } outs[2]; /* [half][as weights][16 elements] */
    uint8_t rows[ALL * MAX_BLOCKS * BLOCK_BYTES];  /* copies of rows */
    sr_block_weights p;                            /* whole lines each: on the stack they would not be */
    float q_scale[SR_ATTN_MAX_GROUP];
    int32_t parts;                                 /* blocks of a tile of sums: 8 lanes are [8 / parts heads][parts] */
};
_Static_assert(sizeof(struct sr_codes_work) <= SR_ATTN_BLOCK_SCRATCH, "the caller's scratch");

SR_INLINE int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }

/* ---- requests ---- */

/* The j-th of n parts of the next so many lines of the stream; after the last of them it goes on. Each line once: a request for one
 * that is already asked for takes another's place, and one that nobody asks for is waited for. */
enum { STREAM_AHEAD = 12288 };
SR_INLINE void fetch_part(const int32_t lines, const int32_t j, const int32_t n, struct ahead *h)
{
    const int32_t from = lines * j / n, to = lines * (j + 1) / n;
    if (!h->stream) return;
    const char *at = (const char *)h->stream + STREAM_AHEAD;
    in_memory(); /* the compiler would make them one after the other */
    SR_UNROLL for (int32_t i = from; i < to; i++) _mm_prefetch(at + i * SR_LINE, _MM_HINT_T1);
    if ((uintptr_t)(at + from * SR_LINE) % SR_PAGE_BYTES < SR_PAGE_FIRST)
        SR_UNROLL for (int32_t i = from; i < to; i++) _mm_prefetch(at + SR_PAGE_BYTES + i * SR_LINE, _MM_HINT_T1);
    if (j + 1 == n) h->stream += lines * SR_LINE;
    in_memory();
}

/* ---- scales ---- */

/* Scales of 64 rows to [64][width]. Two and four blocks a row as one word: as many stores of two bytes would take twice the
 * time, shuffles have enough to do. */
SR_INLINE void take_scales(const int32_t n_blocks, const int32_t width, const uint8_t *p, uint16_t *to)
{
    for (int32_t i = 0; i < ALL; i++, to += width, p += n_blocks * BLOCK_BYTES) {
        uint16_t x[4] = {0};
        if (n_blocks != 2 && n_blocks != 4) {
            for (int32_t b = 0; b < n_blocks; b++) memcpy(&to[b], p + b * BLOCK_BYTES, 2);
            continue;
        }
        SR_UNROLL for (int32_t b = 0; b < n_blocks; b++) memcpy(&x[b], p + b * BLOCK_BYTES, 2);
        const uint32_t low = x[0] | (uint32_t)x[1] << 16;
        const uint64_t all = n_blocks == 4 ? low | (uint64_t)(x[2] | (uint32_t)x[3] << 16) << 32 : low;
        memcpy(to, &all, n_blocks == 4 ? 8 : 4);
    }
}

SR_INLINE __m512 widen_scales(const uint16_t *half) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)half)); }

/* ---- keys ---- */

/* Of attn_keys_amx.c. The tiles of a call: 0, 1: sums of keys; 2: keys; 3: q; 4, 5: outputs; 6: weights; 7: values. */
void sr_attn_keys_begin_amx(const struct attn_block *a, struct sr_codes_work *w);
/* Logits of K in Q8_0. */
void sr_attn_keys_amx(const struct attn_block *a, struct sr_codes_work *w, sr_block_weights p);

#endif
