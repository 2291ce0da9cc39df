"""What is measured of a VQGAN: how well it reconstructs clips, and how much of its codebook it uses for them."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from evaluation.codebook import CodebookUsage
from evaluation.metrics import SMALLEST_SIDE, mean_frame
from evaluation.protocol import Protocol
from evaluation.report import Score
from evaluation.runner import evaluate, trained_on_of
from evaluation.subject import Batch, Subject
from training.distributed import is_main, resolve_device
from videodata.files import write_json
from videodata.pixels import pad_sides
from vqgan.data import PatchDataset, merge_patches, split_patches
from vqgan.files import Model, load_model
from vqgan.model import encode_patches

logger = logging.getLogger(__name__)
TEST_BATCH = 4  # patches at a time of the test scores


class Reconstructions(Subject):
    """Whole frames put together from reconstructed patches, `rows` x `columns` of them; in one piece of any size."""

    metrics = ("psnr", "ssim", "codebook")
    own_metrics = ("codebook",)

    def __init__(self, model: Model, rows: int, columns: int) -> None:
        self.model, self.rows, self.columns = model, rows, columns
        self.codes_per_frame = 0
        self.usage = self.unused()  # of the last whole evaluation
        self._usage = self.unused()  # since then

    def unused(self) -> CodebookUsage:
        """The usage before anything is encoded."""
        return CodebookUsage(self.model.num_embeddings)

    def make(self, batch: Batch) -> Tensor:
        frames = batch.clips.transpose(1, 2)  # (B, T, 3, H, W)
        whole = self.rows == self.columns == 1
        padded = pad_sides(frames, self.model.downsample_factor) if whole else frames
        encoded = encode_patches(self.model, split_patches(padded.flatten(0, 1), self.rows, self.columns))
        if batch.sample == 0:
            self._usage.update(encoded.indices)
            self.codes_per_frame = encoded.indices[0].numel() * self.rows * self.columns
        made = merge_patches(encoded.reconstruction, self.rows, self.columns)
        return made.unflatten(0, frames.shape[:2]).transpose(1, 2)[..., : frames.shape[-2], : frames.shape[-1]]

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        return {"of the mean frame": mean_frame(clips)} if clips.shape[2] > 1 else {}  # that of one frame is the frame

    def own_scores(self) -> dict[str, list[Score]]:
        self.usage, self._usage = self._usage.over_processes(), self.unused()
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


def write_test_scores(
    model_file: Path, patches: PatchDataset, path: Path, device: torch.device | str = "auto", count: int = 0
) -> None:
    """PSNR and SSIM (means over patches) and codebook usage over the test patches, as a JSON file that also says how
    many of the clips were trained on; all processes join. `count`: so many patches, evenly spread; 0: all.

    A patch is scored as a clip of one frame, because a test split of a few videos has few frames but many patches.
    """
    model, _ = load_model(model_file, resolve_device(str(device)))
    subject = Reconstructions(model, rows=1, columns=1)
    paired = ("psnr", "ssim") if min(patches.patch_size) >= SMALLEST_SIDE else ("psnr",)
    count = min(count, len(patches)) or len(patches)
    scored = Subset(patches, [number * len(patches) // count for number in range(count)])
    scores = evaluate(subject, lambda seed: scored, Protocol((*paired, "codebook"), batch_size=TEST_BATCH))
    found = {score.name.lower(): score.mean for score in scores if score.name.lower() in paired}
    usage = {"codes_used": subject.usage.used, "perplexity": subject.usage.perplexity, "patches": count}
    clips = patches.clips
    seen = {"clips": len(clips), "clips_trained_on": trained_on_of((model_file,), clips)}
    if seen["clips_trained_on"]:
        logger.warning("WARNING: %d of these %d clips were in the training set", seen["clips_trained_on"], len(clips))
    if is_main():
        write_json(path, {"model": str(model_file), "split": clips.split, **found, **usage, **seen})
