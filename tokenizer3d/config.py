"""What defines a 3-D tokenizer, and the 23 published configurations.

Source: the configuration files of microsoft/VidTok (MIT licence; arXiv 2412.13061). Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from training.config import from_dict, unknown_key
from videodata.errors import UserError

VERSIONS = ("1.0", "1.1")
REGULARIZERS = ("kl", "fsq", "ema", "lfq")  # the last two are not published
DEFAULT_CODES = 1024  # of ema and lfq
PREFIX, SUFFIX_1_1 = "vidtok_", "_v1_1"
LEVELS = 8  # of every channel of the published FSQ models
# How the original's 1.1 is told to cut long videos. Here every clip goes through in steps without seams.
TILING_KEYS = ("use_tiling", "t_chunk_enc", "t_chunk_dec", "use_overlap")
UNREAD = ("dropout", "use_checkpoint", "fix_encoder", "fix_decoder")  # keys of published files that are about training


@dataclass(frozen=True)
class Tokenizer3DConfig:
    """Both networks and what lies between them. Raises UserError for values that do not fit together.

    Levels are counted from full resolution (0) to the lowest; the lists say at which of them the encoder halves
    (`*_down`) and the decoder doubles (`*_up`) space and time.
    """

    version: str = "1.0"  # of the arithmetic; two versions have the same keys and shapes
    causal: bool = True
    regularizer: str = "kl"
    z_channels: int = 4
    ch: int = 128  # channels of level 0
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)  # channels of each level, in units of `ch`
    num_res_blocks: int = 2  # pairs of blocks per level of the encoder; the decoder has one more
    space_down: tuple[int, ...] = (0, 1, 2)
    time_down: tuple[int, ...] = (1, 2)
    space_up: tuple[int, ...] = (1, 2, 3)
    time_up: tuple[int, ...] = (1, 2)
    patch_size: int = 1  # not published: pixels along each side that become channels of one position of level 0
    levels: tuple[int, ...] = ()  # FSQ: of each channel
    # Further arguments of the quantiser (losses/fsq.py, losses/quantize.py). num_quantizers: residual stages, of fsq
    # and ema; codebook_size: of ema and lfq
    regularizer_options: dict[str, Any] = field(default_factory=dict)
    in_channels: int = 3
    out_channels: int = 3
    name: str = ""  # of the published configuration, where it is one

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.version, VERSIONS, "version"),
            (self.regularizer, REGULARIZERS, "regularizer"),
        ):
            if value not in known:
                raise UserError(f"unknown {what} {value!r}; choose one of {', '.join(known)}")
        if self.version == "1.1" and not self.causal:
            raise UserError("version 1.1 is of causal models alone; a non-causal one has version 1.0")
        counts = (self.ch, self.z_channels, self.num_res_blocks, self.patch_size, *self.ch_mult)
        if min(*counts, self.in_channels, self.out_channels) < 1:
            raise UserError(
                "ch, ch_mult, z_channels, num_res_blocks, patch_size and the channels of pictures must be at least 1"
            )
        self._check_levels()
        if self.regularizer == "fsq" and (len(self.levels) != self.z_channels or min(self.levels) < 2):
            raise UserError(
                f"fsq with {self.z_channels} z_channels needs as many levels of at least 2, found {self.levels}"
            )
        if self.regularizer != "fsq" and self.levels:
            raise UserError(f"levels are of fsq, and the regularizer is {self.regularizer}")
        if self.regularizer == "kl" and self.regularizer_options:
            raise UserError("regularizer_options are of models with codes, and the regularizer is kl")

    def _check_levels(self) -> None:
        top = len(self.ch_mult) - 1
        for names, low, high in ((("space_down", "time_down"), 0, top - 1), (("space_up", "time_up"), 1, top)):
            space, time = (getattr(self, name) for name in names)
            for name, found in zip(names, (space, time), strict=True):
                if list(found) != sorted(set(found)) or not all(low <= level <= high for level in found):
                    raise UserError(f"{name} {found}: must be different levels from {low} to {high}, in rising order")
            if not set(time) <= set(space):
                raise UserError(f"{names[1]} {time}: time is resampled only at levels of {names[0]} {space}")
        if len(self.space_down) != len(self.space_up) or len(self.time_down) != len(self.time_up):
            raise UserError("the decoder must double as often as the encoder halves, in space and in time")

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position, along each side."""
        return self.patch_size * 2 ** len(self.space_down)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame."""
        return 2 ** len(self.time_down)

    @property
    def moments(self) -> int:
        """Channels that the encoder puts out: mean and log variance for KL."""
        return self.z_channels * (2 if self.regularizer == "kl" else 1)

    @property
    def codebook_size(self) -> int | None:
        """Number of codes; None for KL."""
        if self.regularizer in ("ema", "lfq"):
            return self.regularizer_options.get("codebook_size", DEFAULT_CODES)
        return math.prod(self.levels) if self.regularizer == "fsq" else None

    @property
    def is_linear(self) -> bool:
        """Whether time is doubled by linear interpolation, as 1.1 does, not by repetition."""
        return self.version == "1.1"

    def width(self, level: int) -> int:
        """Channels of a level."""
        return self.ch * self.ch_mult[level]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and YAML take them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def config_from(source: str | Mapping[str, Any] | Tokenizer3DConfig) -> Tokenizer3DConfig:
    """By a published name, from our own keys, or from the original's {version, causal, regularizer, encoder_params,
    regularizer_params}. Raises UserError.
    """
    if isinstance(source, Tokenizer3DConfig):
        return source
    if isinstance(source, str):
        return published(source)
    values = {key: value for key, value in source.items() if key not in TILING_KEYS}
    if isinstance(values.get("version"), float):  # as YAML reads it
        values["version"] = str(values["version"])
    if "encoder_params" in values:
        return from_original(values)
    if values.get("name") and set(values) <= {"name", "ch"}:
        return replace(published(values["name"]), **{key: values[key] for key in ("ch",) if key in values})
    for key in values:
        if key not in FIELDS:
            raise unknown_key(key, FIELDS, "key of a tokenizer")
    return from_dict(Tokenizer3DConfig, values)


FIELDS = tuple(entry.name for entry in fields(Tokenizer3DConfig))


def from_original(values: Mapping[str, Any]) -> Tokenizer3DConfig:
    """The original's parameters, as its YAML files and the metadata of converted files hold them. Raises UserError."""
    try:
        version, causal, regularizer = (values[key] for key in ("version", "causal", "regularizer"))
        causal = {"True": True, "False": False}.get(causal, causal)
        encoder = plain(values["encoder_params"])
        ch_mult, z_channels = tuple(encoder.pop("ch_mult")), encoder.pop("z_channels")
        options = plain(values.get("regularizer_params", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"a tokenizer's configuration needs {error}") from error
    required = {"norm_type": "layernorm", "init_pad_mode": "replicate"}
    if version == "1.1":
        required["interpolation_mode"] = "trilinear"
    for key, value in required.items():
        if encoder.pop(key, value) != value:
            raise UserError(f"{key}: only {value} is known, which all published configurations have")
    space_down, time_down, space_up, time_up = default_levels(len(ch_mult))
    config = Tokenizer3DConfig(
        version=version,
        causal=causal,
        regularizer=regularizer,
        z_channels=z_channels,
        ch=encoder.pop("ch"),
        ch_mult=ch_mult,
        num_res_blocks=encoder.pop("num_res_blocks"),
        space_down=tuple(encoder.pop("spatial_ds", space_down)),
        time_down=tuple(encoder.pop("tempo_ds", time_down)),
        space_up=tuple(sorted(encoder.pop("spatial_us", space_up))),
        time_up=tuple(sorted(encoder.pop("tempo_us", time_up))),
        levels=tuple(options.pop("levels", ())),
        regularizer_options=options,
        in_channels=encoder.pop("in_channels", 3),
        out_channels=encoder.pop("out_ch", 3),
    )
    factor, doubled = encoder.pop("time_downsample_factor", config.temporal_factor), encoder.pop("double_z", None)
    if factor != config.temporal_factor:
        raise UserError(f"time_downsample_factor {factor} does not fit tempo_ds, which make {config.temporal_factor}")
    if doubled is not None and doubled != (regularizer == "kl"):
        raise UserError(f"double_z {doubled} does not fit the regularizer {regularizer}")
    for key in encoder:
        if key not in UNREAD:
            raise unknown_key(f"encoder_params.{key}", [f"encoder_params.{known}" for known in UNREAD])
    return config


def plain(values: Mapping[str, Any] | str) -> dict[str, Any]:
    """A mapping, or the JSON of one: the metadata of a file has only text."""
    return dict(json.loads(values) if isinstance(values, str) else values)


def default_levels(count: int) -> tuple[tuple[int, ...], ...]:
    """space_down, time_down, space_up, time_up of a configuration of `count` levels that names none."""
    return tuple(range(count - 1)), (count - 3, count - 2), tuple(range(1, count)), (1, 2)


# f x s x s -> what differs from the defaults of the dataclass
SHAPES: dict[str, dict[str, Any]] = {
    "488": {},
    "288": {"time_down": (1,), "time_up": (2,)},
    "444": {"space_down": (1, 2), "space_up": (1, 2)},
    "888": {"time_down": (0, 1, 2), "time_up": (1, 2, 3)},
    "41616": {
        "ch_mult": (1, 2, 4, 4, 4), "space_down": (0, 1, 2, 3), "time_down": (2, 3), "space_up": (1, 2, 3, 4),
    },
}  # fmt: skip
# The end of a name is the number of channels (KL) or of codes (FSQ).
NAMES_1_0 = (
    *("kl_causal_488_4chn", "kl_causal_488_8chn", "kl_causal_488_16chn", "kl_causal_288_8chn", "kl_causal_444_4chn"),
    *("kl_causal_41616_4chn", "kl_noncausal_488_4chn", "kl_noncausal_488_16chn", "kl_noncausal_41616_4chn"),
    *("kl_noncausal_41616_16chn", "fsq_causal_488_4096", "fsq_causal_488_32768", "fsq_causal_488_262144"),
    *("fsq_causal_41616_262144", "fsq_noncausal_488_262144", "fsq_noncausal_41616_262144"),
)
NAMES_1_1 = (
    *("kl_causal_488_4chn", "kl_causal_488_16chn", "kl_causal_288_8chn", "kl_causal_41616_16chn"),
    *("fsq_causal_488_32768", "fsq_causal_41616_262144", "fsq_causal_888_32768"),
)
PUBLISHED = (
    *(f"{PREFIX}{name}" for name in NAMES_1_0),
    *(f"{PREFIX}{name}{SUFFIX_1_1}" for name in NAMES_1_1),
)


def published(name: str) -> Tokenizer3DConfig:
    """A published configuration by its name, with or without "vidtok_". Raises UserError naming the nearest one."""
    full = name if name.startswith(PREFIX) else PREFIX + name
    if full not in PUBLISHED:
        raise unknown_key(name, PUBLISHED, "tokenizer")
    regularizer, causal, shape, size = full.removeprefix(PREFIX).removesuffix(SUFFIX_1_1).split("_")
    channels = round(math.log(int(size), LEVELS)) if regularizer == "fsq" else int(size.removesuffix("chn"))
    return Tokenizer3DConfig(
        version="1.1" if full.endswith(SUFFIX_1_1) else "1.0",
        causal=causal == "causal",
        regularizer=regularizer,
        z_channels=channels,
        levels=(LEVELS,) * channels if regularizer == "fsq" else (),
        name=full,
        **SHAPES[shape],
    )
