/* SPDX-License-Identifier: Apache-2.0
 *
 * f16 and bf16 to and from f32, portable and exact (round to nearest even; NaN stays a quiet NaN).
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

#endif
