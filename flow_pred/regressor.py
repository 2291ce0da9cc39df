"""The network of both predictors: a transformer over latent tokens with skips from its first to its last blocks.

Axes: B batch, C channels of one latent frame, H W its sides, K frames of a state, N = H * W tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flow_pred.batch_norm import SharedBatchNorm2d
from training.attention import TransformerLayer
from training.conditions import ClassEmbedding
from videodata.errors import UserError

ROLES = ("river", "f", "d", "g")
CONDITIONS = ("random", "last")  # what RIVER sees: the last frame and a random earlier one, or the last K frames
HEADS = 8
DISTANCE_DIM = 256  # hidden width of the code of a frame distance
LARGEST_SIDE = 512  # rows and columns that the tables hold
TIME_SCALE = 200.0  # spreads path times in [0, 1] over the sinusoids


class ToTokens(nn.Module):
    """Map (B, C, H, W) -> tokens (B, N, C), row by row."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.flatten(2).transpose(1, 2)


class ToMap(nn.Module):
    """Tokens (B, N, C) -> map (B, C, H, W)."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, self.size)


class PositionEncoding(nn.Module):
    """Learned code of each place of a map: the column's half first, then the row's."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(LARGEST_SIDE, dim // 2)
        self.col_embed = nn.Embedding(LARGEST_SIDE, dim // 2)
        for table in (self.row_embed, self.col_embed):
            nn.init.uniform_(table.weight, -1, 1)

    def forward(self, height: int, width: int) -> Tensor:
        """Codes (h * w, D) of all places, row by row."""
        columns = self.col_embed.weight[:width].expand(height, -1, -1)  # (h, w, D/2)
        rows = self.row_embed.weight[:height, None].expand(-1, width, -1)  # (h, w, D/2)
        return torch.cat([columns, rows], dim=-1).flatten(0, 1)


def time_embedding(times: Tensor, dim: int) -> Tensor:
    """Sinusoidal code (B, D) of path times (B,) in [0, 1]: cosines first, a zero at the end if D is odd."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=times.device) / half
    angles = TIME_SCALE * times.float()[:, None] * 10000.0**-exponents
    code = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return nn.functional.pad(code, (0, dim % 2))


def check_resolution(latents: Tensor, state_res: tuple[int, int]) -> None:
    """Raises UserError for latents (B, C, H, W) of another size than the network's."""
    if latents.shape[-2:] != state_res:
        raise UserError(f"latents are {tuple(latents.shape[-2:])} and the network is made for state_res {state_res}")


class VectorFieldRegressor(nn.Module):
    """Velocity field of RIVER (role "river"), or flow "f", denoiser "d", log-diffusion "g" of the neural SDE.

    state_size: C. state_res: (H, W). role f, d and g read `num_input_frames` latent frames; f and g answer with the
    newest frame's values (B, C, H, W), d with those of all frames (B, K * C, H, W). out_norm: "ln" or "bn" head.
    reference: whether the RIVER field reads the frame before the one it predicts, beside a random earlier one.
    condition "last": it reads the last `num_input_frames` frames in place of both. classes: how many labels RIVER can
    be told; text_width: by embeddings of that width in place of a learned table. State-dict keys are those of the
    original; f, d and g carry the unused `time_projection` along. Sources: RIVER, arXiv 2211.14575; U-ViT, 2209.12152.
    """

    def __init__(
        self,
        state_size: int,
        state_res: Sequence[int],
        inner_dim: int,
        depth: int,
        mid_depth: int,
        out_norm: str = "ln",
        reference: bool = True,
        num_input_frames: int | None = None,
        role: str = "river",
        dropout: float = 0.05,
        checkpointing: bool = False,
        condition: str = "random",
        classes: int = 0,
        text_width: int = 0,
    ) -> None:
        super().__init__()
        check_role(role, condition, num_input_frames)
        check_arguments(out_norm, inner_dim)
        self.role, self.reference, self.condition, self.checkpointing = role, reference, condition, checkpointing
        self.num_input_frames = num_input_frames
        self.state_size, self.state_res, self.inner_dim = state_size, tuple(state_res), inner_dim
        count = frames_in(role, reference, condition, num_input_frames)
        frames_out = num_input_frames if role == "d" else 1
        self.position_encoding = PositionEncoding(inner_dim)
        self.project_in = nn.Sequential(ToTokens(), nn.Linear(count * state_size, inner_dim))
        self.time_projection = nn.Sequential(
            nn.Linear(1, DISTANCE_DIM), nn.ReLU(), nn.Linear(DISTANCE_DIM, inner_dim)
        )  # of the frame distance; the name is the original's
        self.class_code = class_code(classes, text_width, inner_dim)
        self.in_blocks = nn.ModuleList(layer(inner_dim, dropout) for _ in range(depth))
        self.mid_blocks = nn.ModuleList(layer(inner_dim, dropout) for _ in range(mid_depth))
        self.out_blocks = nn.ModuleList(
            nn.ModuleList([nn.Linear(2 * inner_dim, inner_dim), layer(inner_dim, dropout)]) for _ in range(depth)
        )
        self.project_out = head(inner_dim, frames_out * state_size, self.state_res, out_norm)

    def forward(
        self,
        input_latents: Tensor,
        reference_latents: Tensor | None = None,
        conditioning_latents: Tensor | None = None,
        index_distances: Tensor | None = None,
        timestamps: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """River: latents (B, C, H, W) each, distances (B,) >= 1 and path times (B,) in [0, 1] -> velocity (B, C, H, W).

        With condition "last" the reference is the last K frames (B, K * C, H, W), oldest first, and there are no
        conditioning latents and distances. labels (B,): numbers of classes; None: no class. Roles f, d and g: the
        state (B, K * C, H, W) alone, oldest frame first.
        """
        if self.role != "river":
            return self.project_out(self.transform(self.tokens(input_latents)))
        tokens = self.tokens(river_maps(self, input_latents, reference_latents, conditioning_latents))
        if self.condition == "random":
            distance = index_distances.to(tokens.dtype).log()[:, None]  # (B, 1)
            tokens = tokens + self.time_projection(distance)[:, None]
        time = time_embedding(timestamps, self.inner_dim).to(tokens.dtype)  # (B, D)
        if self.class_code is not None:
            time = time + self.class_code(class_or_none(self, labels, len(time)))
        return self.project_out(self.transform(torch.cat([time[:, None], tokens], dim=1))[:, 1:])

    def tokens(self, latents: Tensor) -> Tensor:
        """Projected tokens (B, N, D) with their position codes."""
        check_resolution(latents, self.state_res)
        return self.project_in(latents) + self.position_encoding(*self.state_res)

    def transform(self, tokens: Tensor) -> Tensor:
        """The transformer: (B, N, D) -> (B, N, D)."""
        skips = []
        for block in self.in_blocks:
            tokens = self.recompute(block, tokens)
            skips.append(tokens)
        for block in self.mid_blocks:
            tokens = self.recompute(block, tokens)
        for merge, block in self.out_blocks:
            tokens = self.recompute(block, merge(torch.cat([skips.pop(), tokens], dim=-1)))
        return tokens

    def recompute(self, block: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """Call the block, with `checkpointing` without keeping its inner values for the backward pass."""
        if self.checkpointing and self.training:
            return checkpoint(block, tokens, use_reentrant=False)
        return block(tokens)

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that the role uses."""
        used = self.role == "river" and self.condition == "random"
        unused = set() if used else set(self.time_projection.parameters())
        return [parameter for parameter in self.parameters() if parameter not in unused]

    def tables(self) -> list[nn.Parameter]:
        """Parameters that Muon must not take for matrices. (It always took those of places for some.)"""
        return tables_of(self.class_code)

    @property
    def last(self) -> nn.Conv2d:
        """The convolution that answers."""
        return self.project_out[-1]


def layer(dim: int, dropout: float) -> TransformerLayer:
    """Pre-norm transformer layer with exact GELU."""
    return TransformerLayer(dim, HEADS, 4 * dim, dropout)


def head(dim: int, channels: int, size: tuple[int, int], norm: str) -> nn.Sequential:
    """Tokens (B, N, D) -> map (B, channels, H, W)."""
    last = nn.Conv2d(dim, channels, 3, padding=1)
    if norm == "ln":
        return nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim), ToMap(*size), last)
    return nn.Sequential(nn.Linear(dim, dim), ToMap(*size), nn.GELU(), SharedBatchNorm2d(dim), last)


class TextEmbedding(nn.Module):
    """A projection of the pooled text embedding of each class, and a learned vector for none; as `ClassEmbedding`."""

    def __init__(self, classes: int, width: int, dim: int) -> None:
        super().__init__()
        self.none = classes
        self.register_buffer("texts", torch.zeros(classes, width))
        self.project = nn.Linear(width, dim)
        self.without = nn.Parameter(0.02 * torch.randn(1, dim))

    def forward(self, labels: Tensor) -> Tensor:
        """Labels (B,) int64 in [0, classes] -> (B, dim)."""
        return torch.cat([self.project(self.texts), self.without])[labels]


def class_code(classes: int, text_width: int, dim: int) -> nn.Module | None:
    """What turns labels into vectors; None for a network without classes."""
    if not classes:
        return None
    return TextEmbedding(classes, text_width, dim) if text_width else ClassEmbedding(classes, dim)


def tables_of(code: nn.Module | None) -> list[nn.Parameter]:
    """The parameters of a `class_code` that are no matrices, although they have two axes."""
    return [] if code is None else [code.without if isinstance(code, TextEmbedding) else code.table.weight]


def class_or_none(network: nn.Module, labels: Tensor | None, count: int) -> Tensor:
    """Labels (B,); without any, those of no class."""
    if labels is not None:
        return labels
    return torch.full((count,), network.class_code.none, device=next(network.parameters()).device)


def frames_in(role: str, reference: bool, condition: str, num_input_frames: int | None) -> int:
    """Latent frames that a network reads at once."""
    if role != "river":
        return num_input_frames
    if condition == "last":
        return 1 + num_input_frames
    return 3 if reference else 2


def river_maps(
    network: nn.Module, input_latents: Tensor, reference_latents: Tensor | None, conditioning_latents: Tensor | None
) -> Tensor:
    """What a RIVER field reads, one behind the other: the point on the path, and the frames that it may see."""
    if network.condition == "last":
        return torch.cat([input_latents, reference_latents], dim=1)
    reference = [reference_latents] if network.reference else []
    return torch.cat([input_latents, *reference, conditioning_latents], dim=1)


def check_role(role: str, condition: str, num_input_frames: Any) -> None:
    """Raises UserError for values that make no network."""
    if role not in ROLES:
        raise UserError(f"role must be one of {', '.join(ROLES)}, found {role!r}")
    if condition not in CONDITIONS:
        raise UserError(f"condition must be one of {', '.join(CONDITIONS)}, found {condition!r}")
    if (role != "river" or condition == "last") and (num_input_frames or 0) < 1:
        what = f"role {role!r}" if role != "river" else "condition 'last'"
        raise UserError(f"{what} needs num_input_frames >= 1, found {num_input_frames}")


def check_arguments(out_norm: str, inner_dim: int) -> None:
    """Raises UserError for values that make no transformer."""
    if out_norm not in ("ln", "bn"):
        raise UserError(f"out_norm must be ln or bn, found {out_norm!r}")
    if inner_dim % HEADS:
        raise UserError(f"inner_dim must be a multiple of {HEADS}, found {inner_dim}")
