"""The file at the end of a training that the original writes: all networks in one state dict."""

from __future__ import annotations

from pathlib import Path

import torch

from flow_pred.checkpoints import AUTOENCODER_PREFIX, REGRESSOR, Weights, read_predictor
from flow_pred.config import FlowPredConfig
from flow_pred.predictors import inner
from flow_pred.train import DiffusionRecipe, PredictorRecipe
from training.files import write_file


def write_final(run_dir: Path, recipe: PredictorRecipe, config: FlowPredConfig, step: int) -> Path:
    """Write checkpoints/final_step_<step>.pth: {"model", "global_step"}, averaged weights where there are any.

    "model" holds the trained network, the frozen autoencoder, and the frozen networks under a diffusion.
    """
    model = prefixed(REGRESSOR, read_predictor(run_dir).network("regressor"))
    kind = config.model.autoencoder.get("type", "")
    model |= prefixed(AUTOENCODER_PREFIX.get(kind, "ae."), inner(recipe.latent_space.autoencoder).state_dict())
    if isinstance(recipe, DiffusionRecipe):
        for letter, network in (("f", recipe.flow), ("d", recipe.denoiser)):
            if network is not None:
                model |= prefixed(f"{letter}.{REGRESSOR}", network.state_dict())
    path = run_dir / "checkpoints" / f"final_step_{step}.pth"
    state = {"model": {key: value.cpu() for key, value in model.items()}, "global_step": step}
    write_file(path, lambda file: torch.save(state, file))
    return path


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: value for key, value in weights.items()}
