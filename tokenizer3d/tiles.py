"""In which pieces a clip goes through the networks: steps in time, tiles of the frame, strips of rows. All are exact.

No layer but the attention in the middle mixes distant positions, so the levels around the middle can be computed tile
by tile, each with as much of its surroundings as a result depends on: the halo. Nothing is blended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from tokenizer3d.blocks import Memory
from tokenizer3d.config import Tokenizer3DConfig
from videodata.errors import UserError


@dataclass(frozen=True)
class Pieces:
    """Smaller pieces need less memory and change nothing, but for rounding.

    step_latents: latent frames per step; the results of one value are equal to the bit however a clip is fed, those of
    two values to 1e-4. rows: layers above the middle in strips of so many rows. tile: the levels in tiles whose sides
    are so many latents. halo: latents around a tile, for experiments; None: as many as the result depends on.
    """

    step_latents: int = 1
    rows: int | None = None
    tile: int | None = None
    halo: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("step_latents", 1), ("rows", 1), ("tile", 1), ("halo", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} {value}: must be at least {least}")


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in latents: what is computed (low to high), and the part of it that counts."""

    low: int
    start: int
    end: int
    high: int

    def inner(self, factor: int) -> slice:
        """The part that counts, inside the tile, where a latent is `factor` long."""
        return slice((self.start - self.low) * factor, (self.end - self.low) * factor)


def spans(length: int, tile: int, halo: int) -> Iterator[Span]:
    """Tiles along an axis."""
    for start in range(0, length, tile):
        end = min(start + tile, length)
        yield Span(max(0, start - halo), start, end, min(length, end + halo))


def encode_tiles(
    levels: Callable[[Tensor, Memory], Tensor], x: Tensor, memory: Memory, tile: int, halo: int, factor: int
) -> Tensor:
    """levels(x, memory) of a clip (B, T, H, W, 3), tile by tile: features (B, T/f, H/s, W/s, C)."""
    height, width = x.shape[2] // factor, x.shape[3] // factor
    out = None
    for number, (y, z) in enumerate(product(spans(height, tile, halo), spans(width, tile, halo))):
        rows = slice(y.low * factor, None if y.high == height else y.high * factor)
        columns = slice(z.low * factor, None if z.high == width else z.high * factor)
        part = levels(x[:, :, rows, columns], memory.scoped(f"tile{number}", memory.rows))
        if out is None:
            out = part.new_empty(*part.shape[:2], height, width, part.shape[4])
        out[:, :, y.start : y.end, z.start : z.end] = part[:, :, y.inner(1), z.inner(1)]
    return out


def decode_tiles(
    levels: Callable[[Tensor | None, Memory], Tensor | None],
    h: Tensor | None,
    memory: Memory,
    tile: int,
    halo: int,
    factor: int,
    size: tuple[int, int],
) -> Tensor | None:
    """levels(h, memory) of features (B, T', h, w, C), tile by tile: the clip (B, T, s h, s w, 3).

    h: None for no more frames. size: height and width of the frame in latents.
    """
    out = None
    for number, (y, z) in enumerate(product(spans(size[0], tile, halo), spans(size[1], tile, halo))):
        part = None if h is None else h[:, :, y.low : y.high, z.low : z.high]
        part = levels(part, memory.scoped(f"tile{number}", memory.rows))
        if part is None:
            continue
        if out is None:
            out = part.new_empty(*part.shape[:2], size[0] * factor, size[1] * factor, part.shape[4])
        rows, columns = slice(y.start * factor, y.end * factor), slice(z.start * factor, z.end * factor)
        out[:, :, rows, columns] = part[:, :, y.inner(factor), z.inner(factor)]
    return out


def encoder_halo(config: Tokenizer3DConfig) -> int:
    """Latents around a tile of the encoder on which its features depend: followed from them back to the pixels."""
    left = right = 0  # how far a feature sees, in positions of the level
    for level in reversed(range(len(config.ch_mult))):
        if level in config.time_down:
            left, right = left + 1, right + 1
        if level in config.space_down:  # positions 2i to 2i+2 make position i
            left, right = 2 * left, 2 * right + 2
        left, right = left + 2 * config.num_res_blocks, right + 2 * config.num_res_blocks
    factor = config.spatial_factor // config.patch_size  # of positions of level 0
    return -(-(max(left, right) + 1) // factor) + 1  # conv_in sees one more


def decoder_halo(config: Tokenizer3DConfig) -> int:
    """Latents around a tile of the decoder on which its pixels depend, followed the same way."""
    reach = 1  # of conv_out
    for level in range(len(config.ch_mult)):
        if level in config.time_up:
            reach += 1
        if level in config.space_up:  # a 3x3 convolution over pixels that occur twice
            reach = -(-(reach + 1) // 2)
        reach += 2 * (config.num_res_blocks + 1)
    return reach
