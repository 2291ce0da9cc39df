"""The training of the networks of FVD-digits and FVD-shapes, on clips of the training part of generated videos.

Nothing of val or test is shown: digits are those of the training part's writers, and the videos have a seed that
nobody evaluates on. Some clips stand still from a frame on or move in jerks, some are fainter, softer or noisier, and
some are noise in which nothing moves: a generator's clips are to be read as they are and not as they should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from evaluation.factors import KINDS, LOST, SIDE, FactorNetwork, Readings, look, middles, nearest, small_clips
from training.optim import build_optimizer, learning_rate_scale
from training.randomness import derive_seed
from videodata.clips import spread
from videodata.digits import Digits
from videodata.pixels import normalize
from videodata.shapes import Shapes
from videodata.source import GeneratedSource
from videodata.splits import divide

TRAINED_ON = "the training part of generated videos, with a seed of its own"
SEED = 271828  # of the videos of the training
VIDEOS = 100_000  # numbers of them, of which those of the part are used
LENGTHS = {4: 0.2, 8: 0.5, 12: 0.3}  # frames of a batch's clips, and how often
SPREAD = 1.5  # pixels, standard deviation of the bell that says where a centre is
NEAR = 3.0  # pixels around a centre in which cells have to know it
WEIGHTS = {"here": 30.0, "centre": 0.5, "velocity": 1.0, "color": 1.0, "kind": 1.0}
STILL, JERKY, WORSE, EMPTY = 0.1, 0.15, 0.5, 0.04  # shares of the clips
MEASURED_FRAMES = 16


class Truth(NamedTuple):
    """The things of a batch of clips, at most N in each. Lengths in pixels of a frame whose shorter side is SIDE."""

    there: Tensor  # bool (B, N)
    kinds: Tensor  # int64 (B, N)
    colors: Tensor  # (B, N, 3)
    centres: Tensor  # (B, N, T, 2)

    @property
    def velocities(self) -> Tensor:
        """(B, N, T, 2) per frame: half the way from the frame before to the one after; the whole way at the ends."""
        return torch.gradient(self.centres, dim=2)[0]


def sources(kind: str) -> list[tuple[GeneratedSource, float]]:
    """What is trained on, and how often: one to three digits, white or coloured, slower and faster; or shapes."""
    if kind == "shapes":
        return [(Shapes(VIDEOS, size=SIDE, seed=SEED), 1.0)]
    return [
        (Digits(VIDEOS, size=SIDE, digits=count, speed=(0.0, 3.0), colour=colour, seed=SEED), share)
        for count, often in ((1, 0.3), (2, 0.55), (3, 0.15))
        for colour, share in ((False, 0.6 * often), (True, 0.4 * often))
    ]


class Clips:
    """Batches of clips of one part, each with what is to be read in them."""

    def __init__(self, kind: str, split: str = "train") -> None:
        self.sources, shares = zip(*sources(kind), strict=True)
        self.shares = np.array(shares) / sum(shares)
        self.videos = np.array(divide(self.sources[0], split))  # the same of all

    def draw(self, count: int, seed: int) -> tuple[Tensor, Truth]:
        """Clips (B, 3, T, SIDE, SIDE) in [-1, 1], B = count; the same for the same seed."""
        rng = np.random.default_rng(seed)
        frames = int(rng.choice(list(LENGTHS), p=list(LENGTHS.values())))
        drawn = []
        for _ in range(count):
            source = self.sources[rng.choice(len(self.sources), p=self.shares)]
            video, start = int(rng.choice(self.videos)), int(rng.integers(source.length(0) - 2 * frames))
            steps = np.ones(frames, int)
            kind = rng.random()
            if kind < STILL:
                steps[rng.integers(1, frames) :] = 0
            elif kind < STILL + JERKY:
                steps = rng.choice([0, 1, 2], frames, p=[0.25, 0.5, 0.25])
            drawn.append(one_clip(source, video, start + np.cumsum(steps) - steps[0]))
        clips, truth = together(drawn)
        return worsen(clips, truth, torch.Generator().manual_seed(seed))


def one_clip(source: GeneratedSource, video: int, times: np.ndarray) -> tuple[np.ndarray, ...]:
    """Frames uint8 (T, SIDE, SIDE, 3), and kinds, colours and centres (in pixels) of what moves in them."""
    start, last = int(times[0]), int(times[-1])
    frames = source.read_clip(video, start, last - start + 1, size=(SIDE, SIDE))[times - start]
    found = source.objects(video, times, (SIDE, SIDE))
    return frames, found.kinds, found.colors, found.centres * SIDE


def together(drawn: Sequence[tuple[np.ndarray, ...]]) -> tuple[Tensor, Truth]:
    """The clips of `one_clip` as a batch."""
    most = max(len(kinds) for _, kinds, _, _ in drawn)

    def padded(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.zeros((most - len(values), *values.shape[1:]), values.dtype)])

    columns = [np.stack([padded(values) for values in column]) for column in list(zip(*drawn, strict=True))[1:]]
    there = np.arange(most) < np.array([[len(kinds)] for _, kinds, _, _ in drawn])
    kinds, colors, places = (torch.from_numpy(column) for column in columns)
    clips = torch.from_numpy(np.stack([frames for frames, *_ in drawn])).movedim(-1, 1)
    return normalize(clips), Truth(torch.from_numpy(there), kinds, colors.float(), places.float())


def worsen(clips: Tensor, truth: Truth, generator: torch.Generator) -> tuple[Tensor, Truth]:
    """Some clips fainter, softer and noisier, as far as they can still be read; some nothing but noise."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(clips), 1, 1, 1, 1, generator=generator)

    noise = torch.randn(clips.shape, generator=generator)
    soft = F.avg_pool3d(F.pad(clips, (1, 1, 1, 1, 0, 0), mode="replicate"), (1, 3, 3), 1)
    worse = clips.lerp(soft, uniform(0, 0.8)) + noise * uniform(0, 0.15)
    worse = ((worse + 1) * uniform(0.7, 1) - 1).clamp(-1, 1)
    clips = torch.where(uniform(0, 1) < WORSE, worse, clips)
    coarse = F.interpolate(torch.randn(*clips.shape[:2], 4, 6, 6, generator=generator), clips.shape[2:])
    empty = uniform(0, 1) < EMPTY
    clips = torch.where(empty, (uniform(-1, 0.5) + noise * uniform(0, 1) + coarse * uniform(0, 1)).clamp(-1, 1), clips)
    return clips, truth._replace(there=truth.there & ~empty.view(-1, 1))


def losses(found: Readings, truth: Truth) -> dict[str, Tensor]:
    """How wrong the heads are: where things are, in all cells; the rest in those near a centre, about the nearest."""
    cells = middles(found.here)
    away = (cells - truth.centres[..., None, None]).square().sum(dim=3)  # (B, N, T, h, w)
    distance, nearest = away.masked_fill(~truth.there[:, :, None, None, None], 1e6).min(dim=1)  # (B, T, h, w)
    near = (distance < NEAR**2).float()

    def of_nearest(values: Tensor) -> Tensor:
        """(B, N, T, C) -> (B, T, C, h, w)"""
        values = values.movedim(1, -1)[..., None, None].expand(*values.movedim(1, -1).shape, *nearest.shape[2:])
        return values.gather(3, nearest[:, :, None, None].expand(-1, -1, values.shape[2], 1, -1, -1))[:, :, :, 0]

    def mean(errors: Tensor) -> Tensor:
        return (errors * near).sum() / (near.sum() + 1)

    frames = truth.centres.shape[2]
    color = truth.colors[:, :, None].expand(-1, -1, frames, -1)
    kind = of_nearest(truth.kinds[:, :, None, None].expand(-1, -1, frames, 1))[:, :, 0]
    target = torch.exp(-distance / (2 * SPREAD**2))
    return {
        "here": F.binary_cross_entropy_with_logits(found.here.float(), target),
        "centre": mean((found.centre - of_nearest(truth.centres)).abs().sum(dim=2)),
        "velocity": mean((found.velocity - of_nearest(truth.velocities)).abs().sum(dim=2)),
        "color": mean((found.color - of_nearest(color)).abs().sum(dim=2)),
        "kind": mean(F.cross_entropy(found.kind.transpose(1, 2).float(), kind, reduction="none")),
    }


def train_factors(kind: str, steps: int, seed: int = 0, batch: int = 32, rate: float = 2e-3) -> FactorNetwork:
    """A trained network; the same on the same machine each time."""
    torch.manual_seed(seed)
    network, clips = FactorNetwork(KINDS[kind]), Clips(kind)
    optimizer = build_optimizer("muon", network.parameters(), rate, weight_decay=0.01, convolutions=True)
    with tqdm(range(steps), desc="training", unit="step") as numbers:
        for step in numbers:
            for group in optimizer.param_groups:
                group["lr"] = rate * learning_rate_scale(step, steps, 50, "cosine")
            shown, truth = clips.draw(batch, derive_seed(seed, kind, step))
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):  # a third of the time
                found = network.read(network(shown))
            parts = losses(found, truth)
            sum(WEIGHTS[name] * loss for name, loss in parts.items()).backward()
            optimizer.step()
            if step % 50 == 0:
                numbers.set_postfix({name: f"{loss.item():.3f}" for name, loss in parts.items()})
    return network.eval()


def true_clips(source: GeneratedSource, videos: Sequence[int], frames: int) -> tuple[Tensor, Truth]:
    """The first frames of videos, as they are."""
    return together([one_clip(source, video, np.arange(frames)) for video in videos])


@torch.no_grad()
def standardise(network: FactorNetwork, kind: str, clips: int) -> None:
    """Let the features have mean 0 and deviation 1 in true clips of the training part, as the source draws them."""
    source = plain_sources(kind)["" if kind == "shapes" else "2 digits"]
    videos = spread(divide(source, "train"), clips)
    parts = [true_clips(source, videos[at : at + 64], MEASURED_FRAMES)[0] for at in range(0, clips, 64)]
    features = torch.cat([network.describe(small_clips(part)) for part in parts])
    network.mean.copy_(features.mean(dim=0))
    network.deviation.copy_(features.std(dim=0).clamp(min=1e-3))


def plain_sources(kind: str) -> dict[str, GeneratedSource]:
    """What the accuracy is measured on, by its name: the source as users have it, with the seed of the training."""
    if kind == "shapes":
        return {"": Shapes(VIDEOS, size=SIDE, seed=SEED)}
    options = {"1 digit": (1, False), "2 digits": (2, False), "2 coloured digits": (2, True)}
    return {name: Digits(VIDEOS, size=SIDE, digits=n, colour=c, seed=SEED) for name, (n, c) in options.items()}


def measure(network: FactorNetwork, kind: str, clips: int, split: str = "val") -> dict[str, dict[str, float]]:
    """How well the network reads true clips of a part, by what they show; see `accuracy`."""
    found = {}
    for name, source in plain_sources(kind).items():
        videos = spread(divide(source, split), clips)
        parts = [
            accuracy(network, *true_clips(source, videos[at : at + 64], MEASURED_FRAMES)) for at in range(0, clips, 64)
        ]
        rows = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        found[", ".join(filter(None, (split, name)))] = {key: round(float(row.mean()), 4) for key, row in rows.items()}
    return found


def accuracy(network: FactorNetwork, clips: Tensor, truth: Truth) -> dict[str, Tensor]:
    """For each thing in each frame: whether it is found, how far away (found ones only, pixels), how wrong its velocity
    is (pixels a frame) and whether its kind is right; and whether the kind is right in a vote of all frames.
    """
    things = look(network, clips, truth.there.shape[1])
    distance, which = nearest(things, truth.centres)  # (B, N, T)
    there = truth.there[:, :, None].expand_as(distance)
    seen = there & (distance < LOST)
    batch, frames = torch.arange(len(clips))[:, None, None], torch.arange(clips.shape[2])
    kinds = things.kinds[batch, frames, which]  # (B, N, T, K)
    errors = (things.velocities[batch, frames, which] - truth.velocities).norm(dim=-1)
    votes = (kinds.log_softmax(dim=-1) * seen[..., None]).sum(dim=2).argmax(dim=-1)
    return {
        "found": seen[there].float(),
        "pixels_off": distance[seen],
        "velocity_off": errors[seen],
        "kind_right": (kinds.argmax(dim=-1) == truth.kinds[:, :, None])[seen].float(),
        "kind_right_all_frames": (votes == truth.kinds)[truth.there].float(),
    }
