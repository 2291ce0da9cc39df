"""How the video VAE is trained: 10 MSE + beta KL + a perceptual term, and the files of each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.metrics import psnr, ssim
from losses.kl import free_bits
from losses.perceptual import build_perceptual, perceptual_loss
from losses.ramp import linear_ramp
from training.muon import Muon
from training.recipe import Losses, Recipe, Step
from video_vae.block import ContextBlock
from video_vae.epoch_files import write_epoch_file
from video_vae.measures import kl_bits
from video_vae.model import Moment, TransformerNetwork, all_moments
from videodata.pixels import normalize

BETAS = (0.9, 0.99)
OPTIMIZERS = {"adamw": torch.optim.AdamW, "muon": Muon}
SSIM_WINDOW = 11  # pixels; smaller frames have no SSIM
SAMPLES_SHOWN = 4


@dataclass
class LossConfig:
    """Weights of the training objective.

    total = recon_weight * MSE in [0, 1] units + kl_weight * KL in nats per pixel value + perceptual_weight * perceptual
    With recon_weight 10, kl_weight is 20 times the variance of the pixel noise that the likelihood stands for.
    """

    recon_weight: float = 10.0
    kl_weight: float = 1e-3
    kl_warmup_steps: int = 0  # of a linear ramp of kl_weight from 0; 0: a tenth of the run, at least 100 steps
    free_bits: float = 0.0  # bits per level and clip that cost nothing
    frames_warmup_steps: int = 0  # training starts with 1 frame of each clip and doubles their number up to this step
    perceptual: str = "vgg"  # a key of losses.perceptual.PERCEPTUAL_LOSSES
    perceptual_weight: float = 1.0
    perceptual_frames: int = 8  # random frames per clip that are compared; 0: all


class VideoVAERecipe(Recipe):
    """Trains a TransformerNetwork; writes `<stem>_epoch_<N>.pth` after each epoch where an `epoch_stem` is given.

    `epoch_offset`: epochs that earlier runs have trained, counted on in the file names. `epoch_every`: 1 in so many
    epochs leaves a file.
    """

    name = "video_vae"
    best_metric = ("psnr", "max")
    ema_networks = ("vae",)
    shard_types = (ContextBlock,)
    forward_methods = ("encode", "decode", "generate")
    free_keys = frozenset({"checkpointing"})

    def __init__(
        self,
        network: TransformerNetwork,
        loss: LossConfig,
        learning_rate: float = 1e-5,
        weight_decay: float = 1e-4,
        optimizer: str = "adamw",
        vgg_weights: Path | str | None = None,
        epoch_stem: Path | None = None,
        epoch_offset: int = 0,
        epoch_every: int = 1,
    ) -> None:
        chosen = OPTIMIZERS[optimizer](network.parameters(), lr=learning_rate, betas=BETAS, weight_decay=weight_decay)
        super().__init__({"vae": network}, {"vae": chosen})
        self.loss = loss
        self.perceptual = build_perceptual(loss.perceptual, vgg_weights)
        self.epoch_stem = epoch_stem
        self.epoch_offset = epoch_offset
        self.epoch_every = max(1, epoch_every)
        # clips of one frame leave the generator's last states without influence
        self.find_unused_parameters = network.config.gen_iterations == 1

    def losses(self, batch: Tensor, step: Step) -> Iterator[Losses | None]:
        moments = self.moments(step, batch.shape[2])
        batch = as_float(batch[:, :, [t for t, _ in moments]])
        reconstruction, terms = self.networks["vae"](batch, step.noise, moments)
        pixel_values = batch[0].numel()
        error = squared_error(reconstruction, batch)
        nats = {name: kl / pixel_values for name, kl in terms.items()}  # per pixel value, (B,)
        paid = sum(free_bits(kl, self.loss.free_bits) for kl in terms.values()) / pixel_values
        similarity = perceptual_loss(
            self.perceptual, batch, reconstruction, self.loss.perceptual_weight, self.loss.perceptual_frames, step.noise
        )
        total = self.loss.recon_weight * error + self.kl_weight(step) * paid + similarity
        logged = {"mse": error, "kl": sum(nats.values()), **nats, "perceptual": similarity}
        yield Losses(total.mean(), {name: value.mean().detach() for name, value in logged.items()})

    def moments(self, step: Step, frames: int) -> list[Moment]:
        """The frames of each clip that this step uses: 1, 2, 4, ... of them, evenly spread, and after the warm-up all.

        Fewer frames cost less and show more scenes in the same time, so that space is learnt before time
        (curriculum over sequence length: Li et al. 2022, arXiv 2108.06084).
        """
        stages, warmup = (frames - 1).bit_length(), self.loss.frames_warmup_steps
        stage = stages if step.index >= warmup else step.index * stages // warmup
        apart = 2 ** (stages - stage)
        return all_moments(frames)[step.index % min(apart, frames) :: apart]

    def kl_weight(self, step: Step) -> float:
        """The weight of the KL at this step; without its ramp the posterior collapses before the decoder learns."""
        length = self.loss.kl_warmup_steps or max(100, step.total_steps // 10)
        return self.loss.kl_weight * linear_ramp(step.index, length=length)

    def evaluate(self, batch: Tensor, step: Step) -> dict[str, Tensor]:
        batch = as_float(batch)
        reconstruction, terms = self.networks["vae"](batch, step.noise)
        scores = {"psnr": psnr(batch, reconstruction), "mse": squared_error(reconstruction, batch)}
        if min(batch.shape[-2:]) >= SSIM_WINDOW:
            scores["ssim"] = ssim(batch, reconstruction)
        return {**scores, **kl_bits(terms)}

    def pictures(self, batch: Tensor, step: Step) -> dict[str, Tensor]:
        batch = as_float(batch)
        reconstruction, _ = self.networks["vae"](batch, step.noise)
        generator = torch.Generator().manual_seed(0)
        frames, size = batch.shape[2], tuple(batch.shape[3:])
        samples = self.networks["vae"].generate(SAMPLES_SHOWN, frames, generator, size=size)
        return {"original": batch, "reconstruction": reconstruction, "samples": samples}

    def on_epoch_end(self, epoch: int, checkpoint: Callable[[], dict[str, Any]]) -> None:
        if self.epoch_stem is not None and epoch % self.epoch_every == 0:
            write_epoch_file(self.epoch_stem, epoch + self.epoch_offset, checkpoint())


def squared_error(reconstruction: Tensor, clip: Tensor) -> Tensor:
    """Mean squared error per clip in [0, 1] units: (B, 3, T, H, W) in [-1, 1] -> (B,)."""
    return ((reconstruction - clip) / 2).pow(2).flatten(1).mean(dim=1)


def as_float(clip: Tensor) -> Tensor:
    """Clips as the network takes them; the loader sends uint8, a quarter of the bytes."""
    return normalize(clip) if clip.dtype == torch.uint8 else clip
