"""Continuations by the latent video transformer, or reconstructions of its VQ-VAE.

The flags of `scripts/evaluate.py lvt`, without torch, so that its help need not wait, and how they open what is scored
(`scores`).
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from training.cli import nonnegative_int, positive_float, positive_fraction, positive_int

if TYPE_CHECKING:
    from evaluation.subject import Subject


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate.py lvt` beside those of every model."""
    add = parser.add_argument
    add("--config_file", metavar="FILE", help="configuration (default: config.yaml of the run folder)")
    add("--vqvae", metavar="RUN", help="run folder of the VQ-VAE (default: the one in the configuration)")
    add("--size", type=positive_int, nargs=2, metavar=("H", "W"), help="of a VQ-VAE's frames (default: INPUT.SIZE)")
    add("--given", type=nonnegative_int, help="frames that are shown (default: TEST.VT_SAMPLER.N_PRIME)")
    add("--temperature", type=positive_float, help="of the sampler (default: TEST.VT_SAMPLER.TEMPERATURE)")
    add("--top_k", type=nonnegative_int, help="of the sampler (default: TEST.VT_SAMPLER.TOP_K)")
    add("--top_p", type=positive_fraction, help="of the sampler (default: TEST.VT_SAMPLER.TOP_P)")


def open_subject(args: argparse.Namespace) -> Subject:
    """The continuations of a transformer or the reconstructions of a VQ-VAE, whichever --checkpoint is.

    Raises UserError.
    """
    from evaluation.subject import own_size
    from lvt.config import is_transformer
    from lvt.files import load_model, weights_behind
    from lvt.scores import Reconstructions
    from training.distributed import resolve_device

    device = resolve_device(args.device)
    model, config = load_model(args.checkpoint, device, args.config_file)
    size = (config["INPUT"]["SIZE"],) * 2
    if is_transformer(config):
        subject, size = open_continuations(args, config, model, device), own_size(args, size)
    else:
        subject, size = Reconstructions(model), args.size or size
    subject.runs = weights_behind(config)
    frames = args.frames or config["INPUT"]["N_FRAMES_PER_VIDEO_TEST"]
    return subject.made_for(max(frames, 1), size, args.stride or 1)


def open_continuations(args: argparse.Namespace, config: dict[str, Any], transformer: Any, device: Any) -> Subject:
    """Continuations as the configuration says, and the flags above it, which are written into it."""
    from lvt.files import WEIGHT_NODES, load_sampler_vqvae
    from lvt.generate import sampling_options
    from lvt.scores import Continuations

    sampler = config["TEST"]["VT_SAMPLER"]
    if args.vqvae:
        sampler["VQ_VAE"] |= {f"{node}_WEIGHTS": args.vqvae for node in WEIGHT_NODES.values()}
    asked = {"TEMPERATURE": args.temperature, "TOP_K": args.top_k, "TOP_P": args.top_p}
    sampler |= {key: value for key, value in asked.items() if value is not None}
    given = sampler["N_PRIME"] if args.given is None else args.given
    vqvae = load_sampler_vqvae(config, device)
    return Continuations(transformer, vqvae, given, **sampling_options(sampler))
