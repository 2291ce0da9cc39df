"""Make a page of one run, or of several side by side: clips, curves, evaluations, configurations."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from evaluation.gallery import Gallery
from evaluation.gallery.comparison import comparison_section
from evaluation.gallery.runs import Run, read_run
from training.cli import make_parser, run
from videodata.errors import UserError


def read_runs(folders: list[Path]) -> list[Run]:
    """The runs under names that tell them apart."""
    names = [folder.resolve().name for folder in folders]
    twice = {name for name, count in Counter(names).items() if count > 1}
    names = [str(folder) if name in twice else name for folder, name in zip(folders, names, strict=True)]
    if len(set(names)) < len(names):
        raise UserError("a run folder is named twice; name each once")
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def main(argv: list[str] | None = None) -> None:
    """Read the runs, write the page, print its path."""
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or any folder of clips")
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"), help="folder of the page")
    parser.add_argument("--title", default="", help="headline of the page (default: the names of the runs)")
    parser.add_argument("--num_clips", type=int, default=8, help="at most, of each kind")
    args = parser.parse_args(argv)
    if args.num_clips < 1:
        raise UserError("--num_clips must be at least 1")
    runs = read_runs(args.runs)
    gallery = Gallery(args.title or " and ".join(", ".join(r.name for r in runs).rsplit(", ", 1)))
    if len(runs) > 1:
        gallery.add(comparison_section(runs, args.num_clips))
    for item in runs:
        gallery.add(item.section(args.num_clips))
    print(gallery.write(args.out))


if __name__ == "__main__":
    run(main)
