"""BAIR robot pushing, small version: Ebert et al., 2017, arXiv:1710.05268. TFRecord files with 30 frames of 64x64.

They are read without TensorFlow. A record is a uint64 length, the masked CRC-32C of these eight bytes, the data, and
the masked CRC-32C of the data, all little-endian. The data is a tf.train.Example: field 1 (Features) of a protocol
buffer, a map from names to lists of bytes or floats.
"""

from __future__ import annotations

import argparse
import struct
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google_crc32c import value as crc32c

from videodata.datasets.dataset import Archive, DataSet, Place, RemoteFile, Shard, report_left_out
from videodata.errors import UserError, VideoError, one_line
from videodata.files import Unreadable, atomic_path, files_in_folder, in_order, portable_name
from videodata.frame_folder import write_trees
from videodata.prepare import Decoder, available_cores, decode_source, source_videos
from videodata.resize import Size
from videodata.source import ClipSource, frame_range
from videodata.video_folder import InputVideo

ARCHIVE = RemoteFile(
    "http://rail.eecs.berkeley.edu/datasets/bair_robot_pushing_dataset_v0.tar",
    size=32_274_964_480,
    sha256="c6f8d164ab2be07174ef597e3e070d7466f3142caddc467b6af119b9458cd9cd",
)
INNER_FOLDER = "softmotion30_44k"
CAMERAS = ("image_aux1", "image_main")  # papers use the first
FRAMES, SIDE = 30, 64
HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # kinds of fields on the wire


class BairRecords(ClipSource):
    """The records of all .tfrecords files of a folder, in natural order; `<file>/<n>` with n from 0."""

    def __init__(self, folder: Path, camera: str = CAMERAS[0]) -> None:
        if camera not in CAMERAS:
            raise UserError(f"--camera must be one of {', '.join(CAMERAS)}, found {camera!r}")
        self.path, self.camera = str(folder), camera
        self._unreadable: Unreadable = {}
        files = files_in_folder(folder, {".tfrecords"}, deep=False, unreadable=self._unreadable)
        files = in_order(folder, [*files, *self._unreadable])
        if not files:
            raise UserError(f"{folder}: holds no .tfrecords file")
        self._records = [(file, number, record) for file in files for number, record in enumerate(self._find(file))]

    def __len__(self) -> int:
        return len(self._records)

    def id(self, index: int) -> str:
        file, number, _ = self._records[index]
        return f"{one_line(file.stem)}/{number}"

    def length(self, index: int) -> int:
        return FRAMES

    def size(self, index: int) -> Size:
        return SIDE, SIDE

    def stamp(self, index: int) -> str:
        return f"{self._records[index][2].length} {self.camera}"

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        features = self._features(index)
        chosen = frame_range(self.id(index), FRAMES, start, count, step)
        pictures = []
        for frame in chosen:
            encoded = features.get(f"{frame}/{self.camera}/encoded")
            if encoded is None or len(encoded) != 1 or len(encoded[0]) != SIDE * SIDE * 3:
                raise VideoError(self.id(index), f"frame {frame} of {self.camera} is not {SIDE}x{SIDE} RGB")
            pictures.append(np.frombuffer(encoded[0], np.uint8).reshape(SIDE, SIDE, 3))
        return np.stack(pictures)

    def motions(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Action, float32 (30, 4), and position of the gripper, float32 (30, 3). Raises VideoError."""
        features = self._features(index)
        try:
            stacked = [
                np.stack([features[f"{frame}/{name}"] for frame in range(FRAMES)])
                for name in ("action", "endeffector_pos")
            ]
        except (KeyError, ValueError, TypeError) as error:
            raise VideoError(self.id(index), f"its actions and states are incomplete ({error})") from error
        if stacked[0].shape != (FRAMES, 4) or stacked[1].shape != (FRAMES, 3):
            raise VideoError(self.id(index), "its actions and states do not have 4 and 3 numbers")
        return stacked[0], stacked[1]

    def _find(self, file: Path) -> list[Record]:
        """Its records; one that is damaged stands for a file that cannot be read."""
        if file not in self._unreadable:
            try:
                return find_records(file)
            except OSError as error:
                self._unreadable[file] = f"cannot be opened ({error.strerror})"
        return [Record(0, None)]

    def _features(self, index: int) -> dict:
        file, _, record = self._records[index]
        if file in self._unreadable:
            raise VideoError(file, self._unreadable[file])
        data = read_record(file, record)
        try:
            return read_example(data)
        except (ValueError, KeyError, StopIteration, UnicodeDecodeError) as error:
            raise VideoError(self.id(index), f"is no record of this data set ({error})") from error


class Bair(DataSet):
    """Train and test as published. Actions and states go into `<name>.actions.npz`."""

    name, help, splits = "bair", "BAIR robot pushing, small: 43,520 clips of 30 frames", ("train", "test")
    flags = {"--camera": {"choices": CAMERAS, "default": CAMERAS[0], "help": "papers use image_aux1"}}
    defaults = {"width": 64, "height": 64, "num_frames": 30}
    licence = "none stated; made for research by the Berkeley Artificial Intelligence Research laboratory"
    mean_frames, one_length = FRAMES, True
    counts = {"train": 43_264, "test": 256}
    archive = ARCHIVE

    def __init__(self, camera: str = CAMERAS[0]) -> None:
        self.camera = camera
        self._sources: dict[Path, BairRecords] = {}

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Bair:
        return cls(args.camera)

    def archives(self, place: Place, split: str | None) -> list[Archive]:
        return [Archive(self.archive, "bair", self.archive.name)]

    def videos(self, place: Place, split: str | None, shard: Shard) -> list[InputVideo]:
        return source_videos(self.records(place.root / "bair", split), split)

    def records(self, root: Path, split: str | None) -> BairRecords:
        """The records of one part below `root`, which is the unpacked archive or its inner folder."""
        folder = next((f for f in (root / INNER_FOLDER / split, root / split) if f.is_dir()), None)
        if folder is None:
            raise UserError(f"{root}: has no folder {INNER_FOLDER}/{split}")
        if folder not in self._sources:
            self._sources[folder] = BairRecords(folder, self.camera)
        return self._sources[folder]

    def decoder(self, place: Place, split: str | None) -> Decoder:
        return decode_source(self.records(place.root / "bair", split))

    def describe(self, videos: Sequence[InputVideo]) -> dict:
        return {**super().describe(videos), "camera": self.camera}

    def check_extras(self, path: Path) -> None:
        check_motions(motions_path(path))

    def write_extras(self, place: Place, split: str | None, ids: Sequence[str], path: Path) -> list[str]:
        return [write_motions(self.records(place.root / "bair", split), ids, motions_path(path))]


def motions_path(path: Path) -> Path:
    """Where the actions of the records in an array or folder go."""
    return path.with_name(path.name.removesuffix(".npy") + ".actions.npz")


def check_motions(path: Path) -> list[str] | None:
    """The ids in a file of `write_motions`; None for no file. Raises UserError for a file that it did not write."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            if set(content.files) == {"id", "action", "endeffector_pos"}:
                return content["id"].tolist()
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile):
        pass
    raise UserError(f"{path}: is a file of yours where actions must be written; move it away, or name another folder")


def write_motions(source: BairRecords, ids: Sequence[str], path: Path) -> str:
    """Write `id` (n,), `action` (n, 30, 4) and `endeffector_pos` (n, 30, 3), float32, as .npz; a line about it."""
    said = f"{path}: actions {(len(ids), FRAMES, 4)} and gripper positions {(len(ids), FRAMES, 3)}"
    if check_motions(path) == list(ids):
        return said
    indices = {source.id(index): index for index in range(len(source))}
    actions = np.empty((len(ids), FRAMES, 4), np.float32)
    states = np.empty((len(ids), FRAMES, 3), np.float32)
    for row, id in enumerate(ids):
        actions[row], states[row] = source.motions(indices[id])
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, id=np.array(list(ids)), action=actions, endeffector_pos=states)
    return said


def convert_to_frames(root: Path, camera: str = CAMERAS[0], jobs: int = 0) -> Iterator[str]:
    """Write the records below `root` as `processed_data/<split>/<file>/<k>/<i>.png`, k from 1, i from 0.

    Those that are there stay. Actions and gripper positions go beside them. jobs: threads; 0: one per core. Yields what
    was done. Raises UserError.
    """
    if not (root / INNER_FOLDER).is_dir():
        raise UserError(
            f"{root}: has no folder {INNER_FOLDER}; `python scripts/prepare_data.py bair --root . "
            "--download_only --out bair` downloads it to ./bair"
        )
    dataset, out, failures = Bair(camera), root / "processed_data", []
    for split in dataset.splits:
        check_motions(out / f"{split}.actions.npz")
    for split in dataset.splits:
        source = dataset.records(root, split)
        places = [source.id(index).rsplit("/", 1) for index in range(len(source))]
        folders = [out / split / portable_name(file) / str(int(number) + 1) for file, number in places]
        tasks = [(folder, partial(source.read, index)) for index, folder in enumerate(folders)]
        failures += write_trees(tasks, jobs or available_cores())
        good = [source.id(index) for index, folder in enumerate(folders) if folder.is_dir()]
        yield f"{out / split}: {len(good)} of {len(source)} records"
        yield write_motions(source, good, out / f"{split}.actions.npz")
    yield (
        "to train on them: python scripts/train_lvt.py --config-file configs/lvt/PR-DVQVAE2.yaml "
        f"""DATASETS.TRAIN "('{out}#train',)" DATASETS.TEST "('{out}#test',)\""""
    )
    report_left_out(failures, "records")


class Record(NamedTuple):
    """Where the data of a record lies in its file. length None: the header is damaged, what follows cannot be found."""

    offset: int
    length: int | None


def find_records(path: Path) -> list[Record]:
    """All records of a file, from their headers alone; a damaged one is the last, or the only one of an empty file."""
    size, position, records = path.stat().st_size, 0, []
    if not size:
        return [Record(0, None)]
    with open(path, "rb") as file:
        while position < size:
            file.seek(position)
            header = file.read(HEADER.size)
            length, crc = HEADER.unpack(header) if len(header) == HEADER.size else (None, None)
            if length is None or masked(crc32c(header[:8])) != crc or position + 16 + length > size:
                records.append(Record(position, None))
                break
            records.append(Record(position + HEADER.size, length))
            position += HEADER.size + length + FOOTER.size
    return records


def read_record(path: Path, record: Record) -> bytes:
    """The data of a record. Raises VideoError when its checksum is wrong."""
    if record.length is None:
        raise VideoError(path, f"is damaged or cut off at byte {record.offset}; download the archive again")
    with open(path, "rb") as file:
        file.seek(record.offset)
        data = file.read(record.length)
        footer = file.read(FOOTER.size)
    if FOOTER.unpack(footer)[0] != masked(crc32c(data)):
        raise VideoError(path, f"the record at byte {record.offset} is damaged (wrong checksum)")
    return data


def masked(crc: int) -> int:
    """The form in which a checksum is stored."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_example(data: bytes) -> dict[str, list[memoryview] | np.ndarray]:
    """Features of an Example by name: bytes as a list of views, floats as float32 (n,). Raises ValueError."""
    features: dict[str, list[memoryview] | np.ndarray] = {}
    view = memoryview(data)
    for number, value in _fields(view):
        if number != 1:
            continue
        for _, entry in _fields(value):
            pair = dict(_fields(entry))
            features[bytes(pair[1]).decode()] = _values(pair[2])
    return features


def _values(feature: memoryview) -> list[memoryview] | np.ndarray:
    kind, content = next(_fields(feature))
    if kind == 1:
        return [value for _, value in _fields(content)]
    if kind == 2:
        return np.concatenate([np.frombuffer(value, "<f4") for _, value in _fields(content)])
    raise ValueError(f"lists of kind {kind} are not expected")


def _fields(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of each field of a message; the content of a varint is left out."""
    position = 0
    while position < len(view):
        key, position = _varint(view, position)
        kind = key & 7
        if kind == VARINT:
            _, position = _varint(view, position)
            continue
        if kind == LENGTH:
            size, position = _varint(view, position)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"field of kind {kind}")
        if position + size > len(view):
            raise ValueError("a field is longer than its message")
        yield key >> 3, view[position : position + size]
        position += size


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """A number of seven bits per byte, and the position after it."""
    value = shift = 0
    while position < len(view) and shift < 64:
        byte = view[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError("a number does not end")
