"""A trained model by its file or folder. See `src/checkpoints.py` for what the files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .src.errors import CheckpointError, VVAEError
from .src.models.autoencoder2plus1d_1dcnn import AutoencoderKL2plus1D_1dcnn
from .utils.common_utils import instantiate_from_config, load_config

TOKENIZERS = {"vvae": ("config",)}
TIME_FACTOR, SPACE_FACTOR = 4, 8  # of all its sizes


def load_model(
    path: str | Path | None, device: torch.device | str = "cpu", config: str | Path | None = None
) -> tuple[AutoencoderKL2plus1D_1dcnn, dict[str, Any]]:
    """The model, frozen, and the configuration of its run; {} where the file is of none.

    path: a checkpoint, a folder of save_pretrained or a run folder; None: the weights that the configuration file
    `config` names, random ones where there are none of that name (warned). Raises VVAEError.
    """
    if not path and not config:
        raise VVAEError("name the weights with --checkpoint (or a configuration that names them with --config)")
    path = Path(path) if path else None
    stored = path / "config.yaml" if path else None
    run_config = load_config(stored) if stored and stored.is_file() else {}
    model = build_model(path, config).freeze()
    model.skip_idle_branches()
    return model.to(device), run_config


def build_model(path: Path | None, config: str | Path | None) -> AutoencoderKL2plus1D_1dcnn:
    """The model with its weights, as `load_model` says."""
    if path is not None and path.is_dir():
        if (path / "config.json").is_file():
            return AutoencoderKL2plus1D_1dcnn.from_pretrained(path)
        path = newest_weights(path)
    if not config:
        return AutoencoderKL2plus1D_1dcnn.from_single_file(path)
    weights = {} if path is None else {"ckpt_path": str(path), "strict_ckpt": True}
    return instantiate_from_config(load_config(config).model, **weights)


def newest_weights(folder: Path) -> Path:
    """The file of the last step that a training wrote to its folder."""
    found = [*folder.glob("checkpoints/weights-*.safetensors"), *folder.glob("weights-*.safetensors")]
    if not found:
        raise CheckpointError(f"{folder}: neither a folder of save_pretrained nor a run folder with checkpoints")
    return max(found, key=lambda path: int(path.stem.rpartition("-")[2]))


class ClipTokenizer:
    """The model as a tokenizer of clips, whose latents are posterior means.

    The interface is that of `training.tokenizer.Tokenizer` in the project.
    """

    kind, size, vectors, causal = "latents", None, None, False
    time_factor, space_factor = TIME_FACTOR, SPACE_FACTOR

    def __init__(self, model: AutoencoderKL2plus1D_1dcnn) -> None:
        self.module, self.width = model, model.decoder.z_channels

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t, h, w, c) of the latent of a clip. Raises VVAEError for one that it does not take."""
        if frames % TIME_FACTOR or height % SPACE_FACTOR or width % SPACE_FACTOR or min(frames, height, width) < 1:
            raise VVAEError(
                f"a clip of {frames} frames of {width}x{height}: it takes multiples of {TIME_FACTOR} frames and of "
                f"{SPACE_FACTOR} pixels"
            )
        return frames // TIME_FACTOR, height // SPACE_FACTOR, width // SPACE_FACTOR, self.width

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) in [-1, 1] -> latents (B, t, h, w, c), float32."""
        return self.module.encode(clips).mode().float().movedim(1, -1)

    @torch.no_grad()
    def decode(self, array: Tensor, frames: int, height: int, width: int) -> Tensor:
        """Latents (B, t, h, w, c) -> clips (B, 3, T, H, W) in [-1, 1]."""
        return self.module.decode(array.movedim(-1, 1), clamp=True).float()


def tokenizer_type(path: Path) -> str | None:
    """ "vvae" for a run folder of the training, and for a folder of save_pretrained; published files do not say it."""
    run, saved, name = path / "config.yaml", path / "config.json", AutoencoderKL2plus1D_1dcnn.__name__
    if run.is_file():
        return "vvae" if name in str(load_config(run).get("model", {}).get("target")) else None
    return "vvae" if saved.is_file() and name in saved.read_text(encoding="utf-8", errors="replace") else None


def build_tokenizer(type: str, path: Path, kind: str | None, settings: dict[str, Any]) -> ClipTokenizer:
    """The model of a checkpoint or folder as a tokenizer; `config`: its configuration file. Raises VVAEError."""
    return ClipTokenizer(load_model(path, config=settings.get("config"))[0])
