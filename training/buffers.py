"""Persistent buffers (running statistics, codebook averages): undone with a skipped step, equal on all processes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def persistent_buffers(networks: Iterable[nn.Module]) -> list[Tensor]:
    """The buffers that are part of the networks' state dicts."""
    buffers = []
    for network in networks:
        saved = set(network.state_dict(keep_vars=True))
        buffers += [buffer for name, buffer in network.named_buffers() if name in saved]
    return buffers


def snapshot(buffers: list[Tensor]) -> list[Tensor]:
    """Copies of the buffers' values."""
    return [buffer.detach().clone() for buffer in buffers]


@torch.no_grad()
def restore(buffers: list[Tensor], values: list[Tensor]) -> None:
    """Put back what `snapshot` copied."""
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)


@torch.no_grad()
def copy_from_main(buffers: list[Tensor]) -> None:
    """Give all processes the main process's values: those are the ones that a checkpoint holds."""
    for dtype in sorted({buffer.dtype for buffer in buffers}, key=str):
        alike = [buffer for buffer in buffers if buffer.dtype == dtype]
        flat = torch.cat([buffer.reshape(-1) for buffer in alike])
        dist.broadcast(flat, src=0)
        for buffer, values in zip(alike, flat.split([buffer.numel() for buffer in alike]), strict=True):
            buffer.copy_(values.view_as(buffer))
