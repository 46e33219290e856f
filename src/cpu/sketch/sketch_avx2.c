/* SPDX-License-Identifier: Apache-2.0
 *
 * The sketch kernels, AVX2. The second plane of 4-bit and of mixed codes is scored in integers, as by VNNI (sketch_scan_vnni.c): products of
 * fields below 16 and signed bytes, of eight of which 16 bits hold the sum of pairs.
 */
#include "cpu/attn/vec_avx2.h"
#include "cpu/sketch/sketch_body.h"

enum { MAX_FOURS = SR_SKETCH_MAX_FIELDS / 4 };

/* A head's factors, four bytes to a lane, w = scale x byte about: of fields of b bits those of a word b * i bits up, which are every
 * (8 / b)-th, for i = 0, 1, ... `more` as of struct sketch_scan, less the centre of the fields. */
struct head_factors { int32_t four[MAX_FOURS]; float scale, more; };
struct factors { struct head_factors head[SR_ATTN_MAX_GROUP]; };

static void split_factors(const struct sketch_scan *a, int32_t g, struct head_factors *h)
{
    const int32_t n = sr_sketch_padded(a->sketch) - SR_SKETCH_FIRST;
    const float *w = a->w + g * sr_sketch_padded(a->sketch) + SR_SKETCH_FIRST;
    float most = 0, sum = 0;
    for (int32_t j = 0; j < n; j++) most = fabsf(w[j]) > most ? fabsf(w[j]) : most;
    h->scale = most / 127.0f;
    const float inverse = h->scale > 0 ? 1.0f / h->scale : 0.0f;
    for (int32_t word = 0, at = 0; word < sr_sketch_words(a->sketch); word++) {
        const int32_t bits = sr_sketch_field_bits(a->sketch, word), per_byte = 8 / bits;
        const float centre = (float)(1 << (bits - 1)) - 0.5f;
        for (int32_t i = 0; i < per_byte; i++, at++) {
            uint32_t bytes = 0;
            for (int32_t k = 0; k < 4; k++) {
                const int32_t x = _mm_cvtss_si32(_mm_set_ss(w[k * per_byte + i] * inverse));
                bytes |= ((uint32_t)x & 255u) << 8 * k;
                sum += centre * (float)x;
            }
            h->four[at] = (int32_t)bytes;
        }
        w += 4 * per_byte;
    }
    h->more = a->more[g] - h->scale * sum;
}

/* Products of a word's fields of `bits` bits, those i and i + 1 times that up: sums of two in 16 bits. */
SR_INLINE void add_fields(const int bits, const int heads, const int i, const struct head_factors *h, __m256i word, int32_t at, __m256i *part)
{
    const __m256i mask = _mm256_set1_epi8((char)((1 << bits) - 1));
    const __m256i even = _mm256_and_si256(_mm256_srli_epi32(word, i * bits), mask), odd = _mm256_and_si256(_mm256_srli_epi32(word, (i + 1) * bits), mask);
    SR_UNROLL for (int g = 0; g < heads; g++)
        part[g] = _mm256_add_epi16(part[g], _mm256_add_epi16(_mm256_maddubs_epi16(even, _mm256_set1_epi32(h[g].four[at + i])),
                                                             _mm256_maddubs_epi16(odd, _mm256_set1_epi32(h[g].four[at + i + 1]))));
}

SR_INLINE void add_word(const int bits, const int heads, const struct head_factors *h, __m256i word, int32_t at, __m256i *part)
{
    add_fields(bits, heads, 0, h, word, at, part);
    if (bits <= 2) add_fields(bits, heads, 2, h, word, at, part);
    if (bits > 1) return;
    add_fields(bits, heads, 4, h, word, at, part);
    add_fields(bits, heads, 6, h, word, at, part);
}

/* Words whose products 16 bits hold: each has 127 x (2^bits - 1) x 16 / bits at most. */
SR_INLINE int32_t full_words(const struct sketch_shape *s) { return s->bits == 4 ? 4 : 12; }

SR_INLINE void rest_of_heads(const struct sketch_scan *a, const int heads, const struct head_factors *h, int32_t g0, int32_t row)
{
    const int32_t n_words = sr_sketch_words(a->sketch), full = full_words(a->sketch);
    const uint8_t *y = a->y_chunk + sr_sketch_word_at(a->sketch, row, 0);
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sum[SCORE_HEADS], part[SCORE_HEADS];
    SR_UNROLL for (int g = 0; g < heads; g++) sum[g] = part[g] = _mm256_setzero_si256();
    for (int32_t i = 0; i < n_words; i++) {
        const __m256i word = _mm256_loadu_si256((const __m256i *)(const void *)(y + i * SR_SKETCH_RUN * 4));
        if (a->sketch->bits == 4) add_word(4, heads, h, word, 2 * i, part);
        else if (i % 2 == 0) add_word(2, heads, h, word, 6 * i, part);
        else add_word(1, heads, h, word, 6 * i - 2, part);
        if (i % full < full - 1 && i + 1 < n_words) continue;
        SR_UNROLL for (int g = 0; g < heads; g++) {
            sum[g] = _mm256_add_epi32(sum[g], _mm256_madd_epi16(part[g], ones));
            part[g] = _mm256_setzero_si256();
        }
    }
    SR_UNROLL for (int g = 0; g < heads; g++) {
        float *x = a->logits + (g0 + g) * SR_SKETCH_STRIDE + row;
        vec_store(x, vec_add(vec_load(x), vec_fma(_mm256_cvtepi32_ps(sum[g]), vec_all(h[g].scale), vec_all(h[g].more))));
    }
}

static void rest_of_run(const struct sketch_scan *a, const void *with, int32_t row)
{
    const struct factors *f = with;
    for (int32_t g = 0; g < a->group; g += SCORE_HEADS)
        switch (a->group - g) {
        case 1: rest_of_heads(a, 1, f->head + g, g, row); break;
        case 2: rest_of_heads(a, 2, f->head + g, g, row); break;
        case 3: rest_of_heads(a, 3, f->head + g, g, row); break;
        default: rest_of_heads(a, 4, f->head + g, g, row); break;
        }
}

void sr_sketch_encode_avx2(const struct sketch_rows *a) { sketch_encode_body(a); }

void sr_sketch_scan_avx2(struct sketch_scan *a)
{
    struct factors f;
    if (a->sketch->bits == 8) {
        sketch_scan_body(a, NULL, NULL);
        return;
    }
    for (int32_t g = 0; g < a->group; g++) split_factors(a, g, &f.head[g]);
    sketch_scan_body(a, rest_of_run, &f);
}

void sr_sketch_share_avx2(const struct sketch_share *a) { sketch_share_body(a); }
