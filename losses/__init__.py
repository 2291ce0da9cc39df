"""Losses shared by the models: perceptual, adversarial and KL terms, and quantisers, which bring losses of their own.

Names are imported when they are first used.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "LPIPS": "losses.perceptual",
    "VGGFeatureLoss": "losses.perceptual",
    "build_perceptual": "losses.perceptual",
    "perceptual_loss": "losses.perceptual",
    "find_weights": "losses.weights",
    "discriminator_loss": "losses.adversarial",
    "generator_loss": "losses.adversarial",
    "adaptive_weight": "losses.adversarial",
    "PatchGAN2D": "losses.adversarial",
    "PatchGAN3D": "losses.adversarial",
    "gaussian_kl": "losses.kl",
    "free_bits": "losses.kl",
    "linear_ramp": "losses.kl",
    "LeCam": "losses.adversarial",
    "FSQ": "losses.fsq",
    "AverageQuantizer": "losses.quantize",
    "ResidualQuantizer": "losses.quantize",
    "SignQuantizer": "losses.quantize",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'losses' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
