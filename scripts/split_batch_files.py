"""Cut a big .npy into the batch files of the VQGAN: python scripts/split_batch_files.py --npy_file F --output_dir D"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run


def main(argv: list[str] | None = None) -> None:
    """Write ucf101_subset_batch_<k>.npy, and its .json where the .npy has one."""
    parser = make_parser("Cut a .npy (N, T, H, W, 3) of prepare_ucf101.py into batch files.")
    parser.add_argument("--npy_file", "--data", required=True, help="the .npy to cut")
    parser.add_argument(
        "--output_dir", "--out", type=Path, default=Path("data/UCFData"), help="folder of the batch files"
    )
    parser.add_argument("--shard_size", type=int, default=812, help="sequences per file, at least 1")
    args = parser.parse_args(argv)
    from vqgan.data import write_batch_files

    files = write_batch_files(args.npy_file, args.output_dir, args.shard_size)
    print(f"{len(files)} batch files in {args.output_dir}")


if __name__ == "__main__":
    run(main)
