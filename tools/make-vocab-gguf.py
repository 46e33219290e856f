#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a GGUF file with the vocabulary of a Hugging Face tokenizer.json and no tensors, for tests.

    make-vocab-gguf.py TOKENIZER.json[.xz] OUT.gguf [--pre NAME]

Only byte-level BPE. The pre-tokenizer's name is found from the file's own rules unless --pre gives it.
Needs nothing but Python's standard library.
"""
import argparse
import json
import lzma
import struct

U32, STRING, ARRAY, BOOL, I32 = 4, 8, 9, 7, 5
NORMAL, CONTROL, USER, UNUSED = 1, 3, 4, 5


def pre_name(rules):
    """Name of the rule that the pre_tokenizer object describes; None if it is not one of ours."""
    steps = rules.get("pretokenizers", [rules])
    kinds = [s["type"] for s in steps]
    if "Split" in kinds:
        regex = next(s for s in steps if s["type"] == "Split")["pattern"].get("Regex", "")
        return "llama-bpe" if r"\p{N}{1,3}" in regex else "qwen2" if r"\p{N}" in regex else None
    if "Digits" in kinds:
        return "smollm"
    return "gpt-2" if kinds == ["ByteLevel"] else None


def vocabulary(doc):
    """Texts and types by id; ids without a token become unused padding."""
    ids = dict((i, (t, NORMAL)) for t, i in doc["model"]["vocab"].items())
    for a in doc.get("added_tokens", []):
        control = a["special"] or (a["content"].startswith("<|") and a["content"].endswith("|>"))
        ids[a["id"]] = (a["content"], CONTROL if control else USER)
    rows = [ids.get(i, ("[PAD%d]" % i, UNUSED)) for i in range(max(ids) + 1)]
    return [r[0] for r in rows], [r[1] for r in rows]


def string(text):
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def value(key, kind, payload):
    return string(key) + struct.pack("<I", kind) + payload


def array(key, kind, items):
    return value(key, ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(items))


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("tokenizer")
    ap.add_argument("out")
    ap.add_argument("--pre")
    args = ap.parse_args()
    with (lzma.open if args.tokenizer.endswith(".xz") else open)(args.tokenizer, "rb") as f:
        doc = json.load(f)
    pre = args.pre or pre_name(doc["pre_tokenizer"])
    if doc["model"]["type"] != "BPE" or pre is None:
        raise SystemExit("%s: not a byte-level BPE vocabulary with a known pre-tokenizer" % args.tokenizer)
    tokens, kinds = vocabulary(doc)
    merges = [m if isinstance(m, str) else " ".join(m) for m in doc["model"]["merges"]]
    begin = next((i for i, t in enumerate(tokens) if t == "<|begin_of_text|>"), None)
    values = [
        value("general.architecture", STRING, string("llama")),
        value("tokenizer.ggml.model", STRING, string("gpt2")),
        value("tokenizer.ggml.pre", STRING, string(pre)),
        array("tokenizer.ggml.tokens", STRING, [string(t) for t in tokens]),
        array("tokenizer.ggml.token_type", I32, [struct.pack("<i", k) for k in kinds]),
        array("tokenizer.ggml.merges", STRING, [string(m) for m in merges]),
    ]
    if begin is not None:
        values.append(value("tokenizer.ggml.bos_token_id", U32, struct.pack("<I", begin)))
    with open(args.out, "wb") as f:
        f.write(b"GGUF" + struct.pack("<IQQ", 3, 0, len(values)) + b"".join(values))


if __name__ == "__main__":
    main()
