"""Random changes of brightness, contrast, saturation and hue."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# RGB -> luma and the two colour differences I and Q of NTSC, in which a change of hue is a rotation.
YIQ = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])


def color_jitter(picture: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Change a picture (3, H, W) in [-1, 1]; `draws` (4,) in [-1, 1] say how much of each.

    Brightness, contrast and saturation change by a factor of 1 +- strength, hue by +- strength of a full turn.
    """
    brightness, contrast, saturation = (1 + strength * draws[:3]).tolist()
    picture = (picture + 1) / 2 * brightness
    luma = torch.einsum("c,chw->hw", picture.new_tensor(LUMA), picture)
    picture = luma.mean() + contrast * (picture - luma.mean())
    turned = color_matrix(saturation, 2 * math.pi * strength * float(draws[3])).to(picture)
    return (torch.einsum("dc,chw->dhw", turned, picture) * 2 - 1).clamp(-1, 1)


def color_matrix(saturation: float, angle: float) -> Tensor:
    """The map (3, 3) of RGB that scales colour differences by `saturation` and rotates them by `angle`."""
    cosine, sine = saturation * math.cos(angle), saturation * math.sin(angle)
    rotation = torch.tensor([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
    return torch.linalg.inv(YIQ) @ rotation @ YIQ
