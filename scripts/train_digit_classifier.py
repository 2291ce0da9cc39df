"""Train the digit classifier that evaluations of generated digits use, in minutes: weights, and how well they read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, positive_int, run, seed_number

OUT = Path("weights/digit_classifier.safetensors")


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--out", type=Path, default=OUT, help="the weights; beside them a .json: shares of right answers"
    )
    parser.add_argument("--steps", type=positive_int, default=2400, help="of 64 frames each")
    parser.add_argument("--clips", type=positive_int, default=1000, help="that each of the shares is measured on")
    parser.add_argument("--seed", type=seed_number, default=0, help="of the start and of the frames")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from evaluation.digit_training import TRAINED_ON, measure, train_classifier
    from evaluation.networks import save_network
    from training.writing import check_place

    check_place(args.out)  # now, and not after the training
    classifier = train_classifier(args.steps, args.seed)
    shares = measure(classifier, args.clips)
    facts = {"trained_on": TRAINED_ON, "steps": args.steps, "seed": args.seed, "clips": args.clips, "shares": shares}
    save_network(classifier, args.out, facts)
    for name, found in shares.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.1%}" for key, value in found.items()))
    print(f"written to {args.out}")


if __name__ == "__main__":
    run(main)
