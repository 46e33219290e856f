/* SPDX-License-Identifier: Apache-2.0
 *
 * f16, bf16 and fp8 (e4m3) to and from f32, portable and exact (round to nearest even; NaN stays a quiet NaN).
 */
#ifndef SR_BASE_HALF_H
#define SR_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float sr_f32_of_bits(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t sr_bits_of_f32(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }

static inline float sr_f32_of_bf16(uint16_t h) { return sr_f32_of_bits((uint32_t)h << 16); }

static inline uint16_t sr_bf16_of_f32(float f)
{
    uint32_t u = sr_bits_of_f32(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static inline float sr_f32_of_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, mag = h & 0x7fffu;
    if (mag >= 0x7c00u) return sr_f32_of_bits(sign | 0x7f800000u | ((mag & 0x3ffu) << 13) | (mag > 0x7c00u ? 0x400000u : 0u));
    if (mag >= 0x0400u) return sr_f32_of_bits(sign | ((mag << 13) + 0x38000000u));
    /* subnormal: the value is mag * 2^-24 */
    float f = (float)mag * 5.9604644775390625e-8f;
    return sr_f32_of_bits(sign | sr_bits_of_f32(f));
}

static inline uint16_t sr_f16_of_f32(float f)
{
    uint32_t u = sr_bits_of_f32(f), sign = (u >> 16) & 0x8000u, mag = u & 0x7fffffffu;
    if (mag > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (mag >= 0x47800000u) return (uint16_t)(sign | 0x7c00u);          /* >= 65536 */
    if (mag >= 0x38800000u) {                                           /* normal */
        uint32_t r = mag + 0xfffu + ((mag >> 13) & 1u);
        return (uint16_t)(sign | ((r - 0x38000000u) >> 13));            /* a carry may give infinity: correct */
    }
    if (mag < 0x33000000u) return (uint16_t)sign;                       /* < 2^-25 */
    uint32_t shift = 126u - (mag >> 23), man = (mag & 0x7fffffu) | 0x800000u;
    uint32_t half = 1u << (shift - 1u), r = man >> shift, rest = man & ((1u << shift) - 1u);
    if (rest > half || (rest == half && (r & 1u))) r++;
    return (uint16_t)(sign | r);
}

/* e4m3: no infinities, 0x7f is NaN, 448 the largest; below 2^-6 steps of 2^-9. */
static inline float sr_f32_of_f8(uint8_t b)
{
    const uint32_t sign = (uint32_t)(b & 0x80u) << 24, mag = b & 0x7fu;
    if (mag == 0x7fu) return sr_f32_of_bits(sign | 0x7fc00000u);
    if (mag >= 8u) return sr_f32_of_bits(sign | ((mag << 20) + 0x3c000000u));
    return sr_f32_of_bits(sign | sr_bits_of_f32((float)mag * 0.001953125f));
}

/* What is beyond 448 becomes 448, infinity too; NaN has no sign. */
static inline uint8_t sr_f8_of_f32(float f)
{
    const uint32_t u = sr_bits_of_f32(f), sign = (u >> 24) & 0x80u, mag = u & 0x7fffffffu;
    if (mag > 0x7f800000u) return 0x7fu;
    if (mag >= 0x43e00000u) return (uint8_t)(sign | 0x7eu);             /* >= 448 */
    if (mag >= 0x3c800000u)                                             /* normal */
        return (uint8_t)(sign | ((mag + 0x7ffffu + ((mag >> 20) & 1u) - 0x3c000000u) >> 20));
    /* beside 2^14 a float has steps of 2^-9 */
    return (uint8_t)(sign | (sr_bits_of_f32(sr_f32_of_bits(mag) + 16384.0f) - 0x46800000u));
}

#endif
