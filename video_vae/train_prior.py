"""How the second stage of a video VAE is trained: the latents of its training clips, and flow matching on them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from training import TrainSettings, derive_seed, distributed, settings_from, train
from training.cli import command_line
from training.conditions import class_numbers, drop_labels
from training.optim import build_optimizer
from training.pretrained import source_of
from training.randomness import SampleNoise
from training.recipe import Losses, Networks, Recipe, Step
from video_vae.config import FLOW_STEPS, PRIOR_RATE, PriorConfig
from video_vae.files import PRIOR_FOLDER, PRIOR_RECIPE, load_model, step_of
from video_vae.model import Latents, TransformerNetwork
from video_vae.prior import LatentPrior, interpolate
from video_vae.train import open_data
from videodata.errors import UserError
from videodata.finite import finite
from videodata.labels import classes_of, label_of
from videodata.pixels import normalize
from videodata.provenance import provenance_of

BETAS = (0.9, 0.99)
CLIPS_AT_A_TIME = 16  # through the encoder
FEWEST_CLIPS = 2
HELD_OUT = 256  # clips at most, that the flow is validated with
SAMPLES_SHOWN = 4


class EncodedClips(Dataset):
    """The posteriors of clips: items are (means (D,), class number); the number is 0 without classes.

    `noise` (D,) is the variance of the posteriors, of all clips on average. What is remembered of the data is that of
    the clips.
    """

    def __init__(self, network: TransformerNetwork, clips: Dataset, classes: Sequence[str], most: int = 0) -> None:
        self.clips = clips
        count = min(len(clips), most or len(clips))
        items = [index * len(clips) // count for index in range(count)]  # evenly spread
        self.labels = torch.zeros(count, dtype=torch.int64)
        if classes:
            self.labels = class_numbers(classes, [label_of(clips, index) for index in items])
        self.means, deviations = torch.cat(list(self.encode(network, items))).unbind(1)  # (N, D) each
        self.noise = deviations.square().mean(0)

    @torch.no_grad()
    def encode(self, network: TransformerNetwork, items: Sequence[int]) -> Iterator[Tensor]:
        """Means and deviations (b, 2, D) of some clips after the other."""
        starts = range(0, len(items), CLIPS_AT_A_TIME)
        for start in tqdm(starts, "encoding clips", unit="batch", leave=False, disable=None):
            clips = torch.stack([self.clips[index] for index in items[start : start + CLIPS_AT_A_TIME]])
            posterior = network.posterior(normalize(clips.to(network.canvas.device)))
            moments = [torch.cat([z.flatten(1) for z in levels], dim=1) for levels in posterior]
            yield finite(torch.stack(moments, dim=1), "latents of the video VAE").cpu()

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.means[index], self.labels[index]

    def provenance(self) -> dict[str, Any] | None:
        return provenance_of(self.clips)

    def fingerprint(self) -> str:
        return self.clips.fingerprint()


class PriorRecipe(Recipe):
    """Trains a LatentPrior by flow matching on items of EncodedClips.

    Logged beside the loss: `explained`, the share of the velocity's variance that the flow knows; 0 is the Gaussian.
    """

    name = PRIOR_RECIPE
    ema_networks = ("prior",)

    def __init__(self, prior: LatentPrior, vae: TransformerNetwork, rate: float, decay: float) -> None:
        options = {"betas": BETAS, "weight_decay": decay, "tables": prior.tables}
        super().__init__({"prior": prior}, {"prior": build_optimizer("muon", prior.parameters(), rate, **options)})
        self.config, self.vae = prior.config, vae
        self.frozen = [vae]
        self.shown: list[str] = []  # flags of the command that shows what was learnt

    def losses(self, batch: tuple[Tensor, Tensor], step: Step, networks: Networks) -> Iterator[Losses | None]:
        means, labels = batch
        count = len(self.config.classes)
        if count:
            labels = drop_labels(labels, count, self.config.class_dropout, step.noise.uniform(1)[:, 0])
        error, square = self.errors(means, labels, step, networks)
        yield Losses(error.mean(), {"explained": (1 - error.mean() / square.mean()).detach()})

    def errors(self, means: Tensor, labels: Tensor, step: Step, networks: Networks) -> tuple[Tensor, Tensor]:
        """Mean squared error of the velocity, and mean square of the velocity itself, each (B,)."""
        prior = self.networks["prior"]  # for the numbers of its Gaussian, which are not trained
        end = prior.normalized(means)
        t = step.noise.uniform(1)[:, 0]
        x, velocity = interpolate(prior.start(step.noise), end, t)
        found = networks["prior"](x, t, labels if self.config.classes else None)
        return (found - velocity).square().mean(1), velocity.square().mean(1)

    def evaluate(self, batch: tuple[Tensor, Tensor], step: Step, networks: Networks) -> dict[str, Tensor]:
        error, square = self.errors(*batch, step, networks)
        return {"flow": error, "squares": torch.stack([error, square], dim=1)}

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        error, square = sums["squares"].tolist()
        return {"explained": 1 - error / square}

    def pictures(self, batch: tuple[Tensor, Tensor], step: Step, networks: Networks) -> dict[str, Tensor]:
        shown = SampleNoise(0, range(SAMPLES_SHOWN), step.device)
        x = networks["prior"].flow(networks["prior"].start(shown), FLOW_STEPS)
        latents = Latents(networks["prior"].split(x), self.config.frames, self.config.size)
        return {"samples": self.vae.decode(latents)}

    def show_command(self, run_dir: Path) -> str:
        return command_line(["python", "scripts/generate_video_vae.py", "--checkpoint", str(run_dir.parent)])


def train_prior(args: argparse.Namespace) -> str:
    """The command scripts/train_video_vae_prior.py; gives what is to be said at the end. Raises UserError."""
    folder = Path(args.checkpoint)
    if source_of(folder) != folder:
        raise UserError(f"{source_of(folder)}: is one file, to which no other prior can be added; name a run folder")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: is not the run folder of a video VAE, where its prior is to be stored")
    settings = settings_from(args, folder / PRIOR_FOLDER, args.steps)
    sizes = {
        name: getattr(args, name)
        for name in ("width", "depth", "heads", "patch", "neighbours", "directions", "class_dropout")
    }
    return fit_prior(folder, settings, args.classes, args.clips, args.learning_rate, args.weight_decay, **sizes)


def fit_prior(
    folder: Path,
    settings: TrainSettings,
    with_classes: bool = False,
    most_clips: int = 0,
    rate: float = PRIOR_RATE,
    decay: float = 0.0,
    **sizes: Any,
) -> str:
    """Train the prior of the run in `folder`, or continue it; gives what is to be said at the end. Raises UserError.

    It is stored below the run's folder. `most_clips`: of the training clips that are encoded; 0: all.
    """
    device = distributed.join_processes(settings.device, settings.process_timeout)
    vae, config = load_model(folder, device)
    clips, held_out = open_data(config["data"])
    classes = classes_of(clips) if with_classes else ()
    shapes = [(level.latent_dim, *grid) for grid, level in vae.levels(vae.config.image_size)]
    prior_config = PriorConfig(
        shapes, config["data"]["frames"], tuple(vae.config.image_size),
        classes=list(classes), of_step=step_of(folder), **sizes,
    )  # fmt: skip
    if 0 < (most_clips or len(clips)) < FEWEST_CLIPS:
        raise UserError(f"a prior needs at least {FEWEST_CLIPS} clips to know how they differ; give more --clips")
    training = EncodedClips(vae, clips, classes, most_clips)
    validation = EncodedClips(vae, held_out, classes, HELD_OUT) if held_out else None
    asked = settings.batch_size
    settings = replace(settings, batch_size=min(asked, len(training)))
    torch.manual_seed(derive_seed(settings.seed, "weights"))
    prior = LatentPrior(prior_config)
    prior.fit(training.means, training.noise)
    recipe = PriorRecipe(prior, vae, rate, decay)
    if asked > settings.batch_size:
        recipe.notes.append(f"batch {settings.batch_size} in place of {asked}: there are no more clips")
    complete = {
        "model": asdict(prior_config),
        "optimizer": {"name": "muon", "learning_rate": rate, "weight_decay": decay},
        "data": {**config["data"], "clips": len(training)},
    }
    result = train(recipe, training, settings, complete, validation)
    known = [f"explains {result.metrics['explained']:.3f} of what the Gaussian leaves"] if result.metrics else []
    return result.told(*known)
