"""How well a trained VQGAN reconstructs clips, and how much of its codebook it uses for them."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
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
from vqgan.config import add_grid_arguments
from vqgan.data import PatchDataset, merge_patches, split_patches
from vqgan.files import Model, load_model, settle_grid

PATCHES_AT_A_TIME = 16
TEST_BATCH = 4  # patches at a time of the test scores
SMALLEST_SSIM = 11  # pixels; the window of SSIM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `scripts/evaluate.py vqgan` beside those of every model."""
    add_grid_arguments(parser)


def open_subject(args: argparse.Namespace) -> Reconstructions:
    """The model that `--checkpoint` names, on the grid of its training unless the flags say otherwise."""
    model = load_model(args.checkpoint).to(resolve_device(args.device))
    return Reconstructions(model, *settle_grid(args))


class Reconstructions(Subject):
    """Whole frames put together from reconstructed patches, `rows` x `columns` of them."""

    own_metrics = ("codebook",)

    def __init__(self, model: Model, rows: int, columns: int) -> None:
        self.model, self.rows, self.columns = model, rows, columns
        self.codes_per_frame = 0
        self.usage = CodebookUsage(model.num_embeddings)
        self._usage = CodebookUsage(model.num_embeddings)  # since the last call of own_scores

    def make(self, batch: Batch) -> Tensor:
        frames = batch.clips.transpose(1, 2)  # (B, T, 3, H, W)
        encoded = encode_patches(self.model, split_patches(frames.flatten(0, 1), self.rows, self.columns))
        if batch.sample == 0:
            self._usage.update(encoded.indices)
            self.codes_per_frame = encoded.indices[0].numel() * self.rows * self.columns
        made = merge_patches(encoded.reconstruction, self.rows, self.columns)
        return made.unflatten(0, frames.shape[:2]).transpose(1, 2)

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


@dataclass
class Encoded:
    """Patches of some frames and what the model makes of them, all on the CPU."""

    patches: Tensor  # (N, 3, h, w) in [-1, 1]
    latents: Tensor  # (N, D, h, w) before the quantiser
    indices: Tensor  # (N, h, w)
    reconstruction: Tensor  # (N, 3, h, w), clamped to [-1, 1]


@torch.no_grad()
def encode_patches(model: Model, patches: Tensor) -> Encoded:
    """Run the model over patches (N, 3, h, w), a few at a time."""
    device = next(model.parameters()).device
    parts = [model(part.to(device)) for part in patches.split(PATCHES_AT_A_TIME)]
    latents, indices = (torch.cat([getattr(part, name) for part in parts]).cpu() for name in ("latents", "indices"))
    frames = torch.cat([part.frames.float().clamp(-1, 1).cpu() for part in parts])
    return Encoded(patches, latents.float(), indices, frames)


def frame_scores(frames: Tensor, made: Tensor) -> dict[str, Tensor]:
    """PSNR of clips (B, 3, T, H, W) in [-1, 1], and SSIM where they are large enough for its window, each (B,)."""
    scores = {"psnr": psnr(frames, made)}
    if min(frames.shape[-2:]) >= SMALLEST_SSIM:
        scores["ssim"] = ssim(frames, made)
    return scores


def write_test_scores(model_file: Path, patches: PatchDataset, path: Path, device: str = "auto") -> dict[str, Any]:
    """PSNR and SSIM (means over patches) and codebook usage over all test patches, also as a JSON file.

    A patch is scored as a clip of one frame, because a test split of a few videos has few frames but many patches.
    """
    subject = Reconstructions(load_model(model_file).to(resolve_device(device)), rows=1, columns=1)
    totals: dict[str, float] = {}
    for batch in DataLoader(patches, batch_size=TEST_BATCH):
        clips = batch[:, :, None]
        for name, values in frame_scores(clips, subject.make(Batch(clips, [], seed=0))).items():
            totals[name] = totals.get(name, 0.0) + float(values.sum())
    subject.own_scores()
    scores: dict[str, Any] = {name: value / len(patches) for name, value in totals.items()}
    scores |= {"codes_used": subject.usage.used, "perplexity": subject.usage.perplexity, "patches": len(patches)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"model": str(model_file), **scores})
    return scores
