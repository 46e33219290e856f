/* SPDX-License-Identifier: Apache-2.0
 *
 * The sketch kernels, AVX2. The second plane of 4-bit codes is scored in integers, as by VNNI (sketch_scan_vnni.c): products of
 * codes below 16 and signed bytes, of eight of which 16 bits hold the sum of pairs.
 */
#include "cpu/attn/vec_avx2.h"
#include "cpu/sketch/sketch_body.h"

enum { MAX_WORDS = SR_ATTN_MAX_DIM / 8, FULL_WORDS = 4 /* whose products 16 bits hold */ };

/* A head's factors, four bytes of the even and of the odd coordinates of each word, w = scale x byte about; `more` as of struct
 * sketch_scan, less the centre of the codes. */
struct head_factors { int32_t even[MAX_WORDS], odd[MAX_WORDS]; float scale, more; };
struct factors { struct head_factors head[SR_ATTN_MAX_GROUP]; };

static void split_factors(const struct sketch_scan *a, int32_t g, struct head_factors *h)
{
    const int32_t n = sr_sketch_padded(a->sketch) - SR_SKETCH_FIRST;
    const float *w = a->w + g * sr_sketch_padded(a->sketch) + SR_SKETCH_FIRST;
    float most = 0, sum = 0;
    for (int32_t j = 0; j < n; j++) most = fabsf(w[j]) > most ? fabsf(w[j]) : most;
    h->scale = most / 127.0f;
    const float inverse = h->scale > 0 ? 1.0f / h->scale : 0.0f;
    for (int32_t j = 0; j < n; j++) {
        const int32_t x = _mm_cvtss_si32(_mm_set_ss(w[j] * inverse));
        const uint32_t byte = ((uint32_t)x & 255u) << j % 8 / 2 * 8;
        int32_t *word = (j % 2 ? h->odd : h->even) + j / 8;
        *word = (int32_t)(j % 8 < 2 ? byte : (uint32_t)*word | byte);
        sum += (float)x;
    }
    h->more = a->more[g] - h->scale * 7.5f * sum;
}

SR_INLINE void rest_of_heads(const struct sketch_scan *a, const int heads, const struct head_factors *h, int32_t g0, int32_t row)
{
    const int32_t n_words = sr_sketch_words(a->sketch);
    const uint8_t *y = a->y_chunk + sr_sketch_word_at(a->sketch, row, 0);
    const __m256i nibbles = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i sum[SCORE_HEADS], part[SCORE_HEADS];
    SR_UNROLL for (int g = 0; g < heads; g++) sum[g] = part[g] = _mm256_setzero_si256();
    for (int32_t i = 0; i < n_words; i++) {
        const __m256i word = _mm256_loadu_si256((const __m256i *)(const void *)(y + i * SR_SKETCH_RUN * 4));
        const __m256i even = _mm256_and_si256(word, nibbles), odd = _mm256_and_si256(_mm256_srli_epi32(word, 4), nibbles);
        SR_UNROLL for (int g = 0; g < heads; g++)
            part[g] = _mm256_add_epi16(part[g], _mm256_add_epi16(_mm256_maddubs_epi16(even, _mm256_set1_epi32(h[g].even[i])),
                                                                 _mm256_maddubs_epi16(odd, _mm256_set1_epi32(h[g].odd[i]))));
        if (i % FULL_WORDS < FULL_WORDS - 1 && i + 1 < n_words) continue;
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
    for (int32_t g = 0; a->sketch->bits == 4 && g < a->group; g++) split_factors(a, g, &f.head[g]);
    if (a->sketch->bits == 4) sketch_scan_body(a, rest_of_run, &f);
    else sketch_scan_body(a, NULL, NULL);
}

void sr_sketch_share_avx2(const struct sketch_share *a) { sketch_share_body(a); }
