"""Continue given frames with a latent video transformer.

    python scripts/generate_videos.py --video-dir frames --config-file configs/lvt/DSFVT.yaml \
        MODEL.GENERATOR.WEIGHTS runs/dsfvt OUTPUT_DIR runs/continued
"""

import argparse
import sys
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lvt.evaluate import add_masked_arguments
from training.cli import (
    add_class_arguments,
    frame_rate,
    make_parser,
    nonnegative_int,
    number,
    positive_float,
    positive_fraction,
    positive_int,
    run,
)
from training.settings import PRECISIONS
from videodata.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser("Continue the first frames of a folder of images with a latent video transformer.")
    add = parser.add_argument
    add("--config-file", metavar="FILE", help="configuration of the transformer (default: of --checkpoint)")
    add("--video-dir", "--data", type=Path, metavar="DIR", help="folder with the given frames")
    add("--frames", type=positive_int, help="of the whole clip (default: INPUT.N_FRAMES_PER_VIDEO_TEST)")
    add("--hop", type=positive_int, default=1, help="frames added per window when --frames is longer than that")
    add("--fps", type=frame_rate, default=Fraction(8), help="of the videos")
    add_class_arguments(parser)
    add("--class-index", type=nonnegative_int, help="same as --class, by its number")
    add("--samples", type=positive_int, help="same as TEST.VT_SAMPLER.NUM_SAMPLES")
    add("--given", type=nonnegative_int, metavar="N",
        help="frames that are given, TEST.VT_SAMPLER.N_PRIME of codes; 0: invent all")  # fmt: skip
    add("--temperature", type=positive_float, help="same as TEST.VT_SAMPLER.TEMPERATURE")
    add("--top-k", type=nonnegative_int, help="same as TEST.VT_SAMPLER.TOP_K")
    add("--top-p", type=positive_fraction, help="same as TEST.VT_SAMPLER.TOP_P")
    add(
        "--precision",
        choices=PRECISIONS,
        dest="sampler_precision",
        help="of the transformer: same as TEST.VT_SAMPLER.PRECISION, whose default is fp32",
    )
    add("--seed", type=number(int, -1), help="same as SEED; sample i uses SEED + i")
    add("--device", help="same as MODEL.DEVICE: auto, cpu, cuda, cuda:N")
    add("--checkpoint", metavar="RUN", help="same as MODEL.GENERATOR.WEIGHTS: run folder, file, or a name of weights/")
    add("--tokenizer", metavar="TOKENIZER", help="same as TEST.VT_SAMPLER.TOKENIZER: what encodes and decodes")
    add("--vqvae", metavar="RUN", help="same as the three TEST.VT_SAMPLER.VQ_VAE.*_WEIGHTS")
    add("--out", metavar="DIR", help="same as OUTPUT_DIR")
    add("--compile", action="store_true", help="compile the sampler (pays off for many samples)")
    add_masked_arguments(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change, at the very end")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the samples and say where."""
    args = build_parser().parse_args(argv)
    if args.config_file is None:
        if args.checkpoint is None:
            raise UserError("name the transformer: --checkpoint RUN, or --config-file FILE with its weights")
        args.config_file = Path(args.checkpoint) / "config.yaml"

    from lvt.generate import generate_lvt

    print(generate_lvt(args))


if __name__ == "__main__":
    run(main)
