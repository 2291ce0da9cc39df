"""What each number in a result means. A result carries the id; two ids never share a column of a table."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Definition:
    """How a metric is computed, in words that are printed beside its value."""

    name: str
    unit: str
    better: str  # "higher" or "lower"
    text: str


_ROUNDED = "predictions clamped and rounded to 8 bit"
_RAW = "predictions clamped, not rounded"
_PSNR = "10 log10(1/MSE) of each frame in [0, 1], at most 100 dB, mean over frames, then over clips"
_SSIM = "Gaussian window 11x11, sigma 1.5, data range 1, per channel, inner pixels, mean over frames, then over clips"
_LPIPS = "v0.1, frames at their own size, mean over frames, then over clips"
_NO_NUMBER = "a network of RANDOM weights: no number to report"
_PAIRS = "mean over pairs of samples for one condition, then over conditions"

DEFINITIONS = {
    "psnr-frame-8bit": Definition("PSNR", "dB", "higher", f"{_PSNR}; {_ROUNDED}"),
    "psnr-frame-raw": Definition("PSNR", "dB", "higher", f"{_PSNR}; {_RAW}"),
    "ssim-gaussian11-8bit": Definition("SSIM", "", "higher", f"{_SSIM}; {_ROUNDED}"),
    "ssim-gaussian11-raw": Definition("SSIM", "", "higher", f"{_SSIM}; {_RAW}"),
    "ssim-vvae-8bit": Definition("SSIM-vvae", "", "higher", f"window 7x7, data range of each frame; {_ROUNDED}"),
    "ssim-vvae-raw": Definition("SSIM-vvae", "", "higher", f"window 7x7, data range of each frame; {_RAW}"),
    "lpips-alex-8bit": Definition("LPIPS-alex", "", "lower", f"{_LPIPS}; {_ROUNDED}"),
    "lpips-alex-raw": Definition("LPIPS-alex", "", "lower", f"{_LPIPS}; {_RAW}"),
    "lpips-vgg-8bit": Definition("LPIPS-vgg", "", "lower", f"{_LPIPS}; {_ROUNDED}"),
    "lpips-vgg-raw": Definition("LPIPS-vgg", "", "lower", f"{_LPIPS}; {_RAW}"),
    "lpips-RANDOM-8bit": Definition("LPIPS-RANDOM", "", "lower", f"{_LPIPS}; {_NO_NUMBER}; {_ROUNDED}"),
    "lpips-RANDOM-raw": Definition("LPIPS-RANDOM", "", "lower", f"{_LPIPS}; {_NO_NUMBER}; {_RAW}"),
    "kl-bits": Definition("KL", "bits", "lower", "divergence of the posterior from the prior, bits per clip"),
    "bits-per-token": Definition(
        "bits per token", "bits", "lower", "negative log-likelihood in bits per predicted latent token, not per pixel"
    ),
    "bits-per-subpixel": Definition(
        "bits per subpixel", "bits", "lower", "the same per red, green or blue value of the predicted frames"
    ),
    "code-bits-per-frame": Definition(
        "code map", "bits", "lower", "codes of a frame times log2(size of the codebook): what storing them costs"
    ),
    "codebook-usage": Definition("codebook usage", "", "higher", "share of the codes that occur in the whole set"),
    "codebook-perplexity": Definition(
        "codebook perplexity", "", "higher", "exp(entropy in nats) of the histogram of codes over the whole set"
    ),
    "diversity-rmse-8bit": Definition(
        "diversity RMSE", "levels", "higher", f"root mean square difference, of 255, {_PAIRS}; {_ROUNDED}"
    ),
    "diversity-lpips-alex-8bit": Definition("diversity LPIPS-alex", "", "higher", f"LPIPS v0.1 {_PAIRS}; {_ROUNDED}"),
    "diversity-lpips-RANDOM-8bit": Definition(
        "diversity LPIPS-RANDOM", "", "higher", f"LPIPS {_PAIRS}; {_NO_NUMBER}; {_ROUNDED}"
    ),
    "diversity-lpips-vgg-8bit": Definition("diversity LPIPS-vgg", "", "higher", f"LPIPS v0.1 {_PAIRS}; {_ROUNDED}"),
    "boundary-ratio": Definition(
        "boundary ratio", "", "lower", "mean change of the error from frame to frame at window borders / elsewhere"
    ),
    "brightness-bias": Definition("brightness bias", "levels", "lower", "mean of prediction minus original, of 255"),
}

_SETS = re.compile(
    r"(?P<metric>fvd|fid)-(?P<network>[A-Za-z0-9-]+?)(?:-(?P<frames>\d+)f)?-(?P<count>\d+)-(?P<rounding>8bit|raw)"
)
_USUAL_NETWORK = {"fvd": "i3d", "fid": "pytorch"}


def set_definition(metric: str, network: str, frames: str, count: int, quantize: bool) -> str:
    """The id of an FVD or FID: other networks, lengths and numbers give other values, so they are part of it."""
    parts = (metric, network, frames, str(count), "8bit" if quantize else "raw")
    return "-".join(part for part in parts if part)


def definition_of(name: str) -> Definition:
    """The definition of an id. Raises ValueError for an unknown one."""
    if name in DEFINITIONS:
        return DEFINITIONS[name]
    found = _SETS.fullmatch(name)
    if not found:
        raise ValueError(f"no definition named {name!r}; add it to evaluation/definitions.py")
    metric, network = found["metric"], found["network"]
    label = metric.upper() if network == _USUAL_NETWORK[metric] else f"{metric.upper()}-{network}"
    what = f"{found['count']} clips of {found['frames']} frames" if found["frames"] else f"{found['count']} frames"
    text = (
        f"Frechet distance of {network} features, {what} on each side, unbiased covariance; falls as their number "
        f"grows; {_ROUNDED if found['rounding'] == '8bit' else _RAW}"
    )
    return Definition(label, "", "lower", text)
