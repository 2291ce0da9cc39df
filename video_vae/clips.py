"""The clips that the video VAE trains on, with validation clips from other videos."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from videodata.clips import ClipDataset, open_clips
from videodata.errors import UserError
from videodata.sources import open_source

logger = logging.getLogger(__name__)
FRAMES = 16  # per clip, for sources of whole videos


@dataclass
class ClipSettings:
    """How clips are cut from a source."""

    path: str
    frames: int  # per clip
    size: tuple[int, int]  # (height, width)
    stride: int = 1
    flip: bool = False
    val_fraction: float = 0.1  # of the groups of videos that belong together
    seed: int = 0


class ClipPart(Dataset):
    """Some items of a ClipDataset."""

    takes_positions = True

    def __init__(self, clips: ClipDataset, items: list[int]) -> None:
        self.clips, self.items = clips, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int | tuple[int, int]) -> Tensor:
        if isinstance(key, tuple):
            return self.clips[(self.items[key[0]], key[1])]
        return self.clips[self.items[key]]

    def describe(self, index: int) -> dict:
        """Where item `index` comes from."""
        return self.clips.describe(self.items[index])

    def fingerprint(self) -> str:
        """Changes with the data and with the choice of items."""
        items = hashlib.sha256(repr(self.items).encode()).hexdigest()[:8]
        return f"{self.clips.fingerprint()}-{len(self.items)}-{items}"


def stored_shape(path: str) -> tuple[int, tuple[int, int]]:
    """Frames and (height, width) of the first clip or video of a source.

    Raises UserError for one that is missing, with the command that makes it where it is an .npy.
    """
    if path.endswith(".npy") and not Path(path).exists():
        raise UserError(f"{path}: no such file; make it with: python prepare_ucf101.py --output_npy_file {path}")
    source = open_source(path)
    if source.broken and not len(source):
        raise source.broken[0]
    if not len(source):
        raise UserError(f"{path}: holds no clip; see what the preparation skipped, or name another source")
    return source.length(0), source.size(0)


def open_training_clips(settings: ClipSettings) -> tuple[ClipPart, ClipPart | None]:
    """Clips to train on and to validate with, uint8 (3, T, H, W); None where there are too few videos to divide."""
    clips = open_clips(
        settings.path, settings.frames, settings.size, settings.stride, seed=settings.seed,
        flip=settings.flip, dtype="uint8",
    )  # fmt: skip
    held_out = held_out_groups([clips.describe(item)["group"] for item in range(len(clips))], settings.val_fraction)
    train = [item for item in range(len(clips)) if clips.describe(item)["group"] not in held_out]
    validation = [item for item in range(len(clips)) if clips.describe(item)["group"] in held_out]
    logger.info("%s: %d clips to train on, %d to validate with", settings.path, len(train), len(validation))
    return ClipPart(clips, train), ClipPart(clips, validation) if validation else None


def held_out_groups(groups: list[str], fraction: float) -> set[str]:
    """That fraction of the distinct groups, chosen by a hash of their names; never all of them.

    Clips of one group come from one video or one recording session: on both sides they would flatter the validation.
    """
    ordered = sorted(set(groups), key=lambda group: hashlib.sha256(str(group).encode()).digest())
    return set(ordered[: min(round(fraction * len(ordered)), len(ordered) - 1)])
