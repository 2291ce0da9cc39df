"""The settings of a run that are the same for every model, and their command-line flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from training.cli import (
    fraction,
    nonnegative_float,
    nonnegative_int,
    number,
    positive_float,
    positive_int,
    seconds,
    seed_number,
)
from videodata.errors import UserError

period = number(int, 0, 10**15)  # configurations say never by a number that no run reaches
SCHEDULES = ("constant", "cosine", "cosine_full", "linear", "sqrt", "multistep")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DECAYS = ("cosine", "cosine_full", "linear", "sqrt")  # the schedules that end at final_rate


def flag(default: Any, text: str, kind: Callable | None = None, choices: tuple[str, ...] | None = None) -> Any:
    """A field of TrainSettings that is also a flag; `kind` is argparse's type, by default that of the default."""
    return field(default=default, metadata={"help": text, "type": kind or type(default), "choices": choices})


@dataclass
class TrainSettings:
    """How long, how fast, where and how safely to train. One instance describes one run folder."""

    run_dir: Path
    steps: int  # optimiser steps in all

    batch_size: int = flag(1, "samples per optimiser step, over all processes and micro-batches", positive_int)
    accumulation: int = flag(1, "micro-batches per optimiser step", positive_int)
    seed: int = flag(0, "seed of the sample order, the augmentation and the model's noise", seed_number)
    device: str = flag("auto", "auto (cuda if there is one, else cpu), cpu, cuda or cuda:N")
    precision: str = flag(
        "fp32", "fp32, or autocast to bf16 or fp16; auto: bf16 where the device multiplies it in hardware",
        choices=PRECISIONS,
    )  # fmt: skip
    compile: bool = flag(False, "compile the networks with torch.compile")
    fsdp: bool = flag(False, "shard the parameters over the processes (FSDP2) in place of replicating them (DDP)")
    replicas: int = flag(
        1, "with --fsdp: groups of processes that hold a copy of the parameters each (HSDP), such as one per machine",
        positive_int,
    )  # fmt: skip
    deterministic: bool = flag(False, "ask torch for deterministic kernels")

    schedule: str = flag(
        "constant", "learning rate after the warm-up; cosine_full: over the whole run", None, SCHEDULES
    )
    warmup_steps: int = flag(0, "steps of learning-rate warm-up", nonnegative_int)
    warmup: str = flag("linear", "shape of the warm-up", choices=("linear", "constant"))
    warmup_start: float | None = flag(
        None, "share of the learning rate at which the warm-up starts (default: 1 / warmup_steps)", fraction
    )
    milestones: tuple[int, ...] = flag((), "steps at which --schedule multistep multiplies the rate by --gamma")
    gamma: float = flag(0.1, "factor on the rate at each of --milestones", positive_float)
    final_rate: float = flag(
        0.0, f"learning rate at the end of a {', '.join(DECAYS[:-1])} or sqrt schedule", nonnegative_float
    )
    clip: float = flag(1.0, "clip the gradient norm of each optimiser to this value; 0: off", nonnegative_float)
    skip_grad_norm: float = flag(0.0, "skip an update whose gradient norm is larger; 0: off", nonnegative_float)
    ema: float = flag(0.0, "decay of the averaged weights that are evaluated and exported; 0: off", fraction)
    max_bad_steps: int = flag(20, "stop with status 3 after this many non-finite steps in a row", positive_int)

    resume: str = flag(
        "auto", "auto: continue the run folder; never: refuse a folder that holds a run", choices=("auto", "never")
    )
    allow_config_change: bool = flag(False, "resume although the configuration changed")
    save_every: int = flag(1000, "steps between checkpoints; 0: only at the end", period)
    keep: int = flag(2, "newest checkpoints to keep beside the best one", nonnegative_int)
    log_every: int = flag(10, "steps between log lines", period)
    evaluate_every: int = flag(0, "steps between evaluations; 0: at the end of each epoch", period)
    evaluate_batches: int = flag(16, "validation batches per evaluation at most; 0: all", nonnegative_int)
    pictures_every: int = flag(0, "steps between pictures; 0: with each evaluation", period)
    max_minutes: float = flag(0.0, "save and stop with status 0 after this time; 0: no limit", nonnegative_float)

    workers: int = flag(0, "loader processes", nonnegative_int)
    loader_timeout: float = flag(300.0, "seconds before a silent loader process is an error", seconds)
    process_timeout: float = flag(600.0, "seconds before a silent training process is an error", seconds)
    wandb: bool = flag(False, "log to Weights & Biases too (needs the wandb package)")


FLAGS = tuple(entry for entry in fields(TrainSettings) if entry.default is not MISSING)
OF_A_SCHEDULE = ("milestones", "gamma", "final_rate")  # what only some schedules ask for
OF_THE_WARMUP = ("warmup", "warmup_start")


def add_training_arguments(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add a flag for every setting but run_dir and steps.

    `defaults` replaces the defaults of TrainSettings for this script; None leaves the setting to the configuration,
    whose value the script hands to `settings_from`.
    """
    group = parser.add_argument_group("training")
    for entry in FLAGS:
        default, text = defaults.get(entry.name, entry.default), entry.metadata["help"]
        if default is None and entry.default is not None:
            text += " (default: the configuration's)"
        options: dict[str, Any] = {"default": default, "help": text}
        if entry.type == "bool":
            options["action"] = argparse.BooleanOptionalAction
        elif entry.name == "milestones":
            options |= {"type": positive_int, "nargs": "*", "metavar": "STEP"}
        else:
            options |= {"type": entry.metadata["type"], "choices": entry.metadata["choices"]}
        group.add_argument(f"--{entry.name}", **options)


def add_configuration_arguments(parser: argparse.ArgumentParser, configs: Path, example: str) -> None:
    """Add --config, or --preset for one of the folder `configs`, like its `example`; every setting is left to it."""
    presets = sorted(path.stem for path in configs.glob("*.yaml"))
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--config", metavar="FILE", help=f"YAML file like configs/{configs.name}/{example}")
    chosen.add_argument("--preset", choices=presets, help="one of those")
    parser.add_argument("--steps", type=positive_int, help="optimiser steps in all (default: the configuration's)")
    add_training_arguments(parser, **dict.fromkeys(entry.name for entry in FLAGS))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration, dotted keys")


def settings_from(args: argparse.Namespace, run_dir: Path, steps: int, **defaults: Any) -> TrainSettings:
    """The TrainSettings that parsed arguments describe; `defaults` stand where a flag was left to the configuration.

    Defaults that only the model's own schedule or warm-up asks for are dropped with it: `--schedule constant` needs
    no `--final_rate 0` beside it. Raises UserError naming the nearest known key for one of `defaults` that is none.
    """
    from training.config import from_dict  # here, after --help: OmegaConf takes time to import

    given = {entry.name: getattr(args, entry.name, None) for entry in FLAGS}
    given = {name: value for name, value in given.items() if value is not None}
    if "schedule" in defaults and given.get("schedule", defaults["schedule"]) != defaults["schedule"]:
        defaults = {name: value for name, value in defaults.items() if name not in OF_A_SCHEDULE}
    chosen = {**defaults, **given}
    if not chosen.get("warmup_steps"):
        chosen = {name: value for name, value in chosen.items() if name in given or name not in OF_THE_WARMUP}
    return from_dict(TrainSettings, {"run_dir": run_dir, "steps": steps, **chosen}, "engine")


def check_ranges(settings: TrainSettings) -> None:
    """Raises UserError for a number that its flag would refuse: configuration files set the same settings."""
    for entry in FLAGS:
        value, kind = getattr(settings, entry.name), entry.metadata["type"]
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        try:
            kind(str(value))
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise UserError(f"--{entry.name}: {error}") from error
    if any(step < 1 for step in settings.milestones):
        raise UserError(f"--milestones: steps are counted from 1, found {min(settings.milestones)}")


def check_schedule(settings: TrainSettings) -> None:
    """Raises UserError for a setting of the learning rate that would change nothing, or has a part missing."""
    default = {entry.name: entry.default for entry in FLAGS}
    changed = [name for name in (*OF_A_SCHEDULE, *OF_THE_WARMUP) if getattr(settings, name) != default[name]]
    if settings.schedule not in SCHEDULES:
        raise UserError(f"unknown schedule {settings.schedule!r}; choose one of {', '.join(SCHEDULES)}")
    for name in changed:
        acts = {"final_rate": settings.schedule in DECAYS, "warmup": True, "warmup_start": True}
        if not acts.get(name, settings.schedule == "multistep"):
            raise UserError(f"--{name} has no effect on --schedule {settings.schedule}: leave it out")
        if name in OF_THE_WARMUP and not settings.warmup_steps:
            raise UserError(f"--{name} has no effect without --warmup_steps")
    if settings.warmup == "constant" and settings.warmup_start is None:
        raise UserError("--warmup constant needs --warmup_start, the share of the learning rate that it holds")
