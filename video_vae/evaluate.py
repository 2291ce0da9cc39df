"""How well a trained video VAE reconstructs clips, how many bits its latents cost, and what it draws from its prior."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from evaluation.gather import gather_batches, merge_dicts
from evaluation.report import Score
from evaluation.subject import Batch, Subject
from training.randomness import SampleNoise
from video_vae.model import TransformerNetwork


class Reconstructions(Subject):
    """Clips through the latents and back; latents are drawn from the posterior, unless `mean_latents`."""

    own_metrics = ("kl",)

    def __init__(self, network: TransformerNetwork, mean_latents: bool = False) -> None:
        self.network, self.mean_latents, self.random = network, mean_latents, not mean_latents
        self._bits: list[dict[str, list[float]]] = []

    @torch.no_grad()
    def make(self, batch: Batch) -> Tensor:
        device = self.network.canvas.device
        noise = None if self.mean_latents else SampleNoise(batch.seed, batch.items, device)
        reconstruction, terms = self.network(batch.clips.to(device), noise)
        if batch.sample == 0:
            self._bits.append({name: values.tolist() for name, values in kl_bits(terms).items()})
        return reconstruction.cpu()

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        # the best still picture of each clip: what a model that sees no motion can reach at most
        return {"of the mean frame": clips.mean(dim=2, keepdim=True).expand_as(clips)}

    def own_scores(self) -> dict[str, list[Score]]:
        merged, self._bits = merge_dicts(gather_batches(self._bits)), []
        values = {name: [value for batch in batches for value in batch] for name, batches in merged.items()}
        return {"kl": [Score("kl-bits", bits, label=level_name(name)) for name, bits in values.items()]}

    def facts(self) -> dict[str, Any]:
        return {"latents": "means of the posterior" if self.mean_latents else "drawn from the posterior"}


class Samples(Subject):
    """Clips from the prior, of the length and size of those they are compared with."""

    paired, random = False, True

    def __init__(self, network: TransformerNetwork, temperature: float = 1.0) -> None:
        self.network, self.temperature = network, temperature

    @torch.no_grad()
    def make(self, batch: Batch) -> Tensor:
        noise = SampleNoise(batch.seed, batch.items, self.network.canvas.device)
        frames, size = batch.clips.shape[2], tuple(batch.clips.shape[3:])
        return self.network.decode(self.network.draw_latents(noise, frames, size, self.temperature)).cpu()

    def facts(self) -> dict[str, Any]:
        return {"temperature": self.temperature}


def level_name(term: str) -> str:
    """`kl_bits_2` -> "level 2", `kl_bits` -> "total"."""
    level = term.removeprefix("kl_bits").lstrip("_")
    return f"level {level}" if level else "total"


def kl_bits(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The KL terms of the network, nats (B,), as bits: `kl_bits_1`, ... per level, and their sum `kl_bits`."""
    bits = {name.replace("kl_", "kl_bits_"): kl / math.log(2) for name, kl in terms.items()}
    return {**bits, "kl_bits": sum(bits.values())}
