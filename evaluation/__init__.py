"""Metrics with exact definitions, result files, and the HTML gallery.

The four functions are imported when they are asked for, so that a command can print its help without waiting for torch.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "fvd": "evaluation.set_distance",
    "lpips_distance": "evaluation.metrics",
    "psnr": "evaluation.metrics",
    "ssim": "evaluation.metrics",
}
__all__ = ["fvd", "lpips_distance", "psnr", "ssim"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
