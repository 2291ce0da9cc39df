"""The settings of the trainings: of a video prediction run (the original's keys, and ours with defaults), of the
autoencoder, and of the fork in the plane. Needs no torch, so that commands can show their defaults at once.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training import config as yaml_files
from training.config import from_dict
from training.settings import PRECISIONS
from videodata.errors import UserError

COMPONENTS = ("river", "f_nll", "f_mse", "d", "g")
BACKBONES = ("transformer", "conv")
CHOICES = {
    "diffusion_loss": ("nll", "reference"),
    "diffusion_start": ("random", "residual"),
    "condition": ("random", "last"),
    "prediction": ("velocity", "frame"),
}  # of keys of the model
RIVER_FINAL_RATE = 1e-7  # the learning rate at the end of the original's schedule
SDE_FINAL_SHARE = 1e-3  # the same for the neural SDE, as a share of the learning rate
UNREAD = {
    "data": ("type", "max_num_videos", "offset", "albumentations"),
    "vector_field_regressor": ("type",),
    "training": ("num_epochs",),
    "evaluation": ("batching", "num_observations"),
}  # keys of the original's files that change nothing there or here


@dataclass
class DataConfig:
    """Where the videos are and how clips are cut."""

    data_root: str
    input_size: int
    crop_size: int
    frames_per_sample: int
    skip_frames: int = 0
    random_horizontal_flip: bool = False
    aug: bool = False  # colour augmentation, one draw per clip
    latents: str | None = None  # folder of encode.py or encode_latents.py: train on these in place of pictures
    texts: str | None = None  # folder of cached T5 embeddings of the labels, which are captions then


@dataclass
class RegressorConfig:
    """Size of the network."""

    state_size: int
    state_res: list[int]
    inner_dim: int = 768
    depth: int = 4
    mid_depth: int = 5
    out_norm: str = "ln"
    dropout: float = 0.05
    checkpointing: bool = False
    backbone: str = "transformer"  # or conv: residual convolutions, `depth` blocks; mid_depth and out_norm act on none


@dataclass
class ModelConfig:
    """Which network is trained, on what, over which autoencoder."""

    vector_field_regressor: RegressorConfig
    autoencoder: dict[str, Any]
    func: str = "river"  # river, f_nll, f_mse, d, g
    sigma: float = 1e-7
    reference: bool = True
    num_input_frames: int = 4  # of a state of the neural SDE, and of RIVER's condition `last`
    condition: str = "random"  # RIVER sees the last frame and a random earlier one; or `last`: the last frames
    prediction: str = "velocity"  # what RIVER's network answers with; or `frame`: the next frame less the last one
    context_noise: float = 0.0  # largest noise on the frames that RIVER sees in training, which its own will have
    unroll: int = 1  # frames that RIVER predicts in a row in training, each from those before it; two at first
    start_share: float = 0.0  # of the path or interval times that are drawn at 0, where a sample starts
    noise_std: float = 0.1
    logit_range: list[float] = field(default_factory=lambda: [-9.0, 1.0])
    diffusion_loss: str = "nll"  # nll, or reference: the original's, which underestimates the noise
    classes: list[str] | str = field(default_factory=list)  # RIVER is told a clip's label: names, or `auto`: the data's
    class_dropout: float = 0.1  # share of training clips whose label is kept back, so that guidance has a comparison
    text_width: int = 0  # of the cached text embeddings that stand for the classes (data.texts); 0: a learned table
    diffusion_start: str = "random"  # or residual: g starts at the mean size of what its flow leaves unexplained
    start_from: str | None = None  # run folder or file of a trained network of the same sizes, to be trained on
    f_ckpt_path: str | None = None
    d_ckpt_path: str | None = None
    latent_mean: list[float] | str | None = None  # per channel; auto: measured once; null: 0
    latent_std: list[float] | str | None = None

    @property
    def role(self) -> str:
        """river, f, d or g."""
        return self.func.split("_")[0]


@dataclass
class BatchingConfig:
    """Batches of the training."""

    batch_size: int = 16
    num_workers: int = 0


@dataclass
class OptimizerConfig:
    """Which optimiser, and its learning rate."""

    learning_rate: float = 1e-4
    weight_decay: float = 5e-6
    num_warmup_steps: int = 5000  # --warmup_steps says otherwise
    num_training_steps: int = 300_000  # --steps says otherwise
    name: str = "adamw"  # or muon, which learns from fewer clips; any of training.optim
    clip: float = 0.0  # of the gradient's norm; 0: off; --clip says otherwise
    ema: float = 0.0  # decay of the averaged weights that are evaluated and used; 0: off; --ema says otherwise
    schedule: str = "sqrt"  # after the warm-up; the original's, or any of training.settings; --schedule says otherwise


@dataclass
class LossWeights:
    """Factor on the loss."""

    flow_matching_loss: float = 1.0


@dataclass
class TrainingConfig:
    """One run."""

    num_observations: int  # latent frames, as are num_input_frames of the model; other numbers of frames are of videos
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    condition_frames: int = 4
    frames_to_generate: int = 12
    loss_weights: LossWeights = field(default_factory=LossWeights)
    precision: str = "fp32"  # bf16, fp16, or auto: bf16 where the processor has it; --precision says otherwise


@dataclass
class EvaluationConfig:
    """Sampling, where the command line does not say otherwise."""

    condition_frames: int | None = None
    frames_to_generate: int | None = None
    steps: int | None = None  # per frame
    solver: str | None = None
    past_horizon: int = -1
    warm_sampling: float = 0.0
    alpha: float = 1.0  # weight of the neural SDE's denoiser
    diffusion_scale: float = 1.0  # factor on its noise


@dataclass(frozen=True)
class AutoencoderObjective:
    """What the autoencoder of type `ours` is trained for: weights and rates."""

    optimizer: str = "adam"  # or muon, which learns from fewer frames
    learning_rate: float = 1e-4
    vq_warmup: int = 500  # first steps without the quantiser; its codes then start at the k-means of the latents
    vq_weight: float = 1.0
    latent_noise: float = 0.0  # on what is decoded in training, as a share of the spread of the image's latents
    latent_penalty: float = 0.0  # of the latents' mean square, which keeps them from outgrowing that noise
    blend_weight: float = 1.0  # of frames decoded from blended latents, for clips of 3 frames or more
    perceptual_weight: float = 0.0  # of LPIPS


@dataclass
class AutoencoderTraining:
    """How the autoencoder of type `ours` is trained, where the command line does not say otherwise."""

    steps: int = 100_000
    batch_size: int = 16
    warmup_steps: int = 0
    clip_frames: int = 1  # from 3 on, latents in between learn to show the frames in between
    clip_stride: int = 1
    objective: AutoencoderObjective = field(default_factory=AutoencoderObjective)


@dataclass
class FlowPredConfig:
    """All of it."""

    name: str
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    autoencoder_training: AutoencoderTraining = field(default_factory=AutoencoderTraining)


@dataclass(frozen=True)
class BifurcationSettings:
    """How the three networks on the fork in the plane are trained."""

    hidden: int = 64
    blocks: int = 3
    batch: int = 512
    steps: int = 1500
    rate: float = 2e-3  # of flow and denoiser
    diffusion_rate: float = 1e-3
    average: float = 0.995  # decay of the averaged weights
    noise_std: float = 0.1
    log_range: tuple[float, float] = (-7.5, -2.5)  # of the noise amplitude


def load_config(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> tuple[FlowPredConfig, dict[str, Any]]:
    """The typed configuration and its plain form. Raises UserError for unknown keys and impossible values."""
    values = yaml_files.load_config(alias(Path(path)), overrides, FlowPredConfig)
    return parse_config(values), values


def alias(path: Path) -> Path:
    """The file; "null" in its name is another word for "nll"."""
    renamed = path.with_name(path.name.replace("-null", "-nll"))
    return renamed if renamed.exists() and not path.exists() else path


def same_run(folder: Path) -> Path:
    """The run folder that is there under this name, or with nll for null, or the other way round; else as given."""
    others = (folder.with_name(folder.name.replace(*pair)) for pair in (("-null", "-nll"), ("-nll", "-null")))
    return folder if folder.exists() else next((other for other in others if other.exists()), folder)


def parse_config(values: dict[str, Any]) -> FlowPredConfig:
    """The typed form of plain values. Raises UserError."""
    config = from_dict(FlowPredConfig, without_unread(values))
    model, training = config.model, config.training
    if model.func not in COMPONENTS:
        raise UserError(f"model.func must be one of {', '.join(COMPONENTS)}, found {model.func!r}")
    for key, allowed in CHOICES.items():
        if getattr(model, key) not in allowed:
            raise UserError(f"model.{key} must be {' or '.join(allowed)}, found {getattr(model, key)!r}")
    if not 0 <= model.start_share <= 1:
        raise UserError(f"model.start_share must lie between 0 and 1, found {model.start_share}")
    if model.classes and model.role != "river":
        raise UserError("model.classes is a condition of RIVER; the neural SDE has none")
    if not 0 <= model.class_dropout <= 1:
        raise UserError(f"model.class_dropout must lie between 0 and 1, found {model.class_dropout}")
    if (config.data.texts or model.text_width) and not model.classes:
        raise UserError("texts stand for classes: set model.classes=auto beside data.texts")
    if (model.context_noise or model.unroll != 1) and model.condition != "last":
        raise UserError("model.context_noise and model.unroll need model.condition: last")
    most = training.num_observations - model.num_input_frames
    if model.role == "river" and model.condition == "last" and not 1 <= model.unroll <= most:
        raise UserError(f"model.unroll must lie between 1 and {most}, found {model.unroll}")
    if training.precision not in PRECISIONS:
        raise UserError(f"training.precision must be one of {', '.join(PRECISIONS)}, found {training.precision!r}")
    backbone = model.vector_field_regressor.backbone
    if backbone not in BACKBONES:
        raise UserError(f"model.vector_field_regressor.backbone must be transformer or conv, found {backbone!r}")
    least = 3 if model.role == "river" and model.condition == "random" else model.num_input_frames + 1
    if training.num_observations < least:
        raise UserError(f"training.num_observations must be at least {least}, found {training.num_observations}")
    if config.data.frames_per_sample < training.num_observations:
        raise UserError("data.frames_per_sample must not be smaller than training.num_observations")
    return config


def without_unread(values: dict[str, Any]) -> dict[str, Any]:
    """A copy without the keys that nothing reads."""
    copy = {}
    for key, value in values.items():
        if isinstance(value, dict):
            value = without_unread({k: v for k, v in value.items() if k not in UNREAD.get(key, ())})
        copy[key] = value
    return copy


def plain_config(config: FlowPredConfig) -> dict[str, Any]:
    """The configuration for the run folder; paths that say where something lies stay out of the model's part."""
    values: dict[str, Any] = dataclasses.asdict(config)
    model = values["model"]
    where = {key: model.pop(key) for key in ("f_ckpt_path", "d_ckpt_path")}
    model["autoencoder"] = {key: value for key, value in model["autoencoder"].items() if key != "ckpt_path"}
    where["autoencoder"] = config.model.autoencoder.get("ckpt_path")
    return {**values, "checkpoints": where}


def stored_config(values: dict[str, Any]) -> FlowPredConfig:
    """The typed form of a run folder's configuration, without what `plain_config` and the training loop added."""
    known = {entry.name for entry in dataclasses.fields(FlowPredConfig)}
    return parse_config({key: value for key, value in values.items() if key in known})


def configure_autoencoder(args: argparse.Namespace) -> FlowPredConfig:
    """The configuration of a training of the autoencoder under the flags that were given."""
    config, _ = load_config(args.config, args.overrides)
    training = config.autoencoder_training
    names = [entry.name for entry in dataclasses.fields(AutoencoderObjective)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    training.objective = dataclasses.replace(training.objective, **given)
    for key in ("steps", "batch_size", "warmup_steps", "clip_frames", "clip_stride"):
        if getattr(args, key) is not None:
            setattr(training, key, getattr(args, key))
    if args.data:
        config.data.data_root = args.data
    return config


def configure(args: argparse.Namespace) -> FlowPredConfig:
    """The configuration under the flags: those that were given replace its values, so that it says what acted."""
    config, _ = load_config(args.config, args.overrides)
    batching, optimizer = config.training.batching, config.training.optimizer
    for part, key, value in (
        (config.data, "data_root", args.data),
        (batching, "batch_size", args.batch_size),
        (batching, "num_workers", args.workers),
        (optimizer, "num_training_steps", args.steps),
        (optimizer, "num_warmup_steps", args.warmup_steps),
        (optimizer, "schedule", args.schedule),
    ):
        if value is not None:
            setattr(part, key, value)
    if args.autoencoder:
        config.model.autoencoder["ckpt_path"] = args.autoencoder
    if args.tokenizer:
        config.model.autoencoder = {"type": "tokenizer", "ckpt_path": args.tokenizer}
    return config
