"""Encode and decode a clip of noise-free moving bars, print shapes, compression and error: python example.py"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from utils.common_utils import instantiate_from_config, load_config


def moving_bars(frames: int, size: int) -> Tensor:
    """A clip (1, 3, T, H, W) in [-1, 1] of diagonal colour bars that move."""
    time_axis, rows, columns = torch.meshgrid(
        torch.arange(frames), torch.arange(size), torch.arange(size), indexing="ij"
    )
    phase = (rows + columns + 2 * time_axis) / size * 2 * torch.pi  # (T, H, W)
    return torch.stack([torch.sin(phase), torch.sin(2 * phase), torch.cos(phase)])[None]


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--config", default="configs/config_16z.yaml", help="configuration file")
    parser.add_argument("--ckpt", help="checkpoint, in place of the one that the configuration names")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--frames", type=int, default=8, help="a multiple of 4")
    parser.add_argument("--size", type=int, default=64, help="height and width, a multiple of 8")
    args = parser.parse_args(argv)
    if args.frames < 4 or args.frames % 4 or args.size < 8 or args.size % 8:
        parser.error("--frames must be a positive multiple of 4, --size one of 8")

    node = load_config(args.config).model
    weights = {"ckpt_path": args.ckpt, "strict_ckpt": True} if args.ckpt else {}
    model = instantiate_from_config(node, **weights).freeze().to(args.device)
    video = moving_bars(args.frames, args.size).to(args.device)

    start = time.perf_counter()
    with torch.inference_mode():
        latent = model.encode(video).mode()
        reconstruction = model.decode(latent)
    report = [
        f"video           {tuple(video.shape)}",
        f"latent          {tuple(latent.shape)}",
        f"reconstruction  {tuple(reconstruction.shape)}",
        f"compression     {video.numel() / latent.numel():.0f} values to 1",
        f"MSE             {torch.nn.functional.mse_loss(reconstruction, video).item():.4f}",
        f"time            {time.perf_counter() - start:.1f} s on {args.device}",
    ]
    print("\n".join(report))  # noqa: T201


if __name__ == "__main__":
    main()
