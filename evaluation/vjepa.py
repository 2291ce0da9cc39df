"""The feature network of JEDi: the encoder of V-JEPA (Bardes et al. 2024, arXiv 2404.08471), a ViT-H/16 of clips, and
the pooler of the attentive probe that was trained on Something-Something v2.

Module names follow the two published files, so that they load by name. The files are CC BY-NC 4.0.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from losses.perceptual import IMAGENET_MEAN, IMAGENET_STD
from losses.weights import WEIGHT_FILES, find_weights, look_for
from videodata.errors import UserError
from videodata.files import atomic_path

logger = logging.getLogger(__name__)

PACKED = "vjepa-h16-ssv2.safetensors"  # encoder and pooler alone, by scripts/pack_vjepa.py
PATCH, TUBELET = 16, 2  # pixels and frames of a token
ENCODERS = ("target_encoder", "encoder")  # the averaged weights first: they are those that were evaluated
WRAPPERS = ("module.", "backbone.")  # of names, by what the networks were trained in
UNUSED = ("linear.weight", "linear.bias")  # of the probe: the classifier


@dataclass(frozen=True)
class Architecture:
    """Sizes of encoder and pooler; frames and side: of the clips whose table of positions the file holds."""

    width: int = 1280
    depth: int = 32
    heads: int = 16
    frames: int = 16
    side: int = 224
    classes: int = 174

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        return self.frames // TUBELET, self.side // PATCH, self.side // PATCH


HUGE = Architecture()


def position_table(width: int, grid: tuple[int, int, int]) -> Tensor:
    """Fixed positions of tokens in the order (t, y, x), float32 (1, tokens, width).

    Of each axis sines, then cosines, of a third of the channels, rounded up to even; the last are cut off.
    """
    channels = 2 * math.ceil(width / 6)
    rates = 10000 ** -(torch.arange(channels // 2, dtype=torch.float64) / (channels // 2))
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * rates for axis in axes]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return table[None, :, :width].float()


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, values: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(values)))


class Attention(nn.Module):
    """Self-attention, scale by the root of the head's width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(tokens).chunk(3, dim=-1))
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Of few queries to all tokens; keys stand before values in the shared projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        query = split_heads(self.q(queries), self.heads)
        key, value = (split_heads(part, self.heads) for part in self.kv(tokens).chunk(2, dim=-1))
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def split_heads(values: Tensor, heads: int) -> Tensor:
    """(B, N, width) -> (B, heads, N, width / heads)."""
    return values.unflatten(-1, (heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """A layer of the encoder, norms before both parts."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads), MLP(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class PatchEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        kernel = (TUBELET, PATCH, PATCH)
        self.proj = nn.Conv3d(3, width, kernel, kernel)

    def forward(self, clips: Tensor) -> Tensor:
        return self.proj(clips).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Normalised clips (B, 3, T, H, W) -> tokens (B, T/2 * H/16 * W/16, width)."""

    def __init__(self, shape: Architecture = HUGE) -> None:
        super().__init__()
        self.grid = shape.grid
        self.patch_embed = PatchEmbedding(shape.width)
        self.register_buffer("pos_embed", position_table(shape.width, shape.grid))
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)

    def forward(self, clips: Tensor) -> Tensor:
        """Raises ValueError for sizes that would lose the last frame or pixels at the border."""
        frames, height, width = clips.shape[2:]
        if frames < TUBELET or frames % TUBELET or height % PATCH or width % PATCH:
            raise ValueError(
                f"V-JEPA takes an even number of frames and sides that are multiples of {PATCH}, "
                f"got {frames} of {height}x{width}"
            )
        tokens = self.patch_embed(clips) + self.positions((frames // TUBELET, height // PATCH, width // PATCH))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        """The table for another number of tokens, by trilinear interpolation.

        To whole sizes: by a factor, the size that is computed of it is one too small here and there.
        """
        if grid == self.grid:
            return self.pos_embed
        table = self.pos_embed.unflatten(1, self.grid).permute(0, 4, 1, 2, 3)
        return F.interpolate(table, size=grid, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)


class CrossAttentionBlock(nn.Module):
    """The query stays without norm; norms have PyTorch's epsilon, ten times that of the encoder."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
        self.xattn, self.mlp = CrossAttention(width, heads), MLP(width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        queries = queries + self.xattn(queries, self.norm1(tokens))
        return queries + self.mlp(self.norm2(queries))


class Pooler(nn.Module):
    """Tokens (B, N, width) -> (B, width), by what one learned query finds in them."""

    def __init__(self, shape: Architecture = HUGE) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.cross_attention_block = CrossAttentionBlock(shape.width, shape.heads)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.cross_attention_block(self.query_tokens.expand(len(tokens), -1, -1), tokens)[:, 0]


class Probe(nn.Module):
    """What the probe's file holds; only the pooler is used."""

    def __init__(self, shape: Architecture = HUGE) -> None:
        super().__init__()
        self.pooler = Pooler(shape)
        self.linear = nn.Linear(shape.width, shape.classes)


class VJEPA(nn.Module):
    """Clips (B, 3, T, H, W) in [-1, 1] -> features (B, width)."""

    def __init__(self, shape: Architecture = HUGE) -> None:
        super().__init__()
        self.encoder, self.pooler = Encoder(shape), Pooler(shape)

    def forward(self, clips: Tensor) -> Tensor:
        mean, deviation = (
            torch.tensor(values, device=clips.device).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        return self.pooler(self.encoder(((clips + 1) / 2 - mean) / deviation))


def find_vjepa(name: str = "vjepa", path: Path | str | None = None, download: bool = False) -> Path | tuple[Path, Path]:
    """The packed file, or the two published ones: those that `path` is or holds, else those that are found by name.

    `path`: a file, of the published ones the encoder's, or a folder. Raises UserError.
    """
    place, probe = None if path is None else Path(path), f"{name}-probe"
    if place is not None and place.is_file():
        is_packed = place.suffix == ".safetensors"
        return place if is_packed else (place, find_weights(probe, place.parent, download))
    published = place is not None and (place / WEIGHT_FILES[name].filename).is_file()
    packed = look_for(PACKED, path)
    if packed and (packed.parent == place or not published):
        return packed
    return find_weights(name, path, download), find_weights(probe, path, download)


def load_vjepa(files: Sequence[Path], shape: Architecture = HUGE) -> VJEPA:
    """The network from the packed file, or from those of encoder and probe. Raises UserError for others."""
    from training.checkpoint import read_tensors, strict_load

    state = read_tensors(files[0]) if len(files) == 1 else state_of(*files, shape)
    with torch.device("meta"):  # the weights are drawn for nothing otherwise, which takes longer than to read them
        network = VJEPA(shape)
    network = network.to_empty(device="cpu")
    strict_load(network, state, files[0])
    return network.eval().requires_grad_(False)


def state_of(encoder: Path, probe: Path, shape: Architecture = HUGE) -> dict[str, Tensor]:
    """The weights of `VJEPA` from the published files; both must hold what they should, and nothing else.

    Raises UserError.
    """
    from training.checkpoint import mismatch_report, read_tensors

    content = read_tensors(encoder, mapped=True)
    key = next((key for key in ENCODERS if isinstance(content.get(key), dict)), None)
    if key is None:
        raise UserError(f"{encoder}: holds no {' or '.join(ENCODERS)}: not a checkpoint of V-JEPA's training")
    stored = read_tensors(probe)
    classifier = stored.get("classifier")
    if not isinstance(classifier, dict):
        raise UserError(f"{probe}: holds no classifier: not an attentive probe of V-JEPA")
    parts = {encoder: (Encoder, unwrapped(content[key])), probe: (Probe, unwrapped(classifier))}
    for path, (kind, state) in parts.items():
        with torch.device("meta"):
            report = mismatch_report(kind(shape), state)
        if report:
            raise UserError(f"{path} does not fit the model: {report}")
    logger.info("V-JEPA: encoder of epoch %s, probe of epoch %s", content.get("epoch"), stored.get("epoch"))
    found = {f"encoder.{name}": value for name, value in parts[encoder][1].items()}
    return found | {name: value for name, value in parts[probe][1].items() if name not in UNUSED}


def unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """The same by the names that a network alone has."""
    found = {}
    for name, value in state.items():
        for prefix in WRAPPERS:
            name = name.removeprefix(prefix)
        found[name] = value
    return found


def pack(encoder: Path, probe: Path, folder: Path, shape: Architecture = HUGE) -> Path:
    """Write what JEDi needs of the published files as PACKED into a folder, whole or not at all. Raises UserError."""
    tensors = {name: value.float().contiguous() for name, value in state_of(encoder, probe, shape).items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PACKED
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
    return path
