"""How scripts/evaluate.py scores a video VAE: its reconstructions with the bits of their latents, or prior samples."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import training
from evaluation.subject import Batch, Subject
from training.cli import nonnegative_float, positive_int

if TYPE_CHECKING:  # the help of evaluate.py does not wait for torch
    from torch import Tensor

    from evaluation.report import Score
    from video_vae.model import TransformerNetwork


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate.py video_vae` beside those of every model."""
    parser.add_argument(
        "--size", type=positive_int, nargs=2, metavar=("H", "W"), help="of the frames (default: as in training)"
    )
    parser.add_argument("--mean_latents", action="store_true", help="the posterior's means in place of draws from it")
    parser.add_argument("--generate", action="store_true", help="clips from the prior in place of reconstructions")
    parser.add_argument("--temperature", type=nonnegative_float, default=1.0, help="with --generate: of the prior")


def open_subject(args: argparse.Namespace) -> Subject:
    """The model of --checkpoint, ready to be scored on clips like those of its training. Raises UserError."""
    from training.distributed import resolve_device
    from video_vae.files import load_network

    network, config = load_network(args.checkpoint, resolve_device(args.device))
    subject = Samples(network, args.temperature) if args.generate else Reconstructions(network, args.mean_latents)
    subject.runs = (args.checkpoint,)
    if Path(args.checkpoint).suffix == ".pth":  # lies outside of the run folder that says what it was trained on
        subject.runs += (config.get("engine", {}).get("run_dir", "."),)
    data = config["data"]
    return subject.made_for(
        args.frames or data["frames"], args.size or network.config.image_size, args.stride or data["stride"]
    )


class Reconstructions(Subject):
    """Clips through the latents and back; latents are drawn from the posterior, unless `mean_latents`."""

    metrics = ("psnr", "ssim", "kl")
    own_metrics = ("kl",)

    def __init__(self, network: TransformerNetwork, mean_latents: bool = False) -> None:
        self.network, self.mean_latents, self.random = network, mean_latents, not mean_latents
        self._bits: list[dict[str, list[float]]] = []

    def make(self, batch: Batch) -> Tensor:
        device = self.network.canvas.device
        noise = None if self.mean_latents else training.SampleNoise(batch.seed, batch.items, device)
        reconstruction, terms = self.network(batch.clips.to(device), noise)
        if batch.sample == 0:
            self._bits.append({name: values.tolist() for name, values in kl_bits(terms).items()})
        return reconstruction.cpu()

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        from evaluation.metrics import mean_frame

        return {"of the mean frame": mean_frame(clips)}

    def own_scores(self) -> dict[str, list[Score]]:
        from evaluation.paired import merge_dicts
        from evaluation.report import Score
        from training.distributed import gather_batches

        merged, self._bits = merge_dicts(gather_batches(self._bits)), []
        scores = []
        for name, batches in merged.items():  # kl_bits_1, ..., kl_bits
            label = "total" if name == "kl_bits" else name.replace("kl_bits_", "level ")
            scores.append(Score("kl-bits", [value for batch in batches for value in batch], label=label))
        return {"kl": scores}

    def facts(self) -> dict[str, Any]:
        return {"latents": "means of the posterior" if self.mean_latents else "drawn from the posterior"}


class Samples(Subject):
    """Clips from the prior, of the length and size of those they are compared with."""

    paired, random = False, True
    metrics = ("fvd",)

    def __init__(self, network: TransformerNetwork, temperature: float = 1.0) -> None:
        self.network, self.temperature = network, temperature

    def make(self, batch: Batch) -> Tensor:
        noise = training.SampleNoise(batch.seed, batch.items, self.network.canvas.device)
        frames, size = batch.clips.shape[2], tuple(batch.clips.shape[3:])
        return self.network.decode(self.network.draw_latents(noise, frames, size, self.temperature)).cpu()

    def facts(self) -> dict[str, Any]:
        return {"temperature": self.temperature}


def kl_bits(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The KL terms of the network, nats (B,), as bits: `kl_bits_1`, ... per level, and their sum `kl_bits`."""
    bits = {name.replace("kl_", "kl_bits_"): kl / math.log(2) for name, kl in terms.items()}
    return {**bits, "kl_bits": sum(bits.values())}
