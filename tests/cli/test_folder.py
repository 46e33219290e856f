#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The program on model folders: tiny random models with safetensors, written here."""
import json
import os
import random
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cli import contains, equal, main, one_line, path, run, test, write

D, LAYERS, HEADS, KV, HEAD, FF, VOCAB = 64, 2, 4, 2, 16, 96, 260
CONFIG = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": D, "num_hidden_layers": LAYERS, "head_dim": HEAD,
          "num_attention_heads": HEADS, "num_key_value_heads": KV, "intermediate_size": FF, "vocab_size": VOCAB, "rms_norm_eps": 1e-6,
          "max_position_embeddings": 512, "rope_theta": 1e6, "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": 258}
TEXT = write("text.txt", "one two three four five six seven eight nine ten " * 12)


def alphabet():
    """The 256 characters of byte-level BPE."""
    plain = [b for b in range(256) if 0x21 <= b <= 0x7E or 0xA1 <= b <= 0xAC or b >= 0xAE]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b if b in plain else 256 + rest.index(b)): b for b in range(256)}


def tensors():
    rng = random.Random(7)

    def matrix(rows, cols):
        return [rows, cols], [rng.uniform(-1, 1) * (3 / cols) ** 0.5 for _ in range(rows * cols)]

    out = {"model.embed_tokens.weight": matrix(VOCAB, D), "model.norm.weight": ([D], [1.0] * D)}
    for i in range(LAYERS):
        p = "model.layers.%d." % i
        for name in ("input_layernorm", "post_attention_layernorm"):
            out[p + name + ".weight"] = [D], [1.0] * D
        for name, rows, cols in (("q", HEADS * HEAD, D), ("k", KV * HEAD, D), ("v", KV * HEAD, D), ("o", D, HEADS * HEAD)):
            out[p + "self_attn.%s_proj.weight" % name] = matrix(rows, cols)
        for name in ("q_norm", "k_norm"):
            out[p + "self_attn.%s.weight" % name] = [HEAD], [1.0] * HEAD
        for name, rows, cols in (("gate", FF, D), ("up", FF, D), ("down", D, FF)):
            out[p + "mlp.%s_proj.weight" % name] = matrix(rows, cols)
    return out


def safetensors(some):
    header, data = {}, b""
    for name, (shape, x) in some.items():
        raw = struct.pack("<%df" % len(x), *x)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def folder(name, config=CONFIG, shards=1):
    os.makedirs(path(name), exist_ok=True)
    put = lambda f, data: write(os.path.join(name, f), data)
    put("config.json", json.dumps(config))
    put("generation_config.json", json.dumps({"eos_token_id": [258, 259], "temperature": 0.6, "top_k": 20}))
    put("tokenizer.json", json.dumps({
        "added_tokens": [{"id": i, "content": t, "special": True} for i, t in ((257, "<|im_start|>"), (258, "<|im_end|>"))],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": alphabet(), "merges": []}}))
    put("tokenizer_config.json", json.dumps({
        "eos_token": "<|im_end|>", "bos_token": None, "model_max_length": 10 ** 30,
        "chat_template": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
                         "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"}))
    every = tensors()
    if shards == 1:
        put("model.safetensors", safetensors(every))
        return path(name)
    where = {t: "model-%05d-of-%05d.safetensors" % (i % shards + 1, shards) for i, t in enumerate(every)}
    for f in set(where.values()):
        put(f, safetensors({t: v for t, v in every.items() if where[t] == f}))
    put("model.safetensors.index.json", json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return path(name)


ONE = folder("one")
GREEDY = ["--temp", "0", "-n", "12", "--ignore-eos", "-no-cnv", "-p", "one two"]


@test
def answers_the_same_however_it_lies():
    out = run("run", "-m", ONE, *GREEDY)[0]
    equal(len(out) > 4, True, out)
    equal(run("run", "-m", folder("two", shards=3), *GREEDY)[0], out)
    equal(run("run", "-m", ONE + "/", "-t", "1", "--no-mmap", *GREEDY)[0], out)


@test
def quantized_at_load():
    for kind in ("q8_0", "q6_k", "q5_k_m", "q5_k", "q5_1", "q5_0", "q4_k_m", "q4_k", "q4_1", "q4_0"):
        out = run("run", "-m", ONE, "--quantize", kind, *GREEDY)[0]
        equal(run("run", "-m", ONE, "--quantize", kind, "-t", "1", *GREEDY)[0], out, kind)
    one_line(run("run", "-m", ONE, "--quantize", "q2_x", *GREEDY, rc=2)[1], "--quantize", "q8_0")


@test
def inspect_shows_it():
    out = run("inspect", "-m", ONE, "--tensors")[0]
    for part in ("qwen3", "name           one", "blk.1.attn_q_norm.weight", "tokenizer.chat_template", "general.sampling.temp = 0.6",
                 "tokenizer.hf.end_token_ids = [258, 259]"):
        contains(out, part)
    j = json.loads(run("inspect", "-m", ONE, "-o", "json")[0])
    equal((j["architecture"], j["type"], j["n_vocab"], j["n_parts"]), ("qwen3", "F32", VOCAB, 1))
    equal(j["chat_template"] in ("chatml", "jinja"), True, j["chat_template"])
    small = json.loads(run("inspect", "-m", ONE, "-o", "json", "--quantize", "q4_0")[0])
    equal(small["type"] in ("Q4_0", "mixed"), True, small["type"])
    equal(small["memory"][0]["weights"] < j["memory"][0]["weights"] / 3, True)


@test
def every_command_takes_it():
    contains(run("chat", "-m", ONE, "--temp", "0", "-n", "4", stdin=b"hello\n")[1], "prefill")
    contains(run("bench", "-m", ONE, "-p", "16", "-n", "4", "-r", "1")[0], "| one ")
    contains(run("perplexity", "-m", ONE, "-f", TEXT, "-c", "256", "-n", "8", "--modes", "dense,window", "--route-min", "64")[0], "window")
    for mode in ("dense", "mass", "paper", "window"):
        run("run", "-m", ONE, "--route", mode, "--route-tau", "0.5", "--route-min", "16", *GREEDY)


@test
def sessions_are_of_their_folder():
    s = path("one.session")
    run("run", "-m", ONE, "--session", s, *GREEDY)
    run("run", "-m", ONE, "--session", s, *GREEDY)
    one_line(run("run", "-m", ONE, "--quantize", "q8_0", "--session", s, *GREEDY, rc=6)[1], "model")
    other = folder("other", dict(CONFIG, rms_norm_eps=1e-5))
    one_line(run("run", "-m", other, "--session", s, *GREEDY, rc=6)[1], "model")


@test
def bad_folders_are_named():
    os.makedirs(path("empty"), exist_ok=True)
    one_line(run("run", "-m", path("empty"), *GREEDY, rc=4)[1], "empty: a directory without config.json")
    one_line(run("run", "-m", folder("kind", dict(CONFIG, model_type="gemma3")), *GREEDY, rc=6)[1], "model_type", "gemma3", "qwen3")
    one_line(run("run", "-m", folder("shape", dict(CONFIG, hidden_size=128)), *GREEDY, rc=3)[1], "want [128")
    one_line(run("run", "-m", folder("text", dict(CONFIG, vocab_size="260")), *GREEDY, rc=3)[1], "$.vocab_size", "integer")
    cut = folder("cut")
    with open(os.path.join(cut, "model.safetensors"), "r+b") as f:
        f.truncate(100)
    one_line(run("run", "-m", cut, *GREEDY, rc=3)[1], "model.safetensors", "header")
    lost = folder("lost", shards=2)
    os.unlink(os.path.join(lost, "model-00002-of-00002.safetensors"))
    one_line(run("run", "-m", lost, *GREEDY, rc=3)[1], "model-00002-of-00002.safetensors", "missing")


main()
