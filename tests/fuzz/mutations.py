"""Damages valid files in a few places, according to the structure of their formats.

Randomness comes from a `random.Random`, which may be that of hypothesis: it shrinks failing
examples.
"""

import csv
import io
import json
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import msgpack
import numpy as np

Mutation = Callable[[Random, bytes], bytes]

TEXTS = (
    *(
        "",
        " ",
        ".",
        "..",
        "../../x",
        "/etc/passwd",
        "a/../../b",
        "\\..\\x",
        "//a",
        "a\0b",
        "\ud800",
    ),
    *(
        "é",
        "e\u0301",
        "ﬁ",
        "_",
        "red_fox",
        "Red Fox",
        "\x1b[2J",
        "\n",
        "\u2028",
        "<b>&",
        "$x$",
        "{}",
    ),
    *("x" * 300, "x/" * 300, "NaN", "-1", "1e999", "9" * 5000, "train", "test", "model.bin"),
)
NUMBERS = (0, -1, 1, 2, 255, 2**31, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"))
LENGTHS = (0, 1, 127, 255, 65535, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
DTYPES = (
    b"float32",
    b"float16",
    b"bfloat16",
    b"float64",
    b"int8",
    b"O",
    b"S9",
    b"V0",
    b"i4,O",
    b"x",
)
SHAPES = ([], [0], [1], [-1], [2, 2], [2**40], [2**62, 4], [1] * 70, None, "x")
DEEP = 100_000


def odd_value(rng: Random) -> Any:
    """Returns a value that a field is not expected to hold."""
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: rng.choice(TEXTS),
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice((None, True, False)),
        lambda: rng.choice(([], {}, [[]], {"": None}, [None], ["a", 0, "b"], {"a": {"a": []}})),
    )
    return rng.choice(kinds)()


def mutate_tree(rng: Random, tree: Any) -> Any:
    """Makes one change somewhere in nested dictionaries and lists."""
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        key = rng.choice(list(tree))
        rest = {name: value for name, value in tree.items() if name != key}
        match rng.randrange(8):
            case 0:
                return rest
            case 1:
                return rest | {rng.choice(TEXTS): tree[key]}
            case 2:
                return tree | {rng.choice(TEXTS): odd_value(rng)}
            case _:
                return tree | {key: mutate_tree(rng, tree[key])}
    if isinstance(tree, list) and tree and rng.random() < 0.9:
        place = rng.randrange(len(tree))
        match rng.randrange(8):
            case 0:
                return tree[:place] + tree[place + 1 :]
            case 1:
                return [*tree, tree[place]]
            case 2:
                return [*tree[:place], odd_value(rng), *tree[place:]]
            case _:
                return [*tree[:place], mutate_tree(rng, tree[place]), *tree[place + 1 :]]
    if isinstance(tree, str) and rng.random() < 0.5:
        return mutate_text(rng, tree)
    return odd_value(rng)


def mutate_text(rng: Random, text: str) -> str:
    """Inserts another text, or removes a part."""
    start, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    return text[:start] + rng.choice(TEXTS) * rng.randrange(2) + text[end:]


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    """Flips, cuts, repeats or replaces bytes."""
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    match rng.randrange(6):
        case 0:
            return data[:start]
        case 1:
            return data[:start] + data[end:]
        case 2:
            return data[:end] + data[start:end][:1000] + data[end:]
        case 3:
            length = rng.choice(LENGTHS)
            packed = struct.pack(rng.choice("<>") + "Q", length)[: rng.choice((1, 2, 4, 8))]
            return data[:start] + packed + data[start + len(packed) :]
        case _ if data:
            flipped = bytearray(data)
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case _:
            return bytes(rng.randrange(256) for _ in range(rng.randrange(9)))


def mutate_json(rng: Random, data: bytes) -> bytes:
    """Changes the JSON tree; sometimes changes its bytes instead, or returns a very deep tree."""
    kind = rng.randrange(20)
    if kind == 0:
        return rng.choice((b"[", b'{"a":')) * DEEP
    try:
        if kind < 4:
            raise ValueError
        tree = mutate_tree(rng, json.loads(data))
        return json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return mutate_bytes(rng, data)


def mutate_json_lines(rng: Random, data: bytes) -> bytes:
    """Changes one line, or the number of lines."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, rng.choice(lines))
        case _:
            lines[place] = mutate_json(rng, lines[place])
    return b"\n".join(lines)


def mutate_csv(rng: Random, data: bytes) -> bytes:
    """Changes a field, a row, or the bytes."""
    if rng.randrange(8) == 0:
        return mutate_bytes(rng, data)
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8", "surrogatepass"))))
    except (ValueError, csv.Error):
        return mutate_bytes(rng, data)
    rows = [[str(cell) for cell in row] for row in mutate_table(rng, rows)]
    text = io.StringIO()
    writer = csv.writer(text, quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    try:
        writer.writerows(rows)
    except csv.Error:
        return mutate_bytes(rng, data)
    return text.getvalue().encode("utf-8", "surrogatepass")


def mutate_table(rng: Random, rows: list[list[str]]) -> list[list[Any]]:
    changed = mutate_tree(rng, rows)
    changed = changed if isinstance(changed, list) else [[changed]]
    return [row if isinstance(row, list) else [row] for row in changed]


def mutate_lines(rng: Random, data: bytes) -> bytes:
    """Changes a word, a line, or the bytes of a list in plain text."""
    if rng.randrange(8) == 0:
        return mutate_bytes(rng, data)
    rows = [line.split(" ") for line in data.decode("utf-8", "surrogateescape").split("\n")]
    lines = [" ".join(map(str, row)) for row in mutate_table(rng, rows)]
    return "\n".join(lines).encode("utf-8", "replace")


def mutate_safetensors(rng: Random, data: bytes) -> bytes:
    """Changes the JSON header and adjusts its length, or changes the bytes."""
    if len(data) < 8 or rng.randrange(4) == 0:
        return mutate_bytes(rng, data)
    length = int.from_bytes(data[:8], "little")
    header = mutate_json(rng, data[8 : 8 + length])
    if rng.randrange(4) == 0:
        header = data[8 : 8 + length]
        for _ in range(2):
            header = header.replace(*rng.choice(((b"F32", b"F16"), (b"F32", b"I32"), (b"4", b"8"))))
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def mutate_msgpack(rng: Random, data: bytes) -> bytes:
    """Changes keys, arrays or fields of arrays in Flax's format, or the bytes."""
    if rng.randrange(4) == 0:
        return mutate_bytes(rng, data)
    try:
        tree = msgpack.unpackb(data, strict_map_key=False)
        return msgpack.packb(_mutate_packed(rng, tree), unicode_errors="surrogatepass")
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return mutate_bytes(rng, data)


def _mutate_packed(rng: Random, tree: Any) -> Any:
    if isinstance(tree, dict) and tree and rng.random() < 0.8:
        key = rng.choice(list(tree))
        return tree | {key: _mutate_packed(rng, tree[key])}
    if isinstance(tree, msgpack.ExtType) and rng.random() < 0.9:
        try:
            shape, dtype, content = msgpack.unpackb(tree.data, raw=True)
        except (ValueError, TypeError, msgpack.UnpackException):
            return tree
        match rng.randrange(4):
            case 0:
                shape = rng.choice(SHAPES)
            case 1:
                dtype = rng.choice(DTYPES)
            case 2:
                content = mutate_bytes(rng, content)
            case _:
                content = np.float32(rng.choice((np.nan, np.inf, 0))).tobytes() + content[4:]
        code = rng.choice((tree.code, tree.code, 1, 2, 3, 99))
        return msgpack.ExtType(code, msgpack.packb((shape, dtype, content)))
    if rng.randrange(4) == 0:
        return {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"0": tree}}
    return mutate_tree(rng, tree)


def mutate_image(rng: Random, data: bytes) -> bytes:
    """Changes a chunk of a PNG and adjusts its checksum; changes the bytes of other formats."""
    if not data.startswith(b"\x89PNG") or rng.randrange(3) == 0:
        return mutate_bytes(rng, data)
    chunks, place = [], 8
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return mutate_bytes(rng, data)
    number = rng.randrange(len(chunks))
    kind, content = chunks[number]
    match rng.randrange(5):
        case 0:
            chunks.insert(number, (kind, content))
        case 1:
            del chunks[number]
        case 2:
            kind = rng.choice((b"tEXt", b"zTXt", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"acTL"))
            chunks.insert(1, (kind, mutate_bytes(rng, content)))
        case _:
            chunks[number] = (kind, mutate_bytes(rng, content))
    parts = [data[:8]]
    for kind, content in chunks:
        parts += [struct.pack(">I", len(content)), kind, content]
        parts.append(struct.pack(">I", zlib.crc32(kind + content)))
    return b"".join(parts)


def mutate_overrides(rng: Random, data: bytes) -> bytes:
    """Changes the field or value of an argument, or repeats it; there is one argument per line."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    place = rng.randrange(len(lines))
    field, equals, value = lines[place].partition("=")
    match rng.randrange(6):
        case 0:
            field += rng.choice(
                ("[0]", "[:]", "['a']", ".x", "..", "[", "[[1]]", "()", " ", "=", "-")
            )
        case 1:
            lines.insert(place, lines[place])
        case 2:
            field = f"--config.{mutate_text(rng, field[9:])}"
        case 3:
            value = rng.choice(("(", "[", "-", "{1:", "not ", "((1,),")) * rng.choice((1, 50, 5000))
        case 4:
            value = repr(odd_value(rng))
        case _:
            value = mutate_text(rng, value)
    lines[place] = field + equals + value
    return "\n".join(lines).encode("utf-8", "surrogatepass")
