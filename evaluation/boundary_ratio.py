"""Whether the borders of temporal windows show in a reconstruction: the change of its error across them, against that
inside. 1 means that borders do not show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
from torch import Tensor

from evaluation.clips import unit_pair


def boundary_ratio(
    original: Tensor | np.ndarray,
    reconstruction: Tensor | np.ndarray,
    window: int,
    value_range: tuple[float, float] = (-1.0, 1.0),
    quantize: bool = True,
) -> list[float]:
    """Per clip, the ratio for borders after every `window` frames; nan where there is no border or no change.

    Clips are as for `psnr`.
    """
    a, b = unit_pair(original, reconstruction, value_range, quantize)
    jumps = (b - a).diff(dim=1).abs().mean(dim=(2, 3, 4))  # (B, T - 1)
    ratios = (ratio_of_jumps(row, window) for row in jumps.tolist())
    return [math.nan if ratio is None else ratio for ratio in ratios]


def ratio_of_jumps(jumps: Sequence[float], window: int) -> float | None:
    """Mean change of the error at window borders over that elsewhere; jumps[t] is from frame t to frame t + 1.

    None where there is no border, or nothing else.
    """
    if window < 2:
        return None
    borders = [jump for index, jump in enumerate(jumps, start=1) if index % window == 0]
    inside = [jump for index, jump in enumerate(jumps, start=1) if index % window]
    return fmean(borders) / fmean(inside) if borders and inside and fmean(inside) > 0 else None
