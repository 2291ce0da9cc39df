"""What the scripts of VideoVAE+ share: the flags that open a model, and files or folders of files as input."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.checkpoint import newest_checkpoint
from training.device import resolve_device
from training.explain import is_out_of_memory
from videodata.errors import UserError
from vvae import AutoencoderKL2plus1D_1dcnn, VVAEError, instantiate_from_config, load_config, load_text
from vvae.src.captions import CaptionCache, caption_embedder
from vvae.src.streaming import Streaming
from vvae.src.tiling import Windows

logger = logging.getLogger(__name__)
Pair = tuple[Path, Path]  # a file and the place of its result

LESS_MEMORY = "cut frames into tiles (--tile 256 256), use shorter windows (--chunk_size 8) or --dtype bf16"
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
    group.add_argument("--caption", help="one caption for all videos; needs the text encoder")
    group.add_argument("--text_encoder", metavar="FOLDER", help="folder of google/flan-t5-large (default: its cache)")
    group.add_argument(
        "--text", type=Path, metavar="PATH",
        help="embeddings of one caption, written by vvae.save_text; or a folder that keeps those of all captions",
    )  # fmt: skip


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do with a folder of files."""
    parser.add_argument("--skip_existing", action="store_true", help="leave out files whose result is there already")


@contextmanager
def own_errors() -> Iterator[None]:
    """Errors of the package, and lack of memory, as errors of the project, which scripts print in one line."""
    try:
        yield
    except VVAEError as error:
        raise UserError(str(error)) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory: {LESS_MEMORY}") from error


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


def streaming_from(
    args: argparse.Namespace,
    text: tuple[Tensor, Tensor] | None = None,
    on_frames: Callable[[int], object] = lambda count: None,
) -> Streaming:
    """The settings of a pass over files that the flags describe; without the rest, a check of the flags."""
    with own_errors():
        return Streaming(
            Windows(args.chunk_size, args.overlap),
            text,
            resolution=getattr(args, "resolution", None),
            keep_damaged=getattr(args, "keep_damaged", False),
            quality=getattr(args, "quality", 6),
            on_frames=on_frames,
        )


def text_for(model: nn.Module, args: argparse.Namespace, path: Path) -> tuple[Tensor, Tensor] | None:
    """Caption embeddings for a file, by the flags or by the text file beside it; None for models without captions."""
    if not model.config.caption_guide:
        if args.text or args.caption:
            raise UserError("this model takes no captions; leave out --caption and --text")
        return None
    model.text_encoder = args.text_encoder or model.text_encoder
    if args.text and not args.text.is_dir():
        return load_text(args.text)
    beside = path.with_suffix(".txt")
    caption = args.caption if args.caption is not None else beside.read_text().strip() if beside.is_file() else None
    if args.text:
        cache = CaptionCache(args.text)
        cache.fill([caption or ""], caption_embedder(model))
        return load_text(cache.path(caption or ""))
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


def places_for(source: Path, files: list[Path], out: Path, suffix: str, keep: tuple[str, ...] = ()) -> list[Pair]:
    """Each file with the place of its result: `out` itself for a single file, else a file of its name in `out`.

    Suffixes other than those to keep become `suffix`; where that makes two names equal, the old suffix stays too.
    """
    if source.is_dir() and out.suffix.lower() in (suffix, *keep) and not out.is_dir():
        raise UserError(f"{source} is a folder, so the output must be one too, found {out}")
    if source.is_file() and out.suffix:
        return [(files[0], out)]
    plain = [path.name if path.suffix.lower() in keep else f"{path.stem}{suffix}" for path in files]
    names = [
        f"{path.name}{suffix}" if plain.count(name) > 1 and path.name != name else name
        for path, name in zip(files, plain, strict=True)
    ]
    return [(path, out / name) for path, name in zip(files, names, strict=True)]


def pending(pairs: list[Pair], skip_existing: bool, beside: str | None = None) -> list[Pair]:
    """The files to work on, each with the place of its result; `skip_existing` leaves out those that have one.

    beside: suffix of a second file of the result. Results appear when they are complete, so that one that exists is
    finished. Raises UserError where a result would take the place of its source.
    """
    left = []
    for path, output in pairs:
        if output.exists() and output.samefile(path):
            raise UserError(f"{output}: the result would replace its source; name another output")
        results = [output] if beside is None else [output, output.with_suffix(beside)]
        if not (skip_existing and all(result.exists() for result in results)):
            left.append((path, output))
    if len(left) < len(pairs):
        print(f"{len(pairs) - len(left)} of {len(pairs)} are there already")
    return left


def for_each(pairs: list[Pair], work: Callable[[Path, Path], str]) -> list[VVAEError]:
    """Do the work for every file and print its line; returns the errors of files that failed."""
    failures = []
    for number, (path, output) in enumerate(pairs, start=1):
        try:
            line = work(path, output)
        except VVAEError as error:
            failures.append(error)
            if len(pairs) > 1:
                logger.error("[%d/%d] failed: %s", number, len(pairs), error)
        else:
            print(f"[{number}/{len(pairs)}] {path} -> {output}: {line}")
    return failures


def require_success(failures: Sequence[VVAEError], files: Sequence[Path]) -> None:
    """Raises UserError, which gives the command its exit status, when files have failed."""
    if not failures:
        return
    if len(files) == 1:
        raise UserError(str(failures[0]))
    rest = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    raise UserError(f"{len(failures)} of {len(files)} files failed: {failures[0]}{rest}")


def frame_bar(path: Path, frames: int) -> tqdm:
    """A bar on stderr that counts the frames of a file; `frames`: as far as known, else 0. Only on a terminal."""
    return tqdm(total=frames or None, desc=path.name, unit="frame", leave=False, disable=None)
