"""Any clip size to one the model takes (frames a multiple of 4, sides multiples of 8), and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import VVAEError

FRAMES, PIXELS = 4, 8  # compression in time, and in height and width

Size = tuple[int, int, int]  # frames, height, width


def padded_length(length: int, multiple: int) -> int:
    """The next multiple that is not smaller."""
    return -(-length // multiple) * multiple


def pad_video(video: Tensor, image: bool = False) -> tuple[Tensor, Size]:
    """Repeat the last frame, row and column of a clip (B, C, T, H, W) up to the next size that the model takes.

    Returns the clip and its size before, for `crop_video`. image: the number of frames stays.
    """
    frames, height, width = video.shape[2:]
    missing_frames = 0 if image else padded_length(frames, FRAMES) - frames
    if missing_frames:
        last = video[:, :, -1:].expand(-1, -1, missing_frames, -1, -1)
        video = torch.cat([video, last], dim=2)
    bottom, right = padded_length(height, PIXELS) - height, padded_length(width, PIXELS) - width
    if bottom or right:
        video = F.pad(video, (0, right, 0, bottom, 0, 0), mode="replicate")
    return video, (frames, height, width)


def crop_video(video: Tensor, size: Size) -> Tensor:
    """Cut a padded clip (B, C, T, H, W) back to `size`."""
    frames, height, width = size
    return video[:, :, :frames, :height, :width]


def check_video(video: Tensor, image: bool = False) -> None:
    """Raises VVAEError, naming the number, unless the clip (B, 3, T, H, W) has a size that the model takes."""
    if video.dim() != 5 or video.shape[1] != 3:
        raise VVAEError(f"a clip must be (B, 3, T, H, W) or (3, T, H, W), found shape {tuple(video.shape)}")
    if not video.is_floating_point():
        raise VVAEError(f"a clip must be floating point in [-1, 1], found {video.dtype}; divide by 127.5, subtract 1")
    frames, height, width = video.shape[2:]
    if not image and (frames % FRAMES or frames == 0):
        raise VVAEError(f"the number of frames must be a multiple of {FRAMES}, found {frames}; pad_video makes it one")
    for name, length in (("height", height), ("width", width)):
        if length % PIXELS or length == 0:
            raise VVAEError(f"the {name} must be a multiple of {PIXELS}, found {length}; pad_video makes it one")
