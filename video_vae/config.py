"""Sizes of the video VAE and weights of its losses, checked before anything is built; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training import config as yaml_files
from training.cli import nonnegative_float, nonnegative_int
from training.config import from_dict
from videodata.errors import UserError

PRESETS = ("base", "small", "tiny", "clips32", "clips8")
PRESETS_FOLDER = Path(__file__).resolve().parent.parent / "configs" / "video_vae"
PRIORS = ("standard", "hierarchical")
OPTIMIZERS = ("adamw", "muon")
LEARNING_RATE, WEIGHT_DECAY = 1e-5, 1e-4
LARGEST_WIDTH = 16384  # a wider layer is a slip of the keyboard; say so before memory is asked for
MODEL_PATH = "transformer_model.pth"  # main.py without --model_path
PRIOR_KINDS = ("flow", "gaussian", "normal")  # of where samples' latents come from
PRIOR_RATE = 1.5e-3
PRIOR_TRAINING: dict[str, Any] = {  # the engine's settings for the second stage
    "batch_size": 64, "warmup_steps": 20, "schedule": "cosine", "ema": 0.99, "log_every": 50, "save_every": 0,
    "evaluate_every": 500,
}  # fmt: skip
FLOW_STEPS = 20  # of the way from a draw of the Gaussian to latents
# Former options with the only values that they still have: files that name them so can be read.
FORMER = {"gate": "exp_gelu", "decode_order": "reverse", "warmup_frames": 0, "cell_noise": 0.0}


@dataclass
class LevelConfig:
    """One level of the pyramids; each has half the resolution of the level before it."""

    dim: int  # width of the recurrent states
    heads: int  # attention heads
    latent_dim: int  # channels of the latent map


@dataclass
class ClipPathConfig:
    """The direct way of a whole clip to its finest latents and back (video_vae/clip_path.py); times 0: none."""

    times: int = 0  # cosines of t / T that carry the clip; as many as frames lose nothing
    width: int = 96  # channels of its convolutions at level 1
    depth: int = 2  # residual blocks on each side


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
    prior: str = "standard"  # standard: N(0, 1) at every level; hierarchical: given the coarser levels
    dropout: float = 0.0
    clip_path: ClipPathConfig = field(default_factory=ClipPathConfig)

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_widths()

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> VideoVAEConfig:
        """From plain settings, or from a complete configuration that has them under "model".

        Raises UserError naming the nearest known key for an unknown one.
        """
        settings = settings.get("model", settings)
        return from_dict(cls, {key: value for key, value in settings.items() if (key, value) not in FORMER.items()})

    @property
    def multiple(self) -> int:
        """Heights and widths are padded to a multiple of this, so that every level halves evenly."""
        return self.stem_stride * 2 ** (len(self.levels) - 1)

    def _check_choices(self) -> None:
        if self.prior not in PRIORS:
            raise UserError(f"prior is {self.prior!r}; choose one of {', '.join(PRIORS)}")
        if self.stem_stride < 1 or self.stem_stride & (self.stem_stride - 1):
            raise UserError(f"stem_stride is {self.stem_stride}; it must be a power of two")
        if not self.levels or self.gen_iterations < 1:
            raise UserError("the video VAE needs at least 1 level and gen_iterations >= 1")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise UserError(f"image_size is {self.image_size}; give (height, width)")
        path = self.clip_path
        if path.times < 0 or not 0 < path.width <= LARGEST_WIDTH or path.depth < 0:
            raise UserError(f"clip_path needs times and depth >= 0 and a width from 1 to {LARGEST_WIDTH}, got {path}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it must be in [0, 1)")

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


@dataclass
class PriorConfig:
    """The second stage, a prior of the latents (video_vae/prior.py); stored in its checkpoints."""

    levels: list[tuple[int, int, int]]  # (channels, height, width) of each latent map
    frames: int  # of the clips whose latents these are
    size: tuple[int, int]  # their height and width
    width: int = 128  # of the flow's tokens
    depth: int = 4
    heads: int = 4
    patch: int = 2  # side of the square of places that one token holds, in maps that it divides
    neighbours: bool = False  # blocks with a 3x3 convolution over the tokens of each map
    directions: int = 128  # principal directions of the Gaussian; what is beside them is taken as independent
    classes: list[str] = field(default_factory=list)  # that can be asked for; none: unconditional
    class_dropout: float = 0.1  # share of the clips that are shown without their class
    of_step: int = 0  # of the training of the video VAE whose latents these are

    def __post_init__(self) -> None:
        if min(self.width, self.heads) < 1 or self.depth < 0 or self.width > LARGEST_WIDTH or self.width % self.heads:
            raise UserError(f"the prior's {self.heads} attention heads do not divide its width {self.width}")
        if not 0 <= self.class_dropout < 1 or self.directions < 0 or self.patch < 1:
            raise UserError("the prior needs class_dropout in [0, 1), directions >= 0 and a patch of at least 1")


def setting(default: Any, meaning: str) -> Any:
    """A field that is a flag of main.py as well."""
    kind = {float: nonnegative_float, int: nonnegative_int, str: str}[type(default)]
    return field(default=default, metadata={"help": meaning, "type": kind})


@dataclass
class LossConfig:
    """Weights of the training objective; each field is a flag of main.py.

    total = recon_weight * MSE in [0, 1] units + kl_weight * KL in nats per pixel value + perceptual_weight * perceptual
    With recon_weight 10, kl_weight is 20 times the variance of the pixel noise that the likelihood stands for.
    """

    recon_weight: float = setting(10.0, "of the MSE in [0, 1] units")
    kl_weight: float = setting(1e-3, "of the KL in nats per pixel value")
    kl_warmup_steps: int = setting(0, "ramp of kl_weight; 0: a tenth of the run, at least 100 steps")
    free_bits: float = setting(0.0, "bits per level and clip without cost")
    frames_warmup_steps: int = setting(0, "start with 1 frame per clip, double it up to this step")
    perceptual: str = setting("vgg", "vgg, vgg-conv5_3 (the original's), lpips or lpips-alex")
    perceptual_weight: float = setting(1.0, "0 trains without VGG weights")
    perceptual_frames: int = setting(8, "random frames compared per clip; 0: all")


def load_config(preset: str | None = None, config: str | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a preset (default base), or of a YAML file in its place, with `key=value` overrides."""
    if preset and config:
        raise UserError("--preset and --config exclude each other: each is a complete set of sizes")
    path = Path(config) if config else PRESETS_FOLDER / f"{preset or PRESETS[0]}.yaml"
    return yaml_files.load_config(path, overrides)
