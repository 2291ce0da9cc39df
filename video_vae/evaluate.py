"""Reconstructions by a video VAE with the bits of their latents, or samples of its prior.

The flags of `scripts/evaluate.py video_vae`, without torch, so that the help need not wait, and how they open what
`scores` has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluation.subject import Subject
from training.cli import nonnegative_float, positive_int
from video_vae.config import FLOW_STEPS, PRIOR_KINDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate.py video_vae` beside those of every model."""
    parser.add_argument(
        "--size", type=positive_int, nargs=2, metavar=("H", "W"), help="of the frames (default: as in training)"
    )
    parser.add_argument("--mean_latents", action="store_true", help="the posterior's means in place of draws from it")
    parser.add_argument("--generate", action="store_true", help="new clips in place of reconstructions")
    parser.add_argument(
        "--prior",
        choices=PRIOR_KINDS,
        help="of new clips' latents (default: the flow, where there is one)",
    )
    parser.add_argument("--prior_steps", type=positive_int, default=FLOW_STEPS, help="of the flow")
    parser.add_argument("--temperature", type=nonnegative_float, default=1.0, help="with --generate: of the prior")


def open_subject(args: argparse.Namespace) -> Subject:
    """The model of --checkpoint, ready to be scored on clips like those of its training. Raises UserError."""
    from training.distributed import resolve_device
    from video_vae.files import load_model
    from video_vae.sampler import open_sampler
    from video_vae.scores import Reconstructions, Samples, TrainingDistance
    from video_vae.train import open_data

    network, config = load_model(args.checkpoint, resolve_device(args.device))
    asked = "fd-training" in (args.metrics or ())
    distance = TrainingDistance(open_data(config["data"])[0]) if asked else None
    if args.generate:
        sampler = open_sampler(args.checkpoint, network, args.prior, args.prior_steps)
        subject: Subject = Samples(sampler, args.temperature, distance)
    else:
        subject = Reconstructions(network, args.mean_latents, distance)
    subject.runs = (args.checkpoint,)
    if Path(args.checkpoint).suffix == ".pth":  # lies outside of the run folder that says what it was trained on
        subject.runs += (config.get("engine", {}).get("run_dir", "."),)
    data = config["data"]
    return subject.made_for(
        args.frames or data["frames"], args.size or network.config.image_size, args.stride or data["stride"]
    )
