"""Distances of sets in evaluations: unequal sizes, all samples of a clip, features that are shared, divisors, files."""

import json

import numpy as np
import pytest
import torch

from evaluation import fvd
from evaluation.frechet import GaussianStatistics, frechet_distance
from evaluation.mmd import KeptFeatures, SecondMoments, jedi, jedi_unbiased, kvd
from evaluation.networks import RandomFeatures
from evaluation.report import Report, definition_of
from evaluation.set_definitions import set_definition
from evaluation.set_distance import FVD, KVD, JEDi, KVDOfBlocks
from scripts import evaluate
from tests.evaluation.test_runner import DATA, RANDOM, Noisy, run
from tests.training import processes
from training import distributed
from training.randomness import SampleNoise, derive_seed
from videodata import UserError, open_clips, write_video

SETS = {**RANDOM, "metrics": ("fvd", "kvd", "jedi")}


def both_sets(samples):
    """Features of the real clips and of all samples of `Noisy`, by the small random network."""
    clips, network = open_clips(DATA, 6, 24), RandomFeatures(torch.device("cpu"))
    real = torch.stack([clips[index] for index in range(9)])
    made = []
    for k in range(samples):
        noise = SampleNoise(derive_seed(0, "sample", k) if k else 0, range(9)).normal(*real.shape[1:])
        noise[:, :, :1] = 0
        made.append(real + 0.1 * noise)
    distance = FVD(network)
    return distance.features(real), torch.cat([distance.features(part) for part in made])


def test_all_samples_are_in_the_set_of_what_was_made():
    """Nine real clips against 27 samples: the values of the features themselves, and both sizes in the ids."""
    found = run(samples=3, **SETS)
    sides = both_sets(3)

    def of(kind):
        return [kind(32).update(features) for features in sides]

    expected = {
        "FVD-RANDOM": frechet_distance(*of(GaussianStatistics)), "KVD-RANDOM": kvd(*of(KeptFeatures)),
        "JEDi-RANDOM": jedi(*of(SecondMoments)), "JEDi-RANDOM unbiased": jedi_unbiased(*of(SecondMoments)),
    }  # fmt: skip
    assert {name: score.mean for name, score in found.items()} == pytest.approx(expected, rel=1e-6)
    assert {score.definition for score in found.values()} == {
        "fvd-RANDOM-sq32hp-pm1-6f-9x27-ddof1-8bit", "kvd-RANDOM-sq32hp-pm1-6f-9x27-8bit",
        "jedi-RANDOM-6f-9x27", "jedi-unbiased-RANDOM-6f-9x27",
    }  # fmt: skip
    notes = found["FVD-RANDOM"].notes
    assert notes["sizes"] == {"real": 9, "generated": 27} and notes["samples_of_each_clip"] == 3
    assert {key: notes["half_sample"][key] for key in ("real", "generated")} == {"real": 5, "generated": 14}


def test_a_clip_goes_through_a_network_once(monkeypatch):
    """FVD and KVD share their features; JEDi has others."""
    calls, compute = [], RandomFeatures.__call__
    monkeypatch.setattr(RandomFeatures, "__call__", lambda self, x: calls.append(len(x)) or compute(self, x))
    run(samples=2, **{**SETS, "metrics": ("fvd", "kvd")})
    assert sum(calls) == 9 + 18
    run(samples=2, **SETS)
    assert sum(calls) == 3 * (9 + 18)


def shared():
    found = run(samples=2, batch_size=2, **SETS)
    return {name: score.mean for name, score in found.items()}


def test_two_processes_equal_one(tmp_path):
    """Nine clips in five batches: the shares differ."""
    one = shared()
    for found in processes.launch(shared, 2, tmp_path):
        assert found == pytest.approx(one, rel=1e-9)


def test_divisor_and_sizes_of_the_function():
    """Refused unless asked for; n in place of n - 1 takes off what it should from equal means."""
    network = RandomFeatures(torch.device("cpu"))
    real = torch.rand(12, 3, 4, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with pytest.raises(UserError, match="12 real and 5 generated clips: FVD compares .* --unequal_sets"):
        fvd(real, real[:5], extractor=network, force=True)
    found = [fvd(real, real[:5], extractor=network, force=True, unequal=True, divisor=d) for d in ("n-1", "n")]
    assert found[0] > found[1] > 0
    score = run(divisor="n", **RANDOM)["FVD-RANDOM"]
    assert (
        score.definition == "fvd-RANDOM-sq32hp-pm1-6f-9-ddof0-8bit"
        and "covariance over n," in score.to_dict()["meaning"]
    )
    assert score.mean == pytest.approx(run(**RANDOM)["FVD-RANDOM"].mean, rel=0.2)


def test_ids_say_what_moves_the_number():
    """File, size, range, frames, both sizes, divisor and rounding, composed and read again."""
    network = "i3d-bec6519f-sq224hp-pm1"
    name = set_definition("fvd", network, 16, (256, 25600), True, 1)
    assert name == "fvd-i3d-bec6519f-sq224hp-pm1-16f-256x25600-ddof1-8bit"
    text = definition_of(name).text
    for part in ("n - 1", "bec6519f", "centre squares at 224", "[-1, 1]", "256 real and 25600 generated", "16 frames"):
        assert part in text
    kernel = definition_of(set_definition("kvd", network, 16, (64, 64), False))
    assert kernel.name == "KVD" and "not scaled" in kernel.text and "64 clips of 16 frames on each side" in kernel.text
    ids = {set_definition("fvd", n, f, s, q, d) for n in (network, "i3d-00000000-sq224hp-pm1") for f in (16, 32)
           for s in ((2, 2), (2, 3)) for q in (True, False) for d in (0, 1)}  # fmt: skip
    assert len(ids) == 32 and all(definition_of(one).name == "FVD" for one in ids)


def test_what_jedi_refuses_and_warns_of(caplog):
    """Few clips before the work; the table shows both estimates and that of half of the clips."""
    subject = Noisy()
    with pytest.raises(UserError, match="JEDi of 9 clips"):
        run(subject, metrics=("jedi",), allow_random_features=True)
    assert subject.seen == 0
    scores = run(subject, **SETS)
    assert "JEDi of 9 clips: tables have at least 2048" in caplog.text
    report = Report("m", None, "d", 6, 1, 24, 24, scores=list(scores.values()))
    table = report.table()
    half = scores["JEDi-RANDOM"].notes["half_sample"]["value"]
    assert f"JEDi-RANDOM: {half:.4g} of every other one (5 and 5)" in table and "JEDi-RANDOM unbiased" in table


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three videos, and two of them."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        frames = np.random.default_rng(number).integers(40, 200, (10, 24, 32, 3), dtype=np.uint8)
        for name in ("a", "b")[: 2 if number < 2 else 1]:
            write_video(folder / name / f"{number}.mp4", frames, 8, lossless=True)
    return folder


def test_folders_of_unequal_size(folders, tmp_path):
    """By a flag alone, before any video is read; KVD and JEDi of files, too."""
    common = [
        "videos", folders / "a", folders / "b", "--frames", 10, "--size", 24, 32, "--allow_random_features", "--force",
        "--device", "cpu", "--out", tmp_path / "scores.json", "--metrics", "fvd", "kvd", "jedi",
    ]  # fmt: skip
    with pytest.raises(UserError, match="3 real and 2 generated clips"):
        evaluate.main([*map(str, common)])
    assert not (tmp_path / "scores.json").exists()
    evaluate.main([*map(str, common), "--unequal_sets", "--divisor", "n"])
    stored = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert [score["definition"] for score in stored] == [
        "fvd-RANDOM-sq32hp-pm1-10f-3x2-ddof0-8bit", "kvd-RANDOM-sq32hp-pm1-10f-3x2-8bit", "jedi-RANDOM-10f-3x2",
        "jedi-unbiased-RANDOM-10f-3x2",
    ]  # fmt: skip
    assert stored[0]["sizes"] == {"real": 3, "generated": 2} and all(score["clips"] == 0 for score in stored)


def many_features(real, generated, kind=FVD, part=400):
    """The distance of features of this process's share of the batches, over all processes."""
    network = RandomFeatures(torch.device("cpu"))
    network.dimensions = real.shape[1]
    distance = kind(network, unequal=True, force=True)
    for side, features in (("real", real), ("generated", generated)):
        numbers = range(0, len(features), part)
        for number in numbers[distributed.rank() :: distributed.world_size()]:
            distance.add_features(side, features[number : number + part], 16, number)
            if kind is FVD:
                assert all(len(half.factor) <= 2 * real.shape[1] for half in distance._halves[side])
    (score,) = distance.over_processes().scores()
    return score


def many_of_all_kinds(real, generated):
    scores = [many_features(real, generated, kind) for kind in (FVD, KVD, KVDOfBlocks)]
    halves = [score.notes["half_sample"]["value"] for score in scores if score.notes["half_sample"]]
    return [*(score.mean for score in scores), *halves, *scores[2].notes["blocks"]]


def test_many_samples_in_two_processes(tmp_path):
    """All values, those of half of the clips and of blocks too, which depend on the order of the clips."""
    generator = torch.Generator().manual_seed(0)
    real, generated = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (1100, 2501))
    one = many_of_all_kinds(real, generated)
    for found in processes.launch(many_of_all_kinds, 2, tmp_path, real, generated):
        assert found == pytest.approx(one, rel=1e-9)


def test_kvd_of_blocks():
    """Blocks of a thousand clips that follow each other, of whatever batches they came in; its own id."""
    generator = torch.Generator().manual_seed(0)
    real, generated = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (2100, 2001))
    found = [many_features(real, generated, KVDOfBlocks, part) for part in (400, 1)]
    expected = [
        kvd(*(KeptFeatures(8).update(z[start : start + 1000]) for z in (real, generated))) for start in (0, 1000)
    ]
    for score in found:
        assert score.notes["blocks"] == pytest.approx(expected, rel=1e-9) and score.mean == pytest.approx(
            sum(expected) / 2
        )
    assert found[0].definition == "kvd-blocks1000-RANDOM-sq32hp-pm1-16f-2100x2001-8bit"
    definition = definition_of(found[0].definition)
    assert definition.name == "KVD-blocks-RANDOM" and "mean over disjoint blocks of 1000" in definition.text
    few = many_features(real[:50], generated[:30], KVDOfBlocks)
    assert few.definition.startswith("kvd-blocks30-") and len(few.notes["blocks"]) == 1
    with pytest.raises(UserError, match="KVD-blocks of 999 clips"):
        KVDOfBlocks(RandomFeatures(torch.device("cpu"))).check_count(999)


def test_many_samples_stream():
    """256 against 25,600 of a few features in bounded memory, as the definition has it in NumPy."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(256, 24, generator=generator, dtype=torch.float64)
    generated = 1.1 * torch.randn(25600, 24, generator=generator, dtype=torch.float64) + 0.1
    score = many_features(real, generated)
    linalg = pytest.importorskip("scipy.linalg")
    x, y = real.numpy(), generated.numpy()
    root = np.real(linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert score.mean == pytest.approx(expected, rel=1e-6)
    assert score.definition == "fvd-RANDOM-sq32hp-pm1-16f-256x25600-ddof1-8bit"
    assert JEDi.usual == 2048
