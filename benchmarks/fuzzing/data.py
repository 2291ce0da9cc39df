"""Small valid files of every kind that `videodata` reads, and the public functions that read them.

A reader takes the path of the file that was damaged and gives the number of items that it found, or None where items
cannot be counted. It refuses by VideoError, UserError or VVAEError; everything else that it raises is a finding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
from PIL import Image

from tests.videodata.miniatures import bair_record, make_tar
from video_vae.train import stored_shape
from videodata import declared_splits, open_clips, probe, read_video, write_video
from videodata.archive import extract
from videodata.datasets.bair import BairRecords
from videodata.datasets.dataset import read_split_file
from videodata.datasets.kinetics600 import convert_to_frames
from videodata.datasets.kth import read_sequences
from videodata.datasets.moving_mnist import PublishedClips, read_idx_images
from videodata.datasets.youtube import read_clips
from videodata.errors import UserError
from videodata.frame_folder import FrameFolder, read_image, write_frame_folder
from videodata.hdf5 import Hdf5Source, Hdf5Writer
from videodata.sources import merge_parts
from videodata.storage import open_storage
from videodata.tars.index import INDEX_NAME, write_index
from videodata.tars.scan import index_shards, scan_shard
from videodata.video import count_frames, iter_frames
from vqgan.data import open_frames
from vvae.src.images import read_image as read_vvae_image
from vvae.src.video_io import read_video as read_vvae_video

Reader = Callable[[Path], "int | None"]
ROOT = Path(__file__).resolve().parents[2]
RARS = ROOT.parent / "shared" / "clips" / "rar"
FRAMES, SIDE = 8, 32
LARGEST_RAR = 3000  # bytes
CODECS = {  # format, codec, pixel format
    "mp4": ("mp4", "libx264", "yuv420p"),
    "mkv": ("matroska", "libx264", "yuv420p"),
    "ts": ("mpegts", "mpeg2video", "yuv420p"),
    "avi": ("avi", "mpeg4", "yuv420p"),
    "webm": ("webm", "libvpx", "yuv420p"),
    "gif": ("gif", "gif", "rgb8"),
}
OUTPUTS = ("out", "out.partial", "out.mp4", "t.json")  # what readers may write; the partial one is for the next run


@dataclasses.dataclass(frozen=True)
class Seed:
    """Valid files by their names, the one of them that is damaged, and what reads it."""

    files: dict[str, bytes]
    target: str
    readers: tuple[Reader, ...]
    torn_is_valid: bool = False  # a file that was cut off may be a valid file with fewer items


class Disagreement(Exception):
    """Two readers of one file say different things, or a file that was written cannot be read back."""


def opens(load: Callable[[Path], Any]) -> Reader:
    """The reader that calls a function and counts nothing."""
    return lambda path: load(path) and None


def agree(fact: bool, what: str) -> None:
    if not fact:
        raise Disagreement(what)


@functools.cache
def pictures() -> np.ndarray:
    """Frames uint8 (FRAMES, SIDE, SIDE, 3): a square that moves over a gradient, each frame of its own grey."""
    frames = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[:] = np.arange(SIDE)[:, None] * 3 + 12 * number
        frame[8:20, 2 * number : 2 * number + 12] = (200, 40, 90)
    return frames


@functools.cache
def film(kind: str) -> bytes:
    """The frames as a video file, the same bytes in every process."""
    container_format, codec, pixels = CODECS[kind]
    stream = io.BytesIO()
    with av.open(stream, "w", format=container_format, options={"fflags": "+bitexact"}) as container:
        video = container.add_stream(codec, rate=25, width=SIDE, height=SIDE, pix_fmt=pixels)
        video.codec_context.gop_size, video.codec_context.thread_count = 4, 1
        for picture in pictures():
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
    return stream.getvalue()


def written(write: Callable[[Path], Any]) -> dict[str, bytes]:
    """The files that a function writes into a folder, by their names in it."""
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        files = sorted(path for path in Path(name).rglob("*") if path.is_file())
        return {path.relative_to(name).as_posix(): path.read_bytes() for path in files}


def video_seeds(kind: str) -> list[Seed]:
    """A film alone, and among good ones. An AVI, which has its index at its end, may be cut off."""
    beside = {f"in/class/{name}.{kind}": film(kind) for name in ("a", "b", "c")}
    torn = kind in ("avi", "ts", "gif")  # none of them states a length
    alone = Seed({f"film.{kind}": film(kind)}, f"film.{kind}", (film_alone, film_written, film_of_vvae), torn)
    return [alone, alone, *(Seed(beside, name, (film_among_good_ones,)) for name in beside)]


def film_alone(path: Path) -> int:
    frames, _ = read_video(path)
    probe(path)
    counted = count_frames(path)
    agree(counted == len(frames), f"count_frames says {counted}, read_video gives {len(frames)} frames")
    if len(frames) > 4:
        window = read_video(path, start=2, count=3)[0]
        agree(np.array_equal(window, frames[2:5]), "frames 2-4 read alone are not those of the whole")
    if len(frames) >= 4:
        open_clips(path, frames=4, size=16)[0]
    return len(frames)


def film_written(path: Path) -> int:
    """What is made of a film in passing is whole, or is not there."""
    out = path.parent / "out"
    count = write_frame_folder(out / "frames", iter_frames(path))
    agree(FrameFolder(out).length(0) == count, "fewer pictures than frames")
    with Hdf5Writer(out / "shards") as writer:
        writer.add(iter_frames(path))
    agree(Hdf5Source(out / "shards").length(0) == count, "fewer frames in HDF5")
    frames, fps = read_video(path)
    if 0 < fps <= 1000 and frames[0].size < 10_000:
        write_video(path.parent / "out.mp4", frames, fps)
        agree(count_frames(path.parent / "out.mp4") == count, "fewer frames in the copy")
    return count


def film_of_vvae(path: Path) -> int:
    return len(read_vvae_video(path)[0])


def film_among_good_ones(path: Path) -> int:
    """The good ones come out right, whatever the bad one is."""
    clips = open_clips(path.parent, frames=4, size=16, on_error="skip")
    items = [clips[number] for number in range(len(clips))]
    agree(len(items) >= 2, f"{len(items)} of 2 good films are left")
    return len(items) - clips.skipped


def picture_seeds(kind: str) -> list[Seed]:
    """Pictures of every depth, alone and among good ones."""
    grey = Image.fromarray(pictures()[0, ..., 0].astype(np.uint16) * 257)
    modes = {"8": Image.fromarray(pictures()[0]), "grey": Image.fromarray(pictures()[0, ..., 0])}
    modes |= {"16": grey, "alpha": modes["8"].convert("RGBA"), "palette": modes["8"].convert("P")}
    seeds = []
    for name in modes if kind == "png" else ("8", "grey"):
        stream = io.BytesIO()
        modes[name].save(stream, format="JPEG" if kind == "jpg" else "PNG")
        seeds.append(Seed({f"x.{kind}": stream.getvalue()}, f"x.{kind}", (picture_alone,)))
        beside = {f"in/v/{number}.{kind}": stream.getvalue() for number in range(3)}
        seeds.append(Seed(beside, f"in/v/1.{kind}", (pictures_of_a_folder,)))
    return seeds


def picture_alone(path: Path) -> None:
    agree(np.array_equal(read_image(path), read_vvae_image(path)), "the two readers of pictures differ")


def pictures_of_a_folder(path: Path) -> int:
    clips = open_clips(path.parent.parent, frames=3, size=16)
    return len(clips[0])


def all_items(path: Path) -> int:
    """Every video of a source with all that is known of it, read to its last frame."""
    clips = open_clips(path, frames=2, size=16, on_error="skip", windows="consecutive")
    for number in range(min(len(clips), 20)):
        clips[number], clips.describe(number)
    clips.labels(), clips.provenance(), declared_splits(path)
    return len(clips)


def halves(path: Path) -> None:
    for split in ("train", "val"):
        clips = open_clips(path, frames=2, size=16, split=split)
        clips[len(clips) - 1]


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npy_seeds() -> list[Seed]:
    """Arrays alone and with their side-car, parts of a shared preparation, batch files, and the video VAE's data."""
    clips, readers = np.stack([pictures()[:4, ::2, ::2]] * 3), (all_items, halves, opens(stored_shape))
    videos = [
        {"id": f"a/{n}.avi", "label": "a", "group": f"g{n}", "fps": "25", "frames": 4, "first_sequence": n,
         "sequences": 1, "split": "train"} for n in range(3)
    ]  # fmt: skip
    facts = {"format": "videodata-npy", "version": 1, "num_frames": 4, "height": 16, "width": 16, "skipped": []}
    both = {"x.npy": npy(clips), "x.json": json.dumps({**facts, "videos": videos}).encode()}
    index = {"format": "videodata-parts", "version": 1, "parts": ["t-0001-of-0002.npy", "t-0002-of-0002.npy"]}
    parts = {f"t-000{number}-of-0002.{suffix}": both[f"x.{suffix}"] for number in (1, 2) for suffix in ("npy", "json")}
    batches = {f"in/x_batch_{number}.npy": npy(clips) for number in (1, 13)}
    published = {"mnist.npy": npy(np.zeros((20, 2, 64, 64), np.uint8))}
    return [
        Seed({"x.npy": npy(clips)}, "x.npy", readers),
        Seed({"x.npy": npy(pictures())}, "x.npy", (all_items, opens(stored_shape))),
        Seed(both, "x.npy", readers),
        Seed(both, "x.json", (lambda path: all_items(path.with_suffix(".npy")),)),
        Seed({**parts, "t.json": json.dumps(index).encode()}, "t.json", (all_items,)),
        Seed(parts, "t-0002-of-0002.json", (lambda path: len(merge_parts(path.parent)[0][1]["parts"]),)),
        Seed(batches, "in/x_batch_1.npy", (lambda path: len(open_frames(path.parent, "train", None)),)),
        Seed(published, "mnist.npy", (published_clips,)),
    ]


def published_clips(path: Path) -> int:
    clips = PublishedClips(path)
    clips.read(len(clips) - 1)
    return len(clips)


def idx_seeds() -> list[Seed]:
    content = b"\x00\x00\x08\x03" + np.array([3, 28, 28], ">u4").tobytes() + bytes(3 * 28 * 28)
    return [Seed({"train-images": content}, "train-images", (lambda path: len(read_idx_images(path)),))]


def hdf5_seeds() -> list[Seed]:
    """The three layouts."""

    def write(folder: Path) -> None:
        for layout in ("chunked", "river"):
            with Hdf5Writer(folder / layout, layout) as writer:
                for number in range(3):
                    writer.add(pictures()[:4, :16, :16], f"v{number}", "a", Fraction(25))
        with h5py.File(folder / "videogpt.hdf5", "w") as file:
            for split in ("train", "test"):
                file[f"{split}_data"], file[f"{split}_idx"] = pictures()[:, :16, :16], np.array([0, 4])

    return [Seed({"x.hdf5": content}, "x.hdf5", (all_items, halves)) for content in written(write).values()]


def tfrecord_seeds() -> list[Seed]:
    content = b"".join(bair_record(number, frames=2) for number in range(2))
    return [Seed({"in/x.tfrecords": content}, "in/x.tfrecords", (records,))]


def records(path: Path) -> int:
    source = BairRecords(path.parent)
    for number in range(len(source)):
        source.read(number, 0, 2)
        with contextlib.suppress(UserError):  # two frames of thirty
            source.motions(number)
    return len(source)


def archive_seeds(kind: str) -> list[Seed]:
    """Zip with and without compression, tar plain and packed; of rar what the shared clips hold, where they are."""
    members = {"a/one.bin": b"1" * 300, "a/b/two.bin": bytes(range(256)) * 2, "drei ü.txt": b"three", "empty": b""}
    found = []
    if kind == "zip":
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w", method) as opened:
                for name, data in members.items():  # a ZipInfo of its own has no time of today
                    opened.writestr(zipfile.ZipInfo(name), data, method)
            found.append(stream.getvalue())
    elif kind == "tar":
        found = [make_tar(members, mode) for mode in ("w", "w:bz2", "w:xz")]
    else:
        found = [path.read_bytes() for path in sorted(RARS.glob("*.rar")) if path.stat().st_size < LARGEST_RAR]
        found = [content for content in found if b"evil" not in content]
    return [Seed({f"x.{kind}": content}, f"x.{kind}", (unpacked,)) for content in found]


def unpacked(path: Path) -> int:
    folder = extract(path, path.parent / "out")
    return sum(entry.is_file() for entry in folder.rglob("*"))


def shard_seeds() -> list[Seed]:
    """A tar that is to be indexed, beside a good one, and the index of both."""
    good, other = ({f"{name}.mp4": film("mp4"), f"{name}.cls": b"1", f"{name}2.npy": npy(pictures()),
                    f"{name}2.json": b'{"fps": 25, "caption": "a square"}'} for name in ("v", "w"))  # fmt: skip
    tars = {"in/x.tar": make_tar(good, "w"), "in/y.tar": make_tar(other, "w")}

    def index(folder: Path) -> None:
        for name, content in tars.items():
            (folder / Path(name).name).write_bytes(content)
        parts = [scan_shard(open_storage(str(folder)), name, folder)[0] for name in ("x.tar", "y.tar")]
        for part in parts:
            part.shards[0] = dataclasses.replace(part.shards[0], modified=None)  # which is not that of the copies
        write_index(folder / INDEX_NAME, parts)

    whole = {**tars, f"in/{INDEX_NAME}": written(index)[INDEX_NAME]}
    return [Seed(tars, "in/x.tar", (indexed,)), *[Seed(whole, name, (shards,)) for name in list(whole)[::2]]]


def indexed(path: Path) -> int:
    index = path.parent.parent / "out" / "x.index"
    index_shards(path.parent, str(index), workers=1, max_bad_fraction=1)
    return all_items(index)


def shards(path: Path) -> int:
    return all_items(path.parent)


def list_seeds() -> list[Seed]:
    """Lists of videos, of splits, of sequences, of clips to download, of labels."""
    films = {f"v{number}.mp4": film("mp4") for number in range(3)}
    rows = "path,text,split\n" + "".join(f"v{n}.mp4,a cat {n},{'test' if n == 2 else 'train'}\n" for n in range(3))
    split = "Archery/v_Archery_g08_c01.avi 1\r\nYoYo/v_YoYo_g08_c02.avi 2\r\n" * 2
    sequences = "person01_boxing_d1\tframes\t1-95, 96-185\nperson02_walking_d2\tframes\t1-20, 30-40\n"
    clips = (
        "label,youtube_id,time_start,time_end,split\nplaying chess,abcdefghijk,3,13,train\nyoga,abcdefghij_,0,10,val\n"
    )
    labels = {"labels.txt": b"class\nother\n", "in/class/a.mp4": film("mp4")}
    return [
        Seed({**films, "list.csv": rows.encode()}, "list.csv", (all_items,), True),
        Seed({"trainlist01.txt": split.encode()}, "trainlist01.txt", (lambda path: len(read_split_file(path)),), True),
        Seed(
            {"00sequences.txt": sequences.encode()}, "00sequences.txt", (lambda path: len(read_sequences(path)),), True
        ),
        Seed({"clips.csv": clips.encode()}, "clips.csv", (lambda path: len(read_clips(path)),), True),
        Seed(labels, "labels.txt", (of_some_classes,), True),
    ]


def of_some_classes(path: Path) -> None:
    list(convert_to_frames(path.parent / "in", path.parent / "out", path, size=8))


KINDS: dict[str, Callable[[], list[Seed]]] = {
    **{kind: functools.partial(video_seeds, kind) for kind in CODECS},
    **{kind: functools.partial(picture_seeds, kind) for kind in ("png", "jpg")},
    **{"npy": npy_seeds, "idx": idx_seeds, "hdf5": hdf5_seeds, "tfrecord": tfrecord_seeds},
    **{kind: functools.partial(archive_seeds, kind) for kind in ("zip", "tar", "rar")},
    "lists": list_seeds,
    "shards": shard_seeds,
}
