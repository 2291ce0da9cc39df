"""A trained model with the data that it is to be shown, from the flags that several scripts share."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from training.device import resolve_device
from videodata.clips import ClipDataset
from videodata.errors import UserError
from videodata.sources import open_source
from vqgan.batch_files import BatchFiles, find_batch_files
from vqgan.config import VQGANConfig
from vqgan.data import READING
from vqgan.model_file import Model, load_model, stored_data

GRID = {"patch_size": 80, "num_patches_h": 3, "num_patches_w": 4}


def add_model_arguments(parser: argparse.ArgumentParser, checkpoint: str) -> None:
    """Flags that name the model; its sizes are needed for bare weights only, other files know them."""
    parser.add_argument("--checkpoint", default=checkpoint, help="best_model_*.pt, run folder, or bare weights")
    group = parser.add_argument_group("model, for bare weights alone")
    group.add_argument("--hidden_dims", type=int, nargs="+", help="widths, top to bottom")
    group.add_argument("--latent_dim", type=int, help="channels of a code")
    group.add_argument("--num_embeddings", type=int, help="number of codes")
    group.add_argument("--downsample_factor", type=int, help="pixels per code along each side")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--gpu", type=int, default=0, help="number of the GPU, where there is one")
    parser.add_argument("--no_cuda", action="store_true", help="same as --device cpu")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that name the data; the grid is that of the training unless given."""
    parser.add_argument("--data_path", default="data/UCFData", help="folder of batch files, or any source of clips")
    parser.add_argument("--batch_idx", type=int, default=0, help="number of the batch file")
    parser.add_argument("--patch_size", type=int, help="side of a patch (default: as in training)")
    parser.add_argument("--num_patches_h", type=int, help="patches below each other (default: as in training)")
    parser.add_argument("--num_patches_w", type=int, help="patches beside each other (default: as in training)")


def open_model(args: argparse.Namespace) -> Model:
    """The model on its device, in eval mode. Raises UserError."""
    names = [entry.name for entry in fields(VQGANConfig)]
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    if args.no_cuda:
        args.device = "cpu"
    device = resolve_device(f"cuda:{args.gpu}" if args.device == "auto" and args.gpu else args.device)
    return load_model(args.checkpoint, {"type": "vqgan", **given} if given else None).to(device)


def settle_grid(args: argparse.Namespace) -> None:
    """Fill in the grid that the flags leave open: that of the training, else the documented one."""
    stored: dict[str, Any] = stored_data(Path(args.checkpoint))
    for name, documented in GRID.items():
        if getattr(args, name) is None:
            setattr(args, name, stored.get(name, documented))


def open_videos(args: argparse.Namespace, frames: int) -> ClipDataset:
    """Clips of `frames` frames at the size of the grid, from the batch file or source that the flags name."""
    files = find_batch_files(args.data_path)
    if files and args.batch_idx not in files:
        raise UserError(f"--batch_idx {args.batch_idx}: {args.data_path} has {', '.join(map(str, files))}")
    source = BatchFiles([files[args.batch_idx]]) if files else open_source(args.data_path)
    size = args.num_patches_h * args.patch_size, args.num_patches_w * args.patch_size
    return ClipDataset(
        source, list(range(len(source))), frames, size, 1, 0, windows="first", flip=False, dtype="float32",
        on_error="raise", reading=READING,
    )  # fmt: skip
