"""JEDi and KVD: values that the paper's package and double loops gave, streams, processes."""

import numpy as np
import pytest
import torch

from evaluation.mmd import KeptFeatures, SecondMoments, jedi, jedi_unbiased, kvd, kvd_of_blocks
from tests.training import processes
from training import distributed

TABLE = {  # (n, m, d): JEDi, unbiased, KVD
    (8, 8, 4): (70.391633992, 14.272894577, -0.049385989264),
    (8, 5, 4): (134.53139893, 42.213405958, 2.0842609012),
    (64, 64, 16): (14.560731901, 8.5854068645, 1.4334724986),
    (64, 40, 16): (19.411934019, 10.277179470, 1.5825065671),
    (200, 120, 64): (10.276672696, 7.4207020916, 1.0990837885),
    (500, 300, 1280): (7.5170462448, 6.3850662835, 0.95787696285),
}


def two_sets(n, m, d):
    """The sets that the table is of, float64 (n, d) and (m, d)."""
    x, y = np.random.RandomState(0).randn(n, d), 0.5 + 1.2 * np.random.RandomState(1).randn(m, d)
    assert x.flat[:3] == pytest.approx([1.76405235, 0.40015721, 0.97873798])
    assert y.flat[:3] == pytest.approx([2.44921444, -0.23410770, -0.13380610])
    return torch.from_numpy(x), torch.from_numpy(y)


def collected(kind, features, batch=7):
    found = kind(features.shape[1])
    for part in features.split(batch):
        found.update(part)
    return found


@pytest.mark.parametrize("sizes", TABLE, ids=str)
def test_computed_elsewhere(sizes):
    """Streamed in batches of seven, both ways round."""
    sets = two_sets(*sizes)
    moments, kept = ([collected(kind, features) for features in sets] for kind in (SecondMoments, KeptFeatures))
    for a, b in ((0, 1), (1, 0)):
        found = jedi(moments[a], moments[b]), jedi_unbiased(moments[a], moments[b]), kvd(kept[a], kept[b])
        assert found == pytest.approx(TABLE[sizes], rel=1e-9)


def test_near_equal_sets_need_double_precision():
    """Uniform features without a difference: what is left is the bias, of float32 features on the way 0.07 % off."""
    x, y = (torch.from_numpy(np.random.RandomState(seed).rand(5000, 1280)) for seed in (0, 1))
    a, b = (collected(SecondMoments, features, 1000) for features in (x, y))
    assert jedi(a, b) == pytest.approx(0.0019952618788, rel=1e-9)
    assert jedi_unbiased(a, b) == pytest.approx(0.000049185472098, rel=1e-7)  # a difference of 400 times as much


def test_a_set_and_itself():
    """JEDi is 0 and blind to signs; KVD is below 0 and stays there."""
    x, _ = two_sets(64, 40, 16)
    moments, kept = collected(SecondMoments, x), collected(KeptFeatures, x)
    assert jedi(moments, moments) == 0 and jedi(moments, collected(SecondMoments, -x, 64)) < 1e-12
    assert kvd(kept, kept) == pytest.approx(-0.22263959444, rel=1e-9)


def test_the_mean_of_blocks_of_kvd():
    """Three blocks of 40 rows that follow each other."""
    x, y = two_sets(200, 120, 64)
    sets = [collected(KeptFeatures, z) for z in (x, y)]
    blocks = kvd_of_blocks(*sets, 40)
    assert len(blocks) == 3 and np.mean(blocks) == pytest.approx(1.1028635302, rel=1e-9)
    assert blocks[1] == kvd(*(collected(KeptFeatures, z[40:80]) for z in (x, y)))
    for rows in (1, 121):
        with pytest.raises(ValueError, match=f"no block of {rows} features in sets of 200 and 120"):
            kvd_of_blocks(*sets, rows)


def test_kvd_by_pairs(monkeypatch):
    """A loop over all pairs gives the same, however many rows of the kernel matrix are there at a time."""
    monkeypatch.setattr("evaluation.mmd.ROWS_AT_A_TIME", 3)
    x, y = two_sets(8, 5, 4)

    def k(a, b):
        return float(a @ b / 4 + 1) ** 3

    within = [np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    expected = sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert kvd(collected(KeptFeatures, x), collected(KeptFeatures, y)) == pytest.approx(expected, rel=1e-12)


def of_a_share(x, y):
    share = slice(distributed.rank(), None, 2)
    found = []
    for kind in (SecondMoments, KeptFeatures):
        found.append([collected(kind, z[share]).over_processes() for z in (x, y)])
    return [jedi(*found[0]), jedi_unbiased(*found[0]), kvd(*found[1]), found[0][0].count]


def test_two_processes_equal_one(tmp_path):
    """Each has half of the features; both know all."""
    for found in processes.launch(of_a_share, 2, tmp_path, *two_sets(64, 40, 16)):
        assert found == pytest.approx([*TABLE[64, 40, 16], 64], rel=1e-9)


def test_too_few_and_broken_features_are_refused():
    """No moment of nothing, no pair of one, no distance of nan."""
    one, two = collected(SecondMoments, torch.ones(1, 3)), collected(SecondMoments, torch.ones(2, 3))
    with pytest.raises(ValueError, match="at least 1 feature"):
        jedi(SecondMoments(3), two)
    with pytest.raises(ValueError, match="at least 2 features, got 1"):
        jedi_unbiased(one, two)
    with pytest.raises(ValueError, match="at least 2 features, got 1"):
        kvd(collected(KeptFeatures, torch.ones(1, 3)), collected(KeptFeatures, torch.ones(2, 3)))
    for kind in (SecondMoments, KeptFeatures):
        with pytest.raises(ValueError, match="not finite"):
            kind(1).update(torch.tensor([[torch.nan]]))
