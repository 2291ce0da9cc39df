"""Encode a data set once, so that training a predictor reads latents: encode_latents.py --config F --out DIR"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from flow_pred.autoencoder import build_autoencoder
from flow_pred.config import read_config
from flow_pred.latents import DTYPES, encode_latents
from training.cli import make_parser, run
from training.device import resolve_device


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser("Write the latents of every frame to <out>/<split>.hdf5, for data.latents: <out>.")
    parser.add_argument("--config", required=True, help="a configuration of configs/flow_pred")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], help="parts of the data set")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of the stored latents")
    parser.add_argument("--vqvae-path", help="the autoencoder's checkpoint, in place of autoencoder.ckpt_path")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Encode each split."""
    args = build_parser().parse_args(argv)
    config, _ = read_config(args.config, args.overrides)
    settings = config.model.autoencoder
    autoencoder = build_autoencoder({**settings, "ckpt_path": args.vqvae_path or settings.get("ckpt_path")})
    for split in args.splits:
        path = encode_latents(
            autoencoder,
            config.data.data_root,
            split,
            args.out,
            size=config.data.crop_size,
            short_side=config.data.input_size,
            dtype=args.dtype,
            device=resolve_device(args.device),
        )
        print(path)


if __name__ == "__main__":
    run(main)
