"""Memory and time of VideoVAE+ at its published width.

Memory: peak of live tensors of one encoding and one decoding, weights not counted, on fake tensors (sizes only, so that
720p can be measured anywhere), beside the peaks that were counted so for the original. Time: CPU seconds, medians over
rounds, for clips of --frames x --size x --size: without slices and phase convolutions ("plain"), as it is, and that in
bfloat16.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python benchmarks/...` finds the packages

from training.cli import make_parser, run
from vvae import AutoencoderKL2plus1D_1dcnn
from vvae.src.modules import ae_modules, slices
from vvae.src.modules.slices import each

GIB = 2**30
SHAPES = ((16, 256, 256), (16, 720, 1280))
ORIGINAL = {(16, 256, 256): (3.0, 4.0), (16, 720, 1280): (62.5, 56.3)}  # GiB, encode and decode


class LiveBytes(TorchDispatchMode):
    """Inside, `peak` follows the largest sum of the storages that operations made and that still live."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def published_model() -> AutoencoderKL2plus1D_1dcnn:
    """The 16-channel model at its published width, with random weights."""
    return AutoencoderKL2plus1D_1dcnn(ddconfig={"z_channels": 16}, ppconfig={"ch": 16}).freeze()


def live_peaks() -> list[tuple[str, ...]]:
    """Rows of the table of memory."""
    rows = [("clip", "encode", "decode", "original encode", "original decode")]
    with FakeTensorMode():
        model = published_model()
        for frames, height, width in SHAPES:
            inputs = torch.empty(1, 3, frames, height, width), torch.empty(1, 16, frames // 4, height // 8, width // 8)
            peaks = []
            for half, value in zip((model.encoder, model.decoder), inputs, strict=True):
                with LiveBytes() as memory:
                    half(value)
                peaks.append(memory.peak / GIB)
            before = ORIGINAL[frames, height, width]
            rows.append((f"{frames}x{height}x{width}", *(f"{value:.2f} GiB" for value in (*peaks, *before))))
    return rows


def upsample_plainly(layer: ae_modules.Upsample, x: list[Tensor]) -> list[Tensor]:
    """The up-sampling as it is usually written."""
    return each(lambda part: layer.conv(F.interpolate(part, scale_factor=(1, 2, 2))), x)


def cpu_seconds(function: Callable[[Tensor], object], value: Tensor) -> float:
    """CPU time of one call."""
    start = time.process_time()
    function(value)
    return time.process_time() - start


@contextmanager
def straightforward() -> Iterator[None]:
    """Inside, clips are one slice and up-sampling is computed as it is usually written."""
    with (
        patch.object(ae_modules.Upsample, "forward", upsample_plainly),
        patch.object(slices, "SLICE_BYTES", 1 << 60),
    ):
        yield


def timings(frames: int, size: int, rounds: int) -> list[tuple[str, ...]]:
    """Rows of the table of time: medians over rounds, in each of which every variant runs once."""
    exact = published_model()
    half = deepcopy(exact).to(torch.bfloat16)
    video = torch.rand(1, 3, frames, size, size) * 2 - 1
    latent = torch.randn(1, 16, frames // 4, size // 8, size // 8)
    few_frames = slices.SLICE_BYTES * size * size // 256**2  # as many per slice as in a clip of 256x256
    sliced = partial(patch.object, slices, "SLICE_BYTES", few_frames)
    variants = {"plain": (exact, straightforward), "as it is": (exact, sliced), "bfloat16": (half, sliced)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in tqdm(range(rounds), unit="round", leave=False, disable=None):
        for name, (model, setting) in variants.items():
            inputs = [value.to(next(model.parameters()).dtype) for value in (video, latent)]
            with setting(), torch.inference_mode():
                model.encoder(inputs[0][..., :4, :32, :32])  # warm-up
                found[name].append(tuple(map(cpu_seconds, (model.encoder, model.decoder), inputs)))
    medians = {name: [median(column) for column in zip(*times, strict=True)] for name, times in found.items()}
    rows = [("variant", "encode: times faster", "decode: times faster", "encode", "decode")]
    for name, base in (("plain", "plain"), ("as it is", "plain"), ("bfloat16", "as it is")):
        ratios = [f"{first / value:.2f}" for first, value in zip(medians[base], medians[name], strict=True)]
        rows.append((f"{name} (against {base})", *ratios, *(f"{value:.2f} s" for value in medians[name])))
    return rows


def show(rows: list[tuple[str, ...]]) -> None:
    """Print rows as a table."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print()


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=8, help="of the timed clip")
    parser.add_argument("--size", type=int, default=64, help="height and width of the timed clip")
    parser.add_argument("--rounds", type=int, default=3, help="how often each variant is timed")
    parser.add_argument("--threads", type=int, default=1, help="threads of the timed runs")
    parser.add_argument("--no_time", action="store_true", help="memory only, seconds")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print both tables."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    show(live_peaks())
    if not args.no_time:
        show(timings(args.frames, args.size, args.rounds))


if __name__ == "__main__":
    run(main)
