"""The index beside tar shards: what each sample is and where its bytes lie, as columns that are mapped, not read.

    part = TarIndex.of(Shard("x-000000.tar", size, sha256, modified), [Sample("a/clip", ".mp4", 1536, 40960, ...), ...])
    write_index(folder / INDEX_NAME, [part, ...])

One file in the layout of safetensors (a length, a JSON header, raw columns), so that any reader of these shows it. The
header has a line for each shard, and nothing for a sample. An index of one shard is an index like any other: large ones
are made by joining them, and opening one costs the same whether it has ten samples or ten million.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from videodata.errors import UserError, VideoError, disk_errors, one_line, said_by
from videodata.files import HashingFile, natural_key, parse_json, write_file

INDEX_NAME = "shards.index"  # the index of all shards of a folder, in it
FORMAT, VERSION = "videodata-tars", "1"
REMEDY = "scripts/prepare_data.py index --restart makes it again"  # without, it keeps what the old one says
FRAMES = ".npy"  # frames as an array; `offset` and `bytes` are those of its pixels, behind the header
NONE = -1  # of a text: there is none
MOST_SHARED = 1_000_000  # texts that are kept only once; captions beyond this number are hardly ever alike
LARGEST_HEADER = 100 << 20

# Columns by name: type and length. n samples, s shards, t texts, r rates; None: as long as it is. The widest come
# first, so that each begins at a multiple of its width.
COLUMNS = {
    "first": ("<i8", "s"),  # number of the first sample of each shard
    "offset": ("<i8", "n"),  # of the sample's bytes in its shard
    "bytes": ("<i8", "n"),
    "hash": ("<u8", "n"),  # beginning of the SHA-256 of the group: what divides into train, val and test
    "key_end": ("<i8", "n"),  # where the key ends in `keys`; it begins where the one before ends
    "text_end": ("<i8", "t"),
    "rates": ("<i8", "r"),  # frames per second: numerator, denominator; 0, 0 for an unknown one
    "frames": ("<i4", "n"),
    "height": ("<i4", "n"),
    "width": ("<i4", "n"),
    "rate": ("<i4", "n"),  # row of `rates`
    "label": ("<i4", "n"),  # number of a text: class or caption
    "group": ("<i4", "n"),  # number of a text; NONE: the sample is a group of its own
    "split": ("<i4", "n"),  # number of a text: the part of the data set that it is declared to belong to
    "kind": ("<i4", "n"),  # number of a text: suffix of the member with the frames
    "keys": ("|u1", None),
    "texts": ("|u1", None),
}
TYPES = {"<i8": "I64", "<u8": "U64", "<i4": "I32", "|u1": "U8"}  # as safetensors calls them
TEXTS = ("label", "group", "split", "kind")


class Sample(NamedTuple):
    """A video in a shard: the member with its frames, and what the members of the same key say about it."""

    key: str
    kind: str  # suffix of the member with the frames: a video's, or .npy
    offset: int  # of the video's bytes in the shard; of the pixels for .npy
    bytes: int
    frames: int
    height: int
    width: int
    fps: Fraction | None = None
    label: str | None = None  # class or caption
    group: str | None = None  # what must stay on one side of a split; None: itself
    split: str | None = None


@dataclass(frozen=True)
class Shard:
    """A tar, and by what it is known again."""

    name: str  # with / between its parts, relative to the index or to its `base`
    bytes: int
    sha256: str
    modified: int | None = None  # nanoseconds, of a local file
    etag: str | None = None  # or the date of the last change, as its server says
    skipped: int = 0  # samples that cannot be read and are not in the index

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".tar")


class TarIndex:
    """Columns of samples, shard by shard. `base`: where the shards lie, None for beside the index."""

    def __init__(self, path: str, shards: Sequence[Shard], columns: dict[str, np.ndarray], base: str | None = None,
                 ids: str = "key") -> None:  # fmt: skip
        """ids: "key", or "shard/key" where several shards use the same keys."""
        self.path, self.shards, self.columns, self.base, self.ids = path, list(shards), columns, base, ids
        self.first = columns["first"]
        self._is_mapped = False

    @classmethod
    def of(cls, shard: Shard, samples: Iterable[Sample]) -> TarIndex:
        """The index of one shard, in memory. Raises UserError for samples that no index can hold."""
        rows = sorted(samples, key=lambda sample: sample.offset)
        texts: dict[str, int] = {}
        rates: dict[tuple[int, int], int] = {}

        def number_of(text: str | None) -> int:
            return NONE if text is None else texts.setdefault(one_line(text), len(texts))

        keys = [one_line(row.key).encode() for row in rows]
        columns = {name: np.array([number_of(getattr(row, name)) for row in rows], "<i4") for name in TEXTS}
        pairs = [(0, 0) if row.fps is None else row.fps.as_integer_ratio() for row in rows]
        columns["rate"] = np.array([rates.setdefault(pair, len(rates)) for pair in pairs], "<i4")
        columns["rates"] = np.array(list(rates), "<i8").reshape(-1, 2)
        for name in ("offset", "bytes", "frames", "height", "width"):
            columns[name] = np.array([getattr(row, name) for row in rows], COLUMNS[name][0])
        columns["first"] = np.zeros(1, "<i8")
        columns["key_end"], columns["keys"] = _joined(keys)
        columns["text_end"], columns["texts"] = _joined([text.encode() for text in texts])
        groups = (row.key if row.group is None else row.group for row in rows)
        columns["hash"] = np.array([hash_of(one_line(group)) for group in groups], "<u8")
        if len(set(keys)) < len(keys):
            raise UserError(f"{shard.name}: two of its samples have one key")
        return cls(shard.name, [shard], columns)

    @classmethod
    def open(cls, path: str | Path) -> TarIndex:
        """Map an index from the disk. Raises VideoError for what is none, or is not whole."""
        try:
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > LARGEST_HEADER:
                    raise ValueError("it begins like another kind of file")
                header = parse_json(file.read(length))
            raw = np.memmap(path, np.uint8, "r")
            about = header.pop("__metadata__")
            if about.get("format") != FORMAT:
                raise ValueError(f"format {FORMAT!r} expected")
            if about["version"] != VERSION:
                raise ValueError(f"it has version {about['version']}, this program reads {VERSION}")
            shards = [Shard(**fields) for fields in parse_json(about["shards"])]
            if not all(isinstance(shard.name, str) and isinstance(shard.bytes, int) for shard in shards):
                raise ValueError("its shards are not named")
            if any(shard.name.startswith("/") or ".." in shard.name.split("/") for shard in shards):
                raise ValueError("its shards lie outside its folder")
            columns = {name: _column(raw, 8 + length, name, header[name]) for name in COLUMNS}
            opened = cls(str(path), shards, columns, about.get("base"), about["ids"])
            opened._check()
            opened._is_mapped = True
            return opened
        except FileNotFoundError as error:
            raise VideoError(path, "no such file; scripts/prepare_data.py index makes one") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error, OverflowError) as error:
            raise VideoError(path, f"is no readable index of tar shards ({said_by(error)}); {REMEDY}") from error

    def __len__(self) -> int:
        return len(self.columns["offset"])

    def __reduce__(self) -> tuple:
        """A worker maps the file again; it gets no copy of it."""
        if self._is_mapped:
            return TarIndex.open, (self.path,)
        return TarIndex, (self.path, self.shards, self.columns, self.base, self.ids)

    def shard_of(self, row: int) -> int:
        """Number of the shard that holds a sample."""
        return int(np.searchsorted(self.first, row, side="right")) - 1

    def rows_of(self, shard: int) -> range:
        """The samples of a shard."""
        return range(int(self.first[shard]), int(self.first[shard + 1]) if shard + 1 < len(self.first) else len(self))

    def key(self, row: int) -> str:
        return self._text("keys", "key_end", row)

    def id(self, row: int) -> str:
        """The key, after the name of the shard where that is needed to tell samples apart."""
        key = self.key(row)
        return f"{self.shards[self.shard_of(row)].stem}/{key}" if self.ids == "shard/key" else key

    def text(self, name: str, row: int) -> str | None:
        """label, group, split or kind of a sample."""
        number = int(self.columns[name][row])
        return None if number == NONE else self.text_of(number)

    def text_of(self, number: int) -> str:
        return self._text("texts", "text_end", number)

    def fps(self, row: int) -> Fraction | None:
        return self.rate(int(self.columns["rate"][row]))

    def rate(self, number: int) -> Fraction | None:
        if not 0 <= number < len(self.columns["rates"]):
            raise VideoError(self.path, f"is damaged, it names a rate that it has not; {REMEDY}")
        numerator, denominator = self.columns["rates"][number].tolist()
        return Fraction(numerator, denominator) if denominator > 0 else None

    def of_shard(self, number: int) -> TarIndex:
        """A shard's part of the index; the texts are those of all."""
        rows = self.rows_of(number)
        rows_of_it = slice(rows.start, rows.stop)
        columns = {
            name: column[rows_of_it] if COLUMNS[name][1] == "n" else column for name, column in self.columns.items()
        }
        begin = int(self.columns["key_end"][rows.start - 1]) if rows.start else 0
        columns["keys"] = columns["keys"][begin : int(columns["key_end"][-1]) if len(rows) else begin]
        columns["key_end"] = columns["key_end"] - begin
        columns["first"] = np.zeros(1, "<i8")
        return TarIndex(self.path, [self.shards[number]], columns, self.base, self.ids)

    @cached_property
    def digest(self) -> str:
        """Changes when the content of a shard does, wherever they lie."""
        facts = [(shard.name, shard.sha256, len(self.rows_of(n))) for n, shard in enumerate(self.shards)]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def _text(self, blob: str, ends: str, number: int) -> str:
        if not 0 <= number < len(self.columns[ends]):
            raise VideoError(self.path, f"is damaged, it names a text that it has not; {REMEDY}")
        begin = int(self.columns[ends][number - 1]) if number else 0
        return self.columns[blob][begin : int(self.columns[ends][number])].tobytes().decode("utf-8", "replace")

    def _check(self) -> None:
        """Raise ValueError where columns contradict each other, as far as a few looks tell."""
        lengths = {"n": len(self), "s": len(self.shards), "t": len(self.columns["text_end"])}
        for name, (_, length) in COLUMNS.items():
            if len(self.columns[name]) != lengths.get(length, len(self.columns[name])):
                raise ValueError(f"its column {name} has {len(self.columns[name])} entries, not {lengths[length]}")
        first = self.first
        if len(first) and (first[0] != 0 or first[-1] > len(self) or (np.diff(first) < 0).any()):
            raise ValueError("its shards overlap")
        for blob, ends in (("keys", "key_end"), ("texts", "text_end")):
            if len(self.columns[ends]) and self.columns[ends][-1] != len(self.columns[blob]):
                raise ValueError(f"its column {blob} is too short")
        if self.columns["rates"].ndim != 2 or self.ids not in ("key", "shard/key"):
            raise ValueError("it is damaged")


def write_index(path: str | Path, parts: Sequence[TarIndex], base: str | None = None) -> TarIndex:
    """Join indexes, in the natural order of their shards, to one file and open it; complete or absent.

    base: where the shards lie, a folder or an address; None: beside the index. Raises UserError.
    """
    single = [part.of_shard(number) for part in parts for number in range(len(part.shards))]
    single.sort(key=lambda part: natural_key(part.shards[0].name))
    shards = [part.shards[0] for part in single]
    if len({shard.name for shard in shards}) < len(shards):
        raise UserError(f"{path}: two of its shards have one name")
    columns, ids = _join(single)
    return write_columns(path, shards, columns, base, ids)


def write_columns(
    path: str | Path, shards: Sequence[Shard], columns: dict[str, np.ndarray], base: str | None, ids: str
) -> TarIndex:
    """Write an index whose columns are joined already, and open it."""
    about = {"format": FORMAT, "version": VERSION, "ids": ids, "shards": json.dumps([asdict(s) for s in shards])}
    if base is not None:
        about["base"] = base
    header, position = {"__metadata__": about}, 0
    for name, column in columns.items():
        entry = {"dtype": TYPES[COLUMNS[name][0]], "shape": list(column.shape)}
        header[name] = {**entry, "data_offsets": [position, position + column.nbytes]}
        position += column.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def write(file: HashingFile) -> None:
        file.write(struct.pack("<Q", len(text)) + text)
        for column in columns.values():
            file.write(memoryview(np.ascontiguousarray(column)).cast("B") if column.size else b"")

    with disk_errors(Path(path)):
        write_file(path, write)
    return TarIndex.open(path)


def hash_of(group: str) -> int:
    """The first eight bytes of the SHA-256 of a name, in the order in which `splits` sorts the digests."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big")


def _join(parts: Sequence[TarIndex]) -> tuple[dict[str, np.ndarray], str]:
    """Columns of one-shard indexes, one after the other, and how their samples are to be told apart."""
    counts = [len(part) for part in parts]
    key_ends, texts = [], _Texts()
    rates: dict[tuple[int, int], int] = {}
    numbers: dict[str, list[np.ndarray]] = {name: [] for name in (*TEXTS, "rate")}
    end = 0
    for part in parts:
        key_ends.append(part.columns["key_end"] + end)
        end += len(part.columns["keys"])
        for name in TEXTS:
            numbers[name].append(texts.renumbered(part, part.columns[name]))
        own = [rates.setdefault(tuple(pair), len(rates)) for pair in part.columns["rates"].tolist()]
        numbers["rate"].append(np.array(own, "<i4")[part.columns["rate"]] if len(part) else np.zeros(0, "<i4"))
    columns = {}
    for name, (kind, _) in COLUMNS.items():
        given = numbers.get(name) or [part.columns[name] for part in parts]
        columns[name] = np.concatenate([np.zeros(0, kind), *given]) if name != "rates" else np.zeros((0, 2), kind)
    columns["first"] = np.cumsum([0, *counts[:-1]], dtype="<i8")[: len(parts)]
    columns["key_end"] = np.concatenate([np.zeros(0, "<i8"), *key_ends])
    columns["rates"] = np.array(list(rates), "<i8").reshape(-1, 2)
    columns["text_end"], columns["texts"] = _joined(texts.all)
    ids = "key"
    if len(parts) > 1 and not _all_differ(parts):
        ids = "shard/key"
        columns["hash"] = np.concatenate([_hashes_with_shard(part) for part in parts])
    elif any(part.ids == "shard/key" for part in parts):  # the others that had the same keys are gone
        columns["hash"] = np.concatenate([_hashes_with_shard(part, with_shard=False) for part in parts])
    return columns, ids


class _Texts:
    """The texts of several indexes, each of them once as long as they are not too many."""

    def __init__(self) -> None:
        self.all: list[bytes] = []
        self._known: dict[bytes, int] = {}

    def renumbered(self, part: TarIndex, column: np.ndarray) -> np.ndarray:
        """A column of numbers of texts, as numbers of these texts."""
        used, places = np.unique(column, return_inverse=True)
        new = [NONE if number == NONE else self._number(part.text_of(int(number)).encode()) for number in used]
        return np.array(new, "<i4")[places] if len(column) else np.zeros(0, "<i4")

    def _number(self, text: bytes) -> int:
        if text in self._known:
            return self._known[text]
        self.all.append(text)
        if len(self._known) < MOST_SHARED:
            self._known[text] = len(self.all) - 1
        return len(self.all) - 1


def _keys(part: TarIndex) -> Iterator[bytes]:
    blob, begin = part.columns["keys"].tobytes(), 0
    for end in part.columns["key_end"].tolist():
        yield blob[begin:end]
        begin = end


def _all_differ(parts: Sequence[TarIndex]) -> bool:
    """Whether no two samples have one key."""
    hashes = np.sort(np.concatenate([np.fromiter(map(hash, _keys(part)), np.int64, len(part)) for part in parts]))
    return not (hashes[1:] == hashes[:-1]).any()


def _hashes_with_shard(part: TarIndex, with_shard: bool = True) -> np.ndarray:
    """The column `hash` where the samples that are groups of their own have the name of their shard before the key."""
    hashes = part.columns["hash"].copy()
    before = f"{part.shards[0].stem}/" if with_shard else ""
    for row in np.flatnonzero(part.columns["group"] == NONE).tolist():
        hashes[row] = hash_of(before + part.key(row))
    return hashes


def _joined(pieces: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    ends = np.cumsum([len(piece) for piece in pieces], dtype="<i8")
    return ends, np.frombuffer(b"".join(pieces), "|u1")


def _column(raw: np.ndarray, begin: int, name: str, entry: dict[str, Any]) -> np.ndarray:
    """A column of a mapped file. Raises ValueError for one that is not as expected, or is not all there."""
    kind, shape = COLUMNS[name][0], entry["shape"]
    start, stop = entry["data_offsets"]
    if entry["dtype"] != TYPES[kind] or stop - start != int(np.prod(shape)) * np.dtype(kind).itemsize:
        raise ValueError(f"its column {name} is of another kind")
    if not 0 <= start <= stop or begin + stop > len(raw):
        raise ValueError("the file is shorter than its header says: it is truncated")
    return raw[begin + start : begin + stop].view(kind).reshape(shape)
