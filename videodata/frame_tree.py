"""Trees of PNG frames, one folder per video: each folder appears complete, several are made at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from videodata.disk_errors import disk_errors
from videodata.errors import VideoError

COMPRESSION = 4  # of 9: twice as fast as the default for a few per cent more bytes


def save_png(path: Path, frame: np.ndarray | Image.Image) -> None:
    """Write one frame, uint8 (H, W, 3)."""
    picture = Image.fromarray(frame) if isinstance(frame, np.ndarray) else frame
    picture.save(path, format="png", compress_level=COMPRESSION)


def write_frame_folder(folder: Path, frames: Iterable[np.ndarray | Image.Image], first: int = 0) -> int:
    """Write `<folder>/<first>.png`, ...; the folder has its name when all of them are there. Returns their number."""
    partial = folder.with_name(folder.name + ".partial")
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
        os.replace(partial, folder)
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
