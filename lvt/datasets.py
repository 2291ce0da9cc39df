"""The data sets that configurations name, and what a name means when it is a path.

A path may end in #train, #val or #test, a part as `videodata` divides the source. Without it, DATASETS.TRAIN means the
part train, DATASETS.TEST and DATASETS.VIDEOS the part val. Named data sets are the folders that the original has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from lvt.codes import Cells, Codes, CodeWindows, EncodedCodes, holds_codes, open_codes
from lvt.config import TransformerConfig, is_transformer
from training.tokenizer import recorded_name
from videodata.clips import ClipDataset, open_clips, spread
from videodata.errors import UserError
from videodata.source import ClipSource
from videodata.sources import is_no_path
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
    """Videos of a source to be read whole, the side of their frames, and what a data set of their codes stems from."""

    source: ClipSource
    numbers: list[int]
    size: int
    provenance: dict[str, Any]


def open_videos(config: dict[str, Any], name: str) -> Videos:
    """All videos of a data set. Raises UserError for unknown names and missing folders."""
    path, split, place = frames_place(config, name, training=False)
    source, numbers = open_split(path, split)
    clips = ClipDataset(
        source, numbers, 1, None, 1, 0, windows="first", flip=False, dtype="uint8", on_error="raise", reading={},
        opened=path, split=split,
    )  # fmt: skip
    return Videos(source, numbers, place.size if place else config["INPUT"]["SIZE"], clips.provenance(every_id=True))


def open_frames(config: dict[str, Any], name: str, training: bool, frames: int | None = None) -> ClipDataset:
    """Clips (3, T, H, W) uint8 of a data set of videos. Raises UserError for unknown names and missing folders.

    Named data sets of single frames give each frame as a clip of one. Of others, `frames` are taken, by default
    N_FRAMES_PER_VIDEO_TRAIN or _TEST, -1: each frame as a clip of one. Training draws a random window, evaluation takes
    the first.
    """
    path, split, place = frames_place(config, name, training)
    if frames is None:
        frames = config["INPUT"]["N_FRAMES_PER_VIDEO_TRAIN" if training else "N_FRAMES_PER_VIDEO_TEST"]
    single = frames < 1 or (place is not None and not place.sequences)
    return open_clips(
        path,
        frames=1 if single else frames,
        size=place.size if place else config["INPUT"]["SIZE"],
        split=split,
        seed=max(config["SEED"], 0),
        windows="consecutive" if single else ("random" if training else "first"),
        dtype="uint8",
    )


def open_code_windows(config: dict[str, Any], name: str, training: bool) -> CodeWindows:
    """Windows of codes of a data set. Raises UserError for unknown names, missing codes, and codes of held-out videos
    that are to be trained on.
    """
    frames = config["INPUT"]["N_FRAMES_PER_VIDEO_TRAIN" if training else "N_FRAMES_PER_VIDEO_TEST"]
    source, seed = open_codes(codes_path(config, name, training)), max(config["SEED"], 0)
    check_codes_fit(config, source)
    if training and source.provenance is not None:
        check_trainable(name, source.provenance["split"])
    return CodeWindows(source, frames, random=training, seed=seed, classes=class_names(config))


def check_codes_fit(config: dict[str, Any], source: Codes) -> None:
    """Raises UserError for codes of a tokenizer that the transformer is not made for, naming the keys to set."""
    if not isinstance(source, EncodedCodes):
        return
    node, width = config["MODEL"]["AUTOREGRESSIVE"]["VT"], source.encoded.tokenizer["width"]
    wanted = {"MODEL.AUTOREGRESSIVE.VT.NC": width, "MODEL.AUTOREGRESSIVE.VT.NV": source.size}
    wanted["INPUT.SIZE"] = source.frame_size[0]
    if (node["NC"], node["NV"], config["INPUT"]["SIZE"]) != tuple(wanted.values()):
        keys = " ".join(f"{key} {value}" for key, value in wanted.items())
        raise UserError(
            f"{source.path}: holds {width} codebook(s) of {source.size} codes, of frames of {wanted['INPUT.SIZE']} "
            f"pixels; set {keys}"
        )


def encoded_codes(config: dict[str, Any]) -> EncodedCodes | None:
    """The first of DATASETS.TRAIN, where it is codes of scripts/encode.py; None: it is not, or not there."""
    for name in config["DATASETS"]["TRAIN"][:1]:
        path = codes_path(config, name, training=True)
        if path.exists() and isinstance(found := open_codes(path), EncodedCodes):
            return found
    return None


def name_tokenizer(config: dict[str, Any]) -> None:
    """Write the tokenizer of the codes that are trained on into TEST.VT_SAMPLER, unless another one is named there."""
    if is_transformer(config) and (found := encoded_codes(config)):
        sampler = config["TEST"]["VT_SAMPLER"]
        sampler["TOKENIZER"] = sampler["TOKENIZER"] or recorded_name(found.path.parent)
        sampler["TOKENIZER_DIGEST"] = found.encoded.tokenizer["digest"]


def trained_cells(config: dict[str, Any]) -> Cells:
    """What a code stands for of those that are trained on."""
    found = encoded_codes(config)
    return Cells() if found is None else found.cells


def codes_path(config: dict[str, Any], name: str, training: bool) -> Path:
    """Where the codes of a data set lie: at its path, or those of its part beside or below it, as CodesExtractor and
    scripts/project_vqgan.py write them. Raises UserError for one of frames.
    """
    path, split, place = place_of(config, name, training)
    if place is not None and place.size is not None:
        raise UserError(f"data set {name!r} holds frames; the transformer needs codes (TEST.EVALUATORS CodesExtractor)")
    if split is None or (SPLIT_MARK not in name and holds_codes(Path(path))):
        return Path(path)
    parts = (Path(f"{path}-{split}"), Path(path) / f"{split}.npy", Path(path) / split)
    return next((part for part in parts if part.exists()), Path(path))


def codebook_path(config: dict[str, Any], name: str) -> Path | None:
    """The codebook.npy (K, D) that scripts/project_vqgan.py writes beside the codes of a data set; None: not there."""
    codes = codes_path(config, name, training=True)
    beside = codes.with_name("codebook.npy")
    return beside if codes.suffix == ".npy" and beside.is_file() else None


def class_names(config: dict[str, Any]) -> list[str] | None:
    """The classes of a class-conditional transformer: those that the configuration names, else all labels of
    DATASETS.TRAIN, in alphabetical order.

    None for a transformer without classes. Raises UserError when there are more than CLASS_NUM.
    """
    node = config["MODEL"]["AUTOREGRESSIVE"]["VT"]
    count = node["CLASS_NUM"]
    if not count or node["CLASSES"]:
        return node["CLASSES"] or None
    sources = [open_codes(codes_path(config, name, training=True)) for name in config["DATASETS"]["TRAIN"]]
    names = sorted({video.label for source in sources for video in source.videos} - {None})
    if len(names) > count > 0:
        raise UserError(f"DATASETS.TRAIN has {len(names)} classes, but CLASS_NUM is {count}")
    return names


def known_classes(config: TransformerConfig, classes: Tensor) -> Tensor:
    """Class numbers (B,) of windows, -1 for videos without a label, which become "no class" where the model knows it.

    Raises UserError where it does not.
    """
    if int(classes.min()) >= 0:
        return classes
    if config.no_class is None:
        raise UserError(
            "VT.CLASS_NUM is set, but some videos of the data set have no class (the folder above); VT.CLASS_DROPOUT "
            "above 0 makes a model that can do without"
        )
    return classes.where(classes >= 0, config.no_class)


def with_part(name: str, part: str) -> str:
    """The name of a data set of frames with the part that is meant where it has no mark; that of a named one as it is,
    but for the clips in place of single frames.
    """
    known = named_datasets()
    if name in known:
        return name if name.endswith("_seq") or f"{name}_seq" not in known else f"{name}_seq"
    return name if SPLIT_MARK in name else f"{name}{SPLIT_MARK}{part}"


def frames_place(config: dict[str, Any], name: str, training: bool) -> tuple[str, str | None, Named | None]:
    """`place_of` a data set of frames that is there."""
    path, split, place = place_of(config, name, training)
    if place is not None and place.size is None:
        raise UserError(f"data set {name!r} holds codes; a VQVAE needs frames")
    if not is_no_path(path) and not Path(path).exists():
        known = ", ".join(sorted(named_datasets()))
        advice = f"name a path, shapes:<n> or digits:<n>, or one of {known}" if place is None else made_by(path, place)
        raise UserError(f"data set {name!r}: {path} does not exist; {advice}")
    return path, split, place


def made_by(path: str, place: Named) -> str:
    """What to do where the frames of a named data set are not there."""
    command = f"scripts/convert_kinetics.py --video_dir VIDEOS --output_dir {path} --img_size {place.size}"
    if place.folder.startswith("bair/"):
        command = f"scripts/prepare_data.py bair --format frames --out {Path(path).parent}"
    return f"python {command} makes it; frames that you have elsewhere are named by their folder in place of the name"


def place_of(config: dict[str, Any], name: str, training: bool) -> tuple[str, str | None, Named | None]:
    """Path and split of a data set, and its entry where the name has one, which is then a part of its own.

    Raises UserError for one that is held out from training and is to be trained on.
    """
    place = named_datasets().get(name)
    if place is not None:
        if training:
            check_trainable(name, "test" if "_test" in name else None)
        return str(Path(config["DATASETS"]["ROOT"]) / place.folder), None, place
    path, _, split = name.partition(SPLIT_MARK)
    split = split or ("train" if training else "val")
    if training:
        check_trainable(name, split)
    return path, split, None


def check_trainable(name: str, split: str | None) -> None:
    """Raises UserError for a part of the data that is kept from training."""
    if split in ("val", "test"):
        raise UserError(f"DATASETS.TRAIN: {name!r} is {split} data, which is never trained on; name its part train")


def together(parts: list[Dataset]) -> Dataset:
    """One data set of several. Raises UserError for none."""
    if not parts:
        raise UserError("no data set is named; set DATASETS.TRAIN \"('name',)\"")
    return parts[0] if len(parts) == 1 else ConcatDataset(parts)


def thinned(dataset: Dataset, count: int) -> Dataset:
    """`count` items evenly spread over the data set; all of them for 0."""
    if count <= 0 or count >= len(dataset):
        return dataset
    return Thinned(dataset, spread(list(range(len(dataset))), count))


class Thinned(Subset):
    """Some items of a data set, which knows which of them are of videos that a run was trained on."""

    def __init__(self, dataset: Dataset, indices: list[int]) -> None:
        super().__init__(dataset, indices)
        if hasattr(dataset, "items_of"):
            self.items_of = lambda ids: dataset.items_of(ids, indices)
