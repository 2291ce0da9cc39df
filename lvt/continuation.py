"""From given frames to clips: encode, let the transformer continue the codes, decode.

Axes: B clips, S samples, C codebooks, (T, h, w) clip of codes, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lvt.generate import generate_codes, generate_long
from lvt.transformer import VideoTransformer
from lvt.vqvae import VQVAE


@torch.no_grad()
def encode_clips(vqvae: VQVAE, clips: Tensor) -> Tensor:
    """uint8 clips (B, 3, T, H, W) -> codes int64 (B, C, T, h, w)."""
    codes = vqvae.encode(clips.transpose(1, 2))  # (B, T, C, h, w), or (B, T, h, w) for one codebook
    return codes[:, None] if codes.ndim == 4 else codes.transpose(1, 2)


@torch.no_grad()
def decode_clips(vqvae: VQVAE, codes: Tensor) -> Tensor:
    """Codes int64 (B, C, T, h, w) -> clips (B, 3, T, H, W) in [-1, 1]."""
    frames = codes.transpose(1, 2)  # (B, T, C, h, w)
    if vqvae.config.codebook.num == 1:
        frames = frames[:, :, 0]
    pixels = torch.stack([vqvae.denormalize(vqvae.decode(clip)) for clip in frames])  # (B, T, 3, H, W) in [0, 1]
    return (2 * pixels - 1).transpose(1, 2)


def continue_codes(
    transformer: VideoTransformer, codes: Tensor, n_prime: int, frames: int, window: int, **options: object
) -> Tensor:
    """Clips of `frames` frames of codes that begin with the first `n_prime` of codes (B, C, >= n_prime, h, w).

    Longer clips than `window` are made window by window. options: as for `generate_codes`.
    """
    if frames > window:
        return generate_long(transformer, codes, n_prime, frames, window, **options)
    room = codes.new_zeros(*codes.shape[:2], frames, *codes.shape[3:])
    room[:, :, :n_prime] = codes[:, :, :n_prime]
    return generate_codes(transformer, room, n_prime, **options)


def sample_frames(
    transformer: VideoTransformer, vqvae: VQVAE, codes: Tensor, n_prime: int, frames: int, *,
    window: int | None = None, seeds: Sequence[int], class_index: Tensor | None = None, **options: object,
) -> Tensor:  # fmt: skip
    """Decoded continuations (B, 3, frames, H, W) in [-1, 1], given frames included (as their reconstructions).

    codes int64 (B, C, >= n_prime, h, w); seeds: one per clip; window: see `continue_codes` (default: all frames).
    """
    made = continue_codes(
        transformer, codes, n_prime, frames, window or frames, seeds=list(seeds), class_idx=class_index, **options
    )
    return decode_clips(vqvae, made)
