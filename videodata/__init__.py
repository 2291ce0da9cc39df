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
    from videodata.splits import declared_splits

__all__ = [
    "UserError",
    "VideoError",
    "declared_splits",
    "iter_frames",
    "open_clips",
    "probe",
    "read_video",
    "to_float",
    "to_uint8",
    "write_video",
]

# These need torch, or bring every kind of source with them. A script's --help needs neither, and the processes that
# only decode videos start without torch, several times faster.
_MODULES = {"declared_splits": "splits", "open_clips": "clips", "to_float": "pixels", "to_uint8": "pixels"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'videodata' has no attribute {name!r}")
    return getattr(import_module(f"videodata.{_MODULES[name]}"), name)
