"""Tiny models and data for the tests of the recipes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqgan import VQGAN, Discriminator, LDMVQModel
from vqgan.config import Objective
from vqgan.train import AdversarialRecipe, ReconstructionRecipe

TINY_LDM = {"z_channels": 4, "resolution": 16, "ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": ()}
QUICK = {"perceptual_weight": 0.0, "vq_warmup": 2, "decay_ramp": 4, "disc_ramp": 2, "disc_start": 1}


class Stripes(Dataset):
    """Frames (3, 16, 16) in [-1, 1] with stripes of random colours and widths."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        colors = torch.rand(3, 2, generator=generator) * 2 - 1
        width = 2 + index % 3
        return colors[:, torch.arange(16) // width % 2][:, None].expand(3, 16, 16).contiguous()


def tiny_model(kind: str = "ema", ldm: bool = False, seed: int = 0) -> VQGAN | LDMVQModel:
    torch.manual_seed(seed)
    return LDMVQModel(TINY_LDM, 16, 4) if ldm else VQGAN((8, 16), 4, 16, 2, quantizer=kind)


def stage1(kind: str = "ema", ldm: bool = False, checkpointing: bool = False, **objective: Any) -> ReconstructionRecipe:
    model = tiny_model(kind, ldm)
    model.set_checkpointing(checkpointing)
    return steady(ReconstructionRecipe(model, Objective(**{**QUICK, **objective})))


def stage2(kind: str = "ema", ldm: bool = False, checkpointing: bool = False, **objective: Any) -> AdversarialRecipe:
    model = tiny_model(kind, ldm)
    model.set_checkpointing(checkpointing)
    return steady(AdversarialRecipe(model, Discriminator((8, 16, 32)), Objective(**{**QUICK, **objective})))


def steady(recipe: ReconstructionRecipe) -> ReconstructionRecipe:
    """Keep Adam from dividing gradients that are rounding errors (of a bias before a norm) by themselves."""
    for optimizer in recipe.optimizers.values():
        for group in optimizer.param_groups:
            group["eps"] = 1e-3
    return recipe
