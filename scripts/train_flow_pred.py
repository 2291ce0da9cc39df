"""Train a video predictor: train_flow_pred.py --config configs/flow_pred/kth_f-01-nll.yaml --run-name f-01-nll"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

import torch

from flow_pred.config import FlowPredConfig, read_config
from flow_pred.run import plain_config, prepare, write_final
from training import add_training_arguments, settings_from, train
from training.checkpoint import checkpoints_in
from training.cli import make_parser, run
from training.distributed import is_main, launched, print0
from videodata.errors import UserError

DEFAULTS = {
    "seed": 1543,
    "clip": 0.0,
    "save_every": 5000,
    "log_every": 100,
    "evaluate_every": 20_000,
    "pictures_every": 5000,
    "evaluate_batches": 100,
}  # the original's


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser("Train RIVER, or the flow, denoiser or diffusion of the neural SDE.")
    parser.add_argument("--config", required=True, help="a configuration of configs/flow_pred")
    parser.add_argument("--run-name", required=True, help="the run folder is runs/<config.name>_run-<run-name>")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all run folders")
    parser.add_argument("--num-gpus", type=int, help="GPUs to use; 0: train on the CPU (default: all)")
    parser.add_argument("--resume-step", type=int, help="-1: the newest checkpoint; n: that of step n, which must be "
                        "the newest one (default: continue the run folder)")  # fmt: skip
    parser.add_argument("--vqvae-path", help="the autoencoder's checkpoint, in place of autoencoder.ckpt_path")
    parser.add_argument("--random-seed", dest="seed", type=int, default=argparse.SUPPRESS, help="same as --seed")
    add_training_arguments(parser, **DEFAULTS)
    parser.set_defaults(batch_size=None, workers=None)  # of the configuration
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration")
    return parser


def check_resume(run_dir: Path, step: int | None) -> None:
    """Raises UserError when the checkpoint to continue from is not the one that the run would continue from."""
    if step is None:
        return
    found = [checkpoint.step for checkpoint in checkpoints_in(run_dir / "checkpoints")]
    if not found:
        raise UserError(f"{run_dir}: holds no checkpoint to resume from; leave --resume-step out to start")
    if step not in (-1, found[0]):
        there = "is there" if step in found else "is not there"
        raise UserError(f"{run_dir}: step {step} {there}, but the newest is {found[0]}; use --resume-step -1, or move "
                        "the newer checkpoints away")  # fmt: skip


def spread_over_gpus(count: int | None, argv: list[str] | None) -> None:
    """Start one process per GPU in place of this one, where there are several GPUs and no launcher did it already."""
    available = torch.cuda.device_count()
    if count is not None and count > available:
        raise UserError(f"--num-gpus {count}: this machine has {available}; --num-gpus 0 trains on the CPU")
    count = available if count is None else count
    if count > 1 and not launched():
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        arguments = sys.argv[1:] if argv is None else argv
        os.execv(sys.executable, [sys.executable, *launcher, str(Path(__file__).resolve()), *arguments])


def configure(args: argparse.Namespace) -> FlowPredConfig:
    """The configuration under the flags; fills in the flags that it decides."""
    config, _ = read_config(args.config, args.overrides)
    batching = config.training.batching
    args.batch_size = batching.batch_size = args.batch_size or batching.batch_size
    args.workers = batching.num_workers if args.workers is None else args.workers
    if args.vqvae_path:
        config.model.autoencoder["ckpt_path"] = args.vqvae_path
    if args.num_gpus == 0:
        args.device = "cpu"
    return config


def main(argv: list[str] | None = None) -> None:
    """Train as the arguments say, or continue where the same command stopped."""
    args = build_parser().parse_args(argv)
    config = configure(args)
    run_dir = args.runs / f"{config.name}_run-{args.run_name}"
    check_resume(run_dir, args.resume_step)
    if args.device == "auto":
        spread_over_gpus(args.num_gpus, argv)
    recipe, data, validation = prepare(config, run_dir, args.seed)
    steps = config.training.optimizer.num_training_steps
    result = train(recipe, data, settings_from(args, run_dir, steps), plain_config(config), validation)
    if result.finished and is_main():
        path = write_final(run_dir, recipe, config, result.step)
        print0(f"{path}: step {result.step}", {name: round(value, 5) for name, value in result.metrics.items()})


if __name__ == "__main__":
    run(main)
