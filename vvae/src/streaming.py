"""Whole files through the model, window by window: the memory in use does not depend on the length of a video."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .images import finite, to_clip, to_frames
from .latent_files import LatentInfo, LatentWriter, latent_writer, open_latents
from .tiling import FRAMES, Blender, Windows, cut, pad_video
from .video_io import probe, read_frames, write_video


@dataclass
class Streaming:
    """How files go through the model.

    windows: see `Windows`. text: embeddings and mask of one caption. resolution: frames larger than this (height,
    width) are scaled down, with their aspect ratio; None keeps every size. on_frames: called with the number of frames
    that a window has finished.
    """

    windows: Windows = field(default_factory=Windows)
    text: tuple[Tensor, Tensor] | None = None
    resolution: tuple[int, int] | None = None
    keep_damaged: bool = False
    quality: int = 6
    on_frames: Callable[[int], object] = lambda count: None

    def text_options(self) -> dict[str, Tensor]:
        """Arguments of encode and decode."""
        return {} if self.text is None else {"text_embeddings": self.text[0], "text_attn_mask": self.text[1]}


def reconstruct(
    model: nn.Module,
    video_file: str | Path,
    out_file: str | Path,
    *,
    save_latent: str | Path | None = None,
    streaming: Streaming | None = None,
) -> int:
    """File -> latent -> file, same number, size and rate of frames, same sound; returns the number of frames.

    save_latent: keep the latents too (.npy or .hdf5). Any length and size: frames are padded for the model and cut
    back. Raises VVAEError for files that cannot be read or written.
    """
    streaming = streaming or Streaming()
    info, size = _describe(model, video_file, streaming)
    with latent_writer(save_latent, info) if save_latent is not None else nullcontext() as keep:
        pictures = _reconstructed(model, read_frames(video_file, size, streaming.keep_damaged), streaming, info, keep)
        return write_video(out_file, pictures, info.fps, audio_from=video_file, quality=streaming.quality)


def encode_file(
    model: nn.Module, video_file: str | Path, latent_file: str | Path, streaming: Streaming | None = None
) -> LatentInfo:
    """Write the latents (T/4, z, H/8, W/8) of a video to a .npy or .hdf5 file, blended across windows."""
    streaming = streaming or Streaming()
    info, size = _describe(model, video_file, streaming)
    frames = read_frames(video_file, size, streaming.keep_damaged)
    with latent_writer(latent_file, info) as keep:
        for _ in _encoded(model, frames, streaming, info, keep):
            pass
    return info


def decode_file(
    model: nn.Module,
    latent_file: str | Path,
    out_file: str | Path,
    streaming: Streaming | None = None,
    audio_from: str | Path | None = None,
) -> int:
    """Write the video of a latent file, with the size, length and rate that the file notes; returns the frame count."""
    streaming = streaming or Streaming()
    with open_latents(latent_file) as (info, latents):
        pictures = _decoded(model, latents, streaming, info)
        return write_video(out_file, pictures, info.fps, audio_from=audio_from, quality=streaming.quality)


def _reconstructed(
    model: nn.Module, frames: Iterable[np.ndarray], streaming: Streaming, info: LatentInfo, keep: LatentWriter | None
) -> Iterator[np.ndarray]:
    blender = Blender(streaming.windows.overlap)
    for latent, count, last in _encoded(model, frames, streaming, info, keep):
        clip = decode_window(model, latent, streaming)[:, :count, : info.height, : info.width]
        yield from to_frames(blender.push(clip, last))


def _encoded(
    model: nn.Module, frames: Iterable[np.ndarray], streaming: Streaming, info: LatentInfo, keep: LatentWriter | None
) -> Iterator[tuple[Tensor, int, bool]]:
    """(latent, number of real frames, whether it is the last) of each window; keeps the blended latents on the way."""
    blender = Blender(streaming.windows.overlap // FRAMES)
    for window, last in cut(frames, streaming.windows.size, streaming.windows.overlap):
        latent = encode_window(model, window, streaming)
        added = len(window) - (streaming.windows.overlap if info.frames else 0)
        info.frames += added
        if keep is not None:
            keep.append(blender.push(latent, last))
        yield latent, len(window), last
        streaming.on_frames(added)


def _decoded(
    model: nn.Module, latents: Iterable[np.ndarray], streaming: Streaming, info: LatentInfo
) -> Iterator[np.ndarray]:
    size, overlap = streaming.windows.size, streaming.windows.overlap
    blender, start = Blender(overlap), 0
    for window, last in cut(latents, size // FRAMES, overlap // FRAMES):
        latent = torch.from_numpy(np.stack(window, axis=1).astype(np.float32))  # (z, t, h, w)
        clip = decode_window(model, latent, streaming)[:, : info.frames - start, : info.height, : info.width]
        finished = to_frames(blender.push(clip, last))
        yield from finished
        streaming.on_frames(len(finished))
        start += size - overlap


def reconstruct_clip(model: nn.Module, frames: np.ndarray, streaming: Streaming | None = None) -> Tensor:
    """What `reconstruct` makes of frames uint8 (T, H, W, 3), before it is rounded: float32 (3, T, H, W) in [-1, 1]."""
    streaming = streaming or Streaming()
    height, width = frames.shape[1:3]
    blender, parts = Blender(streaming.windows.overlap), []
    for window, last in cut(frames, streaming.windows.size, streaming.windows.overlap):
        latent = encode_window(model, window, streaming)
        clip = decode_window(model, latent, streaming)[:, : len(window), :height, :width]
        parts.append(blender.push(clip, last).float().cpu())
    return torch.cat(parts, dim=1).clamp(-1, 1)


@torch.inference_mode()
def encode_window(model: nn.Module, frames: list[np.ndarray], streaming: Streaming) -> Tensor:
    """Latent (z, t/4, h, w) of up to a window of frames; shorter ones are padded by their last frame."""
    parameter = next(model.parameters())
    clip, _ = pad_video(to_clip(frames).unsqueeze(0))
    return finite(model.encode(clip.to(parameter), **streaming.text_options()).mode()[0], "latents")


@torch.inference_mode()
def decode_window(model: nn.Module, latent: Tensor, streaming: Streaming) -> Tensor:
    """Clip (3, T, H, W) of a latent (z, t, h, w)."""
    parameter = next(model.parameters())
    return finite(model.decode(latent.unsqueeze(0).to(parameter), **streaming.text_options())[0], "pixels")


def _describe(model: nn.Module, path: str | Path, streaming: Streaming) -> tuple[LatentInfo, tuple[int, int] | None]:
    video = probe(path)
    height, width = fitted(video.height, video.width, streaming.resolution) or (video.height, video.width)
    size = None if streaming.resolution is None else (height, width)  # given, it holds for all of a film that changes
    info = LatentInfo(
        source=Path(path).name,
        fps=video.fps,
        frames=0,
        height=height,
        width=width,
        channels=model.decoder.z_channels,
        window=streaming.windows.size,
        overlap=streaming.windows.overlap,
    )
    return info, size


def fitted(height: int, width: int, limit: tuple[int, int] | None) -> tuple[int, int] | None:
    """The largest size of the same aspect ratio within `limit`; None where nothing has to be scaled."""
    if limit is None or (height <= limit[0] and width <= limit[1]):
        return None
    scale = min(limit[0] / height, limit[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))
