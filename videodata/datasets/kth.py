"""KTH actions: Schuldt, Laptev, Caputo, ICPR 2004. 25 persons, 6 actions, 4 scenes, in films of 160x120 at 25 fps."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from videodata.datasets.dataset import Archive, DataSet, Place, RemoteFile, Shard
from videodata.errors import UserError
from videodata.video_folder import InputVideo, find_videos

ACTIONS = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")
HOME = "https://www.csc.kth.se/cvap/actions/"
OLD_HOME = "the old address of the same files is http://www.nada.kth.se/cvap/actions/"
ARCHIVE_BYTES = 190_000_000  # each, roughly
SEQUENCE_LIST = "00sequences.txt"

# Persons of the parts. prediction: MCNet and most later papers; svg: the code of SVG; recognition: the list itself.
PROTOCOLS = {
    "prediction": {"train": range(1, 17), "test": range(17, 26)},
    "svg": {"train": range(1, 21), "test": range(21, 26)},
    "recognition": {
        "train": range(11, 19),
        "val": (19, 20, 21, 23, 24, 25, 1, 4),
        "test": (22, 2, 3, 5, 6, 7, 8, 9, 10),
    },
}
MOST_DIGITS = 9  # of the number of a frame


class Sequence(NamedTuple):
    """One line's entry of the sequence list: frames first to last of a film, counted from 1, both included."""

    film: str  # personNN_<action>_dN
    first: int
    last: int

    @property
    def person(self) -> int:
        return int(self.film[6:8])

    @property
    def action(self) -> str:
        return self.film.split("_")[1]


def read_sequences(path: Path) -> list[Sequence]:
    """All sequences of 00sequences.txt, in its order; tabs or spaces. Raises UserError."""
    try:
        text = path.read_text(encoding="latin-1")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    found = []
    for film, ranges in re.findall(r"^(person\d\d_[a-z]+_d\d)\s+frames\s+(.*)$", text, re.MULTILINE):
        for first, last in re.findall(r"(\d+)\s*-\s*(\d+)", ranges):
            if max(len(first), len(last)) > MOST_DIGITS:
                raise UserError(f"{path}: {film} has no frames {first[:20]}-{last[:20]}; the list is damaged")
            found.append(Sequence(film, int(first), int(last)))
    if not found:
        raise UserError(f"{path}: is no list of sequences (lines such as `person01_boxing_d1 frames 1-95, 96-185`)")
    return found


class Kth(DataSet):
    """Sub-sequences as listed, or whole films, divided by persons."""

    name, help = "kth", "KTH actions: 2,391 sequences"
    flags = {
        "--protocol": {"choices": PROTOCOLS, "default": "prediction", "help": "prediction: persons 1-16 train, 17-25 "
            "test; svg: 1-20 and 21-25; recognition: the train, val and test persons of the authors"},
        "--whole_films": {"action": "store_true", "help": "films in place of the listed sub-sequences"},
    }  # fmt: skip
    defaults = {"width": 64, "height": 64, "num_frames": 40}
    licence = "free for non-commercial use; cite Schuldt, Laptev and Caputo, ICPR 2004"
    mean_frames = 95.2
    sequences, films = 2391, 599  # person13_handclapping_d3 does not exist
    counts = {
        "prediction": {"train": 1528, "test": 863},
        "svg": {"train": 1912, "test": 479},
        "recognition": {"train": 760, "val": 768, "test": 863},
    }

    def __init__(self, protocol: str = "prediction", whole_films: bool = False) -> None:
        if protocol not in PROTOCOLS:
            raise UserError(f"--protocol must be one of {', '.join(PROTOCOLS)}, found {protocol!r}")
        self.protocol, self.whole_films = protocol, whole_films
        self.splits = tuple(PROTOCOLS[protocol])
        self._listed: dict[str | None, int] = {}

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Kth:
        return cls(args.protocol, args.whole_films)

    def archives(self, place: Place, split: str | None) -> list[Archive]:
        files = [RemoteFile(f"{HOME}{action}.zip", about=ARCHIVE_BYTES, hint=OLD_HOME) for action in ACTIONS]
        return [Archive(file, f"kth/{action}", f"kth/{file.name}") for file, action in zip(files, ACTIONS, strict=True)]

    def obtain(self, place: Place, split: str | None, shard: Shard) -> None:
        place.fetch(RemoteFile(HOME + SEQUENCE_LIST, hint=OLD_HOME), f"kth/{SEQUENCE_LIST}")
        super().obtain(place, split, shard)

    def videos(self, place: Place, split: str | None, shard: Shard) -> list[InputVideo]:
        root = place.root / "kth"
        listed = read_sequences(root / SEQUENCE_LIST)
        if len(listed) != self.sequences or len({entry.film for entry in listed}) != self.films:
            raise UserError(
                f"{root / SEQUENCE_LIST}: has {len(listed)} sequences of {len({e.film for e in listed})} films, "
                f"the published list {self.sequences} of {self.films}: delete it and run the same command again"
            )
        persons = set(PROTOCOLS[self.protocol][split])
        wanted = [entry for entry in listed if entry.person in persons]
        if self.whole_films:
            wanted = [Sequence(film, 0, 0) for film in dict.fromkeys(entry.film for entry in wanted)]
        self._listed[split] = len(wanted)
        wanted.sort(key=lambda entry: (ACTIONS.index(entry.action), entry.film, entry.first))
        films = {video.path.stem.removesuffix("_uncomp"): video for video in find_videos(root)}
        return [_video(entry, films[entry.film], split) for entry in wanted if entry.film in films]

    def published(self, split: str | None) -> int | None:
        return self._listed.get(split, None if self.whole_films else self.counts[self.protocol][split])

    def describe(self, videos) -> dict:
        unit = "whole films" if self.whole_films else "sub-sequences of 00sequences.txt"
        persons = {split: sorted(numbers) for split, numbers in PROTOCOLS[self.protocol].items()}
        return {**super().describe(videos), "protocol": self.protocol, "persons": persons, "unit": unit}


def _video(entry: Sequence, film: InputVideo, split: str | None) -> InputVideo:
    """Films of one person stay together."""
    facts = {"label": entry.action, "group": f"person{entry.person:02d}", "split": split, "source": film.path.name}
    name = f"{entry.action}/{entry.film}"
    if not entry.last:
        return replace(film, id=name, **facts)
    stretch = {"start": entry.first - 1, "stop": entry.last}
    return replace(film, id=f"{name}_{entry.first:04d}-{entry.last:04d}", **stretch, **facts)
