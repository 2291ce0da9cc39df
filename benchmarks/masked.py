"""How much faster masked parallel decoding is than the cached causal decoder, and how many calls of the network it
needs.

Both continue the same number of clips from random weights of their configurations, whole clips, one after the other in
the same run; the median of some rounds counts. A call is a pass of the decoder: over a few positions of every sample of
the causal one, over a whole slice of the masked one. Seconds are those of the processor, on a GPU those of the clock.

    python benchmarks/masked.py --batch 16 --passes 8 12 24
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from lvt import config as configuration
from lvt.files import build_transformer
from lvt.generate import generate_codes
from training.cli import make_parser, nonnegative_int, positive_int, run
from training.distributed import resolve_device

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "lvt"


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = make_parser("Compare masked parallel decoding with the cached causal decoder.")
    add = parser.add_argument
    add("--causal", type=Path, default=CONFIGS / "VT_tiny.yaml", metavar="FILE", help="configuration")
    add("--masked", type=Path, nargs="+", metavar="FILE", help="configurations",
        default=[CONFIGS / "VT_masked_tiny.yaml", CONFIGS / "VT_masked_frame_tiny.yaml"])  # fmt: skip
    add("--passes", type=positive_int, nargs="+", default=[8, 12, 24], help="of the masked decoder, for each slice")
    add("--batch", type=positive_int, default=16, help="clips that are sampled at once")
    add("--given", type=nonnegative_int, default=4, help="first frames that are given")
    add("--clip", type=positive_int, nargs=3, default=(16, 8, 8), metavar=("T", "H", "W"), help="codes")
    add("--rounds", type=positive_int, default=3)
    add("--threads", type=positive_int, default=1)
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of both samplers")
    add("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    return parser


class Contestant:
    """A model that continues clips, the seconds of its rounds, and the calls of its decoder in one of them."""

    def __init__(self, name: str, model: torch.nn.Module, codes: torch.Tensor, given: int) -> None:
        self.name, self.model, self.codes, self.given = name, model, codes, given
        self.seconds, self.calls = [], 0

    def sample(self) -> None:
        """A round."""
        self.calls = 0
        clock = time.perf_counter if self.codes.is_cuda else time.process_time
        start = clock()
        seeds = range(len(self.codes))
        generate_codes(self.model, self.codes, self.given, seeds=seeds, progress=self.count)
        self.seconds.append(clock() - start)

    def count(self, done: int, total: int) -> None:
        """What the sampler tells after each call."""
        self.calls += 1

    @property
    def per_clip(self) -> float:
        """Seconds per clip: the median of the rounds after the first, which touches all memory for the first time."""
        return median(self.seconds[1:]) / len(self.codes)


def main(argv: list[str] | None = None) -> None:
    """Print a line for each contestant."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device, contestants = resolve_device(args.device), []
    for file in (args.causal, *args.masked):
        model = build_transformer(configuration.load_config(file)).to(device).eval()
        codes = torch.randint(model.config.nv, (args.batch, model.config.nc, *args.clip), device=device)
        if model.config.decoder == "causal":
            contestants.append(Contestant(f"{file.stem}, causal, cached", model, codes, args.given))
            continue
        for passes in args.passes:
            settings = replace(model.config.masked, steps=passes)
            again = build_transformer(configuration.load_config(file)).to(device).eval()
            again.config = replace(again.config, masked=settings)
            contestants.append(Contestant(f"{file.stem}, {passes} passes", again, codes, args.given))
    with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
        for _ in range(args.rounds + 1):
            for contestant in contestants:
                contestant.sample()
    base = contestants[0]
    for own in contestants:
        print(
            f"{own.name}: {own.calls} calls, {base.calls / own.calls:.1f} times fewer; "
            f"{own.per_clip * 1000:.1f} ms per clip, {base.per_clip / own.per_clip:.2f} times as fast"
        )
    kind = "seconds of the clock" if device.type == "cuda" else f"CPU seconds, {args.threads} thread(s)"
    print(f"codes {tuple(args.clip)}, {args.given} frames given, batch {args.batch}, {args.precision}, {kind}")


if __name__ == "__main__":
    run(main)
