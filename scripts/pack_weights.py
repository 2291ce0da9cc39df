"""Put the trained parts of a model into one small file, weights/NAME.safetensors: every --checkpoint takes its name.

python scripts/pack_weights.py lvt-digits --model lvt --part transformer=runs/lvt vqvae=runs/lvt_vqvae \
    --evaluation runs/lvt.json --command "python scripts/train_lvt.py ..." --cpu_seconds 7100
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, nonnegative_float, run
from videodata.errors import UserError

MODELS = ("video_vae", "vqgan", "lvt", "vvae", "tokenizer3d", "flow_pred")


def named_run(text: str) -> tuple[str, Path]:
    """NAME=RUN as (name, run folder)."""
    name, equals, run_folder = text.partition("=")
    if not (name and equals and run_folder):
        raise argparse.ArgumentTypeError(f"write NAME=RUN, found {text}")
    return name, Path(run_folder)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("name", help="such as lvt-digits")
    parser.add_argument("--model", required=True, choices=MODELS, help="folder of the model")
    parser.add_argument(
        "--part", type=named_run, nargs="+", required=True, metavar="NAME=RUN",
        help="run folders: first the one that --checkpoint means, then those that it is built on",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=("fp16", "bf16", "fp32"), default="fp16", help="of the stored weights")
    parser.add_argument(
        "--leave_out", nargs="*", default=["discriminator"], metavar="NETWORK", help="networks that only training needs"
    )
    parser.add_argument("--evaluation", type=Path, help="JSON of scripts/evaluate.py, put beside the file")
    parser.add_argument("--command", help="the commands of its training, for the record")
    parser.add_argument("--cpu_seconds", type=nonnegative_float, help="of its training, for the record")
    parser.add_argument("--licence", default="Apache-2.0", help="of the weights, for the record")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="folder of the file")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the file, and its evaluation beside it."""
    args = build_parser().parse_args(argv)
    from evaluation.report import FORMAT
    from training.pretrained import NAME, pack
    from videodata.files import read_json, readable_size, write_json

    if not NAME.fullmatch(args.name):
        raise UserError(f"{args.name}: a name is lower-case letters, digits, - and _, such as lvt-digits")
    report = read_json(args.evaluation) if args.evaluation else None
    if args.evaluation and (report or {}).get("format") != FORMAT:
        raise UserError(f"{args.evaluation}: not an evaluation; scripts/evaluate.py --out writes one")
    facts = {"command": args.command, "cpu_seconds": args.cpu_seconds, "licence": args.licence}
    path = args.out / f"{args.name}.safetensors"
    pack(path, args.model, dict(args.part), args.dtype, facts, args.leave_out)
    print(f"{path}: {readable_size(path.stat().st_size)}")
    if report:
        write_json(path.with_suffix(".json"), report, sort_keys=False)
        print(path.with_suffix(".json"))


if __name__ == "__main__":
    run(main)
