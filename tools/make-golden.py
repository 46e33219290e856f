#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the golden vectors of tests/golden from an independent implementation.

    tools/make-golden.py tiny                    tests/golden/tiny_models.bin
    tools/make-golden.py model FILE.gguf         tests/golden/smollm2_logprobs.bin

Needs the PyPI packages torch, transformers, numpy, gguf, tokenizers. Only the outputs are committed: neither the build
nor the tests need this program. Files are little-endian; their layouts are in tests/golden/README.md.
"""
import math
import struct
import sys

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

VOCAB = 264
N_TOKENS = 24
EVERY = 8          # logits kept: ids 0, 8, 16 ...
U64 = np.uint64


# ---- the seeded numbers of tests/unit/tiny_model.h ----

def numbers(seed, name, n):
    h = 0xcbf29ce484222325
    for b in name.encode():
        h = ((h ^ b) * 0x100000001b3) & 0xffffffffffffffff
    stream = (seed + h) & 0xffffffffffffffff
    with np.errstate(over="ignore"):
        z = U64(stream) + (np.arange(1, n + 1, dtype=U64)) * U64(0x9e3779b97f4a7c15)
        z = (z ^ (z >> U64(30))) * U64(0xbf58476d1ce4e5b9)
        z = (z ^ (z >> U64(27))) * U64(0x94d049bb133111eb)
        return z ^ (z >> U64(31))


def units(seed, name, n):
    return ((numbers(seed, name, n) >> U64(40)).astype(np.float64) / 8388608.0 - 1.0).astype(np.float32)


def matrix(seed, name, n_out, n_in, gain=1.0):
    scale = np.float32(gain * math.sqrt(3.0 / n_in))
    return (units(seed, name, n_out * n_in) * scale).reshape(n_out, n_in)


def norm(seed, name, n):
    return np.float32(1.0) + units(seed, name, n) * np.float32(0.25)


def unpermute(w, heads):
    """GGUF rows head*h + 2i + s of q and k of llama files to rows head*h + s*(h/2) + i."""
    h = w.shape[0] // heads
    rest = w.shape[1:]
    return w.reshape(heads, h // 2, 2, *rest).swapaxes(1, 2).reshape(w.shape)


# ---- tiny models ----

LLAMA, QWEN2, LLAMA3_SCALED, YARN = range(4)


def tiny_cases():
    seed = 100
    for head_dim in (64, 80, 128):
        for group in (1, 2, 3, 4, 7, 8):
            seed += 1
            yield dict(kind=LLAMA, group=group, head_dim=head_dim, seed=seed)
    for kind in (QWEN2, LLAMA3_SCALED, YARN):
        seed += 1
        yield dict(kind=kind, group=2, head_dim=64, seed=seed)


def tiny_model(c):
    n_kv = 2 if c["group"] <= 4 else 1
    n_embd, n_ff, n_layers, h = 168, 96, 2, c["head_dim"]
    heads = n_kv * c["group"]
    untied = h == 80
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if c["kind"] == LLAMA3_SCALED:
        rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64}
    if c["kind"] == YARN:
        rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    qwen = c["kind"] in (QWEN2, YARN)
    kind, model = (Qwen2Config, Qwen2ForCausalLM) if qwen else (LlamaConfig, LlamaForCausalLM)
    config = kind(vocab_size=VOCAB, hidden_size=n_embd, intermediate_size=n_ff, num_hidden_layers=n_layers,
                  num_attention_heads=heads, num_key_value_heads=n_kv, head_dim=h, max_position_embeddings=512,
                  rms_norm_eps=1e-5, rope_parameters=rope, tie_word_embeddings=not untied, attn_implementation="eager")
    m = model(config)
    s = c["seed"]
    state = {"model.embed_tokens.weight": matrix(s, "token_embd.weight", VOCAB, n_embd),
             "model.norm.weight": norm(s, "output_norm.weight", n_embd)}
    state["lm_head.weight"] = matrix(s, "output.weight", VOCAB, n_embd) if untied else state["model.embed_tokens.weight"]
    for i in range(n_layers):
        a, b = f"model.layers.{i}.", f"blk.{i}."
        turn = (lambda w, n: w) if qwen else unpermute
        state[a + "input_layernorm.weight"] = norm(s, b + "attn_norm.weight", n_embd)
        state[a + "post_attention_layernorm.weight"] = norm(s, b + "ffn_norm.weight", n_embd)
        for p, n, gain in (("q", heads, 1.5), ("k", n_kv, 1.5), ("v", n_kv, 1.0)):
            w = matrix(s, b + f"attn_{p}.weight", n * h, n_embd, gain)
            state[a + f"self_attn.{p}_proj.weight"] = w if p == "v" else turn(w, n)
            if qwen:
                state[a + f"self_attn.{p}_proj.bias"] = units(s, b + f"attn_{p}.bias", n * h) * np.float32(0.125)
        state[a + "self_attn.o_proj.weight"] = matrix(s, b + "attn_output.weight", n_embd, heads * h)
        state[a + "mlp.gate_proj.weight"] = matrix(s, b + "ffn_gate.weight", n_ff, n_embd)
        state[a + "mlp.up_proj.weight"] = matrix(s, b + "ffn_up.weight", n_ff, n_embd)
        state[a + "mlp.down_proj.weight"] = matrix(s, b + "ffn_down.weight", n_embd, n_ff)
    load(m, state)
    return m.double().eval(), n_kv


def load(m, state):
    missing, unexpected = m.load_state_dict({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()}, strict=False)
    assert not unexpected, unexpected
    assert all("lm_head" in k for k in missing), missing


def make_tiny():
    out = [b"SRGOLD1\n", struct.pack("<iiii", len(list(tiny_cases())), VOCAB, N_TOKENS, EVERY)]
    for c in tiny_cases():
        m, n_kv = tiny_model(c)
        ids = (numbers(c["seed"], "tokens", N_TOKENS) % U64(VOCAB)).astype(np.int64)
        with torch.no_grad():
            logits = m(torch.from_numpy(ids)[None]).logits[0].numpy()
        out.append(struct.pack("<iiiiq", c["kind"], c["group"], c["head_dim"], n_kv, c["seed"]))
        out.append(logits[:, ::EVERY].astype("<f4").tobytes())
        print(c, "logits", logits.std(), np.abs(logits).max())
    with open("tests/golden/tiny_models.bin", "wb") as f:
        f.write(b"".join(out))


# ---- a real model ----

N_POSITIONS, TOP = 64, 160


def tokenizer_of(r):
    from tokenizers import Tokenizer, models, pre_tokenizers
    tokens = r.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ", 1)) for m in r.fields["tokenizer.ggml.merges"].contents()]
    t = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(tokens)}, merges=merges))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    return t


def real_model(r):
    from gguf.quants import dequantize
    key = lambda k: r.fields["llama." + k].contents()
    w = {t.name: np.array(dequantize(t.data, t.tensor_type), dtype=np.float32).reshape([int(n) for n in t.shape][::-1])
         for t in r.tensors}
    heads, n_kv, n_layers = key("attention.head_count"), key("attention.head_count_kv"), key("block_count")
    n_embd = key("embedding_length")
    config = LlamaConfig(vocab_size=w["token_embd.weight"].shape[0], hidden_size=n_embd, intermediate_size=key("feed_forward_length"),
                         num_hidden_layers=n_layers, num_attention_heads=heads, num_key_value_heads=n_kv,
                         max_position_embeddings=key("context_length"), rms_norm_eps=key("attention.layer_norm_rms_epsilon"),
                         rope_parameters={"rope_type": "default", "rope_theta": key("rope.freq_base")},
                         tie_word_embeddings="output.weight" not in w, attn_implementation="eager")
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    state = {"model.embed_tokens.weight": w["token_embd.weight"], "model.norm.weight": w["output_norm.weight"],
             "lm_head.weight": w.get("output.weight", w["token_embd.weight"])}
    for i in range(n_layers):
        for g, h in names.items():
            x = w[f"blk.{i}.{g}.weight"]
            if g in ("attn_q", "attn_k"):
                x = unpermute(x, heads if g == "attn_q" else n_kv)
            state[f"model.layers.{i}.{h}.weight"] = x
    m = LlamaForCausalLM(config)
    load(m, state)
    return m.float().eval()


def make_model(path):
    from gguf import GGUFReader
    r = GGUFReader(path)
    text = open("tests/golden/text.txt", encoding="utf-8").read()
    ids = tokenizer_of(r).encode(text).ids
    assert len(ids) >= N_POSITIONS, len(ids)
    ids = ids[:N_POSITIONS]
    with torch.no_grad():
        lp = torch.log_softmax(real_model(r)(torch.tensor(ids)[None]).logits[0].double(), dim=-1)
    top = torch.topk(lp, TOP, dim=-1)
    with open("tests/golden/smollm2_logprobs.bin", "wb") as f:
        f.write(b"SRGOLD2\n" + struct.pack("<ii", N_POSITIONS, TOP))
        f.write(np.array(ids, dtype="<i4").tobytes())
        f.write(top.indices.numpy().astype("<u2").tobytes())
        f.write(top.values.numpy().astype("<f4").tobytes())
    rest = 1.0 - top.values.exp().sum(-1)
    print(len(ids), "positions, mass outside the top", TOP, "mean", rest.mean().item(), "max", rest.max().item())


if __name__ == "__main__":
    if sys.argv[1:] == ["tiny"]:
        make_tiny()
    elif len(sys.argv) == 3 and sys.argv[1] == "model":
        make_model(sys.argv[2])
    else:
        sys.exit(__doc__)
