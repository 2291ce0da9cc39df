"""The same as scripts/vvae.py reconstruct: reconstruct_vvae.py INPUT OUTPUT --ckpt sota-4-16z.ckpt"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from scripts import vvae
from training.cli import run


def main(argv: list[str] | None = None) -> None:
    """Reconstruct each file."""
    vvae.main(["reconstruct", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    run(main)
