"""Which tar shards somebody means: a folder, one tar, braces, an index, or WebDataset's list of them.

data/              data/x-000000.tar        data/shards.index
data/x-{000000..000999}.tar                 s3://bucket/{a,b}-{0..9}.tar
data/index.json    JSON of WebDataset's wids (`wids-shard-index-v1`)
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from videodata.errors import UserError, VideoError, said_by
from videodata.files import has_suffix, parse_json
from videodata.storage import divided, is_address, joined, open_storage
from videodata.tars.index import INDEX_NAME

WIDS = "wids-shard-index-v1"
MOST_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class ShardList:
    """Shards that somebody named: where their index is, where they lie, and which of them are meant."""

    def __init__(self, path: str, base: str, index: str | None = None, names: Sequence[str] | None = None,
                 counts: dict[str, int] | None = None) -> None:  # fmt: skip
        """names: below `base`; None: all that are there. counts: samples of a shard, where the list says so."""
        self.path, self.base, self.names, self.counts = path, base, names, counts or {}
        self.index = index or joined(base, INDEX_NAME)

    @classmethod
    def parse(cls, path: str) -> ShardList:
        """What a path or an address names, by its form; no look at anything but a list. Raises UserError."""
        path = path if is_address(path) else os.path.normpath(path)
        folder, name = divided(path)
        if has_suffix(name, {".index"}):
            return cls(path, folder, path)
        if has_suffix(name, {".json"}):
            return cls._from_wids(path)
        if not has_suffix(name, {".tar"}):
            return cls(path, path.rstrip("/"))
        names = expand_braces(path)
        base = folder
        while "{" in base:  # of data/{a,b}/x-{0..9}.tar it is data
            base = divided(base)[0]
        if base.endswith("://"):
            raise UserError(
                f"{path}: braces stand for folders and shards, not for hosts and buckets; name one of these"
            )
        skip = 0 if base == "." else len(base.rstrip("/")) + 1
        return cls(path, base, names=[name[skip:].replace(os.sep, "/") for name in names])

    @classmethod
    def _from_wids(cls, path: str) -> ShardList:
        """Names and numbers of samples from the JSON of wids; the names are relative to it, or to its `base_path`."""
        folder, name = divided(path)
        storage = open_storage(folder)
        status = storage.status(name)
        if status is None:
            raise VideoError(path, "no such file")
        try:
            content = parse_json(storage.read(name, 0, status.bytes))
            if content.get("__kind__") != WIDS:
                raise ValueError(f"its __kind__ is {content.get('__kind__')!r}, not {WIDS!r}")
            urls = [(entry["url"], entry["nsamples"]) for entry in content["shardlist"]]
            base = content.get("base_path") or folder
            if not all(isinstance(url, str) and isinstance(count, int) for url, count in urls):
                raise ValueError("its shards have no url and nsamples")
            if any(".." in url.split("/") for url, _ in urls):
                raise ValueError("its shards lie outside its folder")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise VideoError(path, f"is no list of shards of wids ({said_by(error)})") from error
        bases = {divided(url)[0] for url, _ in urls if is_address(url) or os.path.isabs(url)}
        if len(bases) > 1 or (bases and not all(is_address(url) or os.path.isabs(url) for url, _ in urls)):
            raise VideoError(path, "its shards lie in several places; name the shards of each of them")
        if bases:
            base, urls = bases.pop(), [(divided(url)[1], count) for url, count in urls]
        return cls(path, base, names=[url for url, _ in urls], counts=dict(urls))


def expand_braces(pattern: str) -> list[str]:
    """`x-{000..002}.tar` and `{a,b}.tar` written out, as a shell does. Raises UserError for braces that it does not
    understand.
    """
    parts, count, position = [], 1, 0
    for found in _BRACES.finditer(pattern):
        parts.append([pattern[position : found.start()]])
        if span := _RANGE.fullmatch(found[1]):
            first, last = int(span[1]), int(span[2])
            width = len(span[1]) if span[1].startswith("0") or len(span[1]) == len(span[2]) else 0
            choices: Sequence[str] = range(first, last + 1)
            if not len(choices):
                raise UserError(f"{pattern}: {found[0]} counts down; write the smaller number first")
        else:
            choices, width = found[1].split(","), 0
            if len(choices) < 2:
                raise UserError(
                    f"{pattern}: {found[0]} is neither a range such as {{000..999}} nor a list such as {{a,b}}"
                )
        count *= len(choices)
        if count > MOST_SHARDS:
            raise UserError(f"{pattern}: names more than {MOST_SHARDS} shards")
        parts.append([f"{choice:0{width}d}" if isinstance(choice, int) else choice for choice in choices])
        position = found.end()
    parts.append([pattern[position:]])
    if any("{" in piece or "}" in piece for piece in (parts[-1][0], *(part[0] for part in parts[::2]))):
        raise UserError(f"{pattern}: a brace is not closed")
    return ["".join(pieces) for pieces in itertools.product(*parts)]


def is_tars(path: str) -> bool:
    """Whether a path or an address names tar shards by its form, or is a folder of this machine with an index."""
    name = divided(path)[1]
    if has_suffix(name, {".tar", ".index"}) or is_address(path):
        return True
    return os.path.isfile(os.path.join(path, INDEX_NAME))


def is_wids(path: Path) -> bool:
    """Whether a JSON file of this machine is a list of shards of wids; only its beginning is read."""
    try:
        with open(path, "rb") as file:
            return WIDS.encode() in file.read(4096)
    except OSError:
        return False


def how_to_index(path: str) -> str:
    """The command that makes an index."""
    return f"python scripts/prepare_data.py index {shlex.quote(path)}"
