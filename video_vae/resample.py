"""Steps between neighbouring levels, on maps with channels last."""

from __future__ import annotations

from torch import Tensor, nn


class Resample(nn.Module):
    """A convolution, LayerNorm over channels, GELU: map (B, h, w, dim_in) -> (B, h', w', dim_out)."""

    def __init__(self, convolution: nn.Module, dim: int) -> None:
        super().__init__()
        self.convolution = convolution
        self.activation = nn.Sequential(nn.LayerNorm(dim), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x.permute(0, 3, 1, 2))  # the permuted view is channels_last: nothing is copied
        return self.activation(x.permute(0, 2, 3, 1))


def down(dim_in: int, dim_out: int) -> Resample:
    """Half the resolution, one level up the pyramid: one token from four."""
    return Resample(nn.Conv2d(dim_in, dim_out, 2, stride=2, bias=False), dim_out)


def up(dim_in: int, dim_out: int) -> Resample:
    """Twice the resolution, one level down: four tokens from one, at a quarter of a transposed convolution's cost."""
    return Resample(nn.Sequential(nn.Conv2d(dim_in, 4 * dim_out, 1, bias=False), nn.PixelShuffle(2)), dim_out)
