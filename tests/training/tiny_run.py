"""A training script as the models have one, small enough to be killed in tests: tiny_run.py RUN_DIR [flags]."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.training import faults
from tests.training.tiny_gan import TinyClips, TinyGAN
from training import add_training_arguments, cli, settings_from, train

GATE = "VIDEOGEN_GATE"  # the file that opens it


class GatedClips(TinyClips):
    """Clips of which those after the eighth step of four are there when the gate is open."""

    def __getitem__(self, key: tuple[int, int]) -> object:
        while key[1] >= 32 and not Path(os.environ[GATE]).exists():
            time.sleep(0.02)
        return super().__getitem__(key)


def main(argv: list[str] | None = None) -> None:
    faults.install(os.environ.get(faults.VARIABLE))
    parser = cli.make_parser(__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps")
    add_training_arguments(parser, batch_size=4, ema=0.9, save_every=4, log_every=1, evaluate_every=100)
    args = parser.parse_args(argv)
    clips = GatedClips() if GATE in os.environ else TinyClips()
    result = train(TinyGAN(), clips, settings_from(args, args.run_dir, args.steps), {"model": {"width": 8}})
    print("finished" if result.finished else "stopped", result.step)


if __name__ == "__main__":
    cli.run(main)
