"""The training of the digit classifier, on handwriting of the training part, and how well it reads that of the others.

A training frame holds up to two things. Most are digits, drawn as `videodata.digits` draws them, anywhere, slightly
turned and bent. The others are what generators make in place of digits: blurs and blobs, strokes bent beyond
recognition, two digits in one. They count as nothing, so that confidence means "a digit", not just "no other digit".
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from evaluation.digit_classifier import CONFIDENT, SETS, SIDE, DigitClassifier, read_digits, seen_in, vote
from training.optim import build_optimizer, learning_rate_scale
from training.randomness import derive_seed
from videodata.clips import open_clips
from videodata.digits import FORMS, RADIUS, Digit, draw, read_handwriting

TRAINED_ON = "handwriting of the training part"
FINE = 2  # digits are turned and bent at twice the resolution of the frames
PATCH = 20  # pixels of the square around a digit
KINDS = {"digit": 0.85, "blurred": 0.05, "bent": 0.05, "mixed": 0.05}
FAKES = ("blurred", "bent", "mixed")
THINGS = (0.04, 0.4, 0.56)  # how often a frame holds none, one and two
TURN = 0.11  # standard deviation of the four entries of the matrix that turns, scales and shears a digit
BEND, BENT = 0.7, 4.0  # standard deviation, in pixels, of how far a smooth field moves a digit, and what is no digit
NONE = 10  # the class of what is no digit


def train_classifier(steps: int, seed: int = 0, batch: int = 64, rate: float = 2e-3) -> DigitClassifier:
    """A trained classifier; the same on the same machine each time."""
    torch.manual_seed(seed)
    network, writers = DigitClassifier().to(memory_format=torch.channels_last), Patches("train")
    optimizer = build_optimizer("muon", network.parameters(), rate, weight_decay=0.01, convolutions=True)
    for step in tqdm(range(steps), desc="training", unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = rate * learning_rate_scale(step, steps, 50, "cosine")
        frames, sets = writers.frames(batch, torch.Generator().manual_seed(derive_seed(seed, "digits", step)))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):  # half the time
            loss = F.nll_loss(network(frames.to(memory_format=torch.channels_last)), sets)
        loss.backward()
        optimizer.step()
    return network.eval()


class Patches:
    """The digits of one part's writers, from which frames are put together."""

    def __init__(self, split: str) -> None:
        handwriting, side = read_handwriting(), SIDE * FINE
        images = np.flatnonzero(np.isin(handwriting.forms, list(FORMS[split])))
        middle, rest, white = np.full(2, SIDE / 2), np.zeros(2), np.ones(3)
        drawn = np.stack([draw([Digit(i, middle, rest, white)], range(1), (side, side))[0] for i in images.tolist()])
        edge = (side - PATCH * FINE) // 2
        self.patches = torch.from_numpy(drawn[:, None, edge:-edge, edge:-edge, 0]).float() / 255
        self.digits = torch.from_numpy(handwriting.labels[images]).long()

    def frames(
        self, count: int, generator: torch.Generator, kinds: dict[str, float] = KINDS, things: tuple = THINGS
    ) -> tuple[Tensor, Tensor]:
        """Frames (N, 1, SIDE, SIDE) in [0, 1] and the numbers (N,) of the SETS that they show."""
        first, second = torch.randint(len(self.digits), (2, 2 * count), generator=generator)
        kind = torch.multinomial(torch.tensor([*kinds.values()]), 2 * count, True, generator=generator)
        is_a = {name: kind == number for number, name in enumerate(kinds)}
        mixed = is_a["mixed"] & (self.digits[first] != self.digits[second])
        share = uniform(0.35, 0.65, 2 * count, generator) * mixed.view(-1, 1, 1, 1)
        patches = self.patches[first].lerp(self.patches[second], share) * (1 + share)
        pictures = place(patches, torch.where(is_a["bent"], BENT, BEND), generator)
        blurs = blur(pictures, float(uniform(1.8, 4, 1, generator))) * uniform(1, 4, 2 * count, generator)
        pictures = torch.where(is_a["blurred"].view(-1, 1, 1, 1), blurs.clamp(max=1), pictures)
        amount = torch.multinomial(torch.tensor(things).float(), count, True, generator=generator)
        there = torch.stack([amount > 0, amount > 1])  # (2, N)
        fake = mixed | is_a["bent"] | is_a["blurred"]
        digits = self.digits[first].masked_fill(fake, NONE).view(2, count).masked_fill(~there, NONE)
        frames = (pictures.unflatten(0, (2, count)) * there.view(2, count, 1, 1, 1)).amax(dim=0)
        return worsen(frames, generator), number_of_sets()[digits[0], digits[1]]


def number_of_sets() -> Tensor:
    """(11, 11): the number in SETS of two digits, either of which may be NONE."""
    names = [*map(str, range(NONE)), ""]
    return torch.tensor([[SETS.index("".join(sorted(a + b))) for b in names] for a in names])


def uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    """Numbers (count, 1, 1, 1) in [low, high)."""
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)


def place(patches: Tensor, bend: Tensor, generator: torch.Generator) -> Tensor:
    """Patches (M, 1, h, w) somewhere in frames (M, 1, SIDE, SIDE), turned, and moved by a smooth field of that size."""
    count = len(patches)
    matrix = torch.eye(2) + TURN * torch.randn(count, 1, 2, 2, generator=generator)
    centres = uniform(RADIUS, SIDE - RADIUS, 2 * count, generator).view(count, 1, 1, 2)
    axis = (torch.arange(SIDE * FINE) + 0.5) / FINE
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)  # (H, W, 2): x, y
    field = torch.randn(count, 2, 6, 6, generator=generator) * bend.view(-1, 1, 1, 1)
    field = F.interpolate(field, pixels.shape[:2], mode="bicubic").permute(0, 2, 3, 1)
    grid = (pixels + field - centres) @ matrix / (PATCH / 2)
    return F.avg_pool2d(F.grid_sample(patches, grid, align_corners=False), FINE)


def blur(pictures: Tensor, sigma: float) -> Tensor:
    """Pictures (M, 1, H, W) under a Gaussian."""
    reach = int(2.5 * sigma)
    weights = torch.exp(-((torch.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    weights = (weights / weights.sum()).view(1, 1, 1, -1)
    return F.conv2d(F.conv2d(pictures, weights, padding=(0, reach)), weights.mT, padding=(reach, 0))


def worsen(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Frames fainter, softer and noisier, as far as digits can still be read as well as before."""
    count = len(frames)
    soft = frames.lerp(blur(frames, 0.8), uniform(0, 1, count, generator))
    noise = torch.randn(frames.shape, generator=generator) * uniform(0, 0.08, count, generator)
    return (soft * uniform(0.6, 1, count, generator) + noise).clamp(0, 1)


def measure(classifier: DigitClassifier, clips: int) -> dict[str, dict[str, float]]:
    """What `rates` says of single true frames, of votes of three, by part and number of digits, and of fakes."""
    found = {}
    for split in ("train", "val", "test"):
        for digits, colour in ((1, 0), (2, 0), *([(2, 1)] if split == "test" else [])):
            name = f"digits:{10 * clips},frames=3,digits={digits},colour={colour},seed=1"
            source = open_clips(name, 3, SIDE, split=split, windows="first", total_videos=clips)
            batches = torch.arange(clips).split(64)
            read = [read_digits(torch.stack([source[i] for i in batch.tolist()]), classifier) for batch in batches]
            readings, labels = torch.cat(read), [source.label(index) for index in range(clips)]
            shown = f"{split}, {digits} {'coloured ' * colour}digit{'s' * (digits - 1)}"
            found[f"{shown}, one frame"] = rates(readings[:, :1], labels)
            found[f"{shown}, three frames"] = rates(readings, labels)
    generator, writers = torch.Generator().manual_seed(1), Patches("test")
    for kind in FAKES:
        frames, _ = writers.frames(clips, generator, {name: float(name == kind) for name in KINDS}, (0, 1, 0))
        with torch.no_grad():
            _, confidence = vote(classifier(frames)[:, None], [1] * clips)
        found[f"test, {kind}, one frame"] = {"recognised": share(confidence > CONFIDENT)}
    return found


def rates(readings: Tensor, labels: list[str]) -> dict[str, float]:
    """Shares of readings (B, T, 66): right, recognised (confidence above CONFIDENT), and right ones of the latter."""
    right = torch.tensor(seen_in(readings, labels))
    recognised = vote(readings, [len(label) for label in labels])[1] > CONFIDENT
    found = {"right": share(right), "recognised": share(recognised)}
    return found | ({"right_if_recognised": share(right[recognised])} if recognised.any() else {})


def share(values: Tensor) -> float:
    return round(float(values.float().mean()), 4)
