"""Score a trained model, or two folders of videos: a table on the screen, a JSON file with the whole protocol.

python scripts/evaluate.py MODEL --checkpoint RUN --data CLIPS --metrics psnr ssim fvd
python scripts/evaluate.py videos ORIGINALS PREDICTIONS
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from evaluation.protocol import FOLDER_METRICS, Chosen, add_metric_arguments, add_protocol_arguments, protocol_from
from training.cli import (
    HelpFormatter,
    command_line,
    make_parser,
    nonnegative_int,
    positive_int,
    run,
    says_when_stopped,
    seed_number,
)

# Folders whose evaluate.py has add_arguments(parser), open_subject(args) -> Subject, and a docstring that says what is
# scored. It is imported for --help, and so without torch.
MODELS = ("video_vae", "vqgan", "lvt", "vvae", "tokenizer3d", "flow_pred")
ALIASES = {"river": "flow_pred", "neural_sde": "flow_pred"}  # what papers call the models of a folder


def build_parser() -> argparse.ArgumentParser:
    """One sub-command per model, and one for files."""
    parser = make_parser(__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="model", required=True)
    for name in MODELS:
        model = import_module(f"{name}.evaluate")
        others = [alias for alias, folder in ALIASES.items() if folder == name]
        summary = model.__doc__.splitlines()[0]
        command = commands.add_parser(name, help=summary, formatter_class=HelpFormatter, aliases=others)
        add_model_arguments(command)
        model.add_arguments(command)
        add_metric_arguments(command)
        add_protocol_arguments(command)
    summary = "videos against their originals, or two sets of videos"
    command = commands.add_parser("videos", help=summary, formatter_class=HelpFormatter)
    add_videos_arguments(command)
    add_metric_arguments(command, FOLDER_METRICS, ("psnr", "ssim", "brightness"))
    for command in dict.fromkeys(commands.choices.values()):  # some have several names
        command.add_argument("--seed", type=seed_number, default=0, help="of the windows and of the model's noise")
        command.add_argument(
            "--out", "--output", type=Path,
            help="the JSON file (default: evaluation.json in the run folder of --checkpoint, else here; beside a "
            "result of another protocol evaluation_2.json, ...)",
        )  # fmt: skip
        command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of every model's sub-command."""
    parser.add_argument("--checkpoint", required=True, help="run folder, weight file, or a name of weights/")
    parser.add_argument("--data", required=True, help="any source of clips: .npy, folder of videos, shapes:<n>, ...")
    parser.add_argument(
        "--split",
        choices=("train", "val", "test", "all"),
        help="part of --data (default: test where the data declares one, else val)",
    )
    parser.add_argument("--num_clips", type=nonnegative_int, default=64, help="evenly spread over the split; 0: all")
    parser.add_argument("--frames", type=positive_int, help="per clip, given ones included (default: as in training)")
    parser.add_argument("--stride", type=positive_int, help="frames from one to the next (default: as in training)")
    parser.add_argument("--batch_size", type=positive_int, default=4, help="clips at a time; changes no result")
    parser.add_argument(
        "--clips_dir", type=Path, metavar="DIR", help="gets some clips as videos: original, made, and baselines"
    )
    parser.add_argument("--clips_shown", type=positive_int, default=4, help="how many clips --clips_dir gets")


def add_videos_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the comparison of files."""
    parser.add_argument("originals", type=Path, help="video, or folder of videos")
    parser.add_argument("predictions", type=Path, help="the same, with the same names (but for fvd alone)")
    parser.add_argument(
        "--window", type=nonnegative_int, default=0, help="frames from one window border to the next, for boundary"
    )
    parser.add_argument("--context", type=nonnegative_int, default=0, help="given frames at the start, not scored")
    group = parser.add_argument_group("clips of distances between sets (the other metrics are of whole videos)")
    group.add_argument("--unequal_sets", action="store_true", help="the folders may hold different numbers of videos")
    group.add_argument("--frames", type=positive_int, default=16, help="per clip")
    group.add_argument("--stride", type=positive_int, default=1, help="frames from one frame of a clip to the next")
    group.add_argument("--size", type=positive_int, nargs=2, default=(224, 224), metavar=("H", "W"), help="of frames")
    group.add_argument("--num_clips", type=nonnegative_int, default=0, help="evenly spread over each folder; 0: all")


def main(argv: list[str] | None = None) -> None:
    """Evaluate, print the table, write the JSON file."""
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    args = parser.parse_args(argv)
    chosen = Chosen.of(args, parser, argv)
    args.model = ALIASES.get(args.model, args.model)
    kept = "goes on after the batches that are kept beside the result" if args.model != "videos" else "begins anew"
    with says_when_stopped(f"the same command {kept}"):
        score(args, chosen, command_line(["python", "scripts/evaluate.py", *argv]))


def score(args: argparse.Namespace, chosen: Chosen, command: str) -> None:
    """What the flags ask for."""
    from evaluation.report import beside_others, default_place
    from evaluation.runner import Source, evaluate_model  # here, after --help: torch takes seconds to import
    from evaluation.videos import score_folders
    from training import distributed
    from training.pretrained import source_of
    from training.writing import check_place

    device = distributed.announced(distributed.join_processes(args.device))
    model = source_of(args.checkpoint) if args.model != "videos" else None
    out = args.out or default_place(model)
    if distributed.is_main():
        check_place(out)  # now, and not after the work
    if args.model == "videos":
        protocol = protocol_from(args, (), device)
        report = score_folders(
            args.originals, args.predictions, protocol, window=args.window, context=args.context, frames=args.frames,
            stride=args.stride, size=tuple(args.size), num_clips=args.num_clips,
        )  # fmt: skip
    else:
        subject = import_module(f"{args.model}.evaluate").open_subject(args)
        report = evaluate_model(
            args.model, subject, Source(args.data, args.split, args.num_clips, args.windows, args.replacement),
            protocol_from(args, subject.metrics, device), command, model, args.clips_dir, args.clips_shown,
            chosen, out,
        )  # fmt: skip
    if distributed.is_main():
        path = args.out or beside_others(out, report.replaces)
        report.deliver(path)
        print(f"\nwritten to {path}")
        if args.model != "videos" and args.clips_dir:
            command = command_line(["python", "scripts/gallery.py", str(args.clips_dir)])
            print(f"clips in {args.clips_dir}; side by side on a page: {command}")
        if report.clips_trained_on:
            print(report.note, file=sys.stderr)


if __name__ == "__main__":
    run(main)
