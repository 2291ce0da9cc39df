"""Clips and pictures of a folder, put side by side by their names: `3_original.mp4` belongs beside `3_sample_0.mp4`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from evaluation.gallery.content import Grid, Row
from evaluation.gallery.media import PICTURES
from videodata.files import natural_key
from videodata.video import VIDEO_SUFFIXES

DEPTH = 4  # folders below the given one
LEFT_OUT = {"checkpoints", "log", "logs", "samples", "media"}
STEPS_SHOWN = 4  # of a training run, from its first pictures to its last
DURING_TRAINING = "during the training"
NUMBERED = re.compile(r"(?:(?P<first>\d+)[_-](?P<after>.+)|(?P<before>.+?)[_-]?(?P<last>\d+))")


def clip_groups(folder: Path, most: int) -> list[Row | Grid]:
    """All that can be seen below `folder`: first what the training drew, then each folder of clips and of pictures."""
    groups: list[Row | Grid] = []
    for samples in sorted({path.parent for path in walk(folder, "samples") if path.name.startswith("step-")}):
        groups += training_groups(samples, title(folder, samples.parent))
    beside: dict[tuple, dict[Path, list[Path]]] = {}
    for parent, files in by_folder(folder).items():
        names = tuple(file.name for file in files)
        beside.setdefault((parent.parent, names), {})[parent] = files
    for (above, _), parents in beside.items():
        if len(parents) > 1:  # original/clip_0.mp4 and reconstruction/clip_0.mp4
            rows = {parent.name: files[:most] for parent, files in parents.items()}
            columns = [file.stem for file in next(iter(rows.values()))]
            groups.append(Grid(title(folder, above) or "Clips", rows, columns, note=remainder(parents, most)))
        else:
            parent, files = next(iter(parents.items()))
            groups += folder_groups(files, title(folder, parent), most)
    return groups


def training_groups(samples: Path, name: str) -> list[Row | Grid]:
    """The last pictures of a training run, and how each of them came about."""
    steps = sorted((path for path in samples.glob("step-*") if path.is_dir()), key=natural_key)
    names = {path: f"step {int(re.sub('[^0-9]', '', path.name) or 0)}" for path in steps}
    of, kinds, groups = f" of {name}" if name else "", seen_in(steps[-1]), []
    if kinds:
        groups.append(Grid(f"Pictures{of}, {names[steps[-1]]}", {path.stem: [path] for path in kinds}, mosaic=True))
    chosen = sorted({round(i * (len(steps) - 1) / (STEPS_SHOWN - 1)) for i in range(STEPS_SHOWN)})
    for path in kinds:
        earlier = {names[steps[i]]: [steps[i] / path.name] for i in chosen}
        if len(chosen) > 1 and path.stem != "original" and all(file.is_file() for (file,) in earlier.values()):
            groups.append(Grid(f"{path.stem.capitalize()}{of} {DURING_TRAINING}", earlier, mosaic=True))
    return groups


def folder_groups(files: Sequence[Path], name: str, most: int) -> list[Row | Grid]:
    """The files of one folder: numbered ones as a grid of kinds and numbers, the others as they are."""
    videos, pictures = ([f for f in files if (f.suffix.lower() in VIDEO_SUFFIXES) is kind] for kind in (True, False))
    kinds: dict[str, dict[int, Path]] = {}
    for file in videos:
        kind, number = parse(file.stem)
        if number is not None:
            kinds.setdefault(kind, {})[number] = file
    numbers = sorted(set().union(*kinds.values()))
    complete = {kind: found for kind, found in kinds.items() if sorted(found) == numbers}
    groups: list[Row | Grid] = []
    if len(complete) > 1:
        shown = numbers[:most]
        rows = {kind.replace("_", " "): [found[n] for n in shown] for kind, found in complete.items()}
        groups.append(Grid(name or "Clips", rows, [str(n) for n in shown], note=remainder(numbers, most)))
        videos = [file for file in videos if parse(file.stem)[0] not in complete]
    for group in (videos, pictures):
        if group:
            clips = [(file.stem.replace("_", " "), file) for file in group[:most]]
            groups.append(Row(name or "Clips", clips, note=remainder(group, most)))
    return groups


def parse(stem: str) -> tuple[str, int | None]:
    """("sample_0", 3) of "3_sample_0", ("clip", 7) of "clip_007", ("comparison", None) of "comparison"."""
    match = NUMBERED.fullmatch(stem)
    if not match:
        return stem, None
    return match["after"] or match["before"], int(match["first"] or match["last"])


def by_folder(folder: Path) -> dict[Path, list[Path]]:
    """Videos and pictures by their folders, in natural order."""
    found: dict[Path, list[Path]] = {}
    for path in [folder, *walk(folder)]:
        if path.is_dir() and not LEFT_OUT & set(path.relative_to(folder).parts) and (files := seen_in(path)):
            found[path] = files
    return found


def seen_in(folder: Path) -> list[Path]:
    """Videos and pictures of one folder; of files that differ in the suffix alone, the video."""
    files = [
        p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES | PICTURES and not p.name.startswith(".")
    ]
    best: dict[str, Path] = {}
    for path in sorted(
        files, key=lambda p: (p.suffix.lower() in PICTURES, p.suffix.lower() == ".gif", natural_key(p.name))
    ):
        best.setdefault(path.stem, path)
    return sorted(best.values(), key=lambda p: natural_key(p.name))


def walk(folder: Path, inside: str = "") -> list[Path]:
    """Folders below, in natural order, hidden ones left out; `inside`: only those in a folder of that name."""
    found = [p for depth in range(1, DEPTH + 1) for p in folder.glob("*/" * depth) if p.is_dir()]
    visible = [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    return sorted((p for p in visible if not inside or p.parent.name == inside), key=natural_key)


def title(folder: Path, below: Path) -> str:
    """The path below the run's folder as a heading; empty for the folder itself."""
    return "" if below == folder else below.relative_to(folder).as_posix().replace("_", " ")


def remainder(files: Sequence | dict, most: int) -> str:
    """Says so when not all is shown."""
    count = len(next(iter(files.values()))) if isinstance(files, dict) else len(files)
    return f"{most} of {count} are shown." if count > most else ""
