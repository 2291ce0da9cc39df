"""Everything between a video on disk and a clip tensor, and back to a file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from videodata.errors import UserError, VideoError

if TYPE_CHECKING:
    from videodata.clips import open_clips
    from videodata.encode import write_video
    from videodata.pixels import to_float, to_uint8
    from videodata.splits import declared_splits
    from videodata.video import iter_frames, probe, read_video

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

# Brought in when they are asked for: a script's --help needs neither numpy nor the codecs, and the processes that only
# decode videos start without torch, several times faster. No module may have the name of a function of this list: its
# import would put the module in the function's place.
_MODULES = {
    "declared_splits": "splits",
    "iter_frames": "video",
    "open_clips": "clips",
    "probe": "video",
    "read_video": "video",
    "to_float": "pixels",
    "to_uint8": "pixels",
    "write_video": "encode",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'videodata' has no attribute {name!r}")
    return getattr(import_module(f"videodata.{_MODULES[name]}"), name)
