"""Continue a folder of given frames: the command behind scripts/generate_videos.py."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lvt.continuation import encode_clips, sample_frames
from lvt.convnets import DOWNSAMPLING
from lvt.evaluators import sampling_options, write_clip
from lvt.run import load_for_evaluation, needed_vqvae, write_config
from lvt.vqvae import VQVAE
from training.distributed import resolve_device
from training.folder import log_file
from videodata.errors import UserError
from videodata.frame_folder import IMAGE_SUFFIXES, read_image
from videodata.natural_order import is_hidden, natural_key
from videodata.pixels import channels_first, to_uint8
from videodata.write_video import write_video

logger = logging.getLogger(__name__)


@dataclass
class Wishes:
    """What the command line adds to the configuration."""

    frames: int | None = None  # of the whole clip; None: INPUT.N_FRAMES_PER_VIDEO_TEST
    fps: Fraction = Fraction(8)
    class_index: int | None = None
    hop: int = 1  # frames per window of clips that are longer than the model's
    compiled: bool = False


def generate_videos(config: dict[str, Any], video_dir: Path | None, wishes: Wishes) -> Path:
    """Sample NUM_SAMPLES continuations of the first N_PRIME frames in `video_dir`; gives the folder with the results.

    With N_PRIME 0, whole clips of INPUT.SIZE pixels are made and no folder is read.

    OUTPUT_DIR gets config.yaml, log.txt, the first sample's 0.png, 1.png, ... and video.mp4, further ones in sample_1,
    sample_2, ..., and samples.mp4 with all side by side. The given frames are shown as the VQ-VAE reconstructs them.
    Raises UserError.
    """
    folder = Path(config["OUTPUT_DIR"])
    sampler, device = config["TEST"]["VT_SAMPLER"], resolve_device(config["MODEL"]["DEVICE"])
    given = read_given(video_dir, sampler["N_PRIME"], config["INPUT"]["SIZE"])
    vqvae, transformer = needed_vqvae(config, device), load_for_evaluation(config).to(device).eval()
    clips = continuations(config, transformer, vqvae, given.to(device), wishes)
    write_config(config)
    with log_file(folder / "log.txt"):
        for number, clip in enumerate(clips):
            write_clip(folder if number == 0 else folder / f"sample_{number}", clip, wishes.fps)
        beside = np.concatenate([to_uint8(clip.cpu()) for clip in clips], axis=2)
        write_video(folder / "samples.mp4", beside, wishes.fps)
        logger.info("%d sample(s) of %d frames in %s", len(clips), clips.shape[2], folder)
    return folder


def continuations(config: dict[str, Any], transformer: Any, vqvae: Any, given: Tensor, wishes: Wishes) -> Tensor:
    """Samples (S, 3, T, H, W) in [-1, 1] that continue the given frames uint8 (3, n, H, W)."""
    sampler, seed = config["TEST"]["VT_SAMPLER"], max(config["SEED"], 0)
    window = config["INPUT"]["N_FRAMES_PER_VIDEO_TEST"]
    frames, count = wishes.frames or window, sampler["NUM_SAMPLES"]
    if frames <= given.shape[1]:
        raise UserError(f"clips of {frames} frames have nothing after the {given.shape[1]} given ones")
    codes = encode_given(vqvae, given).repeat(count, 1, 1, 1, 1)
    classes = None if wishes.class_index is None else codes.new_full((count,), wishes.class_index)
    hop = {"hop": wishes.hop} if frames > window else {}
    with PositionBar() as bar:
        return sample_frames(
            transformer, vqvae, codes, given.shape[1], frames, window=window, class_index=classes,
            seeds=[seed + sample for sample in range(count)], compiled=wishes.compiled, progress=bar, **hop,
            **sampling_options(sampler),
        )  # fmt: skip


class PositionBar:
    """Shows how many positions of the clip, or of its present window, are sampled."""

    def __enter__(self) -> PositionBar:
        self.bar = tqdm(unit="position", leave=False, disable=None)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, done: int, total: int) -> None:
        if done == 1:
            self.bar.reset(total)
        self.bar.update()


def encode_given(vqvae: VQVAE, given: Tensor) -> Tensor:
    """Codes (1, C, n, h, w) of the given frames uint8 (3, n, H, W), of which there may be none."""
    if given.shape[1]:
        return encode_clips(vqvae, given[None])
    size = (given.shape[2] // DOWNSAMPLING, given.shape[3] // DOWNSAMPLING)
    return torch.zeros(1, vqvae.config.codebook.num, 0, *size, dtype=torch.int64, device=given.device)


def read_given(folder: Path | None, count: int, size: int) -> Tensor:
    """The first `count` images of a folder in natural order: uint8 (3, count, H, W). Raises UserError.

    For no images, H = W = size.
    """
    if count == 0:
        return torch.zeros(3, 0, size, size, dtype=torch.uint8)
    if folder is None or not folder.is_dir():
        raise UserError(f"--video-dir {folder}: no such folder; it holds the given frames, --given 0 needs none")
    names = [path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    names = sorted((name for name in names if not is_hidden(name)), key=natural_key)
    if len(names) < count or count < 0:
        raise UserError(f"--video-dir {folder}: holds {len(names)} images, TEST.VT_SAMPLER.N_PRIME is {count}")
    frames = [read_image(folder / name) for name in names[:count]]
    if len({frame.shape for frame in frames}) > 1:
        raise UserError(f"--video-dir {folder}: its images have different sizes")
    return channels_first(np.stack(frames))
