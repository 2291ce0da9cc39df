"""What a run was trained on, and how much of other data that is: `provenance_of`, `overlap`.

The ids of a few videos are a list of names. Those of very many, out of a source whose content has a digest, are
{"of": digest, "videos": how many it holds, "chosen": which of them, a bit for each, packed}.
"""

from __future__ import annotations

import base64
import os
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from videodata.source import Videos, as_array
from videodata.sources import is_generated
from videodata.splits import NAMES
from videodata.storage import is_address
from videodata.video import VIDEO_SUFFIXES

# A source with one of these is no folder.
FILES = (".csv", ".npy", ".json", ".hdf5", ".h5", ".tar", ".index", *VIDEO_SUFFIXES)
UNKNOWN = {"source": "unknown", "split": None, "fingerprint": "", "ids": []}  # the provenance of data that has none
MOST_NAMED = 100_000  # videos of a source whose ids are written out


def packed_ids(digest: str, count: int, videos: Videos) -> dict[str, Any]:
    """Which of the `count` videos of a source are meant."""
    chosen = np.zeros(count, bool)
    chosen[as_array(videos)] = True
    packed = base64.b64encode(zlib.compress(np.packbits(chosen).tobytes(), 1))
    return {"of": digest, "videos": count, "chosen": packed.decode()}


def unpacked_ids(ids: dict[str, Any]) -> np.ndarray:
    """bool (N,), for each video of the source."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(ids["chosen"])), np.uint8)
    return np.unpackbits(bits, count=ids["videos"]).astype(bool)


def provenance_of(dataset: Any) -> dict[str, Any] | None:
    """`provenance` of a data set, also of a Subset (all that it is taken from) or a ConcatDataset; None: no say."""
    if isinstance(dataset, Subset):
        return provenance_of(dataset.dataset)
    if not isinstance(dataset, ConcatDataset):
        return dataset.provenance() if hasattr(dataset, "provenance") else None
    parts = [provenance_of(part) for part in dataset.datasets]
    return None if None in parts else together(parts)


def together(provenances: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The provenance of several data sets as one, with each of them once under `parts`."""
    parts = [part for provenance in provenances for part in provenance.get("parts", [provenance])]
    parts = [part for number, part in enumerate(parts) if part not in parts[:number]]
    if len(parts) == 1:
        return parts[0]
    splits = {part["split"] for part in parts}
    return {
        "source": " + ".join(dict.fromkeys(part["source"] for part in parts)),
        "split": splits.pop() if len(splits) == 1 else None,
        "fingerprint": " + ".join(part["fingerprint"] for part in parts),
        "ids": [id for part in parts if not is_packed(part) for id in part["ids"]],
        "parts": parts,
    }


def overlap(trained_on: dict[str, Any] | None, dataset: Any) -> int | None:
    """How many items of a data set come from videos that a run was trained on; None where that cannot be known.

    trained_on: `provenance_of` the run's data, None for a run that did not note it. The same data is known again under
    another split, as a folder in or above the one that was trained on, and by its fingerprint when it lies elsewhere;
    copies in other formats are not.
    """
    own = provenance_of(dataset)
    if trained_on is None or own is None:
        return None
    parts = trained_on.get("parts", [trained_on])
    if is_packed(own):
        return _overlap_of_many(parts, own, dataset)
    found = [_common(part, own) for part in parts]
    common = set().union(*(ids for ids in found if ids is not None))
    if None in found and not common:
        return None
    return dataset.items_of(common) if hasattr(dataset, "items_of") else len(common)


def _common(trained_on: dict[str, Any], own: dict[str, Any]) -> set[str] | None:
    """The ids of `own` whose videos are in `trained_on`; None where nobody can say."""
    if UNKNOWN in (trained_on, own):
        return None
    if is_packed(trained_on):
        return set(own["ids"]) if trained_on["fingerprint"] == own["fingerprint"] else None
    bases = base_of(trained_on["source"]), base_of(own["source"])
    if trained_on["source"] == own["source"] or bases == (None, None):
        return set(trained_on["ids"]) & set(own["ids"])
    if None not in bases and os.path.commonpath(bases) in bases:
        known = {os.path.normpath(os.path.join(bases[0], id)) for id in trained_on["ids"]}
        return {id for id in own["ids"] if os.path.normpath(os.path.join(bases[1], id)) in known}
    return set(own["ids"]) if trained_on["fingerprint"] == own["fingerprint"] else None


def is_packed(provenance: dict[str, Any]) -> bool:
    return isinstance(provenance["ids"], dict)


def _overlap_of_many(parts: Sequence[dict[str, Any]], own: dict[str, Any], dataset: Any) -> int | None:
    """`overlap` where the ids of the data set are packed: of runs on the same source only is anything known."""
    source = own["ids"]["of"]
    known = [unpacked_ids(part["ids"]) for part in parts if is_packed(part) and part["ids"]["of"] == source]
    if not known:
        return None
    both = np.logical_or.reduce(known) & unpacked_ids(own["ids"])
    count = dataset.items_among(both) if hasattr(dataset, "items_among") else int(both.sum())
    return None if not count and len(known) < len(parts) else count


def base_of(source: str) -> str | None:
    """The folder that the ids of a source are relative to, above a part of divided data; None where there is none."""
    if is_generated(source) or is_address(source):
        return None
    path = os.path.abspath(source)
    is_file = os.path.isfile(path) or os.path.splitext(path)[1].lower() in FILES
    is_part = os.path.basename(path) in {name for names in NAMES.values() for name in names}
    return os.path.dirname(path) if is_file or is_part else path
