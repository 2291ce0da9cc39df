"""How the autoencoder is trained: reconstruction, KL, a perceptual term and, from a given step on, a discriminator.

`VVAERecipe` turns a batch into losses; `train_vvae` is the command scripts/train_vvae.py, with the recipe and the clips
of a configuration; `Reconstructions` is what evaluations score.

The only file of this package that needs the project around it. Axes: B clips, T frames, H and W pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from evaluation.metrics import mean_frame, psnr
from evaluation.subject import Batch, Subject
from losses.adversarial import PatchGAN2D, PatchGAN3D, adaptive_weight, discriminator_loss, generator_loss
from losses.perceptual import LPIPS
from training.cli import command_line, is_out_of_memory
from training.config import from_dict, load_config
from training.distributed import made_on_main
from training.loop import train
from training.optim import build_optimizer
from training.randomness import derive_seed
from training.recipe import Losses, Networks, Recipe, Step
from training.settings import settings_from
from videodata.clips import open_clips
from videodata.errors import UserError
from videodata.pixels import normalize, to_uint8
from videodata.splits import HELD_OUT, declared_splits
from vvae.src.checkpoints import is_unused
from vvae.src.distributions import DiagonalGaussianDistribution
from vvae.src.errors import VVAEError
from vvae.src.models.autoencoder import Level, Middle
from vvae.src.models.autoencoder2plus1d_1dcnn import AutoencoderKL2plus1D_1dcnn
from vvae.src.models.isometric import start_isometric
from vvae.src.modules.ae_modules import Downsample, Upsample
from vvae.src.modules.losses.contperceptual import LPIPSWithDiscriminator, flatten_frames
from vvae.src.modules.t5 import CaptionCache, CaptionedClips, caption_embedder
from vvae.src.streaming import Streaming, reconstruct_clip
from vvae.utils.common_utils import instantiate_from_config

BETAS = (0.5, 0.9)
STEPS = 100_000  # where neither the flag nor the configuration says
LESS_MEMORY = "cut frames into tiles (--tile 256 256), use shorter windows (--chunk_size 8) or --dtype bf16"
OPTIMIZERS: dict[str, dict[str, Any]] = {  # of the autoencoder: the original's, or one that learns from fewer clips
    "adam": {"betas": BETAS},
    "muon": {"convolutions": True},
}


@dataclass
class DataConfig:
    """What is trained on: the part `data` of a configuration."""

    path: str | None = None
    validation_path: str | None = None  # clips of their own to validate with
    frames: int = 16
    size: int | tuple[int, int] = 216
    stride: int = 1
    flip: bool = False
    split: bool = True  # hold videos out to validate with, where `path` declares none
    text_folder: str = "captions"  # embeddings of the captions, made on first use
    text_encoder: str | None = None  # what makes them; or its folder


@dataclass
class OptimizationConfig:
    """How the model is trained, beside the engine's settings: the part `optimization` of a configuration."""

    optimizer: str = "adam"
    image_prob: float = 0.0  # share of steps that take the frames of a batch as single images
    image_steps: int = 0  # first steps that all do, so that the spatial stage is there when the temporal one starts
    branch_start: int = 0  # first step with the first stage's layers over time, which start at zero and cost most
    isometric_start: bool = False  # start values with which the model passes colours on
    keep_unused: bool = True  # keep the parameters that nothing uses, so that exported files have every published key
    checkpointing: bool = False
    perceptual_weights: str | None = None  # file of VGG-16, or its folder; found by name otherwise


@dataclass
class VVAEConfig:
    """A configuration like those in configs/vvae; `model` is a node of the package, `engine` TrainSettings."""

    model: dict[str, Any]
    data: DataConfig = field(default_factory=DataConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    engine: dict[str, Any] = field(default_factory=dict)


class VVAERecipe(Recipe):
    """Trains the autoencoder and its discriminator on uint8 clips, with one pass of the autoencoder per step.

    The options are those of OptimizationConfig; single images need the 2D discriminator. `data`: where the clips are
    from, for the command that shows what was learnt.
    """

    name = "vvae"
    best_metric = ("rec_loss", "min")
    ema_networks = ("autoencoder",)
    shard_types = (Level, Middle, Downsample, Upsample)
    forward_methods = ("encode", "decode")
    free_keys = frozenset({"checkpointing", "perceptual_weights"})

    def __init__(
        self,
        autoencoder: AutoencoderKL2plus1D_1dcnn,
        objective: LPIPSWithDiscriminator,
        learning_rate: float = 1e-4,
        image_prob: float = 0.0,
        image_steps: int = 0,
        branch_start: int = 0,
        optimizer: str = "adam",
        perceptual_weights: Path | str | None = None,
        data: str | None = None,
    ) -> None:
        if optimizer not in OPTIMIZERS:
            raise UserError(f"optimization.optimizer must be {' or '.join(OPTIMIZERS)}, found {optimizer!r}")
        images = image_prob > 0 or image_steps > 0
        if images and objective.dimensions == 3:
            wanted = "the loss src.modules.losses.LPIPSWithDiscriminator (2D)"
            raise UserError(f"optimization.image_prob needs {wanted}, and so does image_steps")
        patch_gan = PatchGAN3D if objective.dimensions == 3 else PatchGAN2D
        discriminator = patch_gan(layers=objective.disc_num_layers, norm=objective.disc_norm)
        networks: dict[str, nn.Module] = {"autoencoder": autoencoder, "discriminator": discriminator}
        own = autoencoder.state_dict()  # what nothing uses stays as it is, for export
        trained = [parameter for name, parameter in autoencoder.named_parameters() if not is_unused(name, own)]
        if objective.learn_logvar:
            networks["loss"] = objective
            trained = [*trained, objective.logvar]
        super().__init__(
            networks,
            {
                "autoencoder": build_optimizer(optimizer, trained, learning_rate, **OPTIMIZERS[optimizer]),
                "discriminator": build_optimizer("adam", discriminator.parameters(), learning_rate, betas=BETAS),
            },
        )
        self.objective, self.image_prob, self.image_steps, self.data = objective, image_prob, image_steps, data
        self.branch_start = branch_start
        self.perceptual = LPIPS("vgg", perceptual_weights)  # looks for its weights at the first call
        self.frozen = [] if objective.learn_logvar else [objective]
        self.find_unused_parameters = images or branch_start > 0  # they leave temporal layers without gradients

    def losses(self, batch: Any, step: Step, networks: Networks) -> Iterator[Losses | None]:
        """The autoencoder's loss, then the discriminator's on the same reconstruction."""
        video, text = unpack(batch)
        noise = self.noise(video, step)
        images = self.takes_images(step)
        if images:
            video, text, noise = as_images(video, text, noise)
        self.networks["autoencoder"].set_temporal_branches(step.index >= self.branch_start)
        reconstruction, posterior = networks["autoencoder"](
            video, **text, sample_posterior=True, mask_temporal=images, noise=noise
        )
        total, terms = self.likelihood(video, reconstruction, posterior, networks)
        adversarial = step.index >= self.objective.disc_start and self.objective.disc_factor > 0
        if adversarial:
            share, added = self.adversarial(terms["nll_loss"], reconstruction, networks)
            total, terms = total + share, terms | added
        yield Losses(total, {name: value.detach() for name, value in terms.items()})
        yield self.discriminator_losses(video, reconstruction.detach(), networks) if adversarial else None

    def noise(self, video: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Noise of the two posteriors, keyed by the position of each clip."""
        frames, height, width = video.shape[2:]
        channels, cell = self.networks["autoencoder"].encoder.z_channels, (height // 8, width // 8)
        return step.noise.normal(channels, frames, *cell), step.noise.normal(channels, max(1, frames // 4), *cell)

    def takes_images(self, step: Step) -> bool:
        """Whether this step's batch is taken frame by frame; the same for all processes."""
        if step.index < self.image_steps:
            return True
        return derive_seed("image batch", step.index) % 10_000 < self.image_prob * 10_000

    def likelihood(
        self, video: Tensor, reconstruction: Tensor, posterior: DiagonalGaussianDistribution, networks: Networks
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood plus weighted KL, and the terms for the log."""
        frames, drawn = flatten_frames(video), flatten_frames(reconstruction)
        distance = self.perceptual(frames, drawn) if self.objective.perceptual_weight > 0 else None
        objective = networks.get("loss", self.objective)
        nll, error = objective(frames, drawn, distance)
        kl = posterior.kl().mean()
        total = nll + self.objective.kl_weight * kl
        if self.objective.kl_weight_spatial > 0 and posterior.first is not None:
            total = total + self.objective.kl_weight_spatial * posterior.first.kl().mean()
        return total, {"nll_loss": nll, "kl_loss": kl, "rec_loss": error, "logvar": self.objective.logvar}

    def adversarial(self, nll: Tensor, reconstruction: Tensor, networks: Networks) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's adversarial term, its gradient at the last layer brought to the size of the nll's."""
        logits = networks["discriminator"](self.objective.shown(reconstruction))
        loss = generator_loss(logits, self.objective.disc_loss)
        weight = self.objective.disc_weight * adaptive_weight(nll, loss, self.networks["autoencoder"].last_layer)
        return weight * self.objective.disc_factor * loss, {"g_loss": loss, "d_weight": weight}

    def discriminator_losses(self, video: Tensor, reconstruction: Tensor, networks: Networks) -> Losses:
        """The discriminator's loss on a clip and its (detached) reconstruction."""
        discriminator = networks["discriminator"]
        real, fake = discriminator(self.objective.shown(video)), discriminator(self.objective.shown(reconstruction))
        loss = self.objective.disc_factor * discriminator_loss(real, fake, self.objective.disc_loss)
        return Losses(loss, {"logits_real": real.mean().detach(), "logits_fake": fake.mean().detach()})

    def evaluate(self, batch: Any, step: Step, networks: Networks) -> dict[str, Tensor]:
        """Reconstruction from the mean latent: L1 error, PSNR, and KL in nats per clip, each (B,)."""
        video, text = unpack(batch)
        reconstruction, posterior = networks["autoencoder"](video, **text)
        scores = {"rec_loss": (video - reconstruction.float()).abs().flatten(1).mean(dim=1), "kl": posterior.kl()}
        return scores | {"psnr": psnr(video, reconstruction.float().clamp(-1, 1))}

    def pictures(self, batch: Any, step: Step, networks: Networks) -> dict[str, Tensor]:
        """Clips, their reconstructions, and clips decoded from N(0, 1)."""
        video, text = unpack(batch)
        autoencoder = networks["autoencoder"]
        latent = autoencoder.encode(video, **text).mode()
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0)).to(latent)
        reconstruction, samples = autoencoder.decode(latent, **text), autoencoder.decode(noise, **text)
        return {"original": video, "reconstruction": reconstruction.float(), "samples": samples.float()}

    def show_command(self, run_dir: Path) -> str:
        return command_line(
            ["python", "scripts/evaluate.py", "vvae", "--checkpoint", str(run_dir), "--data", str(self.data)]
        )


def unpack(batch: Tensor | dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Clips as float (B, 3, T, H, W), and the embeddings of their captions where the batch has some."""
    if not isinstance(batch, dict):
        return normalize(batch), {}
    return normalize(batch["video"]), {key: value for key, value in batch.items() if key != "video"}


def as_images(
    video: Tensor, text: dict[str, Tensor], noise: tuple[Tensor, Tensor]
) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Every frame a clip of its own, (B T, 3, 1, H, W), with the caption of its clip."""
    frames = video.shape[2]
    text = {key: value.repeat_interleave(frames, dim=0) for key, value in text.items()}
    each = tuple(flatten_frames(part).unsqueeze(2) for part in (video, noise[0]))
    return each[0], text, (each[1], each[1])


def train_vvae(args: argparse.Namespace) -> str:
    """Train, or continue, and give what is to be said at the end. Raises UserError for what the user can put right."""
    config = from_dict(VVAEConfig, load_config(args.config, args.overrides, VVAEConfig))
    config.data.path = args.data or config.data.path
    engine = {name: value for name, value in config.engine.items() if name not in ("steps", "run_dir")}
    steps = args.steps or config.engine.get("steps", STEPS)
    settings = settings_from(args, args.run_dir or Path("runs") / args.run_name, steps, **engine)
    recipe = build_recipe(config, settings.seed, settings.fsdp)
    training, validation = open_data(config.data, recipe.networks["autoencoder"], settings.seed)
    result = train(recipe, training, settings, asdict(config), validation)
    return result.told(*result.scores())


def build_recipe(config: VVAEConfig | dict[str, Any], seed: int = 0, sharded: bool = False) -> VVAERecipe:
    """The recipe of a configuration like those in configs/vvae. Raises UserError for what the user can put right.

    sharded: only the main process needs the values of the autoencoder.
    """
    config = config if isinstance(config, VVAEConfig) else from_dict(VVAEConfig, config)
    model, options = config.model, config.optimization
    given = next((key for key in ("ckpt_path", "ckpt_path_2d") if model["params"].get(key)), None)
    if given and options.isometric_start:
        raise UserError(f"optimization.isometric_start is for training from nothing, but model.params.{given} is set")
    torch.manual_seed(derive_seed(seed, "weights"))
    with own_errors():
        objective = instantiate_from_config(model["params"]["lossconfig"])
        with made_on_main(sharded and not options.isometric_start):  # which computes with the values
            autoencoder = instantiate_from_config(model, prune_unused=not options.keep_unused)
        if options.isometric_start:
            start_isometric(autoencoder)
    if options.checkpointing:
        autoencoder.enable_gradient_checkpointing()
    recipe = VVAERecipe(
        autoencoder, objective, model.get("base_learning_rate", 1e-4), options.image_prob, options.image_steps,
        options.branch_start, options.optimizer, options.perceptual_weights, config.data.path,
    )  # fmt: skip
    if objective.perceptual_weight > 0:
        recipe.perceptual.weights_file()  # looked for now, and not after the data has been read
    return recipe


def open_data(
    data: DataConfig | dict[str, Any], model: AutoencoderKL2plus1D_1dcnn, seed: int = 0
) -> tuple[Dataset, Dataset | None]:
    """Training and validation clips, by what the data declares (videodata/splits.py); None: no validation.

    With captions (a csv with the columns path and text) their embeddings are made, or found in data.text_folder.
    """
    data = data if isinstance(data, DataConfig) else from_dict(DataConfig, data, "data")
    if not data.path:
        raise UserError(
            "data.path is empty: name clips with --data (a folder of videos, a csv, .npy, .hdf5, shapes:<n>)"
        )
    shape = {"frames": data.frames, "size": data.size, "stride": data.stride, "seed": seed, "dtype": "uint8"}
    held_out = HELD_OUT if data.split and not data.validation_path else 0.0
    training = open_clips(data.path, split="train", flip=data.flip, held_out=held_out, **shape)
    validation = None
    if data.validation_path:
        part = "val" if declared_splits(data.validation_path) else None  # all of data that is not divided
        validation = open_clips(data.validation_path, split=part, **shape)
    elif data.split:
        validation = open_clips(data.path, split="val", **shape)
    if not model.config.caption_guide:
        return training, validation
    model.text_encoder = data.text_encoder or model.text_encoder
    with own_errors():
        return tuple(clips and captioned(clips, data.text_folder, model) for clips in (training, validation))


def captioned(clips: Dataset, folder: str, model: AutoencoderKL2plus1D_1dcnn) -> CaptionedClips:
    """Clips with the embeddings of their captions, which are made where the folder lacks them."""
    dataset = CaptionedClips(clips, CaptionCache(folder))
    dataset.cache.fill(dataset.captions(), caption_embedder(model))
    return dataset


class Reconstructions(Subject):
    """Clips through the latents and back, window by window as files go."""

    def __init__(self, model: nn.Module, streaming: Streaming) -> None:
        self.model, self.streaming = model, streaming

    def made_for(self, frames: int, size: Sequence[int], stride: int = 1, **reading: Any) -> Subject:
        """Set `clips`; a clip of one window has no borders inside, whose ratio would be nan."""
        windows = self.streaming.windows
        self.window = windows.size - windows.overlap if frames > windows.size else 0
        self.metrics = ("psnr", "ssim", "boundary") if self.window else ("psnr", "ssim")
        return super().made_for(frames, size, stride, **reading)

    def make(self, batch: Batch) -> Tensor:
        with own_errors():
            return torch.stack([reconstruct_clip(self.model, to_uint8(clip), self.streaming) for clip in batch.clips])

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        return {"of the mean frame": mean_frame(clips)}

    def facts(self) -> dict[str, Any]:
        return {"chunk_size": self.streaming.windows.size, "overlap": self.streaming.windows.overlap}


@contextmanager
def own_errors() -> Iterator[None]:
    """Errors of the package, and lack of memory, as errors of the project, which scripts print in one line."""
    try:
        yield
    except VVAEError as error:
        raise UserError(str(error)) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory: {LESS_MEMORY}") from error
