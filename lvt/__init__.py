"""Latent Video Transformer: a frame-wise VQ-VAE with several codebooks and a subscale transformer over its codes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lvt.generate import generate_codes
    from lvt.transformer import VideoTransformer
    from lvt.vqvae import VQVAE

__all__ = ["VQVAE", "VideoTransformer", "generate_codes"]

_MODULES = {"VQVAE": "vqvae", "VideoTransformer": "transformer", "generate_codes": "generate"}


def __getattr__(name: str) -> object:
    """Import on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'lvt' has no attribute {name!r}")
    return getattr(import_module(f"lvt.{_MODULES[name]}"), name)
