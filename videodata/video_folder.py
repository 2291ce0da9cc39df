"""Video files: one, a folder of them, or a csv list; what their names say, and an index of their frame counts.

Counting the frames of some codecs means decoding, so the counts are kept in a JSON file beside the videos, and renewed
when the size or the time of a video changes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

import numpy as np

from videodata.errors import UserError, VideoError, one_line
from videodata.files import Unreadable, files_in_folder, in_order, read_json, user_cache, write_file
from videodata.lists import read_table
from videodata.resize import Size
from videodata.source import ClipSource, by_split
from videodata.video import VIDEO_SUFFIXES, count_frames, probe, read_scaled, read_video

logger = logging.getLogger(__name__)
INDEX_NAME = ".videodata-index.json"
FORMAT = "videodata-index"
VERSION = 2  # of what is counted and how sizes are meant
UCF101 = """
    ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BaseballPitch Basketball
    BasketballDunk BenchPress Biking Billiards BlowDryHair BlowingCandles BodyWeightSquats Bowling BoxingPunchingBag
    BoxingSpeedBag BreastStroke BrushingTeeth CleanAndJerk CliffDiving CricketBowling CricketShot CuttingInKitchen
    Diving Drumming Fencing FieldHockeyPenalty FloorGymnastics FrisbeeCatch FrontCrawl GolfSwing Haircut Hammering
    HammerThrow HandstandPushups HandstandWalking HeadMassage HighJump HorseRace HorseRiding HulaHoop IceDancing
    JavelinThrow JugglingBalls JumpingJack JumpRope Kayaking Knitting LongJump Lunges MilitaryParade Mixing
    MoppingFloor Nunchucks ParallelBars PizzaTossing PlayingCello PlayingDaf PlayingDhol PlayingFlute PlayingGuitar
    PlayingPiano PlayingSitar PlayingTabla PlayingViolin PoleVault PommelHorse PullUps Punch PushUps Rafting
    RockClimbingIndoor RopeClimbing Rowing SalsaSpin ShavingBeard Shotput SkateBoarding Skiing Skijet SkyDiving
    SoccerJuggling SoccerPenalty StillRings SumoWrestling Surfing Swing TableTennisShot TaiChi TennisSwing ThrowDiscus
    TrampolineJumping Typing UnevenBars VolleyballSpiking WalkingWithDog WallPushups WritingOnBoard YoYo
"""
CLASSES = tuple(UCF101.split())
_NAME = re.compile(r"v_(?P<label>\w+)_g(?P<group>\d+)_c\d+", re.IGNORECASE)
# The files of HandstandPushups are called v_HandStandPushups_*: classes are compared without regard to case.
_BY_LOWER_CASE = {name.lower(): name for name in CLASSES}


class VideoFolder(ClipSource):
    """Video files in natural order, with the names, labels and groups that `describe_videos` finds."""

    def __init__(self, root: Path, videos: Sequence[InputVideo], path: Path | None = None) -> None:
        """root: where the index of the videos is kept. path: what was opened, if not that folder."""
        self.path = str(path or root)
        examined = iter(index_videos(root, [video.path for video in videos if video.error is None]))
        entries = [next(examined) if video.error is None else {"error": video.error} for video in videos]
        both = list(zip(videos, entries, strict=True))
        self.broken = [VideoError(video.path, entry["error"]) for video, entry in both if "error" in entry]
        self._videos = [video for video, entry in both if "error" not in entry]
        self._entries = [entry for entry in entries if "error" not in entry]

    @classmethod
    def from_file(cls, path: Path) -> VideoFolder:
        return cls(path.parent, describe_videos(path.parent, [path]), path)

    @classmethod
    def from_folder(cls, root: Path) -> VideoFolder:
        """All video files under a folder; other files are left out with one warning."""
        return cls(root, find_videos(root, wanted="videos"))

    @classmethod
    def from_csv(cls, path: Path) -> VideoFolder:
        """Videos of a csv file, as `captioned_videos` finds them; the caption is the label."""
        videos = [replace(video, label=video.caption) for video in captioned_videos(path)]
        return cls(path.parent, videos, path)

    def __len__(self) -> int:
        return len(self._videos)

    def id(self, index: int) -> str:
        return self._videos[index].id

    def label(self, index: int) -> str | None:
        return self._videos[index].label

    def group(self, index: int) -> str:
        return self._videos[index].group

    def fps(self, index: int) -> Fraction:
        return Fraction(self._entries[index]["fps"])

    def length(self, index: int) -> int:
        return self._entries[index]["frames"]

    def size(self, index: int) -> Size:
        return self._entries[index]["height"], self._entries[index]["width"]

    def splits(self) -> dict[str, list[int]] | None:
        return by_split([video.split for video in self._videos])

    def place(self, index: int) -> str:
        return str(self._videos[index].path)

    def stamp(self, index: int) -> str:
        return str(self._entries[index]["bytes"])

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        return read_video(self._videos[index].path, start, count, step=step)[0]

    def read_clip(
        self,
        index: int,
        start: int,
        count: int | None,
        step: int = 1,
        size: Size | None = None,
        resize: str = "crop",
        **others: object,
    ) -> np.ndarray:
        if not self.scales_in_one_pass(**others):
            return super().read_clip(index, start, count, step, size, resize, **others)
        return read_scaled(self._videos[index].path, start, count, step, size, resize)


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
    error: str | None = None  # why it cannot be read, where listing it has shown that
    caption: str | None = None

    def __post_init__(self) -> None:
        for name in ("id", "group", "source"):  # they go into JSON, HDF5, file names and one line of a report
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, one_line(given))

    @property
    def reach(self) -> int | None:
        """The frame after the last that is needed; None: to the end."""
        ends = [end for end in (self.stop, self.limit and self.start + self.limit) if end is not None]
        return min(ends, default=None)


def list_videos(folder: str | os.PathLike) -> list[InputVideo]:
    """All video files below `folder` in natural order. Raises UserError when there is no folder or it has none."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of videos")
    videos = find_videos(root)
    if not videos:
        raise UserError(f"{root}: holds no video file (looked for {', '.join(sorted(VIDEO_SUFFIXES))})")
    return videos


def captioned_videos(path: Path) -> list[InputVideo]:
    """Videos of a csv file: columns `path` (relative to the csv file) and, if it has them, `text` and `split`.

    Raises UserError.
    """
    videos = []
    for line, row in read_table(path, ["path"]):
        name = row["path"]
        if not name:
            raise UserError(f"{path}, line {line}: names no video in the column path")
        text, split = row.get("text") or None, row.get("split") or None
        videos.append(InputVideo(path.parent / name, name, None, name, split=split, caption=text))
    if not videos:
        raise VideoError(path, "lists no videos")
    return videos


def find_videos(root: Path, wanted: str = "") -> list[InputVideo]:
    """The same, perhaps none. What hides videos or is none is among them, with its error."""
    unreadable: Unreadable = {}
    files = files_in_folder(root, VIDEO_SUFFIXES, wanted=wanted, unreadable=unreadable)
    videos = describe_videos(root, in_order(root, [*files, *unreadable]))
    return [replace(video, error=unreadable.get(video.path)) for video in videos]


def fingerprint(videos: Sequence[InputVideo]) -> str:
    """Short hash of the names and sizes of the videos: other files give another result."""
    digest = hashlib.sha256()
    for video in videos:
        stretch = "" if (video.start, video.reach) == (0, None) else f"\0{video.start}:{video.reach}"
        stamp = video.stamp or video.error or _size(video.path)
        caption = "" if video.caption is None else f"\0{one_line(video.caption)}"
        digest.update(f"{video.id}\0{stamp}{stretch}{caption}\n".encode())
    return digest.hexdigest()[:16]


def _size(path: Path) -> int | str:
    """Bytes of a video; for one that cannot be reached, whose decoder will say so, the reason."""
    try:
        return path.stat().st_size
    except OSError as error:
        return str(error.strerror)


def describe_videos(root: Path, files: Sequence[Path]) -> list[InputVideo]:
    """What the place and the name of each file say about it."""
    clips = [parse_name(file) for file in files]
    places = [one_line(file.relative_to(root).as_posix()) for file in files]
    short = [
        f"{clip.label}/{file.stem}" if clip else without_suffix(place)
        for file, place, clip in zip(files, places, clips, strict=True)
    ]
    videos = []
    for file, name, clip in zip(files, unique_names(short, places), clips, strict=True):
        label = clip.label if clip else one_line(file.parent.name) if file.parent != root else None
        videos.append(InputVideo(file, name, label, clip.group if clip else name))
    return videos


def without_suffix(name: str) -> str:
    """A name without the suffix of a video; another dot belongs to it."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


def unique_names(short: Sequence[str], full: Sequence[str]) -> list[str]:
    """A name for each file that is free for a file or a folder of that name: the short one, or where several have
    it or it is that of a folder above another one, the full one. Which of the files comes first does not matter.
    """
    names = list(short)
    while True:
        counts = Counter(names)
        folders = {str(parent) for name in counts for parent in PurePosixPath(name).parents}
        taken = [k for k, name in enumerate(names) if (counts[name] > 1 or name in folders) and name != full[k]]
        if not taken:
            return names
        for k in taken:
            names[k] = full[k]


class ClipName(NamedTuple):
    """What `v_<Class>_gGG_cCC` says. Clips of one group were cut from the same film: never divide them."""

    label: str
    group: str


def parse_name(path: str | PurePath) -> ClipName | None:
    """Class and group of a UCF101 clip from its file name, None for other files."""
    match = _NAME.fullmatch(PurePath(path).stem)
    if match is None:
        return None
    label = _BY_LOWER_CASE.get(match["label"].lower(), match["label"])
    return ClipName(label, f"v_{label}_g{match['group']}")


def index_videos(root: Path, files: Sequence[Path]) -> list[dict]:
    """One entry per file: {bytes, mtime_ns, frames, height, width, fps}, or with {error} for what cannot be read.

    Known entries come from the index beside the videos (or in the user's cache folder, where `root` is read-only).
    """
    stored = (read_json(place) or {} for place in _places(root))
    known = next((s["videos"] for s in stored if (s.get("format"), s.get("version")) == (FORMAT, VERSION)), {})
    entries: dict[str, dict] = {}
    missing: list[tuple[str, Path, dict]] = []
    for file in files:
        name, status = os.path.relpath(file, root), {"bytes": None, "mtime_ns": None}
        with suppress(OSError):  # a broken link: `_examine` says so
            found = file.stat()
            status = {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
        if name in known and status.items() <= known[name].items():
            entries[name] = known[name]
        else:
            missing.append((name, file, status))
    if missing:
        # Decoding releases the interpreter's lock, so threads are enough to use all cores.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for (name, _, status), entry in zip(missing, pool.map(_examine, [m[1] for m in missing]), strict=True):
                entries[name] = {**status, **entry}
        if len(files) > 1:
            _save(root, entries)
    return [entries[os.path.relpath(file, root)] for file in files]


def _examine(file: Path) -> dict:
    try:
        info = probe(file)
        return {"frames": count_frames(file), "height": info.height, "width": info.width, "fps": str(info.fps)}
    except VideoError as error:
        return {"error": error.reason}


def _places(root: Path) -> tuple[Path, Path]:
    """Beside the videos, or else under the user's cache folder."""
    return root / INDEX_NAME, user_cache() / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"


def _save(root: Path, entries: dict[str, dict]) -> None:
    text = json.dumps({"format": FORMAT, "version": VERSION, "videos": entries}, indent=0, sort_keys=True)
    read_only = not root.stat().st_mode & 0o222  # for everybody; the administrator, who may write, should not either
    for place in _places(root)[1 if read_only else 0 :]:
        try:
            write_file(place, text)
            return
        except OSError as error:
            reason = error
    logger.warning("%s: the index of its videos cannot be stored (%s) and will be made again each time", root, reason)
