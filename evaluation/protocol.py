"""How an evaluation is done: which metrics, on what part of what the model makes, how often."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation.frechet import FID, FVD, SetDistance
from evaluation.metrics import RANDOM
from evaluation.networks import FeatureExtractor, open_extractor, open_inception
from evaluation.paired import PairedScores
from videodata.errors import UserError

PAIRED_METRICS = ("psnr", "ssim", "lpips")
FVD_FRAMES = ("all", "predicted")
Network = tuple[type[SetDistance], FeatureExtractor]


@dataclass
class Protocol:
    """Every choice that changes a number."""

    metrics: tuple[str, ...] = ("psnr", "ssim")
    seed: int = 0
    repetitions: int = 1  # whole evaluations, with seeds seed, seed + 1, ...: of the windows and of the model's noise
    samples: int = 1  # clips that a random model makes of each clip
    batch_size: int = 4
    quantize: bool = True  # to 8 bit, before scoring
    ssim_definition: str = "standard"
    lpips: str = "alex"
    lpips_weights: Path | str | None = None
    extractor: str = "i3d"
    fvd_weights: Path | str | None = None
    fid_weights: Path | str | None = None
    fvd_frames: str = "all"  # or "predicted": without the given ones; of FID, too
    download: bool = False
    allow_random_features: bool = False
    force: bool = False  # FVD of too few clips, FID of too few frames
    feature_cache: Path | None = None
    device: torch.device | str = "cpu"

    @property
    def lpips_network(self) -> str | None:
        """The network of LPIPS, where that is asked for."""
        if "lpips" not in self.metrics:
            return None
        return RANDOM if self.allow_random_features else self.lpips

    def paired_scores(self, excluded_frames: int) -> PairedScores:
        """A collector of the scores of pairs."""
        return PairedScores(
            self.lpips_network,
            self.lpips_weights,
            self.quantize,
            ssim_definition=self.ssim_definition,
            excluded_frames=excluded_frames,
            metrics=self.metrics,
            device=self.device,
        )

    def open_networks(self) -> list[Network]:
        """The distances between sets that are asked for, with their feature networks. Raises UserError."""
        found: list[Network] = []
        options = (self.download, self.device, self.allow_random_features)
        if "fvd" in self.metrics:
            found.append((FVD, open_extractor(self.extractor, self.fvd_weights, *options)))
        if "fid" in self.metrics:
            found.append((FID, open_inception(self.fid_weights, *options)))
        return found

    def check(self, known: tuple[str, ...], random: bool) -> None:
        """Raises UserError for unknown metrics, numbers below 1, and several samples of a model that draws nothing."""
        for name in self.metrics:
            if name not in known:
                raise UserError(f"--metrics {name}: this model has {', '.join(known)}")
        if min(self.repetitions, self.samples, self.batch_size) < 1:
            raise UserError("--repetitions, --samples and --batch_size must be at least 1")
        if self.samples > 1 and not random:
            raise UserError(f"--samples {self.samples}: this model makes the same of a clip each time")
        if "diversity" in self.metrics and self.samples < 2:
            raise UserError("diversity needs at least two samples for each clip: --samples 2")

    def facts(self) -> dict[str, Any]:
        """What a result says about it."""
        return {
            "seed": self.seed,
            "repetitions": self.repetitions,
            "samples": self.samples,
            "rounded_to_8_bit": self.quantize,
            "fvd_frames": self.fvd_frames if {"fvd", "fid"} & set(self.metrics) else None,
        }
