"""What each number in a result means. A result carries the id; two ids never share a column of a table."""

from __future__ import annotations

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
    "kl-bits": Definition("KL", "bits", "lower", "divergence of the posterior from the prior, bits per clip"),
    "boundary-ratio": Definition(
        "boundary ratio", "", "lower", "mean change of the error from frame to frame at window borders / elsewhere"
    ),
    "brightness-bias": Definition("brightness bias", "levels", "lower", "mean of prediction minus original, of 255"),
}
