"""One command from the internet to clips: obtain a data set, count its videos, write each part, say what is missing."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from videodata.datasets.dataset import DataSet, Place, Shard
from videodata.errors import UserError
from videodata.npy_writer import sidecar_path
from videodata.prepare import SequenceSettings, Summary, prepare_videos, size
from videodata.resize import RESIZE_RULES
from videodata.sources import read_sidecar
from videodata.ucf101 import read_split_file
from videodata.ucf101_prepare import Selection
from videodata.video_folder import InputVideo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is made of a data set. splits: its parts, each in a file or folder of its own, or all in one .npy."""

    dataset: DataSet
    place: Place
    out: Path
    format: str
    settings: SequenceSettings
    splits: tuple[str | None, ...]
    shard: Shard = Shard()
    classes: tuple[str, ...] = ()
    max_videos: int = 0  # of each part, 0: all
    split_file: str | None = None  # a list such as trainlist01.txt: only its videos
    clips_per_video: int = 0  # 0: all windows
    incomplete: bool = False  # do not mind when there are fewer videos than published

    def outputs(self) -> list[tuple[Path, tuple[str | None, ...]]]:
        """Where which parts go."""
        suffix = self.shard.suffix
        if self.out.suffix == ".npy":
            if self.format != "npy":
                raise UserError(f"--out {self.out}: a name in .npy goes with --format npy, not with {self.format}")
            return [(self.out.with_name(f"{self.out.stem}{suffix}.npy"), self.splits)]
        if self.format == "npy":
            return [(self.out / f"{split or 'clips'}{suffix}.npy", (split,)) for split in self.splits]
        if self.splits == (None,) and not suffix:
            return [(self.out, (None,))]
        return [(self.out / f"{split or 'clips'}{suffix}", (split,)) for split in self.splits]

    def expected_bytes(self) -> int:
        """About how large the result will be, before anything is there."""
        videos = sum(map(self.dataset.planned, self.splits)) / self.shard.count
        videos = min(videos, self.max_videos * len(self.splits)) if self.max_videos else videos
        frames = self.dataset.mean_frames / self.settings.stride
        if self.format == "npy":
            # The remainder at the end of a video is as likely to be short as long.
            lost = frames % self.settings.num_frames if self.dataset.one_length else (self.settings.num_frames - 1) / 2
            windows = max(0.0, frames - lost) / self.settings.num_frames
            windows = min(windows, self.clips_per_video) if self.clips_per_video else windows
            return round(videos * windows) * self.settings.sequence_bytes
        return round(videos * frames) * self.settings.height * self.settings.width * 3


def obtain(job: Job) -> None:
    """Download and unpack what is missing. Raises UserError, before the first byte when the disk is too small."""
    by_folder = {folder: (file, folder) for split in job.splits for file, folder in job.dataset.files(split)}
    job.place.check_room(list(by_folder.values()), job.expected_bytes())
    for split in job.splits:
        job.dataset.obtain(job.place, split, job.shard)


def plan(job: Job) -> list[str]:
    """What would be done, one line per step."""
    steps = [line for split in job.splits for line in job.dataset.plan(job.place, split)]
    counts = [f"{split or 'videos'} {job.dataset.planned(split)}" for split in job.splits]
    written = ", ".join(str(path) for path, _ in job.outputs())
    return [
        *dict.fromkeys(steps),
        f"published videos: {', '.join(counts)}",
        f"write {written}: about {size(job.expected_bytes())} of {job.settings.height}x{job.settings.width}",
    ]


def prepare(job: Job, **options: object) -> Iterator[str]:
    """Obtain the data set and write all parts; yields the report, line by line. options: those of `prepare_videos`.

    Raises UserError, after all is written, when videos are missing that were published.
    """
    outputs = job.outputs()
    obtain(job)
    problems = []
    for path, splits in outputs:
        videos, found, problem = _collect(job, splits)
        problems += problem
        summary = prepare_videos(
            videos, path, job.settings, job.format,
            decode=_decoder(job, splits),
            description={**job.dataset.describe(videos), "split": splits[0] if len(splits) == 1 else None, **found},
            **options,
        )  # fmt: skip
        yield from [*summary.lines(job.settings), *_found_lines(found), *_extras(job, splits, summary)]
    if problems and not job.incomplete:
        raise UserError("; ".join([*problems, "what is there was written; --keep_going does not mind"]))


def _collect(job: Job, splits: Sequence[str | None]) -> tuple[list[InputVideo], dict, list[str]]:
    """The videos of an output, what is said about their number, and what is wrong with it."""
    chosen: list[InputVideo] = []
    found: dict = {}
    problems = []
    for split in splits:
        videos = job.dataset.videos(job.place, split, job.shard)
        if not (job.dataset.shares_archives and job.shard.count > 1):
            counts, problem = _count(job, split, videos)
            problems += problem
            for key, value in counts.items():
                found[key] = found[key] + value if key in found else value
        if job.classes:
            wanted = {name.lower() for name in job.classes}
            videos = [video for video in videos if (video.label or "").lower() in wanted]
        if job.split_file:
            stems = read_split_file(job.split_file)
            videos = [video for video in videos if video.path.stem.lower() in stems]
        videos = videos[: job.max_videos] if job.max_videos else videos
        chosen += videos if job.dataset.shares_archives else job.shard.of(videos)
    if not chosen:
        raise UserError(f"{job.dataset.name}: no video is left of {', '.join(s or 'all' for s in splits)}")
    return [_shortened(video, job) for video in chosen], found, problems


def _count(job: Job, split: str | None, videos: Sequence[InputVideo]) -> tuple[dict, list[str]]:
    published = job.dataset.published(split)
    if published is None:
        return {}, []
    missing = job.dataset.missing(job.place, split, videos)
    counts = {"published": published, "found": len(videos)} | ({"missing": missing} if missing else {})
    if len(videos) == published or not job.dataset.exact:
        return counts, []
    return counts, [f"{job.dataset.name} {split or ''}: {len(videos)} videos were found, {published} are published"]


def _shortened(video: InputVideo, job: Job) -> InputVideo:
    """Only the frames that `clips_per_video` windows need."""
    if not job.clips_per_video:
        return video
    return replace(video, limit=(job.clips_per_video * job.settings.num_frames - 1) * job.settings.stride + 1)


def _decoder(job: Job, splits: Sequence[str | None]):
    if len(splits) == 1:
        return job.dataset.decoder(job.place, splits[0])
    decoders = [job.dataset.decoder(job.place, split) for split in splits]
    if any(decoder is not decoders[0] for decoder in decoders):
        raise UserError(f"{job.dataset.name}: name one --split, or a folder as --out")
    return decoders[0]


def _found_lines(found: dict) -> list[str]:
    if not found:
        return []
    missing = found.get("missing", [])
    named = f", missing are {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}" if missing else ""
    return [f"  {found['found']} of {found['published']} published videos{named}"]


def _extras(job: Job, splits: Sequence[str | None], summary: Summary) -> list[str]:
    if len(splits) != 1:
        return []
    videos = read_sidecar(sidecar_path(summary.path))["videos"]
    return job.dataset.write_extras(job.place, splits[0], [video["id"] for video in videos], summary.path)


def add_sequence_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of SequenceSettings."""
    rules = [rule for rule in RESIZE_RULES if rule != "none"]
    add = parser.add_argument
    add("--num_frames", type=int, default=50, help="frames per sequence")
    add("--width", type=int, default=320, help="width of the frames in pixels")
    add("--height", type=int, default=240, help="height of the frames in pixels")
    add("--stride", type=int, default=1, help="take every n-th frame of a video")
    add("--resize", choices=rules, default="squeeze", help="squeeze ignores the aspect ratio, crop and pad keep it")
    add("--keep_damaged", action="store_true", help="keep what can be decoded of a damaged video")


def add_selection_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of Selection."""
    add = parser.add_argument
    add("--max_videos", type=int, default=0, help="take only the first n videos; 0: all")
    add("--classes", default="", help="take only these classes (sub-folders), separated by commas")
    add("--split_file", help="take only the videos of a list such as trainlist01.txt")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that do not change the result."""
    add = parser.add_argument
    add("--workers", type=int, default=0, help="decoding processes; 0: one per core")
    add(
        "--max_bad_fraction",
        type=float,
        default=0.5,
        help="exit with status 2 if more than this part of the videos cannot be read (the rest is written)",
    )
    add("--keep_going", action="store_true", help="the same as --max_bad_fraction 1")
    add("--restart", action="store_true", help="begin again, over a partial or finished file")
    add("--dry_run", action="store_true", help="only say what would be done and how large the result would be")


def sequence_settings(args: argparse.Namespace) -> SequenceSettings:
    """What add_sequence_flags read."""
    return SequenceSettings(args.num_frames, args.height, args.width, args.stride, args.resize, args.keep_damaged)


def selection(args: argparse.Namespace) -> Selection:
    """What add_selection_flags read."""
    classes = tuple(name.strip() for name in args.classes.split(",") if name.strip())
    return Selection(classes, args.split_file, args.max_videos)


def run_options(args: argparse.Namespace) -> dict:
    """What add_run_flags read, for prepare_videos."""
    allowed = 1.0 if args.keep_going else args.max_bad_fraction
    return {"workers": args.workers or None, "max_bad_fraction": allowed, "restart": args.restart}
