"""Validation metrics and pictures, with the averaged weights, without a trace in the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from training import distributed
from training.data import Batch, Key, batches
from training.randomness import SampleNoise, derive_seed, seed_everything
from training.recipe import Networks, Step
from training.settings import TrainSettings
from training.state import TrainState
from training.step import autocast
from videodata.encode import write_video
from videodata.frame_folder import write_png
from videodata.pixels import denormalize


class Evaluator:
    """Evaluates a state on the same validation samples with the same noise each time."""

    def __init__(
        self, state: TrainState, dataset: Dataset, validation: Dataset | None, settings: TrainSettings,
        device: torch.device, stop: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.state = state
        self.validation = validation
        self.shown = validation if validation is not None else dataset
        self.settings = settings
        self.device = device
        self.stop = stop  # asked after each batch, by all processes together
        self.broken_off = False  # the last evaluation was, by `stop`
        self.size = settings.batch_size // (settings.accumulation * distributed.world_size())

    def metrics(self) -> dict[str, float]:
        """The recipe's metrics averaged over the validation samples of all processes; {} without validation data, and
        where it was broken off: a job manager that wants the machine back kills what takes longer than seconds.
        """
        self.broken_off = False
        if self.validation is None or not len(self.validation):
            return {}
        sums: dict[str, Tensor] = {}
        count = 0
        chunks, real = self.share()
        with self.networks() as networks, batches(self.validation, chunks, self.settings, self.device) as feed:
            for number, batch in enumerate(feed):
                values = self.state.recipe.evaluate(batch.data, self.describe(batch), networks)
                kept = len(batch.keys) if number < real else 0
                count += kept
                for name, value in values.items():
                    if len(value) != len(batch.keys) or value.dim() not in (1, 2):
                        shape = f"({len(batch.keys)},) or ({len(batch.keys)}, N)"
                        raise ValueError(f"metric {name!r} has shape {tuple(value.shape)}, not {shape}")
                    sums[name] = sums.get(name, 0) + value[:kept].double().sum(0).cpu()
                if number + 1 < len(chunks) and self.stop():
                    self.broken_off = True
                    return {}
        names = sorted(sums)  # one meeting of the processes for all of them
        flat = torch.cat([torch.tensor([count]).double(), *(sums[name].reshape(-1) for name in names)])
        total, *parts = distributed.all_sum(flat).split([1, *(sums[name].numel() for name in names)])
        totals = {name: part.view_as(sums[name]) for name, part in zip(names, parts, strict=True)}
        means = {name: float(value / total) for name, value in totals.items() if not value.dim()}
        return {**means, **self.state.recipe.summarize({name: v for name, v in totals.items() if v.dim()})}

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
        with self.networks() as networks, batches(self.shown, [keys], self.settings, self.device) as feed:
            batch = next(feed)
            return self.state.recipe.pictures(batch.data, self.describe(batch), networks)

    def describe(self, batch: Batch) -> Step:
        noise = SampleNoise(derive_seed(self.settings.seed, "evaluate"), batch.positions, self.device)
        return Step(self.state.step, self.settings.steps, noise, self.device, training=False)

    @contextmanager
    def networks(self) -> Iterator[Networks]:
        """The bare networks, averaged where there are averages, in eval mode and without gradients."""
        seed_everything(derive_seed(self.settings.seed, "evaluate", distributed.rank()))
        networks = {**self.state.networks, **self.state.averaged.networks}
        for network in networks.values():
            network.eval()
        try:
            with torch.no_grad(), autocast(self.settings, self.device):
                yield networks
        finally:
            for network in self.state.wrapped.values():
                network.train()


FRAMES_PER_SECOND = Fraction(8)


def write_pictures(folder: Path, pictures: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Write each entry as <name>.png, clips as <name>.mp4 too; gives the strips, uint8 (H, W, 3).

    Entries are frames (N, 3, H, W), shown side by side, or clips (N, 3, T, H, W), one row each, in [-1, 1].
    """
    strips = {}
    for name, values in pictures.items():
        if values.ndim not in (4, 5) or values.shape[1] != 3:
            raise ValueError(f"pictures have shape (N, 3, H, W) or (N, 3, T, H, W), not {tuple(values.shape)}")
        pixels = denormalize(values if values.ndim == 5 else values.transpose(0, 1)[None]).cpu()  # frames: one clip
        strips[name] = pixels.permute(0, 3, 2, 4, 1).flatten(2, 3).flatten(0, 1).numpy()  # (N * H, T * W, 3)
        write_png(folder / f"{name}.png", strips[name])
        if values.ndim == 5:
            side_by_side = pixels.permute(2, 3, 0, 4, 1).flatten(2, 3).numpy()  # (T, H, N * W, 3)
            write_video(folder / f"{name}.mp4", side_by_side, FRAMES_PER_SECOND)
    return strips
