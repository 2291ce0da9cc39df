"""Arithmetic and memory of the 3-D tokenizer at its published width, beside those of the original.

Arithmetic: multiplications and additions of one encoding and one decoding, as torch counts them. Memory: peak of the
live tensors of the same calls without the weights, in float32, for a clip of 17 frames (16 where the model is not
causal) of 256 x 256. Both on fake tensors, which have sizes only: nothing is computed, and any machine gives the same
numbers. Those of the original were counted the same way. `--stream` gives the results away step by step.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python benchmarks/...` finds the packages

from benchmarks.vvae import GIB, LiveBytes
from tokenizer3d import Tokenizer3D
from tokenizer3d.config import PREFIX, published
from tokenizer3d.tiles import Pieces
from training.cli import make_parser, positive_int, run


class Cost(NamedTuple):
    """Of one call: TFLOP (two for each multiplication with its addition) and GiB."""

    tflop: float
    peak: float


# encode and decode of the original
ORIGINAL = {
    "kl_causal_488_4chn": (Cost(5.82, 3.83), Cost(14.87, 6.88)),
    "kl_causal_488_4chn_v1_1": (Cost(5.82, 7.81), Cost(14.87, 11.41)),
    "kl_causal_288_8chn": (Cost(5.58, 3.45), Cost(15.18, 4.50)),
    "kl_causal_444_4chn": (Cost(16.77, 8.26), Cost(16.41, 6.88)),
    "kl_causal_41616_4chn": (Cost(6.70, 3.83), Cost(14.70, 6.88)),
    "fsq_causal_888_32768_v1_1": (Cost(4.98, 7.91), Cost(17.83, 13.50)),
    "kl_noncausal_488_4chn": (Cost(4.66, 3.00), Cost(11.89, 6.50)),
    "kl_noncausal_41616_4chn": (Cost(5.36, 3.00), Cost(11.76, 6.50)),
}


class Activations(LiveBytes):
    """Live bytes, those of the weights included from the beginning: layers make views of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        storages = [value.untyped_storage() for value in model.parameters()]
        self.live = {storage._cdata: (StorageWeakRef(storage), storage.nbytes()) for storage in storages}
        self.weights = sum(storage.nbytes() for storage in storages)


def cost(model: nn.Module, function: Callable[[], object]) -> Cost:
    """Of a call, without gradients."""
    counter, memory = FlopCounterMode(display=False), Activations(model)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter, memory:
        function()
    return Cost(counter.get_total_flops() / 1e12, (memory.peak - memory.weights) / GIB)


def stream(model: Tokenizer3D, x: Tensor, z: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """Encoding and decoding that give their results away step by step."""

    def encode() -> None:
        for _ in model.encode_stream(x.split(model.temporal_factor, 2)):
            pass

    def decode() -> None:
        for _ in model.decode_stream(z.split(1, 2)):
            pass

    return encode, decode


def measured(name: str, frames: int, size: int, pieces: Pieces, streamed: bool) -> tuple[Cost, Cost]:
    """Encode and decode of a published configuration."""
    with FakeTensorMode():
        model = Tokenizer3D.from_config(name).eval()
        model.pieces = pieces
        frames = frames if model.is_causal else frames - 1
        x = torch.empty(1, 3, frames, size, size)
        side = size // model.spatial_factor
        z = torch.empty(1, model.config.z_channels, model.latent_frames(frames), side, side)
        whole = (lambda: model.moments(model.padded(x)), lambda: model.decode(z))
        return tuple(cost(model, call) for call in (stream(model, x, z) if streamed else whole))


def row(name: str, args: argparse.Namespace) -> str:
    """A line of the table: ours, and the share of the original's where that is known."""
    pieces = Pieces(args.step_latents, args.rows, args.tile)
    ours = measured(name, args.frames, args.size, pieces, args.stream)
    known = ORIGINAL.get(name) if (args.frames, args.size) == (17, 256) else None
    cells = []
    for number, found in enumerate(ours):
        for key, unit in (("tflop", "TFLOP"), ("peak", "GiB")):
            value = getattr(found, key)
            share = f" ({value / getattr(known[number], key):.2f})" if known else ""
            cells.append(f"{value:.2f} {unit}{share}")
    return f"| {name} | " + " | ".join(cells) + " |"


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=list(ORIGINAL), help="published names, without vidtok_")
    parser.add_argument("--frames", type=positive_int, default=17, help="of the clip; one fewer if not causal")
    parser.add_argument("--size", type=positive_int, default=256, help="side of the frames")
    parser.add_argument("--step_latents", type=positive_int, default=1, help="latents per step")
    parser.add_argument("--rows", type=positive_int, help="of a strip")
    parser.add_argument("--tile", type=positive_int, help="side of a tile in latents")
    parser.add_argument("--stream", action="store_true", help="give results away step by step")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    args = build_parser().parse_args(argv)
    print(f"{args.frames} frames of {args.size} x {args.size}, float32; in brackets: share of the original's")
    print("| configuration | encode | its peak | decode | its peak |\n|---|---|---|---|---|")
    for name in args.models:
        print(row(published(name).name.removeprefix(PREFIX), args), flush=True)


if __name__ == "__main__":
    run(main)
