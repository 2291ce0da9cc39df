"""What evaluations score of a tokenizer: clips through the latents and back, and what their codes cost."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from evaluation.codebook import CodebookUsage
from evaluation.metrics import mean_frame
from evaluation.report import Score
from evaluation.subject import Batch, Subject
from tokenizer3d.latents import Codes
from tokenizer3d.model import Tokenizer3D
from training.randomness import derive_seed

LARGEST_COUNTED = 2**20  # codes whose use is counted


class Reconstructions(Subject):
    """Clips through the latents and back. `sample`: latents of a KL model are drawn, not the means."""

    def __init__(self, model: Tokenizer3D, sample: bool = False) -> None:
        self.model, self.sample = model, sample
        self.random = sample and model.config.regularizer == "kl"
        self.codes_per_clip = 0
        size = model.codebook_size
        self.counted = size is not None and size <= LARGEST_COUNTED
        self._usage = CodebookUsage(size if self.counted else 1)
        self.usage = self._usage
        if self.counted:
            self.metrics, self.own_metrics = ("psnr", "ssim", "codebook"), ("codebook",)

    def make(self, batch: Batch) -> Tensor:
        clips = batch.clips.to(self.model.device)
        latents = self.model.encode(clips)
        if isinstance(latents, Codes):
            if batch.sample == 0 and self.counted:
                self._usage.update(latents.indices)
            self.codes_per_clip = latents.indices[0].numel()
            z = latents.mode()
        else:
            z = latents.mode()
            if self.random:
                z = latents.sample(noise=torch.stack([self.noise(z[row], batch, row) for row in range(len(z))]))
        made = self.model.decode(z, clips.shape[2], size=tuple(clips.shape[3:]))
        return made.float().clamp(-1, 1).cpu()

    def noise(self, mean: Tensor, batch: Batch, row: int) -> Tensor:
        """Noise for the latents of a clip, of its number, the seed and the number of the sample alone."""
        generator = torch.Generator().manual_seed(derive_seed(batch.seed, "latents", batch.items[row], batch.sample))
        return torch.randn(mean.shape, generator=generator).to(mean)

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        return {"of the mean frame": mean_frame(clips)} if clips.shape[2] > 1 else {}  # that of one frame is the frame

    def own_scores(self) -> dict[str, list[Score]]:
        if not self.counted:
            return {}
        self.usage, self._usage = self._usage.over_processes(), CodebookUsage(len(self._usage.counts))
        return {"codebook": [*self.usage.scores(), Score("code-bits-per-clip", [], value=self.bits_per_clip)]}

    @property
    def bits_per_clip(self) -> float:
        """What the codes of a clip cost without a model of their distribution."""
        return self.codes_per_clip * math.log2(self.model.codebook_size)

    def facts(self) -> dict[str, Any]:
        config = self.model.config
        facts = {
            "compression": [config.temporal_factor, config.spatial_factor, config.spatial_factor],
            "regularizer": config.regularizer,
            "version": config.version,
            "latents": "drawn" if self.random else "mean" if config.regularizer == "kl" else "codes",
        }
        if self.counted:
            facts |= {"codebook_size": self.model.codebook_size, "bits_per_clip": self.bits_per_clip}
            facts |= {"codes_used": self.usage.used, "codebook_perplexity": self.usage.perplexity}
        return facts
