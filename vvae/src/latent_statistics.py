"""Mean and standard deviation of latents per channel, for models that are trained on them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import VVAEError
from .latent_files import open_latents


def latent_statistics(paths: Iterable[str | Path]) -> dict[str, Any]:
    """`latents_mean`, `latents_std` (per channel) and `scaling_factor` (1 / overall deviation) over latent files.

    One pass in float64. Raises VVAEError when the files differ in the number of channels or hold nothing.
    """
    count, total, square = 0, 0.0, 0.0
    for path in paths:
        with open_latents(path) as (_, frames):
            for frame in frames:  # (z, h, w)
                values = frame.reshape(len(frame), -1).astype(np.float64)
                if count and len(values) != len(total):
                    raise VVAEError(f"{path}: has {len(values)} channels, the files before it {len(total)}")
                count += values.shape[1]
                total = total + values.sum(axis=1)
                square = square + np.square(values).sum(axis=1)
    if not count:
        raise VVAEError("no latents found")
    mean = total / count
    variance = np.maximum(square / count - mean**2, 0.0)
    overall = np.sqrt(np.mean(variance + mean**2) - np.mean(mean) ** 2)
    return {
        "latents_mean": mean.tolist(),
        "latents_std": np.sqrt(variance).tolist(),
        "scaling_factor": float(1.0 / overall) if overall > 0 else 1.0,
    }
