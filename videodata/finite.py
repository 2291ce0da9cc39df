"""Whether what a network gives are numbers: looked at where it is quantised, rounded to 8 bit, stored or scored.

For NaN, too, there is a nearest code and a grey level, which look like any other: afterwards nobody can tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from videodata.errors import UserError

HALF_ADVICE = "half precision may overflow: try --precision bf16 or fp32; else "
_looking = True


def finite(values: Tensor, what: str) -> Tensor:
    """The values themselves. Raises UserError, with advice for half precision, unless all of them are finite."""
    if not _looking or bool(values.isfinite().all()):
        return values
    bad = values.numel() - int(values.isfinite().sum())
    kind = values.device.type
    is_half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    advice = HALF_ADVICE if is_half or values.dtype == torch.float16 else ""
    raise UserError(
        f"{what}: {bad} of {values.numel()} values are not finite (NaN or infinite); {advice}the weights are damaged "
        "or their training has diverged: use another checkpoint"
    )


@contextmanager
def guarded_elsewhere() -> Iterator[None]:
    """Let everything pass in the block: a training skips its non-finite steps by itself, and its pictures end nothing.

    There, `finite` does not wait for the device either.
    """
    global _looking
    before, _looking = _looking, False
    try:
        yield
    finally:
        _looking = before
