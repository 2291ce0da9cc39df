"""The feature network of FID: Inception-v3 as TensorFlow had it in 2015 (Szegedy et al., arXiv 1512.00567).

The published PyTorch weights (`pt_inception-2015-12-05-6726825d.pth`) have torchvision's names and 1008 classes. Three
poolings differ from torchvision's network: averages leave the padding out, and the last block takes the maximum.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception as blocks

from losses.weights import read_state_dict

CLASSES = 1008
FEATURES = 2048
SIDE = 299  # pixels


def average(values: Tensor) -> Tensor:
    """Mean of 3x3 neighbours, at the border of those that exist."""
    return F.avg_pool2d(values, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(blocks.InceptionA):
    """Blocks 5b to 5d."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        return [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(average(x)),
        ]


class BlockC(blocks.InceptionC):
    """Blocks 6b to 6e."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(average(x)),
        ]


class BlockE(blocks.InceptionE):
    """Blocks 7b and 7c; `last` is the second of them."""

    last = False

    def _forward(self, x: Tensor) -> list[Tensor]:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.last else average(x)
        return [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]


class FIDInception(nn.Module):
    """Frames (N, 3, 299, 299) in [-1, 1] -> the 2048 features before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        parts = [
            blocks.BasicConv2d, BlockA, blocks.InceptionB, BlockC, blocks.InceptionD, BlockE, blocks.InceptionAux,
        ]  # fmt: skip
        self.network = blocks.Inception3(CLASSES, aux_logits=False, inception_blocks=parts, init_weights=False)
        self.network.Mixed_7c.last = True

    def load_weights(self, path: Path) -> None:
        """Load the published file. Raises UserError for another one."""
        from training.checkpoint import strict_load

        counters = {key: value for key, value in self.network.state_dict().items() if key.endswith("batches_tracked")}
        strict_load(self.network, counters | read_state_dict(path), path)  # old files have no counters

    def forward(self, frames: Tensor) -> Tensor:
        classify, self.network.fc = self.network.fc, nn.Identity()
        try:
            return self.network(frames)
        finally:
            self.network.fc = classify


def resized(frames: Tensor) -> Tensor:
    """Frames (N, 3, H, W) at the size of the network: bilinear, corners not aligned, no antialiasing."""
    return F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=False)


@torch.no_grad()
def features_of(network: FIDInception, frames: Tensor, at_a_time: int = 16) -> Tensor:
    """Features (N, 2048) of frames of any size, some at a time."""
    return torch.cat([network(resized(part)) for part in frames.split(at_a_time)])
