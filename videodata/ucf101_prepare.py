"""To a folder of UCF101 videos from whatever is there already: download and extract what is missing."""

import logging
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from videodata import ucf101
from videodata.archive import extract
from videodata.download import download
from videodata.files import is_hidden, natural_key
from videodata.prepare import SequenceSettings, expected_sequences, size
from videodata.remote_zip import NoRanges, fetch_members
from videodata.video import VIDEO_SUFFIXES
from videodata.video_folder import InputVideo, choose_videos, describe_videos, list_videos

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where the videos come from. Each step is skipped when its result is there."""

    url: str
    archive: Path
    folder: Path
    insecure: bool = False

    @classmethod
    def choose(cls, source: str, url: str, archive: str, folder: str, insecure: bool = False) -> "Origin":
        """The mirror takes the place of the official address and file name where these were left at their defaults."""
        official, chosen = ucf101.SOURCES["official"], ucf101.SOURCES[source]
        url = chosen.url if url == official.url else url
        archive = chosen.file_name if archive == official.file_name else archive
        return cls(url, Path(archive), Path(folder), insecure)

    @property
    def card(self) -> ucf101.Download | None:
        """Size and checksum, for an address that is known."""
        return next((known for known in ucf101.SOURCES.values() if known.url == self.url), None)

    def comes_in_parts(self, selection: "Selection") -> bool:
        """Whether the chosen videos can be fetched one by one: from a zip on a web server, while nothing is here."""
        parts = urllib.parse.urlsplit(self.url)
        remote_zip = parts.scheme in ("http", "https") and parts.path.endswith(".zip")
        return remote_zip and selection.is_partial and not (self.folder.exists() or self.archive.exists())

    @property
    def some(self) -> Path:
        """Folder of the videos that were fetched one by one; the name without the ending stands for all of them."""
        return self.folder.with_name(self.folder.name + ".some")

    def plan(self, selection: "Selection | None" = None) -> list[str]:
        """What `obtain` would do, or `obtain_some` with a selection, one line per step."""
        if selection and self.comes_in_parts(selection):
            return [f"download the chosen videos alone from {self.url} to {self.some}"]
        if self.folder.exists():
            return [f"{self.folder} exists: download and extraction are skipped"]
        size = f" ({self.card.size / 1e9:.2f} GB)" if self.card else ""
        first = f"{self.archive} exists: download is skipped" if self.archive.exists() else f"download {self.url}{size}"
        return [first, f"extract {self.archive} to {self.folder}"]


def obtain(origin: Origin, output_bytes: int = 0) -> Path:
    """Return the folder of videos, after downloading and extracting what is missing.

    output_bytes: expected size of what will be made of them; download, extracted videos and output must fit on the
    disk before the first byte is fetched. Raises UserError.
    """
    for line in origin.plan():
        logger.info("%s", line)
    if origin.folder.exists():
        return origin.folder
    card = origin.card
    if origin.archive.exists():
        _warn_about_size(origin.archive, card)
    else:
        download(
            origin.url,
            origin.archive,
            size=card and card.size,
            sha256=card and card.sha256,
            insecure=origin.insecure,
            allow_file=True,
            hint=ucf101.MIRROR_HINT if card is ucf101.SOURCES["official"] else "",
            reserve=card.size + output_bytes if card else 0,
        )
    return extract(origin.archive, origin.folder, hint=ucf101.MIRROR_HINT)


def obtain_some(origin: Origin, selection: "Selection", output_bytes: int) -> list[InputVideo]:
    """The chosen videos, fetched one by one out of a zip on a web server; those that are there stay.

    Raises UserError, and NoRanges for a server that sends whole files only.
    """
    logger.info("%s", *origin.plan(selection))
    chosen: list[InputVideo] = []

    def choose(names: Sequence[str]) -> list[str]:
        videos = [name for name in sorted(names, key=natural_key) if is_video(name)]
        videos = describe_videos(origin.some, [origin.some / name for name in videos])
        chosen.extend(choose_videos(origin.url, videos, selection.classes, selection.split_file, selection.max_videos))
        return [video.path.relative_to(origin.some).as_posix() for video in chosen]

    size = origin.card and origin.card.size
    fetch_members(origin.url, origin.some, choose, size=size, insecure=origin.insecure, reserve=output_bytes)
    return chosen


def is_video(name: str) -> bool:
    """Whether a member of an archive is a video by its name; hidden ones are notes of an operating system."""
    path = PurePath(name)
    return path.suffix.lower() in VIDEO_SUFFIXES and not any(map(is_hidden, path.parts))


def _warn_about_size(archive: Path, card: ucf101.Download | None) -> None:
    found = archive.stat().st_size
    if card and found != card.size:
        logger.warning(
            "%s has %d bytes, the published file %d: it is used as it is; if its download was broken off, delete it",
            archive, found, card.size,
        )  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """Which of the videos are taken."""

    classes: tuple[str, ...] = ()
    split_file: str | None = None
    max_videos: int = 0  # 0: all

    @property
    def is_partial(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.classes or self.split_file or self.max_videos)


def find_videos(origin: Origin | Path, selection: Selection, settings: SequenceSettings) -> list[InputVideo]:
    """The chosen videos of a folder, or of UCF101 after it was obtained. Raises UserError."""
    if isinstance(origin, Path):
        return list_videos(origin, selection.classes, selection.split_file, selection.max_videos)
    selection = replace(selection, classes=tuple(ucf101.check_classes(selection.classes)))
    output_bytes = _expected(selection, settings) * settings.sequence_bytes
    if origin.comes_in_parts(selection):
        try:
            return obtain_some(origin, selection, output_bytes)
        except NoRanges as error:
            logger.warning("%s: the whole archive is downloaded", error)
    folder = obtain(origin, output_bytes)
    return list_videos(folder, selection.classes, selection.split_file, selection.max_videos)


def plan(origin: Origin | Path, selection: Selection, settings: SequenceSettings, output: Path) -> list[str]:
    """What `find_videos` and `prepare_videos` would do, without doing any of it."""
    folder = origin if isinstance(origin, Path) else origin.folder
    lines = [] if isinstance(origin, Path) else origin.plan(selection)
    if folder.exists():
        videos = find_videos(folder, selection, settings)
        sequences = expected_sequences(videos, settings)
        lines.append(f"{len(videos)} videos in {folder}")
    else:
        sequences = _expected(selection, settings)
    shape = ", ".join(map(str, (sequences, *settings.shape)))
    return [*lines, f"write {output}: about uint8 ({shape}), {size(sequences * settings.sequence_bytes)}"]


def _expected(selection: Selection, settings: SequenceSettings) -> int:
    return ucf101.expected_sequences(settings.num_frames, settings.stride, len(selection.classes), selection.max_videos)
