"""How well a VideoVAE+ model reconstructs clips.

The flags of scripts/evaluate.py vvae, without torch, so that the help need not wait, and how they open what is scored.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .train import Reconstructions

PUBLISHED = {"frames": 16, "size": 216, "stride": 1}  # the clips that the published weights were trained on


def count(least: int) -> Callable[[str], int]:
    """A type of argparse: a whole number that is not smaller."""

    def convert(text: str) -> int:
        if not least <= int(text) < 2**31:
            raise argparse.ArgumentTypeError(f"must be at least {least} and below 2**31, found {text}")
        return int(text)

    convert.__name__ = "int"
    return convert


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate.py vvae` beside those of every model."""
    parser.add_argument("--config", help="configuration, such as config_16z.yaml (default: told by the checkpoint)")
    parser.add_argument(
        "--size",
        type=count(1),
        nargs=2,
        metavar=("H", "W"),
        help="of the frames (default: as in training, or 216 216)",
    )
    parser.add_argument(
        "--dtype", "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of weights and activations"
    )
    parser.add_argument("--chunk_size", type=count(1), default=16, help="frames of a window, a multiple of 4")
    parser.add_argument("--overlap", type=count(0), default=4, help="frames shared by windows; 0: independent chunks")
    parser.add_argument("--caption", help="one caption for all clips, for text-guided models; needs T5")


def open_subject(args: argparse.Namespace) -> Reconstructions:
    """The model of --checkpoint, ready to be scored on clips like those of its training. Raises UserError."""
    from .commands import open_model, streaming_from
    from .train import Reconstructions, own_errors

    with own_errors():
        model, config = open_model(args)
        text = None if args.caption is None else model.encode_text(args.caption)
        subject = Reconstructions(model, streaming_from(args, text))
    subject.runs = (args.checkpoint,)
    data = {**PUBLISHED, **config.get("data", {})}
    size = args.size or ([data["size"]] * 2 if isinstance(data["size"], int) else data["size"])
    return subject.made_for(args.frames or data["frames"], size, args.stride or data["stride"])
