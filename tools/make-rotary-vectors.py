#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/rotary.bin: cosines and sines of rotary embeddings at far positions, in 40 digits by mpmath, from
the formulas as they were published (RoPE; Llama 3.1's frequency scaling; YaRN, arXiv 2309.00071), not from our code.

Little-endian: "SRROTA1\\n", i32 number of cases; per case f64 base, factor, original length, i32 head size, scaling (0 none,
1 linear, 2 yarn, 3 llama3), n; then n times i64 position, i64 frequency, f64 cosine, f64 sine.
"""
import struct

from mpmath import cos, floor, ceil, log, mp, mpf, pi, sin

mp.dps = 40
NONE, LINEAR, YARN, LLAMA3 = range(4)
CASES = [  # base, factor, original length, head size, scaling
    (1e4, 1, 0, 64, NONE),           # Llama 2
    (1e7, 1, 0, 128, NONE),          # Yi-9B-200K
    (1e4, 4, 0, 128, LINEAR),        # Vicuna 16K
    (5e5, 8, 8192, 128, LLAMA3),     # Llama 3.1
    (5e5, 32, 8192, 64, LLAMA3),     # Llama 3.2
    (1e6, 4, 32768, 128, YARN),      # Qwen2.5 and Qwen3 at 128K
    (1e6, 32, 32768, 128, YARN),     # the same at 1M
]
POSITIONS = [0, 1, 77, 4095, 32768, 131071, 200000, 524287, 1048575, 1048576]


def frequency(base, factor, old, h, scaling, i):
    inv = mpf(base) ** (-mpf(2 * i) / h)
    if scaling == LINEAR:
        return inv / factor
    if scaling == LLAMA3:
        wave = 2 * pi / inv
        if wave < mpf(old) / 4:
            return inv
        if wave > old:
            return inv / factor
        s = (old / wave - 1) / 3
        return (1 - s) * inv / factor + s * inv
    if scaling == YARN:
        def index(turns):
            return h * log(old / (2 * pi * turns)) / (2 * log(mpf(base)))
        low, high = max(floor(index(32)), 0), min(ceil(index(1)), h - 1)
        ramp = min(max((i - low) / max(mpf("0.001"), high - low), 0), 1)
        return inv / factor * ramp + inv * (1 - ramp)
    return inv


def main():
    out = [b"SRROTA1\n", struct.pack("<i", len(CASES))]
    for base, factor, old, h, scaling in CASES:
        rows = []
        m = 1 + log(mpf(factor)) / 10 if scaling == YARN else 1
        for pos in POSITIONS:
            for i in sorted({0, 1, h // 8, h // 4 - 1, h * 5 // 16, h * 3 // 8, h // 2 - 1}):
                angle = pos * frequency(base, factor, old, h, scaling, i)
                rows.append(struct.pack("<qqdd", pos, i, float(m * cos(angle)), float(m * sin(angle))))
        out.append(struct.pack("<dddiii", base, factor, old, h, scaling, len(rows)) + b"".join(rows))
    with open("tests/golden/rotary.bin", "wb") as f:
        f.write(b"".join(out))


main()
