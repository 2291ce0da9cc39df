"""Everything between a video on disk and a clip tensor, and back to a file."""

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
