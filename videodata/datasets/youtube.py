"""Clips from YouTube by yt-dlp: the lists of Kinetics, and a ledger of what became of each clip.

Any run can be broken off and repeated.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from tqdm import tqdm

from videodata.encode import write_video
from videodata.errors import UserError, VideoError
from videodata.files import lock_file, parse_json, portable_name, replace
from videodata.lists import read_table
from videodata.video import iter_stretch, stretch_rate

logger = logging.getLogger(__name__)
_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_FILE = re.compile(r"(?P<id>[A-Za-z0-9_-]{11})_(?P<start>\d+)_(?P<end>\d+)")
WATCH = "https://www.youtube.com/watch?v={id}"
# What YouTube says, in parts of its sentences. The first kind stops everything, the second will never come back.
BLOCKED = ("not a bot", "http error 429")
GONE = (
    "private video", "video is private", "video unavailable", "video is unavailable", "video is not available",
    "not available in your country", "has been removed", "terminated", "copyright", "no longer available",
    "does not exist", "http error 404", "http error 410", "members-only", "confirm your age",
)  # fmt: skip
BLOCKED_IN_A_ROW = 5
UNFINISHED = ".unfinished"  # folder of what yt-dlp is writing, removed at the end: hidden, so never one of the user


class Clip(NamedTuple):
    """A stretch of a YouTube video, in seconds. The lists of some test parts have no labels."""

    label: str | None
    youtube_id: str
    start: int
    end: int

    @property
    def stem(self) -> str:
        """Name of its file, as most copies of the data set have it."""
        return f"{self.youtube_id}_{self.start:06d}_{self.end:06d}"

    @property
    def folder(self) -> str:
        """Name of its folder: the label, as one plain name."""
        return portable_name((self.label or "unlabelled").replace("/", "_").lstrip(".") or "unlabelled")

    @property
    def key(self) -> tuple[str, int]:
        """What finds it again in any copy."""
        return self.youtube_id, self.start


def read_clips(path: str | Path) -> list[Clip]:
    """Rows of a list with columns `youtube_id, time_start, time_end` and, if it has one, `label`; others are ignored.

    Raises UserError for a missing column, a time that is no number, or something that is no YouTube id.
    """
    clips = [_clip(path, line, row) for line, row in read_table(path, ["youtube_id", "time_start", "time_end"])]
    if not clips:
        raise UserError(f"{path}: lists no clips")
    return clips


def parse_file_name(stem: str) -> tuple[str, int] | None:
    """YouTube id and start of a clip from the name of its file, padded or not; None for other names."""
    match = _FILE.fullmatch(stem)
    return (match["id"], int(match["start"])) if match else None


def _clip(path: str | Path, line: int, row: dict) -> Clip:
    id = row["youtube_id"]
    if not _ID.fullmatch(id):  # it becomes part of an address and of a file name
        raise UserError(f"{path}, line {line}: {id!r} is no YouTube id")
    try:
        start, end = int(float(row["time_start"])), int(float(row["time_end"]))
    except (OverflowError, ValueError) as error:
        raise UserError(f"{path}, line {line}: time_start and time_end must be seconds") from error
    if not 0 <= start < end:
        raise UserError(f"{path}, line {line}: time_end {end} must come after time_start {start}")
    return Clip(row.get("label") or None, id, start, end)


@dataclass
class Outcome:
    """What became of one clip."""

    clip: Clip
    status: str  # "ok", "gone", "blocked" or "failed"; the last two are tried again by the next run
    reason: str = ""


@dataclass(frozen=True)
class YouTube:
    """How clips are downloaded. rate_limit: bytes per second and job; sleep: seconds between two videos of a job."""

    trim: bool = False  # keep the clip alone, re-encoded without sound; else the whole video
    jobs: int = 1
    retries: int = 3
    wait: float = 5.0  # seconds before the second try, doubled each time
    rate_limit: int = 0  # 0: none
    sleep: float = 0.0
    cookies: str | None = None
    address: str = WATCH

    def download(self, clips: Sequence[Clip], folder: Path, ledger_suffix: str = "") -> Counter:
        """Bring clips to `folder/<label>/<id>_<start>_<end>.*`; returns how many have which status.

        Clips that the ledger calls ok or gone are passed over. Raises UserError when yt-dlp is missing, when YouTube
        blocks this machine, when the disk is full, or, at the end, when some clips failed that may come another time.
        """
        try:
            import yt_dlp as library
        except ImportError as error:
            raise UserError("clips from YouTube need yt-dlp: pip install yt-dlp (Python 3.11 or newer)") from error
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"ledger{ledger_suffix}.jsonl"
        with lock_file(path, "downloading by"):
            ledger = read_ledger(path)
            rest = [clip for clip in clips if not _is_settled(clip, ledger, folder)]
            logger.info("%s: %d of %d clips are settled already", path, len(clips) - len(rest), len(clips))
            with open(path, "a", encoding="utf-8", newline="\n") as lines:
                if path.stat().st_size:
                    lines.write("\n")  # a line that a kill tore off must not swallow the next; empty ones do not count
                for outcome in self._outcomes(library, rest, folder):
                    ledger[outcome.clip.stem] = outcome.status
                    shown = {"clip": outcome.clip.stem, "status": outcome.status, "reason": outcome.reason}
                    lines.write(json.dumps({key: value for key, value in shown.items() if value}) + "\n")
                    lines.flush()
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        counts = Counter(ledger.get(clip.stem, "failed") for clip in clips)
        if counts["failed"]:
            raise UserError(f"{counts['failed']} of {len(clips)} clips failed; see {path}, run the same command again")
        return counts

    def _outcomes(self, library: ModuleType, clips: Sequence[Clip], folder: Path):
        """Outcome after outcome; stops when YouTube blocks."""
        waiting, pending, blocked = iter(clips), set(), 0
        with ThreadPoolExecutor(self.jobs) as pool, tqdm(total=len(clips), unit="clip", disable=None) as bar:
            try:
                while True:
                    for clip in islice(waiting, self.jobs - len(pending)):
                        pending.add(pool.submit(self._fetch, library, clip, folder))
                    if not pending:
                        return
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for outcome in (future.result() for future in done):
                        bar.update()
                        yield outcome
                        blocked = blocked + 1 if outcome.status == "blocked" else 0
                    if blocked >= BLOCKED_IN_A_ROW:
                        raise UserError(
                            f"YouTube asks for a sign-in ({blocked} answers in a row): wait some hours, or pass "
                            "--cookies FILE of a browser that is signed in; then run the same command again"
                        )
            finally:
                for future in pending:
                    future.cancel()

    def _fetch(self, library: ModuleType, clip: Clip, folder: Path) -> Outcome:
        for attempt in range(self.retries):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            try:
                self._fetch_once(library, clip, folder)
                return Outcome(clip, "ok")
            except library.utils.DownloadError as error:
                reason = str(error).splitlines()[0]
                status = classify(reason)
                if status in ("gone", "blocked"):
                    return Outcome(clip, status, reason)
            except VideoError as error:  # what came cannot be decoded, or ends before the clip begins
                reason = error.reason
            except OSError as error:
                raise UserError(f"{folder}: cannot be written ({error.strerror}); mend that and run again") from error
        return Outcome(clip, "failed", reason)

    def _fetch_once(self, library: ModuleType, clip: Clip, folder: Path) -> None:
        with library.YoutubeDL(self._options(folder / UNFINISHED / clip.stem)) as session:
            info = session.extract_info(self.address.format(id=clip.youtube_id), download=True)
        source = Path(info["requested_downloads"][0]["filepath"])
        (folder / clip.folder).mkdir(exist_ok=True)
        if self.trim:
            cut_video(source, folder / clip.folder / f"{clip.stem}.mp4", clip.start, clip.end)
            source.unlink()
        else:
            replace(source, folder / clip.folder / f"{clip.stem}{source.suffix}")

    def _options(self, stem: Path) -> dict:
        options = {
            "format": "bestvideo[ext=mp4][height<=480]/best[ext=mp4][height<=480]/best",
            "outtmpl": {"default": str(stem).replace("%", "%%") + ".%(ext)s"},
            "quiet": True, "noprogress": True, "no_warnings": True, "logger": _Silent(), "noplaylist": True,
            "continuedl": True, "retries": self.retries, "fragment_retries": self.retries, "socket_timeout": 60,
        }  # fmt: skip
        if self.rate_limit:
            options["ratelimit"] = self.rate_limit
        if self.sleep:
            options["sleep_interval"] = self.sleep
        if self.cookies:
            options["cookiefile"] = self.cookies
        return options


def cut_video(source: Path, target: Path, start: float, end: float) -> Path:
    """Write the pictures from `start` to `end` seconds of a video as mp4. Raises VideoError if it ends before them.

    They play for as long as in the video, also where its rate varies, and evenly.
    """
    frames = iter_stretch(source, start, end)
    head = next(frames, None)
    if head is None:
        raise VideoError(source, f"ends before second {start}")

    def pictures():
        yield head
        yield from frames

    return write_video(target, pictures(), stretch_rate(source, start, end), quality=18)


def classify(reason: str) -> str:
    """ "blocked", "gone" or "failed", from the sentence of yt-dlp."""
    said = reason.lower().replace("’", "'")
    if any(part in said for part in BLOCKED):
        return "blocked"
    return "gone" if any(part in said for part in GONE) else "failed"


def read_ledger(path: Path) -> dict[str, str]:
    """Last status of each clip; a torn last line does not count."""
    ledger = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = parse_json(line)
                ledger[entry["clip"]] = entry["status"]
            except (ValueError, KeyError, TypeError):
                continue
    return ledger


def _is_settled(clip: Clip, ledger: dict[str, str], folder: Path) -> bool:
    status = ledger.get(clip.stem)
    if status == "ok":
        return any(path.suffix != ".partial" for path in (folder / clip.folder).glob(f"{clip.stem}.*"))
    return status == "gone"


class _Silent:
    """yt-dlp prints errors besides raising them."""

    def debug(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...

    def error(self, message: str) -> None: ...
