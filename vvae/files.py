"""A trained model by its file or folder. See `src/checkpoints.py` for what the files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .src.errors import CheckpointError, VVAEError
from .src.models.autoencoder2plus1d_1dcnn import AutoencoderKL2plus1D_1dcnn
from .utils.common_utils import instantiate_from_config, load_config


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
