"""All code indices of a data set, as memory-mapped arrays: python scripts/project_vqgan.py --data_path D"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from vqgan.config import add_grid_arguments, add_model_arguments
from vqgan.data import open_frames, open_videos
from vqgan.files import model_identity, open_model, settle_grid
from vqgan.project import Projection, project


def main(argv: list[str] | None = None) -> None:
    """Write <output_path>/<split>.npy for each split, or go on with them."""
    parser = make_parser("Encode all frames of a data set with a VQGAN; an interrupted command continues.")
    add_grid_arguments(parser)
    add_model_arguments(parser, "checkpoints/best_model_gan.pt")
    parser.add_argument("--model_path", dest="checkpoint", metavar="FILE", help="same as --checkpoint")
    parser.set_defaults(checkpoint="checkpoints/best_model_gan.pt")
    parser.add_argument("--output_path", type=Path, default=Path("Data_Projections"), help="folder to write to")
    parser.add_argument(
        "--splits", nargs="+", choices=("train", "val", "test", "all"), default=["train", "val", "test"],
        help="parts of the data, divided as in training; all: everything in one array",
    )  # fmt: skip
    parser.add_argument("--test_batch", type=int, default=13, help="number of the batch file that is the test split")
    parser.add_argument("--batch_size", type=int, default=4, help="frames at a time")
    args = parser.parse_args(argv)
    model = open_model(args)
    settle_grid(args)
    rows, columns = args.num_patches_h, args.num_patches_w
    size = rows * args.patch_size, columns * args.patch_size
    for name in args.splits:
        split = None if name == "all" else name
        source, videos = open_videos(args.data_path, split, args.test_batch)
        data = open_frames(args.data_path, split, size, test_batch=args.test_batch).fingerprint()
        grid = {"size": list(size), "grid": [rows, columns]}
        made_from = {"data": data, "model": model_identity(Path(args.checkpoint)), **grid}
        projection = Projection(model, source, videos, size, rows, columns, made_from, args.batch_size)
        path = project(projection, args.output_path, name)
        print(f"{path}: {len(projection.videos)} videos, {sum(projection.lengths)} frames")


if __name__ == "__main__":
    run(main)
