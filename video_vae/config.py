"""Sizes and options of the video VAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import from_dict, load_config
from videodata.errors import UserError

PRESETS = ("base", "small", "tiny")
PRESETS_FOLDER = Path(__file__).resolve().parent.parent / "configs" / "video_vae"
GATES = ("exp_gelu", "xlstm", "sigmoid")
PRIORS = ("standard", "hierarchical")
DECODE_ORDERS = ("reverse", "forward")
LARGEST_WIDTH = 16384  # a wider layer is a slip of the keyboard; say so before memory is asked for


@dataclass
class LevelConfig:
    """One level of the pyramids; each has half the resolution of the level before it."""

    dim: int  # width of the recurrent states
    heads: int  # attention heads
    latent_dim: int  # channels of the latent map


@dataclass
class VideoVAEConfig:
    """Everything that shapes the network; stored in each checkpoint.

    Raises UserError in one line when the sizes do not fit together.
    """

    levels: list[LevelConfig]
    image_size: tuple[int, int] = (240, 320)  # (height, width) of samples, where no other size is asked for
    stem_stride: int = 8  # pixels per token at level 1, a power of two
    stem_dim: int = 256
    stem_heads: int = 4
    canvas_dim: int = 256
    canvas_heads: int = 4
    head_dim: int = 32  # channels of the output head at pixel resolution
    gen_iterations: int = 3  # refinement iterations of the generator per frame
    warmup_frames: int = 0  # decoded before the first frame and dropped
    decode_order: str = "reverse"  # reverse: last frame first
    gate: str = "exp_gelu"
    prior: str = "standard"
    cell_noise: float = 0.0  # standard deviation, in training only
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_widths()

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> VideoVAEConfig:
        """From plain settings, or from a complete configuration that has them under "model".

        Raises UserError naming the nearest known key for an unknown one.
        """
        return from_dict(cls, settings.get("model", settings))

    @property
    def multiple(self) -> int:
        """Heights and widths are padded to a multiple of this, so that every level halves evenly."""
        return self.stem_stride * 2 ** (len(self.levels) - 1)

    def _check_choices(self) -> None:
        for name, choices in (("gate", GATES), ("prior", PRIORS), ("decode_order", DECODE_ORDERS)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if self.stem_stride < 1 or self.stem_stride & (self.stem_stride - 1):
            raise UserError(f"stem_stride is {self.stem_stride}; it must be a power of two")
        if not self.levels or self.gen_iterations < 1 or self.warmup_frames < 0:
            raise UserError("the video VAE needs at least 1 level, gen_iterations >= 1 and warmup_frames >= 0")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise UserError(f"image_size is {self.image_size}; give (height, width)")
        if self.cell_noise < 0 or not 0 <= self.dropout < 1:
            raise UserError("cell_noise must be >= 0 and dropout in [0, 1)")

    def _check_widths(self) -> None:
        blocks = {f"level {i}": (level.dim, level.heads) for i, level in enumerate(self.levels, start=1)}
        blocks["the stem"] = (self.stem_dim, self.stem_heads)
        blocks["the canvas"] = (self.canvas_dim, self.canvas_heads)
        for name, (dim, heads) in blocks.items():
            if not 0 < dim <= LARGEST_WIDTH or heads < 1:
                raise UserError(f"{name} has width {dim} and {heads} attention heads; widths go to {LARGEST_WIDTH}")
            if dim % heads:
                raise UserError(f"{heads} attention heads do not divide the width {dim} of {name}")
        for dim in (self.stem_dim, self.canvas_dim):
            if dim % 4:
                raise UserError(f"stem_dim and canvas_dim must be multiples of 4 (2-D positions), got {dim}")
        for dim in (self.head_dim, *(level.latent_dim for level in self.levels)):
            if not 0 < dim <= LARGEST_WIDTH:
                raise UserError(f"head_dim and latent_dim go from 1 to {LARGEST_WIDTH}, got {dim}")


def load_preset(preset: str | None = None, config: str | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a preset (default base), or of a YAML file in its place, with `key=value` overrides."""
    if preset and config:
        raise UserError("--preset and --config exclude each other: each is a complete set of sizes")
    path = Path(config) if config else PRESETS_FOLDER / f"{preset or PRESETS[0]}.yaml"
    return load_config(path, overrides)


@dataclass
class LossConfig:
    """Weights of the training objective.

    total = recon_weight * MSE in [0, 1] units + kl_weight * KL in nats per pixel value + perceptual_weight * perceptual
    With recon_weight 10, kl_weight is 20 times the variance of the pixel noise that the likelihood stands for.
    """

    recon_weight: float = 10.0
    kl_weight: float = 1e-3
    kl_warmup_steps: int = 0  # of a linear ramp of kl_weight from 0; 0: a tenth of the run, at least 100 steps
    free_bits: float = 0.0  # bits per level and clip that cost nothing
    frames_warmup_steps: int = 0  # training starts with 1 frame of each clip and doubles their number up to this step
    perceptual: str = "vgg"  # a key of losses.perceptual.PERCEPTUAL_LOSSES
    perceptual_weight: float = 1.0
    perceptual_frames: int = 8  # random frames per clip that are compared; 0: all
