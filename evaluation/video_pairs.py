"""Video files against their originals, frame by frame, whatever their length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from evaluation.boundary_ratio import ratio_of_jumps
from evaluation.lpips_distance import lpips_per_frame
from evaluation.psnr import psnr_per_frame
from evaluation.report import Score
from evaluation.ssim import ssim_per_frame
from videodata.errors import UserError, VideoError
from videodata.files import files_in_folder
from videodata.video import VIDEO_SUFFIXES, iter_frames

FRAMES_AT_A_TIME = 16


@dataclass
class VideoPairScores:
    """Collects the scores of pairs of videos.

    `window`: frames after which a window border is expected; 0: none. `context`: given frames, not scored.
    """

    window: int = 0
    lpips: str | None = None
    weights: Path | str | None = None
    context: int = 0
    metrics: tuple[str, ...] = ("psnr", "ssim", "boundary", "brightness")
    values: dict[str, list[float]] = field(default_factory=dict)  # definition -> one value per video

    def update(self, original: Path, prediction: Path) -> dict[str, float]:
        """Score one pair; raises VideoError when sizes or numbers of frames differ, or nothing is left to score."""
        frames: dict[str, list[float]] = {}
        jumps: list[float] = []
        last: np.ndarray | None = None
        for a, b in paired_frames(original, prediction):
            for name, values in self._score(torch.from_numpy(a)[None], torch.from_numpy(b)[None]).items():
                frames.setdefault(name, []).extend(values[0].tolist())
            error = b.astype(np.float32) - a
            if "brightness" in self.metrics:
                frames.setdefault("brightness-bias", []).extend(error.mean(axis=(1, 2, 3), dtype=np.float64).tolist())
            before = error if last is None else np.concatenate([last[None], error])
            jumps += np.abs(np.diff(before, axis=0)).mean(axis=(1, 2, 3), dtype=np.float64).tolist()
            last = error[-1]
        if last is None or len(jumps) < self.context:
            raise VideoError(prediction, f"has no frame after the {self.context} given ones")
        scores = {name: fmean(values[self.context :]) for name, values in frames.items()}
        ratio = ratio_of_jumps(jumps, self.window) if "boundary" in self.metrics else None
        scores |= {} if ratio is None else {"boundary-ratio": ratio}
        for name, value in scores.items():
            self.values.setdefault(name, []).append(value)
        return scores

    def scores(self) -> list[Score]:
        """One Score per metric over all pairs."""
        return [Score(name, per_clip=values) for name, values in self.values.items()]

    def _score(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        scores = {"psnr-frame-8bit": psnr_per_frame(a, b)} if "psnr" in self.metrics else {}
        if "ssim" in self.metrics and min(a.shape[2:4]) >= 11:  # the window of SSIM
            scores["ssim-gaussian11-8bit"] = ssim_per_frame(a, b)
        if self.lpips:
            scores[f"lpips-{self.lpips}-8bit"] = lpips_per_frame(a, b, net=self.lpips, weights=self.weights)
        return scores


def paired_frames(original: Path, prediction: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both videos in step, uint8 (t, H, W, 3), a few frames at a time."""
    a, b = iter_frames(original), iter_frames(prediction)
    while True:
        parts = [list(islice(frames, FRAMES_AT_A_TIME)) for frames in (a, b)]
        if len(parts[0]) != len(parts[1]):
            raise VideoError(prediction, f"has another number of frames than {original}")
        if not parts[0]:
            return
        if parts[0][0].shape != parts[1][0].shape:
            sizes = " and ".join(f"{part[0].shape[1]}x{part[0].shape[0]}" for part in parts)
            raise VideoError(prediction, f"has another size than {original}: {sizes}")
        yield np.stack(parts[0]), np.stack(parts[1])


def pairs_by_name(originals: Path, predictions: Path) -> list[tuple[Path, Path]]:
    """Files of two folders that have one name but for the suffix; or the two files themselves.

    Raises UserError when a prediction has no original.
    """
    if originals.is_file() and predictions.is_file():
        return [(originals, predictions)]
    found = {path.stem: path for path in files_in_folder(originals, VIDEO_SUFFIXES)}
    pairs = []
    for path in files_in_folder(predictions, VIDEO_SUFFIXES):
        if path.stem not in found:
            raise UserError(f"{path}: there is no video of that name in {originals}")
        pairs.append((found[path.stem], path))
    if not pairs:
        raise UserError(f"{predictions}: holds no video")
    return pairs
