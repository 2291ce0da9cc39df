"""The VQGAN against the original's way: quality after the same number of steps, time and memory of a step.

    python benchmarks/vqgan.py                 time and memory, 80x80, batch 2, both stages
    python benchmarks/vqgan.py --learning      PSNR after 600 steps on moving shapes at 32x32, three seeds

Each measurement runs in a process of its own, on one thread. Ratios first.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python benchmarks/...` finds the packages

import numpy as np
import torch
from torch import Tensor

from benchmarks.vqgan_original import Attention, OriginalTraining
from evaluation.codebook_usage import CodebookUsage
from training.cli import make_parser, run
from training.randomness import SampleNoise
from training.recipe import Step
from videodata.shapes import Shapes
from vqgan import VQGAN, Discriminator
from vqgan.config import OPTIMIZERS, Objective
from vqgan.train import AdversarialRecipe, ReconstructionRecipe

DIMS, LATENT, CODES = (16, 32, 64, 128), 8, 128
OURS, ORIGINAL = "ours", "original"


class OurTraining:
    """Our recipes with the loop's own order of phases, on one process."""

    def __init__(self, stage: int, factor: int, seed: int = 0, **objective: Any) -> None:
        torch.manual_seed(seed)
        model = VQGAN(DIMS, LATENT, CODES, factor)
        chosen = Objective(perceptual_weight=0.0, **{"adv_weight": 0.05, "disc_ramp": 0, **objective})
        if stage == 1:
            self.recipe = ReconstructionRecipe(model, chosen)
        else:
            self.recipe = AdversarialRecipe(model, Discriminator(DIMS), chosen)
        self.model, self.index = model, 0

    def step(self, frames: Tensor) -> None:
        """One step on frames (N, 3, H, W) in [-1, 1]."""
        step = Step(self.index, 1, SampleNoise(0, range(len(frames))), frames.device)
        items = self.recipe.losses(frames, step)
        optimizers = self.recipe.optimizers.values()
        owned = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]
        for mine in owned:
            for others in owned:
                for parameter in others:
                    parameter.requires_grad_(others is mine)
            next(items).total.backward()
        for optimizer, mine in zip(optimizers, owned, strict=True):
            torch.nn.utils.clip_grad_norm_(mine, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        self.index += 1


def measure_step(which: str, stage: int, steps: int) -> dict[str, float]:
    """Seconds of CPU per step (median) and peak memory in GB, at 80x80, batch 2, config test."""
    training = OurTraining(stage, 4, vq_warmup=1) if which == OURS else OriginalTraining(stage)
    frames = torch.rand(2, 3, 80, 80, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before, times = peak_memory(), []
    for index in range(steps + 1):
        start = time.process_time()
        training.step(frames)
        if index >= 1:
            times.append(time.process_time() - start)
    return {"seconds": statistics.median(times), "gigabytes": peak_memory() - before}


def peak_memory() -> float:
    """Largest resident set of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_learning(
    which: str, seed: int, steps: int, rate: float, optimizer: str, warmup: int, clips: Path | None
) -> dict[str, Any]:
    """PSNR in dB on half of the frames and codes in use, at four points of the training; stage 1, batch 4, 32x32."""
    frames = shapes_frames(clips)
    if which == OURS:
        training = OurTraining(1, 8, seed, lr=rate, optimizer=optimizer, vq_warmup=warmup, decay_ramp=2000)
    else:
        training = OriginalTraining(1, seed=seed)
        Attention.materialize = False  # the same numbers, sooner
    order = torch.Generator().manual_seed(seed)
    start, spent, points = time.process_time(), 0.0, []
    for step in range(1, steps + 1):
        training.step(frames[torch.randint(len(frames), (4,), generator=order)])
        if step % max(1, steps // 4) == 0:
            spent += time.process_time() - start
            points.append(assess(training.model, frames[::2], which))
            start = time.process_time()
    return {"points": points, "seconds": spent / steps}


def shapes_frames(clips: Path | None) -> Tensor:
    """128 frames (128, 3, 32, 32) in [-1, 1] of 16 moving-shapes videos, or those of `clips` in a .npz."""
    if clips is None:
        videos = Shapes(16, frames=8, size=32)
        pixels = torch.cat([torch.from_numpy(videos.read(index)) for index in range(16)])
    else:
        pixels = torch.from_numpy(np.load(clips, allow_pickle=False)["clips"]).flatten(0, 1)
    return pixels.movedim(-1, 1).float() / 127.5 - 1


@torch.no_grad()
def assess(model: torch.nn.Module, frames: Tensor, which: str) -> dict[str, float]:
    """PSNR over all pixels, codes in use and perplexity, in eval mode."""
    model.eval()
    if which == OURS:
        out = model(frames)
        reconstruction, indices = out.frames.clamp(-1, 1), out.indices
    else:
        reconstruction, indices, _ = model((frames + 1) / 2)
        reconstruction = reconstruction * 2 - 1
    model.train()
    error = ((reconstruction - frames) / 2).square().mean()
    usage = CodebookUsage(CODES).update(indices)
    return {"psnr": float(-10 * error.log10()), "used": usage.used, "perplexity": usage.perplexity}


def in_process(*arguments: object) -> dict[str, Any]:
    """Run this script with arguments in a fresh process; gives the JSON of its last line."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def report_steps(steps: int) -> None:
    """Print time and memory of both stages."""
    for stage in (1, 2):
        ours = in_process("--measure", OURS, "--stage", stage, "--steps", steps)
        original = in_process("--measure", ORIGINAL, "--stage", stage, "--steps", max(2, steps // 5))
        ratio = original["seconds"] / ours["seconds"]
        memory = original["gigabytes"] / ours["gigabytes"]
        print(f"stage {stage}: {ratio:.1f} times faster, {memory:.1f} times less memory than the original's way")
        for name, row in ((OURS, ours), (ORIGINAL, original)):
            print(f"  {name:9} {row['seconds']:.3f} s of CPU per step, peak {row['gigabytes']:.2f} GB above the start")


def report_learning(seeds: list[int], steps: int, rate: float, optimizer: str, warmup: int, clips: Path | None) -> None:
    """Print PSNR after the same number of steps."""
    finals: dict[str, list[float]] = {}
    lines = []
    for which in (OURS, ORIGINAL):
        for seed in seeds:
            flags = ["--seeds", seed, "--steps", steps, "--rate", rate]
            flags += ["--optimizer", optimizer, "--warmup", warmup]
            flags += ["--clips", clips] if clips else []
            row = in_process("--learning", "--measure", which, *flags)
            last = row["points"][-1]
            finals.setdefault(which, []).append(last["psnr"])
            curve = " / ".join(f"{point['psnr']:.2f}" for point in row["points"])
            used = f"{last['used']} of {CODES} codes, perplexity {last['perplexity']:.0f}"
            lines.append(f"  {which:9} seed {seed}: PSNR {curve} dB, {used}, {row['seconds']:.3f} s of CPU per step")
    medians = {which: statistics.median(values) for which, values in finals.items()}
    better = medians[OURS] - medians[ORIGINAL]
    print(f"after {steps} steps: {better:+.2f} dB (median {medians[OURS]:.2f} against {medians[ORIGINAL]:.2f})")
    print("\n".join(lines))


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser("Time, memory and learning of the VQGAN against the original's way.")
    parser.add_argument("--learning", action="store_true", help="compare PSNR after the same number of steps")
    parser.add_argument("--steps", type=int, help="steps per measurement (default: 10, learning: 600)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of --learning")
    parser.add_argument("--rate", type=float, default=3e-4, help="our learning rate; the original has its own 1e-4")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="ours; the original has Adam")
    parser.add_argument("--warmup", type=int, default=100, help="our steps without quantiser")
    parser.add_argument(
        "--clips", type=Path, help=".npz with clips uint8 (N, T, 32, 32, 3), in place of generated ones"
    )
    parser.add_argument("--measure", choices=(OURS, ORIGINAL), help="measure one variant here, print JSON")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1, help="stage for --measure")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    steps = args.steps or (600 if args.learning else 10)
    learning = (args.rate, args.optimizer, args.warmup, args.clips)
    if args.measure and args.learning:
        print(json.dumps(measure_learning(args.measure, args.seeds[0], steps, *learning)))
    elif args.measure:
        print(json.dumps(measure_step(args.measure, args.stage, steps)))
    elif args.learning:
        report_learning(args.seeds, steps, *learning)
    else:
        report_steps(steps)


if __name__ == "__main__":
    run(main)
