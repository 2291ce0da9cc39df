"""Weights from files and to files.

Read are published Lightning and DeepSpeed checkpoints, plain state dicts, .safetensors and image models; as data, never
unpickled. Loading is strict: what is missing, unexpected or of another shape is listed. `Saving` is the part of the
autoencoder class that builds a model from such files and writes it to them.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CheckpointError, VVAEError
from .files import replaced
from .models.settings import ModelSettings

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent.parent
CONFIG_NAME, WEIGHTS_NAME = "config.json", "diffusion_pytorch_model.safetensors"
CONTAINERS = ("state_dict", "module", "model", "networks")
PREFIXES = ("module.", "_forward_module.", "model.", "autoencoder.", "_orig_mod.")
NOT_THE_MODEL = ("loss.", "discriminator.", "logvar")  # training parts that a checkpoint may hold beside the model
UNUSED_BRANCH = re.compile(r"\.conv3_tmp\.(norm|conv)\.(weight|bias)$")


def load_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """Load weights into an autoencoder and return it. Raises CheckpointError with a report unless every key fits.

    Takes .ckpt, .pt, .pth, .bin and .safetensors. Parameters that only training or nothing uses (`loss.*`, the unused
    `conv3_tmp` branches) may be there or not.
    """
    state = read_checkpoint(path, set(model.state_dict()))
    own = model.state_dict()
    kept = {key: value for key, value in state.items() if key in own or not UNUSED_BRANCH.search(key)}
    absent = {key for key in own if key not in kept and is_unused(key, own)}
    _require_fit(own, kept, absent, path)
    for key in absent:  # allocated, but nothing reads them
        kept[key] = torch.zeros(own[key].shape)
    assign = any(parameter.is_meta for parameter in model.parameters())
    kept = {key: value.to(torch.float32) if assign else value for key, value in kept.items()}
    model.load_state_dict(kept, assign=assign)
    if assign:
        model.requires_grad_(True)
    return model


def read_checkpoint(path: str | Path, wanted: set[str] | None = None) -> dict[str, Tensor]:
    """The state dict of an autoencoder in a checkpoint, under the published keys; training parts are left out.

    wanted: the keys of the model; wrapping prefixes are stripped when that makes keys match.
    """
    state = _state_dict(_read(Path(path)), path)
    state = _strip_prefixes(state, wanted or {"encoder.conv_in.weight"})
    return {key: value for key, value in state.items() if not key.startswith(NOT_THE_MODEL)}


def load_image_checkpoint(model: nn.Module, path: str | Path) -> list[str]:
    """Start a video model from an image autoencoder (Stable Diffusion); returns the keys that were loaded.

    Keys may begin with `first_stage_model.`; 4-D weights get a time axis of length 1. With its temporal layers still
    at zero, the model then reproduces the image autoencoder frame by frame.
    """
    state = _state_dict(_read(Path(path)), path)
    prefix = "first_stage_model."
    if any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    own = model.state_dict()
    chosen, misfits = {}, []
    for key, value in state.items():
        if not key.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")) or key not in own:
            continue
        value = value.unsqueeze(2) if value.dim() == 4 else value
        if value.shape == own[key].shape:
            chosen[key] = value
        else:
            misfits.append(f"{key}: {tuple(value.shape)}, expected {tuple(own[key].shape)}")
    if misfits or not chosen:
        raise CheckpointError(_report(f"{path}: not an image autoencoder of this shape", wrong=misfits))
    model.load_state_dict(chosen, strict=False)
    logger.info("%s: %d of %d tensors loaded from an image autoencoder", path, len(chosen), len(own))
    return sorted(chosen)


def infer_settings(state: Mapping[str, Tensor], path: object = "the checkpoint") -> dict[str, Any]:
    """The settings (`model.params`) of the autoencoder that a state dict belongs to, from its keys and shapes."""
    try:
        ch = state["encoder.conv_in.weight"].shape[0]
        levels = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.down."))
        blocks = 1 + max(int(key.split(".")[4]) for key in state if key.startswith("encoder.down.0.block."))
        widths = [state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
        channels = state["encoder.conv_out.weight"].shape[0] // 2
        hidden = state["encoder_temporal.conv_in.conv.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: holds no video autoencoder (no key {error})") from error
    latent = state["quant_conv.weight"].shape[0] // 2 if "quant_conv.weight" in state else channels
    text_levels = [level for level in range(levels) if f"encoder.down.{level}.attn.0.to_k.weight" in state]
    factors = [2 * (i + 1) for i in range(2) if f"encoder_temporal.mid_blocks.{i}.attn.0.to_k.weight" in state]
    return {
        "ddconfig": {
            "z_channels": channels,
            "ch": ch,
            "ch_mult": [width // ch for width in widths],
            "num_res_blocks": blocks,
            "attn_resolutions": [216 >> level for level in text_levels],
        },
        "ppconfig": {"ch": latent, "hidden_channel": hidden, "attn_temporal_factor": factors},
        "use_quant_conv": "quant_conv.weight" in state,
        "embed_dim": latent if "quant_conv.weight" in state else 0,
        "caption_guide": bool(text_levels or factors),
        "t5_model_max_length": 100,
        **({"norm_groups": int(state["norm_groups"])} if "norm_groups" in state else {}),
    }


FORMS = {  # what is found in place of weights, by its first bytes
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`",
    b"<!doctype": "a web page: what was downloaded is the page of a login or an error; download the file itself",
    b"<html": "a web page: what was downloaded is the page of a login or an error; download the file itself",
}


# What torch raises, in its three formats, for a file that is cut off or damaged.
DAMAGE = (RuntimeError, EOFError, ValueError, LookupError, OSError, TypeError, AttributeError, AssertionError)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with open(path, "rb") as file:
        start = file.read(64)
    for first, form in FORMS.items():
        if start.lstrip().lower().startswith(first):
            raise CheckpointError(f"{path}: is {form}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(str(path))
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a readable .safetensors file ({error})") from error
    try:
        mapped = start.startswith(b"PK")  # a zip archive; the older format cannot be mapped into memory
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, and could run code; it is not opened. Where you trust "
            f"its source, save its state_dict alone as .safetensors. ({_first_line(error)})"
        ) from error
    except DAMAGE as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({_first_line(error)})") from error


def _state_dict(content: Any, path: object) -> dict[str, Tensor]:
    """The tensors of a file, whatever container they are in."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if isinstance(content, Mapping) and isinstance(content.get("autoencoder"), Mapping):
        content = content["autoencoder"]
    entries = content.items() if isinstance(content, Mapping) else ()
    tensors = {key: value for key, value in entries if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no state dict")
    return tensors


def _strip_prefixes(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    while True:
        matches = sum(key in wanted for key in state)
        for prefix in PREFIXES:
            stripped = {key.removeprefix(prefix): value for key, value in state.items()}
            if sum(key in wanted for key in stripped) > matches:
                break
            if not matches and any(key.startswith(prefix) for key in state):
                break  # one of several prefixes: matches come when the next is gone
        else:
            return state
        state = stripped


def is_unused(key: str, own: Mapping[str, Tensor]) -> bool:
    """True for the third branch of a residual block that does not change the width."""
    match = UNUSED_BRANCH.search(key)
    return match is not None and f"{key[: match.start()]}.nin_shortcut.weight" not in own


def _require_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], absent: set[str], path: object) -> None:
    missing = sorted(set(own) - set(state) - absent)
    unexpected = sorted(set(state) - set(own))
    wrong = [
        f"{key}: {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in sorted(set(state) & set(own))
        if state[key].shape != own[key].shape
    ]
    if missing or unexpected or wrong:
        title = f"{path}: these weights do not fit the model{_other_variant(own, state)}"
        raise CheckpointError(_report(title, missing, unexpected, wrong))


def _other_variant(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What the file holds, where that is another published variant than the configuration asks for."""
    try:
        both = [infer_settings(weights) for weights in (state, own)]
    except VVAEError:
        return ""
    theirs, ours = (f"{found['ppconfig']['ch']}z{'_cap' if found['caption_guide'] else ''}" for found in both)
    return f": the file holds a {theirs} model, the configuration describes {ours}" if theirs != ours else ""


def _report(title: str, missing: list[str] = (), unexpected: list[str] = (), wrong: list[str] = ()) -> str:
    lines = [title]
    for name, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong)):
        if keys:
            more = f", ... ({len(keys)} in all)" if len(keys) > 8 else ""
            lines.append(f"  {name}: {', '.join(keys[:8])}{more}")
    return "\n".join(lines)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


class Saving:
    """Building the autoencoder from files, and writing it to them; mixed into its class."""

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
            settings = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise VVAEError(f"{path}: no such file; save_pretrained writes it") from error
        except (ValueError, RecursionError) as error:
            raise VVAEError(f"{path}: not valid JSON ({error})") from error
        settings = {key: value for key, value in settings.items() if not key.startswith("_")}
        return cls(ckpt_path=folder / WEIGHTS_NAME, strict_ckpt=True, prune_unused=prune_unused, **settings).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and the weights (published key names, in .safetensors) to a folder."""
        folder = Path(folder)
        settings = {"_class_name": type(self).__name__, **self.config.to_dict()}
        self.save_checkpoint(folder / WEIGHTS_NAME)
        with replaced(folder / CONFIG_NAME) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8", newline="\n")

    def save_checkpoint(self, path: str | Path) -> None:
        """Write the weights under the published keys: .safetensors, or .ckpt and .pt with a `state_dict` inside."""
        path = Path(path)
        state = {key: value.detach().contiguous().cpu() for key, value in self.state_dict().items()}
        with replaced(path) as temporary:
            if path.suffix == ".safetensors":
                from safetensors.torch import save

                temporary.write_bytes(save(state))  # its save_file makes files that only their owner may read
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
