"""Whether a video file ends before it says that it does: its last piece is incomplete, or is not the last one.

Lengths in seconds are another matter: headers round them, these bytes are exact.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from videodata.stretch import Stretch, open_bytes, size_of

HEAD, TAIL = 1 << 16, 1 << 17  # bytes in which a header stands, and in which the last packet of a file begins
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # identifier of the object that tells the size
# Of Matroska, by the specification: the clusters hold the packets, after them may come indices, tags and files.
SEGMENT = 0x18538067
AFTER_THE_CLUSTERS = {0x1C53BB6B: "Cues", 0x1254C367: "Tags", 0x1043A770: "Chapters", 0x1941A469: "Attachments"}


def ends_in_a_piece(path: Path | Stretch, containers: Collection[str]) -> bool:
    """Whether a file was cut off. containers: FFmpeg's names of its format; False for those that are not known here."""
    kinds = {"mpegts": _transport, "mpeg": _program, "ogg": _ogg, "asf": _asf, "matroska": _matroska, "mp4": _boxes,
             "gif": _gif}  # fmt: skip
    look = next((look for name, look in kinds.items() if name in containers), None)
    if look is None:
        return False
    with open_bytes(path) as file:
        return look(file, size_of(path))


def _transport(file: BinaryIO, size: int) -> bool:
    """Packets of 188 bytes that begin with 0x47, on discs with 4 bytes of time before each."""
    head = file.read(5)
    unit = 188 if head[:1] == b"\x47" else 192 if head[4:5] == b"\x47" else 1
    return size % unit > 0


def _program(file: BinaryIO, size: int) -> bool:
    """Packets of sound, pictures and padding: a code, then their length."""
    tail = _tail(file, size)
    last = max(tail.rfind(b"\0\0\1" + bytes([code])) for code in range(0xBD, 0xF0))
    return last >= 0 and last + 6 + int.from_bytes(tail[last + 4 : last + 6], "big") > len(tail)


def _ogg(file: BinaryIO, size: int) -> bool:
    """Pages: 26 bytes, the number of pieces, the length of each, the pieces."""
    tail = _tail(file, size)
    last = tail.rfind(b"OggS")
    lengths = tail[last + 27 : last + 27 + tail[last + 26]] if last + 27 <= len(tail) else b""
    return last >= 0 and last + 27 + len(lengths) + sum(lengths) > len(tail)


def _asf(file: BinaryIO, size: int) -> bool:
    """An object of properties: its identifier and two more numbers, then the size of the file; 0 in a broadcast."""
    head = file.read(HEAD)
    place = head.find(ASF_PROPERTIES)
    return place >= 0 and size < int.from_bytes(head[place + 40 : place + 48], "little")


def _gif(file: BinaryIO, size: int) -> bool:
    """A header with a table of colours, then blocks: their kind, and pieces of up to 255 bytes that end with an empty
    one. The kind ";" ends the file; programs leave it out, so that only a block that is not whole tells.
    """
    _skip_colours(file, file.read(13)[10:11])
    while kind := file.read(1):
        if kind == b"!":
            file.seek(1, os.SEEK_CUR)
        elif kind == b",":
            _skip_colours(file, file.read(9)[8:])
            file.seek(1, os.SEEK_CUR)  # width of the codes
        else:
            return False
        while length := file.read(1):
            if length == b"\0":
                break
            file.seek(length[0], os.SEEK_CUR)
        if not length or file.tell() > size:
            return True
    return False


def _skip_colours(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << (flags[0] & 7) + 1, os.SEEK_CUR)


def _tail(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, size - TAIL))
    return file.read()


def _matroska(file: BinaryIO, size: int) -> bool:
    """A header and a segment of elements. Live recordings do not know how long theirs will be."""
    file.seek(min(_element(file)[1] or 0, size), os.SEEK_CUR)
    kind, length = _element(file)
    if kind != SEGMENT or length is None or file.tell() + length <= size:
        return False
    while file.tell() < size:
        kind, length = _element(file)
        if length is None:
            return True
        file.seek(min(length, size), os.SEEK_CUR)  # a damaged one may be more than can be sought
    return file.tell() == size or kind not in AFTER_THE_CLUSTERS


def _element(file: BinaryIO) -> tuple[int | None, int | None]:
    """Identifier and length of the element that begins here; None for an unknown length, or where the file ends."""
    kind, _ = _number(file)
    length, count = _number(file)
    if length is None:
        return kind, None
    length -= 1 << 7 * count  # the one that ends the zeros
    return kind, None if length == (1 << 7 * count) - 1 else length


def _number(file: BinaryIO) -> tuple[int | None, int]:
    """A number as it stands in the file, and its bytes: one more than there are zeros before the first one in it."""
    first = file.read(1)
    count = 9 - first[0].bit_length() if first else 0
    data = first + file.read(count - 1) if 1 <= count <= 8 else b""
    return (int.from_bytes(data, "big"), count) if data and len(data) == count else (None, 0)


def _boxes(file: BinaryIO, size: int) -> bool:
    """Boxes that follow each other: 4 bytes of length and 4 of name, for a length of 1 8 more; 0 reaches to the end."""
    return any(name in (b"mdat", b"moof") and end > size for name, end in _top_boxes(file, size))


def _top_boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Name and end of each box of a file, down to the first that has no length."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:], "big") if length == 1 else length
        if length < 8:
            return
        start += length
        yield head[4:8], start
