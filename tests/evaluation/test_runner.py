"""The evaluation of any model, with a model of one line."""

import numpy as np
import pytest
import torch

from evaluation import fvd, psnr
from evaluation.networks import RandomFeatures
from evaluation.protocol import SET_METRICS, Protocol
from evaluation.report import Score
from evaluation.runner import Source, evaluate, evaluate_model, metrics_of
from evaluation.set_distance import FeatureCache
from evaluation.subject import Subject
from tests.training import processes
from training.randomness import SampleNoise
from videodata import open_clips, read_video, to_uint8
from videodata.errors import UserError

DATA = "shapes:9,frames=12,size=24"


class Noisy(Subject):
    """Adds noise to what follows the first frame."""

    random, context, own_metrics = True, 1, ("seen",)

    def __init__(self, amount=0.1):
        self.amount, self.seen = amount, 0

    def make(self, batch):
        noise = SampleNoise(batch.seed, batch.items).normal(*batch.clips.shape[1:])
        noise[:, :, : self.context] = 0
        self.seen += len(batch.items) * (batch.sample == 0)
        return batch.clips + self.amount * noise

    def baselines(self, clips):
        return {"grey": torch.zeros_like(clips)}

    def own_scores(self):
        return {"seen": [Score("kl-bits", [], value=float(self.seen))]}


def run(subject=None, **protocol):
    """{name: Score} of an evaluation."""

    def open_data(seed):
        return open_clips(DATA, 6, 24, seed=seed)

    scores = evaluate(subject or Noisy(), open_data, Protocol(**protocol))
    return {score.name: score for score in scores}


def test_rows_of_samples_baselines_and_the_models_own():
    """Mean and best over the samples, their mean as one prediction, given frames left out, baselines under their names,
    own metrics on request.
    """
    scores = run(samples=3, metrics=("psnr", "diversity", "seen"))
    rows = {f"PSNR{row}" for row in ("", " best of 3", " mean of 3 samples", " grey")}
    assert set(scores) == rows | {"diversity RMSE", "KL"}
    one, together = scores["PSNR"].mean, scores["PSNR mean of 3 samples"].mean
    assert together - one == pytest.approx(10 * np.log10(3), abs=0.3)  # a third of the noise's square
    assert len(scores["PSNR"].per_clip) == 9 and scores["KL"].mean == 9
    best, mean = scores["PSNR best of 3"].per_clip, scores["PSNR"].per_clip
    assert all(a > b for a, b in zip(best, mean, strict=True))
    levels = 0.1 * 127.5 * 2**0.5  # two clips with that noise each; less where it was clamped
    assert 0.7 * levels < scores["diversity RMSE"].mean < levels
    clips = open_clips(DATA, 6, 24)
    batch = torch.stack([clips[index] for index in range(9)])
    assert scores["PSNR grey"].per_clip == pytest.approx(psnr(batch[:, :, 1:], 0 * batch[:, :, 1:]).tolist())


def test_batch_size_does_not_matter_and_repetitions_have_an_interval():
    """Values are those of the clip; a repetition has another seed, and the interval is Student's over them."""
    one, other = run(batch_size=1)["PSNR"], run(batch_size=4)["PSNR"]
    assert one.per_clip == pytest.approx(other.per_clip, abs=1e-9)
    repeated = run(repetitions=3)["PSNR"]
    values = repeated.notes["per_repetition"]
    assert values[0] == pytest.approx(one.mean) and values[1] == pytest.approx(run(seed=1)["PSNR"].mean)
    assert repeated.mean == pytest.approx(np.mean(values)) and len(repeated.per_clip) == 27
    half = 4.302653 * np.std(values, ddof=1) / 3**0.5
    assert (repeated.interval.low, repeated.interval.high) == pytest.approx(
        (np.mean(values) - half, np.mean(values) + half)
    )


class Named(Noisy):
    """Notes the labels that it is given, and the guidance."""

    classes = ("Circles", "Mixed", "Squares", "Triangles")

    def make(self, batch):
        self.labels = [*getattr(self, "labels", []), *zip(batch.items, batch.labels, strict=True)]
        return super().make(batch)


def test_each_clip_comes_with_its_label():
    """Its own, for every sample; or the one class that is asked for. Guidance reaches the model."""
    clips = open_clips(DATA, 6, 24)
    own = [(index, clips.describe(index)["label"]) for index in range(9)]
    subject = Named()
    run(subject, samples=2, batch_size=9)
    assert subject.labels == own * 2 and subject.guidance == 1 and len({label for _, label in own}) > 1
    other = Named()
    run(other, class_name="Mixed", guidance=2.5)
    assert other.labels == [(index, "Mixed") for index in range(9)] and other.guidance == 2.5
    with pytest.raises(UserError, match="class 'mixed' .* the nearest is 'Mixed'"):
        run(Named(), class_name="mixed")
    for asked in ({"class_name": "Mixed"}, {"guidance": 2.0}):
        with pytest.raises(UserError, match="trained without classes"):
            run(Noisy(), **asked)


RANDOM = {"metrics": ("fvd",), "allow_random_features": True, "force": True}


def test_fvd_takes_the_first_sample_and_caches_the_real_features(tmp_path, monkeypatch):
    """The value is that of `fvd`; a second run computes no feature of a real clip, other windows do."""
    score = run(**RANDOM, feature_cache=tmp_path)["FVD-RANDOM"]
    clips = open_clips(DATA, 6, 24)
    real = torch.stack([clips[index] for index in range(9)])
    noise = SampleNoise(0, range(9)).normal(*real.shape[1:])
    noise[:, :, :1] = 0
    network = RandomFeatures(torch.device("cpu"))
    assert score.mean == pytest.approx(fvd(real, real + 0.1 * noise, extractor=network, force=True), abs=1e-6)
    assert score.notes["given_frames"] == "part of both sets" and len(list(tmp_path.iterdir())) == 1
    calls, compute = [], RandomFeatures.__call__
    monkeypatch.setattr(RandomFeatures, "__call__", lambda self, x: calls.append(len(x)) or compute(self, x))
    again = run(**RANDOM, feature_cache=tmp_path)["FVD-RANDOM"]
    assert again.mean == pytest.approx(score.mean, abs=1e-9) and sum(calls) == 9
    predicted = run(**RANDOM, feature_cache=tmp_path, fvd_frames="predicted")["FVD-RANDOM"]
    assert predicted.definition == "fvd-RANDOM-sq32hp-pm1-5f-9-ddof1-8bit"
    assert sum(calls) == 27 and len(list(tmp_path.iterdir())) == 2


def test_lpips_can_be_tried_without_weights():
    """A random network has its own name and no file; identical clips are at distance 0, diverse samples are not."""

    def open_data(seed):
        return open_clips("shapes:2,frames=4,size=32", 2, 32, seed=seed)

    protocol = Protocol(metrics=("lpips", "diversity"), samples=2, allow_random_features=True)
    scores = {score.name: score for score in evaluate(Noisy(), open_data, protocol)}
    assert {"LPIPS-RANDOM", "LPIPS-RANDOM best of 2", "LPIPS-RANDOM grey", "diversity LPIPS-RANDOM"} <= set(scores)
    assert scores["LPIPS-RANDOM"].mean > 0 and scores["diversity LPIPS-RANDOM"].mean > 0
    assert scores["LPIPS-RANDOM"].notes["feature_network"]["sha256"] is None
    still = {score.name: score for score in evaluate(Noisy(0.0), open_data, protocol)}
    assert still["LPIPS-RANDOM"].mean == 0


def test_fid_is_of_all_frames_and_caches_them(tmp_path):
    """Features are kept frame by frame; with them the value is the same."""
    values = [run(**{**RANDOM, "metrics": ("fid",)}, feature_cache=tmp_path)["FID-RANDOM"] for _ in range(2)]
    assert values[0].definition == "fid-RANDOM-sq32hp-pm1-54-ddof1-8bit" and values[0].mean > 1e-4
    assert values[1].mean == pytest.approx(values[0].mean, abs=1e-9) and len(list(tmp_path.iterdir())) == 1


def test_a_damaged_cache_is_computed_again(tmp_path):
    """Cut files and files of another number of clips do not count."""
    cache = FeatureCache(tmp_path, {"a": 1})
    cache.write(torch.ones(4, 3))
    assert torch.equal(cache.read(4), torch.ones(4, 3)) and cache.read(5) is None
    cache.path.write_bytes(cache.path.read_bytes()[:60])
    assert cache.read(4) is None and FeatureCache(None, {}).read(4) is None


def two(batch_size):
    scores = run(
        samples=2, batch_size=batch_size, metrics=("psnr", "fvd", "diversity"), allow_random_features=True, force=True
    )
    return {name: {"mean": score.mean, "per_clip": score.per_clip} for name, score in scores.items()}


@pytest.mark.parametrize("batch_size", [2, 9])
def test_two_processes_equal_one(tmp_path, batch_size):
    """Every number, and every value per clip in its place, in both processes, even if one of them got no clip."""
    one = two(batch_size)
    for found in processes.launch(two, 2, tmp_path, batch_size):
        assert found.keys() == one.keys()
        for name, score in one.items():
            assert found[name]["mean"] == pytest.approx(score["mean"], abs=1e-6)
            assert found[name]["per_clip"] == pytest.approx(score["per_clip"])


def test_what_does_not_fit_is_refused_before_anything_is_computed():
    """Unknown metrics, too few samples, FVD of few clips."""
    digits = ("identity", "class-agreement", "recognised")
    paired = ("psnr", "ssim", "lpips", "mse-pixels", "mae-pixels", "energy", "coverage", "motion")
    paired += ("identity-in-place",)
    assert metrics_of(Noisy()) == (*paired, *SET_METRICS, *digits, "diversity", "seen")
    for protocol, message in (
        ({"metrics": ("kl",)}, "this model has psnr, ssim"),
        ({"metrics": ("diversity",)}, "--samples 2"),
        ({"repetitions": 0}, "at least 1"),
        ({"samples": 2}, "the same of a clip each time"),
        ({"generated": 4}, "makes a clip of each that it is shown"),
        ({"metrics": ("fvd",), "allow_random_features": True}, "FVD of 9 clips"),
        ({"metrics": ("fid",), "allow_random_features": True}, "FID of 54 frames"),
        ({"metrics": ("fvd-digits",)}, "FVD-digits of 9 clips"),
    ):
        subject = Noisy()
        subject.random = protocol != {"samples": 2}
        with pytest.raises(UserError, match=message):
            run(subject, **protocol)
        assert subject.seen == 0


def show_clips(folder):
    """Two repetitions with two samples of each clip, of which five are written, evenly spread."""
    protocol = Protocol(metrics=("psnr",), samples=2, repetitions=2, batch_size=2)
    subject = Noisy().made_for(6, (24, 24))
    evaluate_model("noisy", subject, Source(DATA, "all", 0), protocol, "", "noisy.pt", folder, 5)


def test_some_clips_are_written_as_videos(tmp_path, caplog):
    """Original, samples and baseline of each, as they were scored; files that are not of them are told."""
    show_clips(tmp_path)
    kinds = ("original", "made", "made-1", "mean-of-2-samples", "grey")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{kind}_{item:04}.mp4" for kind in kinds for item in range(5)
    }
    clips = open_clips(DATA, 6, 24)
    assert len(clips) > 5
    for number, item in ((0, 0), (4, 4 * len(clips) // 5)):
        frames, fps = read_video(tmp_path / f"original_{number:04}.mp4")
        assert fps == clips.describe(item)["fps"] and frames.shape == (6, 24, 24, 3)
        assert np.abs(frames.astype(int) - to_uint8(clips[item])).mean() < 6
    grey, _ = read_video(tmp_path / "grey_0002.mp4")
    assert np.abs(grey.astype(int) - 128).max() <= 2
    assert (tmp_path / "made_0000.mp4").read_bytes() != (tmp_path / "made-1_0000.mp4").read_bytes()
    assert "not of this evaluation" not in caplog.text
    (tmp_path / "made-2_0000.mp4").write_bytes(b"")
    show_clips(tmp_path)
    assert "holds 1 videos that are not of this evaluation" in caplog.text


def test_several_processes_write_the_same_clips(tmp_path):
    """Each keeps what it made; the main one writes it all."""
    show_clips(tmp_path / "one")
    processes.launch(show_clips, 2, tmp_path, tmp_path / "two")
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
