"""Pictures of a run as files: PNG strips, and clips as videos."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from videodata.write_video import write_video

FRAMES_PER_SECOND = Fraction(8)


def write_pictures(folder: Path, pictures: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Write each entry as <name>.png, clips as <name>.mp4 too; gives the strips, uint8 (H, W, 3).

    Entries are frames (N, 3, H, W), shown side by side, or clips (N, 3, T, H, W), one row each, in [-1, 1].
    """
    folder.mkdir(parents=True, exist_ok=True)
    strips = {}
    for name, values in pictures.items():
        pixels = to_pixels(values)
        strips[name] = strip(pixels)
        temporary = folder / f".{name}.tmp.png"
        Image.fromarray(strips[name]).save(temporary)
        temporary.replace(folder / f"{name}.png")
        if pixels.ndim == 5:
            write_video(folder / f"{name}.mp4", side_by_side(pixels), FRAMES_PER_SECOND)
    return strips


def to_pixels(values: Tensor) -> np.ndarray:
    """[-1, 1] channels first -> uint8 channels last, rounded and clamped."""
    if values.ndim not in (4, 5) or values.shape[1] != 3:
        raise ValueError(f"pictures have shape (N, 3, H, W) or (N, 3, T, H, W), not {tuple(values.shape)}")
    pixels = ((values.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return pixels.byte().movedim(1, -1).cpu().numpy()  # (N, H, W, 3) or (N, T, H, W, 3)


def strip(pixels: np.ndarray) -> np.ndarray:
    """Frames (N, H, W, 3) as one row; clips (N, T, H, W, 3) as N rows of T frames."""
    if pixels.ndim == 4:
        return np.concatenate(list(pixels), axis=1)
    return np.concatenate([np.concatenate(list(clip), axis=1) for clip in pixels], axis=0)


def side_by_side(pixels: np.ndarray) -> np.ndarray:
    """Clips (N, T, H, W, 3) as one clip (T, H, N * W, 3)."""
    return np.concatenate(list(pixels), axis=2)
