/* SPDX-License-Identifier: Apache-2.0
 *
 * Random blocks. The scale comes from measuring: blocks with scale 1 are read back by the reference dequantizer.
 */
#include "formats/quant_random.h"

#include "base/half.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { MEASURED = 65536, CHUNK = 4096 };

/* Where the f16 scale lies, and the second f16 (-1: none) that is `ratio` times it, which takes the mean away. */
struct scales { sr_dtype dtype; int32_t at, second; double ratio; };

static const struct scales layouts[] = {
    {SR_DTYPE_Q4_0, 0, -1, 0},    {SR_DTYPE_Q4_1, 0, 2, -7.5},    {SR_DTYPE_Q5_0, 0, -1, 0},   {SR_DTYPE_Q5_1, 0, 2, -15.5},
    {SR_DTYPE_Q8_0, 0, -1, 0},    {SR_DTYPE_Q2_K, 80, 82, 1.5},   {SR_DTYPE_Q3_K, 108, -1, 0}, {SR_DTYPE_Q4_K, 0, 2, 7.5},
    {SR_DTYPE_Q5_K, 0, 2, 15.5},  {SR_DTYPE_Q6_K, 208, -1, 0},    {SR_DTYPE_IQ4_NL, 0, -1, 0}};

static const struct scales *layout_of(sr_dtype dtype)
{
    for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++)
        if (layouts[i].dtype == dtype) return &layouts[i];
    return NULL;
}

static void random_bytes(struct rng *rng, uint8_t *dst, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 8) {
        const uint64_t z = sr_rng_u64(rng);
        for (size_t k = 0; k < 8 && i + k < bytes; k++) dst[i + k] = (uint8_t)(z >> 8 * k);
    }
}

static void random_floats(sr_dtype dtype, struct rng *rng, double rms, uint8_t *dst, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float x = (float)((2 * sr_rng_unit(rng) - 1) * rms * 1.7320508075688772);
        const uint16_t half = dtype == SR_DTYPE_F16 ? sr_f16_of_f32(x) : sr_bf16_of_f32(x);
        if (dtype == SR_DTYPE_F32) memcpy(dst + 4 * i, &x, 4);
        else memcpy(dst + 2 * i, &half, 2);
    }
}

static void put_f16(uint8_t *at, double x)
{
    const uint16_t h = sr_f16_of_f32((float)x);
    at[0] = (uint8_t)h;
    at[1] = (uint8_t)(h >> 8);
}

static void set_scales(const struct scales *s, uint8_t *blocks, int64_t n_blocks, int32_t block_bytes, double d)
{
    for (int64_t b = 0; b < n_blocks; b++) {
        put_f16(blocks + b * block_bytes + s->at, d);
        if (s->second >= 0) put_f16(blocks + b * block_bytes + s->second, d * s->ratio);
    }
}

static double measure(sr_dtype dtype, const uint8_t *blocks, int64_t n)
{
    float x[CHUNK];
    double sum = 0.0;
    n = n < MEASURED ? n : MEASURED;
    for (int64_t at = 0; at < n; at += CHUNK) {
        const int64_t part = n - at < CHUNK ? n - at : CHUNK;
        sr_dequantize_row(dtype, blocks + sr_row_bytes(dtype, at), x, part);
        for (int64_t i = 0; i < part; i++) sum += (double)x[i] * (double)x[i];
    }
    return sqrt(sum / (double)n);
}

void sr_random_row(sr_dtype dtype, struct rng *rng, double rms, void *dst, int64_t n)
{
    const struct dtype_traits *type = sr_dtype_find((int64_t)dtype);
    const struct scales *s = layout_of(dtype);
    if (!s) {
        random_floats(dtype, rng, rms, dst, n);
        return;
    }
    assert(n % type->block_elems == 0);
    random_bytes(rng, dst, sr_row_bytes(dtype, n));
    set_scales(s, dst, n / type->block_elems, type->block_bytes, 1.0);
    set_scales(s, dst, n / type->block_elems, type->block_bytes, rms / measure(dtype, dst, n));
}
