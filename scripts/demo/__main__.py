"""Prepare data, train every finished model for a few minutes of CPU, and write one page to look at."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from evaluation.gallery import Gallery
from scripts.demo import video_vae
from scripts.demo.stage import ROOT, Stage
from training.cli import run
from videodata.errors import UserError

MODELS = {"video_vae": video_vae}
SHAPES = 150  # generated videos


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.demo", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of videos; without it, moving shapes are generated")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for all that is written")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="models to show")
    return parser.parse_args(argv)


def prepare(stage: Stage, data: Path | None) -> str:
    """Make the clips that all models are trained on; returns a line that describes them."""
    if data is None:
        videos = stage.folder / "shapes"
        if not videos.is_dir():
            stage.run(
                "generate shapes",
                "scripts/prepare_data.py shapes",
                *("--out", videos, "--format", "videos", "--count", SHAPES, "--frames", 48, "--size", 64),
            )
    elif not data.is_dir():
        raise UserError(f"{data}: no such folder; DATA must name a folder of videos")
    else:
        videos = data.resolve()
    stage.run(
        "prepare clips",
        "prepare_ucf101.py",
        *("--video_folder", videos, "--output_npy_file", stage.clips, "--restart"),
        *("--num_frames", 8, "--stride", 2, "--width", 64, "--height", 64, "--workers", 2),
    )
    return f"clips of 8 frames, 64x64, of {f'{SHAPES} generated videos of moving shapes' if data is None else data}"


def main(argv: list[str] | None = None) -> None:
    """Run the demonstration."""
    args = parse(argv)
    folder = args.output if args.output.is_absolute() else ROOT / args.output
    stage = Stage(folder, folder / "clips.npy")
    start = time.monotonic()
    print("data")
    described = prepare(stage, args.data)
    gallery = Gallery("Video models, trained while you waited", described)
    lines = []
    for name in args.models:
        print(name)
        lines.append(f"{name}: {MODELS[name].show(stage, gallery)}")
    page = gallery.write(folder)
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes. Open {page}")
    print("\n".join(lines))


if __name__ == "__main__":
    run(main)
