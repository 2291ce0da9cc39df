"""VQGAN: frames as maps of code indices, trained in two stages; and the published latent-diffusion architecture.

Names are imported when they are first used, so that a script's `--help` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqgan.ldm import LDMVQModel
    from vqgan.model import VQGAN, Discriminator

_HOME = {"VQGAN": "vqgan.model", "Discriminator": "vqgan.model", "LDMVQModel": "vqgan.ldm"}
__all__ = ["VQGAN", "Discriminator", "LDMVQModel"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vqgan' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
