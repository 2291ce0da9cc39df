"""Metrics with exact definitions, result files, and the HTML gallery."""

from evaluation.frechet import fvd
from evaluation.metrics import lpips_distance, psnr, ssim

__all__ = ["fvd", "lpips_distance", "psnr", "ssim"]
