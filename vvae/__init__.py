"""VideoVAE+: a video autoencoder with 4x8x8 compression. See README.md of this folder.

Every name is imported when it is first used: `import vvae` needs no torch, and only names that handle files need PyAV.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "AutoencoderKL2plus1D_1dcnn": "src.models.autoencoder2plus1d_1dcnn",
    "CheckpointError": "src.errors",
    "DiagonalGaussianDistribution": "src.distributions",
    "Streaming": "src.streaming",
    "VVAEError": "src.errors",
    "VideoFileError": "src.errors",
    "Windows": "src.tiling",
    "crop_video": "src.tiling",
    "decode_file": "src.streaming",
    "encode_file": "src.streaming",
    "instantiate_from_config": "utils.common_utils",
    "load_checkpoint": "src.checkpoints",
    "load_config": "utils.common_utils",
    "load_text": "src.modules.t5",
    "pad_video": "src.tiling",
    "read_video": "src.video_io",
    "reconstruct": "src.streaming",
    "reconstruct_images": "src.images",
    "save_text": "src.modules.t5",
    "write_video": "src.video_io",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vvae' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
