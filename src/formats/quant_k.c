/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/quant_k.h"

#include "base/half.h"

#include <math.h>
#include <string.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF /* gcc has it off under -std=c11 and does not know the pragma */
#endif

enum { GROUP = 32, N_GROUPS = 8, SMALL = 16, N_SMALL = 16 };

static void store_f16(uint8_t *p, float v)
{
    const uint16_t h = sr_f16_of_f32(v);
    p[0] = (uint8_t)h;
    p[1] = (uint8_t)(h >> 8);
}

static int code_of(float v, int lo, int hi)
{
    if (!(v > (float)lo)) return lo;
    return v >= (float)hi ? hi : (int)floorf(v + 0.5f);
}

/* Elements count by their size and by that of their group: errors of large ones reach the product most. */
static void weigh(const float *x, int n, float *w)
{
    float sum = 0.0f;
    for (int e = 0; e < n; e++) sum += x[e] * x[e];
    const float typical = sqrtf(sum / (float)n);
    for (int e = 0; e < n; e++) w[e] = typical + fabsf(x[e]);
}

/* ---- q4_K, q5_K: x ~ scale * code - min, codes 0..top, min >= 0 ---- */

struct affine { float scale, min; };

/* For these codes the scale and minimum of least error; returns that error, or a huge one where there is no answer. */
static float fit_affine(const float *x, const float *w, const int *q, struct affine *out)
{
    float sw = 0, sq = 0, sqq = 0, sx = 0, sqx = 0, error = 0;
    for (int e = 0; e < GROUP; e++) {
        const float c = (float)q[e];
        sw += w[e];
        sq += w[e] * c;
        sqq += w[e] * c * c;
        sx += w[e] * x[e];
        sqx += w[e] * c * x[e];
    }
    const float det = sw * sqq - sq * sq;
    if (!(det > 0.0f)) return INFINITY;
    float scale = (sw * sqx - sq * sx) / det, min = (sq * sqx - sqq * sx) / det;
    if (min < 0.0f) { /* the format has none below zero */
        min = 0.0f;
        scale = sqq > 0.0f ? sqx / sqq : 0.0f;
    }
    if (!(scale > 0.0f)) return INFINITY;
    for (int e = 0; e < GROUP; e++) {
        const float d = scale * (float)q[e] - min - x[e];
        error += w[e] * d * d;
    }
    *out = (struct affine){scale, min};
    return error;
}

/* The best of some grids around the plain one from the least (or 0) to the largest element. */
static struct affine find_affine(const float *x, int top)
{
    enum { N_TRIES = 21 };
    float w[GROUP], lo = 0.0f, hi = x[0], best = INFINITY;
    int q[GROUP];
    for (int e = 0; e < GROUP; e++) {
        if (x[e] < lo) lo = x[e];
        if (x[e] > hi) hi = x[e];
    }
    if (!(hi > lo)) return (struct affine){0.0f, -lo};
    struct affine found = {(hi - lo) / (float)top, -lo}, fit = {0.0f, 0.0f};
    weigh(x, GROUP, w);
    for (int k = 0; k < N_TRIES; k++) {
        const float inverse = ((float)top - 1.0f + 0.1f * (float)k) / (hi - lo);
        if (!isfinite(inverse)) break;
        for (int e = 0; e < GROUP; e++) q[e] = code_of((x[e] - lo) * inverse, 0, top);
        const float error = fit_affine(x, w, q, &fit);
        if (error < best) {
            best = error;
            found = fit;
        }
    }
    return found;
}

/* Six-bit scales and minima to 12 bytes. */
static void pack_six(const int *scale, const int *min, uint8_t *sc)
{
    memset(sc, 0, 12);
    for (int j = 0; j < 4; j++) {
        sc[j] = (uint8_t)(scale[j] | (scale[j + 4] >> 4) << 6);
        sc[j + 4] = (uint8_t)(min[j] | (min[j + 4] >> 4) << 6);
        sc[j + 8] = (uint8_t)((scale[j + 4] & 15) | (min[j + 4] & 15) << 4);
    }
}

/* Codes [256] of the block; its head of 16 bytes is stored. */
static void quantize_affine_block(const float *x, int top, uint8_t *block, int *codes)
{
    struct affine g[N_GROUPS];
    float most_scale = 0.0f, most_min = 0.0f;
    int scale[N_GROUPS], min[N_GROUPS];
    for (int j = 0; j < N_GROUPS; j++) {
        g[j] = find_affine(x + GROUP * j, top);
        most_scale = fmaxf(most_scale, g[j].scale);
        most_min = fmaxf(most_min, g[j].min);
    }
    store_f16(block, most_scale / 63.0f);
    store_f16(block + 2, most_min / 63.0f);
    const float d = sr_f32_of_f16((uint16_t)(block[0] | block[1] << 8)), dmin = sr_f32_of_f16((uint16_t)(block[2] | block[3] << 8));
    for (int j = 0; j < N_GROUPS; j++) {
        scale[j] = d > 0.0f ? code_of(g[j].scale / d, 0, 63) : 0;
        min[j] = dmin > 0.0f ? code_of(g[j].min / dmin, 0, 63) : 0;
        const float step = d * (float)scale[j], low = dmin * (float)min[j];
        for (int e = 0; e < GROUP; e++) codes[GROUP * j + e] = step > 0.0f ? code_of((x[GROUP * j + e] + low) / step, 0, top) : 0;
    }
    pack_six(scale, min, block + 4);
}

/* Groups 2i and 2i + 1 share 32 bytes: low and high nibbles. */
static void pack_nibbles(const int *codes, uint8_t *qs)
{
    for (int i = 0; i < N_GROUPS / 2; i++)
        for (int e = 0; e < GROUP; e++)
            qs[GROUP * i + e] = (uint8_t)((codes[2 * GROUP * i + e] & 15) | (codes[2 * GROUP * i + GROUP + e] & 15) << 4);
}

void sr_quantize_block_q4_k(const float *x, uint8_t *block)
{
    int codes[256];
    quantize_affine_block(x, 15, block, codes);
    pack_nibbles(codes, block + 16);
}

void sr_quantize_block_q5_k(const float *x, uint8_t *block)
{
    int codes[256];
    quantize_affine_block(x, 31, block, codes);
    memset(block + 16, 0, GROUP);
    for (int e = 0; e < 256; e++) block[16 + e % GROUP] |= (uint8_t)((codes[e] >> 4) << (e / GROUP));
    pack_nibbles(codes, block + 48);
}

/* ---- q6_K: x ~ scale * code, codes -32..31 ---- */

static float find_scale(const float *x)
{
    enum { N_TRIES = 19 };
    float w[SMALL], extreme = 0.0f, best = -1.0f;
    for (int e = 0; e < SMALL; e++)
        if (fabsf(x[e]) > fabsf(extreme)) extreme = x[e];
    float found = extreme / -32.0f;
    weigh(x, SMALL, w);
    for (int k = 0; k < N_TRIES; k++) {
        const float inverse = -(31.1f + 0.1f * (float)k) / extreme;
        float sqx = 0, sqq = 0;
        if (!isfinite(inverse)) break;
        for (int e = 0; e < SMALL; e++) {
            const float q = (float)code_of(x[e] * inverse, -32, 31);
            sqx += w[e] * q * x[e];
            sqq += w[e] * q * q;
        }
        if (!(sqq > 0.0f) || !(sqx * sqx > best * sqq)) continue; /* least squares takes sqx^2 / sqq off the error */
        best = sqx * sqx / sqq;
        found = sqx / sqq;
    }
    return found;
}

void sr_quantize_block_q6_k(const float *x, uint8_t *block)
{
    float scale[N_SMALL], most = 0.0f;
    memset(block, 0, 192);
    for (int g = 0; g < N_SMALL; g++) {
        scale[g] = find_scale(x + SMALL * g);
        if (fabsf(scale[g]) > fabsf(most)) most = scale[g];
    }
    store_f16(block + 208, most / -128.0f);
    const float d = sr_f32_of_f16((uint16_t)(block[208] | block[209] << 8));
    for (int g = 0; g < N_SMALL; g++) {
        const int s = d != 0.0f ? code_of(scale[g] / d, -128, 127) : 0;
        const float step = d * (float)s;
        block[192 + g] = (uint8_t)(int8_t)s;
        for (int e = SMALL * g; e < SMALL * (g + 1); e++) {
            const int q = (step != 0.0f ? code_of(x[e] / step, -32, 31) : 0) + 32;
            const int n = e / 128, k = e % 128 / 32, l = e % 32;
            block[64 * n + 32 * (k & 1) + l] |= (uint8_t)((q & 15) << (k >= 2 ? 4 : 0));
            block[128 + 32 * n + l] |= (uint8_t)((q >> 4) << (2 * k));
        }
    }
}
