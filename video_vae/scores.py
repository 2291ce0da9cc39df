"""What is measured of a video VAE: its reconstructions with the bits of their latents, and samples of its prior."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from evaluation.metrics import mean_frame
from evaluation.paired import merge_dicts
from evaluation.report import Score
from evaluation.subject import Batch, Subject
from training.distributed import gather_batches
from training.randomness import SampleNoise
from video_vae.model import TransformerNetwork
from video_vae.sampler import Sampler


class Reconstructions(Subject):
    """Clips through the latents and back; latents are drawn from the posterior, unless `mean_latents`."""

    metrics = ("psnr", "ssim", "kl")
    own_metrics = ("kl",)

    def __init__(self, network: TransformerNetwork, mean_latents: bool = False) -> None:
        self.network, self.mean_latents, self.random = network, mean_latents, not mean_latents
        self._bits: list[dict[str, list[float]]] = []

    def make(self, batch: Batch) -> Tensor:
        device = self.network.canvas.device
        noise = None if self.mean_latents else SampleNoise(batch.seed, batch.items, device)
        reconstruction, terms = self.network(batch.clips.to(device), noise)
        if batch.sample == 0:
            self._bits.append({name: values.tolist() for name, values in kl_bits(terms).items()})
        return reconstruction.cpu()

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        return {"of the mean frame": mean_frame(clips)}

    def own_scores(self) -> dict[str, list[Score]]:
        merged, self._bits = merge_dicts(gather_batches(self._bits)), []
        scores = []
        for name, batches in merged.items():  # kl_bits_1, ..., kl_bits
            label = "total" if name == "kl_bits" else name.replace("kl_bits_", "level ")
            scores.append(Score("kl-bits", [value for batch in batches for value in batch], label=label))
        return {"kl": scores}

    def facts(self) -> dict[str, Any]:
        return {"latents": "means of the posterior" if self.mean_latents else "drawn from the posterior"}


class Samples(Subject):
    """New clips, of the length and size of those they are compared with, and of their classes if it knows any."""

    paired, random = False, True
    metrics = ("fd-pca",)

    def __init__(self, sampler: Sampler, temperature: float = 1.0) -> None:
        self.sampler, self.temperature, self.classes = sampler, temperature, sampler.classes

    def make(self, batch: Batch) -> Tensor:
        noise = SampleNoise(batch.seed, batch.items, self.sampler.network.canvas.device)
        frames, size = batch.clips.shape[2], tuple(batch.clips.shape[3:])
        sampler = replace(self.sampler, guidance=self.guidance)
        return sampler.clips(noise, frames, size, self.temperature, batch.labels if self.classes else ()).cpu()

    def facts(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "prior": self.sampler.kind}


def kl_bits(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The KL terms of the network, nats (B,), as bits: `kl_bits_1`, ... per level, and their sum `kl_bits`."""
    bits = {name.replace("kl_", "kl_bits_"): kl / math.log(2) for name, kl in terms.items()}
    return {**bits, "kl_bits": sum(bits.values())}
