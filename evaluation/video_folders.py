"""Two folders of videos: pairs of the same name, frame by frame, and the Frechet distances of the two sets."""

from __future__ import annotations

from pathlib import Path

import torch

from evaluation.protocol import Protocol
from evaluation.report import Report, Score
from evaluation.video_pairs import VideoPairScores, pairs_by_name
from videodata.clips import ClipDataset, open_clips
from videodata.errors import UserError
from videodata.files import files_in_folder
from videodata.video import VIDEO_SUFFIXES, probe

FOLDER_METRICS = ("psnr", "ssim", "lpips", "boundary", "brightness", "fvd", "fid")


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
    """A report on two videos, or two folders of them; without metrics of pairs, names do not matter.

    window: frames from one window border to the next; context: given frames, not scored in pairs. frames, stride, size,
    num_clips: of the clips of FVD and FID. Raises UserError.
    """
    first = originals if originals.is_file() else next(iter(files_in_folder(originals, VIDEO_SUFFIXES)), None)
    if first is None:
        raise UserError(f"{originals}: holds no video")
    shape = probe(first)
    report = Report("videos", None, str(originals), 0, 1, shape.height, shape.width, resize="none")
    report.excluded_frames = context
    report.details = {"predictions": str(predictions), "window": window}
    paired = set(metrics) - {"fvd", "fid"}
    if "boundary" in paired and window < 2:
        raise UserError("boundary needs the number of frames from one window border to the next: --window")
    if paired:
        scores = VideoPairScores(window, lpips, lpips_weights, context=context, metrics=tuple(metrics))
        videos = {b.name: scores.update(a, b) for a, b in pairs_by_name(originals, predictions)}
        report.scores = scores.scores()
        report.details["videos"] = videos
    if {"fvd", "fid"} & set(metrics):
        protocol = protocol or Protocol(metrics=metrics)
        options = {"total_videos": num_clips or None, "seed": protocol.seed}
        pair = [open_clips(path, frames, size, stride, **options) for path in (originals, predictions)]
        report.scores += distances(*pair, protocol)
        report.details["set_clips"] = {
            "frames": frames, "stride": stride, "size": list(size), "seed": protocol.seed, "windows": "random",
            "fingerprints": [clips.fingerprint() for clips in pair],
        }  # fmt: skip
    return report


def distances(real: ClipDataset, generated: ClipDataset, protocol: Protocol) -> list[Score]:
    """FVD and FID of two sets of clips, as far as they are asked for."""
    networks = protocol.open_networks()
    found = [kind(extractor, quantize=protocol.quantize, force=protocol.force) for kind, extractor in networks]
    for distance in found:
        distance.check_count(min(len(real), len(generated)) * (real.frames if distance.counted == "frames" else 1))
    for side, clips in (("real", real), ("generated", generated)):
        for start in range(0, len(clips), protocol.batch_size):
            items = range(start, min(start + protocol.batch_size, len(clips)))
            batch = torch.stack([clips[item] for item in items])
            for distance in found:
                distance.update(**{side: batch})
    return [distance.score() for distance in found]
