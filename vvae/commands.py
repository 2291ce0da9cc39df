"""What scripts/vvae.py does: videos, images and latents, one file or a folder of them, through the model.

`args` are the parsed flags of that script. Errors are VVAEErrors.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .files import load_model
from .src.errors import VVAEError
from .src.files import replaced
from .src.images import SUFFIXES as IMAGE_SUFFIXES
from .src.images import reconstruct_images
from .src.latent_files import SUFFIXES as LATENT_SUFFIXES
from .src.latent_files import latent_statistics, read_info
from .src.models.autoencoder2plus1d_1dcnn import AutoencoderKL2plus1D_1dcnn
from .src.modules.t5 import CaptionCache, caption_embedder, load_text
from .src.streaming import Streaming, decode_file, encode_file, reconstruct
from .src.tiling import Windows
from .src.video_io import READ_SUFFIXES as VIDEO_SUFFIXES
from .src.video_io import WRITE_SUFFIXES, probe

logger = logging.getLogger(__name__)
Pair = tuple[Path, Path]  # a file and the place of its result
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def process_files(args: argparse.Namespace) -> None:
    """Do what the sub-command says; files that fail do not keep the others from being written."""
    work = {
        "reconstruct": reconstruct_files,
        "encode": encode_files,
        "decode": decode_files,
        "statistics": write_statistics,
    }
    work[args.command](args)


def reconstruct_files(args: argparse.Namespace) -> None:
    """Videos and images -> the same, through the latents."""
    check_flags(args)
    files = files_in(args.input, VIDEO_SUFFIXES | IMAGE_SUFFIXES)
    places = places_for(args.input, files, args.output, ".mp4", (*WRITE_SUFFIXES, *IMAGE_SUFFIXES))
    images = pending([pair for pair in places if is_image(pair[0])], args.skip_existing)
    videos = pending([pair for pair in places if not is_image(pair[0])], args.skip_existing, args.save_latent)
    model, _ = open_model(args)

    def video(path: Path, output: Path) -> str:
        latent = output.with_suffix(args.save_latent) if args.save_latent else None
        with frame_bar(path, probe(path).frames) as bar:
            streaming = streaming_from(args, text_for(model, args, path), bar.update)
            return f"{reconstruct(model, path, output, save_latent=latent, streaming=streaming)} frames"

    def image(path: Path, output: Path) -> str:
        text = streaming_from(args, text_for(model, args, path)).text_options()
        return f"{reconstruct_images(model, [path], [output], args.batch_size, **text)} image"

    failures: list[VVAEError] = []
    if images and not model.config.caption_guide:  # all alike, so that they go through in batches
        sources, targets = zip(*images, strict=True)
        count = reconstruct_images(model, sources, targets, args.batch_size, failures)
        say(f"{count} images -> {args.output}")
        images = []
    require_success([*failures, *for_each(videos, video), *for_each(images, image)], files)


def is_image(path: Path) -> bool:
    """By its suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def encode_files(args: argparse.Namespace) -> None:
    """Videos -> latent files."""
    check_flags(args)
    files = files_in(args.input, VIDEO_SUFFIXES)
    pairs = pending(places_for(args.input, files, args.output, f".{args.format}"), args.skip_existing)
    model, _ = open_model(args)

    def encode(path: Path, output: Path) -> str:
        with frame_bar(path, probe(path).frames) as bar:
            info = encode_file(model, path, output, streaming_from(args, text_for(model, args, path), bar.update))
        return f"{info.frames} frames"

    require_success(for_each(pairs, encode), files)


def decode_files(args: argparse.Namespace) -> None:
    """Latent files -> videos."""
    check_flags(args)
    files = files_in(args.input, LATENT_SUFFIXES)
    pairs = pending(places_for(args.input, files, args.output, ".mp4"), args.skip_existing)
    model, _ = open_model(args)

    def decode(path: Path, output: Path) -> str:
        with frame_bar(path, read_info(path).frames) as bar:
            streaming = streaming_from(args, text_for(model, args, path), bar.update)
            return f"{decode_file(model, path, output, streaming, args.audio_from)} frames"

    require_success(for_each(pairs, decode), files)


def write_statistics(args: argparse.Namespace) -> None:
    """Mean and deviation of latent files -> JSON; an existing file keeps its other keys."""
    found = latent_statistics(files_in(args.latents, LATENT_SUFFIXES))
    try:
        present = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise VVAEError(f"{args.out}: not valid JSON ({error}); name another --out") from error
    with replaced(args.out) as temporary:
        temporary.write_text(json.dumps({**present, **found}, indent=2) + "\n", encoding="utf-8", newline="\n")
    say(f"scaling factor {found['scaling_factor']:.4g}, {len(found['latents_mean'])} channels -> {args.out}")


def check_flags(args: argparse.Namespace) -> None:
    """Raises VVAEError for flags that do not fit together, before anything is read."""
    streaming_from(args)
    if args.tile and min(args.tile) <= args.tile_overlap:
        raise VVAEError(
            f"--tile {args.tile[0]} {args.tile[1]}: tiles must be larger than --tile_overlap {args.tile_overlap}; "
            "lower that, or use larger tiles"
        )


def open_model(args: argparse.Namespace) -> tuple[AutoencoderKL2plus1D_1dcnn, dict[str, Any]]:
    """`load_model` of what the flags name; without --checkpoint it may have random weights (warned)."""
    model, config = load_model(args.checkpoint, config=args.config)
    if not model.config.caption_guide and (getattr(args, "text", None) or args.caption):
        raise VVAEError("this model takes no captions; leave out --caption and --text")
    if getattr(args, "tile", None):
        strides = [side - args.tile_overlap for side in args.tile]
        model.enable_tiling(*args.tile, args.chunk_size, *strides, args.chunk_size)
    model.encoder.slice_frames = model.decoder.slice_frames = getattr(args, "slice_frames", None)
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device, DTYPES[args.dtype])
    if getattr(args, "compile", False):
        model.encoder.compile()
        model.decoder.compile()
    return model, config


def streaming_from(
    args: argparse.Namespace,
    text: tuple[Tensor, Tensor] | None = None,
    on_frames: Callable[[int], object] = lambda count: None,
) -> Streaming:
    """The settings of a pass over files that the flags describe; without the rest, a check of the flags."""
    given = {name: getattr(args, name) for name in ("resolution", "keep_damaged", "quality") if hasattr(args, name)}
    return Streaming(Windows(args.chunk_size, args.overlap), text, on_frames=on_frames, **given)


def text_for(model: nn.Module, args: argparse.Namespace, path: Path) -> tuple[Tensor, Tensor] | None:
    """Caption embeddings for a file, by the flags or by the text file beside it; None for models without captions."""
    if not model.config.caption_guide:
        return None
    model.text_encoder = args.text_encoder or model.text_encoder
    if args.text and not args.text.is_dir():
        return load_text(args.text)
    beside = path.with_suffix(".txt")
    caption = args.caption
    if caption is None and beside.is_file():
        caption = beside.read_text(encoding="utf-8").strip()
    if args.text:
        cache = CaptionCache(args.text)
        cache.fill([caption or ""], caption_embedder(model))
        return load_text(cache.path(caption or ""))
    return None if caption is None else model.encode_text(caption)


def files_in(source: Path, suffixes: frozenset[str] | tuple[str, ...]) -> list[Path]:
    """The file itself, or the files of a folder with one of these suffixes, sorted. Raises VVAEError for none."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise VVAEError(f"{source}: no such file or folder")
    listed = sorted(path for path in source.iterdir() if not path.name.startswith("."))  # ._x.png is of the system
    files = [path for path in listed if path.suffix.lower() in suffixes and path.is_file()]
    if not files:
        raise VVAEError(f"{source}: holds no file with one of the suffixes {', '.join(sorted(suffixes))}")
    return files


def places_for(source: Path, files: list[Path], out: Path, suffix: str, keep: tuple[str, ...] = ()) -> list[Pair]:
    """Each file with the place of its result: `out` itself for a single file, else a file of its name in `out`.

    Suffixes other than those to keep become `suffix`; where that makes two names equal, the old suffix stays too.
    """
    if source.is_dir() and out.suffix.lower() in (suffix, *keep) and not out.is_dir():
        raise VVAEError(f"{source} is a folder, so the output must be one too, found {out}")
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
    finished. Raises VVAEError where a result would take the place of its source.
    """
    left = []
    for path, output in pairs:
        if output.exists() and output.samefile(path):
            raise VVAEError(f"{output}: the result would replace its source; name another output")
        results = [output] if beside is None else [output, output.with_suffix(beside)]
        if not (skip_existing and all(result.exists() for result in results)):
            left.append((path, output))
    if len(left) < len(pairs):
        say(f"{len(pairs) - len(left)} of {len(pairs)} are there already")
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
            say(f"[{number}/{len(pairs)}] {path} -> {output}: {line}")
    return failures


def require_success(failures: Sequence[VVAEError], files: Sequence[Path]) -> None:
    """Raises VVAEError, which gives the command its exit status, when files have failed."""
    if not failures:
        return
    if len(files) == 1:
        raise VVAEError(str(failures[0]))
    rest = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    raise VVAEError(f"{len(failures)} of {len(files)} files failed: {failures[0]}{rest}")


def frame_bar(path: Path, frames: int) -> tqdm:
    """A bar on stderr that counts the frames of a file; `frames`: as far as known, else 0. Only on a terminal."""
    return tqdm(total=frames or None, desc=path.name, unit="frame", leave=False, disable=None)


def say(line: str) -> None:
    """A line on stdout: what a command has done."""
    print(line)  # noqa: T201
