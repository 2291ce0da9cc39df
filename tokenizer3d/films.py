"""Video files through the tokenizer, in memory that does not grow with their length; latents and tokens in files.

A file of latents holds one tensor, and as notes all that is needed to get the video back: which model with which
weights made it, and the size, length and rate of the video. It is refused for any other model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from tokenizer3d.latents import Codes, Latents
from training.checkpoint import DAMAGE, check_form, write_tensors
from training.config import from_dict
from training.state import weights_digest
from videodata import iter_frames, probe, to_float, to_uint8, write_video
from videodata.encode import exact_rate
from videodata.errors import UserError, said_by
from videodata.files import parse_json, write_file
from videodata.finite import finite

if TYPE_CHECKING:
    from tokenizer3d.streaming import Streaming

WINDOW = 16  # frames at a time of models that are not causal: what the published ones were made for
METADATA = "clip"
SHORT = 2**15  # codes that 16 bits can number
FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ClipNotes:
    """What a file of latents says about itself. padding: frames, rows and columns that were added at the end."""

    model: dict[str, Any]  # the configuration, with version and levels
    weights: str  # their digest
    precision: str  # of the weights: it changes some tokens
    kind: str  # tokens or latents
    frames: int
    height: int
    width: int
    fps: str  # exact, such as 30000/1001
    padding: list[int]


def reconstruct(
    model: Streaming,
    in_file: str | Path,
    out_file: str | Path,
    *,
    quality: int = 6,
    on_frames: Callable[[int], object] = lambda count: None,
) -> int:
    """Video -> latents -> mp4 with the same number, size and rate of frames and the same sound; gives their number.

    A model that is not causal takes windows of 16 frames, which do not know each other. on_frames: called with the
    number of frames that were made since. Raises VideoError for files that cannot be read or written.
    """
    rate, count = probe(in_file).fps, 0

    def pictures() -> Iterator[np.ndarray]:
        nonlocal count
        for clip in reconstructed(model, clips_of(model, in_file)):
            count += clip.shape[2]
            on_frames(clip.shape[2])
            yield from to_uint8(finite(clip[0], "pixels of the tokenizer"))

    write_video(out_file, pictures(), rate, quality=quality, sound_from=in_file)
    return count


def clips_of(model: Streaming, path: str | Path) -> Iterator[Tensor]:
    """The frames of a video as clips (1, 3, t, H, W), a few at a time."""
    step = model.config.temporal_factor * model.pieces.step_latents if model.config.causal else WINDOW
    frames = iter_frames(path)
    while part := list(islice(frames, step)):
        yield to_float(np.stack(part))[None].to(model.device)


def reconstructed(model: Streaming, clips: Iterable[Tensor]) -> Iterator[Tensor]:
    """Clips that follow each other -> what the tokenizer makes of them, as soon as it is known."""
    if not model.config.causal:
        for x in clips:
            with torch.no_grad():
                yield model.decode(model.encode(x), x.shape[2], size=tuple(x.shape[3:]))
        return
    state = None
    for x in clips:
        state = state or model.init_state(1, *x.shape[3:])
        yield model.decode_step(model.encode_step(x, state), state)
    if state is not None:
        yield model.flush(state)


def encode_file(model: Streaming, in_file: str | Path, out_file: str | Path, dtype: str = "fp32") -> ClipNotes:
    """Write the latents (means) or tokens of a video, with what is needed to get the video back.

    dtype: of latents, fp32, fp16 or bf16; tokens are int16 or int32. Raises UserError.
    """
    info, count, size = probe(in_file), 0, (0, 0)

    def counted() -> Iterator[Tensor]:
        nonlocal count, size
        for x in clips_of(model, in_file):
            count, size = count + x.shape[2], tuple(x.shape[3:])
            yield x

    if model.config.causal:
        found: Iterable[Latents] = model.encode_stream(counted())
    else:
        found = (model.encode(x) for x in counted())
    with torch.no_grad():
        parts = [stored(model, latents, dtype) for latents in found]
    notes = notes_for(model, count, *size, info.fps)
    write_latents(out_file, torch.cat(parts, dim=1 if notes.kind == "tokens" else 2), notes)
    return notes


def stored(model: Streaming, latents: Latents, dtype: str) -> Tensor:
    """Latents (B, z, T', h, w) or tokens (B, T', h, w) as they are kept, on the CPU."""
    if isinstance(latents, Codes):
        return latents.indices.to(torch.int16 if model.config.codebook_size <= SHORT else torch.int32).cpu()
    return finite(latents.mode(), "latents").to(FLOATS[dtype]).cpu()


def notes_for(model: Streaming, frames: int, height: int, width: int, fps: Fraction) -> ClipNotes:
    """What a file of latents of a clip has to say."""
    config, factor = model.config, model.config.spatial_factor
    padding = [model.valid_lengths(frames)[-1] - frames, -height % factor, -width % factor]
    kind = "tokens" if config.codebook_size else "latents"
    digest = weights_digest(model.state_dict())[:16]
    return ClipNotes(
        config.to_dict(), digest, precision_of(model), kind, frames, height, width, str(Fraction(fps)), padding
    )


def precision_of(model: Streaming) -> str:
    """The flag that stands for the type of the weights."""
    return next((name for name, dtype in FLOATS.items() if dtype == model.dtype), str(model.dtype))


def write_latents(path: str | Path, latents: Tensor, notes: ClipNotes) -> None:
    """Write latents (1, z, T', h, w) or tokens (1, T', h, w) and their notes as one .safetensors, whole or absent."""
    metadata = {METADATA: json.dumps(asdict(notes))}
    write_file(path, lambda file: write_tensors(file, {notes.kind: latents.contiguous()}, metadata))


def read_latents(path: str | Path, model: Streaming | None = None) -> tuple[Tensor, ClipNotes]:
    """Latents or tokens of a file, and its notes. Raises UserError for a damaged one, or one that is not of `model`."""
    path = Path(path)
    check_form(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {})[METADATA]
            notes = from_dict(ClipNotes, parse_json(text), str(path))
            latents = file.get_tensor(notes.kind)
    except DAMAGE as error:
        raise UserError(f"{path}: not a whole file of latents or tokens ({said_by(error)})") from error
    try:
        exact_rate(notes.fps)
    except UserError as error:
        raise UserError(f"{path}: its notes are damaged ({error})") from error
    if model is not None:
        check_origin(path, notes, model)
        check_content(path, latents, notes, model)
    return latents, notes


def check_origin(path: Path, notes: ClipNotes, model: Streaming) -> None:
    """Raises UserError unless the model is the one that made the file."""
    own = model.config.to_dict()
    names = ("name", "version", "regularizer", "levels", *own)
    other = next((name for name in names if notes.model.get(name) != own[name]), None)
    if other is not None:
        found, expected = (values.get(other) for values in (notes.model, own))
        raise UserError(f"{path}: was made by a model whose {other} is {found!r}, and this one's is {expected!r}")
    if notes.precision != precision_of(model):
        raise UserError(f"{path}: was made at precision {notes.precision}, and the model has {precision_of(model)}")
    if notes.weights != weights_digest(model.state_dict())[:16]:
        raise UserError(f"{path}: was made by a model of this kind with other weights")


def check_content(path: Path, latents: Tensor, notes: ClipNotes, model: Streaming) -> None:
    """Raises UserError unless a file of this model holds what it says: one clip of so many frames of that size."""
    config, factor = model.config, model.spatial_factor
    if min(notes.frames, notes.height, notes.width) < 1:
        raise UserError(f"{path}: says that it holds {notes.frames} frames of {notes.height}x{notes.width}; damaged")
    tokens = config.codebook_size is not None
    stages = (model.quantizer.num_quantizers,) if tokens and model.quantizer.num_quantizers > 1 else ()
    grid = model.latent_frames(notes.frames), -(-notes.height // factor), -(-notes.width // factor)
    shape = (1, *grid, *stages) if tokens else (1, config.z_channels, *grid)
    if notes.kind != ("tokens" if tokens else "latents") or tuple(latents.shape) != shape:
        found = f"{notes.kind} {tuple(latents.shape)}"
        raise UserError(f"{path}: holds {found}, and its notes speak of {shape}; it is damaged, encode the video again")
    if tokens == latents.is_floating_point():
        raise UserError(f"{path}: holds {notes.kind} of type {latents.dtype}; it is damaged, encode the video again")


def decode_file(
    model: Streaming,
    in_file: str | Path,
    out_file: str | Path,
    *,
    quality: int = 6,
    sound_from: str | Path | None = None,
) -> int:
    """Write the video of a file of latents or tokens; gives the number of its frames. Raises UserError."""
    latents, notes = read_latents(in_file, model)

    def pictures() -> Iterator[np.ndarray]:
        for clip in decoded(model, latents, notes):
            yield from to_uint8(finite(clip[0], "pixels of the tokenizer"))

    write_video(out_file, pictures(), Fraction(notes.fps), quality=quality, sound_from=sound_from)
    return notes.frames


def decoded(model: Streaming, latents: Tensor, notes: ClipNotes) -> Iterator[Tensor]:
    """The clip (1, 3, t, H, W) of a file, part by part."""
    size, tokens = (notes.height, notes.width), notes.kind == "tokens"

    def codes(part: Tensor) -> Tensor:
        return model.lookup(part.int()) if tokens else part.to(model.device)

    axis = 1 if tokens else 2
    if model.config.causal:
        parts = (codes(part) for part in latents.split(model.pieces.step_latents, axis))
        yield from model.decode_stream(parts, notes.frames, size)
        return
    left = notes.frames
    for part in latents.split(WINDOW // model.config.temporal_factor, axis):
        with torch.no_grad():
            clip = model.decode(codes(part), min(left, WINDOW), size=size)
        left -= clip.shape[2]
        yield clip
