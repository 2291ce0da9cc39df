"""A trained model with the data that it is to be shown, from the flags that several scripts share."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from training.distributed import resolve_device
from videodata.errors import UserError
from videodata.geometry import Size
from videodata.pixels import to_float
from videodata.sources import ClipSource
from videodata.splits import SPLITS, open_split
from vqgan.batch_files import BatchFiles, find_batch_files
from vqgan.config import VQGANConfig
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


def add_grid_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that name the data; the grid is that of the training unless given."""
    parser.add_argument("--data_path", default="data/UCFData", help="folder of batch files, or any source of clips")
    parser.add_argument("--patch_size", type=int, help="side of a patch (default: as in training)")
    parser.add_argument("--num_patches_h", type=int, help="patches below each other (default: as in training)")
    parser.add_argument("--num_patches_w", type=int, help="patches beside each other (default: as in training)")


def add_part_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that choose a part of the data."""
    parser.add_argument("--batch_idx", type=int, default=0, help="number of the batch file")
    parser.add_argument("--split", choices=SPLITS, help="part of data that is not in batch files (default: all of it)")


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


@dataclass
class Footage:
    """Numbered videos to show, at the size of the grid."""

    source: ClipSource
    videos: list[int]
    size: Size

    def __len__(self) -> int:
        return len(self.videos)

    def read(self, number: int, start: int, count: int) -> Tensor:
        """Frames (count, 3, H, W) in [-1, 1] of a video. Raises UserError when there are none or too few."""
        if not 0 <= number < len(self):
            raise UserError(f"--video_idx {number}: {self.source.path} has videos 0 to {len(self) - 1}")
        length = self.source.length(self.videos[number])
        if start + count > length:
            raise UserError(
                f"--num_frames {count}: {self.source.id(self.videos[number])} has {length} frames, and frame {start} "
                f"is the first one shown; ask for at most {max(0, length - start)}"
            )
        return to_float(self.source.read_clip(self.videos[number], start, count, 1, self.size)).movedim(1, 0)

    def fps(self, number: int) -> Fraction | None:
        """Frames per second, where the source knows."""
        return self.source.fps(self.videos[number])


def open_footage(args: argparse.Namespace) -> Footage:
    """The videos of the batch file or source that the flags name."""
    files = find_batch_files(args.data_path)
    if files and args.batch_idx not in files:
        raise UserError(f"--batch_idx {args.batch_idx}: {args.data_path} has {', '.join(map(str, files))}")
    if files:
        source = BatchFiles([files[args.batch_idx]])
        videos = list(range(len(source)))
    else:
        source, videos = open_split(args.data_path, args.split)
    return Footage(source, videos, (args.num_patches_h * args.patch_size, args.num_patches_w * args.patch_size))
