"""BAIR records to PNG frames: convert_bair.py --data_dir bair

Reads <data_dir>/softmotion30_44k/{train,test}/*.tfrecords, writes
<data_dir>/processed_data/{train,test}/<file>/<k>/<i>.png (k from 1, i from 0) and, beside
them, actions and gripper positions as <split>.actions.npz. TensorFlow is not needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from videodata.datasets.bair import CAMERAS, INNER_FOLDER, convert_to_frames


def main(argv: list[str] | None = None) -> None:
    """Convert both parts."""
    parser = make_parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help=f"folder that holds {INNER_FOLDER}")
    parser.add_argument("--camera", choices=CAMERAS, default=CAMERAS[0], help="papers use image_aux1")
    parser.add_argument("--num_jobs", type=int, default=0, help="threads; 0: one per core")
    args = parser.parse_args(argv)
    for line in convert_to_frames(args.data_dir, args.camera, args.num_jobs):
        print(line)


if __name__ == "__main__":
    run(main)
