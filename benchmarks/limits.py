"""What fraction of the processor's limit each path of the project reaches, on one thread.

    python benchmarks/limits.py --out limits.json         # all paths, about three minutes of one free core
    python benchmarks/limits.py --only "vqgan step" "lvt decoding"

The limit of a call is the longer of two times: its arithmetic, as torch counts it, at the speed of a float32 matrix
product, and its weights read from memory at the speed of a sum over a long tensor: once in a forward pass, nine times
in a training step (forward, backward, and what AdamW reads and writes), once for each position of a sampler.
Activations are not counted, and convolutions of oneDNN can be faster than the product (both are printed), so that
networks of wide convolutions come near 1, or above. The limit of preparing videos is decoding alone. References are
measured again beside each call, and the fraction is the median over the rounds; that of bfloat16 is of the float32
product, too. Seconds are CPU time of this process, which other programs on the machine disturb less; sizes are small,
so fractions of large inputs can be better.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python benchmarks/...` finds the packages

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from evaluation.report import format_table
from training.cli import make_parser, positive_int, run
from training.randomness import SampleNoise
from training.recipe import Recipe, Step
from videodata.files import write_json

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
STEP_PASSES = 9  # of the weights: forward, backward; AdamW reads weight, gradient and two moments and writes three
LEAST_SECONDS = 0.05  # of a measurement of a reference: shorter ones are repeated


@dataclasses.dataclass
class Work:
    """One call of a path; `parameters`: bytes of weights, read `passes` times."""

    call: Callable[[], object]
    parameters: int = 0
    passes: int = 1
    least: Callable[[], object] | None = None  # the least that must be done, where this is not arithmetic


def weights_of(*networks: nn.Module) -> int:
    """Bytes of all parameters."""
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())


def forward(
    network: nn.Module, method: Callable[[Tensor], object], value: Tensor, part: nn.Module | None = None
) -> Work:
    """One call without gradients."""

    def call() -> None:
        with torch.inference_mode():
            method(value)

    network.eval()
    return Work(call, weights_of(part or network))


def training_step(recipe: Recipe, batch: Any, count: int, bf16: bool = False) -> Work:
    """Forward and backward pass and update of a recipe with one optimiser, on `count` samples."""
    step = Step(1, 2, SampleNoise(0, range(count)), CPU)

    def call() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            (loss,) = recipe.losses(batch, step, recipe.networks)
        loss.total.backward()
        for optimizer in recipe.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()

    return Work(call, weights_of(*recipe.networks.values()), STEP_PASSES)


def noise(*shape: int) -> Tensor:
    """Values in [-1, 1]."""
    return 2 * torch.rand(shape) - 1


def vvae(quick: bool, decode: bool) -> Work:
    """VideoVAE+ of the published width on a clip of 4 frames of 32x32."""
    from benchmarks.vvae import published_model
    from training.config import load_config
    from vvae import instantiate_from_config

    if quick:
        model = instantiate_from_config(load_config(ROOT / "configs/vvae/tiny.yaml")["model"])
    else:
        model = published_model()
    if decode:
        latent = noise(1, model.decoder.z_channels, 1, 4, 4)
        return forward(model, model.decode, latent, model.decoder)
    return forward(model, model.encode, noise(1, 3, 4, 32, 32), model.encoder)


def vqgan_step(quick: bool) -> Work:
    """First stage of the documented VQGAN on one patch of 80x80."""
    from vqgan import VQGAN
    from vqgan.config import Objective
    from vqgan.train import ReconstructionRecipe

    dims, side = ((16, 32, 64, 128), 32) if quick else ((64, 128, 256, 512), 80)
    recipe = ReconstructionRecipe(VQGAN(dims, 32, 512, 4), Objective(perceptual_weight=0.0, vq_warmup=1))
    return training_step(recipe, noise(1, 3, side, side), 1)


def video_vae_step(quick: bool, preset: str, clips: int = 1, bf16: bool = False) -> Work:
    """A step of the video VAE on clips of 2 frames of its own size, activations kept: `main.py` where they fit."""
    from video_vae.config import LossConfig, load_config
    from video_vae.model import TransformerNetwork
    from video_vae.train import VideoVAERecipe

    settings = load_config("tiny" if quick else preset)
    network = TransformerNetwork.from_config(settings, checkpointing=False)
    recipe = VideoVAERecipe(network, LossConfig(perceptual_weight=0.0))
    batch = torch.randint(256, (clips, 3, 2, *settings["image_size"]), dtype=torch.uint8)
    return training_step(recipe, batch, clips, bf16)


def river_step(quick: bool, config: str) -> Work:
    """A step of RIVER on one clip of cached latents."""
    from benchmarks.flow_pred import make_recipe
    from flow_pred.config import load_config

    loaded, _ = load_config(ROOT / "configs/flow_pred" / f"{'digits_river_tiny' if quick else config}.yaml")
    shape, frames = loaded.model.vector_field_regressor, loaded.training.num_observations
    recipe = make_recipe(loaded, "river")
    return training_step(recipe, {"latents": torch.randn(1, frames, shape.state_size, *shape.state_res)}, 1)


def lvt_decoding(quick: bool) -> Work:
    """The first 64 positions of the last slice of one clip of 16x16x16 codes, one after the other with cache."""
    from itertools import islice

    from lvt.config import load_config
    from lvt.files import build_transformer
    from lvt.predictive_sampler import PredictiveSampler
    from lvt.sampling import SamplingRule

    model = build_transformer(load_config(ROOT / "configs/lvt" / f"{'VT_tiny' if quick else 'DSFVT'}.yaml")).eval()
    codes = torch.randint(model.config.nv, (1, model.config.nc, *((16, 8, 8) if quick else (16, 16, 16))))
    positions = 8 if quick else 64
    with torch.inference_mode():
        sampler = PredictiveSampler(model, codes, 1, SamplingRule(), None, [0], window=1)
        sampler.begin(model.config.n_slices - 1, 0)

    def call() -> None:
        with torch.inference_mode():
            for _ in islice(sampler.fill(0), positions):
                pass

    return Work(call, weights_of(model.decoder, model.ch_predictor), positions)


def vqvae_step(quick: bool) -> Work:
    """A step of PR-DVQVAE2 on 4 frames of 64x64."""
    from lvt.config import load_config
    from lvt.files import build_vqvae
    from lvt.train import VQVAERecipe

    config = load_config(ROOT / "configs/lvt" / f"{'VQVAE_tiny' if quick else 'PR-DVQVAE2'}.yaml")
    recipe = VQVAERecipe(build_vqvae(config), config)
    side = 16 if quick else 64
    return training_step(recipe, torch.randint(256, (1, 3, 4, side, side), dtype=torch.uint8), 1)


def tokenizer3d(quick: bool, decode: bool) -> Work:
    """The causal 3-D tokenizer 4x8x8 with 4 channels on a clip of 5 frames of 64x64."""
    from tokenizer3d import Tokenizer3D

    model, side = Tokenizer3D.from_config("kl_causal_488_4chn"), 16 if quick else 64
    clip = noise(1, 3, 5, side, side)
    if decode:
        latents = noise(1, model.config.z_channels, model.latent_frames(5), side // 8, side // 8)
        return forward(model, model.decode, latents, model.decoder)
    return forward(model, model.encode, clip, model.encoder)


def preparing(quick: bool) -> Work:
    """The frames of an MPEG-4 film of 320x240 as RGB in an array, without the processes and the disk around it."""
    from benchmarks.prepare import make_videos
    from videodata.container import open_video
    from videodata.video import iter_frames

    folder = Path(tempfile.mkdtemp())
    make_videos(folder / "film", 1, 20 if quick else 186)
    (film,) = (folder / "film").iterdir()
    array = np.empty((186, 240, 320, 3), np.uint8)

    def call() -> None:
        for number, frame in enumerate(iter_frames(film, (240, 320), "squeeze")):
            array[number] = frame

    def decode() -> None:
        with open_video(film) as video:
            for _ in video.frames():
                pass

    return Work(call, least=decode)


PATHS: dict[str, Callable[[bool], Work]] = {
    "vvae encode": lambda quick: vvae(quick, decode=False),
    "vvae decode": lambda quick: vvae(quick, decode=True),
    "vqgan step": vqgan_step,
    "video_vae small step": lambda quick: video_vae_step(quick, "small"),
    "video_vae small step x 4": lambda quick: video_vae_step(quick, "small", 4),
    "video_vae small step x 4, bf16": lambda quick: video_vae_step(quick, "small", 4, bf16=True),
    "video_vae tiny step": lambda quick: video_vae_step(quick, "tiny"),
    "river KTH step": lambda quick: river_step(quick, "kth_river"),
    "river tiny step": lambda quick: river_step(quick, "digits_river_tiny"),
    "lvt decoding": lvt_decoding,
    "PR-DVQVAE2 step": vqvae_step,
    "tokenizer3d encode": lambda quick: tokenizer3d(quick, decode=False),
    "tokenizer3d decode": lambda quick: tokenizer3d(quick, decode=True),
    "preparing 320x240": preparing,
}  # fmt: skip


@dataclasses.dataclass
class Reference:
    """One operation whose speed is a limit. amount: FLOP or bytes of a call."""

    unit: str
    amount: float
    call: Callable[[], object]

    def rate(self) -> float:
        """In 10^9 per second of the processor."""
        calls, begin = 0, time.process_time()
        while (spent := time.process_time() - begin) < LEAST_SECONDS or not calls:
            self.call()
            calls += 1
        return calls * self.amount / spent / 1e9


def references(quick: bool) -> dict[str, Reference]:
    """Matrix products, convolutions of oneDNN, and reading."""
    n, side = (256, 16) if quick else (1024, 64)
    a, channels = torch.randn(n, n), 128
    image, kernel = torch.randn(1, channels, side, side), torch.randn(channels, channels, 3, 3)
    packed = image.contiguous(memory_format=torch.channels_last)
    clip, cube = torch.randn(1, 64, 4, side, side), torch.randn(64, 64, 3, 3, 3)
    long = torch.randn((1 << 22) if quick else (1 << 26))
    found = {
        "float32 matrix product": Reference("GFLOP/s", 2 * n**3, lambda: a @ a),
        "3x3 convolution": Reference(
            "GFLOP/s", 18 * channels**2 * side**2, lambda: torch.conv2d(image, kernel, padding=1)
        ),
        "3x3 convolution, channels last": Reference(
            "GFLOP/s", 18 * channels**2 * side**2, lambda: torch.conv2d(packed, kernel, padding=1)
        ),
        "3x3x3 convolution": Reference(
            "GFLOP/s", 54 * 64**2 * 4 * side**2, lambda: torch.conv3d(clip, cube, padding=1)
        ),
        "reading": Reference("GB/s", long.nbytes, long.sum),
    }
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        half = a.bfloat16()
        found["bfloat16 matrix product"] = Reference("GFLOP/s", 2 * n**3, lambda: half @ half)
    return found


def cpu_seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


class Everything:
    """In place of what tells a counter the module that is at work, which some of the project's modules upset."""

    parents = ("Global",)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def convolution_flop(x: list[int], weight: list[int], *_: object, out_shape: list[int], **__: object) -> int:
    """FLOP of a convolution, from shapes."""
    return conv_flop_count(x, weight, out_shape)


def counted(work: Work) -> float:
    """FLOP of a call."""
    # that of oneDNN, which VideoVAE+ names for small clips, is not among those that torch knows
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_convolution: convolution_flop})
    counter.mod_tracker = Everything()
    with sdpa_kernel(SDPBackend.MATH), counter:  # the fused kernels are not counted
        work.call()
    return counter.get_total_flops()


def measure(work: Work, known: dict[str, Reference], rounds: int) -> dict[str, float]:
    """Seconds of a path, of its limit beside it, and the fraction; medians."""
    flop = 0 if work.least else counted(work)  # also the call that touches all memory for the first time
    work.call()
    spent, limits = [], []
    for _ in range(rounds):
        if work.least:
            limits.append(cpu_seconds(work.least))
        else:
            arithmetic = flop / known["float32 matrix product"].rate()
            limits.append(max(arithmetic, work.parameters * work.passes / known["reading"].rate()) / 1e9)
        spent.append(cpu_seconds(work.call))
    return {
        "fraction": median(limit / seconds for limit, seconds in zip(limits, spent, strict=True)),
        "seconds": median(spent),
        "limit_seconds": median(limits),
        "gflop": flop / 1e9,
        "gflop_per_second": flop / 1e9 / median(spent),
        "weights_gb": work.parameters * work.passes / 1e9,
    }


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PATHS), default=list(PATHS), help="paths to measure")
    parser.add_argument("--rounds", type=positive_int, default=3, help="of which the median is taken")
    parser.add_argument("--quick", action="store_true", help="so small that the figures mean little")
    parser.add_argument("--out", type=Path, help="file for the same as JSON")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Measure, print and store."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    known = references(args.quick)
    rates = {name: median(reference.rate() for _ in range(args.rounds)) for name, reference in known.items()}
    for name, rate in rates.items():
        print(f"{name:32} {rate:8.1f} {known[name].unit}")
    rows = [("one thread", "of the limit", "CPU seconds", "GFLOP", "GFLOP/s", "weights, GB")]
    found = {}
    for name in args.only:
        found[name] = result = measure(PATHS[name](args.quick), known, args.rounds)
        figures = ("gflop", "gflop_per_second", "weights_gb")
        cells = [f"{result[key]:.3g}" if result["gflop"] else "" for key in figures]
        rows.append((name, f"{result['fraction']:.2f}", f"{result['seconds']:.3f}", *cells))
        print(f"{name}: {result['fraction']:.2f}", file=sys.stderr, flush=True)
    print("\n" + format_table(rows))
    if args.out:
        references_out = {name: {"rate": rates[name], "unit": known[name].unit} for name in known}
        write_json(args.out, {"references": references_out, "paths": found, "rounds": args.rounds, "quick": args.quick})


if __name__ == "__main__":
    run(main)
