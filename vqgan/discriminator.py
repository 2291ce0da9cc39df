"""The discriminator: a PatchGAN with spectral norm on every convolution."""

from __future__ import annotations

from collections.abc import Sequence

from losses.adversarial import PatchGAN2D
from vqgan.config import VQGANConfig


class Discriminator(PatchGAN2D):
    """Frames (N, 3, H, W) -> a logit for each patch, (N, 1, h, w); real is large.

    `hidden_dims`: the first is the width of the first layer, and there is a halving of the resolution for each step
    to the next one, at which the width doubles. Four give patches of 70x70 pixels: 80x80 frames have 8x8 logits.
    Spectral norm (arXiv 1802.05957) keeps it from winning.
    """

    def __init__(self, hidden_dims: Sequence[int] = VQGANConfig.hidden_dims, in_channels: int = 3) -> None:
        super().__init__(in_channels, width=hidden_dims[0], layers=len(hidden_dims) - 1, norm="spectral")
        self.layers = len(hidden_dims) - 1

    @property
    def receptive_field(self) -> int:
        """Side in pixels of the square that one logit sees."""
        size = 1
        for stride in [1, 1, *[2] * self.layers]:  # from the logit back to the frame
            size = (size - 1) * stride + 4
        return size
