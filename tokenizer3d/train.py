"""How a tokenizer is trained: reconstruction, the latents' regulariser and, from a given step on, a discriminator.

`Tokenizer3DRecipe` turns a batch into losses; `train_tokenizer3d` is the command scripts/train_tokenizer3d.py, with the
recipe and the clips of a configuration. Axes: B clips, T frames, H and W pixels, T' h w latent positions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from evaluation.codebook import CodebookUsage, code_counts
from evaluation.metrics import psnr
from losses.perceptual import LPIPS
from tokenizer3d.files import load_model
from tokenizer3d.isometric import start_isometric
from tokenizer3d.model import Tokenizer3D
from tokenizer3d.objective import Objective, ObjectiveConfig, frames_of
from training.cli import command_line
from training.config import from_dict, load_config
from training.loop import train
from training.optim import build_optimizer
from training.randomness import derive_seed
from training.recipe import Losses, Networks, Recipe, Step
from training.settings import settings_from
from videodata.clips import open_clips
from videodata.errors import UserError
from videodata.pixels import as_float
from videodata.splits import HELD_OUT, declared_splits

STEPS = 50_000  # where neither the flag nor the configuration says
PARTS = ("all", "decoder")
SMALLEST_SIDE = 24  # of frames of which the discriminator makes a logit
LARGEST_COUNTED = 2**16  # codes whose use is counted at validation
OPTIMIZERS: dict[str, dict[str, Any]] = {  # of the tokenizer: the original's, or one that learns from fewer clips
    "adam": {"betas": (0.9, 0.999)},
    "muon": {"betas": (0.9, 0.99), "convolutions": True},
}


@dataclass
class DataConfig:
    """What is trained on: the part `data` of a configuration."""

    path: str | None = None
    validation_path: str | None = None  # clips of their own to validate with
    frames: int = 17
    size: int | tuple[int, int] = 128
    stride: int = 1
    fps: float | None = None  # in place of a stride: few per second show more motion in a clip
    validation_fps: float | None = None
    flip: bool = False
    split: bool = True  # hold videos out to validate with, where `path` declares none


@dataclass
class OptimizationConfig:
    """How the model is trained, beside the engine's settings: the part `optimization` of a configuration."""

    optimizer: str = "adam"
    half_muon: bool = False  # muon in bfloat16: faster where the processor multiplies that in hardware
    learning_rate: float = 1e-5
    trained: str = "all"  # or decoder: the encoder stays as it is, and gets no gradient
    start: str | None = None  # weights to go on from: a run folder, a folder of save_pretrained, a file
    image_steps: int = 0  # first steps that take single frames; the temporal layers join a decoder that can draw
    isometric_start: bool = False  # start values with which the model passes colours on (isometric.py)
    checkpointing: bool = False
    perceptual_weights: str | None = None  # file of VGG-16, or its folder; found by name otherwise


@dataclass
class TrainConfig:
    """A configuration like those in configs/tokenizer3d; `model` as `config_from` takes it, `engine` TrainSettings."""

    model: dict[str, Any]
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    engine: dict[str, Any] = field(default_factory=dict)


class Tokenizer3DRecipe(Recipe):
    """Trains the tokenizer and its discriminator on uint8 clips, with one pass of the tokenizer per step.

    `options` are those of OptimizationConfig. `data`: where the clips are from, for the command that shows what was
    learnt.
    """

    name = "tokenizer3d"
    best_metric = ("rec_loss", "min")
    ema_networks = ("tokenizer",)
    forward_methods = ("encode", "decode")
    free_keys = frozenset({"checkpointing", "perceptual_weights"})

    def __init__(
        self,
        tokenizer: Tokenizer3D,
        objective: ObjectiveConfig,
        options: OptimizationConfig | None = None,
        data: str | None = None,
    ) -> None:
        options = options or OptimizationConfig()
        check(options, tokenizer)
        if options.trained == "decoder":
            for part in (tokenizer.encoder, tokenizer.quantizer):
                if part is not None:
                    part.requires_grad_(False)
        networks: dict[str, nn.Module] = {"tokenizer": tokenizer, "loss": Objective(objective)}
        trained = [p for network in networks.values() for p in network.parameters() if p.requires_grad]
        rate, own = options.learning_rate, {"half": options.half_muon, **OPTIMIZERS[options.optimizer]}
        optimizers = {"tokenizer": build_optimizer(options.optimizer, trained, rate, **own)}
        discriminator = objective.build_discriminator()
        if discriminator is not None:
            networks["discriminator"] = discriminator
            optimizers["discriminator"] = build_optimizer("adam", discriminator.parameters(), rate, betas=(0.9, 0.999))
        super().__init__(networks, optimizers)
        self.tokenizer, self.objective, self.options, self.data = tokenizer, networks["loss"], options, data
        self.perceptual = LPIPS("vgg", options.perceptual_weights)  # looks for its weights at the first call

    def losses(self, batch: Tensor, step: Step, networks: Networks) -> Iterator[Losses | None]:
        """The tokenizer's loss, then the discriminator's on the same reconstruction, where there is one."""
        video = as_float(batch)
        if "discriminator" in networks and min(video.shape[3:]) < SMALLEST_SIDE:
            raise UserError(
                f"frames of {video.shape[4]}x{video.shape[3]} are too small for the discriminator (at least "
                f"{SMALLEST_SIDE} pixels); use larger ones, or objective.disc_weight=0"
            )
        noise = self.noise(video, step)
        if step.index < self.options.image_steps:
            video, noise = self.as_images(video, step), None if noise is None else noise[:, :, :1]
        self.prepare_codebook(video, step)
        _, made, log = networks["tokenizer"](video, noise=noise)
        nll, terms = networks["loss"](video, made, self.distance(video, made))
        total = nll + self.objective.regularization(log)
        plays = self.objective.plays(step.index)
        if plays:
            logits = networks["discriminator"](self.objective.shown(made))
            share, added = self.objective.adversarial(nll, logits, self.last_layer)
            total, terms = total + share, terms | added
        terms |= {name: log[name] for name in ("kl_loss", "aux_loss") if name in log}
        yield Losses(total, {name: value.detach() for name, value in terms.items()})
        if "discriminator" in networks:
            yield self.discriminator_losses(video, made.detach(), networks) if plays else None

    def noise(self, video: Tensor, step: Step) -> Tensor | None:
        """Noise of the posterior (B, z, T', h, w), keyed by the position of each clip; None for codes."""
        if self.tokenizer.config.regularizer != "kl":
            return None
        factor = self.tokenizer.spatial_factor
        height, width = (-(-side // factor) for side in video.shape[3:])
        channels = self.tokenizer.config.z_channels
        return step.noise.normal(channels, self.tokenizer.latent_frames(video.shape[2]), height, width)

    def as_images(self, video: Tensor, step: Step) -> Tensor:
        """One frame of each clip as a clip of its own, (B, 3, 1, H, W), drawn by the clip's position."""
        frame = step.noise.integers(video.shape[2])
        return video[torch.arange(len(video), device=video.device), :, frame, None]

    def prepare_codebook(self, video: Tensor, step: Step) -> None:
        """Tell the quantiser where the run is; a learned codebook starts at the k-means of the first latents."""
        quantizer = self.tokenizer.quantizer
        if quantizer is None:
            return
        quantizer.step, quantizer.seed = step.index, derive_seed("codebook", step.index)
        if step.index == 0 and quantizer.needs_start and self.options.start is None:
            with torch.no_grad():
                latents = self.tokenizer.moments(self.tokenizer.padded(video)).float()
            vectors = quantizer.project(latents).flatten(0, -2)
            quantizer.start(vectors, tokens=len(vectors))

    def distance(self, video: Tensor, made: Tensor) -> Tensor | None:
        """Perceptual distance of each frame (N,); None where it has no weight."""
        if not self.objective.config.perceptual_weight:
            return None
        return self.perceptual(frames_of(video), frames_of(made))

    @property
    def last_layer(self) -> Tensor:
        """The weight at which the two losses of a GAN are balanced."""
        last = self.tokenizer.decoder.conv_out
        return last.conv.weight if self.tokenizer.is_causal else last.weight

    def discriminator_losses(self, video: Tensor, made: Tensor, networks: Networks) -> Losses:
        """The discriminator's loss on clips and their (detached) reconstructions."""
        discriminator = networks["discriminator"]
        real, fake = (discriminator(self.objective.shown(clip)) for clip in (video, made.to(video)))
        loss, terms = self.objective.judged(real, fake)
        return Losses(loss, {name: value.detach() for name, value in terms.items()})

    def evaluate(self, batch: Tensor, step: Step, networks: Networks) -> dict[str, Tensor]:
        """Reconstruction from the mean latent or the codes: L1 error and PSNR, each (B,); the use of the codes."""
        video = as_float(batch)
        latents, made, log = networks["tokenizer"](video)
        scores = {"rec_loss": (video - made.float()).abs().flatten(1).mean(dim=1)}
        scores["psnr"] = psnr(video, made.float().clamp(-1, 1))
        size = self.tokenizer.codebook_size
        if size is not None and size <= LARGEST_COUNTED:
            scores["codes"] = code_counts(log["indices"], size)
        return scores

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Codes in use, and their perplexity, over the whole validation set."""
        if "codes" not in sums:
            return {}
        total = CodebookUsage(self.tokenizer.codebook_size, sums["codes"])
        return {"codes_used": float(total.used), "perplexity": total.perplexity}

    def pictures(self, batch: Tensor, step: Step, networks: Networks) -> dict[str, Tensor]:
        """Clips and their reconstructions."""
        video = as_float(batch)
        return {"original": video, "reconstruction": networks["tokenizer"](video)[1].float()}

    def show_command(self, run_dir: Path) -> str:
        return command_line(
            ["python", "scripts/evaluate.py", "tokenizer3d", "--checkpoint", str(run_dir), "--data", str(self.data)]
        )


def check(options: OptimizationConfig, tokenizer: Tokenizer3D) -> None:
    """Raises UserError for options that mean nothing."""
    for name, value, known in (("optimizer", options.optimizer, OPTIMIZERS), ("trained", options.trained, PARTS)):
        if value not in known:
            raise UserError(f"optimization.{name} must be {' or '.join(known)}, found {value!r}")
    if options.image_steps < 0:
        raise UserError(f"optimization.image_steps must not be negative, found {options.image_steps}")
    if options.image_steps and not tokenizer.is_causal:
        raise UserError("optimization.image_steps needs a causal model: others have no single frames")
    if options.isometric_start and options.start:
        raise UserError(
            "optimization.isometric_start is for training from nothing, but optimization.start names weights"
        )


def train_tokenizer3d(args: argparse.Namespace) -> str:
    """Train, or continue, and give what is to be said at the end. Raises UserError for what the user can put right."""
    config = from_dict(TrainConfig, load_config(args.config, args.overrides, TrainConfig))
    config.data.path = args.data or config.data.path
    config.optimization.start = args.start or config.optimization.start
    engine = {name: value for name, value in config.engine.items() if name not in ("steps", "run_dir")}
    steps = args.steps or config.engine.get("steps", STEPS)
    settings = settings_from(args, args.run_dir, steps, **engine)
    recipe = build_recipe(config, settings.seed)
    training, validation = open_data(config.data, settings.seed)
    stored = asdict(config) | {"model": recipe.tokenizer.config.to_dict()}
    result = train(recipe, training, settings, stored, validation)
    return result.told(*result.scores())


def build_recipe(config: TrainConfig | dict[str, Any], seed: int = 0) -> Tokenizer3DRecipe:
    """The recipe of a configuration like those in configs/tokenizer3d. Raises UserError."""
    config = config if isinstance(config, TrainConfig) else from_dict(TrainConfig, config)
    options = config.optimization
    torch.manual_seed(derive_seed(seed, "weights"))
    tokenizer = Tokenizer3D.from_config(config.model)
    if options.start:
        weights = load_model(options.start)[0].state_dict()
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in tokenizer.state_dict().items()}:
            raise UserError(f"{options.start}: holds another model than the part model of the configuration says")
        tokenizer.load_state_dict(weights)
    if options.isometric_start:
        start_isometric(tokenizer)
    tokenizer.checkpointing = options.checkpointing
    recipe = Tokenizer3DRecipe(tokenizer.train(), config.objective, options, config.data.path)
    if config.objective.perceptual_weight > 0:
        recipe.perceptual.weights_file()  # looked for now, and not after the data has been read
    return recipe


def open_data(data: DataConfig, seed: int = 0) -> tuple[Dataset, Dataset | None]:
    """Training and validation clips, by what the data declares (videodata/splits.py); None: no validation."""
    if not data.path:
        raise UserError(
            "data.path is empty: name clips with --data (a folder of videos, a csv, .npy, .hdf5, digits:<n>)"
        )
    shape = {"frames": data.frames, "size": data.size, "stride": data.stride, "seed": seed, "dtype": "uint8"}
    rates = data.fps, data.fps if data.validation_fps is None else data.validation_fps
    held_out = HELD_OUT if data.split and not data.validation_path else 0.0
    training = open_clips(
        data.path, split="train", flip=data.flip, fps=rates[0], held_out=held_out, on_error="skip", **shape
    )
    validation = None
    if data.validation_path:
        part = "val" if declared_splits(data.validation_path) else None  # all of data that is not divided
        validation = open_clips(data.validation_path, split=part, fps=rates[1], **shape)
    elif data.split:
        validation = open_clips(data.path, split="val", fps=rates[1], **shape)
    return training, validation
