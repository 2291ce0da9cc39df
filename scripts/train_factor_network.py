"""Train the network of FVD-digits or FVD-shapes on generated clips: weights, and how well they read such clips."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import command_line, make_parser, positive_int, run, seed_number


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("kind", choices=("digits", "shapes"), help="what the clips show")
    parser.add_argument(
        "--out", type=Path, help="the weights (default: weights/factors-KIND.safetensors); beside them a .json"
    )
    parser.add_argument("--steps", type=positive_int, default=900, help="of 32 clips each")
    parser.add_argument("--clips", type=positive_int, default=512, help="that the accuracy is measured on")
    parser.add_argument("--seed", type=seed_number, default=0, help="of the start and of the clips")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    command = command_line(["python", "scripts/train_factor_network.py", *(sys.argv[1:] if argv is None else argv)])
    out = args.out or Path(f"weights/factors-{args.kind}.safetensors")
    from evaluation.factor_training import TRAINED_ON, measure, standardise, train_factors
    from evaluation.networks import save_network
    from training.writing import check_place

    check_place(out)  # now, and not after the training
    start = time.process_time()
    network = train_factors(args.kind, args.steps, args.seed)
    standardise(network, args.kind, args.clips)
    minutes = round((time.process_time() - start) / 60, 1)
    network.half().float()  # as in the file
    accuracy = measure(network, args.kind, args.clips)
    facts = {"command": command, "trained_on": TRAINED_ON, "core_minutes": minutes, "accuracy": accuracy}
    save_network(network, out, facts, half=True)
    for name, found in accuracy.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in found.items()))
    print(f"written to {out}")


if __name__ == "__main__":
    run(main)
