"""VideoVAE+: a video autoencoder with 4x8x8 compression. See README.md of this folder."""

from .src.checkpoints import load_checkpoint
from .src.distributions import DiagonalGaussianDistribution
from .src.errors import CheckpointError, VideoFileError, VVAEError
from .src.models.autoencoder2plus1d_1dcnn import AutoencoderKL2plus1D_1dcnn
from .src.modules.t5 import load_text, save_text
from .src.padding import crop_video, pad_video
from .utils.common_utils import instantiate_from_config, load_config

__all__ = [
    "AutoencoderKL2plus1D_1dcnn",
    "CheckpointError",
    "DiagonalGaussianDistribution",
    "VVAEError",
    "VideoFileError",
    "crop_video",
    "instantiate_from_config",
    "load_checkpoint",
    "load_config",
    "load_text",
    "pad_video",
    "save_text",
]
