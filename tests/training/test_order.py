"""The order of samples and the randomness of a run are functions of seed and position."""

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from tests.training import processes
from tests.training.runs import run, settings
from tests.training.tiny_gan import TinyClips, TinyGAN
from training import SampleNoise
from training.data import BLOCKS_AT_ONCE, PositionSampler, batches, blocks_of, read_sample
from training.evaluation import Evaluator
from training.optim import learning_rate_scale
from training.state import build_state
from videodata.clips import open_clips


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_a_step_covers_the_same_samples_for_any_number_of_processes(world, accumulation):
    """The union over processes and micro-batches is the next stretch of positions."""
    samplers = [PositionSampler(20, 12, 7, 0, 5, 0, accumulation, rank, world) for rank in range(world)]
    whole = PositionSampler(20, 12, 7, 0, 5, 0)
    for step in range(5):
        keys = [key for micro in range(accumulation) for sampler in samplers for key in sampler.keys(step, micro)]
        assert keys == whole.keys(step, 0)


def test_each_epoch_is_another_permutation():
    """Every n positions hold each sample once, in an order that depends on seed and epoch."""
    keys = [key for batch in PositionSampler(10, 5, 3, 0, 4, 0) for key in batch]
    first, second = [[index for index, _ in keys[start : start + 10]] for start in (0, 10)]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert [position for _, position in keys] == list(range(20))


def test_a_resumed_sampler_continues_the_order():
    """Starting at step 3 gives what the uninterrupted order gives from there."""
    whole = list(PositionSampler(10, 4, 3, 0, 6, 0))
    assert list(PositionSampler(10, 4, 3, 3, 6, 12)) == whole[3:]


ORDER_OF_TEN = [6, 7, 0, 5, 9, 2, 3, 8, 1, 4]  # of seed 3, as the first released version drew it


def in_blocks(sizes, **changes):
    """A sampler of data that lies in blocks of these sizes, and the block of each sample."""
    first = np.cumsum([0, *sizes[:-1]])
    options = {"length": sum(sizes), "batch_size": 6, "seed": 7, "first_step": 0, "last_step": 90, "first_position": 0}
    return PositionSampler(**{**options, **changes}, blocks=first), np.repeat(np.arange(len(sizes)), sizes)


def test_blocks_come_a_few_at_a_time():
    """Each sample once in an epoch, in another order in the next, and never from more blocks than are mixed at once."""
    sizes = [5, 1, 9, 4, 3, 7, 2, 6, 8, 1, 1, 5, 4, 4, 3, 9, 2, 2, 6, 8]
    sampler, block = in_blocks(sizes)
    count = sum(sizes)
    orders = [[sampler.index(epoch * count + place) for place in range(count)] for epoch in (0, 1)]
    assert all(sorted(order) == list(range(count)) for order in orders) and orders[0] != orders[1]
    for order in orders:
        blocks = list(dict.fromkeys(block[order].tolist()))
        assert blocks != sorted(blocks)
        for place in range(0, count, 7):  # those before a block of a later group are all done
            begun, left = set(block[order[: place + 1]]), set(block[order[place:]])
            assert len(begun & left) <= BLOCKS_AT_ONCE
    assert len({tuple(np.diff(orders[0])), tuple(np.diff(sorted(orders[0])))}) == 2  # mixed, too
    assert [in_blocks(sizes, seed=8)[0].index(place) for place in range(count)] != orders[0]


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (2, 3)])
def test_the_order_of_blocks_is_one_of_positions(world, accumulation):
    """Whatever the processes and the step that it is resumed at."""
    sizes = [5, 9, 4, 3, 7] * 4
    whole, _ = in_blocks(sizes)
    samplers = [in_blocks(sizes, accumulation=accumulation, rank=r, world=world, first_step=40, first_position=240)[0]
                for r in range(world)]  # fmt: skip
    for step in (40, 41, 63, 89):
        keys = [key for micro in range(accumulation) for sampler in samplers for key in sampler.keys(step, micro)]
        assert keys == whole.keys(step, 0)


def test_data_without_blocks_keeps_its_order():
    """The order that runs have been resumed with so far, and a data set of several parts has blocks if all have."""
    assert [index for batch in PositionSampler(10, 5, 3, 0, 2, 0) for index, _ in batch] == ORDER_OF_TEN
    clips = open_clips("shapes:4", frames=2, size=16)
    assert blocks_of(clips) is None and blocks_of(TinyClips()) is None

    class Blocks(TinyClips):
        def blocks(self):
            return np.array([0, 3])

    length = len(TinyClips())
    assert blocks_of(ConcatDataset([Blocks(), Blocks()])).tolist() == [0, 3, length, length + 3]
    assert blocks_of(ConcatDataset([Blocks(), TinyClips()])) is None


@pytest.mark.slow
def test_workers_do_not_change_the_bits(tmp_path):
    """No, one or two loader workers, changed at resume, end with the same weights."""
    straight = run(tmp_path / "0").digest
    run(tmp_path / "2", workers=2, steps=5)
    assert run(tmp_path / "2", workers=1).digest == straight


def test_positions_reach_datasets_that_know_them():
    """Datasets with takes_positions get (index, position), also inside Subset and ConcatDataset; others the index."""
    clips = TinyClips()
    assert torch.equal(read_sample(clips, 3, 17), clips[(3, 17)])
    assert not torch.equal(clips[(3, 17)], clips[(3, 18)])
    assert torch.equal(read_sample(Subset(clips, [5, 3]), 1, 17), clips[(3, 17)])
    assert torch.equal(read_sample(ConcatDataset([TinyClips(2, seed=9), clips]), 5, 17), clips[(3, 17)])
    assert read_sample(TensorDataset(torch.arange(4)), 2, 17)[0] == 2
    assert read_sample(open_clips("shapes:4", frames=2, size=16), 0, 5).shape == (3, 2, 16, 16)
    assert open_clips("shapes:4", frames=2, size=16).takes_positions


def test_plain_datasets_of_tuples_and_dicts_arrive_as_they_are(tmp_path):
    """A dataset of tuples gives tuples of batched tensors on the device."""
    data = TensorDataset(torch.arange(8.0), torch.arange(8))
    with batches(data, [[(1, 0), (2, 1)]], settings(tmp_path), torch.device("cpu")) as feed:
        batch = next(feed)
    assert [value.tolist() for value in batch.data] == [[1.0, 2.0], [1, 2]]
    assert batch.positions == [0, 1]


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    """Row b depends on (seed, position of b); a second call continues the streams."""
    noise = SampleNoise(1, [4, 9])
    first, second = noise.normal(3), noise.normal(3)
    alone = SampleNoise(1, [9])
    assert torch.equal(alone.normal(3)[0], first[1])
    assert torch.equal(alone.normal(3)[0], second[1])
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("kind", "end"), [("constant", 1.0), ("cosine", 0.0), ("linear", 0.0)])
def test_schedules_warm_up_and_end(kind, end):
    """Linear warm-up to 1, then the shape named; never negative."""
    scales = [learning_rate_scale(step, 100, 10, kind) for step in range(101)]
    assert scales[0] == pytest.approx(0.1) and scales[9] == 1.0 and scales[10] == 1.0
    assert scales[55] == pytest.approx(1.0 if kind == "constant" else 0.5)
    assert scales[100] == pytest.approx(end) and min(scales) >= 0


class CountingGAN(TinyGAN):
    """Counts what it is shown, as the codes of a codebook are counted."""

    def evaluate(self, batch, step, networks):
        bright = (batch > 0).flatten(1)
        return {**super().evaluate(batch, step, networks), "values": torch.stack([bright.sum(1), (~bright).sum(1)], 1)}

    def summarize(self, sums):
        return {"values_seen": float(sums["values"].sum()), "bright": float(sums["values"][0])}


def metrics_of(folder, clips):
    chosen, device = settings(folder, batch_size=2), torch.device("cpu")
    data = TinyClips(clips)
    return Evaluator(build_state(CountingGAN(), chosen, device), data, data, chosen, device).metrics()


@pytest.mark.parametrize("clips", [1, 5])
def test_two_processes_evaluate_what_one_does(tmp_path, clips):
    """The batch that a process repeats to keep step with the other counts neither in the means nor in the sums."""
    alone = metrics_of(tmp_path, clips)
    assert alone["values_seen"] == clips * TinyClips(1)[0].numel()
    for found in processes.launch(metrics_of, 2, tmp_path / "launch", tmp_path, clips):
        assert found == pytest.approx(alone, rel=1e-6)
