"""Where the latents of new clips come from: the flow of the second stage, its Gaussian, or the network's own prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from training.conditions import class_numbers
from video_vae.config import FLOW_STEPS, PRIOR_KINDS
from video_vae.files import load_prior
from video_vae.model import Latents, Noise, TransformerNetwork
from video_vae.prior import LatentPrior
from videodata.errors import UserError
from videodata.labels import class_number


@dataclass
class Sampler:
    """Draws latents of clips. kind: flow, gaussian or normal; the first two need the second stage, `prior`."""

    network: TransformerNetwork
    prior: LatentPrior | None = None
    kind: str = "normal"
    steps: int = FLOW_STEPS
    guidance: float = 1.0  # towards the class

    def __post_init__(self) -> None:
        if self.kind not in PRIOR_KINDS:
            raise UserError(f"unknown prior {self.kind!r}; choose one of {', '.join(PRIOR_KINDS)}")
        if self.guidance != 1 and not self.classes:
            raise UserError(f"--guidance {self.guidance:g} {self._needs()}")

    @property
    def classes(self) -> tuple[str, ...]:
        """That can be asked for."""
        return tuple(self.prior.config.classes) if self.kind == "flow" else ()

    def check_class(self, name: str | None) -> None:
        """Raises UserError for a class that cannot be asked for, and for guidance towards none."""
        if name is not None and not self.classes:
            raise UserError(f"--class {name} {self._needs()}")
        if name is not None:
            class_number(self.classes, name)
        elif self.guidance != 1:
            raise UserError(f"--guidance {self.guidance:g} leads to a class: name one with --class")

    def _needs(self) -> str:
        """What a class needs, and what is in its way."""
        drawn = "" if self.kind == "flow" or self.prior is None else f"; --prior {self.kind} draws without it"
        return f"needs a flow that was trained with classes{drawn}"

    def draw(
        self,
        noise: Noise,
        frames: int,
        size: tuple[int, int],
        temperature: float = 1.0,
        labels: Sequence[str | None] = (),
    ) -> Latents:
        """Latents of clips of this length and size; `labels`: the class of each, as far as there are classes.

        Raises UserError for an unknown class, and for another size than that of the clips the prior was fitted to.
        """
        if self.kind == "normal":
            return self.network.draw_latents(noise, frames, size, temperature)
        fitted = self.prior.config
        if tuple(size) != tuple(fitted.size):
            raise UserError(
                f"the second stage knows clips of {fitted.size[0]}x{fitted.size[1]}, not {size[0]}x{size[1]}; "
                "--prior normal draws any size"
            )
        x = self.prior.start(noise, temperature)
        if self.kind == "flow":
            numbers = class_numbers(self.classes, labels).to(x.device) if self.classes and len(labels) else None
            x = self.prior.flow(x, self.steps, numbers, self.guidance)
        return Latents(self.prior.split(x), frames, tuple(size))

    def clips(
        self,
        noise: Noise,
        frames: int,
        size: tuple[int, int],
        temperature: float = 1.0,
        labels: Sequence[str | None] = (),
    ) -> Tensor:
        """New clips (B, 3, T, H, W), decoded from `draw`."""
        return self.network.decode(self.draw(noise, frames, size, temperature, labels))

    def describe(self, asked: str | None) -> str:
        """Where the samples came from, for the last line of a command; `asked`: the prior that was asked for."""
        known = {"flow": "the flow of the second stage", "gaussian": "the Gaussian of the second stage"}
        if self.kind != "normal":
            return f"samples from {known[self.kind]}"
        advice = "" if asked or self.prior else "; no second stage: scripts/train_video_vae_prior.py fits one"
        return f"samples from the prior that the network was trained with{advice}"


def open_sampler(
    checkpoint: Path | str,
    network: TransformerNetwork,
    kind: str | None = None,
    steps: int = FLOW_STEPS,
    guidance: float = 1.0,
) -> Sampler:
    """The sampler of a network that `load_model` read from `checkpoint`; by default its flow, where it has one.

    Raises UserError where a second stage is asked for that is not there.
    """
    prior = None if kind == "normal" else load_prior(checkpoint, network.canvas.device)
    if prior is None and kind in ("flow", "gaussian"):
        raise UserError(
            f"{checkpoint}: has no second stage for --prior {kind}; "
            f"python scripts/train_video_vae_prior.py --checkpoint {checkpoint} fits one to a run folder"
        )
    return Sampler(network, prior, kind or ("flow" if prior else "normal"), steps, guidance)
