"""The training objective of the autoencoder."""

from .contperceptual import LPIPSWithDiscriminator, LPIPSWithDiscriminator3D

__all__ = ["LPIPSWithDiscriminator", "LPIPSWithDiscriminator3D"]
