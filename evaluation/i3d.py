"""I3D, the feature network of FVD: Inception-v1 with inflated kernels (Carreira and Zisserman 2017, arXiv 1705.07750).

Module names follow the published PyTorch weights (`i3d_pretrained_400.pt`), so that they load by name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 400  # Kinetics-400
SIDE = 224  # pixels; the last pooling is made for it
MINIMUM_FRAMES = 9  # fewer leave the last pooling, over two steps of eight frames, without input
Kernel = tuple[int, int, int]

# name -> input channels and widths of the branches: 1x1x1; 1x1x1 and 3x3x3; 1x1x1 and 3x3x3; 1x1x1 after the pooling
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
FEATURES = 1024  # channels after Mixed_5c


def pad_same(values: Tensor, kernel: Kernel, stride: Kernel) -> Tensor:
    """Zeros around (B, C, T, H, W) so that ceil(size / stride) positions fit, the odd one behind: TensorFlow's rule."""
    padding: list[int] = []
    for size, k, s in zip(values.shape[2:], kernel, stride, strict=True):
        total = max(k - (size % s or s), 0)
        padding = [total // 2, total - total // 2, *padding]  # F.pad begins with the last axis
    return F.pad(values, padding)


class Unit3D(nn.Module):
    """Convolution with TensorFlow's padding, batch norm, ReLU; the last layer has a bias in place of both."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Kernel = (1, 1, 1), stride: Kernel = (1, 1, 1), last: bool = False
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=last)
        self.bn = None if last else nn.BatchNorm3d(outputs)

    def forward(self, values: Tensor) -> Tensor:
        values = self.conv3d(pad_same(values, self.kernel, self.stride))
        return values if self.bn is None else F.relu(self.bn(values))


class MaxPool(nn.Module):
    """Maximum with TensorFlow's padding. The zeros are harmless: what comes in has passed a ReLU."""

    def __init__(self, kernel: Kernel, stride: Kernel) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, values: Tensor) -> Tensor:
        return F.max_pool3d(pad_same(values, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """The four branches of an inception module, side by side in the channels."""

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = Unit3D(inputs, widths[0])
        self.b1a = Unit3D(inputs, widths[1])
        self.b1b = Unit3D(widths[1], widths[2], (3, 3, 3))
        self.b2a = Unit3D(inputs, widths[3])
        self.b2b = Unit3D(widths[3], widths[4], (3, 3, 3))
        self.b3a = MaxPool((3, 3, 3), (1, 1, 1))
        self.b3b = Unit3D(inputs, widths[5])

    def forward(self, values: Tensor) -> Tensor:
        branches = [self.b0(values), self.b1b(self.b1a(values)), self.b2b(self.b2a(values)), self.b3b(self.b3a(values))]
        return torch.cat(branches, dim=1)


class I3D(nn.Module):
    """Clips (B, 3, T >= 9, 224, 224) in [-1, 1] -> logits (B, 400) of Kinetics-400, averaged over time."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit3D(3, 64, (7, 7, 7), (2, 2, 2))
        self.MaxPool3d_2a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit3D(64, 64)
        self.Conv3d_2c_3x3 = Unit3D(64, 192, (3, 3, 3))
        self.MaxPool3d_3a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self._add_mixed("Mixed_3")
        self.MaxPool3d_4a_3x3 = MaxPool((3, 3, 3), (2, 2, 2))
        self._add_mixed("Mixed_4")
        self.MaxPool3d_5a_2x2 = MaxPool((2, 2, 2), (2, 2, 2))
        self._add_mixed("Mixed_5")
        self.logits = Unit3D(FEATURES, classes, last=True)

    def _add_mixed(self, prefix: str) -> None:
        for name, (inputs, widths) in MIXED.items():
            if name.startswith(prefix):
                self.add_module(name, Mixed(inputs, widths))

    def forward(self, clips: Tensor) -> Tensor:
        """Raises ValueError for another size or too few frames: a larger frame would silently give more logits."""
        if clips.dim() != 5 or clips.shape[1] != 3 or clips.shape[3:] != (SIDE, SIDE):
            raise ValueError(f"I3D takes clips (B, 3, T, {SIDE}, {SIDE}), got {tuple(clips.shape)}")
        if clips.shape[2] < MINIMUM_FRAMES:
            raise ValueError(f"I3D needs at least {MINIMUM_FRAMES} frames, got {clips.shape[2]}")
        values = clips
        for name, layer in self.named_children():  # in the order in which they were made
            if name != "logits":
                values = layer(values)
        pooled = F.avg_pool3d(values, (2, 7, 7), stride=1)
        return self.logits(pooled).flatten(2).mean(dim=2)
