"""What is measured of a video VAE: its reconstructions with the bits of their latents, and samples of its prior."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, Subset

from evaluation.frechet import DIVISORS, GaussianStatistics, frechet_distance
from evaluation.metrics import mean_frame
from evaluation.paired import merge_dicts
from evaluation.report import Score
from evaluation.set_definitions import set_definition
from evaluation.set_distance import CLIPS_PER_COMPONENT, PooledPCA
from evaluation.subject import Batch, Subject
from training.distributed import gather_batches
from training.randomness import SampleNoise
from video_vae.model import TransformerNetwork
from video_vae.sampler import Sampler
from videodata.pixels import normalize

logger = logging.getLogger(__name__)

REFERENCE_CLIPS = 512  # of the training set


class TrainingDistance:
    """FD-PCA of what was made, and of the true clips, from clips of the training set ("fd-training").

    Reconstructions stand near the very clips that they are of, new clips do not; from other clips both are judged
    alike, and the true clips' distance is what no model can beat.
    """

    def __init__(self, training: Dataset) -> None:
        count = min(len(training), REFERENCE_CLIPS)
        self.training = Subset(training, [index * len(training) // count for index in range(count)])
        self._batches: list[tuple[Tensor, Tensor]] = []

    def update(self, clips: Tensor, made: Tensor) -> None:
        """Take in true clips and what was made, each (B, 3, T, H, W) in [-1, 1]."""
        self._batches.append((PooledPCA.pool(clips), PooledPCA.pool(made)))
        self.frames = clips.shape[2]

    def scores(self) -> list[Score]:
        """Over the clips of all processes since the last call."""
        batches, self._batches = gather_batches(self._batches), []
        count = sum(len(clips) for clips, _ in batches)
        if count < 2:
            logger.warning("fd-training is left out: it needs at least 2 clips, found %d", count)
            return []
        features = PooledPCA(self.training, max(1, count // CLIPS_PER_COMPONENT))
        reference = GaussianStatistics(features.dimensions)
        for index in range(len(self.training)):
            reference.update(features.project(PooledPCA.pool(normalize(self.training[index][None]))))
        found = []
        for number, label in enumerate(("from training clips", "from training clips, true clips")):
            own = GaussianStatistics(features.dimensions)
            for batch in batches:
                own.update(features.project(batch[1 - number]))
            sizes = len(self.training), count
            definition = set_definition("fd", features.name, self.frames, sizes, True, DIVISORS["n-1"])
            notes = {"training_clips": len(self.training)}
            found.append(Score(definition, [], label, value=frechet_distance(reference, own), notes=notes))
        return found


class Reconstructions(Subject):
    """Clips through the latents and back; latents are drawn from the posterior, unless `mean_latents`."""

    metrics = ("psnr", "ssim", "kl")
    own_metrics = ("kl", "fd-training")

    def __init__(
        self, network: TransformerNetwork, mean_latents: bool = False, distance: TrainingDistance | None = None
    ) -> None:
        self.network, self.mean_latents, self.random = network, mean_latents, not mean_latents
        self.distance = distance
        self._bits: list[dict[str, list[float]]] = []

    def make(self, batch: Batch) -> Tensor:
        device = self.network.canvas.device
        noise = None if self.mean_latents else SampleNoise(batch.seed, batch.items, device)
        reconstruction, terms = self.network(batch.clips.to(device), noise)
        if batch.sample == 0:
            self._bits.append({name: values.tolist() for name, values in kl_bits(terms).items()})
            if self.distance:
                self.distance.update(batch.clips, reconstruction.cpu())
        return reconstruction.cpu()

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        return {"of the mean frame": mean_frame(clips)}

    def own_scores(self) -> dict[str, list[Score]]:
        merged, self._bits = merge_dicts(gather_batches(self._bits)), []
        scores = []
        for name, batches in merged.items():  # kl_bits_1, ..., kl_bits
            label = "total" if name == "kl_bits" else name.replace("kl_bits_", "level ")
            scores.append(Score("kl-bits", [value for batch in batches for value in batch], label=label))
        return {"kl": scores, "fd-training": self.distance.scores() if self.distance else []}

    def facts(self) -> dict[str, Any]:
        return {"latents": "means of the posterior" if self.mean_latents else "drawn from the posterior"}


class Samples(Subject):
    """New clips, of the length and size of those they are compared with, and of their classes if it knows any."""

    paired, random = False, True
    metrics = ("fd-pca",)
    own_metrics = ("fd-training",)

    def __init__(self, sampler: Sampler, temperature: float = 1.0, distance: TrainingDistance | None = None) -> None:
        self.sampler, self.temperature, self.classes = sampler, temperature, sampler.classes
        self.distance = distance

    def make(self, batch: Batch) -> Tensor:
        noise = SampleNoise(batch.seed, batch.items, self.sampler.network.canvas.device)
        frames, size = batch.clips.shape[2], tuple(batch.clips.shape[3:])
        sampler = replace(self.sampler, guidance=self.guidance)
        made = sampler.clips(noise, frames, size, self.temperature, batch.labels if self.classes else ()).cpu()
        if batch.sample == 0 and self.distance:
            self.distance.update(batch.clips, made)
        return made

    def own_scores(self) -> dict[str, list[Score]]:
        return {"fd-training": self.distance.scores() if self.distance else []}

    def facts(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "prior": self.sampler.kind}


def kl_bits(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The KL terms of the network, nats (B,), as bits: `kl_bits_1`, ... per level, and their sum `kl_bits`."""
    bits = {name.replace("kl_", "kl_bits_"): kl / math.log(2) for name, kl in terms.items()}
    return {**bits, "kl_bits": sum(bits.values())}
