#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the golden vectors of tests/golden from an independent implementation.

    tools/make-golden.py tiny                    tests/golden/tiny_models.bin
    tools/make-golden.py families                tests/golden/families.bin
    tools/make-golden.py model FILE.gguf         tests/golden/smollm2_logprobs.bin

Needs the PyPI packages torch, transformers, numpy, gguf, tokenizers. Only the outputs are committed: neither the build
nor the tests need this program. Files are little-endian; their layouts are in tests/golden/README.md.
"""
import math
import struct
import sys

import numpy as np
import torch
from transformers import (LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
                          Qwen3MoeConfig, Qwen3MoeForCausalLM)

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


def rope_of(theta, kind=None, factor=1.0, old=0):
    rope = {"rope_type": kind or "default", "rope_theta": theta}
    if kind:
        rope["factor"] = factor
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = old
    return rope


CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM),
           "qwen3": (Qwen3Config, Qwen3ForCausalLM), "qwen3moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
           "mixtral": (MixtralConfig, MixtralForCausalLM)}


def seeded_model(c):
    """A model of the numbers of tests/unit/tiny_model.h: family, n_layers, n_embd, n_ff, heads, n_kv, head_dim, untied, rope,
    seed; n_experts, n_used with experts (n_ff is then the width of one)."""
    family, n_embd, n_ff, heads, n_kv, h, s = (c[k] for k in ("family", "n_embd", "n_ff", "heads", "n_kv", "head_dim", "seed"))
    kind, model = CLASSES[family]
    moe = dict(num_experts_per_tok=c["n_used"]) if "n_experts" in c else {}
    if family == "mixtral":
        moe |= dict(num_local_experts=c["n_experts"])
    elif moe:
        moe |= dict(num_experts=c["n_experts"], moe_intermediate_size=n_ff, norm_topk_prob=True)
    config = kind(vocab_size=VOCAB, hidden_size=n_embd, intermediate_size=n_ff, num_hidden_layers=c["n_layers"],
                  num_attention_heads=heads, num_key_value_heads=n_kv, head_dim=h, max_position_embeddings=512,
                  rms_norm_eps=1e-5, rope_parameters=c["rope"], tie_word_embeddings=not c["untied"],
                  attn_implementation="eager", experts_implementation="eager", **moe)
    m = model(config)
    state = {"model.embed_tokens.weight": matrix(s, "token_embd.weight", VOCAB, n_embd),
             "model.norm.weight": norm(s, "output_norm.weight", n_embd)}
    state["lm_head.weight"] = matrix(s, "output.weight", VOCAB, n_embd) if c["untied"] else state["model.embed_tokens.weight"]
    for i in range(c["n_layers"]):
        a, b = f"model.layers.{i}.", f"blk.{i}."
        state[a + "input_layernorm.weight"] = norm(s, b + "attn_norm.weight", n_embd)
        state[a + "post_attention_layernorm.weight"] = norm(s, b + "ffn_norm.weight", n_embd)
        for p, n, gain in (("q", heads, 1.5), ("k", n_kv, 1.5), ("v", n_kv, 1.0)):
            w = matrix(s, b + f"attn_{p}.weight", n * h, n_embd, gain)
            state[a + f"self_attn.{p}_proj.weight"] = unpermute(w, n) if family in ("llama", "mixtral") and p != "v" else w
            if family == "qwen2":
                state[a + f"self_attn.{p}_proj.bias"] = units(s, b + f"attn_{p}.bias", n * h) * np.float32(0.125)
            if family.startswith("qwen3") and p != "v":
                state[a + f"self_attn.{p}_norm.weight"] = norm(s, b + f"attn_{p}_norm.weight", h)
        state[a + "self_attn.o_proj.weight"] = matrix(s, b + "attn_output.weight", n_embd, heads * h)
        if moe:
            e = c["n_experts"]
            gate, up = (matrix(s, b + f"ffn_{p}_exps.weight", e * n_ff, n_embd).reshape(e, n_ff, n_embd) for p in ("gate", "up"))
            state[a + "mlp.gate.weight"] = matrix(s, b + "ffn_gate_inp.weight", e, n_embd, 1.5)
            state[a + "mlp.experts.gate_up_proj"] = np.concatenate((gate, up), axis=1)
            state[a + "mlp.experts.down_proj"] = matrix(s, b + "ffn_down_exps.weight", e * n_embd, n_ff).reshape(e, n_embd, n_ff)
            continue
        state[a + "mlp.gate_proj.weight"] = matrix(s, b + "ffn_gate.weight", n_ff, n_embd)
        state[a + "mlp.up_proj.weight"] = matrix(s, b + "ffn_up.weight", n_ff, n_embd)
        state[a + "mlp.down_proj.weight"] = matrix(s, b + "ffn_down.weight", n_embd, n_ff)
    load(m, state)
    return m.double().eval()


def logits_of(m, seed, n):
    ids = (numbers(seed, "tokens", n) % U64(VOCAB)).astype(np.int64)
    with torch.no_grad():
        return m(torch.from_numpy(ids)[None]).logits[0].numpy()


def tiny_model(c):
    n_kv = 2 if c["group"] <= 4 else 1
    ropes = {LLAMA3_SCALED: rope_of(1e4, "llama3", 8.0, 64), YARN: rope_of(1e4, "yarn", 4.0, 64)}
    return seeded_model(dict(family="qwen2" if c["kind"] in (QWEN2, YARN) else "llama", n_embd=168, n_ff=96, n_layers=2,
                             heads=n_kv * c["group"], n_kv=n_kv, head_dim=c["head_dim"], untied=c["head_dim"] == 80,
                             rope=ropes.get(c["kind"], rope_of(1e4)), seed=c["seed"])), n_kv


def load(m, state):
    missing, unexpected = m.load_state_dict({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()}, strict=False)
    assert not unexpected, unexpected
    assert all("lm_head" in k for k in missing), missing


def make_tiny():
    out = [b"SRGOLD1\n", struct.pack("<iiii", len(list(tiny_cases())), VOCAB, N_TOKENS, EVERY)]
    for c in tiny_cases():
        m, n_kv = tiny_model(c)
        logits = logits_of(m, c["seed"], N_TOKENS)
        out.append(struct.pack("<iiiiq", c["kind"], c["group"], c["head_dim"], n_kv, c["seed"]))
        out.append(logits[:, ::EVERY].astype("<f4").tobytes())
        print(c, "logits", logits.std(), np.abs(logits).max())
    with open("tests/golden/tiny_models.bin", "wb") as f:
        f.write(b"".join(out))


# ---- one model per family; the table of tests/unit/tiny_family.c ----

FAMILIES = [  # name, family, layers, width, ff, heads, kv heads, head size, untied, rope, experts
    ("llama2", "llama", 2, 96, 160, 4, 4, 24, True, rope_of(1e4)),
    ("vicuna-16k", "llama", 2, 64, 96, 4, 4, 16, True, rope_of(1e4, "linear", 4.0)),
    ("llama3.1", "llama", 3, 128, 96, 8, 2, 32, True, rope_of(5e5, "llama3", 8.0, 256)),
    ("llama3.2", "llama", 2, 96, 96, 6, 2, 32, False, rope_of(5e5, "llama3", 32.0, 256)),
    ("yi", "llama", 4, 128, 96, 8, 1, 16, True, rope_of(5e6)),
    ("smollm2", "llama", 3, 72, 96, 9, 3, 8, False, rope_of(1e5)),
    ("qwen2", "qwen2", 2, 112, 96, 7, 1, 16, False, rope_of(1e6)),
    ("qwen2.5-yarn", "qwen2", 2, 96, 96, 6, 2, 16, True, rope_of(1e6, "yarn", 4.0, 128)),
    ("qwen3", "qwen3", 3, 64, 96, 4, 2, 32, False, rope_of(1e6)),
    ("qwen3-yarn", "qwen3", 2, 64, 96, 8, 1, 16, True, rope_of(1e6, "yarn", 4.0, 128)),
    ("qwen3moe", "qwen3moe", 3, 64, 32, 8, 1, 16, True, rope_of(1e6), 16, 4),
    ("qwen3moe-yarn", "qwen3moe", 2, 64, 64, 4, 2, 32, False, rope_of(1e6, "yarn", 2.0, 256), 8, 2),
    ("mixtral", "mixtral", 3, 64, 32, 8, 2, 16, True, rope_of(1e6), 8, 2),
]
FAMILY_TOKENS = 512


def make_families():
    keys = "name family n_layers n_embd n_ff heads n_kv head_dim untied rope n_experts n_used".split()
    out = [b"SRGOLD3\n", struct.pack("<iii", len(FAMILIES), VOCAB, FAMILY_TOKENS)]
    at = np.arange(FAMILY_TOKENS)
    for i, row in enumerate(FAMILIES):
        c = dict(zip(keys, row), seed=500 + i)
        logits = logits_of(seeded_model(c), c["seed"], FAMILY_TOKENS)
        signs = np.where(numbers(c["seed"], "signs", VOCAB) >> U64(63) != 0, -1.0, 1.0)
        kept = np.stack((logits[at, at * 97 % VOCAB], logits @ signs / math.sqrt(VOCAB)), axis=1)
        out.append(c["name"].encode().ljust(16, b"\0") + kept.astype("<f4").tobytes())
        print(c["name"], "logits", logits.std(), np.abs(logits).max())
    with open("tests/golden/families.bin", "wb") as f:
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
    """The model of a GGUF file, dense, weights dequantized by the package gguf, in float32."""
    from gguf.quants import dequantize
    family = r.fields["general.architecture"].contents()

    def key(name, default=None):
        field = r.fields.get(f"{family}.{name}")
        return default if field is None else field.contents()
    w = {t.name: np.array(dequantize(t.data, t.tensor_type), dtype=np.float32).reshape([int(n) for n in t.shape][::-1])
         for t in r.tensors}
    heads, n_layers, n_embd = key("attention.head_count"), key("block_count"), key("embedding_length")
    n_kv = key("attention.head_count_kv", heads)
    rope = rope_of(key("rope.freq_base", 10000.0))
    assert "rope_freqs.weight" not in w and key("rope.scaling.type") is None, "scaling of the frequencies is not made here"
    kind, model = CLASSES[family]
    config = kind(vocab_size=w["token_embd.weight"].shape[0], hidden_size=n_embd, intermediate_size=key("feed_forward_length"),
                  num_hidden_layers=n_layers, num_attention_heads=heads, num_key_value_heads=n_kv,
                  head_dim=key("attention.key_length", n_embd // heads), max_position_embeddings=key("context_length"),
                  rms_norm_eps=key("attention.layer_norm_rms_epsilon"), rope_parameters=rope,
                  tie_word_embeddings="output.weight" not in w, attn_implementation="eager")
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    state = {"model.embed_tokens.weight": w["token_embd.weight"], "model.norm.weight": w["output_norm.weight"],
             "lm_head.weight": w.get("output.weight", w["token_embd.weight"])}
    for i in range(n_layers):
        for g, h in names.items():
            for part in ("weight", "bias"):
                x = w.get(f"blk.{i}.{g}.{part}")
                if x is None:
                    continue
                if family == "llama" and g in ("attn_q", "attn_k"):
                    x = unpermute(x, heads if g == "attn_q" else n_kv)
                state[f"model.layers.{i}.{h}.{part}"] = x
    m = model(config)
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
    elif sys.argv[1:] == ["families"]:
        make_families()
    elif len(sys.argv) == 3 and sys.argv[1] == "model":
        make_model(sys.argv[2])
    else:
        sys.exit(__doc__)
