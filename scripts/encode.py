"""Encode a data set once with any tokenizer, for generators that train on its codes or latents.

python scripts/encode.py --checkpoint TOKENIZER --data SOURCE --out FOLDER
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import dtype_name, make_parser, positive_int, run


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Write the codes or latents of all videos to <out>/<split>.npy; a killed command continues.")
    add = parser.add_argument
    add(
        "--checkpoint", dest="tokenizer", required=True, metavar="TOKENIZER",
        help="run folder, file, or a name of weights/; of files that do not say what they are TYPE:PATH",
    )  # fmt: skip
    add("--data", required=True, help="any source of videos: .npy, folder, digits:<n>, ...")
    add("--out", type=Path, required=True, help="folder to write to")
    add("--splits", nargs="+", choices=("train", "val", "test", "all"), default=["train", "val"], help="parts of it")
    add("--size", type=positive_int, required=True, help="height and width of the frames")
    add("--short-side", type=positive_int, help="scale the shorter side to this before frames are cut out")
    add("--kind", choices=("codes", "latents"), help="of a tokenizer that has both (default: what it is known for)")
    add("--frames", type=positive_int, help="of a clip (default: whole videos; 16 or 17 where time is compressed)")
    add("--stride", type=positive_int, default=1, help="frames of the video from one frame of a clip to the next")
    add("--max-videos", type=positive_int, help="of each part at most, evenly spread (default: all)")
    add("--dtype", type=dtype_name, choices=("fp16", "fp32"), default="fp16", help="of latents")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write each split, or go on with it, and say what reads it."""
    args = build_parser().parse_args(argv)
    from training.encoded import encode_splits

    for line in encode_splits(args):
        print(line)


if __name__ == "__main__":
    run(main)
