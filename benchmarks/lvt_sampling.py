"""How much faster cached, batched sampling of the latent video transformer is than the original's way.

The original recomputes the whole decoder for every position and samples one clip after the other. Both samplers use
the same weights. Times are CPU seconds of this process on one thread; a part of the positions is measured (the rest
would cost minutes) and scaled to the whole clip: every slice has the same cost, so the last one stands for all. Both
sides are medians, the cached one's over eighths of the slice, because later positions have more to attend to.

    python benchmarks/lvt_sampling.py --config-file configs/lvt/DSFVT.yaml --batch 1 8
"""

import argparse
import sys
import time
from math import prod
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from lvt import config as configuration
from lvt.cached_decoder import SampleStreams, SamplingRule
from lvt.files import build_transformer
from lvt.generate import ClipSampler
from lvt.subscale import slice_size
from training.cli import make_parser, run

ROOT = Path(__file__).resolve().parent.parent
SPANS = 8  # parts of a slice with a median of their own


class Stopwatch:
    """CPU seconds of a block."""

    def __enter__(self):
        self.start = time.process_time()
        return self

    def __exit__(self, *_):
        self.seconds = time.process_time() - self.start


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = make_parser("Compare cached sampling with recomputing the decoder for every position.")
    parser.add_argument("--config-file", type=Path, default=ROOT / "configs/lvt/DSFVT.yaml", metavar="FILE")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="clips that are sampled at once")
    parser.add_argument("--given", type=int, default=5, help="first frames that are given")
    parser.add_argument("--clip", type=int, nargs=3, default=(16, 16, 16), metavar=("T", "H", "W"), help="codes")
    parser.add_argument("--uncached", type=int, default=5, help="positions measured without cache")
    parser.add_argument("--slices", type=int, default=1, help="slices measured with cache")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compile the cached step")
    return parser


def uncached_position(model, slice_codes, encoded, position: int, uniform) -> None:
    """One position the original's way: the decoder over the whole slice, then the codebooks one after the other."""
    features = model.decoder(slice_codes, encoded).flatten(1, 3)[:, position]  # (B, D)
    head, embedders, rule = model.ch_predictor, model.decoder.ch_embedder, SamplingRule()
    y, codes = head.layer_norm(features), slice_codes.flatten(2)
    for k in range(head.nc):
        logits = head.logits(k, head.hidden(k, y, codes[:, :, position]), embedders[k].weight)
        codes[:, k, position] = rule.choose(logits, uniform[:, k])


def measure_uncached(model, clip, positions: int) -> tuple[float, float]:
    """Median CPU seconds of a position and of a slice's encoder, for one clip."""
    codes = torch.randint(model.config.nv, (1, model.config.nc, *clip))
    index = torch.tensor([model.config.n_slices - 1])
    context, slice_codes = model.slice_inputs(codes, index)
    encoder, steps = [], []
    for _ in range(3):
        with Stopwatch() as watch:
            encoded = model.encoder(context, index)
        encoder.append(watch.seconds)
    uniform = torch.rand(1, model.config.nc)
    for position in range(positions + 1):
        with Stopwatch() as watch:
            uncached_position(model, slice_codes, encoded, position, uniform)
        steps.append(watch.seconds)
    return median(steps[1:]), median(encoder)


def measure_cached(sampler: ClipSampler, slices: int) -> tuple[float, float]:
    """CPU seconds of a position, and of beginning a slice (encoder and known frames), for the sampler's batch."""
    _, height, width = sampler.size
    uniform = SampleStreams(range(len(sampler.clips))).uniform(prod(sampler.size), sampler.clips.shape[1])
    begin, spans = [], [[] for _ in range(SPANS)]
    last = sampler.model.config.n_slices - 1
    for number in [last] * (slices + 1):  # the first one touches all memory for the first time, and compiles
        known = sampler.known_frames(number)
        with Stopwatch() as watch:
            sampler.begin(number, known)
        begin.append(watch.seconds)
        first, end = known * height * width, prod(sampler.size)
        for position in range(first, end if len(begin) > 1 else first + 2):
            with Stopwatch() as watch:
                sampler.decoder.sample(position, uniform[:, position])
            if len(begin) > 1:
                spans[(position - first) * SPANS // (end - first)].append(watch.seconds)
    return mean(median(span) for span in spans), median(begin[1:])


def main(argv: list[str] | None = None) -> None:
    """Print the ratios first, then where they come from."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    clip = tuple(args.clip)
    model = build_transformer(configuration.load(args.config_file)).eval()
    size = slice_size(clip, model.config.stride)
    generated = (clip[0] - args.given) * clip[1] * clip[2]
    slices = -(-generated // prod(size)) if size[0] == 1 else model.config.n_slices
    with torch.no_grad():
        position, encoder = measure_uncached(model, clip, args.uncached)
        uncached = position * generated + encoder * slices
        lines = [f"uncached, one clip: {position:.4f} s per position, {uncached:.0f} s per clip"]
        ratios = []
        for batch in args.batch:
            codes = torch.randint(model.config.nv, (batch, model.config.nc, *clip))
            sampler = ClipSampler(model, codes, args.given, SamplingRule(), None, args.compile)
            cached_position, begin = measure_cached(sampler, args.slices)
            cached = (cached_position * generated + begin * slices) / batch
            ratios.append(f"batch {batch}: {uncached / cached:.1f}x per clip")
            lines.append(
                f"cached, batch {batch}: {cached_position * 1000:.2f} ms per position, {begin:.2f} s per slice, "
                f"{cached:.1f} s per clip"
            )
    print(f"{args.config_file.stem} {', '.join(ratios)}")
    print("\n".join(lines))
    print(f"codes {clip}, {args.given} frames given, {generated} positions, {args.threads} thread(s), CPU seconds")


if __name__ == "__main__":
    run(main)
