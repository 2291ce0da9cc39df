"""Energy score, CRPS and coverage of samples: by hand, no matter of their number, best for the true distribution."""

import math

import numpy as np
import pytest
import torch

from evaluation.ensemble import EnsembleScores, covered, crps, energy_score
from evaluation.protocol import Protocol
from evaluation.runner import evaluate
from evaluation.subject import Subject
from tests.evaluation.test_runner import run
from tests.training import processes
from training import distributed
from videodata import open_clips
from videodata.errors import UserError

SAMPLES = torch.from_numpy(np.random.RandomState(2).rand(5, 4, 12))  # (n, T, pixels)
TRUTH = torch.from_numpy(np.random.RandomState(3).rand(4, 12))
FRAMES = {
    True: [0.57125810932, 0.59965390727, 0.85062895880, 0.50583055498],
    False: [0.72617947223, 0.73744360685, 0.97946252759, 0.64471380123],
}


def test_computed_elsewhere_per_clip():
    """Norm over all frames, powers 1, 1.5 and 2, fair and plain."""
    for power, fair, plain in ((1, 1.2735231028, 1.5573159683), (1.5, 2.0246899729, 2.5037319174)):
        for form, expected in ((True, fair), (False, plain)):
            found = energy_score(TRUTH.flatten(), SAMPLES.flatten(1), power, form)
            assert found.item() == pytest.approx(expected, rel=1e-9)
    squared = energy_score(TRUTH.flatten(), SAMPLES.flatten(1), 2).item()
    flat = SAMPLES.flatten(1)
    by_moments = ((flat.mean(0) - TRUTH.flatten()) ** 2).sum() - torch.cov(flat.T).trace() / 5
    assert squared == pytest.approx(3.2091726437, rel=1e-9) and squared == pytest.approx(by_moments.item(), rel=1e-12)


@pytest.mark.parametrize("fair", [True, False])
def test_computed_elsewhere_per_frame_and_value(fair):
    frames = energy_score(TRUTH, SAMPLES, fair=fair)
    assert frames.tolist() == pytest.approx(FRAMES[fair], rel=1e-9)
    assert frames.mean().item() == pytest.approx(0.63184288259 if fair else 0.77194985198, rel=1e-9)
    values = crps(TRUTH, SAMPLES, fair)
    assert values.mean().item() == pytest.approx(0.14596876403 if fair else 0.17979033618, rel=1e-9)
    one_by_one = energy_score(TRUTH[..., None], SAMPLES[..., None], fair=fair)  # all pairs, not the sorted form
    assert torch.allclose(values, one_by_one, rtol=0, atol=1e-14)


def test_a_single_sample():
    """Its plain form is its distance; a fair one needs a pair."""
    assert torch.equal(crps(TRUTH, SAMPLES[:1], fair=False), (SAMPLES[0] - TRUTH).abs())
    for score in (energy_score, crps):
        with pytest.raises(ValueError, match="at least 2 samples"):
            score(TRUTH, SAMPLES[:1])


def test_a_calibrated_ensemble():
    """Five samples of a standard normal in three dimensions, truth likewise: 2 / sqrt(pi), half the mean distance."""
    draws = torch.randn(6, 20000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for fair, expected in ((True, 2 / math.sqrt(math.pi)), (False, 1.2 * 2 / math.sqrt(math.pi))):
        scores = energy_score(draws[0], draws[1:], fair=fair)
        error = scores.std().item() / 20000**0.5
        assert error < 0.006 and scores.mean().item() == pytest.approx(expected, abs=4 * error)
    assert energy_score(draws[0], draws[1:]).min() >= 0  # by the triangle inequality; of powers above 1
    assert energy_score(draws[0], draws[1:], 1.8).min() < 0  # single draws may be below 0, and are not clamped


def constant(*levels) -> torch.Tensor:
    """Samples (1, S, 3, 2, 4, 4) of grey frames, of levels in [0, 1]."""
    return (torch.tensor(levels) * 2 - 1).view(1, -1, 1, 1, 1, 1).expand(1, -1, 3, 2, 4, 4)


def scores_of(original, samples, parts=None, label="", part="", **options) -> dict:
    collected = EnsembleScores(**{"quantize": False, **options})
    collected.update(original, samples, parts)
    return {score.definition: score for score in collected.scores(label, part)}


def test_grey_clips_by_hand():
    """Mean distance to the truth minus half the mean distance of pairs, in levels whatever the number of pixels."""
    found = scores_of(constant(0.5)[:, 0], constant(0.3, 0.6, 0.8))
    skill, spread = (0.2 + 0.1 + 0.3) / 3, (0.3 + 0.5 + 0.2) / 3 / 2
    assert set(found) == {"es-clip-raw", "es-frame-raw", "crps-raw"}
    for score in found.values():
        assert score.mean == pytest.approx(skill - spread, rel=1e-5)
        assert (score.notes["skill"], score.notes["half_spread"]) == pytest.approx((skill, spread), rel=1e-5)
        assert score.notes["plain"] == pytest.approx(skill - spread * 2 / 3, rel=1e-5)
    assert found["es-clip-raw"].per_frame is None and len(found["es-frame-raw"].per_frame) == 2
    single = scores_of(constant(0.5)[:, 0], constant(0.3))
    assert [score.mean for score in single.values()] == pytest.approx([0.2] * 3, rel=1e-5)
    assert single["crps-raw"].notes["half_spread"] == 0


def test_frames_and_rounding():
    """A value per frame, given frames left out; values beyond white count as white; parts by their names."""
    original, sample = constant(0.5)[:, 0].clone(), constant(0.5)[:, 0].clone()
    sample[:, :, 1] = 7.0
    found = scores_of(original, sample[:, None], {"": None, "first": [0]}, "near", "first", quantize=True)
    assert {(name, score.label, score.mean) for name, score in found.items()} == {
        ("es-clip", "near", 0), ("es-frame", "near", 0), ("crps", "near", 0),
    }  # fmt: skip
    whole = scores_of(original, sample[:, None], {"": None, "first": [0]}, quantize=True)
    assert whole["es-frame"].per_frame == pytest.approx([0, 127 / 255], rel=1e-5)
    assert whole["es-clip"].mean == pytest.approx(127 / 255 / 2**0.5, rel=1e-5)  # root of the mean of squares
    assert scores_of(original, sample[:, None], excluded_frames=1)["es-clip-raw"].mean == pytest.approx(0.5)


def noise(count, samples, amount, seed, shape=(3, 2, 8, 8)):
    return amount * torch.randn(count, samples, *shape, generator=torch.Generator().manual_seed(seed))


def test_the_true_distribution_wins():
    """Samples like the truth score 1 / sqrt(2) of its mean; with less noise, more, none, or all alike: worse."""
    truth = noise(40, 1, 0.2, 0)[:, 0]
    true = {name: score.mean for name, score in scores_of(truth, noise(40, 6, 0.2, 1)).items()}
    two = scores_of(truth, noise(40, 2, 0.2, 2))
    mean = scores_of(truth, torch.zeros(40, 1, 3, 2, 8, 8))
    others = [
        noise(40, 6, 0.1, 3),
        noise(40, 6, 0.4, 4),
        noise(40, 1, 0.2, 5),
        noise(40, 1, 0.2, 6).repeat_interleave(6, 1),
    ]
    others = [scores_of(truth, other) for other in others]
    for name, value in true.items():
        assert two[name].mean == pytest.approx(value, rel=0.02)  # no matter of their number
        assert value == pytest.approx(mean[name].mean / 2**0.5, rel=0.02)
        assert all(other[name].mean > 1.05 * value for other in others)
    calibrated = scores_of(truth, noise(40, 6, 0.2, 1))["es-clip-raw"].notes
    assert calibrated["half_spread"] / calibrated["skill"] == pytest.approx(0.5, abs=0.01)


def test_what_each_score_sees():
    """Truth and samples are grey and keep their level. Samples whose frames are exchanged are worse for the score of
    clips alone, those whose pixels are exchanged for CRPS alone no worse.
    """
    truth, level = (
        noise(400, samples, 0.2, seed, (1, 1, 1, 1)).expand(-1, -1, 3, 4, 4, 4) for samples, seed in ((1, 0), (8, 1))
    )
    order = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(t)) for t in range(4)])
    frames = torch.stack([level[:, order[t], :, t] for t in range(4)], dim=3)
    places = torch.rand(8, 3 * 4 * 16, generator=torch.Generator().manual_seed(9)).argsort(dim=0)
    pixels = level.flatten(2).gather(1, places[None].expand(400, -1, -1)).view_as(level)
    found = [scores_of(truth[:, 0], samples) for samples in (level, frames, pixels)]
    clip, frame, single = ([scores[f"{name}-raw"].mean for scores in found] for name in ("es-clip", "es-frame", "crps"))
    assert single[1] == pytest.approx(single[0]) and single[2] == pytest.approx(single[0])
    assert frame[1] == pytest.approx(frame[0]) and frame[2] > 1.05 * frame[0]
    assert clip[1] > 1.05 * clip[0] and clip[2] > clip[1]


@pytest.mark.parametrize("levels", [0, 2, 5])
def test_coverage_of_a_calibrated_ensemble(levels):
    """(n - 1) / (n + 1), of continuous values and of few levels; too alike covers less, too different more."""
    draws = torch.randn(5, 50000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if levels:
        draws = (draws * levels / 2).round()
    share = covered(draws[0], draws[1:])
    assert share.mean().item() == pytest.approx(3 / 5, abs=4 * 0.5 / 50000**0.5)
    assert covered(draws[0], 0.3 * draws[1:]).mean() < 0.45 and covered(draws[0], 3 * draws[1:]).mean() > 0.7


def test_coverage_of_an_evaluation():
    """Per frame, of several samples; black frames that are known to be black neither add nor take."""
    score = scores_of(torch.full((2, 3, 4, 8, 8), -1.0), torch.full((2, 3, 3, 4, 8, 8), -1.0), metrics=("coverage",))
    assert score["coverage-raw"].per_frame == pytest.approx([0.5] * 4)
    assert score["coverage-raw"].notes == {"samples": 3, "calibrated": 0.5}
    found = run(samples=3, metrics=("coverage",))
    assert set(found) == {"coverage"} and len(found["coverage"].per_clip) == 9
    assert not scores_of(constant(0.5)[:, 0], constant(0.3), metrics=("coverage",))
    with pytest.raises(UserError, match="coverage needs at least two samples"):
        run(metrics=("coverage",))


def test_rows_of_an_evaluation():
    """All samples in one row, their mean and every baseline as a single path; alone or beside other metrics; terms
    beneath.
    """
    scores = run(samples=3, metrics=("energy",))
    names, samples = ("ES-clip", "ES-frame", "CRPS"), {"": 3, " grey": 1, " mean of 3 samples": 1}
    assert {name: score.notes["samples"] for name, score in scores.items()} == {
        f"{name}{row}": count for row, count in samples.items() for name in names
    }
    plain = run(metrics=("energy", "psnr"))
    rows = {f"{name}{row}" for row in ("", " grey") for name in names}
    assert set(plain) == {*rows, "PSNR", "PSNR grey"}
    for name in names:
        score = scores[name]
        assert len(score.per_clip) == 9 and score.mean < 0.8 * plain[name].mean < 0.8 * scores[f"{name} grey"].mean
        assert score.mean == pytest.approx(score.notes["skill"] - score.notes["half_spread"])
        assert score.standard_error == pytest.approx(np.std(score.per_clip, ddof=1) / 3)
        (remark,) = score.remarks
        assert remark.startswith(f"{name}: ") and "(3 samples)" in remark and not plain[name].remarks
    assert len(scores["ES-frame"].per_frame) == 5


class InParts(Subject):
    """Made of noise, with rows for the first frames and those after them."""

    random = True

    def make(self, batch):
        return torch.rand(batch.clips.shape, generator=torch.Generator().manual_seed(batch.seed)) * 2 - 1

    def parts(self, frames):
        return {"": None, "near": range(2), "far": range(2, frames)}


def test_parts_have_rows_of_their_own():
    """A score per frame is the mean of its parts; one per clip is of the frames of the part together."""
    protocol = Protocol(metrics=("energy",), samples=2, batch_size=9)
    found = {s.name: s for s in evaluate(InParts(), lambda seed: open_clips("shapes:9,size=24", 6, 24), protocol)}
    for name in ("ES-frame", "CRPS"):
        near, far, whole = (found[f"{name}{part}"].mean for part in (" near", " far", ""))
        assert whole == pytest.approx((2 * near + 4 * far) / 6)
    assert found["ES-clip near"].mean != pytest.approx(found["ES-clip"].mean)


def of_a_share(original, samples, parts):
    collected = EnsembleScores(metrics=("energy", "coverage"))
    if distributed.rank() < len(original):
        share = slice(distributed.rank(), None, distributed.world_size())
        collected.update(original[share], samples[share], parts)
    total = collected.over_processes()
    return {f"{score.definition}{part}": score.per_clip for part in parts for score in total.scores(part=part)}


@pytest.mark.parametrize("clips", [2, 1])
def test_two_processes_equal_one(tmp_path, clips):
    """Also where one of them has no clip."""
    parts = {"": None, "first": [0]}
    arguments = noise(clips, 1, 0.3, 0)[:, 0], noise(clips, 4, 0.3, 1), parts
    one = of_a_share(*arguments)
    assert len(one) == 8
    for found in processes.launch(of_a_share, 2, tmp_path, *arguments):
        assert found == {name: pytest.approx(values) for name, values in one.items()}
