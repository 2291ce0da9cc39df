"""Continue given frames with a latent video transformer.

    python scripts/generate_videos.py --video-dir frames --config-file configs/lvt/DSFVT.yaml \
        MODEL.GENERATOR.WEIGHTS runs/dsfvt OUTPUT_DIR runs/continued
"""

import argparse
import sys
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from training.cli import make_parser, run

KEYS = {
    "samples": "TEST.VT_SAMPLER.NUM_SAMPLES",
    "given": "TEST.VT_SAMPLER.N_PRIME",
    "temperature": "TEST.VT_SAMPLER.TEMPERATURE",
    "top_k": "TEST.VT_SAMPLER.TOP_K",
    "top_p": "TEST.VT_SAMPLER.TOP_P",
    "seed": "SEED",
    "device": "MODEL.DEVICE",
    "checkpoint": "MODEL.GENERATOR.WEIGHTS",
    "out": "OUTPUT_DIR",
}


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser("Continue the first frames of a folder of images with a latent video transformer.")
    add = parser.add_argument
    add("--config-file", "--config_file", required=True, metavar="FILE", help="configuration of the transformer")
    add("--video-dir", "--video_dir", "--data", type=Path, metavar="DIR", help="folder with the given frames")
    add("--frames", type=int, help="of the whole clip (default: INPUT.N_FRAMES_PER_VIDEO_TEST)")
    add("--hop", type=int, default=1, help="frames added per window when --frames is longer than that")
    add("--fps", type=Fraction, default=Fraction(8), help="of the videos")
    add("--class-index", "--class_index", type=int, help="class of a class-conditional model")
    add("--samples", type=int, help="same as TEST.VT_SAMPLER.NUM_SAMPLES")
    add("--given", type=int, metavar="N", help="same as TEST.VT_SAMPLER.N_PRIME; 0: invent all")
    add("--temperature", type=float, help="same as TEST.VT_SAMPLER.TEMPERATURE")
    add("--top-k", "--top_k", type=int, help="same as TEST.VT_SAMPLER.TOP_K")
    add("--top-p", "--top_p", type=float, help="same as TEST.VT_SAMPLER.TOP_P")
    add("--seed", type=int, help="same as SEED; sample i uses SEED + i")
    add("--device", help="same as MODEL.DEVICE: auto, cpu, cuda, cuda:N")
    add("--checkpoint", metavar="RUN", help="same as MODEL.GENERATOR.WEIGHTS: run folder or file of weights")
    add("--out", metavar="DIR", help="same as OUTPUT_DIR")
    add("--compile", action="store_true", help="compile the sampler (pays off for many samples)")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change, at the very end")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the samples and say where."""
    args = build_parser().parse_args(argv)

    from lvt import config as configuration
    from lvt.generate import Wishes, generate_videos

    config = configuration.load(args.config_file, configuration.from_flags(args, KEYS))
    wishes = Wishes(args.frames, args.fps, args.class_index, args.hop, args.compile)
    print(generate_videos(config, args.video_dir, wishes))


if __name__ == "__main__":
    run(main)
