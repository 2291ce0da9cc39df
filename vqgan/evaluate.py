"""How well a trained VQGAN reconstructs clips, and how much of its codebook it uses for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from evaluation.codebook_usage import CodebookUsage
from evaluation.paired import PairedScores
from evaluation.report import Score
from vqgan.model_file import Model
from vqgan.patches import merge, split

PATCHES_AT_A_TIME = 16


@dataclass
class ClipScores:
    """Scores of reconstructions, the codes that they need, and what a code map of a frame costs."""

    scores: list[Score]
    usage: CodebookUsage
    bits_per_frame: float


@torch.no_grad()
def score_reconstructions(
    model: Model,
    clips: Dataset,
    rows: int,
    columns: int,
    batch_size: int = 4,
    lpips: str | None = None,
    weights: Path | str | None = None,
) -> ClipScores:
    """PSNR, SSIM and LPIPS of whole frames put together from patches, and PSNR of the mean colour of each frame.

    clips gives float (3, T, H, W) in [-1, 1].
    """
    scores, mean_colors = PairedScores(lpips, weights), PairedScores()
    usage, frames = CodebookUsage(model.num_embeddings), 0
    for first in range(0, len(clips), batch_size):
        batch = torch.stack([clips[item] for item in range(first, min(first + batch_size, len(clips)))])
        reconstruction, indices = reconstruct(model, batch, rows, columns)
        usage.update(indices)
        scores.update(batch, reconstruction)
        mean_colors.update(batch, batch.mean(dim=(3, 4), keepdim=True).expand_as(batch))
        frames += batch.shape[0] * batch.shape[2]
    baseline = mean_colors.scores()[0]
    baseline.label = "of the mean colour"
    bits = int(usage.counts.sum()) / frames * math.log2(model.num_embeddings)
    return ClipScores([*scores.scores(), baseline], usage, bits)


def reconstruct(model: Model, clips: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Clips (B, 3, T, H, W) -> (their reconstruction, the indices (B * T * rows * columns, h, w) of its patches)."""
    device = next(model.parameters()).device
    patches = split(clips.transpose(1, 2).flatten(0, 1), rows, columns)
    parts = [model(part.to(device)) for part in patches.split(PATCHES_AT_A_TIME)]
    frames = merge(torch.cat([part.frames.float().cpu() for part in parts]), rows, columns)
    indices = torch.cat([part.indices.cpu() for part in parts])
    return frames.unflatten(0, (clips.shape[0], clips.shape[2])).transpose(1, 2).clamp(-1, 1), indices
