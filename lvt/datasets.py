"""The data sets that configurations name, and what a name means when it is a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import ConcatDataset, Dataset, Subset

from lvt.codes import CodeWindows, open_codes
from videodata.clips import ClipDataset, open_clips, spread
from videodata.errors import UserError
from videodata.sources import ClipSource
from videodata.splits import open_split

SPLIT_MARK = "#"  # "shapes:100#val" is the validation part of a source


class Named(NamedTuple):
    """Where a named data set lies below DATASETS.ROOT, the side of its frames, and what an item is."""

    folder: str
    size: int | None  # None: codes
    sequences: bool = True  # items are clips; False: single frames, all of them


def named_datasets() -> dict[str, Named]:
    """Name -> place."""
    names = {}
    for split in ("train", "test"):
        names[f"bair_{split}"] = Named(f"bair/{split}", 64, sequences=False)
        names[f"bair_{split}_seq"] = Named(f"bair/{split}", 64)
        for size, suffix in ((64, ""), (256, "256")):
            folder = f"kinetics600/{split}{suffix}"
            names[f"kinetics_{split}{suffix}"] = Named(folder, size, sequences=False)
            names[f"kinetics_{split}{suffix}_seq"] = Named(folder, size)
        names[f"prdvqvae_{split}"] = Named(f"prdvqvae2/inference/bair_{split}_seq", None)
        names[f"kdvqvae_{split}"] = Named(f"K-DVQVAE/inference/kinetics_{split}_seq", None)
    return names


class Videos(NamedTuple):
    """Videos of a source to be read whole, and the side of their frames."""

    source: ClipSource
    numbers: list[int]
    size: int


def open_videos(config: dict[str, Any], name: str) -> Videos:
    """All videos of a data set. Raises UserError for unknown names and missing folders."""
    path, split, place = frames_place(config, name)
    source, numbers = open_split(path, split)
    return Videos(source, numbers, place.size if place else config["INPUT"]["SIZE"])


def open_frames(config: dict[str, Any], name: str, training: bool, dtype: str = "uint8") -> ClipDataset:
    """Clips (3, T, H, W) of a data set of videos. Raises UserError for unknown names and missing folders.

    Named data sets of single frames give each frame as a clip of one. Of others, N_FRAMES_PER_VIDEO_TRAIN or _TEST
    frames are taken, -1: each frame as a clip of one. Training draws a random window, evaluation takes the first.
    """
    path, split, place = frames_place(config, name)
    frames = config["INPUT"]["N_FRAMES_PER_VIDEO_TRAIN" if training else "N_FRAMES_PER_VIDEO_TEST"]
    single = frames < 1 or (place is not None and not place.sequences)
    return open_clips(
        path,
        frames=1 if single else frames,
        size=place.size if place else config["INPUT"]["SIZE"],
        split=split,
        seed=max(config["SEED"], 0),
        windows="consecutive" if single else ("random" if training else "first"),
        dtype=dtype,
    )


def open_code_windows(config: dict[str, Any], name: str, training: bool) -> CodeWindows:
    """Windows of codes of a data set. Raises UserError for unknown names and missing codes."""
    frames = config["INPUT"]["N_FRAMES_PER_VIDEO_TRAIN" if training else "N_FRAMES_PER_VIDEO_TEST"]
    source, seed = open_codes(codes_path(config, name)), max(config["SEED"], 0)
    return CodeWindows(source, frames, random=training, seed=seed, classes=class_names(config))


def codes_path(config: dict[str, Any], name: str) -> Path:
    """Where the codes of a data set lie. Raises UserError for one of frames."""
    place = named_datasets().get(name)
    if place is not None and place.size is not None:
        raise UserError(f"data set {name!r} holds frames; the transformer needs codes (TEST.EVALUATORS CodesExtractor)")
    return Path(config["DATASETS"]["ROOT"]) / place.folder if place else Path(name)


def class_names(config: dict[str, Any]) -> list[str] | None:
    """The classes of a class-conditional transformer: all labels of DATASETS.TRAIN, in alphabetical order.

    None for a transformer without classes. Raises UserError when there are more than CLASS_NUM.
    """
    count = config["MODEL"]["AUTOREGRESSIVE"]["VT"]["CLASS_NUM"]
    if not count:
        return None
    sources = [open_codes(codes_path(config, name)) for name in config["DATASETS"]["TRAIN"]]
    names = sorted({video.label for source in sources for video in source.videos} - {None})
    if len(names) > count:
        raise UserError(f"DATASETS.TRAIN has {len(names)} classes, but CLASS_NUM is {count}")
    return names


def frames_place(config: dict[str, Any], name: str) -> tuple[str, str | None, Named | None]:
    """Path and split of a data set of frames, and its entry where the name has one."""
    place = named_datasets().get(name)
    if place is not None and place.size is None:
        raise UserError(f"data set {name!r} holds codes; a VQVAE needs frames")
    path, _, split = name.partition(SPLIT_MARK)
    if place is not None:
        path, split = str(Path(config["DATASETS"]["ROOT"]) / place.folder), ""
    if not path.startswith("shapes:") and not Path(path).exists():
        known = ", ".join(sorted(named_datasets()))
        raise UserError(f"data set {name!r}: {path} does not exist; name a path, shapes:<n>, or one of {known}")
    return path, split or None, place


def together(parts: list[Dataset]) -> Dataset:
    """One data set of several. Raises UserError for none."""
    if not parts:
        raise UserError("no data set is named; set DATASETS.TRAIN \"('name',)\"")
    return parts[0] if len(parts) == 1 else ConcatDataset(parts)


def thinned(dataset: Dataset, count: int) -> Dataset:
    """`count` items evenly spread over the data set; all of them for 0."""
    if count <= 0 or count >= len(dataset):
        return dataset
    return Subset(dataset, spread(list(range(len(dataset))), count))
