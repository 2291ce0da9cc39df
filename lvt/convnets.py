"""The two halves of the VQ-VAE: a frame to a grid of vectors at a quarter of its resolution, and back.

Names of modules and parameters are those of the published checkpoints.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lvt.model_config import ConvNetConfig
from videodata.errors import UserError

ACTIVATIONS = {"": None, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU}
DOWNSAMPLING = 4  # pixels per code, in height and in width


class ResidualBlock(nn.Module):
    """y = r + conv1x1(relu(conv3x3(r))) with r = relu(x).

    The skip carries the rectified input: the published weights were trained with a first ReLU that works in place.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        rectified = F.relu(x)
        return rectified + self.block(rectified)


class Encoder(nn.Module):
    """Frames (N, in_channels, H, W) -> vectors (N, nf, H / 4, W / 4)."""

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        width = config.nf
        self.layers = nn.Sequential(
            nn.Conv2d(config.in_channels, width // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            *(ResidualBlock(width, config.res_channels) for _ in range(config.n_layers)),
            *activation(config.out_activation),
        )

    def forward(self, frames: Tensor) -> Tensor:
        if frames.shape[-2] % DOWNSAMPLING or frames.shape[-1] % DOWNSAMPLING:
            raise UserError(f"frames of {tuple(frames.shape[-2:])} pixels: height and width must be multiples of 4")
        return self.layers(frames)


class Decoder(nn.Module):
    """Vectors (N, in_channels, h, w) -> frames (N, out_channels, 4 h, 4 w)."""

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        width = config.nf
        self.layers = nn.Sequential(
            nn.Conv2d(config.in_channels, width, 3, padding=1),
            *(ResidualBlock(width, config.res_channels) for _ in range(config.n_layers)),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width // 2, config.out_channels, 4, stride=2, padding=1),
            *activation(config.out_activation),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the last convolution."""
        return [layer for layer in self.layers if isinstance(layer, nn.ConvTranspose2d)][-1].weight


def activation(name: str) -> list[nn.Module]:
    """The output activation as a list of no or one module. Raises UserError for an unknown name."""
    if name not in ACTIVATIONS:
        raise UserError(f"OUT_ACTIVATION {name!r}: use one of {', '.join(map(repr, ACTIVATIONS))}")
    kind = ACTIVATIONS[name]
    return [] if kind is None else [kind()]
