"""Perceptual distances between frames: LPIPS, and the error of VGG-16 features; below them the networks.

Both are built at their first call (weights are found, or downloaded, only then), are frozen, compute in float32 even
under autocast, and put nothing into the state dict of the module that holds them. The networks have the key names of
the published files, torchvision's (which is not imported) and LPIPS's.
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

from losses.weights import find_lpips_heads, find_weights, read_state_dict
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


VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

MINIMUM_SIZE = {"vgg16": 16, "alexnet": 31}  # pixels; below it the last features have no extent


def vgg16_layers() -> list[tuple[str, nn.Module]]:
    """The layers of VGG-16 (Simonyan and Zisserman 2015, configuration D) as (name, module), in torchvision's order."""
    layers: list[tuple[str, nn.Module]] = []
    channels = 3
    for block, widths in enumerate(VGG16_WIDTHS, start=1):
        for number, width in enumerate(widths, start=1):
            layers.append((f"conv{block}_{number}", nn.Conv2d(channels, width, 3, padding=1)))
            layers.append((f"relu{block}_{number}", nn.ReLU()))
            channels = width
        layers.append((f"pool{block}", nn.MaxPool2d(2, 2)))
    return layers


def alexnet_layers() -> list[tuple[str, nn.Module]]:
    """The layers of AlexNet (Krizhevsky 2014, "one weird trick") as (name, module), in torchvision's order."""
    return [
        ("conv1", nn.Conv2d(3, 64, 11, stride=4, padding=2)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(3, 2)),
        ("conv2", nn.Conv2d(64, 192, 5, padding=2)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(3, 2)),
        ("conv3", nn.Conv2d(192, 384, 3, padding=1)),
        ("relu3", nn.ReLU()),
        ("conv4", nn.Conv2d(384, 256, 3, padding=1)),
        ("relu4", nn.ReLU()),
        ("conv5", nn.Conv2d(256, 256, 3, padding=1)),
        ("relu5", nn.ReLU()),
    ]


LAYERS = {"vgg16": vgg16_layers, "alexnet": alexnet_layers}


class FeatureNetwork(nn.Module):
    """Features of a backbone after each of the named layers.

    Slice k (`slice1`, `slice2`, ...) holds the layers up to the k-th named one, each under its torchvision index: the
    key layout of the published LPIPS networks.
    """

    def __init__(self, backbone: str, taps: Sequence[str]) -> None:
        super().__init__()
        layers = LAYERS[backbone]()
        names = [name for name, _ in layers]
        unknown = [tap for tap in taps if tap not in names]
        if unknown or not taps:
            raise UserError(f"unknown layers {', '.join(unknown) or '(none given)'}; {backbone} has {', '.join(names)}")
        self.backbone = backbone
        ends = sorted(names.index(tap) + 1 for tap in taps)
        for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), start=1):
            stack = nn.Sequential()
            for index in range(start, end):
                stack.add_module(str(index), layers[index][1])
            self.add_module(f"slice{number}", stack)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) -> one (N, C, h, w) per tap, in the order of depth."""
        features = []
        for stack in self.children():
            images = stack(images)
            features.append(images)
        return features

    def load_torchvision(self, path: Path) -> None:
        """Load a state dict in torchvision's format (`features.<index>.weight`); deeper layers are left aside."""
        published = read_state_dict(path)
        state = {}
        for key, own in self.state_dict().items():
            source = "features." + key.split(".", 1)[1]  # slice2.5.weight -> features.5.weight
            if source not in published:
                raise UserError(f"{path}: holds no {source}; torchvision's {self.backbone} weights are needed")
            if published[source].shape != own.shape:
                shapes = f"{tuple(published[source].shape)}, expected {tuple(own.shape)}"
                raise UserError(f"{path}: {source} has shape {shapes}; torchvision's {self.backbone} is needed")
            state[key] = published[source]
        self.load_state_dict(state)
