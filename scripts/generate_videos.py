"""Continue given frames with a latent video transformer.

    python scripts/generate_videos.py --video-dir frames --config-file configs/lvt/DSFVT.yaml \
        MODEL.GENERATOR.WEIGHTS runs/dsfvt OUTPUT_DIR runs/continued
"""

import argparse
import sys
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lvt import config as configuration
from lvt.generate import Wishes, generate_videos
from training.cli import make_parser, run


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser("Continue the first frames of a folder of images with a latent video transformer.")
    parser.add_argument("--config-file", required=True, metavar="FILE", help="configuration of the transformer")
    parser.add_argument("--video-dir", type=Path, metavar="DIR", help="folder with the given frames")
    parser.add_argument("--frames", type=int, help="of the whole clip (default: INPUT.N_FRAMES_PER_VIDEO_TEST)")
    parser.add_argument("--hop", type=int, default=1, help="frames added per window when --frames is longer than that")
    parser.add_argument("--fps", type=Fraction, default=Fraction(8), help="of the videos")
    parser.add_argument("--class-index", type=int, help="class of a class-conditional model")
    parser.add_argument("--samples", type=int, help="same as TEST.VT_SAMPLER.NUM_SAMPLES")
    parser.add_argument("--given", type=int, metavar="N", help="same as TEST.VT_SAMPLER.N_PRIME; 0: invent all")
    parser.add_argument("--temperature", type=float, help="same as TEST.VT_SAMPLER.TEMPERATURE")
    parser.add_argument("--top-k", type=int, help="same as TEST.VT_SAMPLER.TOP_K")
    parser.add_argument("--top-p", type=float, help="same as TEST.VT_SAMPLER.TOP_P")
    parser.add_argument("--seed", type=int, help="same as SEED; sample i uses SEED + i")
    parser.add_argument("--device", help="same as MODEL.DEVICE: auto, cpu, cuda, cuda:N")
    parser.add_argument("--compile", action="store_true", help="compile the sampler (pays off for many samples)")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change, at the very end"
    )
    return parser


def overrides(args: argparse.Namespace) -> list[str]:
    """The flags that stand for a configuration key, and then the KEY VALUE pairs."""
    keys = {
        "samples": "TEST.VT_SAMPLER.NUM_SAMPLES",
        "given": "TEST.VT_SAMPLER.N_PRIME",
        "temperature": "TEST.VT_SAMPLER.TEMPERATURE",
        "top_k": "TEST.VT_SAMPLER.TOP_K",
        "top_p": "TEST.VT_SAMPLER.TOP_P",
        "seed": "SEED",
        "device": "MODEL.DEVICE",
    }
    pairs = [(key, getattr(args, name)) for name, key in keys.items() if getattr(args, name) is not None]
    return [text for key, value in pairs for text in (key, str(value))] + args.opts


def main(argv: list[str] | None = None) -> None:
    """Write the samples and say where."""
    args = build_parser().parse_args(argv)
    config = configuration.load(args.config_file, overrides(args))
    wishes = Wishes(args.frames, args.fps, args.class_index, args.hop, args.compile)
    print(generate_videos(config, args.video_dir, wishes))


if __name__ == "__main__":
    run(main)
