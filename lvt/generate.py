"""Generation: slice by slice, a whole batch at once; and the command that continues frames.

Axes: B samples, C codebooks, (T, H, W) clip of codes, (t, h, w) slice.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lvt.codes import decode_codes, encode_codes
from lvt.config import configure
from lvt.files import load_configured, load_sampler_tokenizer
from lvt.masked import masked_settings
from lvt.masked_sampler import MaskedSampler, guidance_of
from lvt.predictive_sampler import PredictiveSampler, Progress
from lvt.sampling import SamplingRule, sample_seeds
from lvt.transformer import VideoTransformer
from training.distributed import announced, resolve_device
from training.folder import log_file, write_config
from training.randomness import derive_seed
from training.settings import PRECISIONS
from training.step import HALF, decided
from training.tokenizer import Tokenizer, latent_frames, video_frames
from videodata.encode import write_video
from videodata.errors import UserError
from videodata.files import files_in_folder
from videodata.frame_folder import IMAGE_SUFFIXES, read_image, write_png
from videodata.labels import class_number
from videodata.pixels import channels_first, to_uint8

logger = logging.getLogger(__name__)
FRAMES_PER_SECOND = Fraction(8)  # of videos made from codes, which know no rate


@torch.no_grad()
def generate_codes(
    model: VideoTransformer,
    codes: Tensor,
    n_prime: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
    generator: torch.Generator | None = None,
    class_idx: Tensor | None = None,
    *,
    guidance: float = 1.0,
    seeds: Sequence[int] | None = None,
    compiled: bool = False,
    precision: str = "fp32",
    at_once: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Clips whose first `n_prime` frames are those of `codes` and whose other frames are sampled.

    codes int64 (B, C, T, H, W); what it holds after the first frames does not matter. Randomness comes from `seeds`,
    one per sample, or from seeds that are drawn from `generator`; a sample depends on its own seed alone. class_idx
    int64 (B,) for a class-conditional model; None: no class, where the model knows that. guidance: how far to lead the
    model to the class (1: not at all, at half the price). compiled: torch.compile the step (worth it for many clips).
    precision: of weights and activations, fp32 (as the model is), bf16, fp16, or auto: bf16 where the device multiplies
    it in hardware; in half precision a sample may also depend on its batch, and on `at_once`.
    A causal decoder goes through the positions of a slice, `at_once` of them in each call (None: as many as pay), which
    changes no code; a masked one makes it in as few passes as MASKED.STEPS says, and is led as MASKED.GUIDANCE says
    where `guidance` is 1. Raises UserError for sizes that do not fit the model.
    """
    rule = SamplingRule(temperature, top_k, top_p, greedy)
    model = in_precision(model, precision)
    masked = model.config.decoder == "masked"
    guidance = guidance_of(model.config.masked, guidance) if masked else guidance
    check_codes(model, codes, n_prime)
    class_idx = checked_classes(model, codes, class_idx, guidance)
    seeds = sample_seeds(len(codes), seeds, generator)
    clips = codes.clone()
    clips[:, :, n_prime:] = 0
    training = model.training
    model.eval()
    try:
        if masked:
            return MaskedSampler(model, clips, n_prime, rule, class_idx, seeds, compiled, guidance).run(progress)
        sampler = PredictiveSampler(model, clips, n_prime, rule, class_idx, seeds, compiled, guidance, at_once)
        return sampler.run(progress)
    finally:
        model.train(training)


@torch.no_grad()
def generate_long(
    model: VideoTransformer, codes: Tensor, n_prime: int, frames: int, window: int, hop: int = 1, **options: object
) -> Tensor:
    """Clips of any number of `frames`, made in windows of at most `window` frames that the model can handle at once.

    Each window after the first begins with the last `window - hop` frames of what there is and adds `hop` frames;
    with slices of one frame each (stride (T, 1, 1)) a hop of 1 costs no more than any other. codes int64
    (B, C, >= n_prime, H, W). `options` as for generate_codes.
    """
    if frames > window and not 1 <= hop < window:
        raise UserError(f"hop must be at least 1 and below the window of {window} frames, found {hop}")
    model = in_precision(model, options.pop("precision", "fp32"))  # once for all windows
    seeds = sample_seeds(len(codes), options.pop("seeds", None), options.pop("generator", None))
    clip = codes[:, :, :n_prime]
    while clip.shape[2] < frames:
        first = max(0, clip.shape[2] - (window - hop)) if clip.shape[2] > n_prime or n_prime >= window else 0
        known = clip[:, :, first:]
        room = codes.new_zeros(*codes.shape[:2], window - known.shape[2], *codes.shape[3:])
        made = generate_codes(model, torch.cat([known, room], 2), known.shape[2], seeds=seeds, **options)
        seeds = [derive_seed(seed, "next window") for seed in seeds]
        clip = torch.cat([clip[:, :, :first], made], 2)
    return clip[:, :, :frames]


def generate_frames(
    transformer: VideoTransformer, tokenizer: Tokenizer, codes: Tensor, n_prime: int, frames: int,
    window: int | None = None, **options: object,
) -> Tensor:  # fmt: skip
    """Decoded clips (B, 3, T, H, W) in [-1, 1] of `frames` frames of codes, the first `n_prime` those of `codes`.

    codes int64 (B, C, >= n_prime, h, w); the given frames are shown as the tokenizer reconstructs them. window: frames
    of codes that the transformer can handle at once; longer clips are made window by window (default: all frames).
    `options` as for `generate_codes` and `generate_long`.
    """
    window = min(window or frames, frames)
    return decode_codes(tokenizer, generate_long(transformer, codes, n_prime, frames, window, **options))


def in_precision(model: VideoTransformer, precision: str) -> VideoTransformer:
    """A copy with weights of this precision; for fp32, the model itself. Raises UserError for an unknown name."""
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}: use {', '.join(PRECISIONS)}")
    precision = decided(precision, model.encoder.conv.weight.device)
    return model if precision == "fp32" else copy.deepcopy(model).to(HALF[precision])


def sampling_options(sampler: dict[str, Any]) -> dict[str, Any]:
    """Options of `generate_codes` from a VT_SAMPLER node."""
    top_p = sampler["TOP_P"]
    return {
        "temperature": sampler["TEMPERATURE"],
        "top_k": sampler["TOP_K"] or None,
        "top_p": top_p if top_p < 1 else None,
        "precision": sampler["PRECISION"],
    }


def checked_classes(
    model: VideoTransformer, codes: Tensor, class_index: Tensor | None, guidance: float
) -> Tensor | None:
    """The classes (B,), "no class" for all where none are given and the model knows it.

    Raises UserError for classes that the model does not know, and for guidance where there is nothing to lead to.
    """
    count, none = model.config.class_num, model.config.no_class
    by_context = model.config.decoder == "masked" and not count and model.config.masked.context_drop > 0
    if guidance != 1 and not by_context and (class_index is None or none is None):
        raise UserError(f"guidance {guidance:g} needs a class, and a model that was trained with VT.CLASS_DROPOUT")
    if class_index is None:
        return None if none is None else codes.new_full((len(codes),), none)
    largest = count - 1 if none is None else none
    if count and not (int(class_index.min()) >= 0 and int(class_index.max()) <= largest):
        raise UserError(f"classes must be 0 .. {count - 1}, found {class_index.tolist()}")
    return class_index


def check_codes(model: VideoTransformer, codes: Tensor, n_prime: int) -> None:
    """Raises UserError for codes of the wrong shape or range, and for more known frames than there are."""
    config = model.config
    if codes.ndim != 5 or codes.shape[1] != config.nc or codes.dtype != torch.int64:
        raise UserError(f"codes must be int64 (B, {config.nc}, T, H, W), found {codes.dtype} {tuple(codes.shape)}")
    if not 0 <= n_prime <= codes.shape[2]:
        raise UserError(f"{n_prime} known frames do not fit a clip of {codes.shape[2]} frames")
    known = codes[:, :, :n_prime]
    if known.numel() and not (int(known.min()) >= 0 and int(known.max()) < config.nv):
        raise UserError(f"codes must be 0 .. {config.nv - 1}, found {int(known.min())} .. {int(known.max())}")


def generate_lvt(args: argparse.Namespace) -> Path:
    """The command scripts/generate_videos.py: NUM_SAMPLES continuations of the first N_PRIME frames in --video-dir.

    Gives the folder with the results. With N_PRIME 0, whole clips of INPUT.SIZE pixels are made and no folder is read.

    OUTPUT_DIR gets config.yaml, log.txt, the first sample's 0.png, 1.png, ... and video.mp4, further ones in sample_1,
    sample_2, ..., and samples.mp4 with all side by side. The given frames are shown as the tokenizer reconstructs
    them. Raises UserError.
    """
    config = configure(args)
    folder = Path(config["OUTPUT_DIR"])
    sampler, device = config["TEST"]["VT_SAMPLER"], announced(resolve_device(config["MODEL"]["DEVICE"]))
    sampler["PRECISION"] = decided(sampler["PRECISION"], device)  # for the config.yaml
    tokenizer = load_sampler_tokenizer(config, device)
    if args.given is not None:  # in frames, which are fewer codes where the tokenizer compresses time
        sampler["N_PRIME"] = latent_frames(tokenizer, args.given, "--given: a beginning")
    given = read_given(args.video_dir, video_frames(tokenizer, sampler["N_PRIME"]), config["INPUT"]["SIZE"])
    transformer = load_configured(config).to(device).eval()
    masked_settings(args, transformer.config.decoder)  # which are in its configuration by now
    clips = continuations(config, transformer, tokenizer, given.to(device), args)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)
    with log_file(folder / "log.txt"):
        for number, clip in enumerate(clips):
            write_clip(folder if number == 0 else folder / f"sample_{number}", clip, args.fps)
        beside = np.concatenate([to_uint8(clip.cpu()) for clip in clips], axis=2)
        write_video(folder / "samples.mp4", beside, args.fps)
        precision, frames = sampler["PRECISION"], clips.shape[2]
        logger.info("%d sample(s) of %d frames, made in %s, in %s", len(clips), frames, precision, folder)
    return folder


def continuations(
    config: dict[str, Any], transformer: Any, tokenizer: Tokenizer, given: Tensor, args: argparse.Namespace
) -> Tensor:
    """Samples (S, 3, T, H, W) in [-1, 1] that continue the given frames uint8 (3, n, H, W)."""
    sampler, seed = config["TEST"]["VT_SAMPLER"], max(config["SEED"], 0)
    window = config["INPUT"]["N_FRAMES_PER_VIDEO_TEST"]
    frames = latent_frames(tokenizer, args.frames, "--frames: a clip") if args.frames else window  # of codes
    n_prime, count = sampler["N_PRIME"], sampler["NUM_SAMPLES"]
    if frames <= n_prime:
        whole = video_frames(tokenizer, frames)
        raise UserError(f"clips of {whole} frames have nothing after the {given.shape[1]} given ones")
    codes = encode_codes(tokenizer, given[None]).repeat(count, 1, 1, 1, 1)
    classes = asked_class(transformer, args)
    classes = None if classes is None else codes.new_full((count,), classes)
    with tqdm(unit="step", leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            if done < bar.n or total != bar.total:  # the clip, or its next window, begins
                bar.reset(total)
            bar.update(done - bar.n)

        return generate_frames(
            transformer, tokenizer, codes, n_prime, frames, window, hop=args.hop, class_idx=classes,
            guidance=args.guidance, seeds=[seed + sample for sample in range(count)], compiled=args.compile,
            progress=progress, **sampling_options(sampler),
        )  # fmt: skip


def asked_class(transformer: VideoTransformer, args: argparse.Namespace) -> int | None:
    """The class that --class names, or --class-index; None: no choice. Raises UserError for one that there is not."""
    if args.class_name is None:
        return args.class_index
    if args.class_index is not None:
        raise UserError("--class and --class-index say the same thing: use one of them")
    return class_number(transformer.config.classes, args.class_name)


def read_given(folder: Path | None, count: int, size: int) -> Tensor:
    """The first `count` images of a folder in natural order: uint8 (3, count, H, W). Raises UserError.

    For no images, H = W = size.
    """
    if count == 0:
        return torch.zeros(3, 0, size, size, dtype=torch.uint8)
    if folder is None or not folder.is_dir():
        raise UserError(f"--video-dir {folder}: no such folder; it holds the given frames, --given 0 needs none")
    images = files_in_folder(folder, IMAGE_SUFFIXES, deep=False)
    if len(images) < count:
        raise UserError(f"--video-dir {folder}: holds {len(images)} images, TEST.VT_SAMPLER.N_PRIME is {count}")
    frames = [read_image(image) for image in images[:count]]
    if len({frame.shape for frame in frames}) > 1:
        raise UserError(f"--video-dir {folder}: its images have different sizes")
    return channels_first(np.stack(frames))


def write_clip(folder: Path, clip: Tensor, rate: Fraction = FRAMES_PER_SECOND) -> None:
    """Write a clip (3, T, H, W) in [-1, 1] as 0.png, 1.png, ... and video.mp4."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = to_uint8(clip.cpu())
    for number, frame in enumerate(frames):
        write_png(folder / f"{number}.png", np.asarray(frame))
    write_video(folder / "video.mp4", frames, rate)
