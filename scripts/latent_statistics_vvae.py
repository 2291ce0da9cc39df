"""Mean and deviation of latents, for models trained on them: latent_statistics_vvae.py LATENTS --output config.json"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from scripts.vvae_files import files_in, own_errors
from training.cli import make_parser, run
from videodata.errors import UserError
from vvae.src.files import replaced
from vvae.src.latent_files import SUFFIXES as LATENT_FILE_SUFFIXES
from vvae.src.latent_files import latent_statistics


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser("Per-channel mean and standard deviation of latent files, and the overall scaling factor.")
    parser.add_argument("latents", type=Path, help="latent file or folder of them, written by encode_vvae.py")
    parser.add_argument(
        "--output", type=Path, default=Path("latent_statistics.json"),
        help="JSON file; an existing one, such as the config.json of save_pretrained, keeps its other keys",
    )  # fmt: skip
    return parser


@own_errors()
def main(argv: list[str] | None = None) -> None:
    """Measure and write."""
    args = build_parser().parse_args(argv)
    found = latent_statistics(files_in(args.latents, LATENT_FILE_SUFFIXES))
    try:
        present = json.loads(args.output.read_text()) if args.output.is_file() else {}
    except json.JSONDecodeError as error:
        raise UserError(f"{args.output}: not valid JSON ({error}); name another --output") from error
    with replaced(args.output) as temporary:
        temporary.write_text(json.dumps({**present, **found}, indent=2) + "\n")
    print(f"scaling factor {found['scaling_factor']:.4g}, {len(found['latents_mean'])} channels -> {args.output}")


if __name__ == "__main__":
    run(main)
