"""How well RIVER or the neural SDE continues clips."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluation.subject import Batch, Subject
from flow_pred.generate import Plan, predict_frames
from flow_pred.neural_sde import NeuralSDE
from flow_pred.river import RiverPredictor


class Predictions(Subject):
    """Clips of which the first frames are shown and the others predicted, one frame per frame interval."""

    random = True

    def __init__(self, predictor: RiverPredictor | NeuralSDE, plan: Plan, device: torch.device) -> None:
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
