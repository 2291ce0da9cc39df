"""Training of the simple VQVAE: reconstruction, and latents between two frames that show what lies between them.

A batch is clips (B, 3, T, H, W), uint8 or float in [-1, 1]; T = 1 trains on single frames.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from evaluation.psnr import psnr
from flow_pred.autoencoder import SimpleVQVAE, build_ours
from flow_pred.config import AutoencoderObjective, FlowPredConfig, read_config
from flow_pred.latents import below, pick_frames
from losses.perceptual import LPIPS
from training import Losses, Recipe, Step, settings_from, train
from training.distributed import print0
from training.muon import Muon
from videodata.clips import ClipDataset, open_clips
from videodata.errors import UserError
from videodata.pixels import normalize
from vqgan.kmeans import kmeans
from vqgan.reservoir import LatentReservoir

BETAS = (0.9, 0.99)
SHOWN = 8


def train_flow_autoencoder(args: argparse.Namespace) -> None:
    """What scripts/train_flow_autoencoder.py does: train, or continue where the same command stopped."""
    config, plain = read_config(args.config, args.overrides)
    settings = {key: value for key, value in config.model.autoencoder.items() if key not in ("type", "ckpt_path")}
    if config.model.autoencoder.get("type") != "ours":
        raise UserError(f"{args.config}: model.autoencoder.type is not `ours`; a VQGAN is trained by train_vqgan.py")
    objective = AutoencoderObjective(
        **{entry.name: getattr(args, entry.name) for entry in dataclasses.fields(AutoencoderObjective)}
    )
    torch.manual_seed(args.seed)
    recipe = AutoencoderRecipe(build_ours(settings, None), objective, args.vgg_weights)
    run_dir = args.runs / f"{config.name}_run-{args.run_name}"
    result = train(
        recipe,
        open_data(config, args, "train"),
        settings_from(args, run_dir, args.steps),
        {"model": {"type": "ours", **settings}, "objective": dataclasses.asdict(objective), "data": plain["data"]},
        open_data(config, args, "val"),
    )
    print0(f"{run_dir}: step {result.step}", {name: round(value, 3) for name, value in result.metrics.items()})


def open_data(config: FlowPredConfig, args: argparse.Namespace, split: str) -> ClipDataset:
    """Clips of a split, uint8."""
    data = config.data
    return open_clips(
        data.data_root,
        frames=args.clip_frames,
        size=data.crop_size,
        short_side=data.input_size,
        stride=args.clip_stride,
        split=split,
        seed=args.seed,
        flip=split == "train",
        dtype="uint8",
    )


class AutoencoderRecipe(Recipe):
    """MSE + quantiser + optionally LPIPS, on single frames or on clips.

    On clips, the first and the last frame are encoded, and the latents in between them must decode to a frame in
    between: both predictors move latents on straight lines, so a straight line should look like motion.
    """

    name = "flow_pred_autoencoder"
    best_metric = ("psnr", "max")
    ema_networks = ("autoencoder",)

    def __init__(
        self, model: SimpleVQVAE, objective: AutoencoderObjective, perceptual_weights: str | None = None
    ) -> None:
        codes = model.vector_quantizer.embedding
        super().__init__(
            {"autoencoder": model, "reservoir": LatentReservoir(codes.num_embeddings, codes.embedding_dim)},
            {"autoencoder": build_optimizer(model, objective)},
        )
        self.objective = objective
        self.perceptual = LPIPS("vgg", perceptual_weights)  # looks for its weights at the first call

    def losses(self, batch: Tensor, step: Step) -> Iterator[Losses | None]:
        """One loss."""
        quantise = step.index >= self.objective.vq_warmup
        if quantise:
            self.start_codebook()
        images, shares, truth = chosen_frames(batch, step)
        frames, latents, quantiser = self.networks["autoencoder"](images, shares, quantise)
        if not quantise:
            kept = latents.detach().movedim(1, -1)  # (N, h, w, C)
            if shares is not None:  # clip by clip, so that the order is the same for any number of processes
                kept = kept.unflatten(0, (2, -1)).transpose(0, 1)
            self.networks["reservoir"](kept)
        reconstruction, blended = frames[: len(images)], frames[len(images) :]
        terms = {"reconstruction": (reconstruction - images).square().mean(), "quantiser": quantiser.mean()}
        total = terms["reconstruction"] + self.objective.vq_weight * terms["quantiser"]
        if shares is not None:
            terms["blend"] = (blended - truth).square().mean()
            total = total + self.objective.blend_weight * terms["blend"]
        if self.objective.perceptual_weight > 0:
            terms["perceptual"] = self.perceptual(reconstruction, images).mean()
            total = total + self.objective.perceptual_weight * terms["perceptual"]
        yield Losses(total, terms)

    @torch.no_grad()
    def start_codebook(self) -> None:
        """Once after the warm-up: codes far from all latents would never be chosen, so start where the latents are."""
        reservoir = self.networks["reservoir"]
        if reservoir.used or not reservoir.count:
            return
        codes = self.bare["autoencoder"].vector_quantizer.embedding.weight
        centres, _ = kmeans(reservoir.newest(), len(codes))
        codes.copy_(centres)
        reservoir.used.fill_(True)

    def evaluate(self, batch: Tensor, step: Step) -> dict[str, Tensor]:
        """PSNR (B,) of quantised reconstructions of the first frames, and of blends with the last ones."""
        images, shares, truth = chosen_frames(batch, step)
        frames, _, _ = self.networks["autoencoder"](images, shares)
        count = len(batch)
        metrics = {"psnr": psnr(images[:count, :, None], frames[:count, :, None].clamp(-1, 1))}
        if shares is not None:
            metrics["psnr_blend"] = psnr(truth[:, :, None], frames[2 * count :, :, None].clamp(-1, 1))
        return metrics

    def pictures(self, batch: Tensor, step: Step) -> dict[str, Tensor]:
        """Originals above their reconstructions."""
        images = as_float(batch)[:SHOWN, :, 0]
        return {"reconstructions": torch.cat([images, self.networks["autoencoder"](images)[0]], dim=2)}


def build_optimizer(model: SimpleVQVAE, objective: AutoencoderObjective) -> torch.optim.Optimizer:
    """Adam, or Muon with the codebook apart. Raises UserError for another name."""
    if objective.optimizer == "muon":
        tables = [model.vector_quantizer.embedding.weight]
        return Muon(model.parameters(), objective.learning_rate, BETAS, convolutions=True, tables=tables)
    if objective.optimizer != "adam":
        raise UserError(f"the optimizer must be adam or muon, found {objective.optimizer!r}")
    return torch.optim.Adam(model.parameters(), objective.learning_rate, BETAS, fused=True)


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


def as_float(batch: Tensor) -> Tensor:
    return normalize(batch) if batch.dtype == torch.uint8 else batch
