"""Continue test videos with a trained predictor: generate_flow_videos.py --config-f F --config-d D --config-g G, or
--config RIVER. Without a checkpoint, the run folder of the configuration is used. Under torchrun the processes share
the videos; the result is that of one process.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import (
    add_class_arguments,
    fraction,
    frame_rate,
    make_parser,
    nonnegative_float,
    nonnegative_int,
    number,
    positive_float,
    positive_int,
    run,
    seed_number,
)

FORMATS = ("h5", "mp4", "gif", "npy")
CONFIGURED = " (default: of the configuration, else 1)"
SOLVERS = ("euler", "heun", "midpoint", "rk4", "adaptive")


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_model_arguments(parser)
    add_data_arguments(parser)
    add_sampling_arguments(parser)
    add_output_arguments(parser)
    return parser


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("predictor")
    group.add_argument("--config", help="RIVER: its configuration")
    group.add_argument("--checkpoint", "--ckpt", help="RIVER: its run folder or file, or a name of weights/")
    for letter, what in (("f", "flow"), ("d", "denoiser"), ("g", "diffusion")):
        group.add_argument(f"--config-{letter}", help=f"neural SDE: configuration of the {what}")
        group.add_argument(f"--ckpt-{letter}", help=f"neural SDE: run folder or file of the {what}")
    group.add_argument(
        "--autoencoder", "--vqvae-path", "--tokenizer", help="its checkpoint, in place of the one on record"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("videos")
    group.add_argument("--data", help="any source of videos (default: data.data_root of the configuration)")
    group.add_argument(
        "--split",
        choices=("train", "val", "test"),
        help="part of the data (default: test where the data declares one, else val)",
    )
    group.add_argument("--num-videos", type=nonnegative_int, default=16, help="evenly spread over the split; 0: all")
    group.add_argument(
        "--batch-size", type=positive_int, default=4, help="videos at a time; does not change the result"
    )
    group.add_argument("--context", type=positive_int, help="known frames (default: of the configuration)")
    group.add_argument("--frames", type=positive_int, help="frames to predict (default: of the configuration)")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--solver", choices=SOLVERS, help="(default: evaluation.solver, else midpoint or euler)")
    group.add_argument(
        "--steps",
        type=positive_int,
        help="solver steps per frame (default: evaluation.steps, else 10 for RIVER, 2 for the neural SDE)",
    )
    group.add_argument(
        "--grid",
        choices=("uniform", "reference"),
        default="uniform",
        help="RIVER: steps are intervals, or the grid points of the original with its 3/8 rule",
    )
    group.add_argument("--atol", type=positive_float, default=1e-2, help="tolerance of the adaptive solver")
    group.add_argument("--res", type=positive_int, default=1, help="neural SDE: output frames per frame interval")
    group.add_argument("--alpha", type=nonnegative_float, help="neural SDE: weight of the denoiser" + CONFIGURED)
    group.add_argument("--gscale", type=nonnegative_float, help="neural SDE: factor on the diffusion" + CONFIGURED)
    group.add_argument(
        "--past-horizon", type=number(int, -1), help="RIVER: how many last frames may be looked back at; -1: all"
    )
    group.add_argument("--warm-start", type=fraction, help="RIVER: start this far on the path, from the last frame")
    add_class_arguments(group)
    group.add_argument("--seed", type=seed_number, default=42, help="of the windows and of the noise")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument("--out", type=Path, default=Path("generated_videos"), help="folder for all that is written")
    group.add_argument("--format", nargs="+", choices=FORMATS, default=["h5", "mp4"], help="what is written")
    group.add_argument("--fps", type=frame_rate, help="of mp4 and gif (default: that of the data, else 3)")
    group.add_argument("--metrics", action="store_true", help="PSNR and SSIM of the predicted frames, and of baselines")
    group.add_argument("--lpips", choices=("alex", "vgg"), help="with --metrics: LPIPS too, with this network")
    group.add_argument("--lpips-weights", metavar="PATH", help="its weight file or folder (default: found by name)")


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from flow_pred.generate import generate_flow_pred

    generate_flow_pred(args)


if __name__ == "__main__":
    run(main)
