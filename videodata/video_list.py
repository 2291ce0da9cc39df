"""Which videos of a folder are prepared, in which order, and what their names say."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from videodata import ucf101
from videodata.errors import UserError
from videodata.folder_scan import find_files
from videodata.video import VIDEO_SUFFIXES


@dataclass(frozen=True)
class InputVideo:
    """One video, or a stretch of one. `group` is what must not be divided between training and validation."""

    path: Path
    id: str
    label: str | None
    group: str
    start: int = 0  # first frame that is taken
    stop: int | None = None  # and the one after the last; None: to the end
    split: str | None = None  # the part of the data set that it belongs to
    source: str | None = None  # what it is called where it comes from, if the id does not say so
    stamp: str | None = None  # changes when the content does; None: the size of the file is looked up
    limit: int | None = None  # frames that are enough; None: all of the stretch

    @property
    def reach(self) -> int | None:
        """The frame after the last that is needed; None: to the end."""
        ends = [end for end in (self.stop, self.limit and self.start + self.limit) if end is not None]
        return min(ends, default=None)


def list_videos(
    folder: str | os.PathLike, classes: Sequence[str] = (), split_file: str | None = None, max_videos: int = 0
) -> list[InputVideo]:
    """All video files below `folder` in natural order, or those of some classes or of a UCF101 split list.

    Raises UserError when there is no folder or nothing is left.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of videos")
    videos = describe_videos(root, find_files(root, VIDEO_SUFFIXES))
    if not videos:
        raise UserError(f"{root}: holds no video file (looked for {', '.join(sorted(VIDEO_SUFFIXES))})")
    return choose_videos(root, videos, classes, split_file, max_videos)


def choose_videos(
    root: object, videos: list[InputVideo], classes: Sequence[str], split_file: str | None, max_videos: int
) -> list[InputVideo]:
    """Those of some classes or of a UCF101 split list, and the first of them. Raises UserError when none is left."""
    if classes:
        wanted = {name.lower() for name in classes}
        videos = [video for video in videos if (video.label or "").lower() in wanted]
    if split_file:
        stems = ucf101.read_split_file(split_file)
        videos = [video for video in videos if video.path.stem.lower() in stems]
    if not videos:
        raise UserError(f"{root}: none of its videos is in {split_file or 'the classes ' + ', '.join(classes)}")
    return videos[:max_videos] if max_videos else videos


def fingerprint(videos: Sequence[InputVideo]) -> str:
    """Short hash of the names and sizes of the videos: other files give another result."""
    digest = hashlib.sha256()
    for video in videos:
        stretch = "" if (video.start, video.reach) == (0, None) else f"\0{video.start}:{video.reach}"
        stamp = video.stamp or video.path.stat().st_size
        digest.update(f"{video.id}\0{stamp}{stretch}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def describe_videos(root: Path, files: Sequence[Path]) -> list[InputVideo]:
    """What the place and the name of each file say about it."""
    names = [_name(root, file) for file in files]
    counts = Counter(names)
    videos = []
    for file, name in zip(files, names, strict=True):
        clip = ucf101.parse_name(file)
        unique = name if counts[name] == 1 else file.relative_to(root).as_posix()
        folder_name = file.parent.name if file.parent != root else None
        videos.append(InputVideo(file, unique, clip.label if clip else folder_name, clip.group if clip else unique))
    return videos


def _name(root: Path, file: Path) -> str:
    clip = ucf101.parse_name(file)
    return f"{clip.label}/{file.stem}" if clip else file.relative_to(root).with_suffix("").as_posix()
