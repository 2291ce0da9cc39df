"""What is prepared like a published data set, but was not published: a folder of videos, and the generated shapes."""

from __future__ import annotations

from pathlib import Path

from videodata.datasets.dataset import DataSet, Place, Shard
from videodata.prepare import Decoder, decode_source
from videodata.shapes import Shapes
from videodata.video_folder import InputVideo, list_videos


class Folder(DataSet):
    """All videos below a folder; sub-folders are their labels."""

    name = "folder"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def plan(self, place: Place, split: str | None) -> list[str]:
        return [f"{len(list_videos(self.folder))} videos in {self.folder}"]

    def videos(self, place: Place, split: str | None, shard: Shard) -> list[InputVideo]:
        return list_videos(self.folder)


class GeneratedShapes(DataSet):
    """Coloured shapes that move and bounce; nothing is downloaded."""

    name, licence = "shapes", "generated, no restrictions"

    def __init__(self, source: Shapes) -> None:
        self.source = source
        self.mean_frames, self.one_length = source.length(0), True

    def plan(self, place: Place, split: str | None) -> list[str]:
        return [f"draw {len(self.source)} videos"]

    def videos(self, place: Place, split: str | None, shard: Shard) -> list[InputVideo]:
        source = self.source
        return [
            InputVideo(
                Path(source.path), source.id(index), source.label(index), source.group(index),
                stop=source.length(index), stamp=source.stamp(index),
            )
            for index in range(len(source))
        ]  # fmt: skip

    def published(self, split: str | None) -> int | None:
        return len(self.source)

    def decoder(self, place: Place, split: str | None) -> Decoder:
        return decode_source(self.source)
