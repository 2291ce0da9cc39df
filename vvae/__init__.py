"""VideoVAE+: a video autoencoder with 4x8x8 compression. See README.md of this folder.

Names that read or write files are imported when they are first used, so that PyAV is not needed for tensors.
"""

from importlib import import_module
from typing import Any

from .src.checkpoints import load_checkpoint
from .src.distributions import DiagonalGaussianDistribution
from .src.errors import CheckpointError, VideoFileError, VVAEError
from .src.models.autoencoder2plus1d_1dcnn import AutoencoderKL2plus1D_1dcnn
from .src.modules.t5 import load_text, save_text
from .src.tiling import crop_video, pad_video
from .utils.common_utils import instantiate_from_config, load_config

_FILE_NAMES = {
    "Streaming": "streaming",
    "Windows": "tiling",
    "decode_file": "streaming",
    "encode_file": "streaming",
    "read_video": "video_io",
    "reconstruct": "streaming",
    "reconstruct_images": "images",
    "write_video": "video_io",
}
__all__ = [
    "AutoencoderKL2plus1D_1dcnn",
    "CheckpointError",
    "DiagonalGaussianDistribution",
    "VVAEError",
    "VideoFileError",
    "Streaming",
    "Windows",
    "crop_video",
    "decode_file",
    "encode_file",
    "instantiate_from_config",
    "load_checkpoint",
    "load_config",
    "load_text",
    "pad_video",
    "read_video",
    "reconstruct",
    "reconstruct_images",
    "save_text",
    "write_video",
]


def __getattr__(name: str) -> Any:
    if name not in _FILE_NAMES:
        raise AttributeError(f"module 'vvae' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.src.{_FILE_NAMES[name]}"), name)
