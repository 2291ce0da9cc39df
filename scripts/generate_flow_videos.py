"""Continue test videos with a trained predictor: generate_flow_videos.py --config-f F --config-d D --config-g G, or
--config RIVER. Without --ckpt-*, the run folder of the configuration is used. Under torchrun the processes share the
videos; the result is that of one process.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from PIL import Image

from evaluation.report import Report
from flow_pred.config import FlowPredConfig, parse_config, read_config
from flow_pred.evaluate import Scores
from flow_pred.files import load_neural_sde, load_river
from flow_pred.generate import CallCounter, Plan, predict
from flow_pred.generate_videos import FORMATS, open_h5, strip, write_clips
from flow_pred.neural_sde import NeuralSDE
from flow_pred.river import RiverPredictor
from training.cli import make_parser, run
from training.distributed import is_main, join_processes, print0
from videodata.clips import ClipDataset, open_clips
from videodata.errors import UserError

SOLVERS = ("euler", "heun", "midpoint", "rk4", "adaptive")


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser(__doc__)
    add_model_arguments(parser)
    add_data_arguments(parser)
    add_sampling_arguments(parser)
    add_output_arguments(parser)
    return parser


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("predictor")
    group.add_argument("--config", help="RIVER: its configuration")
    group.add_argument("--ckpt", help="RIVER: its run folder or file")
    for letter, what in (("f", "flow"), ("d", "denoiser"), ("g", "diffusion")):
        group.add_argument(f"--config-{letter}", help=f"neural SDE: configuration of the {what}")
        group.add_argument(f"--ckpt-{letter}", help=f"neural SDE: run folder or file of the {what}")
    group.add_argument("--vqvae-path", help="the autoencoder's checkpoint, in place of the one on record")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("videos")
    group.add_argument("--data", help="any source of videos (default: data.data_root of the configuration)")
    group.add_argument("--split", choices=("train", "val", "test"), default="test", help="part of the data")
    group.add_argument("--num-videos", type=int, default=16, help="evenly spread over the split; 0: all")
    group.add_argument("--batch-size", type=int, default=4, help="videos at a time; does not change the result")
    group.add_argument("--context", type=int, help="known frames (default: of the configuration)")
    group.add_argument("--frames", type=int, help="frames to predict (default: of the configuration)")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--solver", choices=SOLVERS, help="(default: midpoint for RIVER, euler for the neural SDE)")
    group.add_argument("--steps", type=int, help="solver steps per frame (default: 10 for RIVER, 2 for the neural SDE)")
    group.add_argument("--grid", choices=("uniform", "reference"), default="uniform", help="RIVER: steps are "
                       "intervals, or the grid points of the original with its 3/8 rule")  # fmt: skip
    group.add_argument("--atol", type=float, default=1e-2, help="tolerance of the adaptive solver")
    group.add_argument("--res", type=int, default=1, help="neural SDE: output frames per frame interval")
    group.add_argument("--alpha", type=float, default=1.0, help="neural SDE: weight of the denoiser")
    group.add_argument("--gscale", type=float, default=1.0, help="neural SDE: factor on the diffusion")
    group.add_argument("--past-horizon", type=int, help="RIVER: how many last frames may be looked back at; -1: all")
    group.add_argument("--warm-start", type=float, help="RIVER: start this far on the path, from the last frame")
    group.add_argument("--seed", type=int, default=42, help="of the windows and of the noise")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument("--out", type=Path, default=Path("generated_videos"), help="folder for all that is written")
    group.add_argument("--format", nargs="+", choices=FORMATS, default=["h5", "mp4"], help="what is written")
    group.add_argument("--fps", type=Fraction, help="of mp4 and gif (default: that of the data, else 3)")
    group.add_argument("--metrics", action="store_true", help="PSNR and SSIM of the predicted frames, and of baselines")
    group.add_argument("--lpips", choices=("alex", "vgg"), help="with --metrics: LPIPS too, with this network")
    group.add_argument("--lpips-weights", metavar="PATH", help="its weight file or folder (default: found by name)")


def load(args: argparse.Namespace) -> tuple[RiverPredictor | NeuralSDE, FlowPredConfig]:
    """The predictor, and the configuration of its first component."""
    device = join_processes(args.device)
    files = {letter: (getattr(args, f"ckpt_{letter}"), getattr(args, f"config_{letter}")) for letter in "fdg"}
    is_sde = any(value for pair in files.values() for value in pair)
    if is_sde == bool(args.config or args.ckpt):
        raise UserError("name either RIVER (--config or --ckpt) or the neural SDE (--config-f or --ckpt-f, and d, g)")
    if is_sde:
        predictor, part = load_neural_sde(files, device, args.vqvae_path, args.alpha, args.gscale)
    else:
        predictor, part = load_river(args.ckpt, args.config, device, args.vqvae_path)
    path = args.config_f if is_sde else args.config
    return predictor, read_config(path)[0] if path else parse_config(without_settings(part.config))


def without_settings(config: dict) -> dict:
    """The stored configuration of a run without what the training loop added to it."""
    known = ("num_observations", "batching", "optimizer", "condition_frames", "frames_to_generate", "loss_weights")
    training = {key: value for key, value in config["training"].items() if key in known}
    kept = {key: value for key, value in config.items() if key in ("name", "data", "model", "evaluation")}
    return {**kept, "training": training}


def make_plan(args: argparse.Namespace, predictor: RiverPredictor | NeuralSDE, config: FlowPredConfig) -> Plan:
    """What to predict and how; flags first, then the configuration. Raises UserError for flags of the other kind."""
    evaluation, training = config.evaluation, config.training
    context = args.context or evaluation.condition_frames or training.condition_frames
    frames = args.frames or evaluation.frames_to_generate or training.frames_to_generate
    if isinstance(predictor, RiverPredictor):
        if args.res != 1:
            raise UserError("--res is for the neural SDE; RIVER has no time between frames")
        horizon = evaluation.past_horizon if args.past_horizon is None else args.past_horizon
        warm = evaluation.warm_sampling if args.warm_start is None else args.warm_start
        options = {
            "grid": args.grid,
            "steps": args.steps or evaluation.steps,
            "method": args.solver,
            "past_horizon": horizon,
            "warm_start": warm,
        }
    else:
        if args.past_horizon is not None or args.warm_start is not None or args.grid != "uniform":
            raise UserError("--past-horizon, --warm-start and --grid are for RIVER")
        options = {"steps": args.steps or 2, "method": args.solver or "euler", "atol": args.atol}
        options["outputs_per_interval"] = args.res
    return Plan(context, frames, config.data.skip_frames + 1, args.res, args.seed, options)


def open_videos(args: argparse.Namespace, config: FlowPredConfig, plan: Plan) -> ClipDataset:
    """One fixed window of each video."""
    return open_clips(
        args.data or config.data.data_root,
        frames=plan.read_frames,
        size=config.data.crop_size,
        short_side=config.data.input_size,
        stride=plan.read_stride,
        split=args.split,
        seed=args.seed,
        total_videos=args.num_videos or None,
    )


def frame_rate(args: argparse.Namespace, clips: ClipDataset, plan: Plan) -> Fraction:
    """Frames per second of predicted whole frames."""
    known = clips.source.fps(0)
    return args.fps or (known / plan.stride if known else Fraction(3))


def generate(args: argparse.Namespace, predictor: RiverPredictor | NeuralSDE, clips: ClipDataset, plan: Plan) -> Scores:
    """Predict all clips and write them."""
    scores, counter, start = Scores(plan, args.lpips, args.lpips_weights), CallCounter(predictor), time.monotonic()
    device, fps = next(predictor.parameters()).device, frame_rate(args, clips, plan)
    others = [kind for kind in args.format if kind != "h5"]
    args.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        write_h5 = "h5" in args.format and is_main()
        h5 = stack.enter_context(open_h5(args.out / "videos.h5")) if write_h5 else None
        for prediction in predict(predictor, clips, plan, args.batch_size, device):
            if h5:
                h5.add(prediction)
            write_clips(args.out, prediction, plan, fps, others)
            if prediction.items[0] == 0:
                Image.fromarray(strip(prediction, plan)).save(args.out / "strip.png")
            if args.metrics:
                scores.update(prediction)
        drift, calls = (count / len(clips) / plan.frames for count in (counter.drift, counter.total))
        if h5:
            h5.finish(drift)
    seconds = time.monotonic() - start
    print0(f"{args.out}: {len(clips)} videos, {calls:.1f} network calls per frame, {seconds:.1f} s")
    return scores


def main(argv: list[str] | None = None) -> None:
    """Generate, write, score."""
    args = build_parser().parse_args(argv)
    predictor, config = load(args)
    plan = make_plan(args, predictor, config)
    if args.metrics and not plan.fine:
        raise UserError("--metrics needs the true frames in between: data.skip_frames + 1 must be a multiple of --res")
    clips = open_videos(args, config, plan)
    scores = generate(args, predictor, clips, plan)
    if args.metrics and is_main():
        size = config.data.crop_size
        report = Report("flow_pred", args.ckpt or args.ckpt_f or args.config or args.config_f, clips.source.path,
                        plan.context + plan.frames, plan.stride, size, size, excluded_frames=plan.context)  # fmt: skip
        report.scores = scores.scores()
        report.details = {
            "split": args.split,
            "seed": args.seed,
            "videos": len(clips),
            "res": plan.res,
            "context_frames": plan.context,
            "data_fingerprint": clips.fingerprint(),
            **plan.options,
        }
        report.write(args.out / "metrics.json")
        print(report.table())


if __name__ == "__main__":
    run(main)
