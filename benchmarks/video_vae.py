"""FLOPs and peak memory of a training step of the video VAE against the original's, without running either.

Ours is run on the meta device: torch counts the FLOPs of every operation, and every tensor that is alive is added up
(weights, gradients, Adam's moments, activations; exact sizes, without the allocator's rounding and without libraries).

The original is known by its size, 224,905,363 parameters, and by its counted forward cost: 45.6 GFLOP per encoded and
248.5 GFLOP per decoded frame, with T + 5 decoded frames for a clip of T. A step is 4 forward costs in both: forward,
recomputation, and a backward pass of twice the forward. Its memory is a lower bound: weights, gradients, moments,
and the activations of its output head alone, which is rebuilt here and works at twice the frame's resolution.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python benchmarks/...` finds the packages

from training.cli import make_parser, positive_int, run
from video_vae.config import PRESETS, load_config
from video_vae.model import TransformerNetwork

ORIGINAL_PARAMETERS = 224_905_363
ORIGINAL_ENCODED, ORIGINAL_DECODED = 45.6e9, 248.5e9  # FLOP per frame, forward
ORIGINAL_WARMUP = 5  # frames that it decodes and drops
FLOAT = 4  # bytes


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that are alive inside the block; `peak` is the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.add(value)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.remove, key, size)

    def remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class NoNoise:
    """Noise of the right shape for tensors without values."""

    def normal(self, *shape: int) -> Tensor:
        return torch.empty(1, *shape)


def squeeze_excite(dim: int) -> nn.Module:
    """Channel weights from the mean of each channel."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(dim, dim // 16, 1), nn.ReLU(), nn.Conv2d(dim // 16, dim, 1), nn.Sigmoid()
    )


class OriginalHead(nn.Module):
    """The original's output head: 3x3 convolutions at 480x640, the last with stride 2, then a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.rise = nn.Sequential(*conv(3, 32, 4), *conv(32, 64, 8), *conv(64, 128, 16, dilation=2))
        self.weights = squeeze_excite(128)
        self.fall = nn.Sequential(*conv(128, 64, 8), *conv(64, 32, 4), nn.Conv2d(32, 3, 3, 2, 1), nn.Sigmoid())

    def forward(self, canvas: Tensor) -> Tensor:
        x = self.rise(canvas)
        return self.fall(x * self.weights(x))


def conv(dim_in: int, dim_out: int, groups: int, dilation: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(dim_in, dim_out, 3, padding=dilation, dilation=dilation),
        nn.GroupNorm(groups, dim_out),
        nn.ReLU(),
    ]


def original_flops(frames: int) -> float:
    """FLOPs of a training step of the original on one clip."""
    return 4 * (frames * ORIGINAL_ENCODED + (frames + ORIGINAL_WARMUP) * ORIGINAL_DECODED)


def original_bytes() -> int:
    """A lower bound of the original's peak memory in a training step on one clip of 240x320."""
    with torch.device("meta"), LiveBytes() as live:
        head = OriginalHead()
        head(torch.empty(1, 3, 480, 640, requires_grad=True)).sum().backward()
    return 4 * FLOAT * ORIGINAL_PARAMETERS + live.peak


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer, frames: int, size: tuple[int, int]) -> None:
    """Forward, recomputation and backward pass, and update, on one clip."""
    clip = torch.empty(1, 3, frames, *size)
    reconstruction, terms = network(clip, NoNoise())
    ((reconstruction - clip).pow(2).mean() + sum(term.mean() for term in terms.values())).backward()
    optimizer.step()
    optimizer.zero_grad()


def our_flops(preset: str, frames: int, size: tuple[int, int]) -> float:
    """FLOPs of a training step with gradient checkpointing on one clip."""
    with torch.device("meta"):
        network = TransformerNetwork.from_config(load_config(preset))
        with FlopCounterMode(display=False) as flops:
            train_step(network, torch.optim.AdamW(network.parameters()), frames, size)
    return flops.get_total_flops()


def our_bytes(preset: str, frames: int, size: tuple[int, int]) -> tuple[int, int]:
    """Peak memory of the same step, and the number of parameters."""
    with torch.device("meta"), LiveBytes() as live:
        network = TransformerNetwork.from_config(load_config(preset))
        optimizer = torch.optim.AdamW(network.parameters(), foreach=False)
        train_step(network, optimizer, 1, size)  # the moments exist from the second step on
        train_step(network, optimizer, frames, size)
    return live.peak, sum(parameter.numel() for parameter in network.parameters())


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("FLOPs and peak memory of a training step against the original's.")
    parser.add_argument("--preset", choices=PRESETS, default=PRESETS[0], help="sizes of the network")
    parser.add_argument("--frames", type=positive_int, default=8, help="per clip")
    parser.add_argument(
        "--size", type=positive_int, nargs=2, default=(240, 320), metavar=("H", "W"), help="of the frames"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print the ratios first, then what they are made of."""
    args = build_parser().parse_args(argv)
    size = tuple(args.size)
    flops, (memory, parameters) = our_flops(args.preset, args.frames, size), our_bytes(args.preset, args.frames, size)
    theirs, their_memory = original_flops(args.frames), original_bytes()
    without_warmup = 4 * args.frames * (ORIGINAL_ENCODED + ORIGINAL_DECODED)
    print(f"FLOPs of a step  {flops / theirs:.3f} of the original's ({flops / without_warmup:.3f} without its warm-up)")
    print(f"peak memory      {memory / their_memory:.3f} of the original's lower bound")
    print(f"\n{args.preset}, {args.frames} frames {args.size[0]}x{args.size[1]}, batch 1, gradient checkpointing, fp32")
    print(f"            {'parameters':>12} {'TFLOP/step':>12} {'peak GB':>9}")
    print(f"  ours      {parameters / 1e6:>10.1f} M {flops / 1e12:>12.2f} {memory / 1e9:>9.2f}")
    print(f"  original  {ORIGINAL_PARAMETERS / 1e6:>10.1f} M {theirs / 1e12:>12.2f} {their_memory / 1e9:>9.2f}")


if __name__ == "__main__":
    run(main)
