"""Feature networks that FVD can be computed with. Another one is a class with the members of FeatureExtractor and a
line in EXTRACTORS.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.features import FeatureExtractor
from evaluation.i3d import CLASSES, I3D, MINIMUM_FRAMES, SIDE
from losses.weights import find_weights, read_state_dict
from videodata.errors import UserError

RANDOM = "RANDOM"
RANDOM_SIDE = 32
RANDOM_FEATURES = 32
RANDOM_SCALE = 10.0  # about the spread of the logits of I3D


class I3DFeatures(FeatureExtractor):
    """Logits of I3D from the published state dict."""

    name, dimensions, minimum_frames = "i3d", CLASSES, MINIMUM_FRAMES
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

    name, dimensions, minimum_frames = "i3d-torchscript", CLASSES, MINIMUM_FRAMES
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

    name, dimensions, minimum_frames = RANDOM, RANDOM_FEATURES, 2
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


def centre_square(clips: Tensor, side: int) -> Tensor:
    """The middle square of clips (B, 3, T, H, W), resized as `I3DFeatures.text` says: (B, 3, T, side, side)."""
    height, width = clips.shape[3:]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    frames = clips[..., top : top + square, left : left + square].transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, size=(side, side), mode="bilinear", align_corners=False, antialias=False)
    return frames.unflatten(0, (clips.shape[0], clips.shape[2])).transpose(1, 2)


EXTRACTORS: dict[str, Callable[[Path, torch.device], FeatureExtractor]] = {
    "i3d": I3DFeatures,
    "i3d-torchscript": TorchScriptFeatures,
}


def open_extractor(
    name: str = "i3d",
    weights: Path | str | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
    allow_random: bool = False,
) -> FeatureExtractor:
    """The feature network `name`, its weights from a file or folder, found by name, or downloaded on request.

    allow_random: the RANDOM network in its place; its results carry that name. Raises UserError in one line.
    """
    device = torch.device(device)
    if allow_random:
        return RandomFeatures(device)
    if name not in EXTRACTORS:
        raise UserError(f"unknown feature network {name!r}; choose one of {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](find_weights(name, weights, download=download), device)
