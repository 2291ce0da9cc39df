"""What the scripts of VideoVAE+ share: the flags that open a model, and files or folders of files as input."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from training.checkpoint import newest_checkpoint
from training.device import resolve_device
from videodata.errors import UserError
from vvae import AutoencoderKL2plus1D_1dcnn, VVAEError, instantiate_from_config, load_config, load_text
from vvae.src.streaming import Streaming
from vvae.src.windows import Windows

logger = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, where, and in which precision."""
    group = parser.add_argument_group("model")
    group.add_argument("--ckpt", help="checkpoint (.ckpt, .safetensors), folder of save_pretrained, or run folder")
    group.add_argument("--config", help="configuration, such as config_16z.yaml (default: told by the checkpoint)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--dtype", choices=DTYPES, default="fp32", help="of weights and activations")
    group.add_argument("--compile", action="store_true", help="compile the networks: slow start, faster windows")
    group.add_argument("--slice_frames", type=int, help="frames per slice inside a window (default: by memory)")


def add_window_arguments(parser: argparse.ArgumentParser) -> None:
    """How long and large videos are cut."""
    group = parser.add_argument_group("windows")
    group.add_argument("--chunk_size", type=int, default=16, help="frames of a window, a multiple of 4")
    group.add_argument("--overlap", type=int, default=4, help="frames shared by windows; 0: independent chunks")
    group.add_argument("--tile", type=int, nargs=2, metavar=("H", "W"), help="cut frames into tiles of this size")
    group.add_argument("--tile_overlap", type=int, default=64, help="pixels shared by neighbouring tiles")


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Captions of the text-guided models."""
    group = parser.add_argument_group("captions (text-guided models; default: NAME.txt beside the video, else none)")
    group.add_argument("--caption", help="one caption for all videos; needs T5")
    group.add_argument("--text", metavar="FILE", help="caption embeddings written by vvae.save_text")


@contextmanager
def own_errors() -> Iterator[None]:
    """Errors of the package as errors of the project, which scripts print in one line."""
    try:
        yield
    except VVAEError as error:
        raise UserError(str(error)) from error


def open_model(args: argparse.Namespace) -> AutoencoderKL2plus1D_1dcnn:
    """The model that the flags name, frozen. Raises UserError; without --ckpt it may have random weights (warned)."""
    if not args.ckpt and not args.config:
        raise UserError("name the weights with --ckpt (or a configuration that names them with --config)")
    with own_errors():
        model = _build(args)
    if getattr(args, "tile", None):
        overlap = args.tile_overlap
        with own_errors():
            strides = [side - overlap for side in args.tile]
            model.enable_tiling(*args.tile, args.chunk_size, *strides, args.chunk_size)
    model.encoder.slice_frames = model.decoder.slice_frames = args.slice_frames
    model = model.freeze().to(resolve_device(args.device), DTYPES[args.dtype])
    if args.compile:
        model.encoder.compile()
        model.decoder.compile()
    return model


def _build(args: argparse.Namespace) -> AutoencoderKL2plus1D_1dcnn:
    path = Path(args.ckpt) if args.ckpt else None
    if path is not None and path.is_dir() and (path / "config.json").is_file():
        return AutoencoderKL2plus1D_1dcnn.from_pretrained(path)
    if path is not None and path.is_dir():
        newest = newest_checkpoint(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
        if newest is None:
            raise UserError(f"{path}: neither a folder of save_pretrained nor a run folder with checkpoints")
        path = newest.weights
    if not args.config:
        return AutoencoderKL2plus1D_1dcnn.from_single_file(path)
    node = load_config(args.config).model
    return instantiate_from_config(node) if path is None else instantiate_from_config(
        node, ckpt_path=str(path), strict_ckpt=True
    )  # fmt: skip


def streaming_from(args: argparse.Namespace, text: tuple[Tensor, Tensor] | None = None) -> Streaming:
    """The settings of a pass over files that the flags describe."""
    with own_errors():
        return Streaming(
            Windows(args.chunk_size, args.overlap),
            text,
            resolution=getattr(args, "resolution", None),
            keep_damaged=getattr(args, "keep_damaged", False),
            quality=getattr(args, "quality", 6),
        )


def text_for(model: nn.Module, args: argparse.Namespace, path: Path) -> tuple[Tensor, Tensor] | None:
    """Caption embeddings for a file, by the flags or by the text file beside it; None for models without captions."""
    if not model.config.caption_guide:
        if args.text or args.caption:
            raise UserError("this model takes no captions; leave out --caption and --text")
        return None
    if args.text:
        return load_text(args.text)
    beside = path.with_suffix(".txt")
    caption = args.caption if args.caption is not None else beside.read_text().strip() if beside.is_file() else None
    return None if caption is None else model.encode_text(caption)


def files_in(source: Path, suffixes: frozenset[str] | tuple[str, ...]) -> list[Path]:
    """The file itself, or the files of a folder with one of these suffixes, sorted. Raises UserError for none."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source}: no such file or folder")
    files = sorted(path for path in source.iterdir() if path.suffix.lower() in suffixes and path.is_file())
    if not files:
        raise UserError(f"{source}: holds no file with one of the suffixes {', '.join(sorted(suffixes))}")
    return files


def outputs_for(source: Path, files: list[Path], out: Path, suffix: str, keep: tuple[str, ...] = ()) -> list[Path]:
    """Where the result of each file goes: `out` itself for a single file, else a file of the same name in `out`.

    Suffixes other than those to keep become `suffix`; where that makes two names equal, the old suffix stays too.
    """
    if source.is_file() and out.suffix:
        return [out]
    plain = [path.name if path.suffix.lower() in keep else f"{path.stem}{suffix}" for path in files]
    names = [
        f"{path.name}{suffix}" if plain.count(name) > 1 and path.name != name else name
        for path, name in zip(files, plain, strict=True)
    ]
    return [out / name for name in names]


def for_each(files: list[Path], outputs: list[Path], work: Callable[[Path, Path], str]) -> None:
    """Do the work for every file and print its line; files that fail are reported together at the end (UserError)."""
    failures = []
    for number, (path, output) in enumerate(zip(files, outputs, strict=True), start=1):
        try:
            print(f"[{number}/{len(files)}] {path} -> {output}: {work(path, output)}")
        except VVAEError as error:
            failures.append(str(error))
            logger.error("%s", error)
    if failures:
        rest = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise UserError(f"{len(failures)} of {len(files)} files failed: {failures[0]}{rest}")
