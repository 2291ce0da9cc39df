"""VQGAN: frames as maps of code indices, trained in two stages; and the published latent-diffusion architecture."""

from vqgan.ldm import LDMVQModel
from vqgan.model import VQGAN, Discriminator

__all__ = ["VQGAN", "Discriminator", "LDMVQModel"]
