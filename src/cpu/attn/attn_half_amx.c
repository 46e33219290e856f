/* SPDX-License-Identifier: Apache-2.0
 *
 * F16 and BF16 rows on the matrix units, which multiply bf16 and add in f32:
 *
 *   logits  [16 keys][16]    = K [16 keys][32] x q [32][8 heads, 8 again]            for each 32 elements
 *   outputs [2 group][16]    = weights [2 group][32 keys] x V [32 keys][16]          for each 16 elements
 *
 * An f16 is exactly two bf16, of 8 and of 3 bits. A query's elements and the weights are two bf16 each, off by 2^-17 of
 * themselves at most; both parts lie side by side in one tile and their products are added afterwards. K rows in bf16
 * that lie together are tiles as they are. What is written for the matrix units is read one step later, so that nothing
 * waits for it.
 */
#include "cpu/kernels.h"
#include "cpu/attn/attn_amx_inline.h"
#include "cpu/attn/attn_avx512.h"

#include <string.h>

enum { ALL = SR_ATTN_BLOCK, ROWS = 16, HEADS = 8, TILE = 1024, MAX_STEPS = SR_ATTN_MAX_DIM / 32, SETS = SR_ATTN_MAX_GROUP / HEADS,
       AHEAD = 12288 };

/* In the scratch of the call. What tiles have beyond the heads has no meaning. Steps are of 32 elements, sets of 8 heads. */
struct work {
    uint8_t q[MAX_STEPS][SETS][TILE];          /* [16 pairs of elements][hi, lo][heads][2] */
    uint8_t keys[2][2][TILE];                  /* [in turns][hi, lo][16 keys][32 elements] */
    float logits[2][SETS][ROWS][16];           /* [in turns][][keys][hi, lo][heads] */
    uint8_t weights[2][SETS][TILE];            /* [half of the block][][hi, lo][heads] rows of [32 keys] */
    uint8_t values[2][2][2][TILE];             /* [in turns][half of the step][hi, lo][16 pairs of keys][16 elements][2] */
    float outs[MAX_STEPS][2][SETS][16][16];    /* [][half of the step][][hi, lo][heads][16 elements] */
    int32_t sets, heads;                       /* heads of a set */
};
_Static_assert(sizeof(struct work) <= SR_ATTN_BLOCK_SCRATCH, "the caller's scratch");

static const uint8_t zero[TILE] __attribute__((aligned(64)));

/* ---- once per piece ---- */

/* Tiles 0, 1: sums of keys; 2, 3: outputs; 4, 5: keys or values; 6: q; 7: weights. */
static void use_tiles(const struct work *w)
{
    struct { uint8_t palette, start_row, zero[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = (uint8_t)(i == 2 || i == 3 || i == 7 ? 2 * w->heads : 16);
    }
    in_memory();
    _tile_loadconfig(&config);
}

/* Elements of a step as pairs: as they lie in a row of bf16, in the order in which split_f16 leaves those of f16. */
SR_INLINE void query_pairs(const sr_dtype type, const float *q, __m512 *x, __m512 *y)
{
    const __m512 a = _mm512_loadu_ps(q), b = _mm512_loadu_ps(q + 16);
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    *x = type == SR_DTYPE_F16 ? a : _mm512_permutex2var_ps(a, even, b);
    *y = type == SR_DTYPE_F16 ? b : _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
}

static void begin(const struct attn_block *a, struct work *w)
{
    const struct attn_shape *s = a->shape;
    w->sets = (s->group + HEADS - 1) / HEADS;
    w->heads = s->group < HEADS ? s->group : HEADS;
    use_tiles(w);
    for (int32_t t = 0; t < s->head_dim / 32; t++)
        for (int32_t set = 0; set < w->sets; set++) {
            __m512 column[16], x, y;
            SR_UNROLL for (int h = 0; h < HEADS; h++) {
                const int32_t g = HEADS * set + h < s->group ? HEADS * set + h : s->group - 1;
                query_pairs(s->k_type, a->q + g * s->head_dim + 32 * t, &x, &y);
                const __m512i hi = sr_pair_bf16(x, y);
                column[h] = _mm512_castsi512_ps(hi);
                column[HEADS + h] = _mm512_castsi512_ps(sr_rest_bf16(x, y, hi));
            }
            sr_transpose16_avx512(column);
            SR_UNROLL for (int i = 0; i < 16; i++) _mm512_store_ps(w->q[t][set] + 64 * i, column[i]);
        }
}

/* ---- rows ---- */

/* Two registers of f16 values as pairs (x, y) of what their top 8 bits are and of what these leave. */
SR_INLINE void split_f16(__m512 x, __m512 y, uint8_t *hi, uint8_t *lo)
{
    const __m512i top = _mm512_set1_epi32((int)0xffff0000), ix = _mm512_castps_si512(x), iy = _mm512_castps_si512(y);
    const __m512 rest_x = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(ix, top)));
    const __m512 rest_y = _mm512_sub_ps(y, _mm512_castsi512_ps(_mm512_and_si512(iy, top)));
    const __m512i lx = _mm512_srli_epi32(_mm512_castps_si512(rest_x), 16), hx = _mm512_srli_epi32(ix, 16);
    _mm512_store_si512(hi, _mm512_ternarylogic_epi32(top, iy, hx, 0xca)); /* top ? iy : hx */
    _mm512_store_si512(lo, _mm512_ternarylogic_epi32(top, _mm512_castps_si512(rest_y), lx, 0xca));
}

SR_INLINE __m512 f16_values(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p)); }

/* What to fetch meanwhile: what follows a stream, a line for each one read, or rows to come, one by one. */
struct ahead { const uint8_t *stream; const uint8_t *const *row; size_t bytes; int32_t n; };

SR_INLINE void fetch_line(struct ahead *h)
{
    if (!h->stream) return;
    sr_fetch_far_avx512(h->stream, AHEAD);
    h->stream += SR_LINE;
}

static void fetch_rows(struct ahead *h, int32_t n)
{
    for (; n > 0 && h->n > 0; n--, h->n--) sr_prefetch_row_avx512(*h->row++, h->bytes);
}

/* Elements [32 t, 32 t + 32) of 16 rows. */
SR_INLINE void load_keys(const sr_dtype type, const uint8_t *const *row, int32_t t, uint8_t (*to)[TILE], struct ahead *h)
{
    SR_UNROLL for (int r = 0; r < ROWS; r++) {
        const uint8_t *p = row[r] + 64 * t;
        if (type == SR_DTYPE_F16) split_f16(f16_values(p), f16_values(p + 32), to[0] + 64 * r, to[1] + 64 * r);
        else _mm512_store_si512(to[0] + 64 * r, _mm512_loadu_si512(p));
        fetch_line(h);
    }
}

/* The same of 32 rows, in pairs. Columns of bf16: elements 0..3, 8..11, 16.. and 24.. first, the others in the second tile. */
SR_INLINE void load_values(const sr_dtype type, const uint8_t *const *row, int32_t t, uint8_t (*to)[2][TILE], struct ahead *h)
{
    SR_UNROLL for (int r = 0; r < ROWS; r++) {
        const uint8_t *p = row[2 * r] + 64 * t, *p2 = row[2 * r + 1] + 64 * t;
        if (type == SR_DTYPE_F16) {
            split_f16(f16_values(p), f16_values(p2), to[0][0] + 64 * r, to[0][1] + 64 * r);
            fetch_line(h);
            split_f16(f16_values(p + 32), f16_values(p2 + 32), to[1][0] + 64 * r, to[1][1] + 64 * r);
        } else {
            const __m512i x = _mm512_loadu_si512(p), y = _mm512_loadu_si512(p2);
            _mm512_store_si512(to[0][0] + 64 * r, _mm512_unpacklo_epi16(x, y));
            fetch_line(h);
            _mm512_store_si512(to[1][0] + 64 * r, _mm512_unpackhi_epi16(x, y));
        }
        fetch_line(h);
    }
}

/* ---- logits ---- */

/* Adds a step's products to the logits of 16 keys. k: the tile of hi, rows so many bytes apart. */
SR_INLINE void multiply_keys(const sr_dtype type, struct work *w, int32_t t, const uint8_t *k, size_t step, const uint8_t *lo)
{
    in_memory();
    _tile_loadd(4, k, step);
    if (type == SR_DTYPE_F16) _tile_loadd(5, lo, 64);
    _tile_loadd(6, w->q[t][0], 64);
    if (t == 0) _tile_loadd(0, zero, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (type == SR_DTYPE_F16) _tile_dpbf16ps(0, 5, 6);
    if (w->sets > 1) {
        _tile_loadd(6, w->q[t][1], 64);
        if (t == 0) _tile_loadd(1, zero, 64);
        _tile_dpbf16ps(1, 4, 6);
        if (type == SR_DTYPE_F16) _tile_dpbf16ps(1, 5, 6);
    }
    in_memory();
}

SR_INLINE void store_keys(struct work *w, int32_t turn)
{
    in_memory();
    _tile_stored(0, w->logits[turn][0], 64);
    if (w->sets > 1) _tile_stored(1, w->logits[turn][1], 64);
    in_memory();
}

/* Logits of keys [i, i + 16). */
static void turn_logits(const struct work *w, int32_t group, int32_t turn, int32_t i, sr_block_weights p)
{
    for (int32_t set = 0; set < w->sets; set++) {
        __m512 r[16];
        SR_UNROLL for (int k = 0; k < ROWS; k++) r[k] = _mm512_load_ps(w->logits[turn][set][k]);
        sr_transpose16_avx512(r);
        SR_UNROLL for (int h = 0; h < HEADS; h++)
            if (HEADS * set + h < group) _mm512_storeu_ps(&p[HEADS * set + h][i], _mm512_add_ps(r[h], r[HEADS + h]));
    }
}

SR_INLINE void logits_of(const sr_dtype type, const struct attn_block *a, struct work *w, const uint8_t *const *row, int stream, sr_block_weights p)
{
    const struct attn_shape *s = a->shape;
    const int32_t n_steps = s->head_dim / 32, n_tiles = (a->n + ROWS - 1) / ROWS, n = n_tiles * n_steps;
    const int direct = type == SR_DTYPE_BF16 && stream;
    struct ahead h = {stream ? row[0] : NULL, a->v, s->v_row_bytes, stream ? 0 : a->n};
    for (int32_t i = 0; i <= n; i++) {
        const int32_t j = i - 1; /* the step that is multiplied */
        if (i < n && !direct) {
            load_keys(type, row + i / n_steps * ROWS, i % n_steps, w->keys[i % 2], &h);
            fetch_rows(&h, (ALL + n - 1) / n);
        }
        if (i < n && direct)
            for (int r = 0; r < ROWS; r++) fetch_line(&h);
        if (j < 0) continue;
        const uint8_t *k = direct ? row[j / n_steps * ROWS] + 64 * (j % n_steps) : w->keys[j % 2][0];
        multiply_keys(type, w, j % n_steps, k, direct ? s->k_row_bytes : 64, w->keys[j % 2][1]);
        if (j % n_steps < n_steps - 1) continue;
        store_keys(w, j / n_steps % 2);
        if (j / n_steps > 0) turn_logits(w, s->group, (j / n_steps - 1) % 2, (j / n_steps - 1) * ROWS, p);
    }
    turn_logits(w, s->group, (n_tiles - 1) % 2, (n_tiles - 1) * ROWS, p);
    *a->k_rows += a->n;
}

/* ---- outputs ---- */

/* Weights of rows [32 half, 32 half + 32) as pairs of rows. */
static void split_weights(struct work *w, int32_t group, sr_block_weights p)
{
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0), odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for (int32_t half = 0; half < 2; half++)
        for (int32_t g = 0; g < group; g++) {
            const __m512 a = _mm512_loadu_ps(&p[g][32 * half]), b = _mm512_loadu_ps(&p[g][32 * half + 16]);
            const __m512 x = _mm512_permutex2var_ps(a, even, b), y = _mm512_permutex2var_ps(a, odd, b);
            const __m512i hi = sr_pair_bf16(x, y);
            uint8_t *to = w->weights[half][g / HEADS] + 64 * (g % HEADS);
            _mm512_store_si512(to, hi);
            _mm512_store_si512(to + 64 * w->heads, sr_rest_bf16(x, y, hi));
        }
}

SR_INLINE void multiply_values(const sr_dtype type, struct work *w, int32_t half, int32_t t, int32_t turn)
{
    in_memory();
    for (int32_t set = 0; set < w->sets; set++) {
        float(*out)[SETS][16][16] = w->outs[t];
        _tile_loadd(7, w->weights[half][set], 64);
        _tile_loadd(2, half ? (const void *)out[0][set] : zero, 64);
        _tile_loadd(4, w->values[turn][0][0], 64);
        _tile_dpbf16ps(2, 7, 4);
        _tile_loadd(3, half ? (const void *)out[1][set] : zero, 64);
        _tile_loadd(5, w->values[turn][1][0], 64);
        _tile_dpbf16ps(3, 7, 5);
        if (type == SR_DTYPE_F16) {
            _tile_loadd(4, w->values[turn][0][1], 64);
            _tile_dpbf16ps(2, 7, 4);
            _tile_loadd(5, w->values[turn][1][1], 64);
            _tile_dpbf16ps(3, 7, 5);
        }
        _tile_stored(2, out[0][set], 64);
        _tile_stored(3, out[1][set], 64);
    }
    in_memory();
}

SR_INLINE void add_values(const sr_dtype type, const struct attn_block *a, const struct work *w, int32_t t, const float *shrink)
{
    const __m512i low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i high = _mm512_set_epi32(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8);
    for (int32_t g = 0; g < a->shape->group; g++) {
        const float(*out)[SETS][16][16] = w->outs[t];
        float *o = a->o + g * a->shape->head_dim + 32 * t;
        const int32_t set = g / HEADS, h = g % HEADS;
        const __m512 by = _mm512_set1_ps(shrink[g]);
        const __m512 x = _mm512_add_ps(_mm512_load_ps(out[0][set][h]), _mm512_load_ps(out[0][set][w->heads + h]));
        const __m512 y = _mm512_add_ps(_mm512_load_ps(out[1][set][h]), _mm512_load_ps(out[1][set][w->heads + h]));
        const __m512 first = type == SR_DTYPE_F16 ? x : _mm512_permutex2var_ps(x, low, y);
        const __m512 second = type == SR_DTYPE_F16 ? y : _mm512_permutex2var_ps(x, high, y);
        _mm512_storeu_ps(o, _mm512_fmadd_ps(_mm512_loadu_ps(o), by, first));
        _mm512_storeu_ps(o + 16, _mm512_fmadd_ps(_mm512_loadu_ps(o + 16), by, second));
    }
}

SR_INLINE void outputs_of(const sr_dtype type, const struct attn_block *a, struct work *w, const uint8_t *const *row, int stream,
                          const float *shrink)
{
    const struct attn_shape *s = a->shape;
    const int32_t n_steps = s->head_dim / 32, n = 2 * n_steps;
    const int follows = stream && a->n_next > 0 && a->next_k[0] == a->k[a->n - 1] + s->k_row_bytes;
    struct ahead h = {stream ? row[0] : NULL, a->next_k, s->k_row_bytes, follows ? 0 : a->n_next};
    for (int32_t i = 0; i <= n; i++) {
        if (i < n) {
            load_values(type, row + i / n_steps * 32, i % n_steps, w->values[i % 2], &h);
            fetch_rows(&h, (ALL + n - 1) / n);
        }
        if (i > 0) multiply_values(type, w, (i - 1) / n_steps, (i - 1) % n_steps, (i - 1) % 2);
    }
    for (int32_t t = 0; t < n_steps; t++) add_values(type, a, w, t, shrink);
    *a->v_rows += a->n;
}

/* ---- the block ---- */

/* Rows of a whole block; those behind the last one are that one again, and have no weight. */
static const uint8_t *const *all_rows(const uint8_t *const *row, int32_t n, const uint8_t **to)
{
    if (n == ALL) return row;
    for (int32_t i = 0; i < ALL; i++) to[i] = row[i < n ? i : n - 1];
    return to;
}

void sr_attn_half_amx(const struct attn_block *a)
{
    const struct attn_shape *s = a->shape;
    const int stream = sr_is_stream_avx512(a);
    const uint8_t *room_k[ALL], *room_v[ALL];
    const uint8_t *const *k = all_rows(a->k, a->n, room_k), *const *v = all_rows(a->v, a->n, room_v);
    struct work *w = a->scratch;
    float shrink[SR_ATTN_MAX_GROUP];
    sr_block_weights p;
    if (a->begins) begin(a, w);
    if (s->k_type == SR_DTYPE_F16) logits_of(SR_DTYPE_F16, a, w, k, stream, p);
    else logits_of(SR_DTYPE_BF16, a, w, k, stream, p);
    sr_attn_weights_avx512(a, p, shrink);
    for (int32_t g = 0; g < s->group && a->n <= ALL - ROWS; g++)
        memset(&p[g][(a->n + ROWS - 1) / ROWS * ROWS], 0, (size_t)(ALL - (a->n + ROWS - 1) / ROWS * ROWS) * sizeof(float));
    split_weights(w, s->group, p);
    if (s->v_type == SR_DTYPE_F16) outputs_of(SR_DTYPE_F16, a, w, v, stream, shrink);
    else outputs_of(SR_DTYPE_BF16, a, w, v, stream, shrink);
    if (a->ends) _tile_release();
}
