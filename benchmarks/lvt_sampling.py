"""How much faster the latent video transformer is sampled than position by position, and than the original's way.

Three ways to sample the same codes: the original recomputes the whole decoder for every position, one clip after the
other; one position after the other with caches; and windows of positions with caches, as `generate_codes` does. With
`--precision bf16`, weights and caches of the last two are in bfloat16.

A trained model (`--weights`) continues clips of moving digits, whole, one position after the other and in windows, in
turn; in fp32 both must give the same codes. It tells how many positions a call gets on, which random weights cannot.
Calls of the network of `--config-file`, with random weights, are measured in turn with the original's positions, at
places all over a slice, and scaled to whole clips: every slice has the same cost, and a call gets on as far as those of
the trained model did with the same window and batch. Times are CPU seconds of this process, medians.

    python benchmarks/lvt_sampling.py --config-file configs/lvt/DSFVT.yaml --batch 1 8
    python benchmarks/lvt_sampling.py --part trained --batch 1 4 --at_once 4 8 16
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from lvt import config as configuration
from lvt.codes import encode_codes
from lvt.files import build_transformer, load_sampler_tokenizer
from lvt.generate import in_precision
from lvt.predictive_sampler import PredictiveSampler, paying_window
from lvt.sampling import SamplingRule
from lvt.subscale import slice_size
from training.cli import make_parser, nonnegative_int, positive_float, positive_fraction, positive_int, run
from training.pretrained import open_pretrained
from training.step import HALF
from videodata import open_clips

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("original", "trained")
SPANS = 8  # parts of a slice with a median of their own


def seconds(work) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = make_parser("Compare ways to sample the latent video transformer.")
    add = parser.add_argument
    add("--part", choices=PARTS, nargs="+", default=PARTS,
        help="original: calls of the network of --config-file beside the original's way, needs what trained gives for "
        "windows of more than one position; trained: whole clips")  # fmt: skip
    add("--config-file", type=Path, default=ROOT / "configs/lvt/DSFVT.yaml", metavar="FILE")
    add("--weights", default="lvt-digits", help="the trained model")
    add("--data", default="digits:4000,frames=16,size=32,colour=1", help="of the trained model; its part val is used")
    add("--batch", type=positive_int, nargs="+", default=[1, 8], help="clips that are sampled at once")
    add("--at_once", type=positive_int, nargs="+", help="positions in a window (default: what pays for the batch)")
    add("--given", type=nonnegative_int, default=5, help="first frames that are given")
    add(
        "--clip",
        type=positive_int,
        nargs=3,
        default=(16, 16, 16),
        metavar=("T", "H", "W"),
        help="codes of --config-file",
    )
    add("--uncached", type=positive_int, default=5, help="positions measured the original's way")
    add("--places", type=positive_int, default=24, help="of a slice at which calls are measured")
    add("--rounds", type=positive_int, default=3, help="of the trained model, each with clips of its own")
    add("--temperature", type=positive_float, default=1.0)
    add("--top_p", type=positive_fraction, default=1.0)
    add("--slices", type=positive_int, default=1, help="passes over all places")
    add("--compile", action="store_true", help="compile the calls of both cached ways of --config-file")
    add(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of weights and caches; the original's way stays in fp32",
    )
    add("--threads", type=positive_int, default=1)
    return parser


def windows_of(args: argparse.Namespace, batch: int) -> list[int]:
    """Windows that are compared with one position after the other."""
    return args.at_once or [paying_window(batch, HALF.get(args.precision, torch.float32))]


def trained_part(args: argparse.Namespace) -> dict[tuple[int, int], float]:
    """Print a line for each batch and window; gives the positions that a call gets on, by (batch, window)."""
    model, config = open_pretrained(args.weights)
    model = in_precision(model, args.precision)
    tokenizer, frames = load_sampler_tokenizer(config, torch.device("cpu")), config["INPUT"]["N_FRAMES_PER_VIDEO_TEST"]
    given, rule = config["TEST"]["VT_SAMPLER"]["N_PRIME"], SamplingRule(args.temperature, top_p=args.top_p)
    videos = open_clips(args.data, frames, config["INPUT"]["SIZE"], split="val")
    reach: dict[tuple[int, int], float] = {}
    for batch in args.batch:
        windows = [1, *windows_of(args, batch)]
        spent, calls = {window: [] for window in windows}, {window: [] for window in windows}
        alike = {window: [] for window in windows}
        decisions, codes_made = 0, 0
        for number in range(args.rounds + 1):  # the first one touches all memory for the first time
            clips = torch.stack([videos[(number * batch + row) % len(videos)] for row in range(batch)])
            codes, made = encode_codes(tokenizer, clips), {}
            codes[:, :, given:] = 0
            for window in windows:
                seeds = range(number * batch, (number + 1) * batch)

                def work(window=window, codes=codes, made=made, seeds=seeds):
                    made[window] = PredictiveSampler(model, codes.clone(), given, rule, None, seeds, window=window)
                    made[window].run()

                spent[window].append(seconds(work))
                calls[window].append(made[window].calls)
                decisions, codes_made = decisions + made[window].decisions, codes_made + codes[:, :, given:].numel()
                alike[window].append((made[window].clips == made[1].clips)[:, :, given:].float().mean().item())
                if alike[window][-1] < 1 and args.precision == "fp32":
                    raise SystemExit(f"batch {batch}, windows of {window}: other codes than one after the other")
        plain = median(spent[1][1:])
        for window in windows[1:]:
            reach[batch, window] = mean(calls[1]) / mean(calls[window])
            own = median(spent[window][1:])
            ratio = median(one / many for one, many in zip(spent[1][1:], spent[window][1:], strict=True))
            print(
                f"{args.weights}, batch {batch}, windows of {window}: {ratio:.2f} times as fast as one position "
                f"after the other, {mean(alike[window]):.3f} of the codes the same; {reach[batch, window]:.2f} "
                f"positions per call; {own / batch * 1000:.0f} ms against {plain / batch * 1000:.0f} ms per clip"
            )
        if args.precision == "fp32":
            decided = f"the plain network decided {decisions} of {codes_made} codes"
            print(f"{args.weights}, batch {batch}: {decided}", flush=True)
    return reach


class Original:
    """Positions of the last slice the original's way: the decoder over the whole slice, then codebook by codebook."""

    def __init__(self, model, clip) -> None:
        self.model, self.codes = model, torch.randint(model.config.nv, (1, model.config.nc, *clip))
        self.index = torch.tensor([model.config.n_slices - 1])
        self.context, self.slice_codes = model.slice_inputs(self.codes, self.index)
        self.noise = torch.zeros(1, model.config.nv)
        self.encode()

    def encode(self) -> None:
        """The slice's encoder."""
        self.encoded = self.model.encoder(self.context, self.index)

    def sample(self, position: int) -> None:
        """One position."""
        features = self.model.decoder(self.slice_codes, self.encoded).flatten(1, 3)[:, position]  # (B, D)
        head, embedders, rule = self.model.ch_predictor, self.model.decoder.ch_embedder, SamplingRule()
        y, codes = head.layer_norm(features), self.slice_codes.flatten(2)
        for k in range(head.nc):
            logits = head.logits(k, head.hidden(k, y, codes[:, :, position]), embedders[k].weight)
            codes[:, k, position] = rule.choose(logits, self.noise)


class Cached:
    """Calls for a window of each of `batch` clips in the last slice, and what they took."""

    def __init__(self, model, clip, batch: int, window: int, compiled: bool) -> None:
        codes = torch.randint(model.config.nv, (batch, model.config.nc, *clip))
        self.sampler = PredictiveSampler(model, codes, 0, SamplingRule(), None, range(batch), compiled, window=window)
        self.batch, self.window, self.last = batch, window, model.config.n_slices - 1
        self.beginnings, self.calls = [], []

    def begin(self) -> None:
        """Encode the slice and draw its noise."""
        self.beginnings.append(seconds(lambda: self.sampler.begin(self.last, 0)))

    def call(self, share: float) -> None:
        """A call at this share of the slice; samples in windows are a few positions apart, as they come to be."""
        count = self.sampler.decoder.codes.shape[1]
        apart = 2 if self.window > 1 else 0
        positions = [min(int(share * count) + apart * row, count - 1) for row in range(self.batch)]
        self.calls.append(seconds(lambda: self.sampler.decoder.sample(positions, self.sampler.noise)))


def original_part(args: argparse.Namespace, reach: dict[tuple[int, int], float]) -> None:
    """Print a line for each batch and window."""
    clip, name = tuple(args.clip), args.config_file.stem
    model = build_transformer(configuration.load_config(args.config_file)).eval()
    size = slice_size(clip, model.config.stride)
    generated = (clip[0] - args.given) * clip[1] * clip[2]
    slices = -(-generated // (size[0] * size[1] * size[2])) if size[0] == 1 else model.config.n_slices
    original, found = Original(model, clip), {"encoder": [], "position": []}
    ways = [
        Cached(in_precision(model, args.precision), clip, batch, window, args.compile)
        for batch in args.batch for window in [1, *windows_of(args, batch)]
    ]  # fmt: skip
    for way in ways:
        for _ in range(2):  # the first one touches all memory for the first time
            way.begin()
        way.call(0.0)
        way.calls.clear()
    every = max(1, args.places // args.uncached)
    for place in range(args.places):
        share = (place + 0.5) / args.places
        if place % every == 0 and len(found["position"]) < args.uncached:
            position = int(share * size[0] * size[1] * size[2])
            found["encoder"].append(seconds(original.encode))
            found["position"].append(seconds(lambda position=position: original.sample(position)))
        for way in ways * args.slices:
            way.call(share)
    slow = median(found["position"]) * generated + median(found["encoder"]) * slices
    plain = {}
    for way in ways:
        # Later places have more to look at, so that a mean over medians of neighbours counts.
        near = -(-len(way.calls) // SPANS)
        call = mean(median(way.calls[start : start + near]) for start in range(0, len(way.calls), near))
        own = (call * generated / reach.get((way.batch, way.window), 1.0) + way.beginnings[-1] * slices) / way.batch
        plain.setdefault(way.batch, own)
        ahead = f", {plain[way.batch] / own:.2f} times one position after the other" if way.window > 1 else ""
        print(
            f"{name}, batch {way.batch}, windows of {way.window}: {slow / own:.1f} times as fast as the original's way"
            f"{ahead}; {call * 1000:.1f} ms per call, {own:.1f} s per clip"
        )
    print(
        f"{name}, the original's way: {median(found['position']):.4f} s per position, {slow:.0f} s per clip; "
        f"codes {clip}, {args.given} frames given, {generated} positions"
    )


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Print a line for each comparison, the ratio first."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    reach = trained_part(args) if "trained" in args.part else {}
    if "original" in args.part:
        if not reach and args.at_once != [1]:
            print("random weights guess as they like: without --part trained, windows count as a position per call")
        original_part(args, reach)
    print(
        f"{args.threads} thread(s), {args.precision}, CPU seconds, temperature {args.temperature:g}, "
        f"top-p {args.top_p:g}"
    )


if __name__ == "__main__":
    run(main)
