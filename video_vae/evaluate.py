"""How well a trained video VAE reconstructs clips, and how many bits its latents cost."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from evaluation.paired import PairedScores
from evaluation.report import Score
from training.randomness import SampleNoise
from video_vae.measures import kl_bits
from video_vae.model import TransformerNetwork


@torch.no_grad()
def score_reconstructions(
    network: TransformerNetwork,
    clips: Dataset,
    batch_size: int = 4,
    seed: int = 0,
    mean_latents: bool = False,
    lpips: str | None = None,
    weights: Path | str | None = None,
) -> list[Score]:
    """PSNR, SSIM and LPIPS of the reconstructions, PSNR of the mean frame of each clip, and KL in bits.

    Latents are drawn from the posterior, unless `mean_latents`. clips gives float (3, T, H, W) in [-1, 1].
    """
    reconstructions, mean_frames = PairedScores(lpips, weights), PairedScores()
    bits: dict[str, list[float]] = {}
    device = network.canvas.device
    for first in range(0, len(clips), batch_size):
        items = range(first, min(first + batch_size, len(clips)))
        batch = torch.stack([clips[item] for item in items]).to(device)
        noise = None if mean_latents else SampleNoise(seed, items, device)
        reconstruction, terms = network(batch, noise)
        reconstructions.update(batch.cpu(), reconstruction.cpu())
        mean_frames.update(batch.cpu(), mean_frame(batch).cpu())
        for name, values in kl_bits(terms).items():
            bits.setdefault(name, []).extend(values.tolist())
    kl = [Score("kl-bits", values, label=level_name(name)) for name, values in bits.items()]
    return [*reconstructions.scores(), labelled(mean_frames.scores()[0], "of the mean frame"), *kl]


def mean_frame(clips: Tensor) -> Tensor:
    """The best still picture of each clip, as a clip: what a model that sees no motion can reach at most."""
    return clips.mean(dim=2, keepdim=True).expand_as(clips)


def labelled(score: Score, label: str) -> Score:
    """The score under a name that tells it from the model's own."""
    score.label = label
    return score


def level_name(term: str) -> str:
    """`kl_bits_2` -> "level 2", `kl_bits` -> "total"."""
    level = term.removeprefix("kl_bits").lstrip("_")
    return f"level {level}" if level else "total"
