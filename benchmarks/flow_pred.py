"""What video prediction costs: sampling in the original's setting and in ours, training with and without the cache.

    python benchmarks/flow_pred.py --runs runs

Sampling needs the trained shapes runs (docs/flow_pred.md); without them only the training steps are measured. PSNR is
of the first four predicted frames. Calls are evaluations of all networks; seconds are CPU time of this process, both
per video and frame, encoding and decoding included.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks.flow_pred_original import sample_as_the_original
from evaluation.metrics import psnr
from evaluation.report import format_table
from flow_pred.autoencoder import build_autoencoder
from flow_pred.config import FlowPredConfig, load_config
from flow_pred.files import build_regressor, load_neural_sde, load_river
from flow_pred.latents import LatentSpace, at_rest, decode_clip, encode_clip
from flow_pred.neural_sde import NeuralSDE
from flow_pred.predict import CallCounter
from flow_pred.recipes import DiffusionRecipe, FlowRecipe, PredictorRecipe, RiverRecipe
from flow_pred.river import RiverPredictor
from training import SampleNoise, Step
from training.cli import make_parser, run
from videodata.clips import open_clips

ROOT = Path(__file__).resolve().parent.parent
FRAMES, CONTEXT, BATCH = 4, 4, 8
EQUAL = 0.2  # dB
Sampler = Callable[[Any, Tensor], Tensor]  # predictor, context latents -> latents


def ours(predictor: RiverPredictor | NeuralSDE, context: Tensor, **options: Any) -> Tensor:
    """Our sampling with the given options."""
    return predictor.sample(context, FRAMES, generator=torch.Generator().manual_seed(0), **options)


def original(predictor: NeuralSDE, context: Tensor) -> Tensor:
    """The original's adaptive sampling of the neural SDE."""
    return sample_as_the_original(predictor, context, FRAMES)


RIVER_SETTINGS: dict[str, Sampler] = {
    "original: 100 points, 3/8 rule": functools.partial(ours, grid="reference", steps=100),
    "midpoint, 10 steps": functools.partial(ours, steps=10),
    "midpoint, 5 steps": functools.partial(ours, steps=5),
    "midpoint, 3 steps": functools.partial(ours, steps=3),
    "euler, 4 steps": functools.partial(ours, steps=4, method="euler"),
}
SDE_SETTINGS: dict[str, Sampler] = {
    "original: adaptive, atol 1e-2": original,
    "adaptive, atol 1e-2": functools.partial(ours, method="adaptive"),
    "euler, 4 steps": functools.partial(ours, steps=4),
    "euler, 2 steps": functools.partial(ours, steps=2),
    "euler, 1 step": functools.partial(ours, steps=1),
    "heun, 1 step": functools.partial(ours, steps=1, method="heun"),
}


@dataclasses.dataclass
class Measured:
    """One way of sampling."""

    name: str
    psnr: float
    calls: float  # network evaluations per predicted frame
    seconds: float  # per predicted frame


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = make_parser("Calls, seconds and PSNR of sampling; seconds of a training step.")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder with the shapes-fourth_run-* folders")
    parser.add_argument("--data", default="shapes:400,frames=64,size=32", help="videos; the test split is predicted")
    parser.add_argument(
        "--stride", type=int, default=4, help="frames of the videos from one frame of a clip to the next"
    )
    parser.add_argument("--suffix", default="_tiny", help="of the names of the run folders")
    parser.add_argument("--videos", type=int, default=16, help="videos that are predicted")
    parser.add_argument("--parts", nargs="+", choices=("sampling", "training"), default=["sampling", "training"],
                        help="what is measured")  # fmt: skip
    parser.add_argument("--config", type=Path, default=ROOT / "configs/flow_pred/kth_river.yaml",
                        help="network and autoencoder of the training steps")  # fmt: skip
    parser.add_argument("--components", nargs="+", choices=("river", "f_nll", "g"), default=["river", "f_nll"],
                        help="networks of the training steps")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=4, help="of the training steps")
    parser.add_argument("--steps", type=int, default=3, help="training steps of which the median is taken")
    return parser


def measure(predictor: RiverPredictor | NeuralSDE, batches: list[Tensor], name: str, sample: Sampler) -> Measured:
    """Predict all clips (B, 3, T, H, W) in one way."""
    counter, seconds, values = CallCounter(predictor), 0.0, []
    for clips in batches:
        start = time.process_time()
        with at_rest(predictor):
            latents = sample(predictor, encode_clip(predictor.autoencoder, clips[:, :, :CONTEXT]))
            predicted = decode_clip(predictor.autoencoder, latents[:, CONTEXT:])
        seconds += time.process_time() - start
        values.append(psnr(clips[:, :, CONTEXT:], predicted))
    quality = torch.cat(values)
    return Measured(name, quality.mean().item(), *(x / len(quality) / FRAMES for x in (counter.total, seconds)))


def compare(title: str, make: Callable[[], Any], settings: dict[str, Sampler], args: argparse.Namespace) -> None:
    """All ways of sampling one predictor against the first."""
    clips = open_clips(args.data, CONTEXT + FRAMES, 32, args.stride, "test", seed=0, total_videos=args.videos)
    batches = list(torch.stack([clips[index] for index in range(len(clips))]).split(BATCH))
    results = [measure(make(), batches, name, sample) for name, sample in settings.items()]
    first = results[0]
    rows = [(title, "PSNR", "calls per frame", "fewer", "seconds per frame", "faster", f"within {EQUAL} dB")]
    for result in results:
        rows.append((
            result.name, f"{result.psnr:.2f}", f"{result.calls:.1f}", f"{first.calls / result.calls:.1f}x",
            f"{result.seconds:.4f}", f"{first.seconds / result.seconds:.1f}x",
            "yes" if result.psnr >= first.psnr - EQUAL else "no",
        ))  # fmt: skip
    print(format_table(rows), "\n", flush=True)


def sampling(args: argparse.Namespace) -> None:
    """Both predictors, where they are trained."""
    cpu = torch.device("cpu")
    river = args.runs / f"shapes-fourth_run-river{args.suffix}"
    parts = {name[0]: args.runs / f"shapes-fourth_run-{name}{args.suffix}" for name in ("f-01-mse", "d-01", "g-01-nll")}
    missing = [str(path) for path in (river, *parts.values()) if not path.is_dir()]
    if missing:
        print(f"sampling is not measured: {', '.join(missing)} not there; docs/flow_pred.md has the commands\n")
        return
    compare("RIVER", lambda: load_river(str(river), None, cpu)[0], RIVER_SETTINGS, args)
    files = {role: (str(path), None) for role, path in parts.items()}
    compare("neural SDE", lambda: load_neural_sde(files, cpu)[0], SDE_SETTINGS, args)


def make_recipe(config: FlowPredConfig, func: str) -> PredictorRecipe:
    """A recipe with random weights."""
    model = dataclasses.replace(config.model, func=func)
    config = dataclasses.replace(config, model=model)
    space = LatentSpace(build_autoencoder({**model.autoencoder, "ckpt_path": None}))
    if func == "g":
        flow = build_regressor(dataclasses.replace(model, func="f_nll")).eval()
        return DiffusionRecipe(config, build_regressor(model), space, flow)
    return {"river": RiverRecipe, "f_nll": FlowRecipe}[func](config, build_regressor(model), space)


def step_seconds(recipe: PredictorRecipe, batch: Any, count: int, steps: int) -> float:
    """Median CPU seconds of a training step."""
    seconds = []
    for index in range(steps + 1):
        step = Step(index, steps, SampleNoise(0, range(index * count, (index + 1) * count)), torch.device("cpu"))
        start = time.process_time()
        (loss,) = list(recipe.losses(batch, step, recipe.networks))
        loss.total.backward()
        for optimizer in recipe.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        seconds.append(time.process_time() - start)
    return median(seconds[1:])


def training(args: argparse.Namespace) -> None:
    """A step of each component on pictures and on cached latents."""
    config, _ = load_config(args.config)
    size, count, frames = config.data.crop_size, args.batch_size, config.training.num_observations
    clips = 2 * torch.rand(count, 3, frames, size, size) - 1
    shape = config.model.vector_field_regressor
    latents = {"latents": torch.randn(count, frames, shape.state_size, *shape.state_res)}
    rows = [(f"training step, batch {count}, {args.config.stem}", "pictures, s", "latents, s", "faster")]
    for func in args.components:
        recipe = make_recipe(config, func)
        slow, fast = (step_seconds(recipe, batch, count, args.steps) for batch in (clips, latents))
        rows.append((func, f"{slow:.3f}", f"{fast:.3f}", f"{slow / fast:.1f}x"))
    print(format_table(rows))


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if "sampling" in args.parts:
        sampling(args)
    if "training" in args.parts:
        training(args)


if __name__ == "__main__":
    run(main)
