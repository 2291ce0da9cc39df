"""Tiny trainings: frames of 4x4 pixels are their own latents."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flow_pred.config import parse_config
from flow_pred.files import build_autoencoder, build_regressor
from flow_pred.latents import LatentSpace
from flow_pred.recipes import DenoiserRecipe, DiffusionRecipe, FlowRecipe, PredictorRecipe, RiverRecipe

FRAMES = 5


class RandomClips(Dataset):
    """Clips (3, T, side, side) of noise; the same at each call."""

    def __init__(self, side: int = 4) -> None:
        self.side = side

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return 2 * torch.rand(3, FRAMES, self.side, self.side, generator=torch.Generator().manual_seed(index)) - 1


def tiny_values(func: str = "river", **model: Any) -> dict[str, Any]:
    """A complete plain configuration; `model` changes its model part, `aug` and regressor keys theirs."""
    size = {"state_size": 3, "state_res": [4, 4], "inner_dim": 16, "depth": 1, "mid_depth": 1, "dropout": 0.0}
    size |= {key: model.pop(key) for key in list(model) if key in ("checkpointing", "out_norm", "backbone")}
    return {
        "name": "tiny",
        "data": {
            "data_root": "shapes:6,frames=6,size=4",
            "input_size": 4,
            "crop_size": 4,
            "frames_per_sample": FRAMES,
            "aug": model.pop("aug", False),
        },
        "model": {
            "func": func,
            "num_input_frames": 2,
            "vector_field_regressor": size,
            "autoencoder": {"type": "identity"},
            **model,
        },
        "training": {
            "num_observations": FRAMES,
            "condition_frames": 2,
            "frames_to_generate": 3,
            "batching": {"batch_size": 2},
            "optimizer": {"learning_rate": 1e-3, "num_warmup_steps": 1, "num_training_steps": 4},
        },
    }


def tiny_recipe(func: str = "river", optimizer: str = "adamw", **model: Any) -> PredictorRecipe:
    """A recipe with the same weights at each call."""
    config = parse_config(tiny_values(func, **model))
    config.training.optimizer.name = optimizer
    torch.manual_seed(0)
    space = LatentSpace(build_autoencoder(config.model.autoencoder))
    parts = (config, build_regressor(config.model), space)
    if config.model.role != "g":
        return {"river": RiverRecipe, "f": FlowRecipe, "d": DenoiserRecipe}[config.model.role](*parts)
    flow, denoiser = (build_regressor(parse_config(tiny_values(name)).model) for name in ("f_nll", "d"))
    recipe = DiffusionRecipe(*parts, flow, denoiser)
    if config.model.diffusion_start == "residual":
        recipe.start_at_residual(RandomClips())
    return recipe
