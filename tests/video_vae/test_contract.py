"""The promises of every model, kept by the video VAE."""

from torch.utils.data import Dataset

from tests.contract import ModelContract
from tests.video_vae.tiny import clips, tiny_network
from training import Recipe
from video_vae.config import LossConfig
from video_vae.train import VideoVAERecipe


class TestVideoVAE(ModelContract):
    """With the standard prior and AdamW."""

    checkpointing_override = {"checkpointing": True}
    prior = "standard"
    optimizer = "adamw"

    def build_recipe(self, **overrides: bool) -> Recipe:
        network = tiny_network(prior=self.prior, **overrides)
        return VideoVAERecipe(network, LossConfig(perceptual_weight=0.0), 1e-4, optimizer=self.optimizer)

    def dataset(self) -> Dataset:
        return clips()


class TestHierarchicalPrior(TestVideoVAE):
    """With a learned prior and Muon."""

    prior = "hierarchical"
    optimizer = "muon"
