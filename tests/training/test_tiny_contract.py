"""The contract of all models, on the smallest recipe there is."""

from tests.contract import ModelContract
from tests.training.tiny_gan import TinyClips, TinyGAN


class TestTinyGAN(ModelContract):
    checkpointing_override = {"checkpointing": True}

    def build_recipe(self, **overrides):
        return TinyGAN(**overrides)

    def dataset(self):
        return TinyClips(8)
