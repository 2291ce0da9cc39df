"""How well a trained VQGAN reconstructs clips, and how much of its codebook it uses for them.

The flags, without torch, so that the help of scripts/evaluate.py need not wait, and how they open what `scores` has.
"""

from __future__ import annotations

import argparse

from evaluation.subject import Subject
from training.cli import positive_int
from vqgan.config import add_grid_arguments

FRAMES = 8  # per clip; the model sees one at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `scripts/evaluate.py vqgan` beside those of every model."""
    add_grid_arguments(parser)
    parser.add_argument(
        "--size", type=positive_int, nargs=2, metavar=("H", "W"),
        help="of whole frames, each in one piece (default: of the grid of patches)",
    )  # fmt: skip


def open_subject(args: argparse.Namespace) -> Subject:
    """The model that `--checkpoint` names, on the grid of its training unless the flags say otherwise.

    Frames of another size than that of the grid are seen in one piece.
    """
    from training.distributed import resolve_device
    from vqgan.files import load_model, settle_grid
    from vqgan.scores import Reconstructions

    model, config = load_model(args.checkpoint, resolve_device(args.device))
    rows, columns = settle_grid(args, config)
    size = rows * args.patch_size, columns * args.patch_size
    if args.size and tuple(args.size) != size:
        size, rows, columns = args.size, 1, 1
    subject = Reconstructions(model, rows, columns)
    subject.runs = (args.checkpoint,)
    return subject.made_for(args.frames or FRAMES, size, args.stride or 1)
