"""What moves in a clip of generated digits or shapes: the kind, colour, place and velocity of each thing, read by a
small network that was trained on what the generator knows. Its features give FVD-digits and FVD-shapes.

These are numbers for machines without the weights of I3D. They are no FVD, and never comparable with one: the network
knows the two generated sources and nothing else. `evaluation.factor_training` (scripts/train_factor_network.py) trains
it, on the training part alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from evaluation.digit_classifier import IDENTITY_VOTES, frames_to_identify
from evaluation.metrics import unit_frames
from evaluation.networks import FeatureExtractor
from evaluation.paired import merge_dicts, score_of_frames
from evaluation.report import Score
from training.distributed import gather_batches
from videodata.errors import UserError
from videodata.labels import taken_from
from videodata.source import Objects

FOLDER = Path(__file__).resolve().parent.parent / "weights"
KINDS = {"digits": 10, "shapes": 3}  # of things, by the source that draws them
SIDE = 32  # pixels of the shorter side that the network looks at
CELL = 2  # pixels of a side of the cells in which things are looked for
COARSE = 2 * CELL  # pixels from one position of the features to the next
WIDTHS = (32, 64, 64, 64)
FEATURES = WIDTHS[-1]
SEEN = 0.3  # of a centre, at least; a sharp one in the middle of its cell has 1
LOST = SIDE / 2  # pixels; what is not seen is as far away
MINIMUM_FRAMES = 4
IN_PLACE = 4.0  # pixels from where a thing should be: half a digit's radius, seven times the network's own error


class Readings(NamedTuple):
    """What the heads say in each cell of each frame, h x w cells of CELL pixels. Lengths are in pixels of the clip that
    the network sees.
    """

    here: Tensor  # (B, T, h, w) logit of how near a centre is
    centre: Tensor  # (B, T, 2, h, w) (y, x) of the nearest centre
    velocity: Tensor  # (B, T, 2, h, w) per frame
    color: Tensor  # (B, T, 3, h, w) RGB in [0, 1]
    kind: Tensor  # (B, T, K, h, w) logits


class FactorNetwork(nn.Module):
    """Clips (B, 3, T, H, W) in [-1, 1], the shorter side SIDE -> features (B, T, FEATURES, H / 4, W / 4).

    Convolutions over space and over time take turns (Tran et al. 2018, arXiv 1711.11248), which costs a third of those
    over both. No frame is skipped, so that everything is known of each.
    """

    def __init__(self, kinds: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width, stride in zip(WIDTHS, (2, 2, 1, 1), strict=True):
            kernel = 5 if before == 3 else 3
            layers += block(before, width, (1, kernel, kernel), (1, stride, stride))
            layers += block(width, width, (3, 1, 1)) if before > 3 else []
            before = width
        self.trunk = nn.Sequential(*layers)
        self.outputs = (1, 2, 2, 3, kinds)  # of `Readings`
        self.heads = nn.Conv2d(before, sum(self.outputs) * (COARSE // CELL) ** 2, 1)
        size = FEATURES + 2 * sum(self.outputs)
        self.register_buffer("mean", torch.zeros(size))  # of the features of clips of the training part,
        self.register_buffer("deviation", torch.ones(size))  # and their standard deviation

    def forward(self, clips: Tensor) -> Tensor:
        return self.trunk(clips).transpose(1, 2)

    def read(self, features: Tensor) -> Readings:
        """What the heads say of features (B, T, FEATURES, h, w)."""
        cells = F.pixel_shuffle(self.heads(features.flatten(0, 1)), COARSE // CELL)
        here, offset, velocity, color, kind = cells.unflatten(0, features.shape[:2]).split(self.outputs, dim=2)
        return Readings(here[:, :, 0], middles(cells) + offset, velocity, color, kind)

    def describe(self, clips: Tensor) -> Tensor:
        """(B, D): means over space and time of the features, and of what the heads read in a frame where things are
        the mean and the standard deviation over frames. Each is 0 on average, with deviation 1, in true clips.
        """
        features = self(clips)
        found = self.read(features)
        weight = found.here.sigmoid()[:, :, None]  # (B, T, 1, h, w)
        values = torch.cat([found.centre, found.velocity, found.color, found.kind.softmax(dim=2)], dim=2)
        amount = weight.sum(dim=(3, 4))
        means = (values * weight).sum(dim=(3, 4)) / (amount + 1)  # nothing seen: 0, and not 0 / 0
        readings = torch.cat([amount, means], dim=2)  # (B, T, R)
        described = [features.mean(dim=(1, 3, 4)), readings.mean(dim=1), readings.std(dim=1)]
        return (torch.cat(described, dim=1) - self.mean) / self.deviation


def block(inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple = (1, 1, 1)) -> list[nn.Module]:
    padding = tuple(size // 2 for size in kernel)
    convolution = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
    return [convolution, nn.BatchNorm3d(outputs), nn.ReLU()]


def middles(cells: Tensor) -> Tensor:
    """(2, h, w): (y, x) of the middle of each cell, in pixels."""
    y, x = (CELL * (torch.arange(size, device=cells.device) + 0.5) for size in cells.shape[-2:])
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))


def small_clips(clips: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W) with the shorter side SIDE, the longer one of whole COARSE pixels."""
    height, width = clips.shape[3:]
    scale = SIDE / min(height, width) / COARSE
    size = tuple(COARSE * round(side * scale) for side in (height, width))
    if size == (height, width):
        return clips
    options = {"mode": "area"} if min(height, width) > SIDE else {"mode": "bilinear", "align_corners": False}
    frames = F.interpolate(clips.transpose(1, 2).flatten(0, 1), size, **options)
    return frames.unflatten(0, (len(clips), -1)).transpose(1, 2)


class Things(NamedTuple):
    """The clearest things of each frame, N of them."""

    clarity: Tensor  # (B, T, N) in [0, 1]; 0 where there are fewer
    centres: Tensor  # (B, T, N, 2) (y, x) in pixels of a clip whose shorter side is SIDE
    velocities: Tensor  # (B, T, N, 2) per frame
    colors: Tensor  # (B, T, N, 3)
    kinds: Tensor  # (B, T, N, K) logits


def clearest(found: Readings, count: int) -> Things:
    """The `count` cells of each frame around which no other is clearer, those with the clearest centres."""
    clarity = found.here.sigmoid()
    peaks = clarity * (clarity == F.max_pool2d(clarity, 3, 1, 1))
    best, cells = peaks.flatten(2).topk(count, dim=-1)  # (B, T, N)

    def at(values: Tensor) -> Tensor:
        values = values.flatten(3).transpose(2, 3)  # (B, T, cells, C)
        return values.gather(2, cells[..., None].expand(-1, -1, -1, values.shape[3]))

    return Things(best, at(found.centre), at(found.velocity), at(found.color), at(found.kind))


def nearest(things: Things, paths: Tensor) -> tuple[Tensor, Tensor]:
    """How far, in pixels, each of M paths (B, M, T, 2) is from the nearest thing that is seen, and which that is: two
    (B, M, T). Two paths that cross may have one thing. Nothing seen, or too far away: LOST pixels.
    """
    away = (things.centres[:, None] - paths[:, :, :, None]).norm(dim=-1)  # (B, M, T, N)
    away = away.masked_fill(things.clarity[:, None] < SEEN, LOST).clamp(max=LOST)
    distance, which = away.min(dim=-1)
    return distance, which


@torch.no_grad()
def look(network: FactorNetwork, clips: Tensor, count: int) -> Things:
    """The clearest things of clips (B, 3, T, H, W) in [-1, 1] of any size."""
    return clearest(network.read(network(small_clips(clips.float()))), count)


@cache
def open_factors(kind: str, path: Path | None = None) -> FactorNetwork:
    """The trained network for the clips of a source, digits or shapes. Raises UserError where its weights are not there
    or are those of another network.
    """
    from training.checkpoint import read_tensors, strict_load

    path = path or weights_of(kind)
    if not path.is_file():
        raise UserError(f"{path}: there is no such network; python scripts/train_factor_network.py {kind} makes it")
    network = FactorNetwork(KINDS[kind])
    strict_load(network, read_tensors(path), path)
    return network.eval().requires_grad_(False)


def weights_of(kind: str) -> Path:
    return FOLDER / f"factors-{kind}.safetensors"


class FactorFeatures(FeatureExtractor):
    """What the network of a source makes of a clip: `FactorNetwork.describe`."""

    minimum_frames = MINIMUM_FRAMES

    def __init__(self, kind: str, device: torch.device | str = "cpu", weights: Path | None = None) -> None:
        network = open_factors(kind, weights)
        super().__init__(weights or weights_of(kind))
        self.name, self.dimensions, self.device = kind, len(network.mean), torch.device(device)
        self.network = network if self.device.type == "cpu" else deepcopy(network).to(self.device)
        self.text = (
            f"shorter side {SIDE} pixels, [-1, 1], {self.dimensions} features of a small network that knows the "
            f"{kind} of this repository and nothing else: no published FVD"
        )

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        return self.network.describe(small_clips(clips.to(self.device)))


class GeneratedScores(ABC):
    """What is seen of the things of generated clips, where the generator moves them: for the clips that were made, and
    for the true ones ("true clips"), which is the most that the network can see.

    Frames after the first `context` count. Raises UserError for clips that no generator made.
    """

    definition: str

    def __init__(self, clips: Dataset, context: int = 0, quantize: bool = True) -> None:
        self.clips, self.context, self.quantize = clips, context, quantize
        objects_of(clips, 0)
        self.extractor = FactorFeatures(taken_from(clips, 0)[0].source.kind)
        self.batches: list[dict[str, Tensor]] = []  # per batch: label of its row -> (B, T) of the frames that count

    @abstractmethod
    def update(self, clips: Tensor, made: Tensor, items: Sequence[int]) -> None:
        """Clips (B, 3, T, H, W) in [-1, 1], samples (B, S, 3, T, H, W) of each, and their numbers in the data set."""

    def on_paths(self, clips: Tensor, objects: Sequence[Objects]) -> Iterator[tuple[Objects, Things, Tensor]]:
        """For each clip what moves in it, as many of the clearest things of each frame, and the paths (M, T, 2) on
        which they should be, in pixels of what the network looks at.
        """
        clips = unit_frames(clips, (-1.0, 1.0), self.quantize).transpose(1, 2) * 2 - 1
        scale = torch.tensor(small_clips(clips[:, :, :1]).shape[3:]) / torch.tensor(clips.shape[3:])
        scale = scale * min(clips.shape[3:])
        things = look(self.extractor.network, clips, max(len(found.kinds) for found in objects))
        for number, found in enumerate(objects):
            seen = Things(*(values[number : number + 1, :, : len(found.kinds)] for values in things))
            yield found, seen, torch.from_numpy(found.centres).float()[:, -clips.shape[2] :] * scale

    def scores(self) -> list[Score]:
        """Over the clips of all processes, which deal the batches out in turn."""
        notes, rows = {"feature_network": self.extractor.facts()}, merge_dicts(gather_batches(self.batches)).items()
        found = [(name, score_of_frames(self.definition, batches, None)[0]) for name, batches in rows]
        return [replace(score, label=name, notes=notes) for name, score in found]


class MotionScores(GeneratedScores):
    """How far the things of clips are from where the generator moves them, in pixels of frames whose shorter side has
    SIDE: in the clips that were made, in the true ones and in the last given frame repeated.

    In each frame as many things are looked for as there are, and each true path is compared with the nearest of them
    (`nearest`).
    """

    definition = "motion-distance"

    def update(self, clips: Tensor, made: Tensor, items: Sequence[int]) -> None:
        objects = [objects_of(self.clips, item) for item in items]
        found = {"": torch.stack([self._away(sample, objects) for sample in made.unbind(1)]).mean(dim=0)}
        found["true clips"] = self._away(clips, objects)
        if self.context:
            given, frames = clips[:, :, : self.context], clips.shape[2] - self.context
            still = torch.cat([given, given[:, :, -1:].expand(-1, -1, frames, -1, -1)], dim=2)
            found["last frame repeated"] = self._away(still, objects)
        self.batches.append(found)

    def _away(self, clips: Tensor, objects: Sequence[Objects]) -> Tensor:
        """(B, T): the mean over the things of a frame."""
        rows = [nearest(seen, paths[None])[0][0].mean(dim=0) for _, seen, paths in self.on_paths(clips, objects)]
        return torch.stack(rows)[:, self.context :]


class IdentityInPlace(GeneratedScores):
    """Whether all things of a clip are where the generator moves them, and are still what they were.

    In the frame that is asked for (`frames_to_identify`) something is seen within IN_PLACE pixels of where each thing
    should be, and it is of the right kind, by the votes of that frame and the two before it, as far as it was in place
    in those. A clip that stands still goes on showing what it was given, but not there; where nothing is seen nothing
    is in place, so that noise has none. Only frames that were made are looked at.
    """

    definition = "identity-in-place"

    def update(self, clips: Tensor, made: Tensor, items: Sequence[int]) -> None:
        objects = [objects_of(self.clips, item) for item in items]
        samples = [self._judge(sample, objects) for sample in made.unbind(1)]
        true = self._judge(clips, objects)
        found = {name: torch.stack([sample[name] for sample in samples]).mean(dim=0) for name in true}
        self.batches.append(found | {f"{name}, true clips": values for name, values in true.items()})

    def _judge(self, clips: Tensor, objects: Sequence[Objects]) -> dict[str, Tensor]:
        """Label of a row -> (B, 1), 1 or 0."""
        clips = clips[:, :, self.context :]
        numbers = frames_to_identify(clips.shape[2])
        found = [self._in_place(numbers, *clip) for clip in self.on_paths(clips, objects)]
        return {f"frame {number}": torch.tensor(found)[:, [place]] for place, number in enumerate(numbers)}

    def _in_place(self, numbers: Sequence[int], true: Objects, seen: Things, paths: Tensor) -> list[float]:
        """For one clip: 1 or 0 for each of the frames."""
        away, which = (values[0] for values in nearest(seen, paths[None]))  # (M, T)
        votes = seen.kinds[0].log_softmax(dim=-1)  # (T, N, K)
        votes = votes[torch.arange(away.shape[1]), which] * (away < IN_PLACE)[..., None]  # (M, T, K)
        kinds = torch.from_numpy(true.kinds)
        found = []
        for number in numbers:
            seen_as = votes[:, max(0, number - IDENTITY_VOTES) : number].sum(dim=1).argmax(dim=-1)
            found.append(float(((away[:, number - 1] < IN_PLACE) & (seen_as == kinds)).all()))
        return found


def objects_of(dataset: Dataset, index: int) -> Objects:
    """What moves in an item of a data set of generated clips. Raises UserError for other clips."""
    dataset, index = taken_from(dataset, index)
    if not hasattr(dataset, "objects"):
        raise UserError("motion: where things are is known in generated videos only, such as digits:200")
    return dataset.objects(index)
