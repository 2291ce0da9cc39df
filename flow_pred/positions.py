"""Where a token is on the latent map, and when on the path from noise to frame: the two codes of the regressor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST_SIDE = 512  # rows and columns that the tables hold
TIME_SCALE = 200.0  # spreads path times in [0, 1] over the sinusoids


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
