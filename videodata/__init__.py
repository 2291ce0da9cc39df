"""Everything between a video on disk and a clip tensor, and back to a file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videodata.clips import open_clips
    from videodata.errors import UserError, VideoError
    from videodata.pixels import to_float, to_uint8
    from videodata.video import iter_frames, probe, read_video
    from videodata.write_video import write_video

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

_MODULES = {
    "clips": ("open_clips",),
    "errors": ("UserError", "VideoError"),
    "pixels": ("to_float", "to_uint8"),
    "video": ("iter_frames", "probe", "read_video"),
    "write_video": ("write_video",),
}


def __getattr__(name: str) -> object:
    """Import on first use: processes that only decode start without torch, ten times faster."""
    for module, names in _MODULES.items():
        if name in names:
            globals().update({each: getattr(import_module(f"videodata.{module}"), each) for each in names})
            return globals()[name]
    raise AttributeError(f"module 'videodata' has no attribute {name!r}")
