"""A tiny autoencoder with random weights, in which every layer takes part."""

import pytest
import torch

from vvae import AutoencoderKL2plus1D_1dcnn

TINY = {
    "ddconfig": {"z_channels": 4, "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    "ppconfig": {"ch": 4, "hidden_channel": 32},
}


def make_tiny(**settings) -> AutoencoderKL2plus1D_1dcnn:
    """A new tiny model, the same at each call; layers that start at zero get values, so that they matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoencoderKL2plus1D_1dcnn(**{**TINY, **settings})
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter.data, std=0.05)
    return model.freeze()


@pytest.fixture(autouse=True)
def seed():
    """The same random clips in each run, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture
def tiny():
    """The tiny model."""
    return make_tiny()


@pytest.fixture
def video():
    """A clip of 8 frames."""
    return torch.rand(1, 3, 8, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
