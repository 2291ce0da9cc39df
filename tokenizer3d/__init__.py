"""3-D convolutional tokenizers of the VidTok family: clips as continuous latents or as tokens, causal in time.

Names are imported when they are first used, so that a script's `--help` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizer3d.config import Tokenizer3DConfig
    from tokenizer3d.model import Tokenizer3D

_HOME = {"Tokenizer3D": "tokenizer3d.model", "Tokenizer3DConfig": "tokenizer3d.config"}
__all__ = ["Tokenizer3D", "Tokenizer3DConfig"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tokenizer3d' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
