"""Trees of frame images, one folder per video: the one reader of pictures, and folders that appear complete."""

from __future__ import annotations

import functools
import os
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from videodata.container import CODEC_ERRORS
from videodata.errors import VideoError, disk_errors, one_line
from videodata.files import Unreadable, has_suffix, is_hidden, natural_key, replace, scan_files, short_name, write_file
from videodata.resize import Size
from videodata.source import ClipSource, frame_range

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
# What Pillow raises about a file, besides what all readers do: each of its formats has its own way of failing.
PICTURE_ERRORS = (*CODEC_ERRORS, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError)
COMPRESSION = 4  # of 9: twice as fast as the default for a few per cent more bytes


class FrameFolder(ClipSource):
    """One video per folder of images. Its label is the name of the folder above it, if that is not the root."""

    def __init__(self, root: str | Path) -> None:
        self.path = str(root)
        root = Path(root)
        unreadable: Unreadable = {}
        found = scan_files(root, IMAGE_SUFFIXES, wanted="images", unreadable=unreadable)
        counts = Counter(folder for folder, _ in found)
        for path in unreadable:
            if has_suffix(path.name, IMAGE_SUFFIXES):  # a video without one of its frames is another video
                counts.pop(str(path.parent), None)
        self.broken = [VideoError(path, reason) for path, reason in unreadable.items()]
        if not counts and not self.broken:
            raise VideoError(root, "holds no images")
        self._folders = sorted(map(Path, counts), key=lambda folder: natural_key(folder.relative_to(root)))
        self._lengths = [counts[str(folder)] for folder in self._folders]

    def __len__(self) -> int:
        return len(self._folders)

    def id(self, index: int) -> str:
        name = self._folders[index].relative_to(self.path).as_posix()
        return one_line(Path(self.path).name if name == "." else name)

    def label(self, index: int) -> str | None:
        parts = self._folders[index].relative_to(self.path).parts
        return one_line(parts[-2]) if len(parts) > 1 else None

    def length(self, index: int) -> int:
        return self._lengths[index]

    def place(self, index: int) -> str:
        return str(self._folders[index])

    def size(self, index: int) -> Size:
        folder = self._folders[index]
        return read_image(folder / _frame_names(folder)[0]).shape[:2]

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        folder = self._folders[index]
        names = _frame_names(folder)
        frames = [read_image(folder / names[k]) for k in frame_range(folder, len(names), start, count, step)]
        if len({frame.shape for frame in frames}) > 1:
            raise VideoError(folder, f"its frames have different sizes: {sorted({f.shape[:2] for f in frames})}")
        return np.stack(frames)


def read_image(path: str | Path) -> np.ndarray:
    """A picture of any kind as uint8 (H, W, 3) RGB: upright, transparent parts over black, 16 bits rounded to 8.

    The one reader of pictures of the project. Floating-point numbers in [0, 1] are rounded too. Raises VideoError, also
    for a file of several pictures, and for numbers of which nobody says how much is white.
    """
    try:
        with Image.open(path) as image:
            pages = getattr(image, "n_frames", 1)
            if pages > 1 and image.format != "MPO":  # which is a JPEG with previews after the picture
                raise VideoError(path, f"holds {pages} pictures; write each into a file of its own")
            return _eight_bit_rgb(ImageOps.exif_transpose(image), path)
    except PICTURE_ERRORS as error:
        raise VideoError(path, f"is not a readable image ({error})") from error


def _eight_bit_rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":  # grey in 16 bits or more, which Pillow would cut at 255
        grey, white = np.asarray(image), 1 if image.mode == "F" else 65535
        if not (grey.min() >= 0 and grey.max() <= white):  # in this form it holds for NaN too
            kind = "floating-point numbers" if image.mode == "F" else "whole numbers"
            found = f"{kind} from {grey.min()} to {grey.max()}, not from 0 to {white}"
            raise VideoError(path, f"holds {found}: nobody says which of them is white; write 8 or 16 bits")
        return np.repeat(np.rint(grey * (255.0 / white)).astype(np.uint8)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba)
    return np.asarray(image.convert("RGB"))


def _frame_names(folder: Path) -> list[str]:
    return _listed(str(folder), folder.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _listed(folder: str, mtime_ns: int) -> list[str]:
    """Names of the frames in order; the time is part of the key, because it changes when a file comes or goes."""
    names = (name for name in os.listdir(folder) if has_suffix(name, IMAGE_SUFFIXES) and not is_hidden(name))
    return sorted(names, key=natural_key)


def save_png(path: Path, frame: np.ndarray | Image.Image) -> None:
    """Write one frame, uint8 (H, W, 3)."""
    picture = Image.fromarray(frame) if isinstance(frame, np.ndarray) else frame
    picture.save(path, format="png", compress_level=COMPRESSION)


def write_png(path: Path, picture: np.ndarray | Image.Image) -> Path:
    """Write a picture, uint8 (H, W, 3), whole or not at all; gives its path. Raises OSError when the disk refuses."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    write_file(path, functools.partial(image.save, format="PNG"))
    return path


def write_frame_folder(folder: Path, frames: Iterable[np.ndarray | Image.Image], first: int = 0) -> int:
    """Write `<folder>/<first>.png`, ...; the folder has its name when all of them are there. Returns their number."""
    partial = folder.with_name(f".{short_name(folder.name)}.partial")
    with disk_errors(partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        number = first
        try:
            for number, frame in enumerate(frames, first + 1):
                save_png(partial / f"{number - 1}.png", frame)
        except VideoError:
            shutil.rmtree(partial)
            raise
        replace(partial, folder)
    return number - first


def write_trees(tasks: Sequence[tuple[Path, Callable[[], Iterable]]], jobs: int, first: int = 0) -> list[VideoError]:
    """Make the folder of each (folder, frames) task that is not there yet; gives the errors of those that failed.

    Threads are enough: decoding, resizing and compressing leave the interpreter free.
    """
    rest = [(folder, frames) for folder, frames in tasks if not folder.is_dir()]
    failures: list[VideoError] = []

    def make(task: tuple[Path, Callable[[], Iterable]]) -> VideoError | None:
        folder, frames = task
        try:
            write_frame_folder(folder, frames(), first)
        except VideoError as error:
            return error
        return None

    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(tasks), initial=len(tasks) - len(rest), disable=None) as bar:
        try:
            for error in pool.map(make, rest):
                bar.update()
                failures += [error] if error is not None else []
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return failures
