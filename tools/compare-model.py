#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How far the engine is from float arithmetic on a real model: the mean KL over the tokens of a text between transformers in
float32, with the same weights dequantized by the package gguf, and the library's prefill and decode.

    tools/compare-model.py MODEL.gguf TEXT [--tokens 512] [--library build/libsinkrouter.so]

Needs the PyPI packages torch, transformers, numpy, gguf. Dense models without frequency scaling.
"""
import argparse
import ctypes
import importlib.util
import os

import numpy as np
import torch


def make_golden():
    spec = importlib.util.spec_from_file_location("make_golden", os.path.join(os.path.dirname(__file__), "make-golden.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Engine:
    """One session, by the functions that take pointers and numbers only: default options."""

    def __init__(self, library, path):
        self.lib = ctypes.CDLL(os.path.abspath(library))
        self.lib.sr_session_logits.restype = ctypes.POINTER(ctypes.c_float)
        self.error = ctypes.create_string_buffer(512)
        self.model, self.session = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("sr_model_open", ctypes.byref(self.model), path.encode(), None)
        self.call("sr_session_new", ctypes.byref(self.session), self.model, None)

    def call(self, name, *args):
        if getattr(self.lib, name)(*args, self.error) != 0:
            raise SystemExit(f"{name}: {self.error.raw[4:].split(bytes(1))[0].decode()}")

    def tokens(self, text):
        ids, n = ctypes.POINTER(ctypes.c_int32)(), ctypes.c_int32()
        self.call("sr_tokenize", self.model, text, ctypes.c_size_t(len(text)), -1, 0, ctypes.byref(ids), ctypes.byref(n))
        return np.array(ids[:n.value], dtype=np.int32)

    def prefill(self, ids, n_vocab):
        out = np.empty((len(ids), n_vocab), dtype=np.float32)
        self.call("sr_session_prefill_logits", self.session, ids.ctypes.data_as(ctypes.c_void_p), len(ids),
                  out.ctypes.data_as(ctypes.c_void_p))
        self.call("sr_session_truncate", self.session, 0)
        return out

    def decode(self, ids, n_vocab):
        for i in ids:
            self.call("sr_session_decode", self.session, ctypes.c_int32(int(i)))
            yield np.ctypeslib.as_array(self.lib.sr_session_logits(self.session), (n_vocab,)).copy()


def compare(reference, rows):
    kl, same = [], 0
    for want, got in zip(reference, rows):
        p, q = (torch.log_softmax(torch.as_tensor(x).double(), -1) for x in (want, got))
        kl.append((p.exp() * (p - q)).sum().item())
        same += int(p.argmax() == q.argmax())
    return f"mean KL {np.mean(kl):.3g}, largest {np.max(kl):.3g}, same first choice {same} of {len(kl)}"


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("text")
    a.add_argument("--tokens", type=int, default=512)
    a.add_argument("--library", default="build/libsinkrouter.so")
    o = a.parse_args()
    from gguf import GGUFReader
    engine = Engine(o.library, o.model)
    with open(o.text, "rb") as f:
        ids = engine.tokens(f.read(64 * o.tokens))[:o.tokens]
    m = make_golden().real_model(GGUFReader(o.model))
    with torch.no_grad():
        reference = m(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
    n_vocab = reference.shape[1]
    print(f"{os.path.basename(o.model)}, {len(ids)} tokens of {os.path.basename(o.text)}")
    print("prefill:", compare(reference, engine.prefill(ids, n_vocab)), flush=True)
    print("decode: ", compare(reference, engine.decode(ids, n_vocab)))


main()
