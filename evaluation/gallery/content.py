"""What a page holds before it is written, and how its clips get there: copied where a browser plays them as they are,
written anew where it does not.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from videodata.encode import write_video
from videodata.errors import UserError
from videodata.files import atomic_path
from videodata.video import VIDEO_SUFFIXES, count_frames, probe, read_video

PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
PLAYED = {("h264", "yuv420p"), ("vp8", "yuv420p"), ("vp9", "yuv420p"), ("av1", "yuv420p")}
CONTAINERS = {".mp4", ".webm"}
QUALITY = 8  # rate factor of what is written anew; it has been compressed once already
SMALL = 48  # clips of at most so many rows and columns are enlarged without smoothing


@dataclass(frozen=True)
class Panel:
    """One of `count` equal parts that lie side by side in a video, `gap` pixels apart."""

    path: Path | str
    index: int
    count: int = 2
    gap: int = 0


Clip = Path | str | Panel


@dataclass
class Row:
    """Clips with a caption each, shown side by side and played in step. `given`: how many first frames are input."""

    label: str
    clips: Sequence[tuple[str, Clip]]
    given: int = 0
    note: str = ""


@dataclass
class Grid:
    """Clips played in step, one named row for each kind, one column for each clip."""

    label: str
    rows: Mapping[str, Sequence[Clip]]
    columns: Sequence[str] = ()
    given: int = 0
    note: str = ""


@dataclass
class Line:
    """One line of a curve: points (x, y). A baseline is drawn dashed; with one point it spans the whole width."""

    label: str
    points: list[tuple[float, float]]
    baseline: bool = False


@dataclass
class Curve:
    """A diagram of some lines over one x axis."""

    title: str
    lines: list[Line]
    x_label: str = "step"
    unit: str = ""


@dataclass(frozen=True)
class Overview:
    """A model's result in one line: its number, that of the trivial baseline, and what they are."""

    value: str
    meaning: str
    baseline: str
    baseline_meaning: str
    more: str = ""  # a further line


@dataclass
class Table:
    """Rows of cells, the first being the head. `kind` "config": values in a typewriter face, to the left."""

    rows: Sequence[Sequence[object]]
    caption: str = ""
    kind: str = ""


@dataclass
class Section:
    """Everything about one model or one run."""

    name: str
    intro: str
    clips: Sequence[Row | Grid] = ()
    curves: Sequence[Curve] = ()
    table: Sequence[Sequence[object]] = ()  # the first row is the head
    config: Mapping[str, Any] = field(default_factory=dict)
    overview: Sequence[Overview] = ()
    more_curves: Sequence[Curve] = ()  # folded away
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Medium:
    """A file of the page. Pictures have no frames and no rate."""

    name: str
    frames: int = 0
    fps: Fraction = Fraction(0)
    width: int = 0
    height: int = 0

    @property
    def wideness(self) -> float:
        """How many tiles wide a clip is shown: panoramas get the room they need."""
        return max(1.0, min(6.0, self.width / self.height)) if self.frames else 1.0

    @property
    def is_small(self) -> bool:
        """Whether it is shown pixel by pixel, because smoothing would leave a blur."""
        return max(self.width, self.height) <= SMALL

    @property
    def rate(self) -> str:
        """Frames per second, as a decimal number."""
        return f"{float(self.fps):.6f}".rstrip("0").rstrip(".")


def place(clip: Clip, folder: Path, stem: str) -> Medium:
    """Bring a clip into `folder` as `stem` and a suffix that browsers show.

    Raises UserError when the file is missing, cannot be read, or is neither a video nor a picture.
    """
    panel = clip if isinstance(clip, Panel) else None
    path = Path(panel.path if panel else clip)
    suffix = path.suffix.lower()
    if suffix not in VIDEO_SUFFIXES | PICTURES:
        raise UserError(f"{path}: a page shows videos and pictures ({', '.join(sorted(PICTURES))}), not {suffix!r}")
    if not path.is_file():
        raise UserError(f"{path}: no such clip for the page; generate it first")
    if suffix in PICTURES:
        return Medium(_copy(path, folder / f"{stem}{suffix}"))
    info = probe(path)
    turned = info.rotation or info.mirrored  # not every browser does either
    if panel is None and suffix in CONTAINERS and (info.codec, info.pixel_format) in PLAYED and not turned:
        name = _copy(path, folder / f"{stem}{suffix}")
        return Medium(name, count_frames(path), info.fps, info.width, info.height)
    frames, fps = read_clip(clip)
    count, height, width, _ = frames.shape
    # every player shows even numbers of rows and columns: the last is repeated where it is odd
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    write_video(folder / f"{stem}.mp4", even, fps, quality=QUALITY)
    return Medium(f"{stem}.mp4", count, fps, width, height)


def read_clip(clip: Clip) -> tuple[np.ndarray, Fraction]:
    """Frames of a video or of a part of one, uint8 (T, H, W, 3), and their rate. Raises UserError."""
    if not isinstance(clip, Panel):
        return read_video(clip)
    frames, fps = read_video(clip.path)
    width, rest = divmod(frames.shape[2] - clip.gap * (clip.count - 1), clip.count)
    if rest or width < 1 or not 0 <= clip.index < clip.count:
        raise UserError(f"{clip.path}: {frames.shape[2]} pixels are not {clip.count} panels {clip.gap} pixels apart")
    start = clip.index * (width + clip.gap)
    return frames[:, :, start : start + width], fps


def _copy(path: Path, target: Path) -> str:
    with atomic_path(target) as temporary:
        shutil.copyfile(path, temporary)
    return target.name
