"""Metrics with exact definitions, result files, and the HTML gallery."""

from evaluation.fvd import fvd
from evaluation.lpips_distance import lpips_distance
from evaluation.psnr import psnr
from evaluation.ssim import ssim

__all__ = ["fvd", "lpips_distance", "psnr", "ssim"]
