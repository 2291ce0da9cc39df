"""One command from the internet to clips: obtain a data set, count its videos, write each part, say what is missing.

`prepare` does it, `plan` says what it would do; `add_commands` and `run_command` are the command line around them, and
`prepare_share` is a share of a command line, for an engine that calls it on many machines.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from training.cli import byte_count, fraction, make_parser, nonnegative_int, number, positive_int
from training.cli import command_line as pasted
from videodata.datasets import data_sets
from videodata.datasets.dataset import MOST_SHARES, DataSet, Place, Selection, Shard
from videodata.datasets.engines import ENGINES, run_shares
from videodata.errors import UserError, one_line
from videodata.files import has_suffix, readable_size
from videodata.journal import read_sidecar, sidecar_path
from videodata.prepare import FORMATS, SequenceSettings, check_derived, expected_sequences, prepare_videos
from videodata.resize import RESIZE_RULES
from videodata.sources import merge_parts
from videodata.storage import divided, is_address, joined, open_storage
from videodata.tars.writer import MEMBERS, Packing, check_packing
from videodata.video_folder import InputVideo

WHOLE = "1/1"  # the share that is everything
_turn = threading.Condition()
_inside: list[tuple[str, str]] = []  # of each share that this process works on: its folder, and the one before all


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
    selection: Selection = Selection()
    clips_per_video: int = 0  # 0: all windows
    incomplete: bool = False  # do not mind when there are fewer videos than published
    packing: Packing = Packing()  # of tars; their address is that of `out`

    def outputs(self) -> list[tuple[Path, tuple[str | None, ...]]]:
        """Where which parts go."""
        suffix = self.shard.suffix
        if has_suffix(self.out.name, {".npy"}):
            if self.format != "npy":
                raise UserError(f"--out {self.out}: a name in .npy goes with --format npy, not with {self.format}")
            return [(self.out.with_name(f"{self.out.stem}{suffix}{self.out.suffix}"), self.splits)]
        if self.format == "npy":
            return [(self.out / f"{split or 'clips'}{suffix}.npy", (split,)) for split in self.splits]
        if self.splits == (None,) and not suffix:
            return [(self.out, (None,))]
        return [(self.out / f"{split or 'clips'}{suffix}", (split,)) for split in self.splits]

    @property
    def sees_all(self) -> bool:
        """Whether the videos of the other shares are here too."""
        return self.shard.count == 1 or not self.dataset.shares_archives

    def expected_videos(self) -> float:
        """About how many videos are taken, known before anything is there."""
        planned = sum(map(self.dataset.planned, self.splits)) / self.shard.count
        most = self.selection.max_videos * len(self.splits)
        return min(planned, most) if most else planned

    def expected_sequences(self) -> int:
        """About how many sequences they give, from the mean length of the videos."""
        frames = self.dataset.mean_frames / self.settings.stride
        # The remainder at the end of a video is as likely to be short as long.
        lost = frames % self.settings.num_frames if self.dataset.one_length else (self.settings.num_frames - 1) / 2
        windows = max(0.0, frames - lost) / self.settings.num_frames
        windows = min(windows, self.clips_per_video) if self.clips_per_video else windows
        return round(self.expected_videos() * windows)

    def expected_bytes(self) -> int:
        """About how large the result will be; files of compressed videos are smaller."""
        if self.format == "npy":
            return self.expected_sequences() * self.settings.sequence_bytes
        frames = self.expected_videos() * self.dataset.mean_frames / self.settings.stride
        return round(frames) * self.settings.height * self.settings.width * 3

    def packed(self, path: Path, listed: Sequence[InputVideo]) -> Packing:
        """How the videos of an output are packed. listed: all that there are of its parts, chosen or not."""
        address = self.packing.address
        if address is not None and path != self.out:
            address = joined(address, path.name)
        classes: tuple[str, ...] = ()
        if self.format == "tar" and self.sees_all:  # or each share would have numbers of its own
            if len(self.outputs()) > 1:
                parts = (self.dataset.videos(self.place, split, self.shard) for split in self.splits)
                listed = [video for part in parts for video in part]
            classes = tuple(sorted({video.label for video in listed if video.label is not None}))
        return replace(self.packing, address=address, classes=classes)


def obtain(job: Job) -> None:
    """Download and unpack what is missing. Raises UserError, before the first byte when the disk is too small."""
    archives = [archive for split in job.splits for archive in job.dataset.archives(job.place, split)]
    place = replace(job.place, reserve=job.expected_bytes())
    place.check_room(list(dict.fromkeys(archives)))
    for split in job.splits:
        job.dataset.obtain(place, split, job.shard)


def plan(job: Job) -> list[str]:
    """What would be done, one line per step, and what the result would be: from the videos where they are there."""
    steps = [line for split in job.splits for line in job.dataset.plan(job.place, split)]
    written, sequences = ", ".join(str(path) for path, _ in job.outputs()), job.expected_sequences()
    if all(job.dataset.is_there(job.place, split) for split in job.splits):
        videos = _collect(job, job.splits, [])[0]
        counts, sequences = f"{len(videos)} videos are there", expected_sequences(videos, job.settings)
    else:
        counts = ", ".join(f"{split or 'videos'} {job.dataset.planned(split):.0f}" for split in job.splits)
        counts = f"published videos: {counts}"
    if job.format == "npy" and sequences is None:
        what = "a size that is unknown before the videos are decoded"
    elif job.format == "npy":
        shape = ", ".join(map(str, (sequences, *job.settings.shape)))
        what = f"about uint8 ({shape}), {readable_size(sequences * job.settings.sequence_bytes)}"
    else:
        what = f"about {readable_size(job.expected_bytes())} of {job.settings.height}x{job.settings.width}"
    return [*dict.fromkeys(steps), counts, f"write {written}: {what}"]


def prepare(job: Job, **options: object) -> Iterator[str]:
    """Obtain the data set and write all parts; yields the report, line by line. options: those of `prepare_videos`.

    Raises UserError, after all is written, when videos are missing that were published.
    """
    outputs = job.outputs()
    for path, splits in outputs:  # before hours of downloading
        check_derived(path, job.format)
        if len(splits) == 1:
            job.dataset.check_extras(path)
    obtain(job)
    problems, listed = [], []
    for path, splits in outputs:
        videos, found, problem = _collect(job, splits, listed)
        problems += problem
        only = splits[0] if len(splits) == 1 else None
        described = job.dataset.describe(videos)
        summary = prepare_videos(
            videos, path, job.settings, job.format, decode=_decoder(job, splits),
            description={**described, "split": only, **found} if described else {},
            packing=job.packed(path, listed), **options,
        )  # fmt: skip
        yield from summary.lines(job.settings)
        if found:
            missing = found.get("missing", [])
            named = f", missing are {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}" if missing else ""
            yield f"  {found['found']} of {found['published']} published videos{named}"
        if len(splits) == 1:
            ids = [video["id"] for video in read_sidecar(sidecar_path(summary.path))["videos"]]
            yield from job.dataset.write_extras(job.place, only, ids, summary.path)
    absent = job.selection.absent(listed) if job.sees_all else None
    if absent:
        problems.append(absent)
        yield f"  {absent}"
    if problems and not job.incomplete:
        raise UserError("; ".join([*problems, "what is there was written; --keep_going does not mind"]))


def _collect(
    job: Job, splits: Sequence[str | None], listed: list[InputVideo]
) -> tuple[list[InputVideo], dict, list[str]]:
    """The videos of an output, what is said about their number, and what is wrong with it. listed: gets all that there
    are, chosen or not.
    """
    chosen: list[InputVideo] = []
    found: dict = {}
    problems, selected = [], 0
    for split in splits:
        videos = job.dataset.videos(job.place, split, job.shard)
        if job.sees_all:
            counts, problem = _count(job, split, videos)
            problems += problem
            for key, value in counts.items():
                found[key] = found[key] + value if key in found else value
        listed += videos
        videos = job.selection.of(videos)
        selected += len(videos)
        chosen += videos if job.dataset.shares_archives else job.shard.of(videos)
    if selected and not chosen:
        part = " ".join([job.dataset.name, *filter(None, splits)])
        raise UserError(f"{part}: {selected} videos are no work for {job.shard.count} shares; ask for fewer shares")
    if not chosen:
        raise job.selection.refusal(job.dataset.name)
    if job.clips_per_video:  # only the frames that so many windows need
        limit = (job.clips_per_video * job.settings.num_frames - 1) * job.settings.stride + 1
        chosen = [replace(video, limit=limit) for video in chosen]
    return chosen, found, problems


def _count(job: Job, split: str | None, videos: Sequence[InputVideo]) -> tuple[dict, list[str]]:
    published = job.dataset.published(split)
    if published is None:
        return {}, []
    missing = job.dataset.missing(job.place, split, videos)
    counts = {"published": published, "found": len(videos)} | ({"missing": missing} if missing else {})
    if len(videos) == published or not job.dataset.exact:
        return counts, []
    return counts, [f"{job.dataset.name} {split or ''}: {len(videos)} videos were found, {published} are published"]


def _decoder(job: Job, splits: Sequence[str | None]):
    if len(splits) == 1:
        return job.dataset.decoder(job.place, splits[0])
    decoders = [job.dataset.decoder(job.place, split) for split in splits]
    if any(decoder is not decoders[0] for decoder in decoders):
        raise UserError(f"{job.dataset.name}: name one --split, or a folder as --out")
    return decoders[0]


def add_commands(parser: argparse.ArgumentParser) -> None:
    """A sub-command for each data set, and `merge`."""
    commands = parser.add_subparsers(dest="dataset", required=True)
    for kind in data_sets():
        command = commands.add_parser(kind.name, help=kind.help, formatter_class=parser.formatter_class)
        _add_flags(command, kind.downloads)
        for name, options in kind.flags.items():
            command.add_argument(name, **options)
        command.set_defaults(kind=kind, **kind.defaults)
    add_index_command(commands, parser.formatter_class)
    merge = commands.add_parser("merge", help="write the index of the parts that --shard made")
    merge.add_argument("out", help="the folder or address that was --out")


def run_command(args: argparse.Namespace, words: Sequence[str]) -> None:
    """Do what the flags of `add_commands` say, and print what was done. words: the command line that they stood on."""
    if args.dataset == "merge":
        lines = _merged(args.out)
    elif args.dataset == "index":
        lines = run_index(args)
    elif args.engine != "local" or args.shares > 1:
        lines = _on_engine(args, words)
    else:
        lines = _performed(args)
    for line in lines:
        _say(line)


def prepare_share(
    command_line: str | Sequence[str], k: int, n: int, folder: str | os.PathLike | None = None
) -> list[str]:
    """Do share k (1 to n) of what `python scripts/prepare_data.py COMMAND_LINE` does; gives its report, line by line.

    A unit of work for any engine: its arguments are texts and numbers, and it runs wherever the files are seen. Called
    again, after a kill too, it continues; `prepare_data.py merge` joins what the shares wrote. folder: where relative
    paths of the command line begin, by default the present one. Raises UserError.
    """
    words = shlex.split(command_line) if isinstance(command_line, str) else list(command_line)
    parser = make_parser("")
    add_commands(parser)
    try:
        args = parser.parse_args(words)
    except SystemExit as stop:  # which would end the process of the engine; what is wrong stands on its stderr
        raise UserError(f"prepare_data.py {pasted(words)}: no such command") from stop
    if args.dataset in ("merge", "index"):
        raise UserError(f"prepare_data.py {args.dataset}: is no work that shares divide")
    args.shard = f"{k}/{n}"
    with _working_in(folder):
        return list(_performed(args))


def _share(words: Sequence[str], n: int, folder: str, k: int) -> list[str]:
    """`prepare_share` with its number last, as engines give it."""
    return prepare_share(words, k, n, folder)


@contextmanager
def _working_in(folder: str | os.PathLike | None) -> Iterator[None]:
    """Work in a folder: engines start their processes somewhere else than where the command was given.

    A process has one working folder, and some engines have threads: those of another folder wait for their turn.
    """
    here = os.path.abspath(folder or os.getcwd())
    with _turn:
        _turn.wait_for(lambda: not _inside or _inside[0][0] == here)
        before = _inside[0][1] if _inside else os.getcwd()
        try:
            os.chdir(here)
        except OSError as error:
            raise UserError(
                f"{here}: cannot be entered on {platform.node()} ({error.strerror}); all machines must see the folder "
                "that the command is given in"
            ) from error
        _inside.append((here, before))
    try:
        yield
    finally:
        with _turn:
            _inside.pop()
            if not _inside:
                os.chdir(before)
                _turn.notify_all()


def _on_engine(args: argparse.Namespace, words: Sequence[str]) -> Iterator[str]:
    """All shares on an engine, then the index of what they wrote; yields the report."""
    if args.shares == 1 or args.dry_run or args.shard != WHOLE:
        raise UserError(
            f"--engine {args.engine} does all of --shares N, of which N is two or more, such as four for each core; "
            "--shard and --dry_run go without both"
        )
    failed = []
    share = partial(_share, list(words), args.shares, os.getcwd())
    for outcome in run_shares(args.engine, share, args.shares, args.workers or 1):
        yield from outcome.lines
        if outcome.error is not None:
            failed.append(f"share {outcome.number} of {args.shares}: {outcome.error}")
    others = f" (and {len(failed) - 1} other shares)" if len(failed) > 1 else ""
    try:
        if not getattr(args, "download_only", False):
            yield from _merged(args.out)
    except UserError as error:
        if not failed:
            raise
        raise UserError(f"{failed[0]}{others}") from error  # why parts are missing
    if failed:
        raise UserError(f"{failed[0]}{others}")


def _merged(out: str) -> Iterator[str]:
    """Write the index of each group of parts; yields the report."""
    folder, address = place_of(out)
    for path, content in merge_parts(folder):
        written = path
        if address is not None:
            written = joined(address, path.name)
            for sent in (path.with_suffix(".index"), path):
                open_storage(address).write(sent.name, sent)
        yield f"{written}: {len(content['parts'])} parts, {content['videos']} videos, {content['sequences']} items"


def place_of(out: str) -> tuple[Path, str | None]:
    """Where output grows on this machine, and the address that it is sent to, if that is what `out` is.

    What goes to s3://bucket/data grows in data.upload/data, so that names are the same here and there.
    """
    if not is_address(out):
        return Path(out), None
    name = divided(out.rstrip("/"))[1] if is_address(out.rstrip("/")) else ""
    if not name:
        raise UserError(f"--out {out}: names no place; an address such as s3://bucket/data is needed")
    return Path(f"{name}.upload", name), out.rstrip("/")


def _performed(args: argparse.Namespace) -> Iterator[str]:
    """Do what the flags of a data set say; yields the report."""
    dataset, shard = args.kind.from_args(args), Shard.parse(args.shard)
    if args.split not in ("all", *dataset.splits):
        parts = ", ".join(split or "no parts" for split in dataset.splits)
        raise UserError(f"--split {args.split}: {dataset.name} has {parts}")
    place = Place(
        Path(getattr(args, "root", ".")),
        getattr(args, "url_root", None),
        getattr(args, "insecure", False),
        share=shard.count > 1,
        delete_archives=getattr(args, "delete_archives", False),
    )
    out, address = place_of(args.out)
    job = Job(
        dataset, place, out, args.format, sequence_settings(args),
        dataset.splits if args.split == "all" else (args.split,), shard,
        Selection.from_args(args), args.clips_per_video, args.keep_going,
        Packing(args.members, args.shard_size, address=address),
    )  # fmt: skip
    check_packing(job.packing, job.format)
    if address is not None:
        open_storage(address)  # says which package is missing before anything is made
    if getattr(args, "download_only", False) and not args.dry_run:
        obtain(job)
        yield f"{place.root}: {args.dataset} is there"
    else:
        yield from job_lines(job, args)


def add_index_command(commands: argparse._SubParsersAction, formatter: type) -> None:
    index = commands.add_parser("index", help="index tar shards, so that clips of them can be read in any order",
        formatter_class=formatter)  # fmt: skip
    add = index.add_argument
    add("shards", help="a folder of tars, one tar, braces such as data/x-{000000..000999}.tar, or the JSON of wids; on "
        "this machine or at an address such as s3://bucket/x-{000..099}.tar")  # fmt: skip
    add("--out", help="the index, where it cannot lie beside the shards; what is opened is then its name in .index")
    add("--workers", type=nonnegative_int, default=0, help="processes; 0: one per core")
    add("--max_bad_fraction", type=fraction, default=0.5, help="exit with status 2 if more than this part of the "
        "videos cannot be read (the others are indexed)")  # fmt: skip
    add("--restart", action="store_true", help="read all shards again")


def run_index(args: argparse.Namespace) -> list[str]:
    """Index the shards; what was done, for people."""
    from videodata.tars.scan import index_shards

    if args.out and not args.out.endswith(".index"):
        raise UserError(f"--out {args.out}: the name of an index ends in .index")
    options = {"workers": args.workers, "restart": args.restart, "max_bad_fraction": args.max_bad_fraction}
    return index_shards(args.shards, args.out, **options).lines()


def run_job(job: Job, args: argparse.Namespace) -> None:
    """Plan or prepare, by the flags of `add_run_flags`."""
    for line in job_lines(job, args):
        _say(line)


def job_lines(job: Job, args: argparse.Namespace) -> Iterator[str]:
    """The same; yields the report."""
    if args.dry_run:
        yield from plan(job)
        return
    allowed = 1.0 if args.keep_going else args.max_bad_fraction
    yield from prepare(job, workers=args.workers or None, max_bad_fraction=allowed, restart=args.restart)


def _say(line: str) -> None:
    sys.stdout.write(f"{one_line(line)}\n")  # the name of a folder may be no text
    sys.stdout.flush()  # a part can take hours


def _add_flags(command: argparse.ArgumentParser, downloads: bool) -> None:
    add = command.add_argument
    add("--out", required=True, help="folder of the result; with --format npy also the name of one .npy for all parts, "
        "with --format tar also an address such as s3://bucket/data, to which finished shards are sent")  # fmt: skip
    add("--format", choices=FORMATS, default="npy", help="npy: sequences of --num_frames; hdf5, frames: whole videos; "
        "river: HDF5 as RIVER and Neural SDE read it; videos: mp4; tar: shards of WebDataset")  # fmt: skip
    add("--members", choices=MEMBERS, default=Packing.members, help="of tars: videos, copied where they are wanted as "
        "they are and else H.264; npy: uint8 arrays (T, H, W, 3)")  # fmt: skip
    add("--shard_size", type=byte_count, default=Packing.shard_size, metavar="BYTES",
        help="of tars, such as 1GB; the video that reaches it is the shard's last")  # fmt: skip
    add("--split", default="all", help="one part of the data set (train, val, test)")
    add("--shard", default=WHOLE, metavar="I/N",
        help="do the I-th of N shares; when all are done: prepare_data.py merge")  # fmt: skip
    add("--shares", type=number(int, 1, MOST_SHARES), default=1,
        help="do all shares of so many, each by one call, and merge them")  # fmt: skip
    add("--engine", choices=ENGINES, default="local", help="what calls the shares: this machine, or the cluster that "
        "Ray, Dask or Spark finds, where all see the same files; --workers are those of a share, 0: one")  # fmt: skip
    add("--clips_per_video", type=nonnegative_int, default=0, help="take the first n sequences of each video; 0: all")
    add_sequence_flags(command)
    add_selection_flags(command)
    add_run_flags(command)
    if not downloads:
        return
    add("--root", default=".", help="folder of the archives and of what they hold; what is there is not fetched again")
    add("--url_root", help="take all files from below this address in place of the published hosts, such as a mirror "
        "in your network: http://mirror/data or file:///mnt/data")  # fmt: skip
    add("--insecure", action="store_true", help="accept any TLS certificate of the server")
    add("--download_only", action="store_true", help="stop when everything is unpacked")
    add("--delete_archives", action="store_true", help="delete each archive once it is unpacked")


def add_sequence_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of SequenceSettings, which checks their ranges for every caller."""
    rules = [rule for rule in RESIZE_RULES if rule != "none"]
    add = parser.add_argument
    add("--num_frames", type=positive_int, default=50, help="frames per sequence")
    add("--width", type=positive_int, default=320, help="width of the frames in pixels")
    add("--height", type=positive_int, default=240, help="height of the frames in pixels")
    add("--stride", type=positive_int, default=1, help="take every n-th frame of a video")
    add("--resize", choices=rules, default="squeeze", help="squeeze ignores the aspect ratio, crop and pad keep it")
    add("--keep_damaged", action="store_true", help="keep what can be decoded of a damaged video")


def sequence_settings(args: argparse.Namespace) -> SequenceSettings:
    return SequenceSettings(args.num_frames, args.height, args.width, args.stride, args.resize, args.keep_damaged)


def add_selection_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--max_videos", type=nonnegative_int, default=0, help="take only the first n videos; 0: all")
    add("--classes", default="", help="take only these classes (sub-folders), separated by commas")
    add("--split_file", help="take only the videos of a list such as trainlist01.txt")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that do not change the result."""
    add = parser.add_argument
    add("--workers", type=nonnegative_int, default=0, help="decoding processes; 0: one per core")
    add("--max_bad_fraction", type=fraction, default=0.5, help="exit with status 2 if more than this part of the "
        "videos cannot be read (the rest is written)")  # fmt: skip
    add("--keep_going", action="store_true", help="the same as --max_bad_fraction 1")
    add("--restart", action="store_true", help="begin again, over a partial or finished file")
    add("--dry_run", action="store_true", help="only say what would be done and how large the result would be")
