#!/usr/bin/env python3
"""Writes a tiny llama model with random weights as a GGUF file: a real model for real engines, 0.7 MB.

    make-gguf.py OUT.gguf [--seed N] [--truncate BYTES|PERCENT%]

The same seed gives the same bytes. The vocabulary is the 256 bytes; what comes out is printable ASCII (the other
bytes are made improbable, the end of the text too: `max_tokens` says how long an answer is). --truncate writes
only the beginning, as an interrupted copy would.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3). Standard library only.
"""

import argparse
import os
import random
import struct

WIDTH, LAYERS, HEADS, KV_HEADS, FEED_FORWARD, CONTEXT = 128, 2, 4, 2, 256, 4096
KV_WIDTH = WIDTH // HEADS * KV_HEADS
F32, F16 = 0, 1
ALIGNMENT = 32

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key, value):
    """One key with its value; the GGUF type follows the Python type."""
    if isinstance(value, bool):
        return text(key) + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return text(key) + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    kind, items = value
    packed = b"".join(text(i) for i in items) if kind == 8 else struct.pack(f"<{len(items)}{'i' if kind == 5 else 'f'}", *items)
    return text(key) + struct.pack("<IIQ", 9, kind, len(items)) + packed


def vocabulary():
    """Tokens, scores and types (2 unknown, 3 control, 6 byte, 1 normal)."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    return tokens, [0.0] * len(tokens), [2, 3, 3] + [6] * 256


def likely(token):
    """Printable bytes."""
    return 3 + 0x20 <= token < 3 + 0x7F


def tensors(seed, count):
    """Name, shape (fastest dimension first), type and packed data of every tensor."""
    rng = random.Random(seed)

    def matrix(name, columns, rows, change=None):
        scale = columns ** -0.5
        values = [rng.gauss(0.0, scale) for _ in range(columns * rows)]
        if change:
            change(values, columns)
        return name, (columns, rows), F16, struct.pack(f"<{len(values)}e", *values)

    def norm(name):
        return name, (WIDTH,), F32, struct.pack(f"<{WIDTH}f", *[1.0] * WIDTH)

    # Channel 0 is kept at a constant that no layer adds to: with it the output matrix has a bias
    # per token, and unlikely tokens can be told apart.
    def constant(values, columns):
        for row in range(len(values) // columns):
            values[row * columns] = 4.0

    def untouched(values, columns):
        values[:columns] = [0.0] * columns

    def bias(values, columns):
        for row in range(len(values) // columns):
            values[row * columns] = 0.0 if likely(row) else -60.0

    yield matrix("token_embd.weight", WIDTH, count, constant)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        yield norm(block + "attn_norm.weight")
        yield matrix(block + "attn_q.weight", WIDTH, WIDTH)
        yield matrix(block + "attn_k.weight", WIDTH, KV_WIDTH)
        yield matrix(block + "attn_v.weight", WIDTH, KV_WIDTH)
        yield matrix(block + "attn_output.weight", WIDTH, WIDTH, untouched)
        yield norm(block + "ffn_norm.weight")
        yield matrix(block + "ffn_gate.weight", WIDTH, FEED_FORWARD)
        yield matrix(block + "ffn_up.weight", WIDTH, FEED_FORWARD)
        yield matrix(block + "ffn_down.weight", FEED_FORWARD, WIDTH, untouched)
    yield norm("output_norm.weight")
    yield matrix("output.weight", WIDTH, count, bias)


def build(seed):
    words, scores, kinds = vocabulary()
    keys = {
        "general.architecture": "llama",
        "general.name": f"gpudeck-tiny-{seed}",
        "general.alignment": ALIGNMENT,
        "general.file_type": 1,
        "llama.vocab_size": len(words),
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": (8, words),
        "tokenizer.ggml.scores": (6, scores),
        "tokenizer.ggml.token_type": (5, kinds),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    infos, data = b"", b""
    all_tensors = list(tensors(seed, len(words)))
    for name, shape, kind, packed in all_tensors:
        infos += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += packed + b"\0" * (-len(packed) % ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(all_tensors), len(keys))
    head += b"".join(entry(k, v) for k, v in keys.items()) + infos
    return head + b"\0" * (-len(head) % ALIGNMENT) + data


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--truncate", metavar="BYTES|PERCENT%")
    arguments = parser.parse_args()
    data = build(arguments.seed)
    if arguments.truncate:
        limit = arguments.truncate
        data = data[: len(data) * int(limit[:-1]) // 100 if limit.endswith("%") else int(limit)]
    part = f"{arguments.out}.{os.getpid()}.part"
    with open(part, "wb") as file:
        file.write(data)
    os.replace(part, arguments.out)


if __name__ == "__main__":
    main()
