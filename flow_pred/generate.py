"""Continue test videos, write them down, and score them against what really followed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from evaluation.paired import PairedScores
from evaluation.report import Score
from flow_pred.neural_sde import NeuralSDE
from flow_pred.regressor import VectorFieldRegressor
from flow_pred.river import RiverPredictor
from flow_pred.sampling import at_rest, decode_clip, encode_clip
from training import distributed
from training.randomness import derive_seed
from videodata.atomic import atomic_path
from videodata.errors import UserError
from videodata.pixels import to_uint8
from videodata.write_video import write_video

GAP = 2  # pixels between original and prediction
FORMATS = ("h5", "mp4", "gif", "npy")


@dataclass
class Plan:
    """What is predicted. `res`: output frames per frame interval; the true frames in between are read where the data
    have them, that is where the stride is a multiple of `res`.
    """

    context: int
    frames: int
    stride: int = 1
    res: int = 1
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # of the predictor's `sample`

    @property
    def fine(self) -> bool:
        """Whether the true frames in between are there."""
        return self.stride % self.res == 0

    @property
    def read_stride(self) -> int:
        """Frames of the video from one frame of a clip that is read to the next."""
        return self.stride // self.res if self.fine else self.stride

    @property
    def read_frames(self) -> int:
        """Frames of a clip that is read."""
        whole = self.context + self.frames
        return (whole - 1) * self.res + 1 if self.fine else whole

    def split(self, clip: Tensor) -> tuple[Tensor, Tensor | None]:
        """A clip that was read (..., T, H, W) -> context, and the target in the times of the prediction if known."""
        if not self.fine:
            return clip[..., : self.context, :, :], None
        first = (self.context - 1) * self.res
        context = clip[..., : first + 1 : self.res, :, :]
        return context, torch.cat([context, clip[..., first + 1 :, :, :]], dim=-3)


@dataclass
class Prediction:
    """A batch: clips (B, 3, T, H, W) in [-1, 1], and the number of each in the data set."""

    generated: Tensor
    target: Tensor | None
    items: list[int]


class CallCounter:
    """Counts the evaluations of networks, per sample: a call on half of the batch counts half.

    All processes must ask for a number, and get that of all of them together.
    """

    def __init__(self, predictor: RiverPredictor | NeuralSDE) -> None:
        self.samples: dict[str, int] = {}
        for name, module in predictor.named_children():
            if isinstance(module, VectorFieldRegressor):
                module.register_forward_hook(self._count(name))

    def _count(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            self.samples[name] = self.samples.get(name, 0) + len(output)

        return hook

    @property
    def drift(self) -> int:
        """Evaluations of the drift's first network."""
        return over_processes(self.samples.get("regressor", 0) + self.samples.get("flow", 0))

    @property
    def total(self) -> int:
        """Evaluations of all networks."""
        return over_processes(sum(self.samples.values()))


def over_processes(count: int) -> int:
    """The sum over all processes."""
    return int(distributed.all_sum(torch.tensor(count)))


def predict(
    predictor: RiverPredictor | NeuralSDE, clips: Dataset, plan: Plan, batch_size: int, device: torch.device
) -> Iterator[Prediction]:
    """Predictions of all clips, in order; clip i depends on (seed, i) alone.

    Several processes take turns at the batches; the main process gets all of them, the others get none.
    """
    starts = range(0, len(clips), batch_size)
    for turn in range(0, len(starts), distributed.world_size()):
        mine = turn + distributed.rank()
        items = range(starts[mine], min(starts[mine] + batch_size, len(clips))) if mine < len(starts) else ()
        yield from gathered(predict_batch(predictor, clips, plan, list(items), device) if items else None)


def predict_batch(
    predictor: RiverPredictor | NeuralSDE, clips: Dataset, plan: Plan, items: list[int], device: torch.device
) -> Prediction:
    """The predictions of the clips with these numbers."""
    context, target = plan.split(torch.stack([clips[item] for item in items]))
    new = predict_frames(predictor, context, plan, items, plan.seed, device)
    return Prediction(torch.cat([context, new], dim=2), target, items)


def gathered(prediction: Prediction | None) -> Iterator[Prediction]:
    """On the main process, the predictions of all processes in the order of their ranks."""
    found: list[Prediction | None] = [prediction]
    if distributed.world_size() > 1:
        places = [None] * distributed.world_size() if distributed.is_main() else None
        dist.gather_object(prediction, places)
        found = places or []
    yield from (entry for entry in found if entry is not None)


def predict_frames(
    predictor: RiverPredictor | NeuralSDE,
    context: Tensor,
    plan: Plan,
    items: list[int],
    seed: int,
    device: torch.device,
) -> Tensor:
    """What follows the context (B, 3, n, H, W) of the clips with these numbers: (B, 3, frames * res, H, W)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "generate"))
    with at_rest(predictor):
        latents = encode_clip(predictor.autoencoder, context.to(device))
        continued = predictor.sample(latents, plan.frames, generator=generator, positions=items, **plan.options)
        return decode_clip(predictor.autoencoder, continued[:, plan.context :]).cpu()


def baselines(prediction: Prediction, plan: Plan) -> dict[str, Tensor]:
    """What costs nothing, in the times of the prediction: the last known frame for ever, and for frames in between
    the cross-fade of the predicted frames around them, and of the true ones, which nobody can know.
    """
    target, generated = prediction.target, prediction.generated
    context = target[:, :, : plan.context]
    count = target.shape[2] - plan.context
    repeated = context[:, :, -1:].expand(-1, -1, count, -1, -1)
    found = {"last frame repeated": torch.cat([context, repeated], dim=2)}
    if plan.res > 1:
        for name, clip in (("predicted", generated), ("true", target)):
            whole = clip[:, :, plan.context - 1 + plan.res :: plan.res]
            keys = torch.cat([context[:, :, -1:], whole], dim=2)
            found[f"cross-fade of {name} frames"] = torch.cat([context, cross_fade(keys, plan.res)], dim=2)
    return found


def cross_fade(keys: Tensor, res: int) -> Tensor:
    """Frames (B, 3, n, H, W) -> (B, 3, (n - 1) * res, H, W): res linear steps from each frame to the next."""
    share = (torch.arange(1, res + 1) / res).view(1, 1, 1, -1, 1, 1)
    return torch.lerp(keys[:, :, :-1, None], keys[:, :, 1:, None], share).flatten(2, 3)


class Scores:
    """PSNR, SSIM and optionally LPIPS of predictions and of their baselines; only predicted frames count."""

    def __init__(self, plan: Plan, lpips: str | None = None, weights: str | None = None) -> None:
        self.plan, self.lpips, self.weights = plan, lpips, weights
        self._scores: dict[str, PairedScores] = {}

    def update(self, prediction: Prediction) -> None:
        """Take in a batch. Raises UserError where the true frames are unknown."""
        if prediction.target is None:
            raise UserError("metrics need the true frames: data.skip_frames + 1 must be a multiple of --res")
        rows = {"": prediction.generated, **baselines(prediction, self.plan)}
        for label, clip in rows.items():
            for name, (a, b) in self._parts(prediction.target, clip).items():
                key = ", ".join(part for part in (name, label) if part)
                if key not in self._scores:
                    self._scores[key] = PairedScores(self.lpips, self.weights)
                self._scores[key].update(a, b)

    def _parts(self, target: Tensor, clip: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """All predicted frames, or those in between and the others apart; the first four too where there are more."""
        target, clip = target[:, :, self.plan.context :], clip[:, :, self.plan.context :]
        res = self.plan.res
        if res > 1:
            between = torch.arange(target.shape[2]) % res != res - 1
            return {
                "in between": (target[:, :, between], clip[:, :, between]),
                "whole frames": (target[:, :, ~between], clip[:, :, ~between]),
            }
        parts = {"": (target, clip)}
        return parts | ({"first 4 frames": (target[:, :, :4], clip[:, :, :4])} if target.shape[2] > 4 else {})

    def scores(self) -> list[Score]:
        """One row per metric and kind of frame."""
        rows = []
        for label, scores in self._scores.items():
            for score in scores.scores():
                score.label = label
                rows.append(score)
        return rows


class H5Writer:
    """generated_videos and target_videos (B, T, 3, H, W) float32 in [-1, 1], gzip, and the scalar avg_count."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file

    def add(self, prediction: Prediction) -> None:
        """Append a batch."""
        self._append("generated_videos", prediction.generated)
        if prediction.target is not None:
            self._append("target_videos", prediction.target)

    def finish(self, calls_per_frame: float) -> None:
        """Store how often the drift was evaluated per predicted frame."""
        self.file["avg_count"] = calls_per_frame

    def _append(self, name: str, clips: Tensor) -> None:
        values = clips.transpose(1, 2).float().numpy()
        if name not in self.file:
            shape = values.shape[1:]
            options = {"maxshape": (None, *shape), "chunks": (1, *shape), "compression": "gzip", "compression_opts": 9}
            self.file.create_dataset(name, (0, *shape), np.float32, **options)
        data = self.file[name]
        data.resize(len(data) + len(values), axis=0)
        data[-len(values) :] = values


@contextmanager
def open_h5(path: Path) -> Iterator[H5Writer]:
    """A writer; the file gets its name when the block ends."""
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        yield H5Writer(file)


def write_clips(folder: Path, prediction: Prediction, plan: Plan, fps: Fraction, formats: list[str]) -> list[Path]:
    """Each clip of a batch as <item>.mp4, .gif and .npy: the original to the left, where it is known.

    Frames before the last known one are left out where frames in between are predicted, because they have not its rate.
    """
    first = plan.context - 1 if plan.res > 1 else 0
    written = []
    for row, item in enumerate(prediction.items):
        parts = [part for part in (prediction.target, prediction.generated) if part is not None]
        frames = side_by_side([to_uint8(part[row, :, first:]) for part in parts])
        for kind in formats:
            path = folder / f"{item:04d}.{kind}"
            if kind == "npy":
                write_array(path, to_uint8(prediction.generated[row]))
            else:
                write_video(path, frames, fps * plan.res)
            written.append(path)
    return written


def write_array(path: Path, frames: np.ndarray) -> None:
    """uint8 (T, H, W, 3) as .npy."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, frames)


def side_by_side(clips: list[np.ndarray]) -> np.ndarray:
    """Clips uint8 (T, H, W, 3) next to each other with a white gap."""
    gap = np.full((*clips[0].shape[:2], GAP, 3), 255, np.uint8)
    parts = [part for clip in clips for part in (gap, clip)][1:]
    return np.concatenate(parts, axis=2)


def strip(prediction: Prediction, plan: Plan, columns: int = 12) -> np.ndarray:
    """A picture of up to 4 clips, uint8: rows original, prediction, with `columns` frames spread over the time."""
    first = plan.context - 1 if plan.res > 1 else 0
    rows = []
    for row in range(min(4, len(prediction.items))):
        for clip in (prediction.target, prediction.generated):
            if clip is not None:
                frames = to_uint8(clip[row, :, first:])
                chosen = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
                rows.append(np.concatenate(list(frames[chosen]), axis=1))
    return np.concatenate(rows, axis=0)
