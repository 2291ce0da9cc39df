"""How well the latent video transformer continues clips, and how well its VQ-VAE reconstructs them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluation.codebook import BitsPerToken, CodebookUsage
from evaluation.report import Score
from evaluation.subject import Batch, Subject
from lvt.continuation import decode_clips, encode_clips
from lvt.generate import generate_codes
from lvt.likelihood import bits_per_subpixel, clip_nats
from lvt.transformer import VideoTransformer
from lvt.vqvae import VQVAE
from training.randomness import derive_seed


class Codes:
    """Usage of each codebook of a VQ-VAE."""

    def __init__(self, vqvae: VQVAE) -> None:
        self.usages = [CodebookUsage(vqvae.config.codebook.size) for _ in range(vqvae.config.codebook.num)]

    def update(self, codes: Tensor) -> None:
        """Count codes (B, C, T, h, w)."""
        for number, usage in enumerate(self.usages):
            usage.update(codes[:, number])

    def scores(self) -> list[Score]:
        """Over all processes, one pair of rows per codebook; starts anew."""
        labels = [f"codebook {number}" if len(self.usages) > 1 else "" for number in range(1, len(self.usages) + 1)]
        found = [usage.over_processes().scores(label) for usage, label in zip(self.usages, labels, strict=True)]
        self.usages = [CodebookUsage(len(usage.counts)) for usage in self.usages]
        return [score for scores in found for score in scores]


class Reconstructions(Subject):
    """Frames through the VQ-VAE and back."""

    own_metrics = ("codebook",)

    def __init__(self, vqvae: VQVAE, device: torch.device) -> None:
        self.vqvae, self.device, self.codes = vqvae, device, Codes(vqvae)

    @torch.no_grad()
    def make(self, batch: Batch) -> Tensor:
        codes = encode_clips(self.vqvae, to_uint8(batch.clips).to(self.device))
        if batch.sample == 0:
            self.codes.update(codes)
        return decode_clips(self.vqvae, codes).cpu()

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        return {"of the mean colour": clips.mean(dim=(3, 4), keepdim=True).expand_as(clips)}

    def own_scores(self) -> dict[str, list[Score]]:
        return {"codebook": self.codes.scores()}


class Continuations(Subject):
    """Clips of which the first `given` frames are shown and the others sampled; the given ones stay as they are.

    With none given, samples belong to no clip, and only the sets are compared.

    options: of `generate_codes`. class_index: of a class-conditional transformer.
    """

    random = True
    own_metrics = ("bits", "codebook")

    def __init__(
        self, transformer: VideoTransformer, vqvae: VQVAE, given: int, device: torch.device,
        class_index: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.transformer, self.vqvae, self.context, self.device = transformer, vqvae, given, device
        self.paired = given > 0
        self.class_index, self.options = class_index, options
        self.codes, self.bits, self.codes_per_frame = Codes(vqvae), BitsPerToken(), 0

    @torch.no_grad()
    def make(self, batch: Batch) -> Tensor:
        codes = encode_clips(self.vqvae, to_uint8(batch.clips).to(self.device))
        classes = None if self.class_index is None else codes.new_full((len(codes),), self.class_index)
        if batch.sample == 0:
            self.codes.update(codes)
            self.bits.update(*clip_nats(self.transformer, codes, self.context, classes))
            self.codes_per_frame = codes[0, :, 0].numel()
        seeds = [derive_seed(batch.seed, "continue", item) for item in batch.items]
        made = generate_codes(self.transformer, codes, self.context, class_idx=classes, seeds=seeds, **self.options)
        frames = decode_clips(self.vqvae, made)[:, :, self.context :].cpu()
        return torch.cat([batch.clips[:, :, : self.context], frames], dim=2)

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        codes = encode_clips(self.vqvae, to_uint8(clips).to(self.device))
        found = {"reconstruction of the true frames": decode_clips(self.vqvae, codes).cpu()}
        if self.context:
            last = clips[:, :, self.context - 1 : self.context].expand(-1, -1, clips.shape[2] - self.context, -1, -1)
            found["last frame repeated"] = torch.cat([clips[:, :, : self.context], last], dim=2)
        return found

    def own_scores(self) -> dict[str, list[Score]]:
        bits, self.bits = self.bits.over_processes(), BitsPerToken()
        per_subpixel = bits_per_subpixel(bits.value, self.vqvae.config.codebook.num)
        scores = [bits.score(self.codes_per_frame), Score("bits-per-subpixel", [], value=float(per_subpixel))]
        return {"bits": scores, "codebook": self.codes.scores()}

    def facts(self) -> dict[str, Any]:
        return {"given_frames": self.context, "codes_per_frame": self.codes_per_frame, **self.options}


def to_uint8(clips: Tensor) -> Tensor:
    """Clips in [-1, 1] as the network takes them, uint8 of the same shape."""
    return ((clips + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
