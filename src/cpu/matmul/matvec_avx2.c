/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows of floats and of blocks of 32 times activations, AVX2. Four blocks at a time read q_split: first halves of two blocks
 * fill a register, second halves another, so that one product of 16-bit pairs, one conversion and one vector of scales serve
 * 64 codes. Signed codes, whose pairs leave no room in 16 bits for a second, and what is left over go block by block.
 */
#include "cpu/matmul/avx2_inline.h"

/* One block. */
struct piece { __m256i codes; float scale, offset; };
/* Four blocks: first and second halves of blocks 0 and 1, then of 2 and 3; scales and offsets of the four. */
struct four { __m256i low[2], high[2]; __m128 scale, offset; };

typedef struct piece piece_fn(const uint8_t *block);
typedef struct four four_fn(const uint8_t *block);

/* How a type is read: bytes of a block, whether codes have signs (then there is no `four`, and no offsets). */
struct form { int bytes, signs; piece_fn *piece; four_fn *four; };

/* ---- blocks of 32 ---------------------------------------------------------------------------------------------- */

/* 16 bytes: low nibbles, then high. */
INLINE __m256i nibbles(const uint8_t *p)
{
    const __m128i v = at128(p);
    return masked(_mm256_set_m128i(_mm_srli_epi16(v, 4), v), 15);
}

/* 16 where the bit is set that belongs to the byte: `from` names the byte of `bits` for each. */
INLINE __m256i fifth_bits(__m256i bits, __m256i from)
{
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201u), spread = _mm256_shuffle_epi8(bits, from);
    return masked(_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit), 16);
}

/* Bytes `first`, first + 1 and first + 4, first + 5 (from `second` on in the upper lane), eight times each. */
INLINE __m256i eightfold(int first, int second)
{
    const long long step = 0x0101010101010101;
    return _mm256_setr_epi64x(first * step, (first + 1) * step, second * step, (second + 1) * step);
}

INLINE __m256i with_fifth(__m256i codes, const uint8_t *p)
{
    int32_t bits;
    memcpy(&bits, p, 4);
    return _mm256_or_si256(codes, fifth_bits(_mm256_set1_epi32(bits), eightfold(0, 2)));
}

INLINE struct piece one_scale(__m256i codes, const uint8_t *b, float offset)
{
    const float d = half_at(b);
    return (struct piece){codes, d, d * offset};
}

INLINE struct piece piece_q4_0(const uint8_t *b) { return one_scale(nibbles(b + 2), b, -8.0f); }
INLINE struct piece piece_q4_1(const uint8_t *b) { return (struct piece){nibbles(b + 4), half_at(b), half_at(b + 2)}; }
INLINE struct piece piece_q5_0(const uint8_t *b) { return one_scale(with_fifth(nibbles(b + 6), b + 2), b, -16.0f); }
INLINE struct piece piece_q5_1(const uint8_t *b) { return (struct piece){with_fifth(nibbles(b + 8), b + 4), half_at(b), half_at(b + 2)}; }
INLINE struct piece piece_q8_0(const uint8_t *b) { return one_scale(at256(b + 2), b, 0.0f); }
INLINE struct piece piece_iq4_nl(const uint8_t *b)
{
    const __m128i table = _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
    return one_scale(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), nibbles(b + 2)), b, 0.0f);
}

/* ---- four blocks ------------------------------------------------------------------------------------------------- */

/* 32 bits of each block. */
INLINE __m128i words_at(const uint8_t *p, int stride)
{
    int32_t w[4];
    for (int i = 0; i < 4; i++) memcpy(&w[i], p + i * stride, 4);
    return _mm_setr_epi32(w[0], w[1], w[2], w[3]);
}

/* The f16 at byte `at` of each word. */
INLINE __m128 halves_of(__m128i words, char at)
{
    const char b = (char)(at + 1);
    return _mm_cvtph_ps(_mm_shuffle_epi8(words, _mm_setr_epi8(at, b, (char)(at + 4), (char)(b + 4), (char)(at + 8), (char)(b + 8), (char)(at + 12),
                                                              (char)(b + 12), -1, -1, -1, -1, -1, -1, -1, -1)));
}

/* The last 16 bytes of each block hold its nibbles. */
INLINE struct four four_nibbles(const uint8_t *p, int bytes)
{
    struct four f;
    const uint8_t *q = p + bytes - 16;
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++, q += 2 * bytes) {
        const __m256i v = _mm256_set_m128i(at128(q + bytes), at128(q));
        f.low[i] = masked(v, 15);
        f.high[i] = masked(_mm256_srli_epi16(v, 4), 15);
    }
    return f;
}

INLINE void add_fifth(struct four *f, const uint8_t *p, int bytes)
{
    const __m256i bits = _mm256_broadcastsi128_si256(words_at(p, bytes));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        f->low[i] = _mm256_or_si256(f->low[i], fifth_bits(bits, eightfold(8 * i, 8 * i + 4)));
        f->high[i] = _mm256_or_si256(f->high[i], fifth_bits(bits, eightfold(8 * i + 2, 8 * i + 6)));
    }
}

INLINE struct four four_scales(struct four f, const uint8_t *p, int bytes, float offset)
{
    f.scale = halves_of(words_at(p, bytes), 0);
    f.offset = _mm_mul_ps(f.scale, _mm_set1_ps(offset));
    return f;
}

INLINE struct four four_scales_and_mins(struct four f, const uint8_t *p, int bytes)
{
    const __m128i heads = words_at(p, bytes);
    f.scale = halves_of(heads, 0);
    f.offset = halves_of(heads, 2);
    return f;
}

INLINE struct four four_q4_0(const uint8_t *p) { return four_scales(four_nibbles(p, 18), p, 18, -8.0f); }
INLINE struct four four_q4_1(const uint8_t *p) { return four_scales_and_mins(four_nibbles(p, 20), p, 20); }
INLINE struct four four_q5_0(const uint8_t *p)
{
    struct four f = four_nibbles(p, 22);
    add_fifth(&f, p + 2, 22);
    return four_scales(f, p, 22, -16.0f);
}
INLINE struct four four_q5_1(const uint8_t *p)
{
    struct four f = four_nibbles(p, 24);
    add_fifth(&f, p + 4, 24);
    return four_scales_and_mins(f, p, 24);
}

/* ---- rows --------------------------------------------------------------------------------------------------------- */

INLINE __m256i pairs(__m256i w, __m256i x, int signs)
{
    return signs ? _mm256_maddubs_epi16(_mm256_sign_epi8(w, w), _mm256_sign_epi8(x, w)) : _mm256_maddubs_epi16(w, x);
}

/* Adds the block at element `at` of the first token's codes. */
INLINE void add_piece(__m256 *acc, __m128 *shift, struct piece p, const struct acts *x, int64_t at, struct form f)
{
    const __m256 dot = weigh(pairs(p.codes, at256(x->q + at), f.signs), pairs(p.codes, at256(x->q_low + at), f.signs));
    *acc = _mm256_fmadd_ps(dot, _mm256_set1_ps(p.scale * x->d[at / 32]), *acc);
    if (!f.signs) *shift = _mm_fmadd_ps(_mm_set_ss(p.offset), _mm_set_ss(x->s32[at / 32]), *shift);
}

INLINE __m256i two_pairs(__m256i low, __m256i high, const int8_t *x)
{
    return _mm256_add_epi16(_mm256_maddubs_epi16(low, at256(x)), _mm256_maddubs_epi16(high, at256(x + 64)));
}

INLINE void add_four(__m256 *acc, __m128 *shift, const struct four *w, const struct acts *x, int64_t at)
{
    const __m256 scale = _mm256_castps128_ps256(_mm_mul_ps(w->scale, _mm_loadu_ps(x->d + at / 32)));
    *shift = _mm_fmadd_ps(w->offset, _mm_loadu_ps(x->s32 + at / 32), *shift);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        const __m256i lanes = _mm256_setr_epi32(2 * i, 2 * i, 2 * i, 2 * i, 2 * i + 1, 2 * i + 1, 2 * i + 1, 2 * i + 1);
        const __m256i q = two_pairs(w->low[i], w->high[i], x->q_split + at + 32 * i);
        const __m256 dot = weigh(q, two_pairs(w->low[i], w->high[i], x->q_split_low + at + 32 * i));
        *acc = _mm256_fmadd_ps(dot, _mm256_permutevar8x32_ps(scale, lanes), *acc);
    }
}

INLINE void row(const struct matvec_args *a, int64_t r, int32_t t0, int T, struct form f)
{
    const uint8_t *b = a->w + (size_t)r * a->row_bytes;
    const int64_t pad = a->acts->pad;
    __m256 acc[4];
    __m128 shift[4];
    int64_t e = 0;
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        acc[t] = _mm256_setzero_ps();
        shift[t] = _mm_setzero_ps();
    }
    for (; f.four && e + 128 <= a->n_in; e += 128, b += 4 * f.bytes) {
        fetch_ahead(b, 4 * f.bytes);
        const struct four w = f.four(b);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) add_four(&acc[t], &shift[t], &w, a->acts, (t0 + t) * pad + e);
    }
    for (; e < a->n_in; e += 32, b += f.bytes) {
        fetch_ahead(b, f.bytes);
        const struct piece p = f.piece(b);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) add_piece(&acc[t], &shift[t], p, a->acts, (t0 + t) * pad + e, f);
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        const __m256 sum = f.signs ? acc[t] : _mm256_add_ps(acc[t], _mm256_zextps128_ps256(shift[t]));
        a->y[(t0 + t) * a->y_stride + r] = lane_sum(sum) + (a->bias ? a->bias[r] : 0.0f);
    }
}

INLINE void rows(const struct matvec_args *a, struct form f)
{
    int32_t t = 0;
    for (; t + 4 <= a->n; t += 4)
        for (int64_t r = 0; r < a->n_rows; r++) row(a, r, t, 4, f);
    for (; t < a->n; t++)
        for (int64_t r = 0; r < a->n_rows; r++) row(a, r, t, 1, f);
}

void sr_matvec_q4_0_avx2(const struct matvec_args *a) { rows(a, (struct form){18, 0, piece_q4_0, four_q4_0}); }
void sr_matvec_q4_1_avx2(const struct matvec_args *a) { rows(a, (struct form){20, 0, piece_q4_1, four_q4_1}); }
void sr_matvec_q5_0_avx2(const struct matvec_args *a) { rows(a, (struct form){22, 0, piece_q5_0, four_q5_0}); }
void sr_matvec_q5_1_avx2(const struct matvec_args *a) { rows(a, (struct form){24, 0, piece_q5_1, four_q5_1}); }
void sr_matvec_q8_0_avx2(const struct matvec_args *a) { rows(a, (struct form){34, 1, piece_q8_0, NULL}); }
void sr_matvec_iq4_nl_avx2(const struct matvec_args *a) { rows(a, (struct form){18, 1, piece_iq4_nl, NULL}); }

/* ---- float rows --------------------------------------------------------------------------------------------------- */

typedef __m256 load_fn(const uint8_t *row, int64_t i);      /* 8 weights */
typedef float load_one_fn(const uint8_t *row, int64_t i);

INLINE __m256 load_f32(const uint8_t *w, int64_t i) { return _mm256_loadu_ps((const float *)(const void *)(w + 4 * i)); }
INLINE __m256 load_f16(const uint8_t *w, int64_t i) { return _mm256_cvtph_ps(at128(w + 2 * i)); }
INLINE __m256 load_bf16(const uint8_t *w, int64_t i)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(at128(w + 2 * i)), 16));
}
INLINE float one_f32(const uint8_t *w, int64_t i)
{
    float v;
    memcpy(&v, w + 4 * i, 4);
    return v;
}
INLINE float one_f16(const uint8_t *w, int64_t i) { return half_at(w + 2 * i); }
INLINE float one_bf16(const uint8_t *w, int64_t i)
{
    const uint8_t wide[4] = {0, 0, w[2 * i], w[2 * i + 1]};
    return one_f32(wide, 0);
}

INLINE float dot(const uint8_t *w, const float *x, int64_t n, int bytes, load_fn *load, load_one_fn *one)
{
    __m256 acc[4];
    int64_t i = 0;
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) acc[j] = _mm256_setzero_ps();
    for (; i + 32 <= n; i += 32) {
        fetch_ahead(w + bytes * i, 32 * bytes);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) acc[j] = _mm256_fmadd_ps(load(w, i + 8 * j), _mm256_loadu_ps(x + i + 8 * j), acc[j]);
    }
    for (; i + 8 <= n; i += 8) acc[0] = _mm256_fmadd_ps(load(w, i), _mm256_loadu_ps(x + i), acc[0]);
    float sum = lane_sum(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])));
    for (; i < n; i++) sum += one(w, i) * x[i];
    return sum;
}

/* bytes: of an element */
INLINE void float_rows(const struct matvec_args *a, int bytes, load_fn *load, load_one_fn *one)
{
    for (int64_t r = 0; r < a->n_rows; r++)
        for (int32_t t = 0; t < a->n; t++) {
            const float sum = dot(a->w + (size_t)r * a->row_bytes, a->acts->x + t * a->acts->x_stride, a->n_in, bytes, load, one);
            a->y[t * a->y_stride + r] = sum + (a->bias ? a->bias[r] : 0.0f);
        }
}

void sr_matvec_f32_avx2(const struct matvec_args *a) { float_rows(a, 4, load_f32, one_f32); }
void sr_matvec_f16_avx2(const struct matvec_args *a) { float_rows(a, 2, load_f16, one_f16); }
void sr_matvec_bf16_avx2(const struct matvec_args *a) { float_rows(a, 2, load_bf16, one_bf16); }
