#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/tokenizer_hashes.txt: numbers and hashes of the ids that PyPI's tokenizers and sentencepiece give
for whole books and code, and tests/golden/spm_small.model, the small SentencePiece vocabulary among them.

    make-tokenizer-hashes.py SHARED [--new-model]

SHARED is the folder with data/text, data/code, data/tokenizers and data/tokenizer-vectors, whose GGUF of Llama 2's vocabulary
is made into a SentencePiece model in memory. Needs: pip install tokenizers sentencepiece gguf.
--new-model trains the small vocabulary again: 3,000 pieces of BPE with byte fallback, digits split, no space before the
first word and no other normalization, as Yi's is. Also the same vocabulary as a tokenizer.json of merges, in both forms.
"""
import io
import json
import lzma
import os
import struct
import sys

import gguf
import sentencepiece
import tokenizers

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "tests", "golden")
FILES = ["text/en/moby_dick.txt", "text/en/origin_of_species.txt", "text/en/tale_of_two_cities.txt",
         "text/fr/madame_bovary.txt", "text/de/der_stechlin.txt", "text/zh/sanguo_yanyi.txt",
         "code/HumanEval_first100.jsonl"]
MODEL = os.path.join(GOLDEN, "spm_small.model")


def fnv(ids):
    h = 0xcbf29ce484222325
    for i in ids:
        for k in range(4):
            h = ((h ^ (i >> 8 * k & 255)) * 0x100000001b3) & 0xffffffffffffffff
    return h


def train(texts):
    lines = (line for text in texts for line in text.splitlines()[::7] if line.strip())
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=out, model_type="bpe", vocab_size=3000, byte_fallback=True,
        split_digits=True, normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        character_coverage=0.99, unk_id=0, bos_id=1, eos_id=2, unk_piece="<unk>", bos_piece="<|startoftext|>",
        eos_piece="<|endoftext|>", user_defined_symbols=["<fim>"], control_symbols=["<|im_start|>", "<|im_end|>"],
        train_extremely_large_corpus=False, num_threads=1, minloglevel=2, allow_whitespace_only_pieces=True)
    with open(MODEL, "wb") as f:
        f.write(out.getvalue())


def merges_of(sp):
    """(left, right) in order of rank: the joined piece's score, then the ids of the two."""
    ids = {sp.id_to_piece(i): i for i in range(sp.vocab_size())}
    rows = []
    for piece, i in ids.items():
        if sp.is_control(i) or sp.is_unknown(i) or sp.is_byte(i) or piece == "<fim>":
            continue
        here = [(ids[piece[:k]], ids[piece[k:]], piece[:k], piece[k:]) for k in range(1, len(piece))
                if piece[:k] in ids and piece[k:] in ids]
        rows += [(-sp.get_score(i), i) + r for r in sorted(here)]
    return [r[4:] for r in sorted(rows)]


def as_json(sp, merge_lists, prefix):
    ids = {sp.id_to_piece(i): i for i in range(sp.vocab_size())}
    added = [{"id": i, "content": sp.id_to_piece(i), "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": bool(sp.is_control(i) or sp.is_unknown(i))}
             for i in range(sp.vocab_size())
             if sp.is_control(i) or sp.is_unknown(i) or sp.id_to_piece(i) == "<fim>"]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    steps = [{"type": "Prepend", "prepend": "\u2581"}, replace] if prefix else [replace]
    merges = merges_of(sp)
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None, "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": ids, "merges": [list(m) if merge_lists else " ".join(m) for m in merges]}}, ensure_ascii=False)


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def model_of_gguf(path):
    """A SentencePiece processor with a GGUF file's tokens, scores and types: BPE, byte fallback, a space in front."""
    f = gguf.GGUFReader(path).fields
    texts = [bytes(f["tokenizer.ggml.tokens"].parts[i]) for i in f["tokenizer.ggml.tokens"].data]
    scores = [float(f["tokenizer.ggml.scores"].parts[i][0]) for i in f["tokenizer.ggml.scores"].data]
    kinds = [int(f["tokenizer.ggml.token_type"].parts[i][0]) for i in f["tokenizer.ggml.token_type"].data]
    raw = b"".join(field(1, field(1, t) + field(2, s) + field(3, k)) for t, s, k in zip(texts, scores, kinds))
    raw += field(2, field(3, 2) + field(35, 1)) + field(3, field(1, b"identity") + field(3, 1) + field(4, 0) + field(5, 1))
    return sentencepiece.SentencePieceProcessor(model_proto=raw)


def main():
    data = os.path.join(sys.argv[1], "data")
    texts = [open(os.path.join(data, f), encoding="utf-8", newline="").read() for f in FILES]
    if "--new-model" in sys.argv:
        train(texts)
    sp = sentencepiece.SentencePieceProcessor(model_file=MODEL)
    encoders = []
    for name in ("llama3_1", "qwen3"):
        raw = lzma.open(os.path.join(data, "tokenizers", name + ".tokenizer.json.xz")).read().decode("utf-8")
        t = tokenizers.Tokenizer.from_str(raw)
        encoders.append((name, lambda s, t=t: t.encode(s, add_special_tokens=False).ids))
    encoders.append(("llama-spm", model_of_gguf(os.path.join(data, "tokenizer-vectors", "ggml-vocab-llama-spm.gguf")).encode))
    encoders.append(("spm_small.model", sp.encode))
    for name, lists, prefix in (("spm_small.json", True, False), ("spm_prefix.json", False, True)):
        text = as_json(sp, lists, prefix)
        with open(os.path.join(GOLDEN, name), "w", encoding="utf-8") as f:
            f.write(text)
        t = tokenizers.Tokenizer.from_str(text)
        encoders.append((name, lambda s, t=t: t.encode(s, add_special_tokens=False).ids))
    with open(os.path.join(GOLDEN, "tokenizer_hashes.txt"), "w") as out:
        for name, encode in encoders:
            for f, text in zip(FILES, texts):
                ids = encode(text)
                out.write("%s %s %d %016x\n" % (name, f, len(ids), fnv(ids)))


if __name__ == "__main__":
    main()
