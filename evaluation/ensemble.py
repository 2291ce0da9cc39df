"""Scores of several samples of what could have followed: the energy score, its form for single values (CRPS), and
whether the samples spread as far as the truth strays.

With samples X, X' and truth y the energy score is E|X - y| - E|X - X'| / 2 (Gneiting and Raftery 2007, section 4.3).
It is proper: its expectation is the lowest for who draws from the true distribution. Neither the mean of what could
follow nor samples too much alike or too different reach it, and best of n rewards whatever spreads far enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from evaluation.metrics import unit_frames
from evaluation.report import Score
from training.distributed import gather_batches

Frames = Sequence[int] | None  # numbers of those that count, 0 being the first after the given ones; None: all
TERMS = ("es-clip", "es-frame", "crps")


def energy_score(truth: Tensor, samples: Tensor, power: float = 1.0, fair: bool = True) -> Tensor:
    """Energy scores (...) of truth (..., D) and samples (n, ..., D), of the Euclidean norm to a power below 2.

    fair: the mean over pairs of different samples, which makes it no matter of n; otherwise over all pairs, each with
    itself among them. With a power above 1 a fair one may be negative. Raises ValueError for a fair one of a single
    sample.
    """
    if fair and len(samples) < 2:
        raise ValueError("a fair energy score needs at least 2 samples")
    skill, spread = energy_terms(*squared_distances(truth, samples), power)
    return skill - spread * plain_share(len(samples), fair)


def crps(truth: Tensor, samples: Tensor, fair: bool = True) -> Tensor:
    """The energy score of every value by itself: truth (...), samples (n, ...). Raises ValueError as `energy_score`."""
    if fair and len(samples) < 2:
        raise ValueError("a fair CRPS needs at least 2 samples")
    skill, spread = crps_terms(truth, samples)
    return skill - spread * plain_share(len(samples), fair)


def plain_share(count: int, fair: bool = False) -> float:
    """What the mean over pairs of different samples has to be multiplied with to be that over all pairs."""
    return 1.0 if fair else (count - 1) / count


def squared_distances(truth: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Squared norms (n, ...) of samples (n, ..., D) minus truth (..., D), and (pairs, ...) of all pairs of samples.

    They add up over parts of a vector, such as the frames of a clip.
    """
    errors = ((samples - truth) ** 2).sum(dim=-1)
    pairs = [((samples[index + 1 :] - sample) ** 2).sum(dim=-1) for index, sample in enumerate(samples)]
    return errors, torch.cat(pairs)


def energy_terms(errors: Tensor, pairs: Tensor, power: float = 1.0) -> tuple[Tensor, Tensor]:
    """E|X - y|^b and E|X - X'|^b / 2 over pairs of different samples, of what `squared_distances` gives.

    The second is 0 of a single sample: that of a model which draws nothing.
    """
    skill = errors.pow(power / 2).mean(dim=0)
    return skill, pairs.pow(power / 2).mean(dim=0) / 2 if len(pairs) else torch.zeros_like(skill)


def crps_terms(truth: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """The same for every value by itself, without a look at all pairs.

    Of sorted values x_(1), ..., x_(n), sum_{i<j} |x_i - x_j| = sum_k (2k - n - 1) x_(k).
    """
    count, skill = len(samples), (samples - truth).abs().mean(dim=0)
    if count < 2:
        return skill, torch.zeros_like(skill)
    weights = 2 * torch.arange(1, count + 1, dtype=samples.dtype, device=samples.device) - count - 1
    spread = torch.tensordot(weights, samples.sort(dim=0).values, dims=1) / (count * (count - 1))
    return skill, spread


def covered(truth: Tensor, samples: Tensor) -> Tensor:
    """Whether truth (...) lies between the lowest and the highest sample (n, ...): its probability, ties being broken
    at random.

    (n - 1) / (n + 1) in the mean, where truth and samples come from one distribution, continuous or not: frames of
    8 bit have many ties, and black ones nothing else.
    """
    equal = (samples == truth).sum(dim=0)
    outside = [(count == 0) / (equal + 1.0) for count in ((samples < truth).sum(dim=0), (samples > truth).sum(dim=0))]
    return 1 - outside[0] - outside[1]


class EnsembleScores:
    """Energy scores per clip and per frame, CRPS ("energy"), and coverage ("coverage"), of any number of batches.

    Norms are over values in [0, 1] and divided by the root of their number, so that sizes compare. A score per clip
    sees whether frames belong together; one per frame is blind to frames that were exchanged between samples, and CRPS
    to what belongs together in a frame, too.
    """

    def __init__(self, quantize: bool = True, excluded_frames: int = 0, metrics: Sequence[str] = ("energy",)) -> None:
        self.quantize, self.excluded_frames, self.metrics, self.samples = quantize, excluded_frames, metrics, 0
        self.batches: list[list[dict[tuple[str, str], list[Tensor]]]] = []  # per batch and clip: (part, id) -> terms

    def update(self, original: Tensor, samples: Tensor, parts: Mapping[str, Frames] | None = None) -> None:
        """Clips (B, 3, T, H, W) in [-1, 1], samples (B, S, 3, T, H, W) of each, and the frames that have scores of
        their own, by name.
        """
        start, self.samples = self.excluded_frames, samples.shape[1]
        truths = unit_frames(original[:, :, start:], (-1.0, 1.0), self.quantize)
        rows = []
        for truth, drawn in zip(truths, samples, strict=True):
            drawn = unit_frames(drawn[:, :, start:], (-1.0, 1.0), self.quantize)
            rows.append(self._clip(truth.flatten(1), drawn.flatten(2), parts or {"": None}))
        self.batches.append(rows)

    def _clip(self, truth: Tensor, samples: Tensor, parts: Mapping[str, Frames]) -> dict[tuple[str, str], list[Tensor]]:
        """Of truth (T, values) and samples (S, T, values): skill and half spread, each (t,) or (1,) of a whole clip."""
        found, values = {}, truth.shape[-1]
        if "energy" in self.metrics:
            errors, pairs = squared_distances(truth, samples)
            single = [term.mean(dim=-1) for term in crps_terms(truth, samples)]
            for part, frames in parts.items():
                own = list(range(len(truth)) if frames is None else frames)
                whole = energy_terms(errors[:, own].sum(dim=1), pairs[:, own].sum(dim=1))
                found[part, "es-clip"] = [term[None] / (values * len(own)) ** 0.5 for term in whole]
                framewise = energy_terms(errors[:, own], pairs[:, own])
                found[part, "es-frame"] = [term / values**0.5 for term in framewise]
                found[part, "crps"] = [term[own] for term in single]
        if "coverage" in self.metrics and len(samples) > 1:
            share = covered(truth, samples).mean(dim=-1)
            for part, frames in parts.items():
                found[part, "coverage"] = [share if frames is None else share[list(frames)]]
        return {key: [term.cpu() for term in terms] for key, terms in found.items()}

    def over_processes(self) -> EnsembleScores:
        """The scores of all processes, which deal the batches out in turn: a new object."""
        total = EnsembleScores(self.quantize, self.excluded_frames, self.metrics)
        found = gather_batches([(self.samples, batch) for batch in self.batches])
        total.samples, total.batches = max((samples for samples, _ in found), default=0), [batch for _, batch in found]
        return total

    def scores(self, label: str = "", part: str = "") -> list[Score]:
        """One Score per kind over all clips, of the frames of a part."""
        clips = [clip for batch in self.batches for clip in batch]
        kinds = dict.fromkeys(kind for clip in clips for name, kind in clip if name == part)
        return [self._score(kind, [clip[part, kind] for clip in clips], label) for kind in kinds]

    def _score(self, kind: str, clips: list[list[Tensor]], label: str) -> Score:
        definition = kind if self.quantize else f"{kind}-raw"
        values = [terms[0] - terms[1] if len(terms) > 1 else terms[0] for terms in clips]
        notes: dict[str, Any] = {"samples": self.samples}
        if kind in TERMS:
            skill, spread = (fmean(terms[place].mean().item() for terms in clips) for place in (0, 1))
            plain = skill - spread * plain_share(self.samples)
            notes |= {"form": "fair", "skill": skill, "half_spread": spread, "plain": plain}
        else:
            notes["calibrated"] = (self.samples - 1) / (self.samples + 1)
        score = Score(definition, [value.mean().item() for value in values], label, notes=notes)
        if kind != "es-clip" and len({len(value) for value in values}) == 1:
            score.per_frame = torch.stack(values).mean(dim=0).tolist()
        return score
