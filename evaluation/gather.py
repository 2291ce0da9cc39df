"""Lists with an entry per batch, put together over processes that deal the batches out in turn."""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import TypeVar

import torch.distributed as dist

Entry = TypeVar("Entry")
_ABSENT = object()


def gather_batches(own: list[Entry]) -> list[Entry]:
    """The entries of all batches in their order: number b is entry b // processes of process b % processes."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return list(own)
    parts: list[list[Entry]] = [[]] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    rounds = zip_longest(*parts, fillvalue=_ABSENT)
    return [entry for entry in chain.from_iterable(rounds) if entry is not _ABSENT]
