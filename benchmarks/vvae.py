"""Memory and time of VideoVAE+ at its published width.

Memory: peak of live tensors of one encoding and one decoding, weights not counted, on fake tensors (sizes only, so that
720p can be measured anywhere), beside the peaks that were counted so for the original. Time: wall seconds, medians over
rounds, for clips of --frames x --size: without slices and phase convolutions ("plain"), as it is, that in bfloat16 and,
if asked for, compiled. On a GPU also the peak of its memory. `--small`: CPU seconds of one thread for the model of
configs/vvae/tiny.yaml and one clip of its size, as it is and with the kernel that torch chooses for clips so small.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
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

from training.cli import make_parser, positive_int, run
from training.config import load_config
from training.distributed import resolve_device
from vvae import AutoencoderKL2plus1D_1dcnn
from vvae.src.modules import ae_modules, utils
from vvae.src.modules.utils import Normalize, each

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
    """The 16-channel model at its published width, with random weights, also where a fresh model has zeros."""
    model = AutoencoderKL2plus1D_1dcnn(ddconfig={"z_channels": 16}, ppconfig={"ch": 16}).freeze()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.02)
    return model


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


@contextmanager
def straightforward() -> Iterator[None]:
    """Inside, clips are one slice of the usual layout, normalised and up-sampled as it is usually written."""
    with (
        patch.object(Normalize, "scaling", lambda self, x: None),
        patch.dict(utils.CHANNELS_LAST, clear=True),
        patch.object(ae_modules.Upsample, "forward", upsample_plainly),
        patch.object(utils, "SLICE_BYTES", 1 << 60),
    ):
        yield


class Cost(NamedTuple):
    """Of encoding and of decoding one clip."""

    seconds: tuple[float, float]
    processor: tuple[float, float]  # seconds of CPU time, of all threads
    peaks: tuple[int, int]  # bytes on the GPU beyond those in use before; 0 on a CPU


@dataclass
class Variant:
    """One way to run the model, measured as files use it: `encode` and `decode` without gradients."""

    name: str
    against: str  # name of the variant that it is compared with
    model: AutoencoderKL2plus1D_1dcnn
    setting: Callable[[], AbstractContextManager] = nullcontext
    found: list[Cost] = field(default_factory=list)

    def run(self, video: Tensor, latent: Tensor) -> Cost | None:
        """Cost of one clip; None where a GPU lacks the memory, or has no kernel for tensors so large (said)."""
        parameter = next(self.model.parameters())
        try:
            with self.setting(), torch.inference_mode():
                encode = measure(self.model.encode, video.to(parameter))
                decode = measure(self.model.decode, latent.to(parameter))
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not video.is_cuda:
                raise
            print(f"{self.name}: {str(error).splitlines()[0]}")
            return None
        return Cost(*zip(encode, decode, strict=True))

    def medians(self, what: str = "seconds") -> tuple[float, float]:
        """Seconds to encode and to decode; not a number if it never ran."""
        if not self.found:
            return math.nan, math.nan
        return tuple(map(median, zip(*(getattr(cost, what) for cost in self.found), strict=True)))

    def row(self, base: Variant) -> tuple[str, ...]:
        """Cells of the table of times."""
        name = f"{self.name} (against {base.name})"
        if not self.found:
            return (name, *["impossible"] * 6)
        seconds = self.medians()
        ratios = [f"{before / after:.2f}" for before, after in zip(base.medians(), seconds, strict=True)]
        last = [f"{peak / GIB:.2f} GiB" for peak in self.found[-1].peaks if peak]
        last = last or [f"{value:.2f} s" for value in self.medians("processor")]
        return (name, *ratios, *(f"{value:.2f} s" for value in seconds), *last)


def measure(function: Callable[[Tensor], object], value: Tensor) -> tuple[float, float, int]:
    """Wall seconds and CPU seconds of one call, and its peak on the GPU in bytes."""
    before = 0
    if value.is_cuda:
        torch.cuda.reset_peak_memory_stats(value.device)
        before = torch.cuda.memory_allocated(value.device)
        torch.cuda.synchronize(value.device)
    start, processor = time.perf_counter(), time.process_time()
    function(value)
    if value.is_cuda:
        torch.cuda.synchronize(value.device)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return seconds, processor, torch.cuda.max_memory_allocated(value.device) - before if value.is_cuda else 0


def variants(device: torch.device, compiled: str | None) -> list[Variant]:
    """Those to compare."""
    exact = published_model().to(device)
    half = deepcopy(exact).to(torch.bfloat16)
    found = [
        Variant("plain", "plain", exact, straightforward),
        Variant("as it is", "plain", exact),
        Variant("bfloat16", "as it is", half),
    ]
    if compiled:
        base = found[1 if compiled == "fp32" else 2]
        model = deepcopy(base.model)
        model.encoder.compile()
        model.decoder.compile()
        found.append(Variant(f"{base.name}, compiled", base.name, model))
    return found


def warm_up(variant: Variant, video: Tensor, latent: Tensor) -> bool:
    """A first call: of the size that is timed on a GPU and for a compiled model, which then is built; else smaller.

    Returns whether it was possible.
    """
    compiled = variant.name.endswith("compiled")
    if not (compiled or video.is_cuda):
        video, latent = video[..., :4, :32, :32], latent[:, :, :1, :4, :4]
    first = variant.run(video, latent)
    if compiled and first is not None:
        print("first call when compiled: {:.0f} s to encode, {:.0f} s to decode".format(*first.seconds))
    return first is not None


def timings(compared: list[Variant], frames: int, size: tuple[int, int], rounds: int) -> list[tuple[str, ...]]:
    """Rows of the table of time: medians over rounds, in each of which every variant runs once."""
    height, width = size
    device = next(compared[0].model.parameters()).device
    video = torch.rand(1, 3, frames, height, width, device=device) * 2 - 1
    latent = torch.randn(1, 16, frames // 4, height // 8, width // 8, device=device)
    possible = [
        variant
        for variant in tqdm(compared, desc="warm-up", leave=False, disable=None)
        if warm_up(variant, video, latent)
    ]
    for _ in tqdm(range(rounds), unit="round", leave=False, disable=None):
        for variant in possible:
            cost = variant.run(video, latent)
            if cost is not None:
                variant.found.append(cost)
    named = {variant.name: variant for variant in compared}
    last = "peak" if device.type == "cuda" else "CPU time"
    header = [f"{half}{what}" for what in (": times faster", "", f": {last}") for half in ("encode", "decode")]
    return [("variant", *header), *(variant.row(named[variant.against]) for variant in compared)]


def small_clips(rounds: int) -> list[tuple[str, ...]]:
    """Rows of the table of a small model: it brings one clip back, and takes the gradients of a step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = load_config(Path(__file__).resolve().parent.parent / "configs/vvae/tiny.yaml", [])
    params = {key: value for key, value in config["model"]["params"].items() if key != "lossconfig"}
    model, (frames, size) = AutoencoderKL2plus1D_1dcnn(**params), (config["data"]["frames"], config["data"]["size"])
    video = torch.rand(1, 3, frames, size, size) * 2 - 1

    def reconstruct() -> None:
        with torch.inference_mode():
            model(video)

    def take_gradients() -> None:
        model(video)[0].square().mean().backward()

    rows = [("one clip, one thread", "times as fast", "torch's kernel", "as it is")]
    for name, act in {"reconstruct": reconstruct, "forward and backward": take_gradients}.items():
        seconds: dict[int, list[float]] = {0: [], utils.SMALL_CLIP: []}
        for _ in range(rounds + 1):
            for longest, found in seconds.items():
                start = time.process_time()
                with patch.object(utils, "SMALL_CLIP", longest):
                    act()
                found.append(time.process_time() - start)
        theirs, ours = (median(found[1:]) for found in seconds.values())
        rows.append((name, f"{theirs / ours:.2f}", f"{theirs * 1000:.0f} ms", f"{ours * 1000:.0f} ms"))
    return rows


def circumstances(device: torch.device, frames: int, size: tuple[int, int]) -> str:
    """The line above the table of time."""
    clip = f"wall time, {frames} frames of {size[0]}x{size[1]}, torch {torch.__version__}"
    if device.type != "cuda":
        return f"{clip}, CPU, threads: {torch.get_num_threads()}"
    switches = {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32}
    state = ", ".join(f"{'on' if on else 'off'} in {where}" for where, on in switches.items())
    clip = f"{clip}, {torch.cuda.get_device_name(device)}, TF32 {state}"
    return f"{clip}\npeaks: torch.cuda.max_memory_allocated, without weights and clip"


def show(rows: list[tuple[str, ...]]) -> None:
    """Print rows as a table."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print()


def frame_size(text: str) -> tuple[int, int]:
    """`256` or `720x1280` as (height, width)."""
    try:
        sides = [int(side) for side in text.split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or any(side < 8 or side % 8 for side in sides):
        raise argparse.ArgumentTypeError(f"{text}: give one or two multiples of 8, such as 256 or 720x1280")
    return sides[0], sides[-1]


def frame_count(text: str) -> int:
    """A positive multiple of 4."""
    if not text.isdecimal() or int(text) < 4 or int(text) % 4:
        raise argparse.ArgumentTypeError(f"{text}: give a multiple of 4")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--frames", type=frame_count, default=4, help="of the timed clip")
    parser.add_argument("--size", type=frame_size, default=(256, 256), metavar="H[xW]", help="of the timed clip")
    parser.add_argument("--rounds", type=positive_int, default=2, help="how often each variant is timed")
    parser.add_argument("--device", default="auto", help="of the timed runs: auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=positive_int, help="of the timed runs on a CPU (default: as torch chooses)")
    parser.add_argument("--compile", choices=("fp32", "bf16"), help="time torch.compile, too; its start takes minutes")
    parser.add_argument("--no_tf32", action="store_true", help="time float32 on a GPU without TF32 in convolutions")
    parser.add_argument("--no_time", action="store_true", help="live tensors only, seconds")
    parser.add_argument("--small", action="store_true", help="the small model and its clip on a CPU, and nothing else")
    parser.add_argument("--no_live", action="store_true", help="times only")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print both tables."""
    args = build_parser().parse_args(argv)
    if args.small:
        show(small_clips(args.rounds))
        return
    device = resolve_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.no_tf32:
        torch.backends.cudnn.allow_tf32 = False
    if not args.no_live:
        show(live_peaks())
    if not args.no_time:
        print(circumstances(device, args.frames, args.size))
        show(timings(variants(device, args.compile), args.frames, args.size, args.rounds))


if __name__ == "__main__":
    run(main)
