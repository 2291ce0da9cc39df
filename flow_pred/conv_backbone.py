"""The network of both predictors for small latents: residual convolutions in place of the transformer.

On maps of 8x8 it sees three times as many clips in the same time, and motion is a matter of neighbours. It is called
like `VectorFieldRegressor`. Axes: B batch, C channels of one latent frame, H W its sides, K frames, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flow_pred.regressor import (
    DISTANCE_DIM,
    check_resolution,
    check_role,
    class_code,
    class_or_none,
    frames_in,
    river_maps,
    tables_of,
    time_embedding,
)
from videodata.errors import UserError

GROUPS = 8


class ConvRegressor(nn.Module):
    """Velocity field of RIVER (role "river"), or flow "f", denoiser "d", log-diffusion "g" of the neural SDE.

    `depth` residual blocks of width `inner_dim` at the latents' resolution. The code of path time (and of frame
    distance) is added between their convolutions, as in DDPM (Ho et al. 2020, arXiv 2006.11239). The last convolution
    of each block and of the network start at 0: the untrained answer is 0. Other arguments: as for
    VectorFieldRegressor.
    """

    def __init__(
        self,
        state_size: int,
        state_res: Sequence[int],
        inner_dim: int,
        depth: int,
        reference: bool = True,
        num_input_frames: int | None = None,
        role: str = "river",
        condition: str = "random",
        dropout: float = 0.0,
        checkpointing: bool = False,
        classes: int = 0,
        text_width: int = 0,
    ) -> None:
        super().__init__()
        check_role(role, condition, num_input_frames)
        if inner_dim % GROUPS:
            raise UserError(f"inner_dim must be a multiple of {GROUPS}, found {inner_dim}")
        self.role, self.reference, self.condition, self.checkpointing = role, reference, condition, checkpointing
        self.num_input_frames, self.inner_dim = num_input_frames, inner_dim
        self.state_size, self.state_res = state_size, tuple(state_res)
        count = frames_in(role, reference, condition, num_input_frames)
        self.project_in = nn.Conv2d(count * state_size, inner_dim, 3, padding=1)
        self.position = nn.Parameter(0.1 * torch.randn(inner_dim, *self.state_res))
        if role == "river":
            self.time_code = nn.Sequential(nn.Linear(inner_dim, inner_dim), nn.SiLU(), nn.Linear(inner_dim, inner_dim))
        if role == "river" and condition == "random":
            self.distance_code = nn.Sequential(
                nn.Linear(1, DISTANCE_DIM), nn.ReLU(), nn.Linear(DISTANCE_DIM, inner_dim)
            )
        self.class_code = class_code(classes, text_width, inner_dim)
        self.blocks = nn.ModuleList(ConvBlock(inner_dim, dropout) for _ in range(depth))
        self.out_norm = nn.GroupNorm(1, inner_dim)
        self.project_out = zero_convolution(inner_dim, state_size * (num_input_frames if role == "d" else 1))
        self.to(memory_format=torch.channels_last)  # what narrow convolutions are fastest in

    def forward(
        self,
        input_latents: Tensor,
        reference_latents: Tensor | None = None,
        conditioning_latents: Tensor | None = None,
        index_distances: Tensor | None = None,
        timestamps: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """As VectorFieldRegressor: latents -> (B, C, H, W), or (B, K * C, H, W) for role d."""
        maps, code = input_latents, None
        if self.role == "river":
            maps = river_maps(self, input_latents, reference_latents, conditioning_latents)
            code = self.code(index_distances, timestamps, labels)[:, :, None, None]
        check_resolution(maps, self.state_res)
        x = self.project_in(maps.contiguous(memory_format=torch.channels_last)) + self.position
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, code, use_reentrant=False)
            else:
                x = block(x, code)
        return self.project_out(F.silu(self.out_norm(x)))

    def code(self, distances: Tensor | None, times: Tensor, labels: Tensor | None) -> Tensor:
        """What all places of a map are told, (B, D)."""
        code = self.time_code(time_embedding(times, self.inner_dim))
        if self.condition == "random":
            code = code + self.distance_code(distances.float().log()[:, None])
        if self.class_code is not None:
            code = code + self.class_code(class_or_none(self, labels, len(times)))
        return code

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that the role uses: all of them."""
        return list(self.parameters())

    def tables(self) -> list[nn.Parameter]:
        """Parameters that are read place by place, which Muon must not take for matrices."""
        return [self.position, *tables_of(self.class_code)]

    @property
    def last(self) -> nn.Conv2d:
        """The convolution that answers."""
        return self.project_out


class ConvBlock(nn.Module):
    """(B, D, H, W) -> the same: two convolutions, each after a group norm, the code between them, and a shortcut."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, dim), nn.Conv2d(dim, dim, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, dim), zero_convolution(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, code: Tensor | None) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = y if code is None else y + code
        return x + self.conv2(self.dropout(F.silu(self.norm2(y))))


def zero_convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3x3 convolution that starts as 0."""
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    return convolution
