"""Moving MNIST: Srivastava, Mansimov and Salakhutdinov, ICML 2015, arXiv:1502.04681. Two digits cross 64x64 pixels.

Only the test set is published: 10,000 clips of 20 frames, the first ten given and the others predicted. Everyone makes
their own training clips from the 60,000 training digits of MNIST; here from a file that the user has (`--mnist`).
"""

from __future__ import annotations

import argparse
import gzip
import zlib
from pathlib import Path

import numpy as np

from training.cli import nonnegative_int, positive_int
from videodata.datasets.dataset import DataSet, Place, RemoteFile, Shard
from videodata.errors import UserError
from videodata.npy import map_array
from videodata.prepare import Decoder, decode_source, source_videos
from videodata.resize import Size
from videodata.shapes import bounce
from videodata.source import ClipSource, frame_range
from videodata.video_folder import InputVideo

TEST_SET = RemoteFile(
    "http://www.cs.toronto.edu/~nitish/unsupervised_video/mnist_test_seq.npy",
    size=819_200_096,
    sha256="c2a3e8d3939c001ab77bf543f130157424efa486bb4d0974d2cebb773b13f8b3",
)
FRAMES, SIDE = 20, 64
DIGIT = 28  # side of an image of MNIST
STEP = 0.1  # of the free range, SIDE - DIGIT, that a digit moves in each frame
TEST_DIGITS = 10_000  # images in MNIST's own test file, which nothing is trained on
IDX_IMAGES = b"\x00\x00\x08\x03"  # uint8, three axes


class PublishedClips(ClipSource):
    """The published file, uint8 (20, 10000, 64, 64): time first."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        array = map_array(self.path)
        fits = array.ndim == 4 and array.shape == (FRAMES, max(1, array.shape[1]), SIDE, SIDE)
        if array.dtype != np.uint8 or not fits:
            raise UserError(f"{path}: expected uint8 ({FRAMES}, N, {SIDE}, {SIDE}), found {array.dtype} {array.shape}")
        self._array = array

    def __len__(self) -> int:
        return self._array.shape[1]

    def id(self, index: int) -> str:
        return f"test_{index:05d}"

    def length(self, index: int) -> int:
        return FRAMES

    def size(self, index: int) -> Size:
        return SIDE, SIDE

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        chosen = frame_range(self.path, FRAMES, start, count, step)
        frames = self._array[chosen.start : chosen.stop : chosen.step, index]
        return np.repeat(frames[..., None], 3, axis=-1)


class TrainingClips(ClipSource):
    """Clips made of the images of a local MNIST file: two digits start anywhere, move anywhere, and are reflected."""

    def __init__(self, images: Path, count: int, seed: int = 0) -> None:
        self.path, self._count, self._seed = str(images), count, seed
        self._images = read_idx_images(images)
        if len(self._images) == TEST_DIGITS:
            raise UserError(f"{images}: these are MNIST's test digits; training clips are made from its training file")

    def __len__(self) -> int:
        return self._count

    def id(self, index: int) -> str:
        return f"train_{index:05d}"

    def length(self, index: int) -> int:
        return FRAMES

    def size(self, index: int) -> Size:
        return SIDE, SIDE

    def stamp(self, index: int) -> str:
        return f"seed {self._seed} of {len(self._images)} digits"

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        times = np.array(frame_range(self.path, FRAMES, start, count, step))
        rng = np.random.default_rng((self._seed, index))
        frames = np.zeros((len(times), SIDE, SIDE), np.uint8)
        for _ in range(2):
            image = self._images[rng.integers(len(self._images))]
            begin, direction = rng.random(2), rng.uniform(0, 2 * np.pi)
            path = begin + STEP * np.array([np.sin(direction), np.cos(direction)]) * times[:, None]  # (T, 2)
            corners = (bounce(path, 0.0, np.ones(2)) * (SIDE - DIGIT)).astype(int)  # whole pixels
            for frame, (top, left) in zip(frames, corners, strict=True):
                seen = frame[top : top + DIGIT, left : left + DIGIT]
                np.maximum(seen, image, out=seen)
        return np.repeat(frames[..., None], 3, axis=-1)


def read_idx_images(path: Path) -> np.ndarray:
    """uint8 (N, 28, 28) of a file such as train-images-idx3-ubyte, also as .gz. Raises UserError."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    count, *sides = np.frombuffer(data[4:16].ljust(12, b"\0"), ">u4").tolist()
    if data[:4] != IDX_IMAGES or sides != [DIGIT, DIGIT] or count < 1 or len(data) != 16 + count * DIGIT * DIGIT:
        raise UserError(f"{path}: is no whole file of MNIST images such as train-images-idx3-ubyte.gz")
    return np.frombuffer(data, np.uint8, offset=16).reshape(count, DIGIT, DIGIT)


class MovingMnist(DataSet):
    """The published test clips, and training clips where there is a file of MNIST's training digits."""

    name, help = "moving_mnist", "Moving MNIST: the 10,000 test clips; training clips from a local MNIST file"
    defaults = {"width": SIDE, "height": SIDE, "num_frames": FRAMES}
    flags = {
        "--mnist": {"type": Path, "help": "train-images-idx3-ubyte(.gz) of MNIST: a part train is made from it"},
        "--train_clips": {"type": positive_int, "default": 10_000, "help": "how many clips are made from --mnist"},
        "--seed": {"type": nonnegative_int, "default": 0, "help": "another seed gives other training clips"},
    }
    licence = "none found: do not pass it on; cite Srivastava, Mansimov and Salakhutdinov, ICML 2015"
    mean_frames, one_length = FRAMES, True
    file, counts = TEST_SET, {"test": 10_000}

    def __init__(self, mnist: Path | None = None, train_clips: int = 10_000, seed: int = 0) -> None:
        self.mnist, self.train_clips, self.seed = mnist, train_clips, seed
        self.splits = ("train", "test") if mnist else ("test",)
        self._sources: dict[str | None, ClipSource] = {}

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> MovingMnist:
        if args.split == "train" and not args.mnist:
            raise UserError(
                "--split train: the training clips are made from MNIST's images: name its file with --mnist"
            )
        return cls(args.mnist, args.train_clips, args.seed)

    def obtain(self, place: Place, split: str | None, shard: Shard) -> None:
        if split == "test":
            place.fetch(self.file, self._name, reserve=place.reserve)

    def plan(self, place: Place, split: str | None) -> list[str]:
        path = place.root / self._name
        if split == "train":
            return [f"make {self.train_clips} clips from {self.mnist}"]
        if path.exists():
            return [f"{path} exists: download is skipped"]
        return [f"download {place.address(self.file.url)} ({self.file.bytes / 1e9:.2f} GB)"]

    def is_there(self, place: Place, split: str | None) -> bool:
        return split == "train" or (place.root / self._name).exists()

    def videos(self, place: Place, split: str | None, shard: Shard) -> list[InputVideo]:
        return source_videos(self._source(place, split), split)

    def published(self, split: str | None) -> int | None:
        return self.train_clips if split == "train" else super().published(split)

    def decoder(self, place: Place, split: str | None) -> Decoder:
        return decode_source(self._source(place, split))

    def _source(self, place: Place, split: str | None) -> ClipSource:
        if split not in self._sources and split == "train":
            self._sources[split] = TrainingClips(self.mnist, self.train_clips, self.seed)
        elif split not in self._sources:
            self._sources[split] = PublishedClips(place.root / self._name)
        return self._sources[split]

    @property
    def _name(self) -> str:
        """Of the file below the root."""
        return f"moving_mnist/{self.file.name}"
