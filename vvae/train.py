"""How the autoencoder is trained: reconstruction, KL, a perceptual term and, from a given step on, a discriminator.

`VVAERecipe` turns a batch into losses; `train_vvae` is the command scripts/train_vvae.py, with the recipe and the clips
of a configuration; `Reconstructions` is what evaluations score.

The only file of this package that needs the project around it. Axes: B clips, T frames, H and W pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from evaluation.psnr import psnr
from evaluation.subject import Batch, Subject
from losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from losses.discriminator import PatchGAN2D, PatchGAN3D
from losses.perceptual import LPIPS
from training.config import load_config
from training.explain import is_out_of_memory
from training.loop import train
from training.muon import Muon
from training.randomness import derive_seed
from training.recipe import Losses, Recipe, Step
from training.settings import settings_from
from videodata.clips import open_clips
from videodata.errors import UserError
from videodata.pixels import normalize, to_uint8
from vvae.src.captions import CaptionCache, CaptionedClips, caption_embedder
from vvae.src.checkpoints import is_unused
from vvae.src.distributions import DiagonalGaussianDistribution
from vvae.src.errors import VVAEError
from vvae.src.models.autoencoder import Level, Middle
from vvae.src.models.autoencoder2plus1d_1dcnn import AutoencoderKL2plus1D_1dcnn
from vvae.src.models.isometric import start_isometric
from vvae.src.modules.ae_modules import Downsample, Upsample
from vvae.src.modules.losses.contperceptual import LPIPSWithDiscriminator, flatten_frames
from vvae.src.streaming import Streaming, reconstruct_clip
from vvae.utils.common_utils import instantiate_from_config

BETAS = (0.5, 0.9)
FREE_KEYS = frozenset({"checkpointing", "perceptual_weights"})
LESS_MEMORY = "cut frames into tiles (--tile 256 256), use shorter windows (--chunk_size 8) or --dtype bf16"
OPTIMIZERS = {  # of the autoencoder: the original's, or one that learns from fewer clips
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate, betas=BETAS),
    "muon": lambda parameters, rate: Muon(parameters, lr=rate, convolutions=True),
}


class VVAERecipe(Recipe):
    """Trains the autoencoder and its discriminator, with one pass of the autoencoder per step.

    image_prob: share of steps that take the frames of a batch as single images (needs the 2D discriminator).
    image_steps: first steps that all do, so that the spatial stage is there when the temporal one starts.
    optimizer: of the autoencoder, "adam" or "muon".
    perceptual_weights: the file of VGG-16, or a folder that holds it.
    """

    name = "vvae"
    best_metric = ("rec_loss", "min")
    ema_networks = ("autoencoder",)
    shard_types = (Level, Middle, Downsample, Upsample)
    forward_methods = ("encode", "decode")
    free_keys = FREE_KEYS

    def __init__(
        self,
        autoencoder: AutoencoderKL2plus1D_1dcnn,
        objective: LPIPSWithDiscriminator,
        learning_rate: float = 1e-4,
        image_prob: float = 0.0,
        image_steps: int = 0,
        optimizer: str = "adam",
        perceptual_weights: Path | str | None = None,
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
        trained = used_parameters(autoencoder)
        if objective.learn_logvar:
            networks["loss"] = objective
            trained = [*trained, objective.logvar]
        super().__init__(
            networks,
            {
                "autoencoder": OPTIMIZERS[optimizer](trained, learning_rate),
                "discriminator": torch.optim.Adam(discriminator.parameters(), lr=learning_rate, betas=BETAS),
            },
        )
        self.objective, self.image_prob, self.image_steps = objective, image_prob, image_steps
        self.perceptual = LPIPS("vgg", perceptual_weights)  # looks for its weights at the first call
        self.frozen = [] if objective.learn_logvar else [objective]
        self.find_unused_parameters = images  # they leave the temporal layers without gradients

    def losses(self, batch: Any, step: Step) -> Iterator[Losses | None]:
        """The autoencoder's loss, then the discriminator's on the same reconstruction."""
        video, text = unpack(batch)
        noise = self.noise(video, step)
        images = self.takes_images(step)
        if images:
            video, text, noise = as_images(video, text, noise)
        reconstruction, posterior = self.networks["autoencoder"](
            video, **text, sample_posterior=True, mask_temporal=images, noise=noise
        )
        total, terms = self.likelihood(video, reconstruction, posterior)
        adversarial = step.index >= self.objective.disc_start and self.objective.disc_factor > 0
        if adversarial:
            share, added = self.adversarial(terms["nll_loss"], reconstruction)
            total, terms = total + share, terms | added
        yield Losses(total, {name: value.detach() for name, value in terms.items()})
        yield self.discriminator_losses(video, reconstruction.detach()) if adversarial else None

    def noise(self, video: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Noise of the two posteriors, keyed by the position of each clip."""
        frames, height, width = video.shape[2:]
        channels, cell = self.bare["autoencoder"].encoder.z_channels, (height // 8, width // 8)
        return step.noise.normal(channels, frames, *cell), step.noise.normal(channels, max(1, frames // 4), *cell)

    def takes_images(self, step: Step) -> bool:
        """Whether this step's batch is taken frame by frame; the same for all processes."""
        if step.index < self.image_steps:
            return True
        return derive_seed("image batch", step.index) % 10_000 < self.image_prob * 10_000

    def likelihood(
        self, video: Tensor, reconstruction: Tensor, posterior: DiagonalGaussianDistribution
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood plus weighted KL, and the terms for the log."""
        frames, drawn = flatten_frames(video), flatten_frames(reconstruction)
        distance = self.perceptual(frames, drawn) if self.objective.perceptual_weight > 0 else None
        objective = self.networks.get("loss", self.objective)
        nll, error = objective(frames, drawn, distance)
        kl = posterior.kl().mean()
        total = nll + self.objective.kl_weight * kl
        if self.objective.kl_weight_spatial > 0 and posterior.first is not None:
            total = total + self.objective.kl_weight_spatial * posterior.first.kl().mean()
        return total, {"nll_loss": nll, "kl_loss": kl, "rec_loss": error, "logvar": self.objective.logvar}

    def adversarial(self, nll: Tensor, reconstruction: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's adversarial term, its gradient at the last layer brought to the size of the nll's."""
        logits = self.networks["discriminator"](self.objective.shown(reconstruction))
        loss = generator_loss(logits, self.objective.disc_loss)
        weight = self.objective.disc_weight * adaptive_weight(nll, loss, self.bare["autoencoder"].last_layer)
        return weight * self.objective.disc_factor * loss, {"g_loss": loss, "d_weight": weight}

    def discriminator_losses(self, video: Tensor, reconstruction: Tensor) -> Losses:
        """The discriminator's loss on a clip and its (detached) reconstruction."""
        discriminator = self.networks["discriminator"]
        real, fake = discriminator(self.objective.shown(video)), discriminator(self.objective.shown(reconstruction))
        loss = self.objective.disc_factor * discriminator_loss(real, fake, self.objective.disc_loss)
        return Losses(loss, {"logits_real": real.mean().detach(), "logits_fake": fake.mean().detach()})

    def evaluate(self, batch: Any, step: Step) -> dict[str, Tensor]:
        """Reconstruction from the mean latent: L1 error, PSNR, and KL in nats per clip, each (B,)."""
        video, text = unpack(batch)
        reconstruction, posterior = self.networks["autoencoder"](video, **text)
        scores = {"rec_loss": (video - reconstruction.float()).abs().flatten(1).mean(dim=1), "kl": posterior.kl()}
        return scores | {"psnr": psnr(video, reconstruction.float().clamp(-1, 1))}

    def pictures(self, batch: Any, step: Step) -> dict[str, Tensor]:
        """Clips, their reconstructions, and clips decoded from N(0, 1)."""
        video, text = unpack(batch)
        autoencoder = self.networks["autoencoder"]
        latent = autoencoder.encode(video, **text).mode()
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0)).to(latent)
        reconstruction, samples = autoencoder.decode(latent, **text), autoencoder.decode(noise, **text)
        return {"original": video, "reconstruction": reconstruction.float(), "samples": samples.float()}


def used_parameters(autoencoder: nn.Module) -> list[nn.Parameter]:
    """All parameters but those of the branches that nothing uses, which stay as they are for export."""
    own = autoencoder.state_dict()
    return [parameter for name, parameter in autoencoder.named_parameters() if not is_unused(name, own)]


def unpack(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Clips as float (B, 3, T, H, W) and the caption embeddings, of a batch that is a tensor or a dict."""
    if isinstance(batch, dict):
        text = {key: batch[key] for key in ("text_embeddings", "text_attn_mask") if key in batch}
        batch = batch["video"]
    else:
        text = {}
    return (normalize(batch) if batch.dtype == torch.uint8 else batch), text


def as_images(
    video: Tensor, text: dict[str, Tensor], noise: tuple[Tensor, Tensor]
) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Every frame a clip of its own, (B T, 3, 1, H, W), with the caption of its clip."""
    frames = video.shape[2]
    text = {key: value.repeat_interleave(frames, dim=0) for key, value in text.items()}
    each = tuple(flatten_frames(part).unsqueeze(2) for part in (video, noise[0]))
    return each[0], text, (each[1], each[1])


def train_vvae(args: argparse.Namespace) -> str:
    """Train, or continue, and give a summary of one line. Raises UserError for what the user can put right."""
    config = load_config(args.config, args.overrides)
    config["data"]["path"] = args.data or config["data"]["path"]
    settings = settings_from(args, args.run_dir or Path("runs") / args.run_name, args.steps)
    recipe = build_recipe(config, settings.seed)
    training, validation = open_data(config["data"], recipe.bare["autoencoder"], settings.seed)
    result = train(recipe, training, settings, config, validation)
    state = (
        f"finished after {result.step} steps" if result.finished else f"stopped at step {result.step} of {args.steps}"
    )
    scores = "".join(f", {name} {value:.4g}" for name, value in sorted(result.metrics.items()))
    return f"{settings.run_dir}: {state}{scores}"


def build_recipe(config: dict[str, Any], seed: int = 0) -> VVAERecipe:
    """The recipe of a configuration like those in configs/vvae. Raises UserError for what the user can put right."""
    loss, options = config["model"]["params"]["lossconfig"], config.get("optimization", {})
    given = next((key for key in ("ckpt_path", "ckpt_path_2d") if config["model"]["params"].get(key)), None)
    if given and options.get("isometric_start"):
        raise UserError(f"optimization.isometric_start is for training from nothing, but model.params.{given} is set")
    torch.manual_seed(derive_seed(seed, "weights"))
    with own_errors():
        objective = instantiate_from_config(loss)
        autoencoder = instantiate_from_config(config["model"], prune_unused=not options.get("keep_unused", True))
        if options.get("isometric_start"):
            start_isometric(autoencoder)
    if options.get("checkpointing"):
        autoencoder.enable_gradient_checkpointing()
    recipe = VVAERecipe(
        autoencoder,
        objective,
        learning_rate=config["model"].get("base_learning_rate", 1e-4),
        image_prob=options.get("image_prob", 0.0),
        image_steps=options.get("image_steps", 0),
        optimizer=options.get("optimizer", "adam"),
        perceptual_weights=options.get("perceptual_weights"),
    )
    if objective.perceptual_weight > 0:
        recipe.perceptual.weights_file()  # looked for now, and not after the data has been read
    return recipe


def open_data(data: dict[str, Any], model: AutoencoderKL2plus1D_1dcnn, seed: int = 0) -> tuple[Dataset, Dataset | None]:
    """Training and validation clips of the part `data` of a configuration; the latter None where there is no split.

    With captions (a csv with the columns path and text) their embeddings are made, or found in data["text_folder"].
    """
    if not data.get("path"):
        raise UserError(
            "data.path is empty: name clips with --data (a folder of videos, a csv, .npy, .hdf5, shapes:<n>)"
        )
    size = data["size"] if isinstance(data["size"], int) else tuple(data["size"])
    shape = {"frames": data["frames"], "size": size, "stride": data.get("stride", 1), "seed": seed, "dtype": "uint8"}
    if data.get("validation_path"):
        training = open_clips(data["path"], flip=data.get("flip", False), **shape)
        validation = open_clips(data["validation_path"], **shape)
    elif data.get("split", True):
        training = open_clips(data["path"], split="train", flip=data.get("flip", False), **shape)
        validation = open_clips(data["path"], split="val", **shape)
    else:
        training, validation = open_clips(data["path"], flip=data.get("flip", False), **shape), None
    if not model.config.caption_guide:
        return training, validation
    model.text_encoder = data.get("text_encoder") or model.text_encoder
    with own_errors():
        return tuple(captioned(clips, data.get("text_folder") or "captions", model) for clips in (training, validation))


def captioned(clips: Dataset | None, folder: str, model: AutoencoderKL2plus1D_1dcnn) -> CaptionedClips | None:
    """Clips with the embeddings of their captions, which are made where the folder lacks them."""
    if clips is None:
        return None
    dataset = CaptionedClips(clips, CaptionCache(folder))
    dataset.cache.fill(dataset.captions(), caption_embedder(model))
    return dataset


class Reconstructions(Subject):
    """Clips through the latents and back, window by window as files go."""

    def __init__(self, model: nn.Module, streaming: Streaming) -> None:
        self.model, self.streaming = model, streaming
        self.window = streaming.windows.size - streaming.windows.overlap

    def make(self, batch: Batch) -> Tensor:
        return torch.stack([reconstruct_clip(self.model, to_uint8(clip), self.streaming) for clip in batch.clips])

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        return {"of the mean colour": clips.mean(dim=(2, 3, 4), keepdim=True).expand_as(clips)}

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
