"""A training step of a model, as it is against the plain ways, interleaved in one run; seconds of CPU time, one thread.

    python benchmarks/steps.py --models dsfvt river video_vae

dsfvt4 is DSFVT with four clips in place of one. Each row changes one thing of the row that it is compared with. "Plain"
is what a row can be turned back to: optimisers with one pass for each operation, attention by torch's fused kernel,
activations that are computed again, single precision. `of a product`: operations per second, those of the last row as
torch counts them, as a share of what a product of two 1024 x 1024 matrices reaches in single precision.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python benchmarks/...` finds the packages

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.flow_pred import make_recipe
from evaluation.report import format_table
from flow_pred.config import load_config as flow_config
from lvt.config import load_config as lvt_config
from lvt.files import build_transformer
from lvt.train import TransformerRecipe
from training import Recipe, TrainSettings, attention, optim
from training.cli import make_parser, positive_int, run
from training.data import Batch
from training.state import build_state
from training.step import Updater, decided
from video_vae.config import LossConfig
from video_vae.config import load_config as video_vae_config
from video_vae.model import TransformerNetwork
from video_vae.train import VideoVAERecipe

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
Build = Callable[[], tuple[Recipe, Any, int]]  # recipe, batch, samples of it


class Timed(Updater):
    """Notes how much of a step is the optimisers': clipping and moving the weights."""

    moving = 0.0

    def apply(self, active: list[str], norms: dict[str, Tensor]) -> None:
        start = time.process_time()
        super().apply(active, norms)
        self.moving = time.process_time() - start


def plain_optimizer() -> AbstractContextManager:
    """Adam and AdamW are not fused."""
    return patch.object(optim, "fusible", lambda parameters: False)


def clipped_before() -> AbstractContextManager:
    """Gradients are clipped in a pass of their own."""
    return patch.object(Updater, "divides", lambda self, optimizer: False)


def one_by_one() -> AbstractContextManager:
    """Muon orthogonalises each matrix alone, and moves vectors operation by operation."""
    return contexts(patch.object(optim, "STACKED", 1), plain_optimizer())


def fused_attention() -> AbstractContextManager:
    """torch's kernel, also where gradients follow."""
    return patch.object(attention, "LONGEST", 0)


@contextmanager
def contexts(*several: AbstractContextManager) -> Iterator[None]:
    """All of them at once."""
    with ExitStack() as stack:
        for one in several:
            stack.enter_context(one)
        yield


@dataclass
class Way:
    """One way to take a step. `plain`: what is turned off around building and stepping."""

    name: str
    build: Build
    against: str = ""  # name of the way that it is compared with; none: the first
    precision: str = "fp32"
    plain: Callable[[], AbstractContextManager] = contexts
    seconds: list[float] = field(default_factory=list)
    moving: list[float] = field(default_factory=list)

    def prepare(self, rounds: int) -> None:
        """Build it anew."""
        torch.manual_seed(0)
        with self.plain():
            recipe, self.batch, self.count = self.build()
        precision = decided(self.precision, CPU)
        settings = TrainSettings(Path("none"), rounds + 2, batch_size=self.count, precision=precision, device="cpu")
        self.updater = Timed(build_state(recipe, settings, CPU), settings, CPU)

    def step(self) -> None:
        """Take one and note what it cost."""
        keys = [(index, index) for index in range(self.count)]
        batch = Batch(self.batch, keys)
        start = time.process_time()
        with self.plain():
            self.updater.step(iter([batch]))
        self.seconds.append(time.process_time() - start)
        self.moving.append(self.updater.moving)
        self.updater.state.step += 1

    def operations(self) -> float:
        """Floating-point operations of forward and backward pass, as torch counts them."""
        with FlopCounterMode(display=False) as counted, self.plain():
            recipe, batch, _ = self.build()
            noise = self.updater.describe(Batch(batch, [(index, index) for index in range(self.count)]))
            for losses in recipe.losses(batch, noise, recipe.networks):
                losses.total.backward()
        return counted.get_total_flops()


def dsfvt(clips: int = 1) -> list[Way]:
    """The published video transformer that predicts a frame, and its AdamW, on one slice of each clip."""

    def build() -> tuple[Recipe, Any, int]:
        config = lvt_config(ROOT / "configs/lvt/DSFVT.yaml", ["MODEL.DEVICE", "cpu"])
        codes = torch.randint(512, (clips, 4, 16, 16, 16))
        return TransformerRecipe(build_transformer(config), config), {"codes": codes}, clips

    return [
        Way("not fused", build, plain=plain_optimizer),
        Way("fused, clipped before", build, plain=clipped_before),
        Way("fused", build, "fused, clipped before"),
    ]


def river() -> list[Way]:
    """The smallest RIVER of a transformer, which its configuration trains with Muon."""
    config, _ = flow_config(ROOT / "configs/flow_pred/shapes-fourth_river_tiny.yaml")

    def build() -> tuple[Recipe, Any, int]:
        shape = config.model.vector_field_regressor
        latents = torch.randn(32, config.training.num_observations, shape.state_size, *shape.state_res)
        return make_recipe(config, "river"), {"latents": latents}, 32

    return [
        Way("fp32, plain", build, plain=one_by_one),
        Way("fp32", build, "fp32, plain"),
        Way("auto, fused attention", build, "fp32", "auto", fused_attention),
        Way("auto", build, "fp32", "auto"),
    ]


def video_vae(preset: str = "small", frames: int = 4, size: int = 64, count: int = 2) -> list[Way]:
    """The video VAE."""

    def build(checkpointing: bool) -> tuple[Recipe, Any, int]:
        network = TransformerNetwork.from_config(video_vae_config(preset), checkpointing)
        clips = torch.randint(256, (count, 3, frames, size, size), dtype=torch.uint8)
        return VideoVAERecipe(network, LossConfig(perceptual_weight=0.0)), clips, count

    def again() -> tuple[Recipe, Any, int]:
        return build(True)

    def kept() -> tuple[Recipe, Any, int]:
        return build(False)

    everything = "computed again, plain"
    return [
        Way(everything, again, plain=plain_optimizer),
        Way("computed again", again, everything),
        Way("kept", kept, "computed again"),
        Way("kept, auto, fused attention", kept, "kept", "auto", fused_attention),
        Way("kept, auto", kept, "kept", "auto"),
    ]


MODELS: dict[str, Callable[[], list[Way]]] = {
    "dsfvt": dsfvt,
    "dsfvt4": lambda: dsfvt(4),
    "river": river,
    "video_vae": video_vae,
}


def product_rate() -> float:
    """Operations per second of a product of two matrices."""
    a, b = torch.randn(2, 1024, 1024)
    start = time.process_time()
    a @ b
    return 2 * 1024**3 / (time.process_time() - start)


def measure(ways: list[Way], rounds: int) -> list[tuple[str, ...]]:
    """Rows of the table of one model."""
    for way in ways:
        way.prepare(rounds)
    operations, rates = ways[-1].operations(), []
    for _ in tqdm(range(rounds + 1), unit="round", leave=False, disable=None):
        rates.append(product_rate())
        for way in ways:
            way.step()
    rate, named = median(rates[1:]), {way.name: way for way in ways}
    rows = []
    for way in ways:
        base, took = named[way.against or ways[0].name], median(way.seconds[1:])
        rows.append((
            f"{way.name} (against {base.name})", f"{median(base.seconds[1:]) / took:.2f}", f"{took * 1000:.0f} ms",
            f"{median(way.moving[1:]) / took:.1%}", f"{operations / took / rate:.2f}",
        ))  # fmt: skip
    return rows


def main(argv: list[str] | None = None) -> None:
    """Print a table for each model."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="whose steps are measured")
    parser.add_argument("--rounds", type=positive_int, default=3, help="of which medians are taken")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for name in args.models:
        head = (name, "times as fast", "step", "optimiser", "of a product")
        print(format_table([head, *measure(MODELS[name](), args.rounds)]), "\n", flush=True)


if __name__ == "__main__":
    run(main)
