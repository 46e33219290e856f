#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Causal prefill attention by others on one GPU, the shapes and the counting of prefill_gpu.cu: PyTorch's cuDNN and flash
attention (scaled_dot_product_attention), bf16. Where a backend does not take grouped heads, K and V are repeated first,
outside of what is timed.

    prefill_peers.py [--ctx 2048,8192,32768] [--reps N]
"""
import argparse
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attend

BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def median_us(call, reps):
    times = []
    for i in range(reps + 2):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        call()
        b.record()
        b.synchronize()
        if i >= 2:
            times.append(a.elapsed_time(b) * 1000)
    return statistics.median(times)


def rows(n, heads, kv_heads, d, reps):
    q = torch.randn(1, heads, n, d, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(1, kv_heads, n, d, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    repeated = [x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v)]
    work = 4 * (n * (n + 1) / 2) * d * heads
    for name, backend in BACKENDS.items():
        for how, kv, grouped in (("grouped", (k, v), True), ("repeated", repeated, False)):
            try:
                with sdpa_kernel(backend):
                    us = median_us(lambda: attend(q, *kv, is_causal=True, enable_gqa=grouped), reps)
            except RuntimeError as e:
                print(f"{name:6} {how:8} d {d:<4} {heads}/{kv_heads} {n:7}  refused: {str(e).splitlines()[0][:80]}")
                continue
            print(f"{name:6} {how:8} d {d:<4} {heads}/{kv_heads} {n:7} {us:10.1f} us {work / us / 1e6:7.1f} TFLOP/s")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ctx", default="2048,8192,32768")
    p.add_argument("--reps", type=int, default=9)
    a = p.parse_args()
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    for d in (128, 64):
        for n in map(int, a.ctx.split(",")):
            rows(n, 32, 8, d, a.reps)


if __name__ == "__main__":
    main()
