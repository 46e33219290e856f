# SPDX-License-Identifier: Apache-2.0
"""A GGUF file with other strings in its header: enough to give a model tokens or a template that it does not have."""
import shutil
import struct

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        self.at += n
        return self.data[self.at - n:self.at]

    def u32(self):
        return struct.unpack("<I", self.take(4))[0]

    def u64(self):
        return struct.unpack("<Q", self.take(8))[0]

    def string(self):
        return self.take(self.u64())


def text(s):
    return struct.pack("<Q", len(s)) + s


def value(r, kind, change):
    """The bytes of a value, its strings changed; types of changed tokens become user-defined."""
    if kind == STRING:
        return text(change(None, r.string()))
    if kind != ARRAY:
        return r.take(SIZES[kind])
    of, n = r.u32(), r.u64()
    head = struct.pack("<IQ", of, n)
    if of == STRING:
        return head + b"".join(text(change(i, r.string())) for i in range(n))
    return head + r.take(SIZES[of] * n)


def rewrite(source, target, tokens, template):
    """tokens: {old text: new text}; the new ones are user-defined. template: the chat template."""
    with open(source, "rb") as f:
        r = Reader(f.read(1 << 24))
    head, n_tensors, n_kv = r.take(8), r.u64(), r.u64()
    out, changed = [head, struct.pack("<QQ", n_tensors, n_kv)], []

    def rename(i, s):
        if s in tokens:
            changed.append(i)
            return tokens[s]
        return s

    for _ in range(n_kv):
        key, kind = r.string(), r.u32()
        name = key.decode()
        change = rename if name == "tokenizer.ggml.tokens" else (lambda i, s: template) if name == "tokenizer.chat_template" else (lambda i, s: s)
        data = value(r, kind, change)
        if name == "tokenizer.ggml.token_type":
            data = bytearray(data)
            for i in changed:
                struct.pack_into("<i", data, 12 + 4 * i, 4)
        out += [text(key), struct.pack("<I", kind), bytes(data)]
    begin = r.at
    for _ in range(n_tensors):
        r.string()
        r.take(8 * r.u32() + 4 + 8)
    out.append(r.data[begin:r.at])
    header = b"".join(out)
    with open(source, "rb") as f, open(target, "wb") as g:
        f.seek(-(-r.at // 32) * 32)
        g.write(header + bytes(-len(header) % 32))
        shutil.copyfileobj(f, g, 1 << 20)
