"""How well a 3-D tokenizer reconstructs clips, and how much of its codebook it uses for them.

The flags, without torch, so that the help of scripts/evaluate.py need not wait, and how they open what `scores` has.
"""

from __future__ import annotations

import argparse

from evaluation.subject import Subject
from training.cli import positive_int

FRAMES, SIZE = 17, 256  # of the clips that the published models were made for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `scripts/evaluate.py tokenizer3d` beside those of every model."""
    parser.add_argument("--version", choices=("1.0", "1.1"), help="of a published file whose name does not tell it")
    parser.add_argument(
        "--size", type=positive_int, nargs=2, metavar=("H", "W"), help="of the frames (default: as in training)"
    )
    parser.add_argument("--sample", action="store_true", help="draw the latents of a KL model, in place of the mean")


def open_subject(args: argparse.Namespace) -> Subject:
    """The model that `--checkpoint` names, ready to be scored on clips like those of its training. Raises UserError."""
    from tokenizer3d.files import load_model
    from tokenizer3d.scores import Reconstructions
    from training.distributed import resolve_device

    model, config = load_model(args.checkpoint, resolve_device(args.device), args.version)
    subject = Reconstructions(model, args.sample)
    subject.runs = (args.checkpoint,)
    data = {"frames": FRAMES, "size": SIZE, "stride": 1, **config.get("data", {})}
    size = args.size or ([data["size"]] * 2 if isinstance(data["size"], int) else data["size"])
    rate = None if args.stride else data.get("validation_fps") or data.get("fps")
    reading = {} if rate is None else {"fps": rate}
    return subject.made_for(args.frames or data["frames"], tuple(size), args.stride or data["stride"], **reading)
