"""Small damages of valid files, each a function of a random generator alone: of bytes, of texts, and of the values that
a file holds (configurations, manifests, checkpoints, HDF5), which then become a file of the same format again.
"""

from __future__ import annotations

import io
import json
import math
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml

Mutation = Callable[[bytes, random.Random, bytes], bytes]  # (content, generator, a file of another kind)

LENGTHS = (0, 1, 2, 7, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
NUMBERS = ("-1", "0", "nan", "inf", "1e309", "9" * 40, "0x10", "1_0", "", "1.5", "true", "null")
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 0.5, math.nan, math.inf, "", "x", "nan", "ü\0\n", "a" * 5000,
    "../../x", "${a}", "part:x", [], [[]], [1, 2], [None], ["x", 1], {}, {"a": 1}, {"": {}},
)  # fmt: skip
DESCRIPTIONS = ("<f4", "|O", "<U5", "|V3", ">i2", "|b1", "<M8[s]", "<c8", "[('a','|u1')]")  # types of arrays
SUFFIXES = (".mp4", ".avi", ".gif", ".png", ".npy", ".hdf5", ".zip", ".csv", ".json", ".yaml", ".pt", ".safetensors")


def mutate(name: str, content: bytes, rng: random.Random, other: bytes) -> tuple[str, bytes, list[str]]:
    """A damaged file and what was done to it: its name, which may have another suffix, and its content."""
    if rng.random() < 0.03:
        return str(Path(name).with_suffix(rng.choice(SUFFIXES))), content, ["wrong suffix"]
    done = []
    values, kinds = VALUES.get(Path(name).suffix), TEXT if Path(name).suffix in TEXTS else BYTES
    if values is not None and rng.random() < 0.6:
        done.append("values")
        content = values(content, rng)
    if not done or rng.random() < 0.1:
        for mutation in rng.choices(kinds, k=rng.choice((1, 1, 1, 2, 3))):
            done.append(mutation.__name__)
            content = mutation(content, rng, other)
    return name, content, done


def place(content: bytes, rng: random.Random) -> int:
    """A position, in half of the cases among the first bytes, where headers are."""
    return rng.randrange(max(1, min(len(content), 256) if rng.random() < 0.5 else len(content)))


def flip_bits(content: bytes, rng: random.Random, _: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 4, 32)) if content else 0):
        changed[place(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(content: bytes, rng: random.Random, _: bytes) -> bytes:
    return content[: rng.choice((place(content, rng), max(0, len(content) - rng.randint(1, 16))))]


def insert(content: bytes, rng: random.Random, _: bytes) -> bytes:
    at = place(content, rng)
    return content[:at] + rng.randbytes(rng.choice((1, 3, 64, 4096))) + content[at:]


def repeat(content: bytes, rng: random.Random, _: bytes) -> bytes:
    at, size = place(content, rng), rng.choice((4, 16, 188, 1024))
    return content[: at + size] + content[at : at + size] * rng.choice((1, 2, 50)) + content[at + size :]


def remove(content: bytes, rng: random.Random, _: bytes) -> bytes:
    at = place(content, rng)
    return content[:at] + content[at + rng.choice((1, 4, 16, 188, 1024)) :]


def zero(content: bytes, rng: random.Random, _: bytes) -> bytes:
    at = place(content, rng)
    size = min(rng.choice((4, 16, 512, 4096)), len(content) - at)
    return content[:at] + bytes(size) + content[at + size :]


def change_length(content: bytes, rng: random.Random, _: bytes) -> bytes:
    """Another number where sizes and lengths may be: binary in 2, 4 or 8 bytes of either order, or in digits."""
    digits = [match.span() for match in re.finditer(rb"\d+", content[:512])]
    if digits and rng.random() < 0.4:
        first, end = rng.choice(digits)
        return content[:first] + rng.choice(NUMBERS).encode() + content[end:]
    kind = rng.choice("HIIQ")
    size, at = struct.calcsize(kind), place(content, rng)
    known = int.from_bytes(content[at : at + size], "big")
    value = rng.choice((*LENGTHS, known + 1, known * 2, len(content), len(content) - at)) % 256**size
    return content[:at] + struct.pack(rng.choice("<>") + kind, value) + content[at + size :]


def splice(content: bytes, rng: random.Random, other: bytes) -> bytes:
    at, cut = place(content, rng), place(other, rng)
    return rng.choice((content[:at] + other[cut:], other[:cut] + content[at:], content + other, other + content))


def empty(_content: bytes, _rng: random.Random, _other: bytes) -> bytes:
    return b""


def encode(content: bytes, rng: random.Random, _: bytes) -> bytes:
    """Another encoding than UTF-8, with a letter that shows it."""
    text = content.decode("latin-1") + rng.choice(("", "ü", "\n# ä\n"))
    return text.encode(rng.choice(("utf-16", "utf-16-le", "latin-1", "utf-8-sig", "utf-32")))


def change_word(content: bytes, rng: random.Random, _: bytes) -> bytes:
    """Another word, number or sign where one was."""
    words = [match.span() for match in re.finditer(rb"\w[\w.]*|[^\w\s]", content)] or [(0, 0)]
    first, end = rng.choice(words)
    signs = ("", '"', "'", ",", "\0", "[", "{", "}", ":", "%", "&a", "*a", "!!python/none", "- ", "\t", "\r", "\x1b")
    return content[:first] + rng.choice((*NUMBERS, *signs)).encode() + content[end:]


def change_line(content: bytes, rng: random.Random, _: bytes) -> bytes:
    lines = content.splitlines(keepends=True) or [b""]
    at = rng.randrange(len(lines))
    lines[at : at + 1] = rng.choice(([], [lines[at]] * 2, [lines[at].strip()], [b"  " + lines[at]], [b"\n", lines[at]]))
    return b"".join(lines)


def enlarge(content: bytes, rng: random.Random, _: bytes) -> bytes:
    """A field that is longer or deeper than any reader expects."""
    at = place(content, rng)
    return content[:at] + rng.choice((b"a" * 200_000, b"[" * 3000, b'{"a":' * 3000, b"9" * 6000)) + content[at:]


BYTES: list[Mutation] = [flip_bits, truncate, insert, repeat, remove, zero, change_length, splice, empty]
BYTES += [flip_bits, truncate, change_length, change_length]  # headers are where the paths through a reader differ
TEXT: list[Mutation] = [*BYTES, *[encode, change_word, change_line, enlarge] * 4]
TEXTS = (".csv", ".txt", ".yaml", ".json")


def change_value(value: Any, rng: random.Random) -> Any:
    """Nested values in which one entry is another value, is gone, or has another name."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(ODD) if not isinstance(value, torch.Tensor) else change_tensor(value, rng)
    entries = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    at = rng.randrange(len(entries))
    key, entry = entries[at]
    change = rng.random()
    if change < 0.15:
        del entries[at]
    elif change < 0.25 and isinstance(value, dict):
        entries[at] = rng.choice(("x", "", 7, f"{key}x")), entry
    else:
        entries[at] = key, change_value(entry, rng)
    return dict(entries) if isinstance(value, dict) else [entry for _, entry in entries]


def change_tensor(value: torch.Tensor, rng: random.Random) -> Any:
    """A tensor of another shape, type or size, or something that is none."""
    flat = value.flatten()
    return rng.choice((flat, flat[:0], value[None], value.double(), value.bool(), value * math.nan, rng.choice(ODD)))


def text_values(read: Callable[[bytes], Any], write: Callable[[Any], str]) -> Callable[[bytes, random.Random], bytes]:
    return lambda content, rng: write(change_value(read(content), rng)).encode("utf-8", "surrogatepass")


def change_torch(content: bytes, rng: random.Random) -> bytes:
    stream = io.BytesIO()
    torch.save(change_value(torch.load(io.BytesIO(content), weights_only=True), rng), stream)
    return stream.getvalue()


def change_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Another header, of the right length; JSON in the metadata is changed as values, too."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    notes = [key for key, text in header.get("__metadata__", {}).items() if text.startswith("{")]
    if notes and rng.random() < 0.8:
        key = rng.choice(notes)
        header["__metadata__"][key] = json.dumps(change_value(json.loads(header["__metadata__"][key]), rng))
    else:
        header = change_value(header, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def change_npy(content: bytes, rng: random.Random) -> bytes:
    """Another description of the array, in a header of the right length, or other numbers of its shape."""
    size = 10 + int.from_bytes(content[8:10], "little")
    header = content[10:size].decode("latin-1").rstrip()
    if rng.random() < 0.4:
        header = re.sub(r"'descr': '[^']*'", f"'descr': {rng.choice(DESCRIPTIONS)!r}", header)
        header = header.replace('"[', "[").replace(']"', "]")
    else:
        spans = [match.span() for match in re.finditer(r"\d+|True|False|\w+", header)]
        first, end = rng.choice(spans)
        header = header[:first] + rng.choice((*NUMBERS, "2", "(", "2,3")) + header[end:]
    text = header.encode() + b"\n"
    return content[:8] + (len(text) % 65536).to_bytes(2, "little") + text + content[size:]


def change_hdf5(content: bytes, rng: random.Random) -> bytes:
    """Another dataset, group or attribute in the place of one, or none."""
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        holders = [entry for entry in (file, *(file[name] for name in names)) if len(entry.attrs)]
        if holders and rng.random() < 0.3:
            attributes = rng.choice(holders).attrs
            name = rng.choice(list(attributes))
            del attributes[name]
            if rng.random() < 0.8:
                attributes[name] = rng.choice(("", "x", "{}", "[1]", 5, -1, math.nan, np.zeros(3), h5py.Empty("f")))
            return finished(file, stream)
        name = rng.choice(names)
        old = file[name]
        values = old[()] if isinstance(old, h5py.Dataset) else np.zeros(3)
        del file[name]
        if rng.random() < 0.8:
            odd = [values.astype("f4") * -1] if isinstance(values, np.ndarray) and values.dtype.kind in "iuf" else []
            odd += [values[:-1], values[None], values[..., None]] if isinstance(values, np.ndarray) else []
            odd += [np.zeros(0), np.arange(4)[::-1] * 10**12, np.full((2, 2), -1), h5py.Empty("f"), "text", b"\xff\xfe"]
            new = rng.choice([*odd, None])
            file.create_group(name) if new is None else file.create_dataset(name, data=new)
        return finished(file, stream)


def finished(file: h5py.File, stream: io.BytesIO) -> bytes:
    file.close()
    return stream.getvalue()


VALUES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": text_values(json.loads, json.dumps),
    ".yaml": text_values(yaml.safe_load, lambda value: yaml.safe_dump(value, allow_unicode=True)),
    ".pt": change_torch,
    ".pth": change_torch,
    ".safetensors": change_safetensors,
    ".npy": change_npy,
    ".hdf5": change_hdf5,
}
