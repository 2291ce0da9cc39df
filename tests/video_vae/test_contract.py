"""The promises of every model, kept by the video VAE."""

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from tests.contract import ModelContract
from tests.video_vae.tiny import clips, tiny_network
from training import Recipe
from video_vae.config import LossConfig, PriorConfig
from video_vae.prior import LatentPrior
from video_vae.train import VideoVAERecipe
from video_vae.train_prior import PriorRecipe


class TestVideoVAE(ModelContract):
    """With the standard prior and AdamW."""

    checkpointing_override = {"checkpointing": True}
    prior = "standard"
    optimizer = "adamw"
    clip_path: dict[str, int] = {}

    def build_recipe(self, **overrides: bool) -> Recipe:
        network = tiny_network(prior=self.prior, clip_path=self.clip_path, **overrides)
        return VideoVAERecipe(network, LossConfig(perceptual_weight=0.0), 1e-4, optimizer=self.optimizer)

    def dataset(self) -> Dataset:
        return clips()


class TestHierarchicalPrior(TestVideoVAE):
    """With a learned prior and Muon."""

    prior = "hierarchical"
    optimizer = "muon"


class TestClipPath(TestVideoVAE):
    """With the direct path of the whole clip."""

    optimizer = "muon"
    clip_path = {"times": 3, "width": 8, "depth": 1}


class TestSecondStage(ModelContract):
    """The prior of the latents, with classes."""

    def build_recipe(self, **overrides: bool) -> Recipe:
        torch.manual_seed(0)
        sizes = {"width": 16, "depth": 1, "heads": 2, "directions": 3, "classes": ["a", "b"]}
        prior = LatentPrior(PriorConfig([(4, 4, 4), (6, 2, 2)], 3, (16, 16), **sizes))
        prior.fit(means()[0], torch.ones(88))
        return PriorRecipe(prior, tiny_network(), 1e-3, 0.0)

    def dataset(self) -> Dataset:
        return TensorDataset(*means())


def means(count: int = 8) -> tuple[Tensor, Tensor]:
    """Means (count, D) of the latents of as many clips, and their class numbers."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 88, generator=generator), torch.arange(count) % 2
