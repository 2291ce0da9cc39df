"""The original's layout of codes: one folder per video, one int64 .npy (C, h, w) per frame, <number>.npy."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from lvt.codes_file import CodedVideo
from videodata.errors import UserError
from videodata.files import natural_key


class CodesFolder:
    """Every folder below `root` that holds .npy files alone is a video; its class is the folder above, if any.

    The original keeps its scan in latent_video_paths.npy; that file is not read.
    """

    def __init__(self, root: str | Path) -> None:
        self.path = Path(root)
        found = {Path(folder): names for folder, names in scan(self.path)}
        self._folders = sorted(found, key=lambda folder: natural_key(folder.relative_to(self.path)))
        self._names = [sorted(found[folder], key=natural_key) for folder in self._folders]
        if not self._folders:
            raise UserError(f"{root}: holds no codes: neither codes.npy nor folders of <frame>.npy files")
        self.videos = []
        first = 0
        for folder, names in zip(self._folders, self._names, strict=True):
            parts = folder.relative_to(self.path).parts
            label = parts[-2] if len(parts) > 1 else None
            self.videos.append(CodedVideo("/".join(parts), label, first, len(names)))
            first += len(names)

    def read(self, video: int, start: int, count: int) -> np.ndarray:
        """Codes of `count` frames of a video: (count, C, h, w)."""
        folder = self._folders[video]
        frames = [read_frame(folder / name) for name in self._names[video][start : start + count]]
        if len({frame.shape for frame in frames}) > 1:
            raise UserError(f"{folder}: its frames have codes of different shapes")
        return np.stack(frames)


def read_frame(path: Path) -> np.ndarray:
    """Codes (C, h, w) of one frame."""
    try:
        codes = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a .npy of codes ({error})") from error
    if codes.ndim != 3 or not np.issubdtype(codes.dtype, np.integer):
        raise UserError(f"{path}: codes of a frame are integers (codebooks, h, w), found {codes.dtype} {codes.shape}")
    return codes


def scan(root: Path) -> list[tuple[str, list[str]]]:
    """(folder, names) of all folders that hold nothing but .npy files."""
    found = []
    for folder, children, names in os.walk(root, followlinks=True):
        names = [name for name in names if not name.startswith(".")]
        if names and not children and Path(folder) != root and all(name.endswith(".npy") for name in names):
            found.append((folder, names))
    return found
