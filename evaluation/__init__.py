"""Metrics with exact definitions, result files, and the HTML gallery."""

from evaluation.lpips_distance import lpips_distance
from evaluation.psnr import psnr
from evaluation.ssim import ssim

__all__ = ["lpips_distance", "psnr", "ssim"]
