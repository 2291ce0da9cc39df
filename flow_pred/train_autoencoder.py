"""Training of the simple VQVAE: reconstruction, and latents between two frames that show what lies between them.

A batch is clips (B, 3, T, H, W), uint8 or float in [-1, 1]; T = 1 trains on single frames.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from evaluation.metrics import psnr
from flow_pred.autoencoder import SimpleVQVAE, build_ours
from flow_pred.config import AutoencoderObjective, AutoencoderTraining, DataConfig, configure_autoencoder
from flow_pred.files import AUTOENCODER_RECIPE
from flow_pred.latents import below, pick_frames
from losses.perceptual import LPIPS
from losses.quantize import LatentReservoir, kmeans
from training import Losses, Networks, Recipe, Step, settings_from, train
from training.cli import command_line
from training.distributed import print0
from training.optim import build_optimizer
from videodata.clips import ClipDataset, open_clips
from videodata.errors import UserError
from videodata.pixels import as_float

BETAS = (0.9, 0.99)
SHOWN = 8


def train_flow_autoencoder(args: argparse.Namespace) -> None:
    """What scripts/train_flow_autoencoder.py does: train, or continue where the same command stopped."""
    config = configure_autoencoder(args)
    settings = {key: value for key, value in config.model.autoencoder.items() if key not in ("type", "ckpt_path")}
    if config.model.autoencoder.get("type") != "ours":
        raise UserError(f"{args.config}: model.autoencoder.type is not `ours`; a VQGAN is trained by train_vqgan.py")
    chosen = config.autoencoder_training
    torch.manual_seed(args.seed)
    recipe = AutoencoderRecipe(build_ours(settings, None), chosen.objective, args.vgg_weights)
    stored = {"model": {"type": "ours", **settings}}
    stored |= {"objective": dataclasses.asdict(chosen.objective), "data": dataclasses.asdict(config.data)}
    run_dir = args.run_dir or args.runs / f"{config.name}_run-{args.run_name}"
    training, validation = open_data(chosen, config.data, args.seed)
    settings = settings_from(
        args, run_dir, chosen.steps, batch_size=chosen.batch_size, warmup_steps=chosen.warmup_steps
    )
    result = train(recipe, training, settings, stored, validation)
    print0(result.told(*result.scores()))


def open_data(chosen: AutoencoderTraining, data: DataConfig, seed: int) -> tuple[ClipDataset, ClipDataset]:
    """Clips to train on and to validate with, uint8 (3, T, H, W); those to train on are mirrored at random."""
    shape = {"frames": chosen.clip_frames, "size": data.crop_size, "short_side": data.input_size}
    shape |= {"stride": chosen.clip_stride, "seed": seed, "dtype": "uint8"}
    training, validation = (
        open_clips(data.data_root, split=split, flip=split == "train", **shape) for split in ("train", "val")
    )
    return training, validation


class AutoencoderRecipe(Recipe):
    """MSE + quantiser + optionally LPIPS, on single frames or on clips.

    On clips, the first and the last frame are encoded, and the latents in between them must decode to a frame in
    between: both predictors move latents on straight lines, so a straight line should look like motion.
    """

    name = AUTOENCODER_RECIPE
    best_metric = ("psnr", "max")
    free_keys = frozenset({"num_training_steps"})
    ema_networks = ("autoencoder",)

    def __init__(
        self, model: SimpleVQVAE, objective: AutoencoderObjective, perceptual_weights: str | None = None
    ) -> None:
        codes = model.vector_quantizer.embedding if model.vector_quantizer else None
        options = {"betas": BETAS, "convolutions": True, "tables": [codes.weight] if codes else []}
        optimizer = build_optimizer(objective.optimizer, model.parameters(), objective.learning_rate, **options)
        networks: Networks = {"autoencoder": model}
        if codes:
            networks["reservoir"] = LatentReservoir(codes.num_embeddings, codes.embedding_dim)
        super().__init__(networks, {"autoencoder": optimizer})
        self.objective = objective
        self.perceptual = LPIPS("vgg", perceptual_weights)  # looks for its weights at the first call

    def losses(self, batch: Tensor, step: Step, networks: Networks) -> Iterator[Losses | None]:
        coded = "reservoir" in networks
        quantise = coded and step.index >= self.objective.vq_warmup
        if quantise:
            self.start_codebook(networks)
        images, shares, truth = chosen_frames(batch, step)
        noise = self.latent_noise(images, shares is not None, step)
        frames, latents, quantiser = networks["autoencoder"](images, shares, quantise, noise)
        if coded and not quantise:
            kept = latents.detach().movedim(1, -1)  # (N, h, w, C)
            if shares is not None:  # clip by clip, so that the order is the same for any number of processes
                kept = kept.unflatten(0, (2, -1)).transpose(0, 1)
            networks["reservoir"](kept)
        reconstruction, blended = frames[: len(images)], frames[len(images) :]
        terms = {"reconstruction": (reconstruction - images).square().mean()}
        total = terms["reconstruction"]
        if coded:
            terms["quantiser"] = quantiser.mean()
            total = total + self.objective.vq_weight * terms["quantiser"]
        if self.objective.latent_penalty > 0:
            terms["latents"] = latents.square().mean()
            total = total + self.objective.latent_penalty * terms["latents"]
        if shares is not None:
            terms["blend"] = (blended - truth).square().mean()
            total = total + self.objective.blend_weight * terms["blend"]
        if self.objective.perceptual_weight > 0:
            terms["perceptual"] = self.perceptual(reconstruction, images).mean()
            total = total + self.objective.perceptual_weight * terms["perceptual"]
        yield Losses(total, terms)

    def latent_noise(self, images: Tensor, ends: bool, step: Step) -> Tensor | None:
        """Noise for the latents of images (N, 3, H, W), in units of their spread; a predictor errs by about as much.

        ends: the images are all first frames, then all last ones; otherwise clip by clip.
        """
        if self.objective.latent_noise == 0:
            return None
        model = self.networks["autoencoder"]
        shape = model.latent_shape(*images.shape[-2:])
        noise = step.noise.normal(len(images) // len(step.noise), *shape)  # (B, frames of a clip, C, h, w)
        noise = noise.transpose(0, 1) if ends else noise  # each clip has its own noise, whatever is in its batch
        return self.objective.latent_noise * noise.flatten(0, 1)

    @torch.no_grad()
    def start_codebook(self, networks: Networks) -> None:
        """Once after the warm-up: codes far from all latents would never be chosen, so start where the latents are."""
        reservoir = networks["reservoir"]
        if reservoir.used or not reservoir.count:
            return
        codes = self.networks["autoencoder"].vector_quantizer.embedding.weight
        centres, _ = kmeans(reservoir.newest(), len(codes))
        codes.copy_(centres)
        reservoir.used.fill_(True)

    def evaluate(self, batch: Tensor, step: Step, networks: Networks) -> dict[str, Tensor]:
        """PSNR (B,) of quantised reconstructions of the first frames, and of blends with the last ones."""
        images, shares, truth = chosen_frames(batch, step)
        frames, _, _ = networks["autoencoder"](images, shares)
        count = len(batch)
        metrics = {"psnr": psnr(images[:count, :, None], frames[:count, :, None].clamp(-1, 1))}
        if shares is not None:
            metrics["psnr_blend"] = psnr(truth[:, :, None], frames[2 * count :, :, None].clamp(-1, 1))
        return metrics

    def pictures(self, batch: Tensor, step: Step, networks: Networks) -> dict[str, Tensor]:
        """Originals above their reconstructions."""
        images = as_float(batch)[:SHOWN, :, 0]
        return {"reconstructions": torch.cat([images, networks["autoencoder"](images)[0]], dim=2)}

    def show_command(self, run_dir: Path) -> str:
        return command_line(["python", "scripts/gallery.py", str(run_dir), "--out", str(run_dir / "page")])


def chosen_frames(batch: Tensor, step: Step) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Images to encode; for clips of 3 frames or more also where between them to look (B,), and the true frame there.

    For those clips the images are all first frames, then all last ones.
    """
    clips = as_float(batch).transpose(1, 2)  # (B, T, 3, H, W)
    last = clips.shape[1] - 1
    if last < 2:
        return clips.flatten(0, 1), None, None
    middle = 1 + below(step.noise.uniform(), torch.full((len(clips),), last - 1, device=clips.device))
    truth = pick_frames(clips, middle[:, None])[:, 0]
    return torch.cat([clips[:, 0], clips[:, last]]), middle / last, truth
