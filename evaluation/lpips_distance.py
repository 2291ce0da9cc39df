"""LPIPS distance of clips: per frame, then the mean over the frames of a clip."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.clips import unit_pair
from losses.perceptual import LPIPS, LPIPSNetwork
from losses.weights import find_lpips_heads, read_state_dict
from videodata.download import sha256_of

RANDOM = "RANDOM"


def lpips_distance(
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    value_range: tuple[float, float] = (-1.0, 1.0),
    quantize: bool = True,
    net: str = "alex",
    weights: Path | str | None = None,
) -> Tensor:
    """Mean over a clip's frames of LPIPS v0.1, 0 for identical clips: two batches of clips -> float64 (B,).

    `net` is alex (for reporting) or vgg, whose values are not comparable, or RANDOM. Frames are not resized. Clips are
    as for `psnr`. Raises UserError in one line when the weights are missing and cannot be downloaded.
    """
    return lpips_per_frame(a, b, value_range, quantize, net, weights).mean(dim=1)


@torch.no_grad()
def lpips_per_frame(
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    value_range: tuple[float, float] = (-1.0, 1.0),
    quantize: bool = True,
    net: str = "alex",
    weights: Path | str | None = None,
) -> Tensor:
    """LPIPS of each frame: float64 (B, T)."""
    a, b = unit_pair(a, b, value_range, quantize)
    metric = lpips_metric(net, None if weights is None else str(weights))
    distances = metric((a * 2 - 1).flatten(0, 1).float(), (b * 2 - 1).flatten(0, 1).float())
    return distances.double().unflatten(0, a.shape[:2])


@lru_cache(maxsize=4)
def lpips_metric(net: str, weights: str | None) -> LPIPS:
    """The metric, built once per network and weight file."""
    return RandomLPIPS() if net == RANDOM else LPIPS(net, weights)


def lpips_facts(net: str, weights: Path | str | None) -> dict[str, str | None]:
    """File and hash of the network that computes the metric."""
    if net == RANDOM:
        return {"file": None, "sha256": None}
    file = lpips_metric(net, None if weights is None else str(weights)).weights_file()
    return {"file": file.name, "sha256": sha256_of(file)}


class RandomLPIPS(LPIPS):
    """LPIPS-alex with a backbone of fixed random weights: exercises everything but the meaning of the number."""

    def __init__(self) -> None:
        super().__init__("alex")

    def weights_file(self) -> None:
        """There is none."""

    def _build(self, weights: Path | None) -> nn.Module:
        network, generator = LPIPSNetwork("alex"), torch.Generator().manual_seed(0)
        network.load_state_dict(read_state_dict(find_lpips_heads("alex")), strict=False)
        for parameter in network.net.parameters():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
        return network
