"""Everything between a video on disk and a clip tensor, and back to a file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from videodata.errors import UserError, VideoError
from videodata.video import iter_frames, probe, read_video
from videodata.write_video import write_video

if TYPE_CHECKING:
    from videodata.clips import open_clips
    from videodata.pixels import to_float, to_uint8

__all__ = [
    "UserError",
    "VideoError",
    "iter_frames",
    "open_clips",
    "probe",
    "read_video",
    "to_float",
    "to_uint8",
    "write_video",
]

# These need torch. The processes that only decode videos start without it, several times faster.
_MODULES = {"open_clips": "clips", "to_float": "pixels", "to_uint8": "pixels"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'videodata' has no attribute {name!r}")
    return getattr(import_module(f"videodata.{_MODULES[name]}"), name)
