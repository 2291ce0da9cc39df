"""Random backbone weights in torchvision's file format, and the rule that makes the weights of the parity fixtures."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from losses.perceptual import LAYERS


@pytest.fixture(scope="session")
def backbone_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of random weights with torchvision's key names, {"vgg16": path, "alexnet": path}."""
    folder = tmp_path_factory.mktemp("weights")
    files = {}
    for name, make_layers in LAYERS.items():
        torch.manual_seed(0)
        state = {}
        for index, (_, layer) in enumerate(make_layers()):
            state.update({f"features.{index}.{key}": value for key, value in layer.state_dict().items()})
        files[name] = folder / f"random_{name}.pth"
        torch.save(state, files[name])
    return files


@pytest.fixture
def frame_pair() -> tuple[Tensor, Tensor]:
    """Two batches of frames (3, 3, 64, 64) in [-1, 1], the second a noisy copy of the first."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(3, 3, 64, 64, generator=generator) * 2 - 1
    return x, (x + 0.3 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def seeded_tensor(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The made-up weight of the parity fixtures: a function of its name, shape and seed."""
    stream = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    uniform = 2.0 * stream.random_sample(int(np.prod(shape, dtype=np.int64))) - 1.0
    if len(shape) >= 2:
        values = uniform * np.sqrt(3.0 / np.prod(shape[1:], dtype=np.int64))
    elif key.endswith(".weight"):
        values = 1.0 + 0.25 * uniform
    else:
        values = 0.1 * uniform
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def load_seeded(module: torch.nn.Module, prefix: str, seed: int) -> None:
    """Fill a module's floating-point parameters by `seeded_tensor`; buffers keep their start values."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(seeded_tensor(prefix + name, tuple(parameter.shape), seed))
