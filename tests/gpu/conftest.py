"""Tests of everything that differs on a GPU; skipped where there is none. About a minute on one GPU:

python -m pytest tests/gpu
"""

from __future__ import annotations

import pytest
import torch

from training.randomness import SampleNoise


@pytest.fixture(autouse=True, scope="session")
def gpu() -> torch.device:
    """The first GPU, computing with all bits of float32 (no TF32), so that it can be compared with the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def any_kernel():
    """Whatever a test asks for, the next one starts without deterministic kernels."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def noise_of_the_cpu(monkeypatch):
    """The GPU gets the noise that the CPU draws; its own generators give other numbers for the same seed."""
    start, permute = SampleNoise.__init__, torch.randperm

    def start_on_cpu(self, seed, positions, device="cpu"):
        start(self, seed, positions, "cpu")
        self.target = torch.device(device)

    def handed_over(draw):
        return lambda self, *arguments: draw(self, *arguments).to(self.target)

    monkeypatch.setattr(SampleNoise, "__init__", start_on_cpu)
    for name in ("normal", "uniform", "integers"):
        monkeypatch.setattr(SampleNoise, name, handed_over(getattr(SampleNoise, name)))
    monkeypatch.setattr(torch, "randperm", lambda count, device=None, **options: permute(count, **options).to(device))
