"""FD-PCA: the Frechet distance of small clips in their principal components."""

import pytest
import torch

from evaluation.frechet import GaussianStatistics, frechet_distance
from evaluation.protocol import Protocol
from evaluation.runner import Source, evaluate, evaluate_model
from evaluation.set_distance import FDPCA, PooledPCA
from evaluation.subject import Subject
from tests.evaluation.test_runner import Noisy, run
from videodata import UserError, open_clips


def digits(count=40, **options):
    return open_clips("digits:400,frames=4", 4, 32, windows="first", total_videos=count, **options)


def stacked(clips) -> torch.Tensor:
    return torch.stack([clips[index] for index in range(len(clips))])


class Dimmed(Subject):
    """Prior samples that are the clips, a share darker."""

    paired = False

    def __init__(self, amount):
        self.amount = amount

    def make(self, batch):
        return (batch.clips + 1) * (1 - self.amount) - 1


def test_the_distance_by_hand():
    """Eight by eight means of all frames, centred on and projected to what the reference varies most in."""
    reference, real = digits(split="train"), stacked(digits(split="val"))
    features, other = PooledPCA(reference, 5), real.flip(-1) * 0.9
    means = [
        clips.unflatten(-1, (8, 4)).unflatten(-3, (8, 4)).mean((-1, -3)) for clips in (stacked(reference), real, other)
    ]
    pooled, *both = (clips.transpose(1, 2).flatten(1).double() for clips in means)
    values, vectors = torch.linalg.eigh(torch.cov(pooled.T))
    sides = [GaussianStatistics(5).update((side - pooled.mean(0)) @ vectors[:, -5:]) for side in both]
    distance = FDPCA(features, quantize=False)
    distance.update(real, other)
    score = distance.score()
    assert score.definition == "fd-pca5-4f-40-ddof1-raw" and score.name == "FD-pca5"
    assert score.mean == pytest.approx(frechet_distance(*sides), rel=1e-4) and score.mean > 0.5
    assert f"{values[-5:].sum() / values.sum():.0%}" in features.facts()["text"]


def test_reconstructions_and_samples():
    """0 for what is equal, more for what differs more, with the components of the training part."""
    found = {}
    for amount in (0.0, 0.2, 0.6):
        subject, protocol = Dimmed(amount).made_for(4, (32, 32), windows="first"), Protocol(metrics=("fd-pca",))
        report = evaluate_model("x", subject, Source("digits:400,frames=4", "val", 0), protocol, checkpoint="x.pth")
        (found[amount],) = report.scores
    assert found[0.0].mean < 1e-6 < 0.1 < found[0.2].mean < found[0.6].mean / 3
    assert found[0.2].definition == "fd-pca10-4f-40-ddof1-8bit"  # 40 clips, four for each component
    assert "found in 320 real clips (split train)" in found[0.2].notes["feature_network"]["text"]
    assert "no FVD" in found[0.2].to_dict()["meaning"]


def test_few_clips(tmp_path):
    """Down to eight; below that one line. The scored clips give the components where there are no others. No cache."""
    score = run(Noisy(), metrics=("fd-pca",), feature_cache=tmp_path)["FD-pca2"]
    assert score.mean >= 0 and "9 real clips" in score.notes["feature_network"]["text"] and not [*tmp_path.iterdir()]
    with pytest.raises(UserError, match="FD-PCA of 7 clips"):
        evaluate(Dimmed(0), lambda seed: digits(7), Protocol(metrics=("fd-pca",)))
    black = torch.full((8, 3, 4, 32, 32), -1.0)
    features = PooledPCA([*black], 2)
    distance = FDPCA(features)
    distance.update(black, black)
    assert distance.score().mean == 0


def test_given_frames_can_be_left_out():
    """The components are those of the frames that are compared."""
    score = run(metrics=("fd-pca",), fvd_frames="predicted")["FD-pca2"]
    assert score.definition == "fd-pca2-5f-9-ddof1-8bit" and score.notes["given_frames"] == "left out of both sets"
