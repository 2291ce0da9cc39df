"""How an evaluation is done: which metrics, on what part of what the model makes, how often; and the flags that say so.

Nothing here computes, so that a command can print its help without waiting for torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.protocols import BY_ID, CHANGED, LISTED, Departures, NamedProtocol, listing, named
from training.cli import add_class_arguments, nonnegative_int, positive_int
from videodata.errors import UserError

if TYPE_CHECKING:
    import torch

    from evaluation.subject import Subject
    from videodata.clips import ClipDataset

RANDOM = "RANDOM"  # stands in the name of every number that networks of random weights gave
ENSEMBLE_METRICS = ("energy", "coverage")  # of all samples of a clip together
PAIRED_METRICS = ("psnr", "ssim", "lpips", "mse-pixels", "mae-pixels", *ENSEMBLE_METRICS)
SET_METRICS = ("fvd", "kvd", "kvd-blocks", "fid", "jedi", "fd-pca", "fvd-digits", "fvd-shapes")
DIGIT_METRICS = ("identity", "class-agreement", "recognised")  # of clips of digits
GENERATED_METRICS = ("motion", "identity-in-place")  # of clips of generated videos, beside what was made of them
FOLDER_METRICS = ("psnr", "ssim", "lpips", "boundary", "brightness", *SET_METRICS)  # of files, which no model made here
FVD_EXTRACTORS = ("i3d", "i3d-torchscript")
FVD_FRAMES = ("all", "predicted")
FEATURE_CACHE = "~/.cache/videogen/features"
UNSET = object()


@dataclass
class Protocol:
    """Every choice that changes a number."""

    metrics: tuple[str, ...] = ("psnr", "ssim")
    seed: int = 0
    repetitions: int = 1  # whole evaluations, with seeds seed, seed + 1, ...: of the windows and of the model's noise
    samples: int = 1  # clips that a random model makes of each clip
    generated: int = 0  # new clips in all, of drawn classes; 0: samples of each clip
    class_name: str | None = None  # to ask for in place of each clip's own, of a model of classes
    guidance: float = 1.0  # towards the class
    batch_size: int = 4
    quantize: bool = True  # to 8 bit, before scoring
    ssim_definition: str = "standard"
    lpips: str = "alex"
    lpips_weights: Path | str | None = None
    extractor: str = "i3d"
    fvd_weights: Path | str | None = None
    fid_weights: Path | str | None = None
    jedi_weights: Path | str | None = None
    divisor: str = "n-1"  # of covariances
    unequal_sets: bool = False  # of folders of videos; samples of a model are part of its set, however many there are
    fvd_frames: str = "all"  # or "predicted": without the given ones; of FID, too
    download: bool = False
    allow_random_features: bool = False
    force: bool = False  # FVD or JEDi of too few clips, FID of too few frames
    feature_cache: Path | None = None
    device: torch.device | str = "cpu"

    @property
    def lpips_network(self) -> str | None:
        """The network of LPIPS, where that is asked for."""
        if "lpips" not in self.metrics:
            return None
        return RANDOM if self.allow_random_features else self.lpips

    def check(self, known: tuple[str, ...], random: bool, paired: bool = True) -> None:
        """Raises UserError for unknown metrics, numbers below 1, and several samples of a model that draws nothing."""
        for name in self.metrics:
            if name not in known:
                raise UserError(f"--metrics {name}: this model has {', '.join(known)}")
        if min(self.repetitions, self.samples, self.batch_size) < 1:
            raise UserError("--repetitions, --samples and --batch_size must be at least 1")
        if self.samples > 1 and not random:
            raise UserError(f"--samples {self.samples}: this model makes the same of a clip each time")
        if self.generated and paired:
            raise UserError(f"--generated {self.generated}: this model makes a clip of each that it is shown")
        for name in ("diversity", "coverage"):
            if name in self.metrics and self.samples < 2:
                raise UserError(f"{name} needs at least two samples for each clip: --samples 2")

    def facts(self) -> dict[str, Any]:
        """What a result says about it."""
        return {
            "seed": self.seed,
            "repetitions": self.repetitions,
            "samples": self.samples,
            "generated": self.generated or None,
            "class": self.class_name,
            "guidance": self.guidance,
            "rounded_to_8_bit": self.quantize,
            "fvd_frames": self.fvd_frames if set(SET_METRICS) & set(self.metrics) else None,
        }


def add_metric_arguments(
    parser: argparse.ArgumentParser, known: Sequence[str] = (), default: Sequence[str] = ()
) -> None:
    """Which metrics, and how they are computed. None known: those that the model turns out to have."""
    group = parser.add_argument_group("metrics")
    all_have = ", ".join((*PAIRED_METRICS, *SET_METRICS, *DIGIT_METRICS, *GENERATED_METRICS, "diversity", "boundary"))
    text = f"{all_have}, or the model's own; a wrong name lists them (default: what the model is usually measured by)"
    options = {"choices": known, "default": list(default)} if known else {"metavar": "NAME"}
    group.add_argument("--metrics", nargs="+", help="what is measured" if known else text, **options)
    group.add_argument("--lpips", choices=("alex", "vgg"), help="LPIPS too, with this network (default of lpips: alex)")
    group.add_argument("--lpips_weights", metavar="PATH", help="its weight file or folder (default: found by name)")
    group.add_argument("--extractor", choices=FVD_EXTRACTORS, default="i3d", help="feature network of FVD and KVD")
    group.add_argument("--fvd_weights", metavar="PATH", help="its weight file or folder (default: found by name)")
    group.add_argument("--fid_weights", metavar="PATH", help="weight file or folder of FID (default: found by name)")
    group.add_argument("--jedi_weights", metavar="PATH", help="packed file of JEDi, or folder (default: found by name)")
    group.add_argument("--divisor", choices=("n-1", "n"), default="n-1", help="of the covariances of FVD, FID, FD-PCA")
    group.add_argument("--download", action="store_true", help="fetch a missing weight file of FVD, KVD, FID or JEDi")
    group.add_argument(
        "--allow_random_features",
        action="store_true",
        help="FVD, FID, JEDi, LPIPS with networks of random weights, named FVD-RANDOM, ...: to try things out",
    )
    group.add_argument(
        "--force",
        action="store_true",
        help="FVD, JEDi of fewer than 256 clips (FVD-digits, FVD-shapes: 128), FID of fewer than 2048 frames",
    )


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """How often a model is measured, and on what of its clips."""
    group = parser.add_argument_group("protocol")
    group.add_argument(
        "--protocol",
        metavar="ID",
        action=ProtocolAction,
        help="a published one, which sets all that moves a number; list: what there is, with published rows",
    )
    group.add_argument(
        "--windows", choices=("random", "first", "consecutive"), default="random", help="which of a video's windows"
    )
    group.add_argument(
        "--replacement", action="store_true", help="draw --num_clips videos by the seed, each from all of the split"
    )
    group.add_argument(
        "--generated",
        type=nonnegative_int,
        default=0,
        help="new clips in all, of classes drawn as the real clips have them; 0: of each real clip --samples",
    )
    group.add_argument(
        "--repetitions", type=positive_int, default=1, help="whole evaluations, with seeds seed, seed + 1, ..."
    )
    group.add_argument("--samples", type=positive_int, default=1, help="clips that a random model makes of each clip")
    add_class_arguments(group)
    group.add_argument("--fvd_frames", choices=FVD_FRAMES, default="all", help="predicted: given frames left out")
    group.add_argument("--feature_cache", default=FEATURE_CACHE, help="features of real clips; none: not kept")
    group.add_argument("--no_quantize", action="store_true", help="score floats, not 8-bit frames")
    group.add_argument(
        "--ssim_definition",
        choices=("standard", "vvae", "openstl"),
        default="standard",
        help="vvae: that of the published VideoVAE+ numbers; openstl: of tables of Moving MNIST",
    )


class ProtocolAction(argparse.Action):
    """The name of a protocol, checked; `list` prints them all and ends the program, as --help does."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: str | None = None
    ) -> None:
        if value == LISTED:
            print(listing())  # noqa: T201
            parser.exit()
        try:
            named(value)
        except UserError as error:
            parser.error(str(error))
        setattr(namespace, self.dest, value)


def protocol_from(args: argparse.Namespace, metrics: tuple[str, ...], device: torch.device | str) -> Protocol:
    """The protocol that the flags describe; `metrics` where they name none."""
    wanted = tuple(dict.fromkeys([*(args.metrics or metrics), *(["lpips"] if args.lpips else [])]))
    named = {key: value for key, value in vars(args).items() if key in Protocol.__dataclass_fields__}
    cache = getattr(args, "feature_cache", "none")
    named |= {
        "metrics": wanted,
        "lpips": args.lpips or "alex",
        "quantize": not getattr(args, "no_quantize", False),
        "feature_cache": None if cache == "none" else Path(cache),
        "device": device,
    }
    return Protocol(**named)


@dataclass
class Chosen:
    """The protocol that a command names, and what it departs in."""

    protocol: NamedProtocol
    departures: Departures

    @classmethod
    def of(cls, args: argparse.Namespace, parser: argparse.ArgumentParser, argv: Sequence[str]) -> Chosen | None:
        """That of --protocol, its settings put into `args`; None without."""
        if not getattr(args, "protocol", None):
            return None
        protocol = named(args.protocol)
        return cls(protocol, protocol.apply(args, typed_flags(parser, argv)))

    @property
    def id(self) -> str:
        return self.protocol.id + (CHANGED if self.departures else "")

    def check(self, model: str, subject: Subject) -> None:
        """Raises UserError for a model of another task."""
        if subject.task == self.protocol.task:
            return
        others = [protocol.id for protocol in BY_ID.values() if protocol.task == subject.task]
        raise UserError(
            f"--protocol {self.protocol.id} is of {self.protocol.task}; what {model} does here is {subject.task}, of "
            f"which there is {', '.join(others)}"
        )

    def see(self, subject: Subject, clips: ClipDataset, data: str, sidecars: Sequence[Mapping[str, Any]]) -> None:
        """Add what the model and the real clips depart in."""
        spec, protocol = subject.clips, self.protocol
        found = protocol.departures(spec.frames, spec.stride, spec.size, subject.context, len(clips))
        if "num_clips" in self.departures:
            found.pop("clips", None)  # one departure is told once
        self.departures |= found | protocol.departures_of_data(data, sidecars)
        if protocol.size is None or protocol.rate:
            self.departures |= protocol.departures_of_films(clips.stored_sizes(), clips.rates(), spec.size)
        if protocol.classes and not subject.classes:
            self.departures["classes"] = ["that of each clip", "none, which the model was trained without"]

    def facts(self) -> dict[str, Any]:
        """What a result says about it."""
        return {"departs_in": self.departures, **self.protocol.facts(), "id": self.id}


def typed_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """The flags that stand in `argv`, by name, and what they say; of a sub-command where there are some."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            place = next(number for number, word in enumerate(argv) if word in action.choices)
            return typed_flags(action.choices[argv[place]], argv[place + 1 :])
    unset = {action.dest: UNSET for action in parser._actions}
    found = vars(parser.parse_args(argv, argparse.Namespace(**unset)))
    return {name: value for name, value in found.items() if value is not UNSET}
