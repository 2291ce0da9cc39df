"""The hyper-parameters of the two stages, as the configuration files name them, and of the whole model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from ..errors import VVAEError

T = TypeVar("T")


@dataclass
class SpatialSettings:
    """`ddconfig`: the 2+1D autoencoder."""

    z_channels: int
    ch: int = 128
    ch_mult: list[int] = field(default_factory=lambda: [1, 2, 4, 4])
    num_res_blocks: int = 2
    in_channels: int = 3
    out_ch: int = 3
    resolution: int = 216  # nominal: it only says, with attn_resolutions, which levels attend to the text
    attn_resolutions: list[int] = field(default_factory=list)
    dropout: float = 0.0
    double_z: bool = True
    temporal_down_factor: int = 1

    def __post_init__(self) -> None:
        if self.temporal_down_factor != 1 or not self.double_z:
            raise VVAEError("ddconfig: only temporal_down_factor 1 and double_z true are supported")

    def text_patch(self, level: int) -> int | None:
        """Side of the text-attention patches at a level (0: full resolution); None where there is no attention."""
        if self.resolution >> level not in self.attn_resolutions:
            return None
        return 2 ** (len(self.ch_mult) - 1 - level)


@dataclass
class TemporalSettings:
    """`ppconfig`: the temporal stage."""

    ch: int
    out_ch: int | None = None
    hidden_channel: int = 128
    temporal_scale_factor: int = 4
    attn_temporal_factor: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out_ch = self.ch if self.out_ch is None else self.out_ch
        if self.temporal_scale_factor != 4 or self.out_ch != self.ch:
            raise VVAEError("ppconfig: only temporal_scale_factor 4 and out_ch equal to ch are supported")


@dataclass
class ModelSettings:
    """What `config.json` holds: the shape of the model, and how its latents are scaled."""

    ddconfig: dict[str, Any]
    ppconfig: dict[str, Any]
    embed_dim: int = 0
    use_quant_conv: bool = False
    caption_guide: bool = False
    t5_model_max_length: int = 120
    scaling_factor: float = 1.0  # 1 / standard deviation of the latents, where it was measured
    latents_mean: list[float] | None = None  # per channel
    latents_std: list[float] | None = None
    norm_groups: int = 32  # of every group norm, one channel each where there are fewer

    def check_widths(self, spatial: SpatialSettings, temporal: TemporalSettings) -> None:
        """Raises VVAEError for a width that the groups do not divide."""
        for name, unit, factors in (
            ("ddconfig: every width ch * ch_mult, ch", spatial.ch, spatial.ch_mult),
            ("ppconfig: hidden_channel", temporal.hidden_channel, (2, 4)),
        ):
            if any(unit * factor % min(self.norm_groups, unit * factor) for factor in factors):
                raise VVAEError(f"{name} {unit}: must be a multiple of {self.norm_groups} (norm_groups), or smaller")

    def __post_init__(self) -> None:
        if self.norm_groups < 1:
            raise VVAEError(f"norm_groups must be at least 1, found {self.norm_groups}")
        if self.use_quant_conv and not self.embed_dim:
            raise VVAEError("use_quant_conv needs embed_dim (4 in the published 4-channel models); add it to params")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for config.json."""
        return asdict(self)


def plain(node: Any) -> Any:
    """A configuration node (any mapping or sequence) as plain dicts and lists."""
    if isinstance(node, Mapping):
        return {str(key): plain(node[key]) for key in node}
    if isinstance(node, Sequence) and not isinstance(node, str | bytes):
        return [plain(item) for item in node]
    return node


def from_mapping(kind: type[T], values: Mapping[str, Any], where: str, ignored: Sequence[str] = ()) -> T:
    """A settings object from a mapping. Raises VVAEError for unknown and missing keys; `ignored` ones are accepted."""
    known = {entry.name for entry in fields(kind)}
    values = {key: value for key, value in plain(values).items() if key not in ignored or key in known}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise VVAEError(f"{where}: unknown key {key!r}; {hint}")
    try:
        return kind(**values)
    except TypeError as error:
        raise VVAEError(f"{where}: {str(error).split('__init__() ')[-1]}") from error
