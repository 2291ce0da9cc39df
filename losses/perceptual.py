"""Perceptual distances between frames: LPIPS, and the error of VGG-16 features.

Both are built at their first call (weights are found, or downloaded, only then), are frozen, compute in float32 even
under autocast, and put nothing into the state dict of the module that holds them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from losses.backbones import MINIMUM_SIZE, FeatureNetwork
from losses.lpips_network import BACKBONES, LPIPSNetwork
from losses.weights import find_lpips_heads, find_weights
from videodata.errors import UserError

if TYPE_CHECKING:
    from training.randomness import SampleNoise

DEFAULT_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PerceptualLoss(nn.Module):
    """Base of the perceptual distances: frames x, y (N, 3, H, W) in [-1, 1] -> distance per frame, float32 (N,).

    `weights`: the backbone's file, or a folder that holds it; by default it is looked for, then downloaded.
    Frames are compared `chunk` at a time; with `recompute`, each chunk's activations are computed again in the backward
    pass in place of being kept. Raises UserError when the weights are missing or the frames are too small.
    """

    backbone: str

    def __init__(self, weights: Path | str | None = None, chunk: int = 8, recompute: bool = True) -> None:
        super().__init__()
        self.weights = weights
        self.chunk = chunk
        self.recompute = recompute
        self._built: list[nn.Module] = []  # in a list, so that it is no submodule: not stored, never in train mode

    @abstractmethod
    def _build(self, weights: Path) -> nn.Module: ...

    @abstractmethod
    def _distance(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor: ...

    def weights_file(self) -> Path:
        """The backbone's weight file; downloads it on first use."""
        return find_weights(self.backbone, self.weights)

    def _network(self, device: torch.device) -> nn.Module:
        with torch.inference_mode(False):  # a network first used in a validation must still serve the training
            if not self._built:
                self._built.append(self._build(self.weights_file()).requires_grad_(False).eval())
            return self._built[0].to(device)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.shape != y.shape or x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"expected two batches (N, 3, H, W), got {tuple(x.shape)} and {tuple(y.shape)}")
        self._check_size(x)
        network = self._network(x.device)
        distances = [
            self._chunk_distance(network, a, b)
            for a, b in zip(x.float().split(self.chunk), y.float().split(self.chunk), strict=True)
        ]
        return torch.cat(distances)

    def _check_size(self, frames: Tensor) -> None:
        minimum = MINIMUM_SIZE[self.backbone]
        if min(frames.shape[-2:]) < minimum:
            height, width = frames.shape[-2:]
            raise UserError(
                f"frames of {width}x{height} are too small for a perceptual loss with {self.backbone} "
                f"(at least {minimum} pixels); use larger frames or weight 0"
            )

    def _chunk_distance(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        distance = partial(self._distance_float32, network)
        if self.recompute and torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
            return checkpoint(distance, x, y, use_reentrant=False)
        return distance(x, y)

    def _distance_float32(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self._distance(network, x, y)


class LPIPS(PerceptualLoss):
    """Learned perceptual distance, LPIPS v0.1 (arXiv 1801.03924): net "vgg" for training, "alex" for reporting."""

    def __init__(self, net: str = "vgg", weights: Path | str | None = None, **options: object) -> None:
        if net not in BACKBONES:
            raise UserError(f"unknown LPIPS network {net!r}; choose one of {', '.join(BACKBONES)}")
        super().__init__(weights, **options)
        self.net = net
        self.backbone = BACKBONES[net]

    def _build(self, weights: Path) -> nn.Module:
        network = LPIPSNetwork(self.net)
        network.load_weights(weights, find_lpips_heads(self.net))
        return network

    def _distance(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return network(x, y)


class VGGFeatureLoss(PerceptualLoss):
    """Mean squared error of VGG-16 features (Johnson et al. 2016, arXiv 1603.08155), averaged over the layers.

    `layers`: names such as relu3_3 or conv5_3 (before its ReLU). `resize`: side in pixels to which frames are resized
    first, antialiased; None keeps their size. `VGGFeatureLoss.original()` is the loss of the original video VAE.
    """

    backbone = "vgg16"

    def __init__(
        self,
        layers: Sequence[str] = DEFAULT_LAYERS,
        weights: Path | str | None = None,
        resize: int | None = None,
        **options: object,
    ) -> None:
        super().__init__(weights, **options)
        self.layers = tuple(layers)
        self.resize = resize

    @classmethod
    def original(cls, weights: Path | str | None = None, **options: object) -> VGGFeatureLoss:
        """The last convolution before its ReLU, on frames resized to 224x224."""
        return cls(layers=("conv5_3",), weights=weights, resize=224, **options)

    def _build(self, weights: Path) -> nn.Module:
        network = FeatureNetwork("vgg16", self.layers)
        network.load_torchvision(weights)
        return network

    def _check_size(self, frames: Tensor) -> None:
        if self.resize is None:
            super()._check_size(frames)

    def _distance(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        features_x, features_y = network(self._prepare(x)), network(self._prepare(y))
        errors = [((a - b) ** 2).mean(dim=(1, 2, 3)) for a, b in zip(features_x, features_y, strict=True)]
        return torch.stack(errors).mean(dim=0)

    def _prepare(self, frames: Tensor) -> Tensor:
        if self.resize is not None:
            side = (self.resize, self.resize)
            frames = F.interpolate(frames, size=side, mode="bilinear", align_corners=False, antialias=True)
        mean = frames.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
        std = frames.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
        return ((frames + 1) / 2 - mean) / std


PERCEPTUAL_LOSSES = {
    "lpips": partial(LPIPS, "vgg"),
    "lpips-alex": partial(LPIPS, "alex"),
    "vgg": VGGFeatureLoss,
    "vgg-conv5_3": VGGFeatureLoss.original,
}


def build_perceptual(name: str, weights: Path | str | None = None, **options: object) -> PerceptualLoss:
    """The perceptual distance of that name (a key of PERCEPTUAL_LOSSES); nothing is loaded before its first call."""
    if name not in PERCEPTUAL_LOSSES:
        raise UserError(f"unknown perceptual loss {name!r}; choose one of {', '.join(PERCEPTUAL_LOSSES)}")
    return PERCEPTUAL_LOSSES[name](weights=weights, **options)


def perceptual_loss(
    distance: PerceptualLoss,
    clip: Tensor,
    reconstruction: Tensor,
    weight: float = 1.0,
    frames: int = 0,
    noise: SampleNoise | None = None,
) -> Tensor:
    """`weight` times the mean distance over the frames of each clip, float32 (B,); clips (B, 3, T, H, W) in [-1, 1].

    With `frames` > 0 only that many random frames of each clip are compared, drawn from `noise` without replacement:
    an unbiased estimate. A weight of 0 gives zeros and touches nothing: no weights, no memory, no random numbers.
    """
    if weight == 0:
        return clip.new_zeros(clip.shape[0], dtype=torch.float32)
    if 0 < frames < clip.shape[2]:
        if noise is None:
            raise ValueError("a random subset of frames needs the noise of the samples")
        chosen = noise.uniform(clip.shape[2]).argsort(dim=1)[:, :frames]  # (B, frames)
        clip, reconstruction = select_frames(clip, chosen), select_frames(reconstruction, chosen)
    distances = distance(clip.transpose(1, 2).flatten(0, 1), reconstruction.transpose(1, 2).flatten(0, 1))
    return weight * distances.unflatten(0, (clip.shape[0], clip.shape[2])).mean(dim=1)


def select_frames(clip: Tensor, frames: Tensor) -> Tensor:
    """Clip (B, C, T, H, W) and frame numbers (B, K) -> (B, C, K, H, W)."""
    batch = torch.arange(clip.shape[0], device=clip.device)[:, None]
    return clip.transpose(1, 2)[batch, frames.to(clip.device)].transpose(1, 2)
