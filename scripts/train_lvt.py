"""Train or evaluate the latent video transformer: its VQ-VAE, then the transformer over the codes.

python scripts/train_lvt.py --config-file configs/lvt/PR-DVQVAE2.yaml OUTPUT_DIR runs/prdvqvae2
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lvt import config as configuration
from lvt.evaluate import evaluate_lvt, missed_expectations
from lvt.launch import relaunch
from lvt.train import train_lvt
from training.cli import make_parser, run


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser("Train the VQ-VAE or the transformer of the latent video transformer, as a file says.")
    parser.add_argument("--config-file", required=True, metavar="FILE", help="one of configs/lvt/*.yaml, or your own")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR")
    parser.add_argument("--allow-config-change", action="store_true", help="continue although the file changed")
    parser.add_argument("--eval-only", action="store_true", help="only run TEST.EVALUATORS on DATASETS.TEST")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes per machine (or start with torchrun)")
    parser.add_argument("--num-machines", type=int, default=1, help="machines in all")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", help="tcp://host:port where several machines meet")
    parser.add_argument("--seed", type=int, help="same as SEED")
    parser.add_argument("--device", help="same as MODEL.DEVICE: auto, cpu, cuda, cuda:N")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="same as SOLVER.PRECISION")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change, at the very end"
    )
    return parser


def overrides(args: argparse.Namespace) -> list[str]:
    """The flags that stand for a configuration key, and then the KEY VALUE pairs."""
    pairs = [("SEED", args.seed), ("MODEL.DEVICE", args.device), ("SOLVER.PRECISION", args.dtype)]
    return [text for key, value in pairs if value is not None for text in (key, str(value))] + args.opts


def main(argv: list[str] | None = None) -> int:
    """Do what the flags say; status 1 when TEST.EXPECTED_RESULTS is missed."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    config = configuration.load(args.config_file, overrides(args))
    if args.eval_only:
        results = evaluate_lvt(config)
    else:
        relaunch(__file__, argv, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
        results = train_lvt(config, args.resume, args.allow_config_change)
    missed = missed_expectations(config, results)
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    run(main)
