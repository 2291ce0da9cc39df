"""What is measured of the two networks: reconstructions of the VQ-VAE, the likelihood that the transformer gives to
codes, and its continuations of clips. `scripts/evaluate.py` and TEST.EVALUATORS both score these subjects.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from evaluation.codebook import BitsPerToken, CodebookUsage
from evaluation.metrics import mean_frame
from evaluation.report import Score
from evaluation.subject import Batch, Subject
from lvt.codes import Cells, decode_codes, encode_codes
from lvt.config import DOWNSAMPLING
from lvt.datasets import known_classes
from lvt.generate import generate_codes
from lvt.masked import DRAWS, RATIOS, masked_nats, random_order_nats
from lvt.transformer import VideoTransformer, bits_per_code, clip_nats
from lvt.vqvae import VQVAE, decode_clips, encode_clips
from training.data import move
from training.distributed import gather_batches
from training.randomness import derive_seed
from training.tokenizer import Tokenizer, latent_frames
from videodata.finite import finite
from videodata.labels import class_number
from videodata.pixels import pad_sides

logger = logging.getLogger(__name__)
NEAR = 4  # frames after the given ones whose scores are told apart
COLLAPSED = 0.5  # samples whose codes have less than this share of the entropy of the true ones


def squared_error(made: Tensor, clips: Tensor) -> Tensor:
    """Mean square error of each clip (B,), of values in [0, 1]; both (B, 3, T, H, W) in [-1, 1]."""
    return ((made - clips).double() / 2).square().flatten(1).mean(1)


class Reconstructions(Subject):
    """Frames of any size through the VQ-VAE and back."""

    metrics = ("psnr", "ssim", "codebook")
    own_metrics = ("mse", "codebook")

    def __init__(self, vqvae: VQVAE) -> None:
        self.vqvae, self.codes = vqvae, Codes(vqvae.config.codebook.num, vqvae.config.codebook.size)
        self.errors: list[list[float]] = []  # mean square error of each clip in [0, 1], by batch

    def make(self, batch: Batch) -> Tensor:
        height, width = batch.clips.shape[3:]
        padded = pad_sides(batch.clips, DOWNSAMPLING)
        codes = encode_clips(self.vqvae, padded.to(self.vqvae.pixel_mean.device))
        made = decode_clips(self.vqvae, codes).cpu()[..., :height, :width]
        if batch.sample == 0:
            self.codes.update(codes)
            self.errors.append(squared_error(made, batch.clips).tolist())
        return made

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        return {"of the mean frame": mean_frame(clips)}

    def own_scores(self) -> dict[str, list[Score]]:
        errors, self.errors = gather_batches(self.errors), []
        error = Score("mse-frame-raw", [value for batch in errors for value in batch])
        return {"mse": [error], "codebook": self.codes.scores()}


class Likelihood(Subject):
    """Windows of codes that the transformer gives a probability."""

    paired = visible = False

    def __init__(self, transformer: VideoTransformer, cells: Cells | None = None) -> None:
        """cells: what a code stands for, where it is not one of the VQ-VAE."""
        self.config = transformer.config
        self.bits = bits_of(transformer, self.config.n_prime, cells or Cells())
        self.device = transformer.encoder.conv.weight.device
        self.metrics = self.own_metrics = (self.bits.metric,)

    def make(self, batch: Batch) -> None:
        windows = move(batch.clips, self.device)
        classes = known_classes(self.config, windows["class_index"]) if self.config.class_num else None
        self.bits.update(windows["codes"].long(), classes, batch)

    def own_scores(self) -> dict[str, list[Score]]:
        return {self.bits.metric: self.bits.scores()}


class Continuations(Subject):
    """Clips of which the first `given` frames are shown and the others sampled; the given ones stay as they are.

    With none given, samples belong to no clip, and only the sets are compared. A class-conditional transformer is asked
    for the class of each clip. given: frames, of as many codes as the tokenizer makes of them; a tokenizer that looks
    ahead encodes them by themselves. options: of `generate_codes`. Raises UserError.
    """

    random = True

    def __init__(self, transformer: VideoTransformer, tokenizer: Tokenizer, given: int, **options: Any) -> None:
        self.transformer, self.tokenizer, self.context = transformer, tokenizer, given
        self.n_prime = latent_frames(tokenizer, given, "a beginning")
        self.paired = given > 0
        self.classes, self.options = transformer.config.classes, options
        cells = Cells(tokenizer.time_factor, tokenizer.space_factor, tokenizer.causal)
        self.codes, self.true, self.made = (Codes(tokenizer.width, tokenizer.size) for _ in range(3))
        self.bits = bits_of(transformer, self.n_prime, cells)  # as `true` and `made` of what follows the given frames
        self.codes_per_frame = 0
        self.own_metrics = (self.bits.metric, "codebook")
        self.metrics = ("psnr", "ssim", *self.own_metrics)
        self.shown: tuple[Tensor, Tensor] | None = None  # the last clips and their codes

    def make(self, batch: Batch) -> Tensor:
        codes = self.encode(batch.clips)
        classes = self.classes_of(batch, codes.device)
        if batch.sample == 0:
            self.codes.update(codes)
            self.codes_per_frame = codes[0, :, 0].numel()
            if self.wants_bits:
                self.bits.update(codes, classes, batch)
            self.true.update(codes[:, :, self.n_prime :])
        seeds = [derive_seed(batch.seed, "continue", item) for item in batch.items]
        options = {"class_idx": classes, "guidance": self.guidance, **self.options}
        made = generate_codes(self.transformer, self.shown_only(codes), self.n_prime, seeds=seeds, **options)
        self.made.update(made[:, :, self.n_prime :])
        return self.behind_given(batch.clips, decode_codes(self.tokenizer, made).cpu())

    def classes_of(self, batch: Batch, device: torch.device) -> Tensor | None:
        """The number of each clip's class (B,); None of a transformer without classes. Raises UserError."""
        config = self.transformer.config
        if not config.class_num:
            return None
        numbers = [-1 if label is None else class_number(self.classes, label) for label in batch.labels]
        return known_classes(config, torch.tensor(numbers, device=device))

    def encode(self, clips: Tensor) -> Tensor:
        """Codes of clips; kept for their further samples and baselines."""
        if self.shown is None or self.shown[0] is not clips:
            device = self.transformer.encoder.conv.weight.device
            self.shown = (clips, encode_codes(self.tokenizer, clips.to(device)))
        return self.shown[1]

    def shown_only(self, codes: Tensor) -> Tensor:
        """The codes of the last clips, with nothing in those of the given frames that only later frames can tell."""
        if self.tokenizer.causal or not self.n_prime:
            return codes
        own = encode_codes(self.tokenizer, self.shown[0][:, :, : self.context].to(codes.device))
        return torch.cat([own, codes[:, :, self.n_prime :]], dim=2)

    def behind_given(self, clips: Tensor, others: Tensor) -> Tensor:
        """The given frames of the clips, then those of the others."""
        return torch.cat([clips[:, :, : self.context], others[:, :, self.context :]], dim=2)

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        found = {"reconstruction of the true frames": decode_codes(self.tokenizer, self.encode(clips)).cpu()}
        found["of the mean frame"] = mean_frame(clips)
        if self.context:
            last = clips[:, :, self.context - 1 : self.context].expand_as(clips)
            found["last frame repeated"] = self.behind_given(clips, last)
        return found

    def parts(self, frames: int) -> dict[str, Sequence[int] | None]:
        """All frames after the given ones, and where there are many, the near and the far ones too."""
        if not self.context or frames <= NEAR:
            return {"": None}
        return {"": None, f"frames 1-{NEAR}": range(NEAR), f"frames {NEAR + 1}-{frames}": range(NEAR, frames)}

    def own_scores(self) -> dict[str, list[Score]]:
        warn_of_collapse(self.made.entropies(), self.true.entropies())
        bits = {self.bits.metric: self.bits.scores()} if self.wants_bits else {}
        return {**bits, "codebook": self.codes.scores()}

    @property
    def wants_bits(self) -> bool:
        """Whether they are asked for: those of a masked decoder cost more passes than some samples."""
        return self.asked is None or self.bits.metric in self.asked

    def facts(self) -> dict[str, Any]:
        config = self.transformer.config
        masked = {"masked": asdict(config.masked)} if config.decoder == "masked" else {}
        return {"given_frames": self.context, "codes_per_frame": self.codes_per_frame, **self.options, **masked}


class Codes:
    """Usage of each of `num` codebooks of `size` codes."""

    def __init__(self, num: int, size: int) -> None:
        self.usages = [CodebookUsage(size) for _ in range(num)]

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

    def entropies(self) -> list[float]:
        """Entropy in nats of the histogram of each codebook's codes, over all processes; starts anew."""
        found = [usage.over_processes().perplexity for usage in self.usages]
        self.usages = [CodebookUsage(len(usage.counts)) for usage in self.usages]
        return [math.log(max(perplexity, 1.0)) for perplexity in found]


def warn_of_collapse(made: Sequence[float], true: Sequence[float]) -> None:
    """Warn of samples whose histogram of codes has much less entropy than that of the true clips, in any codebook."""
    for number, (own, wanted) in enumerate(zip(made, true, strict=True), start=1):
        if own < COLLAPSED * wanted:
            logger.warning(
                "WARNING: the codes of the samples have collapsed: codebook %d has %.2f nats of entropy, %.2f in the "
                "true clips; try more noise (MASKED.CHOICE_TEMPERATURE), a random ORDER, or a longer training",
                number, own, wanted,
            )  # fmt: skip


def bits_of(transformer: VideoTransformer, given: int, cells: Cells) -> Bits | MaskedBits:
    """What counts the bits of a transformer's codes, as exactly as its decoder lets know."""
    return MaskedBits(transformer, given) if transformer.config.decoder == "masked" else Bits(transformer, given, cells)


class Bits:
    """Bits that a transformer needs for codes, of which the first `given` frames do not count."""

    metric = "bits"

    def __init__(self, transformer: VideoTransformer, given: int, cells: Cells) -> None:
        self.transformer, self.given, self.cells = transformer, given, cells
        self.bits, self.codes_per_frame, self.subpixels = BitsPerToken(), 0, 1.0

    def update(self, codes: Tensor, classes: Tensor | None, batch: Batch) -> None:
        """Count the codes (B, C, T, h, w) of a batch after the given frames."""
        self.bits.update(*clip_nats(self.transformer, codes, self.given, classes))
        self.codes_per_frame = codes[0, :, 0].numel()
        self.subpixels = self.cells.subpixels_per_code(tuple(codes.shape[1:]))

    def scores(self) -> list[Score]:
        """Per code, and per red, green or blue value, over all processes; starts anew."""
        bits, self.bits = self.bits.over_processes(), BitsPerToken()
        per_subpixel = Score("bits-per-subpixel", [], value=bits.value / self.subpixels)
        return [bits.score(self.codes_per_frame), per_subpixel]


class MaskedBits:
    """What is known of the bits that a masked decoder needs: of a share of the codes given the others, how many of them
    are right, and a bound on those of whole clips made in random order, one code per pass.
    """

    metric = "masked-bits"

    def __init__(self, transformer: VideoTransformer, given: int) -> None:
        self.transformer, self.given, self.codes_per_frame = transformer, given, 0
        self.found: list[dict[str, list[float]]] = []  # per batch: name -> a value of each clip

    def update(self, codes: Tensor, classes: Tensor | None, batch: Batch) -> None:
        """Count the codes (B, C, T, h, w) of a batch after the given frames; masks depend on the clips' numbers."""
        seeds = [derive_seed(batch.seed, "masked bits", item) for item in batch.items]
        found: dict[str, Tensor] = {}
        for ratio in RATIOS:
            nats, right, count = masked_nats(self.transformer, codes, self.given, seeds, ratio, classes)
            found[f"bits {ratio:g}"], found[f"right {ratio:g}"] = bits_per_code(nats, count), right / count
        nats, variance, count = random_order_nats(self.transformer, codes, self.given, seeds, DRAWS, classes)
        found["bound"], found["error"] = bits_per_code(nats, count), bits_per_code(variance.sqrt(), count)
        self.found.append({name: finite(values, "likelihoods of clips").tolist() for name, values in found.items()})
        self.codes_per_frame = codes[0, :, 0].numel()

    def scores(self) -> list[Score]:
        """Over all processes; starts anew."""
        batches, self.found = gather_batches(self.found), []
        values = {name: [value for batch in batches for value in batch[name]] for name in batches[0]}
        notes = {"tokens_per_frame": self.codes_per_frame}
        scores = []
        for ratio in RATIOS:
            label = f"{ratio:.0%} masked"
            scores.append(Score("masked-bits-per-token", values[f"bits {ratio:g}"], label, notes=notes))
            scores.append(Score("masked-accuracy", values[f"right {ratio:g}"], label, notes=notes))
        error = math.sqrt(sum(value**2 for value in values["error"])) / len(values["error"])
        notes = {**notes, "draws": DRAWS, "standard_error_of_draws": error}
        return [*scores, Score("random-order-bound", values["bound"], notes=notes)]
