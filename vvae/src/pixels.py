"""8-bit frames to clips and back: the one place of this package that converts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_clip(frames: np.ndarray | list[np.ndarray]) -> Tensor:
    """Frames uint8 (T, H, W, 3) -> clip float32 (3, T, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(np.stack(frames) if isinstance(frames, list) else frames))
    return pixels.permute(3, 0, 1, 2).to(torch.float32) / 127.5 - 1.0


def to_frames(clip: Tensor) -> np.ndarray:
    """Clip float (3, T, H, W) in [-1, 1] -> frames uint8 (T, H, W, 3): rounded to the nearest level, then clamped."""
    pixels = ((clip.detach().float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).contiguous().cpu().numpy()
