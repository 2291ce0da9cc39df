"""Definitions of distances between two sets of clips. Their ids are composed: all that moves the number is part of it.

fvd-i3d-bec6519f-sq224hp-pm1-16f-256x25600-ddof1-8bit: FVD with I3D from the file of that SHA-256, of the centre square
brought to 224 pixels by half-pixel bilinear interpolation, values in [-1, 1]; 256 real and 25600 generated clips (one
number where they are equally many) of 16 frames; covariances over n - 1 (ddof0: over n); frames rounded to 8 bit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ROUNDED = "predictions clamped and rounded to 8 bit"
RAW = "predictions clamped, not rounded"
USUAL_NETWORK = {"fvd": "i3d", "kvd": "i3d", "fid": "pytorch", "jedi": "vjepa-h16-ssv2"}
NAMES = {"jedi": "JEDi"}
GENERATED = ("digits", "shapes")  # feature networks that know one generated source each
_SIZES = r"(?:-(?P<frames>\d+)f)?-(?P<real>\d+)(?:x(?P<generated>\d+))?"
_NETWORK = r"(?P<network>[A-Za-z0-9-]+?)"
_FILE = r"(?:-(?P<file>[0-9a-f]{8}))?(?:-(?P<crop>sq|full)(?P<side>\d+)hp-pm1)?"
_FORMS = (
    re.compile(
        rf"(?P<metric>fvd|fid|fd|kvd)-(?:blocks(?P<rows>\d+)-)?{_NETWORK}{_FILE}{_SIZES}(?:-ddof(?P<ddof>[01]))?-(?P<rounding>8bit|raw)"
    ),
    re.compile(rf"(?P<metric>jedi)-(?P<unbiased>unbiased-)?{_NETWORK}{_SIZES}(?:-(?P<rounding>raw))?"),
)


@dataclass(frozen=True)
class Definition:
    """How a metric is computed, in words that are printed beside its value."""

    name: str
    unit: str
    better: str  # "higher", "lower", or the value that is best
    text: str


def set_definition(
    metric: str, network: str, frames: int, sizes: tuple[int, int], quantize: bool, ddof: int | None = None
) -> str:
    """The id of a distance. network: what the extractor says of itself; frames: of a clip, 0: single frames; sizes:
    real and generated clips, or frames; ddof: n - ddof is the divisor of covariances, None: there are none.
    """
    real, generated = sizes
    rounding = "" if metric.startswith("jedi") and quantize else "8bit" if quantize else "raw"
    parts = (
        metric, network, f"{frames}f" if frames else "", str(real) if real == generated else f"{real}x{generated}",
        "" if ddof is None else f"ddof{ddof}", rounding,
    )  # fmt: skip
    return "-".join(part for part in parts if part)


def definition_of_set(name: str) -> Definition | None:
    """The definition of an id that `set_definition` gives; None for another one."""
    found = next((match.groupdict() for form in _FORMS if (match := form.fullmatch(name))), None)
    if found is None:
        return None
    metric, network = found["metric"], found["network"]
    label = NAMES.get(metric, metric.upper())
    label += "-blocks" if found.get("rows") else ""
    label += "" if network == USUAL_NETWORK.get(metric) else f"-{network}"
    label += " unbiased" if found.get("unbiased") else ""
    rounding = RAW if found["rounding"] == "raw" else ROUNDED
    return Definition(label, "", "lower", f"{_distance(found)}; {_features(found)}, {_sizes(found)}; {rounding}")


def _distance(found: dict[str, str | None]) -> str:
    if found["metric"] == "kvd":
        blocks = f", mean over disjoint blocks of {found['rows']}" if found["rows"] else ""
        return f"squared MMD, kernel (x.y/d + 1)^3, unbiased, not scaled, may be below 0{blocks}"
    if found["metric"] == "jedi":
        pairs = "pairs of different clips, may be below 0" if found["unbiased"] else "all pairs, falls as n grows"
        return f"100 x squared MMD, kernel (x.y/d)^2, {pairs}"
    divisor = {"1": ", covariance over n - 1", "0": ", covariance over n", None: ""}[found["ddof"]]
    return f"Frechet distance{divisor}, falls as n grows"


def _features(found: dict[str, str | None]) -> str:
    if found["metric"] == "fd":
        return f"{found['network'].removeprefix('pca')} principal components of clips pooled to a few pixels (no FVD)"
    file = f" of file {found['file']}..." if found.get("file") else ""
    crop = {"sq": "centre squares", "full": "whole frames", None: ""}[found.get("crop")]
    seen = f" of {crop} at {found['side']} pixels (bilinear, half-pixel), [-1, 1]" if crop else ""
    features = f"{found['network']} features"
    if found["network"] in GENERATED:
        features = f"features of a small network that knows the generated {found['network']} (no published FVD)"
    return f"{features}{file}{seen}"


def _sizes(found: dict[str, str | None]) -> str:
    what = f"clips of {found['frames']} frames" if found["frames"] else "frames"
    real, generated = found["real"], found["generated"]
    return f"{real} real and {generated} generated {what}" if generated else f"{real} {what} on each side"
