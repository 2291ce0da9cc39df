"""How scripts/evaluate.py opens a VideoVAE+ model: its flags, and the subject that is scored."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .train import Reconstructions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate.py vvae` beside those of every model."""
    parser.add_argument("--config", help="configuration, such as config_16z.yaml (default: told by the checkpoint)")
    parser.add_argument("--size", type=int, nargs=2, default=(216, 216), metavar=("H", "W"), help="of the frames")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of weights and activations")
    parser.add_argument("--chunk_size", type=int, default=16, help="frames of a window, a multiple of 4")
    parser.add_argument("--overlap", type=int, default=4, help="frames shared by windows; 0: independent chunks")
    parser.add_argument("--caption", help="one caption for all clips, for text-guided models; needs T5")


def open_subject(args: argparse.Namespace) -> Reconstructions:
    """The model of --checkpoint, ready to be scored. Raises UserError."""
    from .commands import open_model, streaming_from
    from .train import Reconstructions, own_errors

    with own_errors():
        model = open_model(argparse.Namespace(**vars(args), ckpt=args.checkpoint))
        text = None if args.caption is None else model.encode_text(args.caption)
        return Reconstructions(model, streaming_from(args, text))
