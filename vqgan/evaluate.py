"""How well a trained VQGAN reconstructs clips, and how much of its codebook it uses for them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from evaluation.codebook_usage import CodebookUsage
from evaluation.psnr import psnr
from evaluation.report import Score
from evaluation.ssim import ssim
from evaluation.subject import Batch, Subject
from training.device import resolve_device
from training.files import write_json
from vqgan.data import PatchDataset, merge, split
from vqgan.files import Model, load_model

PATCHES_AT_A_TIME = 16


class Reconstructions(Subject):
    """Whole frames put together from reconstructed patches, `rows` x `columns` of them."""

    own_metrics = ("codebook",)

    def __init__(self, model: Model, rows: int, columns: int) -> None:
        self.model, self.rows, self.columns = model, rows, columns
        self.codes_per_frame = 0
        self.usage = CodebookUsage(model.num_embeddings)
        self._usage = CodebookUsage(model.num_embeddings)  # since the last call of own_scores

    @torch.no_grad()
    def make(self, batch: Batch) -> Tensor:
        reconstruction, indices = reconstruct(self.model, batch.clips, self.rows, self.columns)
        if batch.sample == 0:
            self._usage.update(indices)
            self.codes_per_frame = indices[0].numel() * self.rows * self.columns
        return reconstruction

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        return {"of the mean colour": clips.mean(dim=(3, 4), keepdim=True).expand_as(clips)}

    def own_scores(self) -> dict[str, list[Score]]:
        self.usage, self._usage = self._usage.over_processes(), CodebookUsage(self.model.num_embeddings)
        cost = Score("code-bits-per-frame", [], value=self.bits_per_frame)
        return {"codebook": [*self.usage.scores(), cost]}

    @property
    def bits_per_frame(self) -> float:
        """What the codes of a frame cost without a model of their distribution."""
        return self.codes_per_frame * math.log2(self.model.num_embeddings)

    def facts(self) -> dict[str, Any]:
        return {
            "patches": [self.rows, self.columns],
            "codes_used": self.usage.used,
            "codebook_perplexity": self.usage.perplexity,
            "codebook_size": self.model.num_embeddings,
            "bits_per_frame": self.bits_per_frame,
        }


def reconstruct(model: Model, clips: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Clips (B, 3, T, H, W) -> (their reconstruction, the indices (B * T * rows * columns, h, w) of its patches)."""
    device = next(model.parameters()).device
    patches = split(clips.transpose(1, 2).flatten(0, 1), rows, columns)
    parts = [model(part.to(device)) for part in patches.split(PATCHES_AT_A_TIME)]
    frames = merge(torch.cat([part.frames.float().cpu() for part in parts]), rows, columns)
    indices = torch.cat([part.indices.cpu() for part in parts])
    return frames.unflatten(0, (clips.shape[0], clips.shape[2])).transpose(1, 2).clamp(-1, 1), indices


BATCH = 4


@torch.no_grad()
def write_test_scores(model_file: Path, patches: PatchDataset, path: Path, device: str = "auto") -> dict:
    """PSNR and SSIM (means over patches) and codebook usage over all test patches, also as a JSON file."""
    target = resolve_device(device)
    model = load_model(model_file).to(target)
    usage, totals = CodebookUsage(model.num_embeddings), {"psnr": 0.0, "ssim": 0.0}
    for batch in DataLoader(patches, batch_size=BATCH):
        out = model(batch.to(target))
        pair = batch[:, :, None], out.frames.clamp(-1, 1).cpu()[:, :, None]
        totals["psnr"] += float(psnr(*pair).sum())
        totals["ssim"] += float(ssim(*pair).sum())
        usage.update(out.indices)
    scores = {name: value / len(patches) for name, value in totals.items()}
    scores |= {"codes_used": usage.used, "perplexity": usage.perplexity, "patches": len(patches)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"model": str(model_file), **scores})
    return scores
