"""Keep of V-JEPA's published files what JEDi needs: pack_vjepa.py vith16.pth.tar ssv2-probe.pth.tar --out DIR

Writes vjepa-h16-ssv2.safetensors, a quarter of the size, which evaluations find by its name.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import Parser, make_parser, run


def build_parser() -> Parser:
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("encoder", type=Path, help="vith16.pth.tar")
    parser.add_argument("probe", type=Path, help="ssv2-probe.pth.tar")
    parser.add_argument("--out", type=Path, help="folder (default: where weight files are looked for)")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from evaluation.vjepa import pack
    from losses.weights import weights_folder
    from videodata.files import readable_size

    path = pack(args.encoder, args.probe, args.out or weights_folder())
    print(f"{path}: {readable_size(path.stat().st_size)}")


if __name__ == "__main__":
    run(main)
