"""CLEVRER: Yi et al., ICLR 2020, arXiv:1910.01442. Rendered collisions, 128 frames of 480x320, H.264."""

from __future__ import annotations

from dataclasses import replace

from videodata.datasets.dataset import Archive, DataSet, Place, RemoteFile, Shard
from videodata.video_folder import InputVideo, find_videos, unique_names

HOME = "http://data.csail.mit.edu/clevrer/videos"
PARTS = {"train": "train", "val": "validation", "test": "test"}
ARCHIVE_BYTES = {"train": 12_000_000_000, "val": 6_000_000_000, "test": 6_000_000_000}  # roughly


class Clevrer(DataSet):
    """The three parts as published; a video is called `video_00000`."""

    name, help, splits = "clevrer", "CLEVRER: 20,000 rendered clips", tuple(PARTS)
    defaults = {"width": 128, "height": 128, "num_frames": 128}
    licence = "CC0"
    mean_frames, one_length = 128, True
    counts = {"train": 10_000, "val": 5_000, "test": 5_000}

    def archives(self, place: Place, split: str | None) -> list[Archive]:
        part = PARTS[split]
        file = RemoteFile(f"{HOME}/{part}/video_{part}.zip", about=ARCHIVE_BYTES[split])
        return [Archive(file, f"clevrer/{part}", f"clevrer/{file.name}")]

    def videos(self, place: Place, split: str | None, shard: Shard) -> list[InputVideo]:
        folder = place.root / "clevrer" / PARTS[split]
        videos = find_videos(folder, wanted="videos")
        places = [video.path.relative_to(folder).as_posix() for video in videos]
        names = unique_names([video.path.stem for video in videos], places)
        return [
            replace(video, id=name, label=None, group=name, split=split, source=place)
            for video, name, place in zip(videos, names, places, strict=True)
        ]
