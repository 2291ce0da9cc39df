"""Read TFRecord files and the tf.train.Example messages in them, without TensorFlow.

A record is a uint64 length, the masked CRC-32C of these eight bytes, the data, and the masked CRC-32C of the data, all
little-endian. An Example is field 1 (Features) of a protocol buffer: a map from names to lists of bytes or floats.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from videodata.crc32c import crc32c
from videodata.errors import VideoError

HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # kinds of fields on the wire


class Record(NamedTuple):
    """Where the data of a record lies in its file. length None: the header is damaged, what follows cannot be found."""

    offset: int
    length: int | None


def find_records(path: Path) -> list[Record]:
    """All records of a file, from their headers alone; a damaged one is the last."""
    size, position, records = path.stat().st_size, 0, []
    with open(path, "rb") as file:
        while position < size:
            file.seek(position)
            header = file.read(HEADER.size)
            length, crc = HEADER.unpack(header) if len(header) == HEADER.size else (None, None)
            if length is None or masked(crc32c(header[:8])) != crc or position + 16 + length > size:
                records.append(Record(position, None))
                break
            records.append(Record(position + HEADER.size, length))
            position += HEADER.size + length + FOOTER.size
    return records


def read_record(path: Path, record: Record) -> bytes:
    """The data of a record. Raises VideoError when its checksum is wrong."""
    if record.length is None:
        raise VideoError(path, f"is damaged or cut off at byte {record.offset}; download the archive again")
    with open(path, "rb") as file:
        file.seek(record.offset)
        data = file.read(record.length)
        footer = file.read(FOOTER.size)
    if FOOTER.unpack(footer)[0] != masked(crc32c(data)):
        raise VideoError(path, f"the record at byte {record.offset} is damaged (wrong checksum)")
    return data


def masked(crc: int) -> int:
    """The form in which a checksum is stored."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_example(data: bytes) -> dict[str, list[memoryview] | np.ndarray]:
    """Features of an Example by name: bytes as a list of views, floats as float32 (n,). Raises ValueError."""
    features: dict[str, list[memoryview] | np.ndarray] = {}
    view = memoryview(data)
    for number, value in _fields(view):
        if number != 1:
            continue
        for _, entry in _fields(value):
            pair = dict(_fields(entry))
            features[bytes(pair[1]).decode()] = _values(pair[2])
    return features


def _values(feature: memoryview) -> list[memoryview] | np.ndarray:
    kind, content = next(_fields(feature))
    if kind == 1:
        return [value for _, value in _fields(content)]
    if kind == 2:
        return np.concatenate([np.frombuffer(value, "<f4") for _, value in _fields(content)])
    raise ValueError(f"lists of kind {kind} are not expected")


def _fields(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of each field of a message; the content of a varint is left out."""
    position = 0
    while position < len(view):
        key, position = _varint(view, position)
        kind = key & 7
        if kind == VARINT:
            _, position = _varint(view, position)
            continue
        if kind == LENGTH:
            size, position = _varint(view, position)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"field of kind {kind}")
        if position + size > len(view):
            raise ValueError("a field is longer than its message")
        yield key >> 3, view[position : position + size]
        position += size


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """A number of seven bits per byte, and the position after it."""
    value = shift = 0
    while position < len(view) and shift < 64:
        byte = view[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError("a number does not end")
