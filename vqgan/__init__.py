"""VQGAN: frames as maps of code indices, trained in two stages; and the published latent-diffusion architecture."""

from vqgan.discriminator import Discriminator
from vqgan.ldm import LDMVQModel
from vqgan.model import VQGAN

__all__ = ["VQGAN", "Discriminator", "LDMVQModel"]
