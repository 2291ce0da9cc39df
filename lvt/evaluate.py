"""Continuations by the latent video transformer, or reconstructions of its VQ-VAE.

The flags of `scripts/evaluate.py lvt`, without torch, so that its help need not wait, and how they open what is scored
(`scores`).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lvt.config import MASKED_CHOICES
from training.cli import nonnegative_float, nonnegative_int, positive_float, positive_fraction, positive_int
from training.settings import PRECISIONS

if TYPE_CHECKING:
    from evaluation.subject import Subject


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate.py lvt` beside those of every model."""
    add = parser.add_argument
    add("--config_file", metavar="FILE", help="configuration (default: config.yaml of the run folder)")
    add("--tokenizer", metavar="TOKENIZER", help="what decodes (default: the one in the configuration)")
    add("--vqvae", metavar="RUN", help="the same, by the run folder of a VQ-VAE")
    add("--size", type=positive_int, nargs=2, metavar=("H", "W"), help="of a VQ-VAE's frames (default: INPUT.SIZE)")
    add("--given", type=nonnegative_int, help="frames that are shown (default: TEST.VT_SAMPLER.N_PRIME)")
    add("--temperature", type=positive_float, help="of the sampler (default: TEST.VT_SAMPLER.TEMPERATURE)")
    add("--top_k", type=nonnegative_int, help="of the sampler (default: TEST.VT_SAMPLER.TOP_K)")
    add("--top_p", type=positive_fraction, help="of the sampler (default: TEST.VT_SAMPLER.TOP_P)")
    add(
        "--precision",
        choices=PRECISIONS,
        help="of the sampler; in bf16 and fp16, --batch_size changes samples (default: TEST.VT_SAMPLER.PRECISION)",
    )
    add_masked_arguments(parser)


def add_masked_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that samples a masked decoder; `lvt.config.MASKED_FLAGS` has their keys."""
    group = parser.add_argument_group("of a masked decoder (default: VT.MASKED)")
    group.add_argument("--passes", type=positive_int, help="for each slice: MASKED.STEPS")
    group.add_argument("--schedule", choices=MASKED_CHOICES["SCHEDULE"], help="how many codes a pass keeps")
    group.add_argument("--order", choices=MASKED_CHOICES["ORDER"], help="in which codes are kept")
    group.add_argument("--choice_temperature", type=nonnegative_float, help="of the noise on the confidence")


def open_subject(args: argparse.Namespace) -> Subject:
    """The continuations of a transformer or the reconstructions of a VQ-VAE, whichever --checkpoint is.

    Raises UserError.
    """
    from evaluation.subject import own_size
    from lvt.config import is_transformer
    from lvt.files import load_model, weights_behind
    from lvt.scores import Reconstructions
    from training.distributed import resolve_device
    from training.tokenizer import latent_frames, video_frames

    device = resolve_device(args.device)
    model, config = load_model(args.checkpoint, device, args.config_file)
    frames, size = config["INPUT"]["N_FRAMES_PER_VIDEO_TEST"], (config["INPUT"]["SIZE"],) * 2
    if is_transformer(config):
        subject, size = open_continuations(args, config, model, device), own_size(args, size)
        frames = video_frames(subject.tokenizer, frames)
        latent_frames(subject.tokenizer, args.frames or frames, "--frames: a clip")
    else:
        subject, size = Reconstructions(model), args.size or size
    subject.runs = weights_behind(config)
    return subject.made_for(max(args.frames or frames, 1), size, args.stride or 1)


def open_continuations(args: argparse.Namespace, config: dict[str, Any], transformer: Any, device: Any) -> Subject:
    """Continuations as the configuration says, and the flags above it, which are written into it."""
    from lvt.files import WEIGHT_NODES, load_sampler_tokenizer
    from lvt.generate import sampling_options
    from lvt.scores import Continuations
    from training.step import decided
    from training.tokenizer import video_frames

    sampler = config["TEST"]["VT_SAMPLER"]
    if args.vqvae:
        sampler["VQ_VAE"] |= {f"{node}_WEIGHTS": args.vqvae for node in WEIGHT_NODES.values()}
    if args.tokenizer or args.vqvae:
        sampler["TOKENIZER"] = args.tokenizer or ""
    asked = {"TEMPERATURE": args.temperature, "TOP_K": args.top_k, "TOP_P": args.top_p, "PRECISION": args.precision}
    sampler |= {key: value for key, value in asked.items() if value is not None}
    sampler["PRECISION"] = decided(sampler["PRECISION"], device)
    set_masked(transformer, args)
    tokenizer = load_sampler_tokenizer(config, device)
    given = video_frames(tokenizer, sampler["N_PRIME"]) if args.given is None else args.given
    return Continuations(transformer, tokenizer, given, **sampling_options(sampler))


def set_masked(transformer: Any, args: argparse.Namespace) -> None:
    """Let the model be sampled as the flags say. Raises UserError for those of a masked decoder where there is none."""
    from lvt.masked import masked_settings

    masked = replace(transformer.config.masked, **masked_settings(args, transformer.config.decoder))
    transformer.config = replace(transformer.config, masked=masked)
