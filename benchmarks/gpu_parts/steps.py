"""The training step of every model: the engine's own step (training/step.py) on one batch that lies on the device.

Weights are random and perceptual losses are off, which need weights that may not be there. The steps stand for ones
late in a training, when discriminators and codebooks take part.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from benchmarks.flow_pred import make_recipe
from benchmarks.gpu_parts.measure import Contestant, Job, free_memory, one_line, peak_flops, race, utilization
from benchmarks.vqgan import OurTraining
from benchmarks.vqgan_original import OriginalTraining
from benchmarks.vvae import straightforward
from flow_pred.config import load_config as load_flow_config
from lvt import config as lvt_config
from lvt.files import build_transformer, build_vqvae
from lvt.train import TransformerRecipe, VQVAERecipe
from tokenizer3d.train import TrainConfig
from tokenizer3d.train import build_recipe as build_tokenizer3d
from training.config import from_dict, load_config
from training.data import Batch
from training.recipe import Recipe
from training.settings import TrainSettings
from training.state import build_state
from training.step import Update, Updater
from video_vae.config import LossConfig
from video_vae.config import load_config as load_video_vae
from video_vae.model import TransformerNetwork
from video_vae.train import VideoVAERecipe
from vvae.train import build_recipe as build_vvae

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
LATE, STEPS = 100_000, 1_000_000  # the step that is taken, of so many
COMPILING = 20.0  # seconds without which no compilation is begun
Call = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Work:
    """The training of a model: its recipe, `count` samples as they come from the loader, on the CPU, and how the
    original takes a step, where this project has that: its name, and what makes it from a `Training`.
    """

    recipe: Recipe
    batch: Any
    count: int
    original: tuple[str, Callable[[Training], Call]] | None = None


class Training:
    """A recipe on a device, and steps of it."""

    def __init__(self, work: Work, device: torch.device, compiled: bool = False) -> None:
        self.work, self.device = work, device
        self.settings = TrainSettings(Path("unused"), STEPS, work.count, device=str(device), compile=compiled)
        self.state = build_state(work.recipe, self.settings, device)
        self.state.step = LATE
        self.batch = tree_map(lambda leaf: leaf.to(device), work.batch)

    def step(self, precision: str = "fp32", batch: Any = None) -> Call:
        """An optimiser step, with the same batch again and again."""
        settings = dataclasses.replace(self.settings, precision="bf16" if precision == "bf16" else "fp32")
        updater, feed = Updater(self.state, settings, self.device), self.feed(self.batch if batch is None else batch)

        def call() -> None:
            updater.step(feed)
            self.state.step += 1

        return call

    def feed(self, batch: Any, count: int | None = None) -> Iterator[Batch]:
        """The batch without end, or its first `count` samples."""
        data = tree_map(lambda leaf: leaf[:count], batch)
        while True:
            yield Batch(data, [(index, index) for index in range(count or self.work.count)])

    def flops_per_sample(self) -> float:
        """Of forward and backward passes of one sample, attention in full, nothing computed twice to save memory."""
        updater = Updater(self.state, self.settings, self.device)
        with without_recomputation(), sdpa_kernel(SDPBackend.MATH), Flops() as counter:
            updater.accumulate(self.feed(self.batch, 1), Update())
        for optimizer in self.state.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        return float(counter.total)


class Flops(TorchDispatchMode):
    """Adds up the FLOPs of what is computed inside, by torch's own formulas. torch's FlopCounterMode also notes which
    module they belong to, and fails where a module is called with parameters but without gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


@contextmanager
def without_recomputation() -> Iterator[None]:
    """In the block, checkpointed parts keep their activations."""

    def call(function: Callable, *arguments: Any, **_: Any) -> Any:
        return function(*arguments)

    with ExitStack() as stack:
        for module in list(sys.modules.values()):
            if vars(module).get("checkpoint") is checkpoint:
                stack.enter_context(patch.object(module, "checkpoint", call))
        yield


def clips(count: int, frames: int, height: int, width: int | None = None) -> Tensor:
    """Random ones, uint8 (count, 3, frames, height, width)."""
    return torch.randint(0, 256, (count, 3, frames, height, width or height), dtype=torch.uint8)


def video_vae(small: bool) -> Work:
    preset, count, frames, size = ("tiny", 1, 4, (48, 48)) if small else ("base", 4, 8, (240, 320))
    network = TransformerNetwork.from_config(load_video_vae(preset))
    return Work(VideoVAERecipe(network, LossConfig(perceptual_weight=0.0)), clips(count, frames, *size), count)


def vqgan(small: bool) -> Work:
    """The second stage at the sizes of benchmarks/vqgan.py; it is tiny, because the original's way needs so much."""
    count, size = (1, 32) if small else (8, 80)

    def original(training: Training) -> Call:
        theirs = OriginalTraining(2)
        theirs.model.to(training.device)
        theirs.discriminator.to(training.device)
        return lambda: theirs.step(training.batch)

    frames = torch.rand(count, 3, size, size) * 2 - 1
    recipe = OurTraining(2, 4, disc_limit=1.0).recipe  # with a discriminator that never rests, as the original's
    return Work(recipe, frames, count, ("original's way", original))


def lvt_vqvae(small: bool) -> Work:
    name, count, size = ("VQVAE_tiny", 1, 32) if small else ("PR-DVQVAE2", 64, 64)
    config = lvt_config.load_config(CONFIGS / "lvt" / f"{name}.yaml")
    return Work(VQVAERecipe(build_vqvae(config), config), clips(count, 1, size), count)


def lvt_transformer(small: bool) -> Work:
    name, count, clip = ("VT_tiny", 1, (16, 8, 8)) if small else ("DSFVT", 32, (16, 16, 16))
    config = lvt_config.load_config(CONFIGS / "lvt" / f"{name}.yaml")
    model = build_transformer(config)
    codes = torch.randint(model.config.nv, (count, model.config.nc, *clip), dtype=torch.int16)
    return Work(TransformerRecipe(model, config), {"codes": codes}, count)


def vvae(small: bool) -> Work:
    """The original's way: whole clips, normalised and up-sampled as it is usually written (benchmarks/vvae.py)."""
    name, count, frames, size = ("tiny", 1, 8, 32) if small else ("16z", 1, 16, 216)
    config = load_config(CONFIGS / "vvae" / f"{name}.yaml")
    config["model"]["params"]["lossconfig"]["params"]["perceptual_weight"] = 0.0
    config["engine"] = {}

    def original(training: Training) -> Call:
        step = training.step()

        def call() -> None:
            with straightforward():
                step()

        return call

    return Work(build_vvae(config), clips(count, frames, size), count, ("usual layers", original))


def tokenizer3d(small: bool) -> Work:
    name, count, size = ("tiny_kl", 1, 16) if small else ("kl_488_stage1", 4, 128)
    config = load_config(CONFIGS / "tokenizer3d" / f"{name}.yaml")
    config["objective"]["perceptual_weight"] = 0.0
    return Work(build_tokenizer3d(from_dict(TrainConfig, config)), clips(count, 17, size), count)


def flow_pred(small: bool, func: str) -> Work:
    """From stored latents; the original encodes the frames in each step."""
    file = {"river": "river", "f_nll": "f-01-nll"}[func] if not small else {"river": "river", "f_nll": "f-01-mse"}[func]
    config, _ = load_flow_config(CONFIGS / "flow_pred" / (f"shapes_{file}_tiny.yaml" if small else f"kth_{file}.yaml"))
    count, frames, size = (1 if small else 16), config.training.num_observations, config.data.crop_size
    shape = config.model.vector_field_regressor
    latents = torch.randn(count, frames, shape.state_size, *shape.state_res)

    def original(training: Training) -> Call:
        return training.step(batch=clips(count, frames, size).to(training.device))

    return Work(make_recipe(config, func), {"latents": latents}, count, ("encodes in each step", original))


MODELS: dict[str, Callable[[bool], Work]] = {
    "video_vae": video_vae,
    "vqgan": vqgan,
    "lvt_vqvae": lvt_vqvae,
    "lvt_transformer": lvt_transformer,
    "vvae": vvae,
    "tokenizer3d": tokenizer3d,
    "river": lambda small: flow_pred(small, "river"),
    "sde": lambda small: flow_pred(small, "f_nll"),
}


def counted(training: Training) -> tuple[float | None, str | None]:
    """FLOP per sample, or why they are not known."""
    try:
        return training.flops_per_sample(), None
    except Exception as error:  # noqa: BLE001 - the times are worth having without
        problem = one_line(error)
    free_memory(training.device)
    return None, f"FLOPs not counted ({problem})"


def rows_of(
    name: str, contestants: list[Contestant], count: int, flops: tuple[float | None, str | None], gpu: str
) -> Iterator[dict]:
    """Lines of the table; the first contestant is what the others are compared with."""
    per_sample, why = flops
    for contestant in contestants:
        row = contestant.row(name, "sample", count, contestants[0])
        if "problem" not in row and contestant.name in (*OURS, COMPILED):
            row["GFLOP per sample"] = None if per_sample is None else per_sample / 1e9
            row["MFU"] = per_sample and utilization(
                per_sample, row["seconds per sample"], peak_flops(gpu, contestant.precision)
            )
            row["note"] = why
            if contestant.name == COMPILED:
                row["seconds of the first step"] = contestant.first
        yield {key: value for key, value in row.items() if value is not None}


OURS = ("fp32", "tf32", "bf16")
COMPILED = "bf16, compiled"


def training_step(name: str, job: Job) -> Iterator[dict]:
    """The original's way, where there is one, and ours in three precisions."""
    device, gpu = job.device, gpu_name(job)
    torch.manual_seed(0)
    work = MODELS[name](job.small)
    training = Training(work, device)
    contestants = [Contestant(way, training.step(way), way) for way in OURS]
    if work.original:
        title, make = work.original
        contestants.insert(0, Contestant(title, make(training), "tf32"))
    race(contestants, job)
    yield from rows_of(name, contestants, work.count, counted(training), gpu)


def compiled_step(name: str, job: Job) -> Iterator[dict]:
    """bfloat16 with --compile against without."""
    device, gpu = job.device, gpu_name(job)
    torch.manual_seed(0)
    work = MODELS[name](job.small)
    training = Training(work, device)
    plain = Contestant("bf16", training.step("bf16"), "bf16")
    race([plain], job)
    flops = counted(training)
    yield from rows_of(name, [plain], work.count, flops, gpu)
    del training, plain.call
    free_memory(device)
    if job.left < COMPILING:
        yield {"what": name, "way": COMPILED, "problem": f"left out: {job.left:.0f} s are too few to compile"}
        return
    compiled = Contestant(COMPILED, Training(work, device, compiled=True).step("bf16"), "bf16")
    race([compiled], job)
    yield list(rows_of(name, [plain, compiled], work.count, flops, gpu))[1]


def gpu_name(job: Job) -> str:
    return torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else "cpu"
