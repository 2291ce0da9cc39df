"""BAIR records to PNG frames: convert_bair.py --data_dir bair

Reads <data_dir>/softmotion30_44k/{train,test}/*.tfrecords, writes
<data_dir>/processed_data/{train,test}/<file>/<k>/<i>.png (k from 1, i from 0) and, beside
them, actions and gripper positions as <split>.actions.npz. TensorFlow is not needed.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from videodata.datasets.bair import CAMERAS, INNER_FOLDER, Bair, write_motions
from videodata.errors import UserError, VideoError
from videodata.frame_folder import write_trees
from videodata.prepare import available_cores


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help=f"folder that holds {INNER_FOLDER}")
    parser.add_argument("--camera", choices=CAMERAS, default=CAMERAS[0], help="papers use image_aux1")
    parser.add_argument("--num_jobs", type=int, default=0, help="threads; 0: one per core")
    return parser


def convert(dataset: Bair, root: Path, split: str, jobs: int) -> list[VideoError]:
    """Write one part; gives the errors of the records that cannot be read."""
    source, out = dataset.records(root, split), root / "processed_data"
    tasks = []
    for index in range(len(source)):
        file, number = source.id(index).rsplit("/", 1)
        tasks.append((out / split / file / str(int(number) + 1), partial(source.read, index)))
    failures = write_trees(tasks, jobs)
    good = [source.id(index) for index, (folder, _) in enumerate(tasks) if folder.is_dir()]
    print(f"{out / split}: {len(good)} of {len(source)} records")
    print(write_motions(source, good, out / f"{split}.actions.npz"))
    return failures


def main(argv: list[str] | None = None) -> None:
    """Convert both parts."""
    args = build_parser().parse_args(argv)
    if not (args.data_dir / INNER_FOLDER).is_dir():
        raise UserError(
            f"{args.data_dir}: has no folder {INNER_FOLDER}; `python scripts/prepare_data.py bair --root . "
            "--download_only --out bair` downloads it to ./bair"
        )
    dataset = Bair(args.camera)
    failures = [
        error
        for split in dataset.splits
        for error in convert(dataset, args.data_dir, split, args.num_jobs or available_cores())
    ]
    for error in failures:
        print(f"left out: {error}", file=sys.stderr)
    if failures:
        raise UserError(f"{len(failures)} records were left out, the first: {failures[0]}; the others are written")


if __name__ == "__main__":
    run(main)
