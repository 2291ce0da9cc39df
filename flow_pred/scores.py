"""What is measured of a predictor: its continuations of clips, which evaluations and the generating command score; and
of the autoencoder under it: its reconstructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evaluation.metrics import mean_frame
from evaluation.subject import Batch, Subject
from flow_pred.autoencoder import SimpleVQVAE
from flow_pred.latents import FRAMES_AT_ONCE, LatentPredictor
from flow_pred.neural_sde import NeuralSDE
from flow_pred.predict import Plan, predict_frames
from videodata.errors import UserError
from videodata.pixels import pad_sides

NEAR = 4  # frames that are judged apart from those after them
NO_TRUTH = "metrics need the true frames in between: data.skip_frames + 1 must be a multiple of --res"


MEAN_PATH = "mean path"  # its row in the table


class Reconstructions(Subject):
    """Frames of any size through an autoencoder of type `ours` and back."""

    def __init__(self, autoencoder: SimpleVQVAE) -> None:
        self.autoencoder, self.device = autoencoder, autoencoder.encoder.conv_in.weight.device

    def make(self, batch: Batch) -> Tensor:
        frames = batch.clips.transpose(1, 2)  # (B, T, 3, H, W)
        padded = pad_sides(frames, self.autoencoder.shrink).flatten(0, 1)
        parts = [self.through(part.to(self.device)).cpu() for part in padded.split(FRAMES_AT_ONCE)]
        made = torch.cat(parts).unflatten(0, frames.shape[:2]).transpose(1, 2)
        return made[..., : frames.shape[-2], : frames.shape[-1]]

    def through(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) as they come back."""
        return self.autoencoder.decode(self.autoencoder.encode(images))

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        return {"of the mean frame": mean_frame(clips)}


class Predictions(Subject):
    """Clips of which the first frames are shown and the others predicted.

    Clips have the times of the prediction: with frames in between, these follow the last frame that is shown.
    """

    random = True

    def __init__(self, predictor: LatentPredictor, plan: Plan, device: torch.device) -> None:
        self.predictor, self.plan, self.device, self.context = predictor, plan, device, plan.context
        self.classes = getattr(predictor, "classes", ())

    def make(self, batch: Batch) -> Tensor:
        context = batch.clips[:, :, : self.context]
        labels, guidance = batch.labels if self.classes else (), self.guidance
        frames = predict_frames(
            self.predictor, context, self.plan, batch.items, batch.seed, self.device, labels, guidance
        )
        return torch.cat([context, frames], dim=2)

    def compared(self, batch: Batch, made: Tensor) -> dict[str, Tensor]:
        """With the last frame that is shown, for ever; and frames in between with the cross-fade of the predicted
        frames around them, and of the true ones, which nobody can know.
        """
        if not self.plan.fine:
            raise UserError(NO_TRUTH)
        context, count = batch.clips[:, :, : self.context], made.shape[2] - self.context
        last = context[:, :, -1:]
        rows = {"": made, "last frame repeated": torch.cat([context, last.expand(-1, -1, count, -1, -1)], dim=2)}
        if isinstance(self.predictor, NeuralSDE) and self.predictor.noisy:
            rows[MEAN_PATH] = self.mean_path(batch)
        res = self.plan.res
        if res > 1:
            share = (torch.arange(1, res + 1) / res).view(1, 1, 1, -1, 1, 1)
            for name, clips in (("predicted", made), ("true", batch.clips)):
                keys = torch.cat([last, clips[:, :, self.context - 1 + res :: res]], dim=2)
                fade = torch.lerp(keys[:, :, :-1, None], keys[:, :, 1:, None], share).flatten(2, 3)
                rows[f"cross-fade of {name} frames"] = torch.cat([context, fade], dim=2)
        return rows

    def mean_path(self, batch: Batch) -> Tensor:
        """What the neural SDE predicts without its noise: nearer to the truth than a sample can be, and less sharp."""
        scale, self.predictor.diffusion_scale = self.predictor.diffusion_scale, 0.0
        try:
            return self.make(batch)
        finally:
            self.predictor.diffusion_scale = scale

    def parts(self, frames: int) -> dict[str, Sequence[int] | None]:
        """All predicted frames, or those in between and the others apart; the near and the far ones too."""
        res = self.plan.res
        if res > 1:
            whole = range(res - 1, frames, res)
            return {"in between": [n for n in range(frames) if n not in whole], "whole frames": whole}
        if frames <= NEAR:
            return {"": None}
        return {"": None, f"frames 1-{NEAR}": range(NEAR), f"frames {NEAR + 1}-{frames}": range(NEAR, frames)}

    def facts(self) -> dict[str, Any]:
        return {"context_frames": self.context, **self.plan.options}
