"""Two folders of videos: pairs of the same name, frame by frame, and the Frechet distance of the two sets."""

from __future__ import annotations

from pathlib import Path

import torch

from evaluation.fvd import FVD
from evaluation.protocol import Protocol
from evaluation.report import Report, Score
from evaluation.video_pairs import VideoPairScores, pairs_by_name
from videodata.clips import ClipDataset, open_clips
from videodata.errors import UserError
from videodata.folder_scan import find_files
from videodata.video import VIDEO_SUFFIXES, probe

FOLDER_METRICS = ("psnr", "ssim", "lpips", "boundary", "brightness", "fvd")


def score_folders(
    originals: Path,
    predictions: Path,
    metrics: tuple[str, ...],
    *,
    window: int = 0,
    context: int = 0,
    lpips: str | None = None,
    lpips_weights: Path | str | None = None,
    frames: int = 16,
    stride: int = 1,
    size: tuple[int, int] = (224, 224),
    num_clips: int = 0,
    protocol: Protocol | None = None,
) -> Report:
    """A report on two videos, or two folders of them; with fvd as the only metric, names do not matter.

    window: frames from one window border to the next; context: given frames, not scored in pairs. frames, stride, size,
    num_clips: of the clips of FVD. Raises UserError.
    """
    first = originals if originals.is_file() else next(iter(find_files(originals, VIDEO_SUFFIXES)), None)
    if first is None:
        raise UserError(f"{originals}: holds no video")
    shape = probe(first)
    report = Report("videos", None, str(originals), 0, 1, shape.height, shape.width, resize="none")
    report.excluded_frames = context
    report.details = {"predictions": str(predictions), "window": window}
    paired = set(metrics) - {"fvd"}
    if paired:
        scores = VideoPairScores(window, lpips, lpips_weights, context=context, metrics=tuple(metrics))
        videos = {b.name: scores.update(a, b) for a, b in pairs_by_name(originals, predictions)}
        report.scores = scores.scores()
        report.details["videos"] = videos
    if "fvd" in metrics:
        protocol = protocol or Protocol(metrics=("fvd",))
        options = {"total_videos": num_clips or None, "seed": protocol.seed}
        pair = [open_clips(path, frames, size, stride, **options) for path in (originals, predictions)]
        report.scores.append(distance(*pair, protocol))
        report.details["fvd_clips"] = {
            "frames": frames, "stride": stride, "size": list(size), "seed": protocol.seed, "windows": "random",
            "fingerprints": [clips.fingerprint() for clips in pair],
        }  # fmt: skip
    return report


def distance(real: ClipDataset, generated: ClipDataset, protocol: Protocol) -> Score:
    """FVD of two sets of clips."""
    collected = FVD(protocol.open_extractor(), quantize=protocol.quantize, force=protocol.force)
    for side, clips in (("real", real), ("generated", generated)):
        for start in range(0, len(clips), protocol.batch_size):
            items = range(start, min(start + protocol.batch_size, len(clips)))
            collected.update(**{side: torch.stack([clips[item] for item in items])})
    return collected.score()
