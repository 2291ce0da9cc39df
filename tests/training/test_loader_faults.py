"""Faults of the loader and of what it loads."""

import os
import signal
import time

import pytest
import torch

from tests.training.runs import run
from tests.training.tiny_gan import TinyClips, TinyGAN
from training.cli import explain
from videodata.errors import UserError, VideoError


class FaultyClips(TinyClips):
    """Clips whose sample 5 does something else."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def __getitem__(self, key):
        if key[0] == 5:
            self.fault()
        return super().__getitem__(key)

    def describe(self, index):
        return {"id": f"clip-{index}.avi"}


def damaged():
    raise VideoError("videos/clip-5.avi", "cut off")


def bug():
    raise KeyError("frames")


@pytest.mark.slow
@pytest.mark.posix
def test_a_killed_worker_is_named_with_a_remedy(tmp_path):
    """The operating system kills a worker: one line that suggests fewer workers."""
    with pytest.raises(UserError, match=r"DataLoader worker.*fewer --workers") as report:
        run(tmp_path, dataset=FaultyClips(lambda: os.kill(os.getpid(), signal.SIGKILL)), workers=1)
    assert "\n" not in str(report.value)


@pytest.mark.slow
def test_a_hanging_worker_is_an_error_after_the_timeout(tmp_path):
    """One line that names --loader_timeout; the worker is gone afterwards."""
    start = time.monotonic()
    with pytest.raises(UserError, match="timed out after 1 seconds.*--loader_timeout"):
        run(tmp_path, dataset=FaultyClips(lambda: time.sleep(1000)), workers=1, loader_timeout=1)
    assert time.monotonic() - start < 60


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_is_named(tmp_path, workers):
    """A video error keeps its one line, a bug keeps its traceback; both name the sample, from workers too."""
    line = r"sample 5 \(clip-5.avi\): videos/clip-5.avi: cut off"
    with pytest.raises(UserError, match=line) as report:
        run(tmp_path / "video", dataset=FaultyClips(damaged), workers=workers)
    assert "\n" not in str(report.value)
    with pytest.raises(RuntimeError, match=r"sample 5 \(clip-5.avi\): KeyError: 'frames'") as failure:
        run(tmp_path / "bug", dataset=FaultyClips(bug), workers=workers)
    assert explain(failure.value) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 17}, "the data set has 16 samples, fewer than --batch_size 17"),
        ({"batch_size": 4, "accumulation": 3}, "--batch_size 4 cannot be divided among 1 processes x --accumulation 3"),
        ({"steps": 0}, "must be at least 1"),
        ({"ema": 1.5}, "--ema: must be at least 0 and at most 1, found 1.5"),
        ({"fsdp": True}, "--fsdp needs several processes"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"device": "abacus"}, "unknown device"),
    ],
)
def test_impossible_settings_are_refused_with_their_numbers(tmp_path, changes, message):
    """One line before anything is computed."""
    with pytest.raises(UserError, match=message):
        run(tmp_path, **changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_missing_gpu_is_one_line_with_the_remedy(tmp_path):
    """--device cuda without a GPU names --device cpu."""
    with pytest.raises(UserError, match="use --device cpu"):
        run(tmp_path, device="cuda")


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=["allocator", "cublas", "python"])
def test_out_of_memory_names_the_sizes_and_the_folder_can_be_continued(tmp_path, error):
    """One line with batch size and shape; the run continues from its checkpoint when memory is there."""

    class Hungry(TinyGAN):
        def losses(self, batch, step, networks):
            if step.index == 5:
                raise error
            yield from super().losses(batch, step, networks)

    with pytest.raises(UserError, match=r"out of memory with --batch_size 4.*\(4, 3, 4, 8, 8\).*--precision bf16"):
        run(tmp_path, Hungry(), save_every=4)
    assert run(tmp_path, save_every=4).finished


def test_the_cpu_allocator_failing_counts_as_out_of_memory():
    """Torch reports it as a plain RuntimeError."""
    with pytest.raises(RuntimeError) as failure:
        torch.empty(2**60, dtype=torch.uint8)
    assert explain(failure.value).startswith("out of memory")
    assert explain(RuntimeError("shapes differ")) is None
