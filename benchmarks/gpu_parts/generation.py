"""What it costs to sample codes with the latent video transformer and frames with RIVER, and to encode and decode."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.flow_pred import CONTEXT, FRAMES, RIVER_SETTINGS, make_recipe
from benchmarks.gpu_parts.measure import GIB, Contestant, Job, free_memory, one_line, race, tf32, wait
from benchmarks.gpu_parts.steps import CONFIGS
from benchmarks.vvae import published_model, straightforward
from flow_pred.config import load_config as load_flow_config
from flow_pred.latents import at_rest, decode_clip
from flow_pred.river import RiverPredictor
from lvt import config as lvt_config
from lvt.codes import encode_codes
from lvt.files import build_transformer, load_sampler_tokenizer
from lvt.generate import generate_codes
from lvt.transformer import VideoTransformer
from tokenizer3d import Tokenizer3D
from training import open_pretrained
from training.config import load_config
from videodata import open_clips
from vvae.train import build_recipe as build_vvae

BATCHES = (1, 8, 64)
TRAINED, CLIPS = "lvt-digits", "digits:4000,frames=16,size=32,colour=1"
Codes = Callable[[int], Tensor]  # batch -> codes (B, C, T, h, w) whose first frames are given


class Pace:
    """Positions per second of a sampler, from what it says of its progress, without the first quarter: there things
    are compiled and memory is found.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.begun, self.started = device, time.perf_counter(), None
        self.calls = 0

    def __call__(self, done: int, total: int) -> None:
        self.calls += 1
        if self.started is None and done >= total / 4:
            wait(self.device)
            self.started, self.from_here, self.calls = time.perf_counter(), total - done, 0
            self.first = self.started - self.begun

    def row(self, batch: int) -> dict[str, Any]:
        """Of a sampling that has just ended."""
        wait(self.device)
        seconds = (time.perf_counter() - self.started) / self.from_here
        return {
            "seconds per position": seconds,
            "positions per second": batch / seconds,  # of all clips together
            "positions per call": self.from_here / self.calls,
            "seconds of the first quarter": self.first,
        }


def transformers(job: Job) -> Iterator[tuple[str, VideoTransformer, Codes, int]]:
    """(name, model, codes, given frames): the published size with random weights, and a small trained one, of which
    alone the guesses of predictive sampling say something.
    """
    device = job.device
    name, clip = ("VT_tiny", (16, 8, 8)) if job.small else ("DSFVT", (16, 16, 16))
    model = build_transformer(lvt_config.load_config(CONFIGS / "lvt" / f"{name}.yaml")).to(device).eval()
    size = model.config.nc, *clip
    yield name, model, lambda batch: torch.randint(model.config.nv, (batch, *size), device=device), 14
    trained, config = open_pretrained(TRAINED, device)
    tokenizer = load_sampler_tokenizer(config, device)
    films = open_clips(CLIPS, config["INPUT"]["N_FRAMES_PER_VIDEO_TEST"], config["INPUT"]["SIZE"], split="val")
    given = 14 if job.small else config["TEST"]["VT_SAMPLER"]["N_PRIME"]

    def codes(batch: int) -> Tensor:
        return encode_codes(tokenizer, torch.stack([films[index] for index in range(batch)]).to(device))

    yield TRAINED, trained, codes, given


def recomputed(model: VideoTransformer, codes: Tensor, positions: int = 4) -> float:
    """Seconds of a position the original's way, for one clip: the decoder over the whole slice for each position."""
    device, times = codes.device, []
    index = torch.tensor([model.config.n_slices - 1], device=device)
    context, slice_codes = model.slice_inputs(codes[:1], index)
    encoded, head = model.encoder(context, index), model.ch_predictor
    for position in range(positions):
        wait(device)
        start = time.perf_counter()
        features = head.layer_norm(model.decoder(slice_codes, encoded).flatten(1, 3)[:, position])
        chosen = slice_codes.flatten(2)
        for k, table in enumerate(model.decoder.ch_embedder):
            logits = head.logits(k, head.hidden(k, features, chosen[:, :, position]), table.weight)
            chosen[:, k, position] = logits.argmax(-1)
        wait(device)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def sampling_ways() -> dict[str, dict[str, Any]]:
    """Options of `generate_codes` for one position after the other, and for windows of guesses where it has them."""
    if "at_once" not in inspect.signature(generate_codes).parameters:
        return {"cached": {}}
    return {"cached": {"at_once": 1}, "cached, predictive": {"at_once": None}}


@torch.no_grad()
def lvt_sampling(job: Job) -> Iterator[dict]:
    """Every way of sampling at every batch, one clip the original's way first."""
    for name, model, codes, given in transformers(job):
        before = recomputed(model, codes(1))
        yield {"what": name, "way": "recomputed", "batch": 1, "seconds per position": before,
               "positions per second": 1 / before, "times as fast": 1.0}  # fmt: skip
        for way, options in sampling_ways().items():
            for batch in BATCHES[: 1 if job.small else None]:
                yield sampled(job, name, way, model, codes, given, batch, before, options)


@torch.no_grad()
def lvt_graphs(job: Job) -> Iterator[dict]:
    """One position after the other with the step as a CUDA graph; on a CPU the mode compiles as usual."""
    counters = torch._dynamo.utils.counters
    for name, model, codes, given in transformers(job):
        before = recomputed(model, codes(1))
        for batch in BATCHES[: 1 if job.small else None]:
            counters.clear()
            torch.compiler.reset()
            options = {**sampling_ways()["cached"], "compiled": True}
            with patch.object(torch, "compile", partial(torch.compile, mode="reduce-overhead")):
                row = sampled(job, name, "cached, CUDA graphs", model, codes, given, batch, before, options)
            if skipped := counters["inductor"]["cudagraph_skips"]:
                row["note"] = f"torch left out {skipped} CUDA graphs"
            yield row


def sampled(
    job: Job, name: str, way: str, model: VideoTransformer, codes: Codes, given: int, batch: int, before: float,
    options: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """A line of the table. Sampling a second time would compile a second time, hence the pace of one."""
    row, device = {"what": name, "way": way, "batch": batch}, job.device
    try:
        known = codes(batch)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        pace = Pace(device)
        with tf32(True):
            generate_codes(model, known, given, seeds=range(batch), progress=pace, **options)
            row |= pace.row(batch)
        row["times as fast"] = before * row["positions per second"]
        if device.type == "cuda":
            row["peak GiB"] = torch.cuda.max_memory_allocated(device) / GIB
    except Exception as error:  # noqa: BLE001 - the next batch may fit
        row["problem"] = one_line(error)
    free_memory(device)
    return row


@torch.no_grad()
def river(job: Job) -> Iterator[dict]:
    """A predicted frame, with its decoding, by the original's solver and by ours."""
    device = job.device
    config, _ = load_flow_config(CONFIGS / "flow_pred" / f"{'shapes_river_tiny' if job.small else 'kth_river'}.yaml")
    recipe, shape = make_recipe(config, "river"), config.model.vector_field_regressor
    network, model = recipe.networks["regressor"], config.model
    predictor = RiverPredictor(network, recipe.latent_space, model.sigma, model.prediction).to(device).eval()
    chosen = {name: RIVER_SETTINGS[name] for name in list(RIVER_SETTINGS)[3 if job.small else 0 :]}
    for batch in (1,) if job.small else (1, 16):
        context = torch.randn(batch, CONTEXT, shape.state_size, *shape.state_res, device=device)

        def call(sample: Callable, half: bool, context: Tensor = context) -> None:
            with at_rest(predictor), torch.autocast(device.type, torch.bfloat16, enabled=half):
                decode_clip(predictor.autoencoder, sample(predictor, context)[:, CONTEXT:].float())

        contestants = [Contestant(name, partial(call, sample, False)) for name, sample in chosen.items()]
        last = list(chosen)[-1]
        contestants.append(Contestant(f"{last}, bf16", partial(call, chosen[last], True), "bf16"))
        race(contestants, job)
        for contestant in contestants:
            yield contestant.row(f"RIVER, batch {batch}", "frame", FRAMES * batch, contestants[0])


def vvae_model(small: bool) -> nn.Module:
    """VideoVAE+ at its published width, or a tiny one."""
    if not small:
        return published_model()
    config = load_config(CONFIGS / "vvae" / "tiny.yaml")
    return build_vvae({**config, "engine": {}}).networks["autoencoder"].eval().requires_grad_(False)


def tokenizer3d_model(small: bool) -> nn.Module:
    """The 3-D tokenizer, published or tiny."""
    config: Any = "vidtok_kl_causal_488_4chn"
    if small:
        config = load_config(CONFIGS / "tokenizer3d" / "tiny_kl.yaml")["model"]
    return Tokenizer3D.from_config(config).eval().requires_grad_(False)


def codecs(job: Job) -> Iterator[dict]:
    """Encoding and decoding of a clip of 16 frames, or 17 where the first frame has a latent of its own."""
    device, size = job.device, 16 if job.small else 256
    models = {"VideoVAE+": (vvae_model, 16), "3-D tokenizer": (tokenizer3d_model, 17)}
    for name, (build, frames) in models.items():
        exact = build(job.small).to(device)
        half = deepcopy(exact).to(torch.bfloat16)
        clip = torch.rand(1, 3, frames, size, size, device=device) * 2 - 1
        with torch.inference_mode():
            latent = exact.encode(clip).mode()
        for what, value in (("encode", clip), ("decode", latent)):

            def call(model: nn.Module, setting: Callable, what: str = what, value: Tensor = value) -> None:
                with setting(), torch.inference_mode():
                    getattr(model, what)(value.to(next(model.parameters()).dtype))

            contestants = [
                Contestant("fp32", partial(call, exact, nullcontext), "fp32"),
                Contestant("tf32", partial(call, exact, nullcontext), "tf32"),
                Contestant("bf16", partial(call, half, nullcontext), "bf16"),
            ]
            if name == "VideoVAE+":
                contestants.insert(0, Contestant("usual layers", partial(call, exact, straightforward), "tf32"))
            race(contestants, job)
            for contestant in contestants:
                yield contestant.row(f"{name}, {what} {frames}x{size}x{size}", "clip", 1, contestants[0])
        del exact, half, contestants
        free_memory(device)
