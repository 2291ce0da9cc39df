"""A trained 3-D tokenizer by its folder or file, behind the interface of all tokenizers (`training.tokenizer`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizer3d.model import Tokenizer3D
from tokenizer3d.weights import WEIGHTS_FILE, notes_of
from training.tokenizer import GridTokenizer, Kind
from videodata.errors import UserError

TOKENIZERS = {"tokenizer3d": ("version", "levels", "codebooks")}
LARGEST_BOOK = 2**16  # codes whose vectors are listed


def tokenizer_type(path: Path) -> str | None:
    """What `training.tokenizer` asks: "tokenizer3d" for a folder or file of ours; published files do not say it."""
    file = path / WEIGHTS_FILE if path.is_dir() else path
    try:
        return "tokenizer3d" if file.is_file() and notes_of(file) else None
    except UserError:
        return None


def build_tokenizer(type: str, path: Path, kind: Kind | None, settings: Mapping[str, Any]) -> ClipTokenizer:
    """The tokenizer of a folder of `save_pretrained`, or of a single file, published or ours.

    version, levels: of a published file, as `Tokenizer3D.from_single_file` takes them. codebooks: into how many an FSQ
    model's channels are dealt, 1 to the number of channels. Raises UserError.
    """
    options = dict(settings)
    codebooks = options.pop("codebooks", 1)
    if path.is_dir():
        if options:
            raise UserError(f"{path}: a folder says version and levels itself; leave {', '.join(options)} out")
        return ClipTokenizer(Tokenizer3D.from_pretrained(path), codebooks)
    version = options.pop("version", None)
    model = Tokenizer3D.from_single_file(path, None if version is None else str(version), **options)
    return ClipTokenizer(model, codebooks)


class ClipTokenizer(GridTokenizer):
    """Whole clips as posterior means (KL) or as codes (FSQ).

    FSQ numbers the combinations of the levels of its channels, which soon are too many for a table with a row for each
    code. With several codebooks the channels are dealt to them in order, as evenly as can be, and each numbers the
    combinations of its own: 8 levels in each of 5 channels are 1 codebook of 32768 codes, 2 of up to 512, or 5 of 8.
    """

    def __init__(self, model: Tokenizer3D, codebooks: int = 1) -> None:
        levels = model.config.levels
        if codebooks != 1 and not 1 <= codebooks <= len(levels):
            raise UserError(f"codebooks {codebooks}: this tokenizer has {len(levels)} channels of FSQ to deal out")
        self.groups = dealt(levels, codebooks) if levels else []
        self.sizes = [math.prod(group) for group in self.groups]
        self.bases = [math.prod(self.sizes[:number]) for number in range(len(self.sizes))]  # channel 0 varies fastest
        facts = {"space_factor": model.spatial_factor, "time_factor": model.temporal_factor, "causal": model.is_causal}
        if not levels:
            super().__init__(model, "latents", model.config.z_channels, **facts)
        else:
            vectors = [level_vectors(group) for group in self.groups] if max(self.sizes) <= LARGEST_BOOK else None
            super().__init__(model, "codes", codebooks, max(self.sizes), vectors=vectors, **facts)

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """See `training.tokenizer.Tokenizer`."""
        found = self.module.encode(clips, length_mode="strict")
        if self.kind == "latents":
            return found.mean.float().movedim(1, -1)
        index = found.indices.long()
        parts = [index // base % size for base, size in zip(self.bases, self.sizes, strict=True)]
        return torch.stack(parts, dim=-1)

    @torch.no_grad()
    def decode(self, array: Tensor, frames: int, height: int, width: int) -> Tensor:
        """See `training.tokenizer.Tokenizer`. Codes that a smaller codebook of an uneven deal lacks become its last."""
        if self.kind == "latents":
            clips = self.module.decode(array.movedim(-1, 1), frames)
        else:
            parts = zip(array.unbind(-1), self.bases, self.sizes, strict=True)
            index = sum(part.clamp(max=size - 1) * base for part, base, size in parts)
            clips = self.module.decode_indices(index, frames)
        return clips.float().clamp(-1, 1)


def dealt(levels: Sequence[int], codebooks: int) -> list[Sequence[int]]:
    """The levels of the channels, cut into so many runs whose lengths differ by 1 at most, the longer ones first."""
    length, longer = divmod(len(levels), codebooks)
    ends = [length * number + min(number, longer) for number in range(codebooks + 1)]
    return [levels[first:last] for first, last in zip(ends[:-1], ends[1:], strict=True)]


def level_vectors(levels: Sequence[int]) -> Tensor:
    """What the combinations of levels stand for, (codes, channels): the first channel varies fastest."""
    values = [(torch.arange(level) - level // 2) / (level // 2) for level in reversed(levels)]
    return torch.cartesian_prod(*values).view(-1, len(levels)).flip(1)
