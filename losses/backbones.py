"""The convolutional part of VGG-16 and AlexNet, cut after the layers whose features are wanted.

Layers keep torchvision's indices, so that torchvision's weight files load by name; torchvision is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from losses.weights import read_state_dict
from videodata.errors import UserError

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
