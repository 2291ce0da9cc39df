"""Score a trained model, or two folders of videos: a table on the screen, a JSON file with the whole protocol.

python scripts/evaluate.py MODEL --checkpoint RUN --data CLIPS --metrics psnr ssim fvd
python scripts/evaluate.py videos ORIGINALS PREDICTIONS
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from evaluation.frechet import DEFAULT_FOLDER
from evaluation.metrics import RANDOM
from evaluation.networks import EXTRACTORS
from evaluation.protocol import FVD_FRAMES, PAIRED_METRICS, Protocol
from evaluation.report import Report
from evaluation.runner import evaluate, metrics_of
from evaluation.videos import FOLDER_METRICS, score_folders
from scripts.evaluate_models import MODELS, checkpoint_facts
from training import distributed
from training.cli import HelpFormatter, make_parser, run
from training.device import resolve_device
from videodata.clips import ClipDataset, open_clips
from videodata.errors import UserError

SMALLEST_SIDE = 11  # pixels, the window of SSIM


def add_metric_arguments(parser: argparse.ArgumentParser, known: tuple[str, ...], default: tuple[str, ...]) -> None:
    """Which metrics, and how they are computed."""
    group = parser.add_argument_group("metrics")
    group.add_argument("--metrics", nargs="+", choices=known, default=list(default), help="what is measured")
    group.add_argument("--lpips", choices=("alex", "vgg"), help="LPIPS too, with this network (default of lpips: alex)")
    group.add_argument("--lpips_weights", metavar="PATH", help="its weight file or folder (default: found by name)")
    group.add_argument("--extractor", choices=tuple(EXTRACTORS), default="i3d", help="feature network of FVD")
    group.add_argument("--fvd_weights", metavar="PATH", help="its weight file or folder (default: found by name)")
    group.add_argument("--fid_weights", metavar="PATH", help="weight file or folder of FID (default: found by name)")
    group.add_argument("--download", action="store_true", help="fetch a missing weight file of FVD or FID")
    group.add_argument(
        "--allow_random_features", "--allow-random-features", action="store_true",
        help="FVD, FID, LPIPS with networks of random weights, named FVD-RANDOM, ...: to try things out",
    )  # fmt: skip
    group.add_argument(
        "--force", action="store_true", help="FVD of fewer than 256 clips, FID of fewer than 2048 frames"
    )
    group.add_argument("--seed", type=int, default=0, help="of the windows and of the model's noise")
    group.add_argument("--output", type=Path, default=Path("evaluation.json"), help="the JSON file")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of every model's sub-command."""
    parser.add_argument("--checkpoint", required=True, help="run folder or weight file")
    parser.add_argument("--data", required=True, help="any source of clips: .npy, folder of videos, shapes:<n>, ...")
    parser.add_argument("--split", choices=("train", "val", "test"), help="part of --data (default: all of it)")
    parser.add_argument("--num_clips", type=int, default=64, help="evenly spread over --data; 0: all")
    parser.add_argument("--frames", type=int, help="per clip, given ones included (default: as in training)")
    parser.add_argument("--stride", type=int, help="frames from one to the next of a clip (default: as in training)")
    parser.add_argument("--batch_size", type=int, default=4, help="clips at a time; does not change the result")
    group = parser.add_argument_group("protocol")
    group.add_argument("--repetitions", type=int, default=1, help="whole evaluations, with seeds seed, seed + 1, ...")
    group.add_argument("--samples", type=int, default=1, help="clips that a random model makes of each clip")
    group.add_argument("--fvd_frames", choices=FVD_FRAMES, default="all", help="predicted: given frames left out")
    group.add_argument("--feature_cache", default=str(DEFAULT_FOLDER), help="features of real clips; none: not kept")
    group.add_argument("--no_quantize", "--no-quantize", action="store_true", help="score floats, not 8-bit frames")
    group.add_argument(
        "--ssim_definition", "--ssim-definition", choices=("standard", "vvae"), default="standard",
        help="vvae: that of the published VideoVAE+ numbers",
    )  # fmt: skip


def protocol_of(args: argparse.Namespace) -> Protocol:
    """The protocol that the flags describe."""
    metrics = tuple(dict.fromkeys([*args.metrics, *(["lpips"] if args.lpips else [])]))
    cache = Path(args.feature_cache) if args.feature_cache != "none" else None
    return Protocol(
        metrics=metrics, seed=args.seed, repetitions=args.repetitions, samples=args.samples,
        batch_size=args.batch_size, quantize=not args.no_quantize, ssim_definition=args.ssim_definition,
        lpips=args.lpips or "alex", lpips_weights=args.lpips_weights, extractor=args.extractor,
        fvd_weights=args.fvd_weights, fid_weights=args.fid_weights, fvd_frames=args.fvd_frames, download=args.download,
        allow_random_features=args.allow_random_features, force=args.force, feature_cache=cache,
        device=resolve_device(args.device),
    )  # fmt: skip


def evaluate_model(args: argparse.Namespace) -> Report:
    """Open the model and the data, measure, and say how."""
    if args.num_clips < 0:
        raise UserError("--num_clips must be at least 0")
    distributed.join_processes(args.device)
    protocol = protocol_of(args)
    opened = MODELS[args.model].open(args)
    protocol.check(metrics_of(opened.subject), opened.subject.random)
    frames, (height, width) = opened.frames, opened.size
    if frames <= opened.subject.context:
        raise UserError(f"--frames {frames}: {opened.subject.context} of them are given, so nothing is left to score")
    if "ssim" in protocol.metrics and min(opened.size) < SMALLEST_SIDE:
        raise UserError(f"frames of {width}x{height} have no SSIM (at least {SMALLEST_SIDE} pixels); use --size")

    def open_data(seed: int) -> ClipDataset:
        return open_some_clips(args, frames, opened.size, opened.stride, seed, **opened.reading)

    clips = open_data(args.seed)
    report = Report(args.model, str(args.checkpoint), args.data, frames, opened.stride, height, width)
    report.excluded_frames, report.repetitions = opened.subject.context, args.repetitions
    report.scores = evaluate(opened.subject, open_data, protocol)
    report.details = {
        "command": args.command,
        **checkpoint_facts(args.checkpoint),
        "data_fingerprint": clips.fingerprint(),
        "clips": len(clips),
        "windows": clips.windows,
        "reading": clips.reading,
        "split": args.split,
        "device": str(protocol.device),
        "processes": distributed.world_size(),
        **protocol.facts(),
        **opened.subject.facts(),
    }
    return report


def open_some_clips(
    args: argparse.Namespace, frames: int, size: tuple[int, int], stride: int, seed: int, **reading: object
) -> ClipDataset:
    """`num_clips` clips of the data, one per video, evenly spread over its videos; all where there are no more."""
    clips = open_clips(args.data, frames, size, stride, args.split, seed, **reading)
    if not 0 < args.num_clips < len(clips):
        return clips
    return open_clips(args.data, frames, size, stride, args.split, seed, total_videos=args.num_clips, **reading)


def add_videos_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the comparison of files."""
    parser.add_argument("originals", type=Path, help="video, or folder of videos")
    parser.add_argument("predictions", type=Path, help="the same, with the same names (but for fvd alone)")
    parser.add_argument("--window", type=int, default=0, help="frames from one window border to the next, for boundary")
    parser.add_argument("--context", type=int, default=0, help="given frames at the start, not scored")
    group = parser.add_argument_group("clips for FVD and FID (the other metrics are of whole videos)")
    group.add_argument("--frames", type=int, default=16, help="per clip")
    group.add_argument("--stride", type=int, default=1, help="frames from one frame of a clip to the next")
    group.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("H", "W"), help="of the frames")
    group.add_argument("--num_clips", type=int, default=0, help="evenly spread over each folder; 0: all")


def evaluate_videos(args: argparse.Namespace) -> Report:
    """Compare the files."""
    return score_folders(
        args.originals, args.predictions, tuple(args.metrics), window=args.window, context=args.context,
        lpips=lpips_of(args), lpips_weights=args.lpips_weights,
        frames=args.frames, stride=args.stride, size=tuple(args.size), num_clips=args.num_clips,
        protocol=Protocol(
            metrics=tuple(args.metrics), seed=args.seed, extractor=args.extractor, fvd_weights=args.fvd_weights,
            fid_weights=args.fid_weights,
            download=args.download, allow_random_features=args.allow_random_features, force=args.force,
            device=resolve_device(args.device),
        ),
    )  # fmt: skip


def lpips_of(args: argparse.Namespace) -> str | None:
    """The network of LPIPS that the flags ask for."""
    wanted = args.lpips or ("alex" if "lpips" in args.metrics else None)
    return RANDOM if wanted and args.allow_random_features else wanted


def build_parser() -> argparse.ArgumentParser:
    """One sub-command per model, and one for files."""
    parser = make_parser(__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="model", required=True)
    shown = {"formatter_class": HelpFormatter}
    for name, model in MODELS.items():
        command = commands.add_parser(name, help=model.summary, **shown)
        add_model_arguments(command)
        model.add_arguments(command)
        known = (*PAIRED_METRICS, "fvd", "fid", "diversity", "boundary", "kl", "codebook", "bits")
        add_metric_arguments(command, known, model.metrics)
    command = commands.add_parser("videos", help="videos against their originals, or two sets of videos", **shown)
    add_videos_arguments(command)
    add_metric_arguments(command, FOLDER_METRICS, ("psnr", "ssim", "brightness"))
    return parser


def main(argv: list[str] | None = None) -> None:
    """Evaluate, print the table, write the JSON file."""
    args = build_parser().parse_args(argv)
    args.command = shlex.join(["python", "scripts/evaluate.py", *(sys.argv[1:] if argv is None else argv)])
    report = evaluate_videos(args) if args.model == "videos" else evaluate_model(args)
    if distributed.is_main():
        path = report.write(args.output)  # first: whoever reads the table may leave
        print(f"{report.table()}\n\nwritten to {path}")


if __name__ == "__main__":
    run(main)
