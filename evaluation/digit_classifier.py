"""Which handwritten digits a frame shows: a small network, trained on drawn digits, that generated clips are judged by.

The judge knows sets of at most two digits: none, "0" to "9", and "00" to "99" in ascending order, as the labels of the
generated digits. It is trained by `evaluation.digit_training` (scripts/train_digit_classifier.py), also on blobs,
blurred, bent and mixed digits that it has to call none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations_with_replacement
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.metrics import unit_frames
from evaluation.report import Score
from training.distributed import gather_batches
from videodata.errors import UserError

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "digit_classifier.safetensors"
SIDE = 32  # pixels of the shorter side that the network looks at
WIDTHS = (24, 48, 64, 112)
FRAMES_AT_A_TIME = 256
CONFIDENT = 0.9
IDENTITY_FRAMES = (4, 12)  # of those that were made after the given ones, counted from 1
IDENTITY_VOTES = 3  # that frame and those before it: where digits cross, one frame is not enough
SETS = ("", *"0123456789", *map("".join, combinations_with_replacement("0123456789", 2)))  # 66


class DigitClassifier(nn.Module):
    """Grey frames (N, 1, H, W) in [0, 1] -> log-probabilities (N, 66) of SETS.

    It says how well none, one and two of each digit fit; a set fits as well as its ten counts together do. So what is
    learned of a digit holds in all pairs, and the 55 pairs need not be learned one by one.
    """

    def __init__(self) -> None:
        super().__init__()
        layers, before = [], 1
        for width, stride in zip(WIDTHS, (1, 2, 1, 2), strict=True):
            layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.features = nn.Sequential(*layers, nn.Conv2d(before, before, 3, 1, 1), nn.ReLU())
        self.head = nn.Linear(2 * before, 30)
        counts = torch.tensor([[name.count(digit) for digit in "0123456789"] for name in SETS])
        self.register_buffer("members", F.one_hot(counts, 3).flatten(1).float(), persistent=False)  # (66, 30)

    def forward(self, frames: Tensor) -> Tensor:
        found = self.features(frames)
        pooled = torch.cat([found.amax(dim=(2, 3)), found.mean(dim=(2, 3))], dim=1)
        return F.log_softmax(self.head(pooled) @ self.members.T, dim=-1)


@cache
def open_classifier(path: Path = WEIGHTS) -> DigitClassifier:
    """The trained classifier. Raises UserError where its weights are not there."""
    from training.checkpoint import read_tensors, strict_load

    if not path.is_file():
        raise UserError(f"{path}: there is no digit classifier; python scripts/train_digit_classifier.py makes it")
    network = DigitClassifier()
    strict_load(network, read_tensors(path), path)
    return network.eval().requires_grad_(False)


def grey_frames(clips: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W) in [-1, 1] as the network's frames (B * T, 1, h, w) in [0, 1], the shorter side SIDE.

    The brightest of the three channels: coloured digits, of which one is full, look like white ones.
    """
    grey = unit_frames(clips, (-1.0, 1.0), quantize=True).float().amax(dim=2).flatten(0, 1)[:, None]
    height, width = grey.shape[-2:]
    if min(height, width) == SIDE:
        return grey
    scale = SIDE / min(height, width)
    return F.interpolate(grey, (round(height * scale), round(width * scale)), mode="area")


@torch.no_grad()
def read_digits(clips: Tensor, classifier: DigitClassifier) -> Tensor:
    """Log-probabilities (B, T, 66) of SETS in each frame of clips (B, 3, T, H, W) in [-1, 1]."""
    parts = grey_frames(clips).split(FRAMES_AT_A_TIME)
    return torch.cat([classifier(part) for part in parts]).unflatten(0, (len(clips), -1))


def vote(readings: Tensor, digits: Sequence[int | None]) -> tuple[list[str], Tensor]:
    """Of readings (B, T, 66): the set of so many digits (None: any number) that fits all frames best, and its
    confidence (B,), in which sets of other numbers and "none" have their share.

    Probabilities of the frames are multiplied, to the power 1 / T: frames in which digits cross say little, digits that
    turn into others contradict themselves, and many frames give no more confidence than one.
    """
    sizes = torch.tensor([len(name) for name in SETS])
    allowed = torch.stack([sizes == count if count else sizes > 0 for count in digits])
    fits = readings.mean(dim=1).softmax(dim=-1)
    confidence, best = fits.where(allowed, 0).max(dim=-1)
    return [SETS[number] for number in best.tolist()], confidence


def check_labels(labels: Sequence[str | None]) -> None:
    """Raises UserError for a label that is not one or two digits in ascending order."""
    for label in labels:
        if label not in SETS[1:]:
            raise UserError(f"label {label!r} is not one or two digits, such as 7 or 07: only those are recognised")


class DigitScores:
    """Whether clips show the digits that they should, for the true clips ("true clips") and for those that were made.

    identity: in frames IDENTITY_FRAMES after the given ones, or the last where there are fewer, the digits of the label
    are seen. class-agreement: over all these frames the class that was asked for is. Both know how many digits there
    are. recognised: as many as the label has (any, where there is none) are seen with confidence above CONFIDENT.
    """

    def __init__(self, metrics: Sequence[str], classifier: DigitClassifier, context: int = 0) -> None:
        self.metrics, self.classifier, self.context = metrics, classifier, context
        self.batches: list[dict[tuple[str, str], list[float]]] = []  # per batch: (definition, label) -> one per clip

    def update(self, clips: Tensor, made: Tensor, labels: Sequence[str | None], asked: Sequence[str | None]) -> None:
        """Clips (B, 3, T, H, W), samples (B, S, 3, T, H, W) of each, labels, and the classes that were asked for."""
        samples = [self._judge(sample, labels, asked, "") for sample in made.unbind(1)]
        means = {
            key: [fmean(row) for row in zip(*(found[key] for found in samples), strict=True)] for key in samples[0]
        }
        self.batches.append(means | self._judge(clips, labels, labels, "true clips"))

    def _judge(
        self, clips: Tensor, labels: Sequence[str | None], asked: Sequence[str | None], row: str
    ) -> dict[tuple[str, str], list[float]]:
        """(definition, label of its row) -> 0 or 1 for each clip."""
        readings, found = read_digits(clips[:, :, self.context :], self.classifier), {}
        if "identity" in self.metrics:
            for frame in frames_to_identify(readings.shape[1]):
                label = ", ".join(filter(None, (f"frame {frame}", row)))
                found["digit-identity", label] = seen_in(readings[:, max(0, frame - IDENTITY_VOTES) : frame], labels)
        if "class-agreement" in self.metrics:
            found["digit-agreement", row] = seen_in(readings, asked)
        if "recognised" in self.metrics:
            _, confidence = vote(readings, [label and len(label) for label in labels])
            found["digit-recognised", row] = (confidence > CONFIDENT).float().tolist()
        return found

    def scores(self) -> list[Score]:
        """Over the clips of all processes, which deal the batches out in turn."""
        found: dict[tuple[str, str], list[float]] = {}
        for batch in gather_batches(self.batches):
            for key, values in batch.items():
                found.setdefault(key, []).extend(values)
        order = sorted(found, key=lambda key: ("true" in key[1], key[0]))
        return [Score(definition, found[definition, label], label) for definition, label in order]


def frames_to_identify(count: int) -> list[int]:
    """Of so many frames after the given ones those whose digits are asked for, counted from 1."""
    return [number for number in IDENTITY_FRAMES if number <= count] or [count]


def seen_in(readings: Tensor, names: Sequence[str]) -> list[float]:
    """1 for each clip whose frames, of readings (B, T, 66), show the digits of its name better than as many others."""
    seen, _ = vote(readings, [len(name) for name in names])
    return [float(one == other) for one, other in zip(seen, names, strict=True)]
