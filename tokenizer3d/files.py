"""A trained tokenizer by its run folder, its checkpoint, its folder of `save_pretrained`, or a published file; and
behind the interface of all tokenizers (`training.tokenizer`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from losses.quantize import codebooks_of
from tokenizer3d.model import Tokenizer3D
from tokenizer3d.weights import CONFIG_FILE, WEIGHTS_FILE, notes_of
from training.checkpoint import DAMAGE, METADATA, check_form, load_checkpoint, model_settings, strict_load
from training.tokenizer import GridTokenizer, Kind, recipe_of
from videodata.errors import UserError, said_by

TOKENIZERS = {"tokenizer3d": ("version", "codebooks")}
LARGEST_BOOK = 2**16  # codes whose vectors are listed


def load_model(
    path: str | Path, device: torch.device | str = "cpu", version: str | None = None
) -> tuple[Tokenizer3D, dict[str, Any]]:
    """The tokenizer, in eval mode, and the configuration of its run; {} where the file is of none.

    version: of a published file whose name does not tell it. Raises UserError.
    """
    path = Path(path)
    if path.is_dir() and (path / CONFIG_FILE).is_file() and (path / WEIGHTS_FILE).is_file():
        return Tokenizer3D.from_pretrained(path).to(device), {}
    if not path.is_dir() and (version is not None or not is_of_a_run(path)):
        return Tokenizer3D.from_single_file(path, version).to(device), {}
    checkpoint = load_checkpoint(path)
    if checkpoint["recipe"] != "tokenizer3d":
        raise UserError(f"{path}: is a checkpoint of {checkpoint['recipe']!r}, not of a 3-D tokenizer")
    weights = {**checkpoint["networks"], **checkpoint["ema"]}["tokenizer"]
    model = Tokenizer3D.from_config(model_settings(checkpoint["config"], path))
    strict_load(model, weights, path)
    return model.to(device).eval(), checkpoint["config"]


def is_of_a_run(path: Path) -> bool:
    """Whether a file is a checkpoint of a training here, or the weights beside it. Raises UserError if damaged."""
    if path.suffix != ".safetensors":
        return path.stem.startswith("step-") or not path.is_file()  # the error of a missing file is one for all
    check_form(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return METADATA in (file.metadata() or {})
    except DAMAGE as error:
        raise UserError(f"{path}: cannot be read as .safetensors ({said_by(error)})") from error


def tokenizer_type(path: Path) -> str | None:
    """What `training.tokenizer` asks: "tokenizer3d" for what this project wrote; published files do not say it."""
    if recipe_of(path) == "tokenizer3d":
        return "tokenizer3d"
    file = path / WEIGHTS_FILE if path.is_dir() else path
    try:
        return "tokenizer3d" if file.is_file() and notes_of(file) else None
    except UserError:
        return None


def build_tokenizer(type: str, path: Path, kind: Kind | None, settings: Mapping[str, Any]) -> ClipTokenizer:
    """What `load_model` opens. version: of a published file; codebooks: into how many the channels of FSQ are dealt.

    Raises UserError.
    """
    version = settings.get("version")
    model, _ = load_model(path, version=None if version is None else str(version))
    return ClipTokenizer(model, settings.get("codebooks", 1))


class ClipTokenizer(GridTokenizer):
    """Whole clips as posterior means (KL), or as codes: one of each stage of a learned codebook, or those of FSQ.

    FSQ numbers the combinations of the levels of its channels, which soon are too many for a table with a row for each
    code. With several codebooks the channels are dealt to them in order, as evenly as can be, and each numbers the
    combinations of its own: 8 levels in each of 5 channels are 1 codebook of 32768 codes, 2 of up to 512, or 5 of 8.
    """

    def __init__(self, model: Tokenizer3D, codebooks: int = 1) -> None:
        config, quantizer = model.config, model.quantizer
        facts = {"space_factor": model.spatial_factor, "time_factor": model.temporal_factor, "causal": model.is_causal}
        self.stages = 1 if quantizer is None else quantizer.num_quantizers
        most = len(config.levels) if self.stages == 1 else 1
        if codebooks != 1 and not 1 <= codebooks <= most:
            raise UserError(
                f"codebooks {codebooks}: this tokenizer has {most if most > 1 else 'no'} channels to deal out"
            )
        if quantizer is None:
            super().__init__(model, "latents", config.z_channels, **facts)
            return
        groups = dealt(config.levels, codebooks) if codebooks > 1 else []
        self.sizes = [math.prod(group) for group in groups] or [model.codebook_size]
        self.bases = [math.prod(self.sizes[:number]) for number in range(len(self.sizes))]  # channel 0 varies fastest
        vectors = None
        if max(self.sizes) <= LARGEST_BOOK:
            vectors = [level_vectors(group) for group in groups] or codebooks_of(quantizer)
        super().__init__(model, "codes", max(codebooks, self.stages), max(self.sizes), vectors=vectors, **facts)

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """See `training.tokenizer.Tokenizer`."""
        found = self.module.encode(clips, length_mode="strict")
        if self.kind == "latents":
            return found.mean.float().movedim(1, -1)
        index = found.indices.long()
        if self.stages > 1:
            return index  # with their axis
        parts = [index // base % size for base, size in zip(self.bases, self.sizes, strict=True)]
        return torch.stack(parts, dim=-1)

    @torch.no_grad()
    def decode(self, array: Tensor, frames: int, height: int, width: int) -> Tensor:
        """See `training.tokenizer.Tokenizer`. Codes that a smaller codebook of an uneven deal lacks become its last."""
        if self.kind == "latents":
            clips = self.module.decode(array.movedim(-1, 1), frames)
        elif self.stages > 1:
            clips = self.module.decode_indices(array, frames)
        else:
            parts = zip(array.unbind(-1), self.bases, self.sizes, strict=True)
            index = sum(part.clamp(max=size - 1) * base for part, base, size in parts)
            clips = self.module.decode_indices(index, frames)
        return clips.float().clamp(-1, 1)


def dealt(levels: Sequence[int], codebooks: int) -> list[Sequence[int]]:
    """The levels of the channels, cut into so many runs whose lengths differ by 1 at most, the longer ones first."""
    length, longer = divmod(len(levels), codebooks)
    ends = [length * number + min(number, longer) for number in range(codebooks + 1)]
    return [levels[first:last] for first, last in zip(ends[:-1], ends[1:], strict=True)]


def level_vectors(levels: Sequence[int]) -> Tensor:
    """What the combinations of levels stand for, (codes, channels): the first channel varies fastest."""
    values = [(torch.arange(level) - level // 2) / (level // 2) for level in reversed(levels)]
    return torch.cartesian_prod(*values).view(-1, len(levels)).flip(1)
