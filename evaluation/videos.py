"""Video files against their originals, frame by frame, whatever their length: pairs of the same name, and the
distances of the two sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from evaluation.metrics import SMALLEST_SIDE, ratio_of_jumps
from evaluation.paired import frame_scores
from evaluation.protocol import SET_METRICS, Protocol
from evaluation.report import Report, Score
from evaluation.set_distance import by_network, open_distances
from videodata.clips import ClipDataset, open_clips
from videodata.errors import UserError, VideoError
from videodata.files import files_in_folder
from videodata.video import VIDEO_SUFFIXES, iter_frames, probe

FRAMES_AT_A_TIME = 16


def score_folders(
    originals: Path,
    predictions: Path,
    protocol: Protocol,
    *,
    window: int = 0,
    context: int = 0,
    frames: int = 16,
    stride: int = 1,
    size: tuple[int, int] = (224, 224),
    num_clips: int = 0,
) -> Report:
    """A report on two videos, or two folders of them; without metrics of pairs, names do not matter.

    window: frames from one window border to the next; context: given frames, not scored in pairs. frames, stride, size,
    num_clips: of the clips of distances between sets. Raises UserError.
    """
    first = originals if originals.is_file() else next(iter(files_in_folder(originals, VIDEO_SUFFIXES)), None)
    if first is None:
        raise UserError(f"{originals}: holds no video")
    shape = probe(first)
    report = Report("videos", None, str(originals), 0, 1, shape.height, shape.width, resize="none")
    report.excluded_frames = context
    report.details = {"predictions": str(predictions), "window": window}
    paired = set(protocol.metrics) - set(SET_METRICS)
    if "boundary" in paired and window < 2:
        raise UserError("boundary needs the number of frames from one window border to the next: --window")
    if paired:
        lpips = protocol.lpips_network, protocol.lpips_weights
        scores = VideoPairScores(window, *lpips, context, protocol.metrics)
        videos = {b.name: scores.update(a, b) for a, b in pairs_by_name(originals, predictions)}
        report.scores = scores.scores()
        report.details["videos"] = videos
    if set(SET_METRICS) & set(protocol.metrics):
        options = {"total_videos": num_clips or None, "seed": protocol.seed}
        pair = [open_clips(path, frames, size, stride, **options) for path in (originals, predictions)]
        report.scores += distances(*pair, protocol)
        report.details["set_clips"] = {
            "frames": frames, "stride": stride, "size": list(size), "seed": protocol.seed, "windows": "random",
            "fingerprints": [clips.fingerprint() for clips in pair],
        }  # fmt: skip
    return report


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
            kinds = [name for name in self.metrics if name != "ssim" or min(a.shape[1:3]) >= SMALLEST_SIDE]
            pair = torch.from_numpy(a)[None], torch.from_numpy(b)[None]
            for name, values in frame_scores(*pair, tuple(kinds), self.lpips, self.weights).items():
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


def distances(real: ClipDataset, generated: ClipDataset, protocol: Protocol) -> list[Score]:
    """The distances of two sets of clips that are asked for."""
    count = min(len(real), len(generated))
    found = open_distances(protocol, real, count, unequal=protocol.unequal_sets)
    for distance in found:
        features = count * (real.frames if distance.counted == "frames" else 1)
        distance.check_frames(real.frames)
        distance.check_sizes(len(real), len(generated))
        distance.check_count(features)
        distance.caution(features, real.frames)
    for side, clips in (("real", real), ("generated", generated)):
        for start in range(0, len(clips), protocol.batch_size):
            items = range(start, min(start + protocol.batch_size, len(clips)))
            batch = torch.stack([clips[item] for item in items])
            for group in by_network(found):
                features = group[0].features(batch)
                for distance in group:
                    distance.add_features(side, features, clips.frames)
    return [score for distance in found for score in distance.scores()]
