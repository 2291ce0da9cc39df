"""What shapes the two networks, read from the nodes of a configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from training.config import from_dict, unknown_key
from videodata.errors import UserError

Triple = tuple[int, int, int]  # (time, height, width)


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a VideoTransformer; the comment of each field is its key in the VT node of a file."""

    nc: int  # NC: codebooks, that is codes per position
    nv: int  # NV: codes per codebook
    kernel: Triple  # KERNEL of the encoder's strided convolution, odd
    stride: Triple  # STRIDE of the subscale slices
    d: int  # D: width
    da: int  # DA: width of one head
    de: int  # DE: width of code and slice embeddings
    blocks_e: tuple[Triple, ...]  # BLOCKS_E: attention block of each encoder layer
    n_head_e: tuple[int, ...]  # N_HEAD_E
    blocks_d: tuple[Triple, ...]  # BLOCKS_D
    n_head_d: tuple[int, ...]  # N_HEAD_D
    n_prime: int = 0  # N_PRIME: frames at the start that are neither trained nor counted
    pad_value: int = -1  # PAD_VALUE: stands for "outside the clip or not yet known"
    share_p: bool = True  # SHARE_P: one output layer for all codebooks
    share_embeddings: bool = False  # SHARE_EMBEDDINGS: the code embeddings are the output layer
    class_num: int = 0  # CLASS_NUM: classes to condition on; 0: none
    dropout: float = 0.0  # DROPOUT after attention and after the feed-forward layer
    qkv_init: Literal["matrix", "tensor"] = "matrix"  # QKV_INIT, see lvt.initialization
    attention: Literal["auto", "sdpa", "flex"] = "auto"  # ATTENTION, see lvt.attention

    def __post_init__(self) -> None:
        if not self.blocks_d or len(self.blocks_e) != len(self.n_head_e) or len(self.blocks_d) != len(self.n_head_d):
            raise UserError("VT: BLOCKS_E and N_HEAD_E, BLOCKS_D and N_HEAD_D need one entry per layer")
        if any(size % 2 == 0 for size in self.kernel) or min(self.stride) < 1:
            raise UserError(f"VT: KERNEL must be odd and STRIDE positive, found {self.kernel} and {self.stride}")
        if min(self.nc, self.nv, self.d, self.da, self.de) < 1:
            raise UserError("VT: NC, NV, D, DA and DE must be positive")
        if self.share_p and self.share_embeddings:
            raise UserError("VT: SHARE_EMBEDDINGS needs SHARE_P False")
        if self.pad_value >= 0:
            raise UserError(f"VT: PAD_VALUE must be negative, found {self.pad_value}")

    @property
    def n_slices(self) -> int:
        """Slices of a clip, one for each offset of the stride."""
        return self.stride[0] * self.stride[1] * self.stride[2]


@dataclass(frozen=True)
class ConvNetConfig:
    """ENCODER or GENERATOR node: one half of the VQ-VAE."""

    name: str = ""
    in_channels: int = 1
    nf: int = 16  # width
    res_channels: int = 0  # width inside the residual blocks
    out_channels: int = 16  # the encoder's output always has NF channels
    norm: str = ""
    n_layers: int = 0  # residual blocks
    spectral: bool = False
    out_activation: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        if self.norm or self.spectral:
            raise UserError("NORM and SPECTRAL are not supported: no published model uses them, leave them empty")


@dataclass(frozen=True)
class CodebookConfig:
    """CODEBOOK node."""

    num: int = 1  # codebooks; each quantises DIM / NUM channels
    size: int = 512  # codes per codebook
    dim: int = 256  # channels of all codebooks together
    ema: bool = False  # codes follow the mean of their vectors, in place of gradients
    beta: float = 1.0  # weight of the commitment loss
    init_from_data: bool = True  # a fresh codebook starts from vectors of the first batch
    start_after: float = 0.0  # share of the training in which nothing is quantised yet
    restart_below: float = 0.0  # a code that gets fewer vectors per batch (running mean) is replaced; 0: never
    weights: str = ""

    def __post_init__(self) -> None:
        if self.num < 1 or self.dim % self.num:
            raise UserError(f"CODEBOOK: NUM {self.num} must divide DIM {self.dim}")
        if not 0 <= self.start_after < 1 or (self.start_after and not (self.ema and self.init_from_data)):
            raise UserError("CODEBOOK: START_AFTER is a share below 1, and needs EMA and INIT_FROM_DATA")


@dataclass(frozen=True)
class VQVAEConfig:
    """Shape and loss of a VQVAE."""

    encoder: ConvNetConfig
    generator: ConvNetConfig
    codebook: CodebookConfig
    pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    pixel_loss: Literal["l1", "l2"] = "l2"
    pixel_weight: float = 1.0
    perceptual_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.encoder.nf != self.codebook.dim or self.generator.in_channels != self.codebook.dim:
            raise UserError(
                f"ENCODER.NF {self.encoder.nf}, CODEBOOK.DIM {self.codebook.dim} and GENERATOR.IN_CHANNELS "
                f"{self.generator.in_channels} must be equal"
            )


def transformer_config(node: Mapping[str, Any]) -> TransformerConfig:
    """The config of a VT node, or of a configuration that holds one. Raises UserError for unknown keys."""
    for path in (("MODEL", "AUTOREGRESSIVE", "VT"), ("AUTOREGRESSIVE", "VT"), ("VT",)):
        found: Any = node
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            node = found
            break
    return from_dict(TransformerConfig, lower_keys(node, TransformerConfig, "VT"), "VT")


def vqvae_config(node: Mapping[str, Any]) -> VQVAEConfig:
    """The config of a MODEL node, or of a configuration that holds one. Raises UserError for unknown keys.

    The keys of the loss are read from LOSS.PIXEL and LOSS.PERCEPTUAL of a whole configuration, or from
    LOSS_PIXEL_MODE.
    """
    model = node.get("MODEL", node)
    try:
        halves = {name: model[name] for name in ("ENCODER", "GENERATOR", "CODEBOOK")}
    except KeyError as error:
        raise UserError(f"a VQVAE needs the node {error} in its configuration") from error
    pixel = node.get("LOSS", {}).get("PIXEL", {})
    perceptual = node.get("LOSS", {}).get("PERCEPTUAL", {})
    return VQVAEConfig(
        encoder=from_dict(ConvNetConfig, lower_keys(halves["ENCODER"], ConvNetConfig, "ENCODER")),
        generator=from_dict(ConvNetConfig, lower_keys(halves["GENERATOR"], ConvNetConfig, "GENERATOR")),
        codebook=from_dict(CodebookConfig, lower_keys(halves["CODEBOOK"], CodebookConfig, "CODEBOOK")),
        pixel_mean=tuple(model.get("PIXEL_MEAN", (0.5, 0.5, 0.5))),
        pixel_std=tuple(model.get("PIXEL_STD", (0.5, 0.5, 0.5))),
        pixel_loss=model.get("LOSS_PIXEL_MODE", pixel.get("MODE", "l2")),
        pixel_weight=float(pixel.get("LAMBDA", 1.0)),
        perceptual_weight=float(perceptual.get("LAMBDA", 0.0)),
    )


def lower_keys(node: Mapping[str, Any], kind: type, where: str) -> dict[str, Any]:
    """The node with the field names of `kind`. Raises UserError naming the nearest known key for an unknown one."""
    known = {entry.name.upper() for entry in fields(kind)}
    for key in node:
        if key not in known:
            raise unknown_key(f"{where}.{key}", [f"{where}.{name}" for name in known])
    return {key.lower(): value for key, value in node.items()}
