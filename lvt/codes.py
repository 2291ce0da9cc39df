"""Windows of codes for training and evaluation, from either layout on disk."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from lvt.codes_file import CodesFile
from lvt.codes_folder import CodesFolder
from videodata.errors import UserError

logger = logging.getLogger(__name__)
CODES_NAME = "codes.npy"  # of the array that extraction writes into a data set's folder


def open_codes(path: str | Path) -> CodesFile | CodesFolder:
    """Codes of a split: an .npy of `write_codes`, a folder with codes.npy, or the original's folders of frames."""
    path = Path(path)
    if path.suffix == ".npy":
        return CodesFile(path)
    if (path / CODES_NAME).is_file():
        return CodesFile(path / CODES_NAME)
    if not path.is_dir():
        raise UserError(
            f"{path}: no such codes; make them with scripts/train_lvt.py --eval-only TEST.EVALUATORS CodesExtractor"
        )
    return CodesFolder(path)


class CodeWindows(Dataset):
    """Items {"codes": int16 (C, T, h, w), "class_index": int64}; the class is -1 where there are no labels.

    `frames` consecutive frames of each video: from a start drawn from (seed, position), or the first ones; all frames
    for -1. Videos that are shorter are left out with a warning. `classes` numbers the labels; those of the source in
    alphabetical order by default. Raises UserError when no video is left, and for labels that are none of the classes.
    """

    takes_positions = True  # the training loop's loader asks for (index, position)

    def __init__(
        self, source: CodesFile | CodesFolder, frames: int, random: bool, seed: int = 0,
        classes: list[str] | None = None,
    ) -> None:  # fmt: skip
        self.source, self.random, self.seed = source, random, seed
        lengths = [video.frames for video in source.videos]
        self.frames = frames if frames > 0 else min(lengths)
        self._videos = [index for index, length in enumerate(lengths) if length >= self.frames]
        if not self._videos:
            raise UserError(f"{source.path}: no video has {self.frames} frames, the longest has {max(lengths)}")
        if len(self._videos) < len(lengths):
            logger.warning("%s: %d videos are too short", source.path, len(lengths) - len(self._videos))
        found = {video.label for video in source.videos if video.label is not None}
        self.classes = sorted(found) if classes is None else classes
        if unknown := sorted(found - set(self.classes)):
            raise UserError(f"{source.path}: class {unknown[0]!r} is not among those that the model was trained on")

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        item, position = index if isinstance(index, tuple) else (index, index)
        video = self._videos[item]
        entry = self.source.videos[video]
        start = 0
        if self.random:
            start = int(np.random.default_rng((self.seed, position)).integers(entry.frames - self.frames + 1))
        codes = self.source.read(video, start, self.frames).astype(np.int16)  # (T, C, h, w)
        label = -1 if entry.label is None else self.classes.index(entry.label)
        return {"codes": torch.from_numpy(codes.swapaxes(0, 1).copy()), "class_index": label}

    def describe(self, index: int) -> dict[str, Any]:
        """Id and label of item `index`."""
        entry = self.source.videos[self._videos[index]]
        return {"id": entry.id, "label": entry.label}

    def fingerprint(self) -> str:
        """Hash of the ids, labels and lengths of the videos."""
        facts = [(entry.id, entry.label, entry.frames) for entry in map(self.source.videos.__getitem__, self._videos)]
        return f"{len(facts)}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"
