"""The network of LPIPS v0.1 (Zhang et al. 2018, arXiv 1801.03924), with the key names of the published modules."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from losses.backbones import FeatureNetwork
from losses.weights import read_state_dict

TAPS = {
    "vgg": ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
    "alex": ("relu1", "relu2", "relu3", "relu4", "relu5"),
}
CHANNELS = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}
BACKBONES = {"vgg": "vgg16", "alex": "alexnet"}


class ScalingLayer(nn.Module):
    """ImageNet mean and standard deviation, expressed for images in [-1, 1] and rounded as LPIPS rounds them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.shift) / self.scale


class LinearHead(nn.Module):
    """One non-negative weight per channel; `model.1` is its published place (0 was a dropout for training)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        return self.model(features)


class LPIPSNetwork(nn.Module):
    """LPIPS distance of two image batches (N, 3, H, W) in [-1, 1] -> (N,)."""

    def __init__(self, net: str = "vgg") -> None:
        super().__init__()
        self.scaling_layer = ScalingLayer()
        self.net = FeatureNetwork(BACKBONES[net], TAPS[net])
        self.heads = len(CHANNELS[net])
        for index, channels in enumerate(CHANNELS[net]):
            self.add_module(f"lin{index}", LinearHead(channels))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        features_x = self.net(self.scaling_layer(x))
        features_y = self.net(self.scaling_layer(y))
        distance = x.new_zeros(x.shape[0])
        for index in range(self.heads):
            difference = (unit_channels(features_x[index]) - unit_channels(features_y[index])) ** 2
            head = getattr(self, f"lin{index}")
            distance = distance + head(difference).mean(dim=(1, 2, 3))
        return distance

    def load_weights(self, backbone: Path, heads: Path) -> None:
        """Load a torchvision backbone and the heads of the lpips package."""
        self.net.load_torchvision(backbone)
        missing = self.load_state_dict(read_state_dict(heads), strict=False)
        if missing.unexpected_keys or any(key.startswith("lin") for key in missing.missing_keys):
            raise ValueError(f"{heads}: not the linear heads of this LPIPS network")


def unit_channels(features: Tensor) -> Tensor:
    """Features (N, C, h, w) scaled to unit length over the channels.

    The small constant stands under the root, so that an all-zero feature vector has a finite gradient.
    """
    return features / torch.sqrt((features**2).sum(dim=1, keepdim=True) + 1e-10)
