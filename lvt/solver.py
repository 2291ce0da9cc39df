"""The SOLVER node of a configuration: the optimiser of a network, its learning rate, and its number format."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lvt.layers import BlockLocalAttention, HeadProjections
from lvt.transformer import CausalConv3d, ChannelHead, MaskedSliceDecoder, SurroundingConv3d, TableConv3d
from training import optim
from training.distributed import resolve_device
from training.step import decided
from videodata.errors import UserError

OPTIMIZERS = ("adam", "adamw", "muon", "rmsprop")


def optimizer_of(model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimiser of a configuration. Raises UserError for an unknown name."""
    solver = config["SOLVER"]
    if solver["OPTIMIZER_NAME"] not in OPTIMIZERS:
        raise UserError(f"SOLVER.OPTIMIZER_NAME {solver['OPTIMIZER_NAME']!r}: use {', '.join(OPTIMIZERS)}")
    options = {
        "betas": (solver["ADAM"]["BETA1_G"], solver["ADAM"]["BETA2_G"]),
        "alpha": solver["RMSPROP"]["ALPHA_G"],
        "momentum": solver["RMSPROP"]["MOMENTUM_G"],
        "eps": 1e-8,
    }
    if solver["OPTIMIZER_NAME"] == "muon":
        decay = solver["WEIGHT_DECAY"]["BASE_G"]
        options |= {"weight_decay": decay, "convolutions": True, **kinds_of_weights(model)}
        return optim.build_optimizer("muon", model.parameters(), solver["LR_G"], **options)
    return optim.build_optimizer(solver["OPTIMIZER_NAME"], decayed(model, solver), solver["LR_G"], **options)


def decayed(model: nn.Module, solver: dict[str, Any]) -> list[dict[str, Any]]:
    """Groups of parameters by their weight decay."""
    decay = solver["WEIGHT_DECAY"]
    groups: dict[float, list[nn.Parameter]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kind = "NORM_G" if isinstance(module, nn.LayerNorm) else "BIAS_G" if name == "bias" else "BASE_G"
            groups.setdefault(decay[kind], []).append(parameter)
    return [{"params": members, "weight_decay": amount} for amount, members in groups.items()]


def kinds_of_weights(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """What Muon must know: `tables`, whose rows are picked by an index or stand for one, and `heads`, stacks of
    matrices that are one.
    """
    tables: list[nn.Parameter] = []
    heads: list[nn.Parameter] = []
    for module in model.modules():
        if isinstance(module, (TableConv3d, nn.Embedding)):
            tables.append(module.weight)
        elif isinstance(module, (CausalConv3d, SurroundingConv3d)):  # over rows of tables; many taps are idle
            tables.append(module.conv.weight)
        elif isinstance(module, MaskedSliceDecoder):
            tables.append(module.mask_embedding)
        elif isinstance(module, ChannelHead):
            tables += [weight for weight in module.P.parameters() if weight.ndim > 1]
        elif isinstance(module, BlockLocalAttention):
            tables += [module.dt_bank, module.dh_bank, module.dw_bank]
        elif isinstance(module, HeadProjections):
            heads += [module.w_q, module.w_k, module.w_v]
    return {"tables": tables, "heads": heads}


def precision_of(config: dict[str, Any]) -> str:
    """SOLVER.PRECISION with `auto` decided. Raises UserError for an unknown device."""
    return decided(config["SOLVER"]["PRECISION"], resolve_device(config["MODEL"]["DEVICE"]))


def schedule(solver: dict[str, Any]) -> dict[str, Any]:
    """The engine's settings of the learning rate for a SOLVER node. Raises UserError for an unknown schedule."""
    kinds: dict[str, dict[str, Any]] = {
        "WarmupMultiStepLR": {
            "schedule": "multistep", "milestones": tuple(solver["STEPS"]), "gamma": solver["GAMMA"],
        },
        "WarmupCosineLR": {"schedule": "cosine_full"},
    }  # fmt: skip
    name = solver["LR_SCHEDULER_NAME"]
    if name == "Identity":  # without warm-up, as the original has it
        return {}
    if name not in kinds:
        raise UserError(f"SOLVER.LR_SCHEDULER_NAME {name!r}: use Identity, WarmupMultiStepLR or WarmupCosineLR")
    if solver["WARMUP_ITERS"] < 1:
        return kinds[name]
    kind = "constant" if solver["WARMUP_METHOD"] == "constant" else "linear"
    warmup = {"warmup_steps": solver["WARMUP_ITERS"], "warmup": kind, "warmup_start": solver["WARMUP_FACTOR"]}
    return {**kinds[name], **warmup}
