"""What the metrics of generated clips say without any model: of true clips, and of such that are spoilt in known ways;
and what they say of trained predictors among these.

    python benchmarks/spoilt_clips.py digits
    python benchmarks/spoilt_clips.py shapes
    python benchmarks/spoilt_clips.py digits --data digits:4000,frames=16,size=32,colour=1 --part val --clips 256 \
        --ways true repeated noise --checkpoints river-digits

The first four of sixteen frames are given. `true`: the clips as they are; `soft`, `blurred`: means of 3x3 and
of 5x5 pixels, of which the second leaves little of a stroke; `jitter`: each frame is shifted by up to two pixels along
both axes; `changed`: half way, the frames of another clip follow; `repeated`: the last given frame; `noise`.

FVD is the distance from as many other true clips of the part, so that true clips have one, too: no row is compared with
the very clips that it was made of. FVD, motion and both identities are of one sample of each clip, the energy score is
of five of what is drawn, and of the one clip of what is not.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from evaluation.factors import KINDS
from evaluation.protocol import Protocol
from evaluation.report import Score, format_table
from evaluation.runner import evaluate, trained_on_of
from evaluation.subject import Batch, Subject
from flow_pred.files import load_model
from flow_pred.predict import plan_for
from flow_pred.scores import Predictions
from training.cli import make_parser, opened, positive_int, run
from training.randomness import SampleNoise
from videodata.clips import ClipDataset, open_clips

CONTEXT, FRAMES, SIZE = 4, 16, 32
SAMPLES = 5  # of the energy score
WAYS = ("true", "soft", "blurred", "jitter", "changed", "repeated", "noise")
SEED = re.compile(r",seed=(\d+)")


class Spoilt(Subject):
    """Continuations that are the true ones but for one fault. others: clips that `changed` goes on with."""

    context = CONTEXT

    def __init__(self, way: str, others: Dataset) -> None:
        self.way, self.others, self.random = way, others, way == "noise"

    def make(self, batch: Batch) -> Tensor:
        others = torch.stack([self.others[item] for item in batch.items])
        noise = SampleNoise(batch.seed, batch.items)
        later = getattr(self, self.way)(batch.clips[:, :, CONTEXT:], batch.clips, others, noise)
        return torch.cat([batch.clips[:, :, :CONTEXT], later], dim=2)

    def true(self, later: Tensor, *_: object) -> Tensor:
        return later

    def soft(self, later: Tensor, *_: object, reach: int = 1) -> Tensor:
        padded = F.pad(later, (reach,) * 4 + (0, 0), mode="replicate")
        return F.avg_pool3d(padded, (1, 2 * reach + 1, 2 * reach + 1), 1)

    def blurred(self, later: Tensor, *_: object) -> Tensor:
        return self.soft(later, reach=2)

    def jitter(self, later: Tensor, clips: Tensor, others: Tensor, noise: SampleNoise) -> Tensor:
        shifts = noise.integers(5, later.shape[2], 2) - 2
        shaken = [
            torch.stack([frame.roll(shift, (-2, -1)) for frame, shift in zip(clip.unbind(1), own, strict=True)], dim=1)
            for clip, own in zip(later, shifts.tolist(), strict=True)
        ]
        return torch.stack(shaken)

    def changed(self, later: Tensor, clips: Tensor, others: Tensor, *_: object) -> Tensor:
        half = later.shape[2] // 2
        return torch.cat([later[:, :, :half], others[:, :, CONTEXT + half :]], dim=2)

    def repeated(self, later: Tensor, clips: Tensor, *_: object) -> Tensor:
        return clips[:, :, CONTEXT - 1 : CONTEXT].expand_as(later)

    def noise(self, later: Tensor, clips: Tensor, others: Tensor, noise: SampleNoise) -> Tensor:
        return (noise.normal(*later.shape[1:]) * 0.5).clamp(-1, 1)


def predictor(checkpoint: str) -> Subject:
    """A trained RIVER or neural SDE, by its name in weights/ or its run folder. Raises UserError."""
    loaded = load_model(opened(checkpoint))
    plan = plan_for(loaded.predictor, loaded.config, context=CONTEXT, frames=FRAMES - CONTEXT)
    subject = Predictions(loaded.predictor, plan, torch.device("cpu"))
    subject.runs = loaded.runs
    return subject


def two_samples(kind: str, count: int, data: str | None = None, part: str = "test") -> list[ClipDataset]:
    """Clips of a part, and as many others of it: those of the source with the next seed."""
    data = data or f"{kind}:{11 * count},frames={FRAMES},size={SIZE},seed=3"
    found = SEED.search(data)
    other = f"{SEED.sub('', data)},seed={int(found[1]) + 1 if found else 1}"
    return [open_clips(name, FRAMES, SIZE, split=part, total_videos=count) for name in (data, other)]


def measure(subject: Subject, pair: Sequence[Dataset], metrics: tuple[str, ...], samples: int = 1) -> dict[str, Score]:
    """Scores by their names of what is made of the first clips, distances from the second."""
    protocol = Protocol(metrics=metrics, batch_size=32, samples=samples)
    found = evaluate(subject, lambda seed: pair[0], protocol, open_real=lambda seed: pair[1])
    return {score.name: score for score in found}


def scores(way: str, pair: Sequence[Dataset], metrics: tuple[str, ...]) -> dict[str, Score]:
    """Of the first clips, spoilt."""
    return measure(Spoilt(way, pair[1]), pair, metrics)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("kind", choices=KINDS, help="what the clips show")
    parser.add_argument("--clips", type=positive_int, default=256, help="on each side, at least 128")
    parser.add_argument("--data", help="the source (default: one of KIND that nothing here was trained on)")
    parser.add_argument("--part", choices=("train", "val", "test"), default="test", help="of it")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="of spoiling clips")
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        default=[],
        metavar="RUN",
        help="RIVER or neural SDE: names of weights/, run folders",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    args = build_parser().parse_args(argv)
    pair = two_samples(args.kind, args.clips, args.data, args.part)
    subjects: dict[str, Subject] = {way: Spoilt(way, pair[1]) for way in args.ways}
    subjects |= {Path(name).name: predictor(name) for name in args.checkpoints}
    metrics = (f"fvd-{args.kind}", "motion", "identity-in-place", *(["identity"] if args.kind == "digits" else []))
    columns = (f"FVD-{args.kind}", "motion", "identity frame 12", "identity in place frame 12", "ES-clip")
    rows = [["", *columns]]
    for name, subject in subjects.items():
        found = measure(subject, pair, metrics)
        found |= measure(subject, pair, ("energy",), SAMPLES if subject.random else 1)
        rows.append([name, *(f"{found[column].mean:.3g}" if column in found else "" for column in columns)])
        if seen := trained_on_of(subject.runs, pair[0]):
            print(f"WARNING: {name} was trained on {seen} of these clips")
    print(format_table(rows))


if __name__ == "__main__":
    run(main)
