"""Averaged weights (exponential moving average) of a recipe's networks, by torch's AveragedModel.

Parameters are averaged; buffers are copied from the network at each update. The first update copies everything.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.recipe import Recipe
from videodata.errors import UserError


class AveragedWeights:
    """The averages of the networks that the recipe names in `ema_networks`; nothing at decay 0."""

    def __init__(self, recipe: Recipe, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"--ema {decay}: the decay must be at least 0 and below 1")
        if decay and not recipe.ema_networks:
            raise UserError(f"--ema {decay}: recipe {recipe.name} has no network to average; use --ema 0")
        names = recipe.ema_networks if decay else ()
        self.models = {
            name: AveragedModel(recipe.networks[name], multi_avg_fn=get_ema_multi_avg_fn(decay)) for name in names
        }
        for model in self.models.values():
            model.requires_grad_(False).eval()

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The averaged networks themselves."""
        return {name: model.module for name, model in self.models.items()}

    @torch.no_grad()
    def update(self, networks: dict[str, nn.Module]) -> None:
        """Take in the networks' weights after an applied step."""
        for name, model in self.models.items():
            model.update_parameters(networks[name])

    @property
    def updates(self) -> int:
        """Number of updates so far."""
        return max((int(model.n_averaged) for model in self.models.values()), default=0)

    @updates.setter
    def updates(self, number: int) -> None:
        for model in self.models.values():
            model.n_averaged.fill_(number)
