"""What `--eval-only` measures and writes: the evaluators that TEST.EVALUATORS names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from evaluation.metrics import psnr
from lvt.codes import CODES_NAME
from lvt.codes_file import write_codes
from lvt.continuation import decode_clips, encode_clips
from lvt.datasets import Videos
from lvt.generate import generate_codes
from lvt.likelihood import bits_per_code, bits_per_subpixel, clip_nats
from lvt.transformer import VideoTransformer
from lvt.vqvae import VQVAE
from training.files import write_json
from training.loader import move
from training.samples import collate
from training.state import weights_digest
from videodata.atomic import atomic_path
from videodata.pixels import channels_first, normalize, to_uint8
from videodata.write_video import write_video

FRAMES_AT_ONCE = 64  # through the VQ-VAE
CLIPS_WRITTEN = 4  # continuations kept as videos
FRAMES_PER_SECOND = Fraction(8)  # of videos made from codes, which know no rate


def batches(dataset: Dataset, size: int, device: torch.device, what: str) -> Iterator[Any]:
    """All items in order, as batches on the device, with a progress bar."""
    for start in tqdm(range(0, len(dataset), size), what, unit="batch", leave=False, disable=None):
        items = [dataset[index] for index in range(start, min(start + size, len(dataset)))]
        yield move(collate(items), device)


@torch.no_grad()
def reconstruction_error(model: VQVAE, clips: Dataset, device: torch.device) -> dict[str, float]:
    """Mean squared error of the reconstructions in [0, 1], and codebook usage over all of them."""
    total, count, codes = 0.0, 0, []
    for batch in batches(clips, 4, device, "reconstruction"):
        frames = batch.transpose(1, 2).flatten(0, 1)
        found = model.encode(frames)
        error = (model.denormalize(model.decode(found)) - frames / 255).square()
        total, count = total + float(error.double().sum()), count + error.numel()
        codes.append(found.cpu())
    usage = model.quantizer.usage(torch.cat(codes))
    return {"MSE": total / count, **{name: float(value) for name, value in usage.items()}}


@torch.no_grad()
def extract_codes(model: VQVAE, videos: Videos, folder: Path, device: torch.device) -> Path:
    """Encode every frame of every video to <folder>/codes.npy, going on where a killed call stopped; gives the path."""
    source = videos.source
    listed = [(source.id(video), source.label(video), source.length(video)) for video in videos.numbers]

    def codes_of(number: int) -> np.ndarray:
        video, length = videos.numbers[number], listed[number][2]
        starts = range(0, length, FRAMES_AT_ONCE)
        return np.concatenate([encode(video, start, min(FRAMES_AT_ONCE, length - start)) for start in starts])

    def encode(video: int, start: int, count: int) -> np.ndarray:
        pixels = source.read_clip(video, start, count, 1, (videos.size, videos.size))  # (T, H, W, 3)
        codes = encode_clips(model, channels_first(pixels)[None].to(device))  # (1, C, T, h, w)
        return codes[0].transpose(0, 1).cpu().numpy()

    path = folder / CODES_NAME
    made_from = f"{weights_digest(model.state_dict())} at {videos.size} pixels"
    write_codes(path, listed, codes_of, model.config.codebook.size, made_from)
    return path


@torch.no_grad()
def likelihood(model: VideoTransformer, windows: Dataset, device: torch.device) -> dict[str, float]:
    """Bits per code over all codes after the first N_PRIME frames (`bits_per_dim`, the original's name for it)."""
    total, count, codebooks = 0.0, 0, model.config.nc
    for batch in batches(windows, 4, device, "likelihood"):
        classes = batch["class_index"] if model.config.class_num else None
        nats, codes = clip_nats(model, batch["codes"].long(), model.config.n_prime, classes)
        total, count = total + float(nats.sum()), count + codes * len(nats)
    bits = bits_per_code(torch.tensor(total, dtype=torch.float64), count)
    return {"bits_per_dim": float(bits), "bits_per_subpixel": float(bits_per_subpixel(bits, codebooks))}


def sampling_options(sampler: dict[str, Any]) -> dict[str, Any]:
    """Options of `generate_codes` from a VT_SAMPLER node."""
    top_p = sampler["TOP_P"]
    return {
        "temperature": sampler["TEMPERATURE"],
        "top_k": sampler["TOP_K"] or None,
        "top_p": top_p if top_p < 1 else None,
    }


@torch.no_grad()
def write_samples(
    transformer: VideoTransformer, vqvae: VQVAE, windows: Dataset, config: dict[str, Any], folder: Path,
    device: torch.device,
) -> int:  # fmt: skip
    """Continue every clip NUM_SAMPLES times; writes video_<sample>_<clip>/{0..}.png, video.mp4 and codes.npy.

    What a killed call with the same weights and settings has written already is kept.
    """
    sampler, seed = config["TEST"]["VT_SAMPLER"], max(config["SEED"], 0)
    count = sampler["NUM_SAMPLES"]
    weights = weights_digest({"transformer": transformer.state_dict(), "vqvae": vqvae.state_dict()})
    begin_samples(folder, {"weights": weights, "clips": len(windows), "seed": seed, "sampler": sampler})
    for number in tqdm(range(len(windows)), "samples", unit="clip", leave=False, disable=None):
        targets = [folder / f"video_{sample}_{number}" for sample in range(count)]
        if all((target / "codes.npy").exists() for target in targets):
            continue
        item = move(collate([windows[number]] * count), device)
        codes = item["codes"].long()
        classes = item["class_index"] if transformer.config.class_num else None
        made = generate_codes(
            transformer, codes, sampler["N_PRIME"], class_idx=classes,
            seeds=[seed + number * count + sample for sample in range(count)], **sampling_options(sampler),
        )  # fmt: skip
        clips = decode_clips(vqvae, made)
        for sample, target in enumerate(targets):
            write_clip(target, clips[sample])
            with atomic_path(target / "codes.npy") as temporary, open(temporary, "wb") as file:
                np.save(file, made[sample].transpose(0, 1).cpu().numpy())
    return len(windows) * count


def begin_samples(folder: Path, made_from: dict[str, Any]) -> None:
    """Note beside the folder what its samples are made from; those that were made from something else are removed."""
    note = folder.with_name(f"{folder.name}.json")
    note.parent.mkdir(parents=True, exist_ok=True)
    if not note.exists() or json.loads(note.read_text()) != made_from:
        for stale in folder.glob("video_*_*"):
            shutil.rmtree(stale)
        write_json(note, made_from)


def write_clip(folder: Path, clip: Tensor, rate: Fraction = FRAMES_PER_SECOND) -> None:
    """Write a clip (3, T, H, W) in [-1, 1] as 0.png, 1.png, ... and video.mp4."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = to_uint8(clip.cpu())
    for number, frame in enumerate(frames):
        with atomic_path(folder / f"{number}.png") as temporary:
            Image.fromarray(np.asarray(frame)).save(temporary, format="PNG")
    write_video(folder / "video.mp4", frames, rate)


@torch.no_grad()
def continuation_scores(
    transformer: VideoTransformer, vqvae: VQVAE, clips: Dataset, config: dict[str, Any], device: torch.device,
    folder: Path,
) -> dict[str, float]:  # fmt: skip
    """PSNR of the frames after the given ones, mean over clips: of a sample, of the best of NUM_SAMPLES samples, and
    of two things that need no transformer: the last given frame repeated, and the reconstruction of the true frames.

    The first clips are written as <folder>/<clip>_{original,reconstruction,sample_0,sample_1,...}.mp4.
    """
    sampler, seed = config["TEST"]["VT_SAMPLER"], max(config["SEED"], 0)
    given, count = sampler["N_PRIME"], sampler["NUM_SAMPLES"]
    rows = []
    for number, batch in enumerate(batches(clips, 1, device, "continuation")):
        truth = normalize(batch)  # (1, 3, T, H, W)
        codes = encode_clips(vqvae, batch).repeat(count, 1, 1, 1, 1)
        made = generate_codes(
            transformer, codes, given, seeds=[seed + number * count + sample for sample in range(count)],
            **sampling_options(sampler),
        )  # fmt: skip
        samples, reconstructed = decode_clips(vqvae, made), decode_clips(vqvae, codes[:1])
        if number < CLIPS_WRITTEN:
            named = {"original": truth[0], "reconstruction": reconstructed[0]}
            named |= {f"sample_{sample}": clip for sample, clip in enumerate(samples)}
            for name, clip in named.items():
                write_video(folder / f"{number}_{name}.mp4", clip.cpu(), FRAMES_PER_SECOND)
        after = slice(given, None)
        scores = psnr(truth.expand_as(samples)[:, :, after], samples[:, :, after])
        last = truth[:, :, given - 1 : given].expand(-1, -1, truth.shape[2] - given, -1, -1)
        rows.append(
            [
                float(scores.mean()), float(scores.max()), float(psnr(truth[:, :, after], last)),
                float(psnr(truth[:, :, after], reconstructed[:, :, after])),
            ]
        )  # fmt: skip
    names = ("psnr_sample", f"psnr_best_of_{count}", "psnr_last_frame_repeated", "psnr_reconstruction")
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))
