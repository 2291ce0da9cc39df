"""Feature networks that distances between sets of clips are computed with: I3D for FVD and KVD, Inception-v3 for FID,
V-JEPA for JEDi.

Another one is a subclass of FeatureExtractor and a line in EXTRACTORS, with its weight file in losses/weights.py.

I3D is Inception-v1 with inflated kernels (Carreira and Zisserman 2017, arXiv 1705.07750); its module names follow the
published PyTorch weights (`i3d_pretrained_400.pt`), so that they load by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from evaluation.protocol import RANDOM
from evaluation.vjepa import HUGE, find_vjepa, load_vjepa
from losses.weights import find_weights, read_state_dict
from videodata.errors import UserError
from videodata.files import sha256_of, write_file, write_json

CLASSES = 400  # of Kinetics, which I3D was trained on: the features of FVD are its logits
SIDE = 224  # pixels; the last pooling is made for it
MINIMUM_FRAMES = 9  # fewer leave the last pooling, over two steps of eight frames, without input
FRAMES_AT_A_TIME = 16  # through Inception
RANDOM_SIDE = 32
RANDOM_FEATURES = 32
RANDOM_SCALE = 10.0  # about the spread of the logits of I3D


class FeatureExtractor(ABC):
    """Clips float32 (B, 3, T, H, W) in [-1, 1] -> features (B * n, dimensions), n of each clip."""

    name: str  # part of the definition's id
    text: str  # what happens to a clip, in words
    dimensions: int
    minimum_frames: int
    frames_step = 1  # clips have a multiple of it
    usual_frames: int | None = None  # that it was trained with, where another number gives another scale
    input = ""  # size and range at its door, as ids have them: see `evaluation.set_definitions`
    counted = "clips"  # what has one feature: clips or frames
    kept = True  # in the feature cache

    def __init__(self, weights: Path | None) -> None:
        self.weights = weights
        self.sha256 = sha256_of(weights) if weights else None

    @abstractmethod
    def __call__(self, clips: Tensor) -> Tensor: ...

    @property
    def identity(self) -> str:
        """Changes when the features would."""
        return f"{self.name}-{(self.sha256 or 'none')[:16]}"

    @property
    def definition(self) -> str:
        """Its part of the id of a distance: another file or another size gives other numbers."""
        return "-".join(filter(None, (self.name, (self.sha256 or "")[:8], self.input)))

    def facts(self) -> dict[str, str | None]:
        """What a result says about the network."""
        return {
            "name": self.name,
            "text": self.text,
            "file": self.weights.name if self.weights else None,
            "sha256": self.sha256,
        }


class I3DFeatures(FeatureExtractor):
    """Logits of I3D from the published state dict."""

    name, dimensions, minimum_frames, input = "i3d", CLASSES, MINIMUM_FRAMES, f"sq{SIDE}hp-pm1"
    text = f"centre square, bilinear to {SIDE}x{SIDE} (corners not aligned, no antialiasing), [-1, 1], logits of I3D"

    def __init__(self, weights: Path, device: torch.device) -> None:
        from training.checkpoint import strict_load

        super().__init__(weights)
        network = I3D()
        counters = {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
        strict_load(network, counters | read_state_dict(weights), weights)  # old files have no counters
        self.network = network.eval().requires_grad_(False).to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        return self.network(centre_square(clips.to(self.device), SIDE))


class TorchScriptFeatures(FeatureExtractor):
    """Logits of the TorchScript I3D that the StyleGAN-V protocol uses. Such a file is a program: trust its origin."""

    name, dimensions, minimum_frames, input = "i3d-torchscript", CLASSES, MINIMUM_FRAMES, I3DFeatures.input
    text = I3DFeatures.text + " (TorchScript)"

    def __init__(self, weights: Path, device: torch.device) -> None:
        super().__init__(weights)
        try:
            self.network = torch.jit.load(weights, map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{weights}: not a TorchScript file; --extractor i3d takes a state dict") from error
        self.device = device

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        clips = centre_square(clips.to(self.device), SIDE)
        return self.network(clips, rescale=False, resize=False, return_features=True)


class RandomFeatures(FeatureExtractor):
    """A small network with fixed random weights: exercises everything but the meaning of the number."""

    name, dimensions, minimum_frames, input = RANDOM, RANDOM_FEATURES, 2, f"sq{RANDOM_SIDE}hp-pm1"
    text = f"centre square, {RANDOM_SIDE}x{RANDOM_SIDE}, a small network of RANDOM weights: no number to report"

    def __init__(self, device: torch.device) -> None:
        super().__init__(None)
        generator = torch.Generator().manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv3d(3, 16, (2, 4, 4), (1, 4, 4)), nn.ReLU(), nn.Conv3d(16, RANDOM_FEATURES, (1, 4, 4), (1, 4, 4))
        )
        for parameter in self.network.parameters():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
        self.network = self.network.requires_grad_(False).to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        return self.network(centre_square(clips.to(self.device), RANDOM_SIDE)).relu().mean(dim=(2, 3, 4)) * RANDOM_SCALE


def save_network(network: nn.Module, path: Path, facts: dict[str, object], half: bool = False) -> None:
    """Write the weights of a network that was trained here, and beside them a .json with how, and how well it does.

    half: 16 bits of each number.
    """
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    if half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, save(tensors))
    write_json(path.with_suffix(".json"), {"sha256": sha256_of(path), **facts}, sort_keys=False)


def centre_square(clips: Tensor, side: int) -> Tensor:
    """The middle square of clips (B, 3, T, H, W), resized as `I3DFeatures.text` says: (B, 3, T, side, side)."""
    height, width = clips.shape[3:]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    frames = clips[..., top : top + square, left : left + square].transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, size=(side, side), mode="bilinear", align_corners=False, antialias=False)
    return frames.unflatten(0, (clips.shape[0], clips.shape[2])).transpose(1, 2)


class InceptionFeatures(FeatureExtractor):
    """Features of each frame from the published weights."""

    name, dimensions, minimum_frames, counted, input = "pytorch", 2048, 1, "frames", "full299hp-pm1"
    text = "whole frames, bilinear to 299x299 (corners not aligned, no antialiasing), [-1, 1], pool3 of Inception-v3"

    def __init__(self, weights: Path, device: torch.device) -> None:
        from evaluation.inception import FIDInception  # here, because torchvision takes seconds to import

        super().__init__(weights)
        network = FIDInception()
        network.load_weights(weights)
        self.network, self.device = network.eval().requires_grad_(False).to(device), device

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        frames = clips.transpose(1, 2).flatten(0, 1).to(self.device)
        return torch.cat([self.network(part) for part in frames.split(FRAMES_AT_A_TIME)])


class VJEPAFeatures(FeatureExtractor):
    """One vector of each clip from V-JEPA and its attentive pooler. Its weights are CC BY-NC 4.0."""

    name, dimensions, minimum_frames, frames_step, usual_frames = "vjepa-h16-ssv2", HUGE.width, 2, 2, HUGE.frames
    input = f"sq{HUGE.side}hp-pm1"
    text = (
        f"centre square, bilinear to {HUGE.side}x{HUGE.side} (corners not aligned, no antialiasing), ImageNet's mean "
        "and deviation, V-JEPA ViT-H/16 with the attentive pooler of Something-Something v2, one view, float32"
    )

    def __init__(self, weights: Path | tuple[Path, Path], device: torch.device) -> None:
        files = weights if isinstance(weights, tuple) else (weights,)
        super().__init__(files[0])
        self.probe = files[1] if len(files) > 1 else None
        self.probe_sha256 = sha256_of(self.probe) if self.probe else None
        self.network = load_vjepa(files).to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        clips = centre_square(clips.to(self.device), HUGE.side)
        with torch.autocast(self.device.type, enabled=False):
            return self.network(clips.float())

    @property
    def identity(self) -> str:
        return f"{super().identity}-{(self.probe_sha256 or 'packed')[:16]}"

    def facts(self) -> dict[str, str | None]:
        probe = {"probe_file": self.probe.name, "probe_sha256": self.probe_sha256} if self.probe else {}
        return {**super().facts(), **probe, "licence": "CC BY-NC 4.0", "size": str(HUGE.side), "resize": "bilinear"}


class RandomFrameFeatures(RandomFeatures):
    """The small random network, on each frame twice in place of on clips."""

    minimum_frames, counted = 1, "frames"

    def __call__(self, clips: Tensor) -> Tensor:
        frames = clips.transpose(1, 2).flatten(0, 1)[:, :, None]
        return super().__call__(frames.expand(-1, -1, 2, -1, -1))


EXTRACTORS: dict[str, Callable[[Path | tuple[Path, Path], torch.device], FeatureExtractor]] = {
    "i3d": I3DFeatures,
    "i3d-torchscript": TorchScriptFeatures,
    "inception": InceptionFeatures,
    "vjepa": VJEPAFeatures,
}


def open_extractor(
    name: str = "i3d",
    weights: Path | str | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
    allow_random: bool = False,
) -> FeatureExtractor:
    """The feature network `name`, its weights from a file or folder, found by name, or downloaded on request.

    allow_random: a RANDOM network in its place; its results carry that name. Raises UserError in one line.
    """
    if name not in EXTRACTORS:
        raise UserError(f"unknown feature network {name!r}; choose one of {', '.join(EXTRACTORS)}")
    device = torch.device(device)
    if allow_random:
        return RandomFrameFeatures(device) if name == "inception" else RandomFeatures(device)
    find = find_vjepa if name == "vjepa" else find_weights
    return EXTRACTORS[name](find(name, weights, download=download), device)


FEATURES = 1024  # channels of I3D after Mixed_5c
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


def pad_same(values: Tensor, kernel: Kernel, stride: Kernel) -> Tensor:
    """Zeros around (B, C, T, H, W) so that ceil(size / stride) positions fit, the odd one behind: TensorFlow's rule."""
    padding: list[int] = []
    for size, k, s in zip(values.shape[2:], kernel, stride, strict=True):
        total = max(k - (size % s or s), 0)
        padding = [total // 2, total - total // 2, *padding]  # F.pad begins with the last axis
    return F.pad(values, padding)
