"""A clip through the networks in steps, with a state that its caller owns: any length in the memory of one step.

All that passes between frames goes through causal layers that remember one or two frames each, so the steps give what
the whole clip at once would. Steps are always of the same number of latents, however the frames arrive; so the results
do not depend on that, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizer3d.blocks import Memory
from tokenizer3d.latents import Latents
from tokenizer3d.networks import Decoder, Encoder
from tokenizer3d.tiles import Pieces, decode_tiles, decoder_halo, encode_tiles, encoder_halo
from videodata.errors import UserError

if TYPE_CHECKING:
    from tokenizer3d.config import Tokenizer3DConfig


@dataclass
class StreamState:
    """How far a stream of clips has come. `init_state` makes one; no model keeps anything of it.

    batch, height, width: of the clips. encoder, decoder: what the layers remember. frames: given to the encoder so far;
    decoded: given by the decoder so far. waiting: frames and latents that do not fill a step yet.
    """

    batch: int
    height: int
    width: int
    pieces: Pieces
    encoder: Memory
    decoder: Memory
    frames: int = 0
    decoded: int = 0
    raw: int = 0  # the same with those that stand for frames before the first
    waiting_frames: Tensor | None = None
    waiting_latents: Tensor | None = None

    def to(self, device: torch.device | str) -> StreamState:
        """A copy on another device; the stream can go on there, or from here once more."""

        def moved(memory: Memory) -> Memory:
            tensors = {name: tensor.to(device, copy=True) for name, tensor in memory.tensors.items()}
            return replace(memory, tensors=tensors, seen=dict(memory.seen))

        waiting = {
            name: None if value is None else value.to(device, copy=True)
            for name, value in (("waiting_frames", self.waiting_frames), ("waiting_latents", self.waiting_latents))
        }
        return replace(self, encoder=moved(self.encoder), decoder=moved(self.decoder), **waiting)


def encode_piece(encoder: Encoder, x: Tensor, memory: Memory, pieces: Pieces) -> Tensor:
    """A step of frames (B, T, H, W, 3) -> its moments (B, T/f, h, w, C)."""
    if pieces.tile is None:
        return encoder(x, memory)
    halo = encoder_halo(encoder.config) if pieces.halo is None else pieces.halo
    h = encode_tiles(encoder.levels, x, memory, pieces.tile, halo, encoder.config.spatial_factor)
    return encoder.middle(h, memory)


def decode_piece(
    decoder: Decoder, z: Tensor | None, memory: Memory, pieces: Pieces, size: tuple[int, int]
) -> Tensor | None:
    """A step of latents (B, T', h, w, z), or None after the last one -> the frames that are known by then, or None."""
    h = None if z is None else decoder.middle(z, memory)
    if pieces.tile is None:
        return decoder.levels(h, memory)
    halo = decoder_halo(decoder.config) if pieces.halo is None else pieces.halo
    return decode_tiles(decoder.levels, h, memory, pieces.tile, halo, decoder.config.spatial_factor, size)


def encode_clip(encoder: Encoder, x: Tensor, pieces: Pieces) -> Tensor:
    """A whole clip (B, 3, T, H, W), T a multiple of f -> its moments (B, C, T/f, h, w). In steps where it is causal."""
    config = encoder.config
    step = config.temporal_factor * pieces.step_latents if config.causal else x.shape[2]
    memory = Memory(rows=pieces.rows)
    parts = [encode_piece(encoder, inside(part), memory, pieces) for part in x.split(step, dim=2)]
    return outside(torch.cat(parts, dim=1))


def decode_clip(decoder: Decoder, z: Tensor, pieces: Pieces) -> Tensor:
    """Latents (B, z, T', h, w) -> all their frames (B, 3, f T', s h, s w), with those that stand before the first."""
    config = decoder.config
    memory = Memory(rows=pieces.rows)
    steps = [*z.split(pieces.step_latents if config.causal else z.shape[2], dim=2)]
    parts = [decode_piece(decoder, inside(part), memory, pieces, z.shape[3:]) for part in steps]
    memory.last = True
    if config.is_linear:
        parts.append(decode_piece(decoder, None, memory, pieces, z.shape[3:]))
    return outside(torch.cat([part for part in parts if part is not None], dim=1))


def inside(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B, T, H, W, C), as the networks take it."""
    return x.permute(0, 2, 3, 4, 1).contiguous()


def outside(x: Tensor) -> Tensor:
    """(B, T, H, W, C) -> (B, C, T, H, W)."""
    return x.permute(0, 4, 1, 2, 3).contiguous()


def pad_size(x: Tensor, factor: int) -> Tensor:
    """A clip (B, 3, T, H, W) whose last row and column are repeated up to multiples of `factor`."""
    bottom, right = -x.shape[3] % factor, -x.shape[4] % factor
    return F.pad(x, (0, right, 0, bottom, 0, 0), mode="replicate") if bottom or right else x


def repeat_frame(x: Tensor, index: int, count: int) -> Tensor:
    """`count` copies of a frame of a clip (B, 3, T, H, W)."""
    return x[:, :, index, None].expand(-1, -1, count, -1, -1)


class Streaming:
    """The streaming half of `Tokenizer3D`: it has the steps, and what is made of them."""

    config: Tokenizer3DConfig
    encoder: Encoder
    decoder: Decoder
    pieces: Pieces

    def init_state(self, batch: int, height: int, width: int, pieces: Pieces | None = None) -> StreamState:
        """The state of a stream of clips (batch, 3, any number of frames, height, width) before its first frame.

        Raises UserError for a model that is not causal: it cannot begin before it has the whole clip.
        """
        if not self.config.causal:
            raise UserError("a model that is not causal cannot stream: encode windows of frames, or take a causal one")
        if min(batch, height, width) < 1:
            raise UserError(f"a stream needs a batch and frames of at least 1, found {batch}, {height} x {width}")
        pieces = pieces or self.pieces
        memories = (Memory(rows=pieces.rows) for _ in range(2))
        return StreamState(batch, height, width, pieces, *memories)

    @torch.no_grad()
    def encode_step(self, x: Tensor, state: StreamState) -> Latents:
        """The next frames (B, 3, t, H, W), any t -> the latents that they complete, maybe none (T' = 0).

        The first frame makes a latent by itself, then every f frames do.
        """
        if x.dim() != 5 or x.shape[:2] + x.shape[3:] != (
            expected := (state.batch, self.config.in_channels, state.height, state.width)
        ):
            raise UserError(f"frames {tuple(x.shape)} do not fit the stream: (B, C, H, W) must be {expected}")
        if not x.shape[2]:
            return self.read_moments(self.encode_waiting(state, 0))
        x = pad_size(x.to(self.dtype), self.config.spatial_factor)
        if not state.frames:
            x = torch.cat([repeat_frame(x, 0, self.config.temporal_factor - 1), x], dim=2)
        state.frames += x.shape[2] if state.frames else x.shape[2] - self.config.temporal_factor + 1
        state.waiting_frames = x if state.waiting_frames is None else torch.cat([state.waiting_frames, x], dim=2)
        step = self.config.temporal_factor * state.pieces.step_latents
        return self.read_moments(self.encode_waiting(state, state.waiting_frames.shape[2] // step * step))

    def encode_waiting(self, state: StreamState, count: int) -> Tensor:
        """The moments (B, C, T', h, w) of the first `count` of the waiting frames."""
        step = self.config.temporal_factor * state.pieces.step_latents
        if not count:
            factor = self.config.spatial_factor
            size = (-(-state.height // factor), -(-state.width // factor))
            return torch.zeros(state.batch, self.config.moments, 0, *size, device=self.device)
        now, later = state.waiting_frames[:, :, :count], state.waiting_frames[:, :, count:]
        state.waiting_frames = later.clone() if later.shape[2] else None
        parts = [encode_piece(self.encoder, inside(part), state.encoder, state.pieces) for part in now.split(step, 2)]
        return outside(torch.cat(parts, dim=1))

    @torch.no_grad()
    def decode_step(self, z: Tensor | Latents, state: StreamState) -> Tensor:
        """The next latents (B, z, t, h, w), any t -> the frames (B, 3, T, H, W) that are known now, maybe none.

        Version 1.1 looks ahead: its frames come up to one latent later, the last ones from `flush`.
        """
        z = self.as_latents(z)
        if z.shape[0] != state.batch:
            raise UserError(f"latents of {z.shape[0]} clips do not fit a stream of {state.batch}")
        waiting = z if state.waiting_latents is None else torch.cat([state.waiting_latents, z], dim=2)
        count = waiting.shape[2] // state.pieces.step_latents * state.pieces.step_latents
        now, later = waiting[:, :, :count], waiting[:, :, count:]
        state.waiting_latents = later.clone() if later.shape[2] else None
        return self.decode_waiting(state, now, last=False)

    def decode_waiting(self, state: StreamState, z: Tensor, last: bool) -> Tensor:
        """The frames of latents (B, z, t, h, w), without those that stand before the first, cut to the clip's size."""
        size = tuple(-(-side // self.config.spatial_factor) for side in (state.height, state.width))
        steps: list[Tensor | None] = (
            [inside(part) for part in z.split(state.pieces.step_latents, 2)] if z.shape[2] else []
        )
        parts = [decode_piece(self.decoder, part, state.decoder, state.pieces, size) for part in steps]
        if last and self.config.is_linear:
            state.decoder.last = True
            parts.append(decode_piece(self.decoder, None, state.decoder, state.pieces, size))
        parts = [part for part in parts if part is not None]
        shape = (state.batch, 0, state.height, state.width, self.config.out_channels)
        clip = torch.cat(parts, dim=1) if parts else torch.zeros(shape, device=self.device, dtype=self.dtype)
        dropped = max(0, self.config.temporal_factor - 1 - state.raw)
        state.raw += clip.shape[1]
        clip = clip[:, dropped:, : state.height, : state.width]
        state.decoded += clip.shape[1]
        return outside(clip)

    @torch.no_grad()
    def flush(self, state: StreamState) -> Latents | Tensor:
        """The end of a stream: what is still to come.

        Frames after the last whole latent are completed by copies of the last one. Of a stream that was only encoded
        these are the latents; of one that was decoded too, their frames, cut to as many as were encoded; of one that
        was only decoded, the frames that waited for the next latent. The state cannot be used any further.
        """
        moments = None
        if state.waiting_frames is not None:
            missing = -state.waiting_frames.shape[2] % self.config.temporal_factor
            tail = repeat_frame(state.waiting_frames, -1, missing)
            state.waiting_frames = torch.cat([state.waiting_frames, tail], dim=2)
            moments = self.encode_waiting(state, state.waiting_frames.shape[2])
        if state.frames and not state.raw and state.waiting_latents is None:
            return self.read_moments(self.encode_waiting(state, 0) if moments is None else moments)
        parts = [] if moments is None else [self.read_moments(moments).mode().to(self.dtype)]
        if state.waiting_latents is not None:
            parts.insert(0, state.waiting_latents)
        size = tuple(-(-side // self.config.spatial_factor) for side in (state.height, state.width))
        empty = torch.zeros(state.batch, self.config.z_channels, 0, *size, device=self.device)
        before = state.decoded
        state.waiting_latents = None
        clip = self.decode_waiting(state, torch.cat(parts, dim=2) if parts else empty, last=True)
        return clip[:, :, : max(0, state.frames - before)] if state.frames else clip

    def encode_stream(self, frames: Iterable[Tensor], pieces: Pieces | None = None) -> Iterator[Latents]:
        """Latents of a clip that comes in parts (B, 3, t, H, W) or frame by frame (3, H, W), as they are complete.

        Frames after the last whole latent are completed by copies of the last frame.
        """
        state = None
        for part in frames:
            x = part[None, :, None] if part.dim() == 3 else part
            if state is None:
                state = self.init_state(x.shape[0], *x.shape[3:], pieces)
            latents = self.encode_step(x, state)
            if latents.mode().shape[2]:
                yield latents
        if state is not None and state.waiting_frames is not None:
            yield self.flush(state)

    def decode_stream(
        self,
        latents: Iterable[Tensor | Latents],
        num_frames: int | None = None,
        size: tuple[int, int] | None = None,
        pieces: Pieces | None = None,
    ) -> Iterator[Tensor]:
        """The clip (B, 3, t, H, W), part by part, of latents that come in parts; cut to num_frames and size."""
        state, left = None, num_frames
        for z in self.and_the_end(latents):
            if z is not None:
                z = self.as_latents(z)
            if state is None:
                if z is None:
                    return
                factor = self.config.spatial_factor
                state = self.init_state(z.shape[0], *(size or (z.shape[3] * factor, z.shape[4] * factor)), pieces)
            clip = self.flush(state) if z is None else self.decode_step(z, state)
            if left is not None:
                clip = clip[:, :, :left]
                left -= clip.shape[2]
            if clip.shape[2]:
                yield clip

    @staticmethod
    def and_the_end(items: Iterable) -> Iterator:
        """The items, then None."""
        yield from items
        yield None
