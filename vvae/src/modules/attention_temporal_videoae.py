"""Attention over time with relative positions, and attention of pixels to a caption.

Axes: B samples, C channels, T or t frames, H and W pixels, L text tokens, N sequences (one per pixel).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .utils import Slices, arrange, each, join

MAX_DISTANCE = 64  # frames; farther neighbours share the outermost row of the relative-position tables
TEXT_WIDTH = 1024  # of T5-large
HEADS, HEAD_WIDTH = 8, 64


class RelativePosition(nn.Module):
    """Learned vector for each signed distance between two frames (Shaw et al. 2018, arXiv 1803.02155)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embeddings_table = nn.Parameter(torch.empty(2 * MAX_DISTANCE + 1, width))
        nn.init.xavier_uniform_(self.embeddings_table)

    def forward(self, frames: int) -> Tensor:
        """(T, T, C): entry [i, j] belongs to the distance j - i."""
        position = torch.arange(frames, device=self.embeddings_table.device)
        distance = (position[None, :] - position[:, None]).clamp(-MAX_DISTANCE, MAX_DISTANCE)
        return self.embeddings_table[distance + MAX_DISTANCE]


class TemporalAttention(nn.Module):
    """Self-attention of each pixel over its T frames: one head, residual, zero at the start.

    The bias of the keys is transposed (query of frame j, distance i - j): the published weights were trained so.
    The norm takes its statistics per pixel, with eps 1e-5.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(32, channels), channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.relative_position_k = RelativePosition(channels)
        self.relative_position_v = RelativePosition(channels)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        for layer in (self.qkv, self.proj_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Slices) -> Slices:
        clip = join(x)  # (B, C, T, H, W)
        batch, _, _, height, _ = clip.shape
        pixels = clip.permute(0, 3, 4, 1, 2).flatten(0, 2)  # (N, C, T)
        pixels = pixels + self._attend(self.norm(pixels))
        clip = pixels.unflatten(0, (batch, height, -1)).permute(0, 3, 4, 1, 2)
        return [arrange(clip)]

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).transpose(1, 2).chunk(3, dim=-1)  # each (N, T, C)
        scale = q.shape[-1] ** -0.25
        q, k = q * scale, k * scale
        key_bias = self.relative_position_k(q.shape[1]).to(q)
        logits = q @ k.transpose(1, 2) + torch.einsum("njc,jic->nij", q, key_bias)  # (N, T, T)
        weights = logits.float().softmax(dim=-1).to(v.dtype)
        value_bias = self.relative_position_v(q.shape[1]).to(v)
        out = weights @ v + torch.einsum("nij,ijc->nic", weights, value_bias)
        return self.proj_out(out.transpose(1, 2))


class Text(NamedTuple):
    """A caption per sample, as the text encoder gives it."""

    embeddings: Tensor  # (B, L, 1024)
    bias: Tensor | None  # (B, 1, 1, L): 0 for tokens to attend to, the lowest finite number for padding


def mask_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Attention bias of a text mask (B, L), in which tokens above 0.5 are kept.

    Padding gets the lowest finite number and not -inf, so that a caption without any token is averaged, not NaN.
    """
    if mask is None:
        return None
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(mask <= 0.5, torch.finfo(dtype).min)[:, None, None, :]


class TextAttention(nn.Module):
    """Cross-attention of patches of `patch` x `patch` pixels, each one token, to the text; 8 heads, residual."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        width, inner = channels * patch * patch, HEADS * HEAD_WIDTH
        self.patch = patch
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(TEXT_WIDTH, inner, bias=False)
        self.to_v = nn.Linear(TEXT_WIDTH, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(self, x: Slices, text: Text) -> Slices:
        keys, values = (_heads(layer(text.embeddings)) for layer in (self.to_k, self.to_v))
        return each(lambda part: self._attend(part, keys, values, text.bias), x)

    def _attend(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        tokens, shape = self._patches(x)
        q = _heads(self.to_q(self.norm(tokens)))
        bias = None if bias is None else bias.to(q.dtype)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)  # (B, heads, tokens, 64)
        out = self.to_out(out.transpose(1, 2).flatten(2))
        return x + self._unpatch(out, shape)

    def _patches(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Frames -> tokens (B, t H/p W/p, p p C) in the order row, column, channel, and the shape before flattening."""
        cells = x.unflatten(4, (-1, self.patch)).unflatten(3, (-1, self.patch))  # (B, C, t, h, p, w, p)
        cells = cells.permute(0, 2, 3, 5, 4, 6, 1)  # (B, t, h, w, p, p, C)
        return cells.flatten(4).flatten(1, 3), cells.shape

    def _unpatch(self, tokens: Tensor, shape: tuple[int, ...]) -> Tensor:
        cells = tokens.reshape(shape).permute(0, 6, 1, 2, 4, 3, 5)  # (B, C, t, h, p, w, p)
        return cells.flatten(5).flatten(3, 4)


def _heads(tokens: Tensor) -> Tensor:
    """(B, L, 512) -> (B, 8, L, 64)."""
    return tokens.unflatten(-1, (HEADS, HEAD_WIDTH)).transpose(1, 2)
