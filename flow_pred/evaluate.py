"""How `scripts/evaluate.py flow_pred` opens a predictor: its flags, and the subject that they describe.

What is measured is in `scores`; torch is imported when it is opened, after --help.
"""

from __future__ import annotations

import argparse

from evaluation.subject import Subject
from training.cli import positive_int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of flow_pred alone."""
    parser.add_argument("--denoiser", metavar="RUN", help="neural SDE: run folder or file; --checkpoint is its flow")
    parser.add_argument("--diffusion", metavar="RUN", help="neural SDE: run folder or file")
    parser.add_argument("--config", metavar="FILE", help="configuration of a --checkpoint that has none in it")
    parser.add_argument(
        "--autoencoder", "--tokenizer", metavar="FILE", help="its checkpoint, in place of the one on record"
    )
    parser.add_argument("--given", type=positive_int, help="frames that are shown (default: of the configuration)")
    parser.add_argument(
        "--steps", type=positive_int, help="solver steps per frame (default: as generate_flow_videos.py)"
    )


def open_subject(args: argparse.Namespace) -> Subject:
    """The predictions of a trained RIVER, or of a neural SDE with the flow --checkpoint. Raises UserError."""
    from flow_pred.files import load_model, role_of
    from flow_pred.predict import latent_counts, plan_for
    from flow_pred.scores import Predictions
    from training.distributed import resolve_device

    device = resolve_device(args.device)
    role = "river" if role_of(args.checkpoint, args.config) == "river" else "f"
    files = {role: (args.checkpoint, args.config), "d": (args.denoiser, None), "g": (args.diffusion, None)}
    loaded = load_model(files, device, args.autoencoder)
    plan = plan_for(loaded.predictor, loaded.config, context=args.given, steps=args.steps)
    if args.frames:
        plan.frames = args.frames - plan.context
        latent_counts(loaded.predictor, plan)
    data, subject = loaded.config.data, Predictions(loaded.predictor, plan, device)
    subject.runs = loaded.runs
    side, stride = data.crop_size, args.stride or plan.read_stride
    return subject.made_for(plan.read_frames, (side, side), stride, short_side=data.input_size)
