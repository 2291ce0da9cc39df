"""Encode a data set once, so that training a predictor reads latents: encode_latents.py --config F --out DIR"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import dtype_name, make_parser, positive_int, run


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Write the latents of every frame to <out>/<split>.hdf5, for data.latents: <out>.")
    parser.add_argument("--config", required=True, help="a configuration of configs/flow_pred")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--data", help="any source of videos, in place of data.data_root")
    parser.add_argument(
        "--splits", nargs="+", choices=("train", "val", "test"), default=["train", "val"], help="parts of the data"
    )
    parser.add_argument("--max-videos", type=positive_int, help="of each part at most, evenly spread (default: all)")
    parser.add_argument(
        "--dtype", type=dtype_name, choices=("fp16", "fp32"), default="fp16", help="of the stored latents"
    )
    parser.add_argument("--autoencoder", "--vqvae-path", help="its checkpoint, in place of autoencoder.ckpt_path")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from flow_pred.latents import encode_splits

    encode_splits(args)


if __name__ == "__main__":
    run(main)
