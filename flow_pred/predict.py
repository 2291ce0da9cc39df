"""Continue clips: what is read of each, what is predicted, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from flow_pred.config import FlowPredConfig
from flow_pred.conv_backbone import ConvRegressor
from flow_pred.latents import LatentPredictor, at_rest, clock_of, decode_clip, encode_clip
from flow_pred.neural_sde import SDE_STEPS, NeuralSDE
from flow_pred.regressor import VectorFieldRegressor
from flow_pred.river import DEFAULTS, RiverPredictor
from training import distributed
from training.conditions import class_numbers
from training.randomness import derive_seed
from training.tokenizer import latent_frames, video_frames
from videodata.errors import UserError


@dataclass
class Plan:
    """What is predicted. `res`: output frames per frame interval; the true frames in between are read where the data
    have them, that is where the stride is a multiple of `res`.
    """

    context: int
    frames: int
    stride: int = 1
    res: int = 1
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # of the predictor's `sample`

    @property
    def fine(self) -> bool:
        """Whether the true frames in between are there."""
        return self.stride % self.res == 0

    @property
    def read_stride(self) -> int:
        """Frames of the video from one frame of a clip that is read to the next."""
        return self.stride // self.res if self.fine else self.stride

    @property
    def read_frames(self) -> int:
        """Frames of a clip that is read."""
        whole = self.context + self.frames
        return (whole - 1) * self.res + 1 if self.fine else whole

    @property
    def first_shown(self) -> int:
        """First frame of a prediction that is shown: with frames in between the last known one, because those before it
        have another rate.
        """
        return self.context - 1 if self.res > 1 else 0

    def split(self, clip: Tensor) -> tuple[Tensor, Tensor | None]:
        """A clip that was read (..., T, H, W) -> context, and the target in the times of the prediction if known."""
        if not self.fine:
            return clip[..., : self.context, :, :], None
        first = (self.context - 1) * self.res
        context = clip[..., : first + 1 : self.res, :, :]
        return context, torch.cat([context, clip[..., first + 1 :, :, :]], dim=-3)


def plan_for(
    predictor: LatentPredictor,
    config: FlowPredConfig,
    *,
    context: int | None = None,
    frames: int | None = None,
    steps: int | None = None,
    solver: str | None = None,
    atol: float = 1e-2,
    res: int = 1,
    grid: str = "uniform",
    past_horizon: int | None = None,
    warm_start: float | None = None,
    seed: int = 0,
) -> Plan:
    """What to predict and how; None: as the configuration says. Raises UserError for what only the other kind has."""
    evaluation, training = config.evaluation, config.training
    context = context or evaluation.condition_frames or training.condition_frames
    frames = frames or evaluation.frames_to_generate or training.frames_to_generate
    if isinstance(predictor, RiverPredictor):
        if res != 1:
            raise UserError("--res is for the neural SDE; RIVER has no time between frames")
        if past_horizon is not None and predictor.frames_seen is not None:
            raise UserError(
                f"--past-horizon: this RIVER looks at the last {predictor.frames_seen} frames, at no others"
            )
        default_steps, default_solver = DEFAULTS[grid]  # named here, because a result says how it was sampled
        options = {
            "grid": grid,
            "steps": steps or evaluation.steps or default_steps,
            "method": solver or (evaluation.solver if grid == "uniform" else None) or default_solver,
            "past_horizon": evaluation.past_horizon if past_horizon is None else past_horizon,
            "warm_start": evaluation.warm_sampling if warm_start is None else warm_start,
        }
    else:
        if past_horizon is not None or warm_start is not None or grid != "uniform":
            raise UserError("--past-horizon, --warm-start and --grid are for RIVER")
        options = {
            "steps": steps or evaluation.steps or SDE_STEPS,
            "method": solver or evaluation.solver or "euler",
            "atol": atol,
            "outputs_per_interval": res,
        }
    plan = Plan(context, frames, config.data.skip_frames + 1, res, seed, options)
    latent_counts(predictor, plan)
    return plan


def latent_counts(predictor: LatentPredictor, plan: Plan) -> tuple[int, int]:
    """Latents of the context, and latents to predict. Raises UserError for frames that the tokenizer cannot take."""
    clock = clock_of(predictor.autoencoder)
    if clock.time_factor == 1:
        return plan.context, plan.frames
    if plan.res != 1:
        raise UserError("--res: a latent of this tokenizer stands for several frames; there are none in between")
    given = latent_frames(clock, plan.context, "a context")
    least = predictor.num_input_frames if isinstance(predictor, NeuralSDE) else predictor.frames_seen or 1
    if given < least:
        raise UserError(
            f"a context of {plan.context} frames is {given} latents; this predictor needs {least}, which are "
            f"{video_frames(clock, least)} frames"
        )
    return given, latent_frames(clock, plan.context + plan.frames, "a clip with its context") - given


@dataclass
class Prediction:
    """A batch: clips (B, 3, T, H, W) in [-1, 1], and the number of each in the data set."""

    generated: Tensor
    target: Tensor | None
    items: list[int]


class CallCounter:
    """Counts the evaluations of networks, per sample: a call on half of the batch counts half.

    All processes must ask for a number, and get that of all of them together.
    """

    def __init__(self, predictor: LatentPredictor) -> None:
        self.samples: dict[str, int] = {}
        for name, module in predictor.named_children():
            if isinstance(module, (VectorFieldRegressor, ConvRegressor)):
                module.register_forward_hook(self._count(name))

    def _count(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            self.samples[name] = self.samples.get(name, 0) + len(output)

        return hook

    @property
    def drift(self) -> int:
        """Evaluations of the drift's first network."""
        return over_processes(self.samples.get("regressor", 0) + self.samples.get("flow", 0))

    @property
    def total(self) -> int:
        """Evaluations of all networks."""
        return over_processes(sum(self.samples.values()))


def over_processes(count: int) -> int:
    """The sum over all processes."""
    return int(distributed.all_sum(torch.tensor(count)))


def predict(
    predictor: LatentPredictor,
    clips: Dataset,
    plan: Plan,
    batch_size: int,
    device: torch.device,
    class_name: str | None = None,
    guidance: float = 1.0,
) -> Iterator[Prediction]:
    """Predictions of all clips, in order; clip i depends on (seed, i) alone.

    class_name: what to ask a model of classes for, and guidance towards it; None: no class.

    Several processes take turns at the batches; the main process gets all of them, the others get none.
    """
    starts = range(0, len(clips), batch_size)
    for turn in range(0, len(starts), distributed.world_size()):
        mine, own = turn + distributed.rank(), None
        if mine < len(starts):
            items = list(range(starts[mine], min(starts[mine] + batch_size, len(clips))))
            context, target = plan.split(torch.stack([clips[item] for item in items]))
            labels = [class_name] * len(items)
            new = predict_frames(predictor, context, plan, items, plan.seed, device, labels, guidance)
            own = Prediction(torch.cat([context, new], dim=2), target, items)
        predictions = distributed.gather_batches([] if own is None else [own])  # turn by turn: they are large
        if distributed.is_main():
            yield from predictions


def predict_frames(
    predictor: LatentPredictor,
    context: Tensor,
    plan: Plan,
    items: list[int],
    seed: int,
    device: torch.device,
    labels: Sequence[str | None] = (),
    guidance: float = 1.0,
) -> Tensor:
    """What follows the context (B, 3, n, H, W) of the clips with these numbers: (B, 3, frames * res, H, W).

    labels: the class of each, and guidance towards it, for a model of classes.
    """
    options = dict(plan.options)
    if classes := getattr(predictor, "classes", ()):
        options |= {"labels": class_numbers(classes, labels) if labels else None, "guidance": guidance}
    generator = torch.Generator().manual_seed(derive_seed(seed, "generate"))
    with at_rest(predictor):
        latents = encode_clip(predictor.autoencoder, context.to(device))
        new = latent_counts(predictor, plan)[1]
        continued = predictor.sample(latents, new, generator=generator, positions=items, **options)
        if clock_of(predictor.autoencoder).time_factor > 1:  # what a latent shows depends on those before it
            return decode_clip(predictor.autoencoder, continued)[:, :, plan.context :].cpu()
        return decode_clip(predictor.autoencoder, continued[:, plan.context :]).cpu()
