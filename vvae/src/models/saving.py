"""Building the autoencoder from files, and writing it to them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import infer_settings, load_checkpoint, read_checkpoint
from ..errors import CheckpointError, VVAEError
from ..files import replaced
from .settings import ModelSettings

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent.parent.parent
CONFIG_NAME, WEIGHTS_NAME = "config.json", "diffusion_pytorch_model.safetensors"


class Saving:
    """Files of a model; mixed into the autoencoder."""

    config: ModelSettings

    @staticmethod
    def find_weights(path: str | Path | None, strict: bool) -> Path | None:
        """The checkpoint that a configuration names: as given, or below the package folder. None: random weights.

        Raises CheckpointError in place of the warning when `strict` is set.
        """
        if not path:
            return None
        path = Path(path).expanduser()
        for candidate in (path, PACKAGE / path, PACKAGE / "weights" / path.name):
            if candidate.is_file():
                return candidate
        message = f"{path}: no such checkpoint (looked in the current folder, {PACKAGE} and its weights folder)"
        if strict:
            raise CheckpointError(message)
        logger.warning(
            "%s; THE WEIGHTS ARE RANDOM and reconstructions meaningless until a checkpoint is loaded", message
        )
        return None

    @classmethod
    def from_single_file(cls, path: str | Path, prune_unused: bool = True) -> Any:
        """The model that a checkpoint holds; its configuration is inferred from the shapes. Evaluation mode."""
        settings = infer_settings(read_checkpoint(path), path)
        return cls(ckpt_path=path, strict_ckpt=True, prune_unused=prune_unused, **settings).eval()

    @classmethod
    def from_pretrained(cls, folder: str | Path, prune_unused: bool = True) -> Any:
        """The model that `save_pretrained` wrote to a folder. Evaluation mode."""
        folder = Path(folder)
        path = folder / CONFIG_NAME
        try:
            settings = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise VVAEError(f"{path}: no such file; save_pretrained writes it") from error
        except ValueError as error:
            raise VVAEError(f"{path}: not valid JSON ({error})") from error
        settings = {key: value for key, value in settings.items() if not key.startswith("_")}
        return cls(ckpt_path=folder / WEIGHTS_NAME, strict_ckpt=True, prune_unused=prune_unused, **settings).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and the weights (published key names, in .safetensors) to a folder."""
        folder = Path(folder)
        settings = {"_class_name": type(self).__name__, **self.config.to_dict()}
        self.save_checkpoint(folder / WEIGHTS_NAME)
        with replaced(folder / CONFIG_NAME) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n")

    def save_checkpoint(self, path: str | Path) -> None:
        """Write the weights under the published keys: .safetensors, or .ckpt and .pt with a `state_dict` inside."""
        path = Path(path)
        state = {key: value.detach().contiguous().cpu() for key, value in self.state_dict().items()}
        with replaced(path) as temporary:
            if path.suffix == ".safetensors":
                from safetensors.torch import save_file

                save_file(state, str(temporary))
            elif path.suffix in (".ckpt", ".pt", ".pth"):
                torch.save({"state_dict": state}, temporary)
            else:
                raise VVAEError(f"{path}: the name must end in .safetensors, .ckpt, .pt or .pth")

    def load_checkpoint(self, path: str | Path) -> Any:
        """Load weights strictly (see `vvae.load_checkpoint`); returns the model."""
        return load_checkpoint(self, path)

    def scale_latent(self, latent: Tensor) -> Tensor:
        """Latent (B, z, ...) with the measured mean and deviation taken out, as a generative model wants it."""
        mean, std = self._scale(latent)
        return (latent - mean) / std

    def unscale_latent(self, latent: Tensor) -> Tensor:
        """The inverse of `scale_latent`."""
        mean, std = self._scale(latent)
        return latent * std + mean

    def _scale(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, *[1] * (latent.dim() - 2))
        if self.config.latents_mean is None or self.config.latents_std is None:
            return latent.new_zeros(()), latent.new_tensor(1.0 / self.config.scaling_factor)
        mean, std = (latent.new_tensor(v).view(shape) for v in (self.config.latents_mean, self.config.latents_std))
        return mean, std
