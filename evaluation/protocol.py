"""How an evaluation is done: which metrics, on what part of what the model makes, how often; and the flags that say so.

Nothing here computes, so that a command can print its help without waiting for torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.cli import add_class_arguments, positive_int
from videodata.errors import UserError

if TYPE_CHECKING:
    import torch

RANDOM = "RANDOM"  # stands in the name of every number that networks of random weights gave
PAIRED_METRICS = ("psnr", "ssim", "lpips", "energy")
SET_METRICS = ("fvd", "fid", "fd-pca")
DIGIT_METRICS = ("identity", "class-agreement", "recognised")  # of clips of digits
FOLDER_METRICS = ("psnr", "ssim", "lpips", "boundary", "brightness", *SET_METRICS)  # of files, which no model made here
FVD_EXTRACTORS = ("i3d", "i3d-torchscript")
FVD_FRAMES = ("all", "predicted")
FEATURE_CACHE = "~/.cache/videogen/features"


@dataclass
class Protocol:
    """Every choice that changes a number."""

    metrics: tuple[str, ...] = ("psnr", "ssim")
    seed: int = 0
    repetitions: int = 1  # whole evaluations, with seeds seed, seed + 1, ...: of the windows and of the model's noise
    samples: int = 1  # clips that a random model makes of each clip
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
    fvd_frames: str = "all"  # or "predicted": without the given ones; of FID, too
    download: bool = False
    allow_random_features: bool = False
    force: bool = False  # FVD of too few clips, FID of too few frames
    feature_cache: Path | None = None
    device: torch.device | str = "cpu"

    @property
    def lpips_network(self) -> str | None:
        """The network of LPIPS, where that is asked for."""
        if "lpips" not in self.metrics:
            return None
        return RANDOM if self.allow_random_features else self.lpips

    def check(self, known: tuple[str, ...], random: bool) -> None:
        """Raises UserError for unknown metrics, numbers below 1, and several samples of a model that draws nothing."""
        for name in self.metrics:
            if name not in known:
                raise UserError(f"--metrics {name}: this model has {', '.join(known)}")
        if min(self.repetitions, self.samples, self.batch_size) < 1:
            raise UserError("--repetitions, --samples and --batch_size must be at least 1")
        if self.samples > 1 and not random:
            raise UserError(f"--samples {self.samples}: this model makes the same of a clip each time")
        if "diversity" in self.metrics and self.samples < 2:
            raise UserError("diversity needs at least two samples for each clip: --samples 2")

    def facts(self) -> dict[str, Any]:
        """What a result says about it."""
        return {
            "seed": self.seed,
            "repetitions": self.repetitions,
            "samples": self.samples,
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
    all_have = ", ".join((*PAIRED_METRICS, *SET_METRICS, *DIGIT_METRICS, "diversity", "boundary"))
    text = f"{all_have}, or the model's own; a wrong name lists them (default: what the model is usually measured by)"
    options = {"choices": known, "default": list(default)} if known else {"metavar": "NAME"}
    group.add_argument("--metrics", nargs="+", help="what is measured" if known else text, **options)
    group.add_argument("--lpips", choices=("alex", "vgg"), help="LPIPS too, with this network (default of lpips: alex)")
    group.add_argument("--lpips_weights", metavar="PATH", help="its weight file or folder (default: found by name)")
    group.add_argument("--extractor", choices=FVD_EXTRACTORS, default="i3d", help="feature network of FVD")
    group.add_argument("--fvd_weights", metavar="PATH", help="its weight file or folder (default: found by name)")
    group.add_argument("--fid_weights", metavar="PATH", help="weight file or folder of FID (default: found by name)")
    group.add_argument("--download", action="store_true", help="fetch a missing weight file of FVD or FID")
    group.add_argument(
        "--allow_random_features",
        action="store_true",
        help="FVD, FID, LPIPS with networks of random weights, named FVD-RANDOM, ...: to try things out",
    )
    group.add_argument(
        "--force", action="store_true", help="FVD of fewer than 256 clips, FID of fewer than 2048 frames"
    )


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """How often a model is measured, and on what of its clips."""
    group = parser.add_argument_group("protocol")
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
        choices=("standard", "vvae"),
        default="standard",
        help="vvae: that of the published VideoVAE+ numbers",
    )


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
