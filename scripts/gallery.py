"""Make a page of one run, or of several side by side: clips, curves, evaluations, configurations."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from evaluation.protocol import positive_int
from training.cli import make_parser, run


def main(argv: list[str] | None = None) -> None:
    """Write the page, print its path."""
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or any folder of clips")
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"), help="folder of the page")
    parser.add_argument("--title", default="", help="headline of the page (default: the names of the runs)")
    parser.add_argument("--num_clips", "--num-clips", type=positive_int, default=8, help="at most, of each kind")
    args = parser.parse_args(argv)
    from evaluation.gallery.comparison import write_page  # here, after --help: what it needs takes time to import

    print(write_page(args.runs, args.out, args.title, args.num_clips))


if __name__ == "__main__":
    run(main)
