"""Validation metrics and pictures, with the averaged weights, without a trace in the training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from training import distributed
from training.data import Batch, Key, batches
from training.randomness import SampleNoise, derive_seed, seed_everything
from training.recipe import Step
from training.settings import TrainSettings
from training.state import TrainState
from training.step import PRECISIONS
from videodata.write_video import write_video


class Evaluator:
    """Evaluates a state on the same validation samples with the same noise each time."""

    def __init__(
        self, state: TrainState, dataset: Dataset, validation: Dataset | None, settings: TrainSettings,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.state = state
        self.validation = validation
        self.shown = validation if validation is not None else dataset
        self.settings = settings
        self.device = device
        self.size = settings.batch_size // (settings.accumulation * distributed.world_size())

    def metrics(self) -> dict[str, float]:
        """The recipe's metrics averaged over the validation samples of all processes; {} without validation data."""
        if self.validation is None or not len(self.validation):
            return {}
        sums: dict[str, Tensor] = {}
        count = 0
        chunks, real = self.share()
        with self.weights(), batches(self.validation, chunks, self.settings, self.device) as feed:
            for number, batch in enumerate(feed):
                values = self.state.recipe.evaluate(batch.data, self.describe(batch))
                weight = 1 if number < real else 0
                count += weight * len(batch.keys)
                for name, value in values.items():
                    if value.shape != (len(batch.keys),):
                        raise ValueError(f"metric {name!r} has shape {tuple(value.shape)}, not ({len(batch.keys)},)")
                    sums[name] = sums.get(name, 0) + weight * value.double().sum().cpu()
        return {**mean_over_processes(sums, count), **self.state.recipe.summarize()}

    def share(self) -> tuple[list[list[Key]], int]:
        """This process's batches of (index, position), and how many of them count.

        All processes get equally many, because sharded networks compute together; those beyond `real` repeat others.
        """
        indices = self.samples()
        chunks = [indices[start : start + self.size] for start in range(0, len(indices), self.size)]
        world, rank = distributed.world_size(), distributed.rank()
        own = chunks[rank::world]
        real = len(own)
        own += [chunks[0]] * (math.ceil(len(chunks) / world) - real)
        return [[(index, index) for index in chunk] for chunk in own], real

    def samples(self) -> list[int]:
        """Indices of the validation samples: all, or a fixed random choice of `evaluate_batches` batches."""
        length = len(self.validation)
        limit = self.settings.evaluate_batches * self.settings.batch_size or length
        if limit >= length:
            return list(range(length))
        generator = torch.Generator().manual_seed(derive_seed(self.settings.seed, "validation"))
        return sorted(torch.randperm(length, generator=generator)[:limit].tolist())

    def pictures(self) -> dict[str, Tensor]:
        """The recipe's pictures of the first validation samples; {} on processes that need not compute."""
        if not (distributed.is_main() or self.state.sharded):
            return {}
        keys = [(index, index) for index in range(min(self.size, len(self.shown)))]
        with self.weights(), batches(self.shown, [keys], self.settings, self.device) as feed:
            batch = next(feed)
            return self.state.recipe.pictures(batch.data, self.describe(batch))

    def describe(self, batch: Batch) -> Step:
        noise = SampleNoise(derive_seed(self.settings.seed, "evaluate"), batch.positions, self.device)
        return Step(self.state.step, self.settings.steps, noise, self.device, training=False)

    @contextmanager
    def weights(self) -> Iterator[None]:
        """The recipe sees bare networks, averaged where there are averages, in eval mode and without gradients."""
        networks: dict[str, Any] = self.state.recipe.networks
        seed_everything(derive_seed(self.settings.seed, "evaluate", distributed.rank()))
        networks.update(self.state.networks)
        networks.update(self.state.averaged.networks)
        dtype = PRECISIONS.get(self.settings.precision)
        for network in networks.values():
            network.eval()
        try:
            with torch.no_grad(), torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                yield
        finally:
            networks.update(self.state.wrapped)
            for network in networks.values():
                network.train()


def mean_over_processes(sums: dict[str, Tensor], count: int) -> dict[str, float]:
    """Sums of this process -> means over the samples of all processes."""
    names = sorted(sums)
    totals = distributed.all_sum(torch.stack([torch.tensor(count).double(), *(sums[name] for name in names)]))
    return {name: float(total / totals[0]) for name, total in zip(names, totals[1:], strict=True)}


FRAMES_PER_SECOND = Fraction(8)


def write_pictures(folder: Path, pictures: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Write each entry as <name>.png, clips as <name>.mp4 too; gives the strips, uint8 (H, W, 3).

    Entries are frames (N, 3, H, W), shown side by side, or clips (N, 3, T, H, W), one row each, in [-1, 1].
    """
    folder.mkdir(parents=True, exist_ok=True)
    strips = {}
    for name, values in pictures.items():
        pixels = to_pixels(values)
        strips[name] = strip(pixels)
        temporary = folder / f".{name}.tmp.png"
        Image.fromarray(strips[name]).save(temporary)
        temporary.replace(folder / f"{name}.png")
        if pixels.ndim == 5:
            write_video(folder / f"{name}.mp4", side_by_side(pixels), FRAMES_PER_SECOND)
    return strips


def to_pixels(values: Tensor) -> np.ndarray:
    """[-1, 1] channels first -> uint8 channels last, rounded and clamped."""
    if values.ndim not in (4, 5) or values.shape[1] != 3:
        raise ValueError(f"pictures have shape (N, 3, H, W) or (N, 3, T, H, W), not {tuple(values.shape)}")
    pixels = ((values.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return pixels.byte().movedim(1, -1).cpu().numpy()  # (N, H, W, 3) or (N, T, H, W, 3)


def strip(pixels: np.ndarray) -> np.ndarray:
    """Frames (N, H, W, 3) as one row; clips (N, T, H, W, 3) as N rows of T frames."""
    if pixels.ndim == 4:
        return np.concatenate(list(pixels), axis=1)
    return np.concatenate([np.concatenate(list(clip), axis=1) for clip in pixels], axis=0)


def side_by_side(pixels: np.ndarray) -> np.ndarray:
    """Clips (N, T, H, W, 3) as one clip (T, H, N * W, 3)."""
    return np.concatenate(list(pixels), axis=2)
