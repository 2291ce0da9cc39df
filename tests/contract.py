"""What every model promises, as a test class to inherit from.

    class TestTinyModel(ModelContract):
        def build_recipe(self, **overrides): ...   # a tiny recipe, same weights each time; overrides: configuration
        def dataset(self): ...                     # a few tiny samples

Optional: `checkpointing_override`, the overrides that switch gradient checkpointing on.
Dropout must be off in the tiny configuration: its noise is drawn per process, not per sample.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch.utils.data import Dataset

from tests.training import processes
from training import Recipe, TrainSettings, train
from training.checkpoint import load_checkpoint, newest_checkpoint, strict_load
from training.data import collate, move, read_sample
from training.distributed import whole
from training.randomness import SampleNoise
from training.recipe import Step
from training.state import flatten, weights_digest
from videodata.errors import UserError


class ModelContract:
    """Tests that each model inherits; a subclass must be named Test... to be collected."""

    checkpointing_override: ClassVar[dict[str, Any] | None] = None  # such as {"checkpointing": True}
    steps: ClassVar[int] = 4
    batch_size: ClassVar[int] = 4
    tolerance: ClassVar[float] = 1e-6  # two processes against one: absolute, per weight

    def build_recipe(self, **overrides: Any) -> Recipe:
        """A tiny recipe with the same weights at each call."""
        raise NotImplementedError

    def dataset(self) -> Dataset:
        """At least `batch_size` tiny samples, the same at each call."""
        raise NotImplementedError

    def settings(self, folder: Path, **changes: Any) -> TrainSettings:
        """Settings of a short run."""
        chosen = {"steps": self.steps, "batch_size": self.batch_size, "device": "cpu", "log_every": 1, **changes}
        return TrainSettings(run_dir=folder, **chosen)

    def train(self, folder: Path, overrides: dict[str, Any] | None = None, **changes: Any) -> str:
        """The digest of a short run."""
        recipe = self.build_recipe(**(overrides or {}))
        return train(recipe, self.dataset(), self.settings(folder, **changes), {"model": {}}).digest

    def batch(self) -> tuple[Any, Step]:
        """One batch and its step, as the loop would make them."""
        positions = list(range(self.batch_size))
        data = collate([read_sample(self.dataset(), index, index) for index in positions])
        device = torch.device("cpu")
        return move(data, device), Step(0, self.steps, SampleNoise(0, positions), device)

    def gradients(self, **overrides: Any) -> dict[str, torch.Tensor]:
        """Loss and gradients of the first optimiser's phase."""
        recipe = self.build_recipe(**overrides)
        for network in recipe.networks.values():
            network.train()
        batch, step = self.batch()
        torch.manual_seed(0)
        losses = next(iter(recipe.losses(batch, step, recipe.networks)))
        losses.total.backward()
        found = {"loss": losses.total.detach()}
        parameters = [p for group in next(iter(recipe.optimizers.values())).param_groups for p in group["params"]]
        return found | {str(number): p.grad for number, p in enumerate(parameters) if p.grad is not None}

    def straight(self, factory: pytest.TempPathFactory) -> tuple[Path, str]:
        """Folder and digest of a run in one go, which several tests compare with: made once for the class."""
        cls = type(self)
        if "run_in_one_go" not in vars(cls):
            folder = factory.mktemp("straight")
            cls.run_in_one_go = folder, self.train(folder)
        return cls.run_in_one_go

    def test_same_seed_gives_the_same_weights(self, tmp_path, tmp_path_factory):
        """Two runs with one seed end bit for bit alike; another seed does not."""
        _, first = self.straight(tmp_path_factory)
        assert self.train(tmp_path / "second") == first
        assert self.train(tmp_path / "third", seed=1) != first

    def test_a_resumed_run_ends_with_the_same_bits(self, tmp_path, tmp_path_factory):
        """Stopping half-way and continuing gives the weights of a straight run."""
        _, straight = self.straight(tmp_path_factory)
        half = self.train(tmp_path / "resumed", steps=self.steps // 2)
        assert half != straight
        assert self.train(tmp_path / "resumed") == straight

    def test_saved_weights_load_unchanged_and_strictly(self, tmp_path):
        """Checkpoint and weights file give back every bit; a missing or unexpected key is named and refused."""
        recipe = self.build_recipe()
        train(recipe, self.dataset(), self.settings(tmp_path, steps=1), {"model": {}})
        trained = {name: whole(network.state_dict()) for name, network in recipe.networks.items()}
        shared = newest_checkpoint(tmp_path / "checkpoints").weights
        for stored in (load_checkpoint(tmp_path)["networks"], load_checkpoint(shared)["networks"]):
            fresh = self.build_recipe().networks
            for name, network in fresh.items():
                strict_load(network, stored[name], tmp_path)
            loaded = {name: network.state_dict() for name, network in fresh.items()}
            assert weights_digest(loaded) == weights_digest(trained)
        name, network = next(iter(recipe.networks.items()))
        weights = dict(trained[name])
        weights["stranger"] = weights.pop(next(iter(weights)))
        before = weights_digest(network.state_dict())
        with pytest.raises(UserError, match=rf"missing: {next(iter(trained[name]))}.*unexpected: stranger"):
            strict_load(network, weights, "file.pt")
        assert weights_digest(network.state_dict()) == before

    def test_gradient_checkpointing_changes_nothing(self):
        """Loss and gradients are the same with and without gradient checkpointing."""
        if self.checkpointing_override is None:
            pytest.skip("this model has no gradient checkpointing")
        plain, checkpointed = self.gradients(), self.gradients(**self.checkpointing_override)
        assert plain.keys() == checkpointed.keys() and len(plain) > 1
        for name, value in plain.items():
            torch.testing.assert_close(checkpointed[name], value, rtol=1e-5, atol=1e-7)

    def test_bf16_training_stays_finite(self, tmp_path):
        """A short run under bf16 autocast applies its steps and leaves finite float32 weights."""
        recipe = self.build_recipe()
        result = train(recipe, self.dataset(), self.settings(tmp_path, precision="bf16"), {"model": {}})
        state = load_checkpoint(tmp_path)
        assert result.finished and state["skipped_steps"] == 0
        for name, value in flatten(state["networks"]):
            assert not value.is_floating_point() or torch.isfinite(value).all(), name
            assert value.dtype not in (torch.bfloat16, torch.float16), name

    @pytest.mark.slow
    def test_two_processes_equal_one(self, tmp_path, tmp_path_factory):
        """Two processes with half a batch each end with the weights of one process with the whole batch."""
        alone, _ = self.straight(tmp_path_factory)
        digests = processes.launch(self.train, 2, tmp_path / "launch", tmp_path / "two")
        assert digests[0] == digests[1]
        one = dict(flatten(load_checkpoint(alone)["networks"]))
        two = dict(flatten(load_checkpoint(tmp_path / "two")["networks"]))
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=0, atol=self.tolerance, msg=lambda text, n=name: n + text)
