"""The settings of a run that are the same for every model, and their command-line flags."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass
class TrainSettings:
    """How long, how fast, where and how safely to train. One instance describes one run folder."""

    run_dir: Path
    steps: int  # optimiser steps in all
    batch_size: int = 1  # samples per optimiser step, over all processes and accumulated micro-batches
    accumulation: int = 1  # micro-batches per optimiser step
    seed: int = 0
    device: str = "auto"  # auto: cuda if there is one, else cpu
    precision: str = "fp32"  # fp32, bf16, fp16
    compile: bool = False
    fsdp: bool = False
    deterministic: bool = False

    warmup_steps: int = 0
    schedule: str = "constant"  # constant, cosine, linear: what follows the warm-up
    clip: float = 1.0  # gradient norm, per optimiser; 0 turns clipping off
    skip_grad_norm: float = 0.0  # an update whose gradient norm is larger is skipped; 0 turns this off
    ema: float = 0.0  # decay of the averaged weights; 0 turns them off
    max_bad_steps: int = 20  # consecutive non-finite steps before the run stops with status 3

    resume: str = "auto"  # auto: newest valid checkpoint of run_dir; never: refuse a used folder
    allow_config_change: bool = False
    save_every: int = 1000  # optimiser steps; 0: only at the end
    keep: int = 2  # newest checkpoints kept beside the best one
    log_every: int = 10
    evaluate_every: int = 0  # optimiser steps; 0: at the end of each epoch
    evaluate_batches: int = 16  # validation batches at most; 0: all
    pictures_every: int = 0  # optimiser steps; 0: with each evaluation
    max_minutes: float = 0.0  # save and stop with status 0 after this time; 0: no limit

    workers: int = 0
    loader_timeout: float = 300.0  # seconds before a silent loader worker is an error
    process_timeout: float = 600.0  # seconds before a silent process is an error
    wandb: bool = False


HELP = {
    "batch_size": "samples per optimiser step, over all processes and micro-batches",
    "accumulation": "micro-batches per optimiser step",
    "seed": "seed of the sample order, the augmentation and the model's noise",
    "device": "auto, cpu, cuda or cuda:N",
    "precision": "fp32, or autocast to bf16 or fp16",
    "compile": "compile the networks with torch.compile",
    "fsdp": "shard the parameters over the processes (FSDP2) in place of replicating them (DDP)",
    "deterministic": "ask torch for deterministic kernels",
    "warmup_steps": "steps of linear learning-rate warm-up",
    "schedule": "learning rate after the warm-up",
    "clip": "clip the gradient norm of each optimiser to this value; 0: off",
    "skip_grad_norm": "skip an update whose gradient norm is larger; 0: off",
    "ema": "decay of the averaged weights that are evaluated and exported; 0: off",
    "max_bad_steps": "stop with status 3 after this many non-finite steps in a row",
    "resume": "auto: continue the run folder; never: refuse a folder that holds a run",
    "allow_config_change": "resume although the configuration changed",
    "save_every": "steps between checkpoints; 0: only at the end",
    "keep": "newest checkpoints to keep beside the best one",
    "log_every": "steps between log lines",
    "evaluate_every": "steps between evaluations; 0: at the end of each epoch",
    "evaluate_batches": "validation batches per evaluation at most; 0: all",
    "pictures_every": "steps between pictures; 0: with each evaluation",
    "max_minutes": "save and stop with status 0 after this time; 0: no limit",
    "workers": "loader processes",
    "loader_timeout": "seconds before a silent loader process is an error",
    "process_timeout": "seconds before a silent training process is an error",
    "wandb": "log to Weights & Biases too (needs the wandb package)",
}
CHOICES = {
    "precision": ("fp32", "bf16", "fp16"),
    "schedule": ("constant", "cosine", "linear"),
    "resume": ("auto", "never"),
}


def add_training_arguments(parser: argparse.ArgumentParser, **defaults: object) -> None:
    """Add a flag for every setting in HELP; `defaults` replaces the defaults of TrainSettings for this script.

    Flags are spelled `--batch_size` and `--batch-size` alike.
    """
    group = parser.add_argument_group("training")
    for entry in fields(TrainSettings):
        if entry.name not in HELP:
            continue
        default = defaults.get(entry.name, entry.default)
        names = sorted({f"--{entry.name}", f"--{entry.name.replace('_', '-')}"}, key=lambda name: "-" in name[2:])
        if isinstance(default, bool):
            group.add_argument(*names, action=argparse.BooleanOptionalAction, default=default, help=HELP[entry.name])
        else:
            group.add_argument(
                *names,
                type=type(default),
                default=default,
                choices=CHOICES.get(entry.name),
                help=HELP[entry.name],
            )


def settings_from(args: argparse.Namespace, run_dir: Path, steps: int) -> TrainSettings:
    """The TrainSettings that parsed arguments describe."""
    values = {name: getattr(args, name) for name in HELP if hasattr(args, name)}
    return TrainSettings(run_dir=run_dir, steps=steps, **values)
