"""Prepare data, train every finished model for a few minutes of CPU, and write one page to look at."""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from evaluation.gallery import Gallery
from scripts.demo import flow_pred, lvt, video_vae, vqgan, vvae
from scripts.demo.picture import write_picture
from scripts.demo.stage import FRAMES, ROOT, Stage
from training.cli import run
from videodata.errors import UserError

MODELS = {"video_vae": video_vae, "vqgan": vqgan, "vvae": vvae, "lvt": lvt, "flow_pred": flow_pred}
LONGEST = ["flow_pred", "video_vae", "vvae", "lvt", "vqgan"]  # first, so that all end at about the same time
SHAPES = 450  # generated videos, one clip of each
MOST_VIDEOS = 150  # of the user's own


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.demo", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of videos; without it, moving shapes are generated")
    parser.add_argument(
        "--output", type=Path, help="folder for all that is written (default: runs/demo, or runs/demo-<name of --data>)"
    )
    parser.add_argument("--effort", type=float, default=1.0, help="factor on the steps of every training")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="models to show")
    return parser.parse_args(argv)


def prepare(stage: Stage, data: Path | None) -> str:
    """Make the clips that all models are trained on; returns a line that describes them."""
    if data is None:
        videos = stage.folder / "shapes"
        stage.run(
            "generate shapes",
            "scripts/prepare_data.py shapes",
            *("--out", videos, "--format", "videos", "--count", SHAPES, "--frames", 2 * FRAMES, "--size", 64),
        )
    elif not data.is_dir():
        raise UserError(f"{data}: no such folder; DATA must name a folder of videos")
    else:
        videos = data.resolve()
    stage.run(
        "prepare clips",
        "prepare_ucf101.py",
        *("--video_folder", videos, "--output_npy_file", stage.clips),
        *("--num_frames", FRAMES, "--stride", 2, "--width", 64, "--height", 64, "--workers", 2),
        *("--resize", "crop", "--max_videos", 0 if data is None else MOST_VIDEOS),
    )
    if not stage.shown:
        raise UserError(f"{videos}: too few videos: none is left to validate with; give ten or more")
    source = f"{SHAPES} generated videos of moving shapes" if data is None else f"the videos in {data}"
    return f"Clips of {FRAMES} frames of 64x64, from {source}"


def show_all(stage: Stage, models: list[str], gallery: Gallery) -> list[str]:
    """Show the models, several at a time, each on its share of the cores; their lines, in the order asked for."""
    cores = os.cpu_count() or 1
    lanes = min(len(models), cores)
    stage.threads = max(1, cores // lanes)
    with ThreadPoolExecutor(lanes) as pool:
        shown = {name: pool.submit(MODELS[name].show, stage, gallery) for name in sorted(models, key=LONGEST.index)}
        ended, waiting = wait(shown.values(), return_when=FIRST_EXCEPTION)
        for future in waiting:  # after a failure
            future.cancel()
        for future in ended:
            future.result()
    gallery.sections.sort(key=lambda section: models.index(section.name))
    return [f"{name}: {shown[name].result()}" for name in models]


def main(argv: list[str] | None = None) -> None:
    """Run the demonstration."""
    args = parse(argv)
    if args.effort <= 0:
        raise UserError("--effort must be above 0")
    name = "demo" if args.data is None else f"demo-{args.data.resolve().name}"
    folder = ROOT / (args.output or Path("runs", name))
    stage = Stage(folder, folder / "clips.npy", args.effort)
    start = time.monotonic()
    print("data")
    described = prepare(stage, args.data)
    gallery = Gallery("Video models, trained while you waited", described)
    lines = show_all(stage, args.models, gallery)
    page = gallery.write(folder)
    write_picture(folder / "picture.png", gallery.sections)
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes. Open {page}")
    print("\n".join(lines))


if __name__ == "__main__":
    run(main)
