"""Small tar shards for the tests."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np

from videodata.encode import write_video
from videodata.shapes import Shapes

FRAMES, SIDE, FPS = 12, 24, 10
SOURCE = Shapes(64, FRAMES, SIDE)


def add(tar: tarfile.TarFile, name: str, data: bytes, **fields: object) -> None:
    """A member with any name and type."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def film(number: int, folder: Path) -> bytes:
    """Generated video `number` as mp4."""
    path = folder / "film.mp4"
    write_video(path, SOURCE.read(number), FPS)
    data = path.read_bytes()
    path.unlink()
    return data


def array(frames: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, frames)
    return file.getvalue()


def make_shards(folder: Path, shards: int = 3, videos: int = 4, films: bool = True) -> Path:
    """x-000.tar, ...: in each an mp4 with .cls (unless films is False), and arrays with .json or .txt, in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"x-{shard:03d}.tar", "w") as tar:
            for place in range(videos):
                number = shard * videos + place
                key = f"set/v{number:03d}"
                if films and place == 0:
                    add(tar, f"{key}.mp4", film(number, folder))
                    add(tar, f"{key}.cls", f"{number % 2}\n".encode())
                    continue
                add(tar, f"{key}.npy", array(SOURCE.read(number)))
                if place % 2:
                    facts = {"fps": "30000/1001", "caption": f"video {number}", "group": f"g{number // 2}"}
                    add(tar, f"{key}.json", json.dumps(facts).encode())
                else:
                    add(tar, f"{key}.txt", f" caption {number}\n".encode())
    return folder
