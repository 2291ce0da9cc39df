"""What the metrics cost, each against an independent way to the same number, in one process on one thread.

    python benchmarks/evaluation.py

SSIM: the separable window here, one 11x11 convolution per frame, and torchmetrics (which takes the border in as well).
Frechet distance of 400 features: singular values of symmetric roots here, and SciPy's root of the product. CPU seconds,
medians of several turns, both sides in turn; ratios first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.frechet import GaussianStatistics, frechet_distance
from evaluation.metrics import K1, K2, gaussian_window, ssim_per_frame


def conv2d_ssim(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of frames (N, 3, H, W) in [0, 1] by one convolution with the square window: (N,)."""
    line = gaussian_window()
    window = torch.outer(line, line)[None, None]
    x, y = (frames.flatten(0, 1)[:, None] for frames in (a, b))
    mx, my, xx, yy, xy = (F.conv2d(part, window) for part in (x, y, x * x, y * y, x * y))
    c1, c2 = K1**2, K2**2
    luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
    structure = (2 * (xy - mx * my) + c2) / (xx - mx**2 + yy - my**2 + c2)
    return (luminance * structure).mean(dim=(1, 2, 3)).unflatten(0, a.shape[:2]).mean(dim=1)


def scipy_frechet(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """The distance by the root of the product of the covariances."""
    import numpy as np
    from scipy.linalg import sqrtm

    root = np.trace(np.real(sqrtm((a.covariance @ b.covariance).numpy())))
    return float(((a.mean - b.mean) ** 2).sum() + a.covariance.trace() + b.covariance.trace() - 2 * root)


def medians(turns: int, **sides: Callable[[], object]) -> dict[str, float]:
    """CPU seconds of each side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, work in sides.items():
            start = time.process_time()
            work()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(title: str, found: dict[str, float]) -> None:
    """Ratios to ours, then seconds."""
    ours = found["ours"]
    others = ", ".join(f"{value / ours:.2f} times as fast as {name}" for name, value in found.items() if name != "ours")
    print(f"{title}: {others} ({', '.join(f'{name} {value:.3f} s' for name, value in found.items())})")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="per side")
    parser.add_argument("--size", type=int, default=128, help="of the frames")
    parser.add_argument("--frames", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(1, 3, args.frames, args.size, args.size, generator=generator, dtype=torch.float64)
    b = (a + 0.1 * torch.randn(a.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    frames = [clip[0].transpose(0, 1) for clip in (a, b)]
    sides = {
        "ours": lambda: ssim_per_frame(a, b, (0, 1), quantize=False),
        "conv2d": lambda: conv2d_ssim(*frames),
    }
    assert torch.allclose(sides["ours"]()[0], sides["conv2d"]())
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as reference

        sides["torchmetrics"] = lambda: reference(frames[1], frames[0], data_range=1.0)
    except ImportError:
        print("torchmetrics is not installed")
    show(f"SSIM of {args.frames} frames of {args.size}x{args.size}, float64", medians(args.turns, **sides))
    values = [torch.randn(2048, 400, generator=generator) @ torch.randn(400, 400, generator=generator) for _ in "ab"]
    pair = [GaussianStatistics(400).update(part) for part in values]
    assert abs(frechet_distance(*pair) / scipy_frechet(*pair) - 1) < 1e-4
    sides = {"ours": lambda: frechet_distance(*pair), "scipy": lambda: scipy_frechet(*pair)}
    show("Frechet distance, 400 features", medians(args.turns, **sides))


if __name__ == "__main__":
    main()
