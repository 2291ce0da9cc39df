"""How well RIVER or the neural SDE continues clips, frames in between included, beside baselines that cost nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluation.paired import PairedScores
from evaluation.report import Score
from evaluation.subject import Batch, Subject
from flow_pred.config import FlowPredConfig
from flow_pred.files import load_predictor, role_of
from flow_pred.generate import Plan, Prediction, plan_for, predict_frames
from flow_pred.latents import LatentPredictor
from videodata.errors import UserError


class Predictions(Subject):
    """Clips of which the first frames are shown and the others predicted, one frame per frame interval."""

    random = True

    def __init__(self, predictor: LatentPredictor, plan: Plan, device: torch.device) -> None:
        self.predictor, self.plan, self.device, self.context = predictor, plan, device, plan.context

    def make(self, batch: Batch) -> Tensor:
        context = batch.clips[:, :, : self.context]
        frames = predict_frames(self.predictor, context, self.plan, batch.items, batch.seed, self.device)
        return torch.cat([context, frames], dim=2)

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        last = clips[:, :, self.context - 1 : self.context].expand(-1, -1, self.plan.frames, -1, -1)
        return {"last frame repeated": torch.cat([clips[:, :, : self.context], last], dim=2)}

    def facts(self) -> dict[str, Any]:
        return {"context_frames": self.context, **self.plan.options}


def open_predictions(
    checkpoint: str,
    device: torch.device,
    *,
    config: str | None = None,
    denoiser: str | None = None,
    diffusion: str | None = None,
    autoencoder: str | None = None,
    given: int | None = None,
    frames: int | None = None,
    steps: int | None = None,
) -> tuple[Predictions, FlowPredConfig]:
    """The predictions of a trained RIVER or of a neural SDE with the flow `checkpoint`, and its configuration.

    given: frames that are shown; frames: of a whole clip; None: as the configuration says. Raises UserError.
    """
    role = "river" if role_of(checkpoint, config) == "river" else "f"
    files = {role: (checkpoint, config), "d": (denoiser, None), "g": (diffusion, None)}
    predictor, settings = load_predictor(files, device, autoencoder)
    plan = plan_for(predictor, settings, context=given, steps=steps)
    if frames:
        plan.frames = frames - plan.context
    return Predictions(predictor, plan, device), settings


def baselines(prediction: Prediction, plan: Plan) -> dict[str, Tensor]:
    """What costs nothing, in the times of the prediction: the last known frame for ever, and for frames in between
    the cross-fade of the predicted frames around them, and of the true ones, which nobody can know.
    """
    target, generated = prediction.target, prediction.generated
    context = target[:, :, : plan.context]
    count = target.shape[2] - plan.context
    repeated = context[:, :, -1:].expand(-1, -1, count, -1, -1)
    found = {"last frame repeated": torch.cat([context, repeated], dim=2)}
    if plan.res > 1:
        for name, clip in (("predicted", generated), ("true", target)):
            whole = clip[:, :, plan.context - 1 + plan.res :: plan.res]
            keys = torch.cat([context[:, :, -1:], whole], dim=2)
            found[f"cross-fade of {name} frames"] = torch.cat([context, cross_fade(keys, plan.res)], dim=2)
    return found


def cross_fade(keys: Tensor, res: int) -> Tensor:
    """Frames (B, 3, n, H, W) -> (B, 3, (n - 1) * res, H, W): res linear steps from each frame to the next."""
    share = (torch.arange(1, res + 1) / res).view(1, 1, 1, -1, 1, 1)
    return torch.lerp(keys[:, :, :-1, None], keys[:, :, 1:, None], share).flatten(2, 3)


class Scores:
    """PSNR, SSIM and optionally LPIPS of predictions and of their baselines; only predicted frames count."""

    def __init__(self, plan: Plan, lpips: str | None = None, weights: str | None = None) -> None:
        self.plan, self.lpips, self.weights = plan, lpips, weights
        self._scores: dict[str, PairedScores] = {}

    def update(self, prediction: Prediction) -> None:
        """Take in a batch. Raises UserError where the true frames are unknown."""
        if prediction.target is None:
            raise UserError("metrics need the true frames: data.skip_frames + 1 must be a multiple of --res")
        rows = {"": prediction.generated, **baselines(prediction, self.plan)}
        for label, clip in rows.items():
            for name, (a, b) in self._parts(prediction.target, clip).items():
                key = ", ".join(part for part in (name, label) if part)
                if key not in self._scores:
                    self._scores[key] = PairedScores(self.lpips, self.weights)
                self._scores[key].update(a, b)

    def _parts(self, target: Tensor, clip: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """All predicted frames, or those in between and the others apart; the first four too where there are more."""
        target, clip = target[:, :, self.plan.context :], clip[:, :, self.plan.context :]
        res = self.plan.res
        if res > 1:
            between = torch.arange(target.shape[2]) % res != res - 1
            return {
                "in between": (target[:, :, between], clip[:, :, between]),
                "whole frames": (target[:, :, ~between], clip[:, :, ~between]),
            }
        parts = {"": (target, clip)}
        return parts | ({"first 4 frames": (target[:, :, :4], clip[:, :, :4])} if target.shape[2] > 4 else {})

    def scores(self) -> list[Score]:
        """One row per metric and kind of frame."""
        rows = []
        for label, scores in self._scores.items():
            for score in scores.scores():
                score.label = label
                rows.append(score)
        return rows
