"""8-bit frames to clips and back, and single images through the model: files of any size, a batch at a time."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import VideoFileError, VVAEError
from .files import replaced
from .tiling import crop_video, pad_video

SUFFIXES = frozenset(f".{suffix}" for suffix in ("png", "jpg", "jpeg", "webp", "bmp", "ppm", "tif", "tiff"))
JPEG_QUALITY = 95


def to_clip(frames: np.ndarray | list[np.ndarray]) -> Tensor:
    """Frames uint8 (T, H, W, 3) -> clip float32 (3, T, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(np.stack(frames) if isinstance(frames, list) else frames))
    return pixels.permute(3, 0, 1, 2).to(torch.float32) / 127.5 - 1.0


def finite(values: Tensor, what: str) -> Tensor:
    """The values themselves, on their way to 8 bit or to a file, where NaN looks like any other. Raises VVAEError."""
    if bool(values.isfinite().all()):
        return values
    bad = values.numel() - int(values.isfinite().sum())
    half = values.dtype == torch.float16
    raise VVAEError(
        f"{what}: {bad} of {values.numel()} values are not finite (NaN or infinite); "
        f"{'half precision may overflow: try bf16 or fp32; else ' if half else ''}the weights are damaged or their "
        "training has diverged: use another checkpoint"
    )


def to_frames(clip: Tensor) -> np.ndarray:
    """Clip float (3, T, H, W) in [-1, 1] -> frames uint8 (T, H, W, 3): rounded to the nearest level, then clamped."""
    pixels = ((finite(clip, "pixels").detach().float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).contiguous().cpu().numpy()


def read_image(path: str | Path) -> np.ndarray:
    """uint8 (H, W, 3) RGB, upright, transparent parts over black, 16 bits rounded to 8. Raises VideoFileError."""
    pillow = _pillow()
    refusals = (
        OSError, EOFError, SyntaxError, ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError, TypeError,
        struct.error, zlib.error, pillow.Image.DecompressionBombError,
    )  # fmt: skip
    try:
        with pillow.Image.open(path) as image:
            pages = getattr(image, "n_frames", 1)
            if pages > 1 and image.format != "MPO":  # which is a JPEG with previews after the picture
                raise VideoFileError(path, f"holds {pages} pictures; write each into a file of its own")
            return _eight_bit_rgb(pillow.ImageOps.exif_transpose(image), path)
    except refusals as error:
        if isinstance(error, VideoFileError):
            raise
        raise VideoFileError(path, f"not a readable image ({error})") from error


def _eight_bit_rgb(image: Any, path: str | Path) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":  # grey in 16 bits or more, which Pillow would cut at 255
        grey, white = np.asarray(image), 1 if image.mode == "F" else 65535
        if not (grey.min() >= 0 and grey.max() <= white):  # in this form it holds for NaN too
            found = f"numbers from {grey.min()} to {grey.max()}, not from 0 to {white}"
            raise VideoFileError(path, f"holds {found}: nobody says which of them is white; write 8 or 16 bits")
        return np.repeat(np.rint(grey * (255.0 / white)).astype(np.uint8)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = _pillow().Image.alpha_composite(_pillow().Image.new("RGBA", rgba.size, "black"), rgba)
    return np.asarray(image.convert("RGB"))


def write_image(path: str | Path, pixels: np.ndarray) -> None:
    """Write uint8 (H, W, 3) in the format of the suffix; JPEG in high quality without subsampled colour."""
    path = Path(path)
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    with replaced(path) as temporary:
        _pillow().Image.fromarray(pixels).save(temporary, **options)


def reconstruct_images(
    model: nn.Module,
    sources: Sequence[Path],
    targets: Sequence[Path],
    batch_size: int = 16,
    failures: list[VideoFileError] | None = None,
    **text: Tensor,
) -> int:
    """Encode and decode images in image mode, consecutive images of one size in a batch; returns their number.

    Images that cannot be read raise VideoFileError, or are left out and noted in `failures` where that is given.
    """
    count = 0
    for outputs, pixels in _batches(list(zip(sources, targets, strict=True)), batch_size, failures):
        drawn = reconstruct_batch(model, np.stack(pixels), **text)
        for output, image in zip(outputs, drawn, strict=True):
            write_image(output, image)
        count += len(outputs)
    return count


@torch.inference_mode()
def reconstruct_batch(model: nn.Module, pixels: np.ndarray, **text: Tensor) -> np.ndarray:
    """Images uint8 (N, H, W, 3) -> their reconstructions."""
    images = to_clip(pixels).transpose(0, 1).unsqueeze(2)  # (N, 3, 1, H, W)
    padded, size = pad_video(images, image=True)
    latent = model.encode(padded.to(next(model.parameters())), mask_temporal=True, **text).mode()
    drawn = crop_video(model.decode(finite(latent, "latents"), mask_temporal=True, **text), size)
    return to_frames(drawn[:, :, 0].transpose(0, 1))


def _batches(
    pairs: list[tuple[Path, Path]], batch_size: int, failures: list[VideoFileError] | None
) -> Iterator[tuple[list[Path], list[np.ndarray]]]:
    outputs, pixels = [], []
    for source, target in pairs:
        try:
            image = read_image(source)
        except VideoFileError as error:
            if failures is None:
                raise
            failures.append(error)
            continue
        if pixels and (len(pixels) == batch_size or pixels[0].shape != image.shape):
            yield outputs, pixels
            outputs, pixels = [], []
        outputs.append(target)
        pixels.append(image)
    if pixels:
        yield outputs, pixels


def _pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise VVAEError("images need the Pillow package: pip install pillow") from error
    return PIL
