"""UCF101 in its official parts; what is known about its files is in videodata/ucf101.py."""

from __future__ import annotations

from videodata import ucf101
from videodata.datasets.dataset import DataSet, Place, RemoteFile, Shard
from videodata.errors import UserError
from videodata.video_folder import InputVideo, list_videos

# The three official divisions go by the number of the group: these are the test groups, all others are for training.
TEST_GROUPS = {1: range(1, 8), 2: range(8, 15), 3: range(15, 22)}
COUNTS = {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}  # train, test


class Ucf101(DataSet):
    """Train and test of one of the three official divisions (fold 1 to 3)."""

    name, splits = "ucf101", ("train", "test")
    licence = "research use; the clips come from YouTube"
    mean_frames = ucf101.FRAMES / ucf101.VIDEOS

    def __init__(self, fold: int = 1, source: str = "mirror") -> None:
        if fold not in TEST_GROUPS:
            raise UserError(f"--fold must be 1, 2 or 3, found {fold}")
        self.fold = fold
        card = ucf101.SOURCES[source]
        hint = ucf101.MIRROR_HINT if source == "official" else ""
        self.archive = RemoteFile(card.url, card.size, card.sha256, hint=hint)
        self.counts = dict(zip(self.splits, COUNTS[fold], strict=True))

    def files(self, split: str | None) -> list[tuple[RemoteFile, str]]:
        return [(self.archive, "UCF101")]

    def videos(self, place: Place, split: str | None, shard: Shard) -> list[InputVideo]:
        found = list_videos(place.root / "UCF101")
        return [
            InputVideo(video.path, video.id, video.label, video.group, split=split, source=video.path.name)
            for video in found
            if self.part(video.group) == split
        ]

    def part(self, group: str) -> str:
        """ "train" or "test" for a group such as v_Archery_g08."""
        number = group.rpartition("_g")[2]
        return "test" if number.isdigit() and int(number) in TEST_GROUPS[self.fold] else "train"

    def published(self, split: str | None) -> int | None:
        return self.counts[split]

    def describe(self, videos) -> dict:
        return {**super().describe(videos), "fold": self.fold}
