"""The device that a flag names."""

from __future__ import annotations

import torch

from videodata.errors import UserError


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """auto (cuda if there is one, else cpu), cpu, cuda or cuda:N as a torch.device.

    With several processes per machine, `auto` and `cuda` give each its own GPU, number `local_rank`.
    Raises UserError for a GPU that is not there and for an unknown name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: unknown device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        return _resolve_cuda(name, device, local_rank)
    if device.type != "cpu":
        raise UserError(f"--device {name}: only cpu and cuda are supported; use --device cpu")
    return device


def _resolve_cuda(name: str, device: torch.device, local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch finds no usable GPU on this machine; use --device cpu")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise UserError(f"--device {name}: GPU {index} asked for, but there are {torch.cuda.device_count()}")
    return torch.device("cuda", index)
