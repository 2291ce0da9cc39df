"""Protocols by name: everything that moves a number of a published table, and the rows that are published for it.

`scripts/evaluate.py MODEL --protocol ID` sets what a protocol says; a flag or a model that departs from it changes the
name in the result to `ID+changed`, so that no table mixes the two. Nothing here computes or imports torch.

The published rows are copied from papers; the number behind a name is that of the paper which describes the method, and
the value may have been read in a later paper's table. Nobody measured them here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from videodata.errors import UserError

if TYPE_CHECKING:
    pass

CHANGED = "+changed"
LISTED = "list"  # in place of a name: show all of them
TASKS = ("prediction", "generation", "reconstruction")

Departures = dict[str, list[Any]]  # field -> what the protocol says, what was done
ARRAYS = "videodata-npy"  # format of prepared data that holds windows, and not whole videos


@dataclass(frozen=True)
class Published:
    """One row of a published table: its values as they stand there, and where they stand."""

    method: str
    values: str
    source: str


@dataclass(frozen=True)
class NamedProtocol:
    """One way to measure, frozen. Of clips, frames, videos: counts; 0 clips: all of the split, one window of each."""

    id: str
    data: str  # in words, for people
    source: Mapping[str, Any]  # what the side-car of that data says
    prepare: str  # the command that makes it
    task: str
    split: str
    frames: int  # of a clip, given ones included
    given: int  # that the model sees
    size: tuple[int, int] | None  # (height, width); None: the films' own
    published: tuple[Published, ...]
    stride: int = 1
    windows: str = "first"  # of each video: first, random (by the seed) or consecutive
    clips: int = 0  # that are real
    replacement: bool = False  # clips are drawn from the videos, each time from all of them
    samples: int = 1  # that a model draws of each real clip, or class; FVD takes them all in, PSNR and such the best
    generated: int = 0  # clips that a model of classes draws, of classes as the real clips have; 0: clips x samples
    metrics: tuple[str, ...] = ("fvd",)
    fvd_frames: str = "all"  # given frames are part of both sets; predicted: they are left out
    repetitions: int = 1
    seed: int = 0
    classes: bool = False  # the model is told the class of each clip
    rate: int = 0  # frames per second of the films; 0: whatever they have
    rounded: bool = True  # to 8 bit, as a file would hold the frames
    ssim_definition: str = "standard"
    extractor: str = "i3d"  # of FVD, by its logits
    divisor: str = "n-1"  # of covariances, which nothing shrinks

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"{self.id}: a task is one of {TASKS}, not {self.task!r}")

    def settings(self) -> dict[str, Any]:
        """Its values by the names of the flags of scripts/evaluate.py, which `apply` sets."""
        return {
            "split": self.split, "windows": self.windows, "num_clips": self.clips, "replacement": self.replacement,
            "generated": self.generated, "samples": self.samples, "metrics": list(self.metrics),
            "fvd_frames": self.fvd_frames, "repetitions": self.repetitions, "seed": self.seed,
            "frames": self.frames, "stride": self.stride, "given": self.given, "size": self.size,
            "no_quantize": not self.rounded, "ssim_definition": self.ssim_definition, "class_name": None,
            "extractor": self.extractor, "divisor": self.divisor, "allow_random_features": False,
            "generate": self.task == "generation",
        }  # fmt: skip

    def apply(self, args: argparse.Namespace, typed: Mapping[str, Any]) -> Departures:
        """Set the flags that were not typed, of those that the model has; gives what the typed ones depart in.

        Fewer or more metrics are no departure: each has a definition of its own.
        """
        settings = {name: value for name, value in self.settings().items() if hasattr(args, name)}
        for name, value in settings.items():
            if name not in typed:
                setattr(args, name, value)
        found = {name: (value, getattr(args, name)) for name, value in settings.items() if name != "metrics"}
        if self.size is None:
            found.pop("size", None)  # the films have to be looked at
        return {name: [asked, used] for name, (asked, used) in found.items() if plain(asked) != plain(used)}

    def departures(self, frames: int, stride: int, size: Sequence[int], given: int, clips: int) -> Departures:
        """What an evaluation of clips like these departs in; `clips`: how many real ones there were."""
        used = {"frames": frames, "stride": stride, "given": given, "size": tuple(size), "clips": clips}
        asked = {name: getattr(self, name) for name in used}
        asked["clips"], asked["size"] = self.clips or clips, self.size or tuple(size)
        return {name: [plain(asked[name]), plain(value)] for name, value in used.items() if asked[name] != value}

    def departures_of_films(self, sizes: set[Sequence[int]], rates: set[Any], size: Sequence[int]) -> Departures:
        """What films with these sizes and frame rates depart in, where the clips have this size."""
        found: Departures = {}
        if self.size is None and sizes != {tuple(size)}:
            found["size"] = ["the films' own", plain(size)]
        if self.rate and {rate and round(rate) for rate in rates} != {self.rate}:  # 30000/1001 is 30 to everybody
            found["rate"] = [self.rate, sorted("unknown" if rate is None else str(rate) for rate in rates)]
        return found

    def departures_of_data(self, data: str, sidecars: Sequence[Mapping[str, Any]]) -> Departures:
        """What the data departs in: it is another set, or prepared otherwise, or nobody can know.

        sidecars: what lies beside each part that is scored, as `videodata.splits.sidecars` gives it.
        """
        found: Departures = {}
        for said in sidecars:
            if "dataset" not in said:
                return {"data": [self.data, f"{data} (nothing says which data set it is)"]}
            if said["dataset"] != self.source["dataset"]:
                return {"data": [self.data, f"{data} ({said['dataset']})"]}
            facts = {"split": self.split, "stride": 1, **self.source}
            wrong = {key: value for key, value in facts.items() if said.get(key, value) not in (value, None)}
            found |= {f"prepared {key}": [value, said[key]] for key, value in wrong.items()}
            size = said.get("height", 2**15), said.get("width", 2**15)
            if self.size and (size[0] < self.size[0] or size[1] < self.size[1]):
                found["prepared size"] = [plain(self.size), plain(size)]
            if not self.clips and said.get("found", 0) < said.get("published", 0):
                found["videos"] = [said["published"], said["found"]]
            if self._cut(said):
                found["prepared windows"] = ["whole videos", f"windows of {said['num_frames']} frames"]
        return found

    def _cut(self, said: Mapping[str, Any]) -> bool:
        """Whether the videos were cut into windows before, so that these are not drawn of whole ones."""
        if ARRAYS not in (said.get("format"), said.get("content")):
            return False
        videos = said.get("videos", [])  # of an index of parts: their number
        count, sequences = videos, said.get("sequences")
        if isinstance(videos, list):
            count, sequences = len(videos), sum(video.get("sequences", 1) for video in videos)
        span = (self.frames - 1) * self.stride + 1
        return sequences > count or (self.windows == "random" and said["num_frames"] <= span)

    def facts(self) -> dict[str, Any]:
        """What a result says about it: every field but the published rows."""
        return {key: value for key, value in vars(self).items() if key not in ("published", "prepare", "source")}

    def table(self) -> str:
        """The published rows as text."""
        return published_text(self.id, [vars(row) for row in self.published])


def published_text(protocol: str, rows: Sequence[Mapping[str, str]]) -> str:
    """Published rows for people."""
    widest = max(len(row["method"]) for row in rows)
    lines = [f"  {row['method'].ljust(widest)}  {row['values']}  ({row['source']})" for row in rows]
    return "\n".join([f"published for {protocol}, not measured here:", *lines])


def _rows(*rows: tuple[str, str, str]) -> tuple[Published, ...]:
    return tuple(Published(*row) for row in rows)


_BAIR = {
    "data": "BAIR robot pushing, test", "source": {"dataset": "bair", "camera": "image_aux1"},
    "prepare": "python scripts/prepare_data.py bair --out data/bair",
    "task": "prediction", "split": "test", "size": (64, 64), "clips": 256,
}  # fmt: skip
_KTH = {
    "data": "KTH actions, test persons of the prediction split",
    "source": {"dataset": "kth", "protocol": "prediction", "unit": "sub-sequences of 00sequences.txt",
               "resize": "squeeze"},
    "prepare": "python scripts/prepare_data.py kth --format hdf5 --out data/kth", "task": "prediction",
    "split": "test", "size": (64, 64),
}  # fmt: skip
_UCF101 = {
    "data": "UCF101, split 1", "source": {"dataset": "ucf101", "fold": 1, "resize": "crop"},
    "prepare": "python scripts/prepare_data.py ucf101 --format hdf5 --num_frames 16 --width 128 --height 128 "
    "--resize crop --out data/ucf101",
    "windows": "random", "given": 0, "size": (128, 128),
}  # fmt: skip
_K600 = {
    "data": "Kinetics-600, test", "source": {"dataset": "kinetics600", "resize": "crop"},
    "prepare": "python scripts/prepare_data.py kinetics600 --split test --format hdf5 --clips_per_video 0 "
    "--out data/kinetics600",
    "task": "prediction", "split": "test", "frames": 16, "given": 5, "windows": "random", "clips": 50_000,
    "replacement": True,
}  # fmt: skip
# Nothing in a folder of films says what they are. A file beside it, such as preparing commands write, does.
_OWN_FOLDER = """echo '{{"dataset": "{0}"}}' > data/{0}.json"""
_SDE_PAPER = "arXiv 2501.18871"
_SDE_TABLE = "as reported by the neural SDE paper, arXiv 2501.18871"

PROTOCOLS = (
    NamedProtocol(
        "bair-1-15", frames=16, given=1, samples=100, metrics=("fvd", "psnr", "ssim", "lpips"), **_BAIR,
        published=_rows(
            ("MAGVIT-L", "FVD 62, debiased 31", "arXiv 2212.05199"),
            ("RaMViD", "FVD 84.2", "arXiv 2206.07696"),
            ("MCVD", "FVD 89.5", "arXiv 2205.09853"),
            ("VideoGPT", "FVD 103.3", "arXiv 2104.10157"),
            ("RIVER", "FVD about 106", "arXiv 2211.14575, read off a figure"),
            ("LVT", "FVD 125.76 +- 2.90", "arXiv 2006.10704"),
            ("baseline of LVT", "FVD 320.9", "arXiv 2006.10704"),
        ),
    ),
    NamedProtocol(
        "bair-2-14", frames=16, given=2, **_BAIR,
        published=_rows(
            ("ExtDM-K4", "FVD 81.6", "CVPR 2024"),
            ("MCVD", "FVD 87.8", "arXiv 2205.09853"),
            ("FAR", "FVD 99.3", "arXiv 2503.19325"),
        ),
    ),
    NamedProtocol(
        "bair-2-28", frames=30, given=2, **_BAIR,
        published=_rows(
            ("ExtDM-K4", "FVD 102.8", "CVPR 2024"),
            ("MCVD", "FVD 119", "arXiv 2205.09853"),
            ("FAR", "FVD 144", "arXiv 2503.19325"),
        ),
    ),
    NamedProtocol(
        "k600-5-11", size=(64, 64), **_K600,
        published=_rows(
            ("W.A.L.T-L", "FVD 3.3", "arXiv 2312.06662"),
            ("EVATok", "FVD 4.0", "its paper"),
            ("MAGVIT-v2", "FVD 4.3", "arXiv 2310.05737"),
            ("LARP", "FVD 5.1", "arXiv 2410.21264"),
            ("MAGVIT", "FVD 9.9", "arXiv 2212.05199"),
            ("OmniTokenizer", "FVD 32.9", "arXiv 2406.09399"),
            ("LVT", "FVD 224.7", "as reported by NBP, arXiv 2502.07737"),
        ),
    ),
    NamedProtocol(
        "kth-10-30", frames=40, given=10, samples=100, metrics=("fvd", "psnr", "ssim", "lpips"), **_KTH,
        published=_rows(
            ("RIVER", "FVD 180", "arXiv 2211.14575, as reported in other papers"),
            ("SRVP", "FVD 222, SSIM 0.870, PSNR 29.69, LPIPS 0.074", "arXiv 2002.09219"),
        ),
    ),
    NamedProtocol(
        "kth-10-40", frames=50, given=10, samples=100, metrics=("fvd", "psnr", "ssim", "lpips"), **_KTH,
        published=_rows(("Grid-keypoints", "FVD 144.2", "arXiv 2107.13170")),
    ),
    NamedProtocol(
        "kth-4-36", frames=40, given=4, clips=256, replacement=True, windows="random", repetitions=20,
        metrics=("fvd", "jedi", "ssim", "psnr"), **_KTH,
        published=_rows(
            ("RIVER", "FVD 198.13 +- 10.76, JEDi 0.54, SSIM 0.88, PSNR 31.73", _SDE_TABLE),
            ("neural SDE", "FVD 377.51 +- 20.57, JEDi 1.31, SSIM 0.81, PSNR 27.89", _SDE_PAPER),
        ),
    ),
    NamedProtocol(
        "clevrer-4-12", "CLEVRER, test", {"dataset": "clevrer"},
        "python scripts/prepare_data.py clevrer --format hdf5 --out data/clevrer", "prediction", "test", frames=16,
        given=4, size=(128, 128), stride=5, clips=256, replacement=True, windows="random", repetitions=20,
        metrics=("fvd", "jedi", "ssim", "psnr"),
        published=_rows(
            ("flow matching", "FVD 99.63", _SDE_PAPER),
            ("neural SDE", "FVD 126.73 +- 11.29, JEDi 1.06, SSIM 0.95, PSNR 34.29", _SDE_PAPER),
            ("RIVER", "FVD 134.89, JEDi 1.09, SSIM 0.92, PSNR 30.49", _SDE_TABLE),
        ),
    ),
    NamedProtocol(
        "ucf101-class", task="generation", split="train", frames=16, generated=10_000, classes=True, **_UCF101,
        published=_rows(
            ("W.A.L.T-XL", "FVD 36 +- 2", "arXiv 2312.06662"),
            ("EVATok", "FVD 48", "its paper"),
            ("LARP", "FVD 57", "arXiv 2410.21264"),
            ("MAGVIT-v2", "FVD 58 +- 2", "arXiv 2310.05737"),
            ("MAGVIT", "FVD 76", "arXiv 2212.05199"),
            ("TATS", "FVD 332", "arXiv 2204.03638"),
        ),
    ),
    NamedProtocol(
        "ucf101-rfvd", task="reconstruction", split="test", frames=17, metrics=("fvd", "psnr", "ssim", "lpips"),
        **_UCF101,
        published=_rows(
            ("MAGVIT-v2", "rFVD 8.6", "arXiv 2310.05737"),
            ("EVATok", "rFVD 9.7", "its paper"),
            ("LARP-L-Long", "rFVD 20", "arXiv 2410.21264"),
            ("MAGVIT", "rFVD 25", "arXiv 2212.05199"),
            ("OmniTokenizer", "rFVD 42", "arXiv 2406.09399"),
            ("TATS", "rFVD 162", "arXiv 2204.03638"),
        ),
    ),
    NamedProtocol(
        "davis", "DAVIS 2017", {"dataset": "davis"}, _OWN_FOLDER.format("davis"), "reconstruction", "all", frames=49,
        given=0, size=None, metrics=("psnr", "ssim", "lpips", "fvd"),
        published=_rows(
            ("Cosmos CV4x8x8", "PSNR 35.85, rFVD 10.05", "arXiv 2501.03575"),
            ("Cosmos DV4x8x8", "PSNR 32.97, rFVD 53.44", "arXiv 2501.03575"),
            ("CogVideoX", "PSNR 29.29", "arXiv 2408.06072"),
        ),
    ),
    NamedProtocol(
        "mcl-jcv", "MCL-JCV at 30 frames a second", {"dataset": "mcl-jcv"}, _OWN_FOLDER.format("mcl-jcv"),
        "reconstruction", "all", frames=17, given=0, size=(256, 256), rate=30,
        metrics=("psnr", "ssim", "lpips", "fvd"),
        published=_rows(
            ("VidTok KL-16ch causal", "PSNR 35.04, SSIM 0.942, LPIPS 0.047, rFVD 78.9", "arXiv 2412.13061"),
            ("VidTok FSQ-262144 causal", "PSNR 29.82, SSIM 0.867, LPIPS 0.106, rFVD 160.1", "arXiv 2412.13061"),
        ),
    ),
    NamedProtocol(
        "moving-mnist-10-10", "the published test set of Moving MNIST", {"dataset": "moving_mnist"},
        "python scripts/prepare_data.py moving_mnist --out data/moving_mnist", "prediction", "test", frames=20,
        given=10, size=(64, 64), metrics=("mse-pixels", "mae-pixels", "ssim", "psnr"), rounded=False,
        ssim_definition="openstl",
        published=_rows(
            ("SimVPv2", "MSE 26.69, MAE 77.19, SSIM 0.9402", "arXiv 2211.12509"),
            ("SimVP", "MSE 32.15, MAE 89.05, SSIM 0.9268", "arXiv 2206.05099"),
        ),
    ),
)  # fmt: skip
_SMALL = next(protocol for protocol in PROTOCOLS if protocol.id == "k600-5-11")
_LARGE = replace(
    _SMALL, id="k600-5-11-128", size=(128, 128), prepare=f"{_SMALL.prepare}_128 --width 128 --height 128"
)  # fmt: skip
BY_ID: Mapping[str, NamedProtocol] = {protocol.id: protocol for protocol in (*PROTOCOLS, _LARGE)}


def named(name: str) -> NamedProtocol:
    """The protocol of that id. Raises UserError that lists them."""
    if name not in BY_ID:
        raise UserError(f"--protocol {name}: there is {', '.join(BY_ID)}; --protocol {LISTED} describes them")
    return BY_ID[name]


def listing() -> str:
    """All protocols as text, one paragraph each."""
    return "\n\n".join(paragraph(protocol) for protocol in BY_ID.values())


def paragraph(protocol: NamedProtocol) -> str:
    """A protocol in words, with its published rows."""
    size = "their own size" if protocol.size is None else "{}x{}".format(*protocol.size)
    clips = f"{protocol.clips or 'all'} clips" + (" drawn with replacement" if protocol.replacement else "")
    facts = [
        f"{protocol.task} on {protocol.data} ({protocol.split})",
        f"{protocol.frames} frames of {size}" + (f", every {protocol.stride}th" if protocol.stride > 1 else ""),
        f"{protocol.given} given" if protocol.task == "prediction" else "",
        f"{clips}, {protocol.windows} windows",
        f"{protocol.samples} samples of each" if protocol.samples > 1 else "",
        f"{protocol.generated} generated" if protocol.generated else "",
        f"{protocol.repetitions} repetitions" if protocol.repetitions > 1 else "",
        "metrics " + ", ".join(protocol.metrics),
    ]
    return "\n".join([f"{protocol.id}: {'; '.join(filter(None, facts))}", f"  {protocol.prepare}", protocol.table()])


def plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return list(value) if isinstance(value, list | tuple) else value
