"""To a folder of UCF101 videos from whatever is there already: download and extract what is missing."""

import logging
from dataclasses import dataclass
from pathlib import Path

from videodata import ucf101
from videodata.archive import extract
from videodata.download import download
from videodata.prepare import SequenceSettings, expected_sequences, size
from videodata.video_list import InputVideo, list_videos

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

    def plan(self) -> list[str]:
        """What `obtain` would do, one line per step."""
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


def find_videos(origin: Origin | Path, selection: Selection, settings: SequenceSettings) -> list[InputVideo]:
    """The chosen videos of a folder, or of UCF101 after it was obtained. Raises UserError."""
    if isinstance(origin, Path):
        return list_videos(origin, selection.classes, selection.split_file, selection.max_videos)
    classes = ucf101.check_classes(selection.classes)
    folder = obtain(origin, _expected(selection, settings) * settings.sequence_bytes)
    return list_videos(folder, classes, selection.split_file, selection.max_videos)


def plan(origin: Origin | Path, selection: Selection, settings: SequenceSettings, output: Path) -> list[str]:
    """What `find_videos` and `prepare_npy` would do, without doing any of it."""
    folder = origin if isinstance(origin, Path) else origin.folder
    lines = [] if isinstance(origin, Path) else origin.plan()
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
