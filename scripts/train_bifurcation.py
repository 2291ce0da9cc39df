"""The neural SDE on the fork in the plane, in half a minute: networks, numbers and a picture."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from flow_pred.bifurcation import BifurcationSettings, PlaneSDE, judge, track, train_bifurcation
from training.cli import make_parser, run

WIDTH, HEIGHT, MARGIN, SCALE = 700, 520, 30, 3  # of one panel; pictures are drawn larger and reduced
PANELS = {
    "f": "flow alone: drifts off, never branches",
    "fg": "flow + diffusion",
    "fd": "flow + denoiser: one branch",
    "fdg": "all three",
}


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser(__doc__)
    defaults = BifurcationSettings()
    parser.add_argument("--out", type=Path, default=Path("runs/bifurcation/trajectories.png"), help="the picture")
    parser.add_argument("--seed", type=int, default=0, help="of the training and of the trajectories")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="of each of the three trainings")
    parser.add_argument("--trajectories", type=int, default=256, help="number of them")
    parser.add_argument("--substeps", type=int, default=1, help="solver steps per unit of time")
    return parser


def panel(trajectories: Tensor, title: str) -> Image.Image:
    """Trajectories (B, T, 2) over the track."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
    canvas = ImageDraw.Draw(image, "RGBA")

    def place(points: Tensor) -> list[tuple[float, float]]:
        x = MARGIN + points[:, 0] / 10 * (WIDTH - 2 * MARGIN)
        y = HEIGHT / 2 - points[:, 1] / 7 * (HEIGHT - 2 * MARGIN)
        return [(float(a) * SCALE, float(b) * SCALE) for a, b in zip(x, y, strict=True)]

    for branch in (1, -1):
        canvas.line(place(track(branch)), fill=(214, 69, 65, 255), width=3 * SCALE)
    for trajectory in trajectories:
        canvas.line(place(trajectory), fill=(31, 78, 121, 60), width=SCALE)
    image = image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    ImageDraw.Draw(image).text((MARGIN, 12), title, fill="black", font_size=20)
    return image


def draw(sde: PlaneSDE, args: argparse.Namespace) -> Image.Image:
    """Four panels: what each network adds."""
    panels = []
    for parts, title in PANELS.items():
        points = sde.sample(args.trajectories, torch.Generator().manual_seed(args.seed), parts, args.substeps)
        report = judge(points)
        print(f"{parts:4}", "  ".join(f"{key} {value:.3f}" for key, value in dataclasses.asdict(report).items()))
        panels.append(np.asarray(panel(points, f"{title} ({report.up_fraction:.0%} up)")))
    rows = [np.concatenate(panels[:2], axis=1), np.concatenate(panels[2:], axis=1)]
    return Image.fromarray(np.concatenate(rows, axis=0))


def main(argv: list[str] | None = None) -> None:
    """Train, print one line per combination of networks, write the picture."""
    args = build_parser().parse_args(argv)
    sde = train_bifurcation(BifurcationSettings(steps=args.steps), args.seed)
    picture = draw(sde, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(args.out)
    print(args.out)


if __name__ == "__main__":
    run(main)
