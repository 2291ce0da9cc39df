"""Train or evaluate the latent video transformer: its VQ-VAE, then the transformer over the codes.

python scripts/train_lvt.py --config-file configs/lvt/PR-DVQVAE2.yaml OUTPUT_DIR runs/prdvqvae2
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lvt.config import configure
from training.cli import make_parser, nonnegative_int, number, positive_int, relaunch, run
from training.settings import PRECISIONS


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser("Train the VQ-VAE or the transformer of the latent video transformer, as a file says.")
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="one of configs/lvt/*.yaml, or your own")
    add("--resume", choices=("auto", "never"), default="auto",
        help="auto: continue the run in OUTPUT_DIR; never: refuse a folder that holds a run")  # fmt: skip
    add("--allow-config-change", action="store_true", help="continue although the file changed")
    add("--eval-only", action="store_true", help="only run TEST.EVALUATORS on DATASETS.TEST")
    add("--encode", action="store_true",
        help="only encode the videos of DATASETS.TRAIN and DATASETS.TEST with the trained VQ-VAE")  # fmt: skip
    add("--num-gpus", type=positive_int, default=1, help="processes per machine (or start with torchrun)")
    add("--num-machines", type=positive_int, default=1, help="machines in all")
    add("--machine-rank", type=nonnegative_int, default=0, help="number of this machine, from 0")
    add("--dist-url", default="auto", help="tcp://host:port where several machines meet")
    add("--data", type=lambda path: [path], metavar="DATA",
        help="same as DATASETS.TRAIN and DATASETS.TEST: its parts train and val")  # fmt: skip
    add("--run_dir", metavar="DIR", help="same as OUTPUT_DIR")
    add("--tokenizer", metavar="TOKENIZER",
        help="of the transformer: same as TEST.VT_SAMPLER.TOKENIZER (default: what made the codes)")  # fmt: skip
    add("--vqvae", metavar="RUN", help="of the transformer: same as the three TEST.VT_SAMPLER.VQ_VAE.*_WEIGHTS")
    add("--steps", type=positive_int, help="same as SOLVER.MAX_ITER")
    add("--batch_size", type=positive_int, help="same as SOLVER.IMS_PER_BATCH")
    add("--seed", type=number(int, -1), help="same as SEED")
    add("--device", help="same as MODEL.DEVICE: auto, cpu, cuda, cuda:N")
    add("--precision", "--dtype", choices=PRECISIONS, help="same as SOLVER.PRECISION")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change, at the very end")
    return parser


def with_resume_told(argv: list[str]) -> list[str]:
    """The arguments with a bare `--resume`, as the original has it, spelled out; a KEY may follow it."""
    followers = [*argv[1:], ""]
    return [
        "--resume=auto" if text == "--resume" and follower not in ("auto", "never") else text
        for text, follower in zip(argv, followers, strict=False)
    ]


def main(argv: list[str] | None = None) -> int:
    """Do what the flags say; status 1 when TEST.EXPECTED_RESULTS is missed."""
    argv = with_resume_told(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(argv)

    configure(args)  # a mistake in it is told once, before there are several processes
    relaunch(__file__, argv, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)

    from lvt.train import train_lvt  # in the processes that compute: it imports torch

    missed = train_lvt(args)
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    run(main)
