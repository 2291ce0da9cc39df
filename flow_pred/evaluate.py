"""Predictions by RIVER or a neural SDE, or reconstructions of an autoencoder of type `ours`.

The flags of `scripts/evaluate.py flow_pred`, without torch, so that the help need not wait, and how they open what
`scores` has.
"""

from __future__ import annotations

import argparse
from typing import Any

from evaluation.subject import Subject, own_size
from training.cli import positive_int

FRAMES = 16  # of a clip of an autoencoder, which sees one at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of flow_pred alone."""
    parser.add_argument("--denoiser", metavar="RUN", help="neural SDE: run folder or file; --checkpoint is its flow")
    parser.add_argument("--diffusion", metavar="RUN", help="neural SDE: run folder or file")
    parser.add_argument("--config", metavar="FILE", help="configuration of a --checkpoint that has none in it")
    parser.add_argument(
        "--autoencoder", "--tokenizer", metavar="FILE", help="its checkpoint, in place of the one on record"
    )
    parser.add_argument(
        "--size", type=positive_int, nargs=2, metavar=("H", "W"), help="of an autoencoder's frames (default: its run's)"
    )
    parser.add_argument("--given", type=positive_int, help="frames that are shown (default: of the configuration)")
    parser.add_argument(
        "--steps", type=positive_int, help="solver steps per frame (default: as generate_flow_videos.py)"
    )


def open_subject(args: argparse.Namespace) -> Subject:
    """The predictions of a trained RIVER, or of a neural SDE with the flow --checkpoint; of an autoencoder its
    reconstructions. Raises UserError.
    """
    from flow_pred.files import load_autoencoder, load_model, role_of
    from flow_pred.predict import latent_counts, plan_for
    from flow_pred.scores import Predictions
    from training.distributed import resolve_device

    device = resolve_device(args.device)
    if args.config is None and (found := load_autoencoder(args.checkpoint, device)):
        return open_reconstructions(args, *found)
    role = "river" if role_of(args.checkpoint, args.config) == "river" else "f"
    files = {role: (args.checkpoint, args.config), "d": (args.denoiser, None), "g": (args.diffusion, None)}
    loaded = load_model(files, device, args.autoencoder)
    plan = plan_for(loaded.predictor, loaded.config, context=args.given, steps=args.steps)
    if args.frames:
        plan.frames = args.frames - plan.context
        latent_counts(loaded.predictor, plan)
    data, subject = loaded.config.data, Predictions(loaded.predictor, plan, device)
    subject.runs = loaded.runs
    size, stride = own_size(args, (data.crop_size,) * 2), args.stride or plan.read_stride
    return subject.made_for(plan.read_frames, size, stride, short_side=data.input_size)


def open_reconstructions(args: argparse.Namespace, module: Any, config: dict[str, Any]) -> Subject:
    """What an autoencoder makes of clips, cut as those of its training unless --size is given."""
    from flow_pred.scores import Reconstructions

    data, subject = config["data"], Reconstructions(module)
    subject.runs = (args.checkpoint,)
    frames, stride = args.frames or FRAMES, args.stride or 1
    if args.size:
        return subject.made_for(frames, args.size, stride)
    return subject.made_for(frames, (data["crop_size"],) * 2, stride, short_side=data["input_size"])
