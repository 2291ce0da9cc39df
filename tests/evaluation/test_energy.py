"""The energy score of samples: by hand, no matter of their number, and the lowest for the true distribution."""

import pytest
import torch

from evaluation.paired import EnergyScores
from tests.evaluation.test_runner import run


def constant(*levels) -> torch.Tensor:
    """Samples (1, S, 3, 2, 4, 4) of grey frames, of levels in [0, 1]."""
    return (torch.tensor(levels) * 2 - 1).view(1, -1, 1, 1, 1, 1).expand(1, -1, 3, 2, 4, 4)


def energy(original, samples, **options) -> float:
    scores = EnergyScores(quantize=False, **options)
    scores.update(original, samples)
    return scores.score().mean


def test_by_hand():
    """Three samples: mean distance to the truth minus half the mean distance of pairs, norms over 48 values."""
    norm = 48**0.5
    expected = norm * ((0.2 + 0.1 + 0.3) / 3 - (0.3 + 0.5 + 0.2) / 3 / 2)
    assert energy(constant(0.5)[:, 0], constant(0.3, 0.6, 0.8)) == pytest.approx(expected, rel=1e-5)
    assert energy(constant(0.5)[:, 0], constant(0.3)) == pytest.approx(0.2 * norm, rel=1e-5)


def test_frames_and_rounding():
    """A value per frame, given frames left out; values beyond white count as white."""
    original, sample = constant(0.5)[:, 0].clone(), constant(0.5)[:, 0].clone()
    sample[:, :, 1] = 7.0
    scores = EnergyScores(excluded_frames=0)
    scores.update(original, sample[:, None])
    score = scores.score("first", [0])
    assert (score.definition, score.label, score.mean, score.notes) == ("energy-8bit", "first", 0, {"samples": 1})
    assert scores.score().per_frame == pytest.approx([0, 48**0.5 * 127 / 255], rel=1e-5)
    assert energy(original, sample[:, None], excluded_frames=1) == pytest.approx(0.5 * 48**0.5)


def test_the_true_distribution_wins():
    """Samples like the truth score 1 / sqrt(2) of its mean; with less noise, more, none, or all alike: worse."""
    generator = torch.Generator().manual_seed(0)

    def noise(samples, amount):
        return amount * torch.randn(40, samples, 3, 2, 8, 8, generator=generator)

    truth = noise(1, 0.2)[:, 0]
    true = energy(truth, noise(6, 0.2))
    assert energy(truth, noise(2, 0.2)) == pytest.approx(true, rel=0.02)  # no matter of their number
    assert true == pytest.approx(energy(truth, torch.zeros(40, 1, 3, 2, 8, 8)) / 2**0.5, rel=0.02)
    for other in (noise(6, 0.1), noise(6, 0.4), noise(1, 0.2), noise(1, 0.2).expand(-1, 6, -1, -1, -1, -1)):
        assert energy(truth, other) > 1.05 * true


def test_rows_of_an_evaluation():
    """All samples in one row, every baseline as a single path; alone or beside other metrics."""
    scores = run(samples=3, metrics=("energy",))
    assert {name: score.notes["samples"] for name, score in scores.items()} == {
        "energy score": 3,
        "energy score grey": 1,
    }
    assert len(scores["energy score"].per_clip) == 9 and len(scores["energy score"].per_frame) == 5
    plain = run(metrics=("energy", "psnr"))
    assert scores["energy score"].mean < 0.8 * plain["energy score"].mean < 0.8 * scores["energy score grey"].mean
    assert set(plain) == {"energy score", "energy score grey", "PSNR", "PSNR grey"}
