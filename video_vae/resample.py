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
    """Half the resolution, one level up the pyramid."""
    return Resample(nn.Conv2d(dim_in, dim_out, 3, stride=2, padding=1, bias=False), dim_out)


def up(dim_in: int, dim_out: int) -> Resample:
    """Twice the resolution, one level down. Kernel 4 divides by the stride, so that it leaves no checkerboard."""
    return Resample(nn.ConvTranspose2d(dim_in, dim_out, 4, stride=2, padding=1, bias=False), dim_out)
