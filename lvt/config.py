"""Configuration files and KEY VALUE overrides -> one nested dictionary with every key -> the shape of the two networks.

The keys are those of the original, so that its files work here. A file names those that differ from `DEFAULTS`.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from training import config as yaml_files
from training.config import dotted_keys, from_dict, split_overrides, unknown_key
from training.settings import PRECISIONS
from videodata.errors import UserError

OF_A_RUN = ("model", "engine")  # what the training loop adds to the config.yaml of a run
DOWNSAMPLING = 4  # pixels per code, in height and in width
Triple = tuple[int, int, int]  # (time, height, width)
MASKED_FLAGS = {"passes": "STEPS", "schedule": "SCHEDULE", "order": "ORDER", "choice_temperature": "CHOICE_TEMPERATURE"}
FLAGS = {  # of the scripts, and the keys that each stands for
    **{flag: (f"MODEL.AUTOREGRESSIVE.VT.MASKED.{key}",) for flag, key in MASKED_FLAGS.items()},
    "data": ("DATASETS.TRAIN", "DATASETS.TEST"),
    "run_dir": ("OUTPUT_DIR",),
    "steps": ("SOLVER.MAX_ITER",),
    "batch_size": ("SOLVER.IMS_PER_BATCH",),
    "samples": ("TEST.VT_SAMPLER.NUM_SAMPLES",),
    "given": ("TEST.VT_SAMPLER.N_PRIME",),
    "temperature": ("TEST.VT_SAMPLER.TEMPERATURE",),
    "top_k": ("TEST.VT_SAMPLER.TOP_K",),
    "top_p": ("TEST.VT_SAMPLER.TOP_P",),
    "seed": ("SEED",),
    "device": ("MODEL.DEVICE",),
    "precision": ("SOLVER.PRECISION",),
    "sampler_precision": ("TEST.VT_SAMPLER.PRECISION",),
    "checkpoint": ("MODEL.GENERATOR.WEIGHTS",),
    "tokenizer": ("TEST.VT_SAMPLER.TOKENIZER",),
    "vqvae": tuple(f"TEST.VT_SAMPLER.VQ_VAE.{part}_WEIGHTS" for part in ("ENCODER", "GENERATOR", "CODEBOOK")),
    "out": ("OUTPUT_DIR",),
}


RANGES: dict[str, tuple[float, float]] = {  # of the numbers that would only fail, or do nothing, much later
    **dict.fromkeys(("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATION_STEPS"), (1, math.inf)),
    **dict.fromkeys(("INPUT.SIZE", "TEST.VT_SAMPLER.NUM_SAMPLES"), (1, math.inf)),
    **dict.fromkeys(("DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"), (0, math.inf)),
    **dict.fromkeys(("TEST.VT_SAMPLER.N_PRIME", "TEST.VT_SAMPLER.TOP_K", "MAX_MINUTES"), (0, math.inf)),
    **dict.fromkeys(("SOLVER.LR_G", "SOLVER.CLIP_NORM", "TEST.VT_SAMPLER.TEMPERATURE"), (0.0, math.inf)),
    "MODEL.AUTOREGRESSIVE.VT.CLASS_NUM": (-1, math.inf),
    **dict.fromkeys(("SOLVER.EMA", "TEST.VT_SAMPLER.TOP_P", "MODEL.CODEBOOK.START_AFTER"), (0.0, 1.0)),
}
CHOICES = dict.fromkeys(("SOLVER.PRECISION", "TEST.VT_SAMPLER.PRECISION"), PRECISIONS)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The defaults, under the file (and its _BASE_), under KEY VALUE pairs.

    Raises UserError for unknown keys, naming the nearest one, and for values of another type than the default's.
    """
    config = deepcopy(DEFAULTS)
    loaded = yaml_files.load_config(path)
    if "engine" in loaded and "MODEL" not in loaded:
        raise UserError(f"{path}: is of a run of another model; name a run of train_lvt.py, or one of configs/lvt")
    override(config, {key: value for key, value in loaded.items() if key not in OF_A_RUN}, str(path))
    if not config["MODEL"]["AUTOREGRESSIVE"]["VT"]["CLASSES"]:  # runs noted them there before the key was there
        config["MODEL"]["AUTOREGRESSIVE"]["VT"]["CLASSES"] = list((loaded.get("model") or {}).get("CLASSES") or [])
    for key, value in split_overrides(overrides):
        override(config, nested(key, value), "the command line")
    return config


def configure(args: Namespace) -> dict[str, Any]:
    """The configuration of a command: its --config-file under the flags that were given and the pairs at the end."""
    if misplaced := [word for word in args.opts if word.startswith("--")]:
        raise UserError(
            f"{misplaced[0].partition('=')[0]}: flags stand before the KEY VALUE pairs, which end the command"
        )
    given = [(key, getattr(args, flag, None)) for flag, keys in FLAGS.items() for key in keys]
    flags = [(key, deepcopy(value)) for key, value in given if value is not None]  # one for each key
    config = load_config(args.config_file)
    if getattr(args, "vqvae", None):
        config["TEST"]["VT_SAMPLER"]["TOKENIZER"] = ""  # which would win over it
    for key, value in [*flags, *split_overrides(args.opts)]:
        override(config, nested(key, value), "the command line")
    return config


def override(config: dict[str, Any], changes: dict[str, Any], source: str, prefix: str = "") -> None:
    """Set the values of a nested dictionary in `config`, in place."""
    for key, value in changes.items():
        dotted = prefix + key
        if key not in config:
            raise unknown_key(f"{dotted} of {source}", [f"{prefix}{name} of {source}" for name in config])
        if isinstance(config[key], dict):
            if not isinstance(value, dict):
                raise UserError(f"{source}: {dotted} is a group of keys: {', '.join(dotted_keys(config[key]))}")
            override(config[key], value, source, f"{dotted}.")
        else:
            config[key] = checked(dotted, value, config[key], source)


def checked(key: str, value: Any, default: Any, source: str) -> Any:
    """The value, with the type of the default. Raises UserError when it has another type, or is out of range."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(default, str) and value is None and key not in CHOICES:
        return ""
    if isinstance(default, list) and all(isinstance(entry, str) for entry in default):
        value = {str: [value], type(None): []}.get(type(value), value)  # one name where several are allowed, or none
    if type(value) is type(default):
        low, high = RANGES.get(key, (-math.inf, math.inf))
        if key in RANGES and not low <= value <= high:
            raise UserError(f"{source}: {key} must be {f'{low} .. {high}' if high < math.inf else f'at least {low}'}")
        if value not in CHOICES.get(key, (value,)):
            raise UserError(f"{source}: {key} must be one of {', '.join(CHOICES[key])}, found {value!r}")
        return value
    kinds = {list: "a tuple such as \"('a', 'b')\" or (7, 1, 1)"}
    expected = kinds.get(type(default), type(default).__name__)
    raise UserError(f"{source}: {key} must be {expected}, found {value!r}")


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """ "A.B" and a value -> {"A": {"B": value}}."""
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value


def is_transformer(config: dict[str, Any]) -> bool:
    """Which network a configuration is for. Raises UserError when it does not say."""
    name = config["MODEL"]["META_ARCHITECTURE"]
    if name not in ("VQVAEModel", "VideoTransformerModel"):
        raise UserError(f"MODEL.META_ARCHITECTURE {name!r}: use VQVAEModel or VideoTransformerModel")
    return name == "VideoTransformerModel"


def convnet(in_channels: int, out_channels: int) -> dict[str, Any]:
    """ENCODER or GENERATOR node."""
    return {
        "WEIGHTS": "",  # netE, netG: a published .pth, or a checkpoint or run folder of this project
        "NAME": "",
        "IN_CHANNELS": in_channels,
        "NF": 16,  # width
        "RES_CHANNELS": 0,  # width inside residual blocks
        "OUT_CHANNELS": out_channels,
        "NORM": "",
        "N_LAYERS": 0,  # residual blocks
        "KERNEL": 3,  # (new) of the layers at the resolution of the codes
        "STRIDED_KERNEL": 4,  # (new) of the encoder's two strided layers; 2: of patches that do not overlap
        "SPECTRAL": False,
        "OUT_ACTIVATION": "",
    }


MASKED_CHOICES = {
    "SCHEDULE": ("cosine", "uniform", "exp"),
    "ORDER": ("confidence", "random", "spread"),
    "LOSS": ("masked", "all"),
    "MASKS": ("any", "passes"),
}
MASKED_RANGES: dict[str, tuple[float, float]] = {
    "STEPS": (1, math.inf),
    **dict.fromkeys(("CHOICE_TEMPERATURE", "GUIDANCE"), (0.0, math.inf)),
    **dict.fromkeys(("LABEL_SMOOTHING", "CONTEXT_DROP", "TOKEN_DROPOUT", "RANDOM_GIVEN"), (0.0, 1.0)),
}


@dataclass(frozen=True)
class MaskedConfig:
    """MASKED node: how a masked decoder is sampled and trained. Keys are the names of the fields in capitals."""

    steps: int = 12  # passes for each slice
    schedule: str = "cosine"  # how many codes a pass keeps, see masked.masked_share
    choice_temperature: float = 4.5  # of the noise on the confidence by which codes are kept
    order: str = "confidence"  # of keeping; random and spread are blind to the codes that were drawn
    guidance: float = 1.0  # how far to lead from "no class", or from no context where no class is asked for
    guidance_ramp: bool = False  # from 1 in the first pass to `guidance` in the last
    label_smoothing: float = 1e-4  # 0.1, as with images, makes a tenth of the codes drawn at temperature 1 random
    loss: str = "masked"  # all: visible codes are targets, too
    context_drop: float = 0.1  # share of the samples that a training shows no context: what guidance by it needs
    token_dropout: float = 0.1  # up to this share of the given codes is random in training
    random_given: float = 0.5  # share of the clips with any number of given frames, where slices have several of them
    masks: str = "any"  # of a training: any share of the codes, or those that the passes of STEPS and SCHEDULE leave

    def __post_init__(self) -> None:
        for key, choices in MASKED_CHOICES.items():
            if (value := getattr(self, key.lower())) not in choices:
                raise UserError(f"VT.MASKED.{key} {value!r}: use {', '.join(choices)}")
        for key, (low, high) in MASKED_RANGES.items():
            if not (low <= (value := getattr(self, key.lower())) <= high and math.isfinite(value)):
                allowed = f"{low:g} .. {high:g}" if high < math.inf else f"at least {low:g}"
                raise UserError(f"VT.MASKED.{key} must be {allowed}, found {value:g}")


TRANSFORMER = {
    "NC": 0,  # codebooks
    "NV": 0,  # codes per codebook
    "KERNEL": [],
    "STRIDE": [],  # of the subscale slices
    "D": 0,  # width
    "DA": 0,  # width of one head
    "DE": 0,  # width of embeddings
    "BLOCKS_E": [],  # attention block (t, h, w) of each layer
    "N_HEAD_E": [],
    "BLOCKS_D": [],
    "N_HEAD_D": [],
    "N_PRIME": 0,  # first frames that are neither trained nor counted
    "PAD_VALUE": -1,
    "SHARE_P": True,
    "SHARE_EMBEDDINGS": False,
    "CLASS_NUM": 0,  # > 0: class-conditional; -1: as many classes as DATASETS.TRAIN has
    "CLASSES": [],  # (new) names of the classes; a training sets them
    "CLASS_DROPOUT": 0.0,  # (new) share of the labels that a training drops: what guidance needs
    "TABLE_START": "matrix",  # (new) taps, codebook: where the tables of a fresh network start, see table_start.py
    "DROPOUT": 0.0,  # (new)
    "QKV_INIT": "matrix",  # (new) "tensor": the original's smaller scale
    "ATTENTION": "auto",  # (new) auto, sdpa, flex
    "DECODER": "causal",  # (new) masked: the codes of a slice in a few passes, in any order
    "MASKED": {entry.name.upper(): entry.default for entry in fields(MaskedConfig)},  # (new) of DECODER masked
}
DEFAULTS: dict[str, Any] = {
    "MODEL": {
        "DEVICE": "auto",  # auto, cpu, cuda, cuda:N
        "META_ARCHITECTURE": "",  # VQVAEModel or VideoTransformerModel
        "PIXEL_MEAN": [0.0],
        "PIXEL_STD": [1.0],
        "IGNORE_INDEX": -100,  # (unused)
        "INIT_TYPE": "normal",  # xavier_uniform
        "INIT_VARIANCE": 0.02,  # (unused)
        "GRADIENT_CHECKPOINTING": False,  # (new) transformer: less memory, a third more time
        "AUTOREGRESSIVE": {"NAME": "", "VT": TRANSFORMER},
        "ENCODER": convnet(1, 16),
        "GENERATOR": convnet(16, 3),  # WEIGHTS: also the transformer's
        "CODEBOOK": {
            "NUM": 1,
            "SIZE": 512,
            "DIM": 256,
            "WEIGHTS": "",
            "EMA": False,
            "BETA": 1.0,  # of the commitment loss
            "INIT_FROM_DATA": True,  # (new) begin with vectors of the first batch
            "START_AFTER": 0.0,  # (new) share of the training before the codebooks begin; nothing is quantised before
            "RESTART_BELOW": 0.0,  # (new) replace codes that get fewer vectors per batch; 0: never
        },
    },
    "INPUT": {
        "FORMAT": "L",  # RGB; L only in files that are meant as a base
        "N_FRAMES_PER_VIDEO_TRAIN": -1,  # -1: all frames of a video, as single frames or as a whole
        "N_FRAMES_PER_VIDEO_TEST": -1,
        "SCALE_TO_ZEROONE": True,  # (unused) frames always are scaled, codes never
        "PREPARE_SLICES_TRAIN": False,  # (unused) the transformer always trains on slices
        "SIZE": 64,  # (new) side of the frames
    },
    "GAN_MODE_ON": False,  # (unused)
    "DATASETS": {
        "ROOT": "datasets",  # (new) folder of the named data sets
        "TRAIN": [],  # names, or anything that videodata.open_clips takes, or files of codes
        "TEST": [],
        "VIDEOS": [],  # (new) data sets of frames that ContinuationEvaluator continues
    },
    "DATALOADER": {"NUM_WORKERS": 4, "SAMPLER_TRAIN": "TrainingSampler"},
    "SOLVER": {
        "MAX_ITER": 40000,
        "SUPERVISED_MAX_ITER": -1,  # (unused)
        "LR_SCHEDULER_NAME": "Identity",  # WarmupMultiStepLR, WarmupCosineLR
        "GAMMA": 0.1,
        "STEPS": [],
        "WARMUP_ITERS": -1,
        "WARMUP_FACTOR": 0.01,
        "WARMUP_METHOD": "linear",  # constant
        "OPTIMIZER_NAME": "adam",  # adamw (new), muon (new), rmsprop
        "LR_G": 1e-4,
        "LR_D": 4e-4,  # (unused)
        "WEIGHT_DECAY": {"BASE_G": 0.0, "BIAS_G": 0.0, "NORM_G": 0.0, "BASE_D": 0.0, "BIAS_D": 0.0, "NORM_D": 0.0},
        "ADAM": {"BETA1_G": 0.9, "BETA2_G": 0.9, "BETA1_D": 0.9, "BETA2_D": 0.999},
        "RMSPROP": {"ALPHA_G": 0.99, "ALPHA_D": 0.99, "MOMENTUM_G": 0.0, "MOMENTUM_D": 0.0},
        "ACCUMULATION_STEPS": 1,  # micro-batches per step; the batch is IMS_PER_BATCH all the same
        "CHECKPOINT_PERIOD": 50000,
        "IMS_PER_BATCH": 32,
        "D_UPDATE_RATIO": 1,  # (unused)
        "D_INIT_ITERS": -1,  # (unused)
        "MAXUP": False,  # (unused)
        "SLICES_PER_CLIP": 1,  # (new) slices trained per clip and step; -1: all
        "CLIP_NORM": 0.0,  # (new) gradient norm; 0: no clipping
        "EMA": 0.0,  # (new) decay of averaged weights; 0: none
        "PRECISION": "fp32",  # (new) bf16, fp16; auto: bf16 where the processor multiplies it faster
        "COMPILE": False,  # (new) torch.compile
    },
    "LOSS": {
        "PIXEL": {"ONN": False, "LAMBDA": 1.0, "MODE": "l2"},
        "PERCEPTUAL": {"LAMBDA": 0.0, "WEIGHTS": ""},  # (new) LPIPS in the VQ-VAE's loss
        "GAN": {  # (unused)
            "ONN": False, "LAMBDA_G": 1.0, "LAMBDA_D": 1.0, "REAL_LABEL": 1.0, "FAKE_LABEL": 0.0, "MODE": "wgan",
        },
    },
    "TEST": {
        "EXPECTED_RESULTS": [],  # (task, metric, value, tolerance); a miss ends with status 1
        "EVAL_PERIOD": 0,  # steps between evaluations while training; 0: at the end
        "N_SAMPLES": 0,  # > 0: evaluate that many items, evenly spread
        "EVALUATORS": "",  # of MSEEvaluator, CodesExtractor, BitsEvaluator, VTSampler, separated by commas
        "VT_SAMPLER": {
            "TOKENIZER": "",  # (new) any tokenizer, in place of VQ_VAE; default: the one that made the codes
            "TOKENIZER_DIGEST": "",  # (new) of its weights; a training notes it
            "VQ_VAE": {"CFG": "", "ENCODER_WEIGHTS": "", "GENERATOR_WEIGHTS": "", "CODEBOOK_WEIGHTS": ""},
            "N_PRIME": 5,  # frames that are given
            "NUM_SAMPLES": 10,  # samples per clip, all at once
            "TEMPERATURE": 1.0,  # (new)
            "TOP_K": 0,  # (new) 0: all codes
            "TOP_P": 1.0,  # (new)
            "PRECISION": "fp32",  # (new) of the transformer: bf16, fp16; auto: bf16 where that is faster
        },
    },
    "OUTPUT_DIR": "./output",
    "SEED": -1,  # -1: 0
    "CUDNN_BENCHMARK": True,  # (unused)
    "VIS_PERIOD": 100000000000,  # steps between pictures
    "LOG_PERIOD": 20,  # (new) steps between lines of the log
    "MAX_MINUTES": 0.0,  # (new) save and stop after this time; 0: no limit
    "VERSION": 1,
    "GLOBAL": {"HACK": 1.0},  # (unused)
}  # fmt: skip


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a VideoTransformer; the comment of each field is its key in the VT node of a file."""

    nc: int  # NC: codebooks, that is codes per position
    nv: int  # NV: codes per codebook
    kernel: Triple  # KERNEL of the encoder's strided convolution, odd
    stride: Triple  # STRIDE of the subscale slices
    d: int  # D: width
    da: int  # DA: width of one head
    de: int  # DE: width of code and slice embeddings
    blocks_e: tuple[Triple, ...]  # BLOCKS_E: attention block of each encoder layer
    n_head_e: tuple[int, ...]  # N_HEAD_E
    blocks_d: tuple[Triple, ...]  # BLOCKS_D
    n_head_d: tuple[int, ...]  # N_HEAD_D
    n_prime: int = 0  # N_PRIME: frames at the start that are neither trained nor counted
    pad_value: int = -1  # PAD_VALUE: stands for "outside the clip or not yet known"
    share_p: bool = True  # SHARE_P: one output layer for all codebooks
    share_embeddings: bool = False  # SHARE_EMBEDDINGS: the code embeddings are the output layer
    class_num: int = 0  # CLASS_NUM: classes to condition on; 0: none
    classes: tuple[str, ...] = ()  # CLASSES: their names, where they are known
    class_dropout: float = 0.0  # CLASS_DROPOUT: share of the labels that a training drops; 0: "no class" is no class
    table_start: Literal["matrix", "taps", "codebook"] = "matrix"  # TABLE_START of a fresh network's tables
    dropout: float = 0.0  # DROPOUT after attention and after the feed-forward layer
    qkv_init: Literal["matrix", "tensor"] = "matrix"  # QKV_INIT, see layers.initialize_heads
    attention: Literal["auto", "sdpa", "flex"] = "auto"  # ATTENTION, see layers.BlockLocalAttention
    decoder: str = "causal"  # DECODER
    masked: MaskedConfig = MaskedConfig()  # MASKED

    def __post_init__(self) -> None:
        if self.decoder not in ("causal", "masked"):
            raise UserError(f"VT.DECODER {self.decoder!r}: use causal or masked")
        if not self.blocks_d or len(self.blocks_e) != len(self.n_head_e) or len(self.blocks_d) != len(self.n_head_d):
            raise UserError("VT: BLOCKS_E and N_HEAD_E, BLOCKS_D and N_HEAD_D need one entry per layer")
        if any(size % 2 == 0 for size in self.kernel) or min(self.stride) < 1:
            raise UserError(f"VT: KERNEL must be odd and STRIDE positive, found {self.kernel} and {self.stride}")
        if min(self.nc, self.nv, self.d, self.da, self.de) < 1:
            raise UserError("VT: NC, NV, D, DA and DE must be positive")
        if self.n_prime < 0:
            raise UserError(f"VT: N_PRIME must not be negative, found {self.n_prime}")
        if self.share_p and self.share_embeddings:
            raise UserError("VT: SHARE_EMBEDDINGS needs SHARE_P False")
        if self.pad_value >= 0:
            raise UserError(f"VT: PAD_VALUE must be negative, found {self.pad_value}")
        if self.class_num < 0 or (self.class_dropout and not self.class_num) or not 0 <= self.class_dropout < 1:
            raise UserError(
                f"VT: CLASS_NUM {self.class_num} and CLASS_DROPOUT {self.class_dropout} do not fit: a share below 1 of "
                "the labels of at least one class (-1 counts the classes of DATASETS.TRAIN in a training)"
            )
        if len(self.classes) > self.class_num:
            raise UserError(f"VT: CLASS_NUM {self.class_num} is less than the {len(self.classes)} names in CLASSES")

    @property
    def n_slices(self) -> int:
        """Slices of a clip, one for each offset of the stride."""
        return self.stride[0] * self.stride[1] * self.stride[2]

    @property
    def no_class(self) -> int | None:
        """The number that stands for "no class"; None for a model that has not learned it."""
        return self.class_num if self.class_dropout else None


@dataclass(frozen=True)
class ConvNetConfig:
    """ENCODER or GENERATOR node: one half of the VQ-VAE."""

    name: str = ""
    in_channels: int = 1
    nf: int = 16  # width
    res_channels: int = 0  # width inside the residual blocks
    out_channels: int = 16  # the encoder's output always has NF channels
    norm: str = ""
    n_layers: int = 0  # residual blocks
    kernel: int = 3  # of the layers at the resolution of the codes
    strided_kernel: int = 4  # of the encoder's two strided layers
    spectral: bool = False
    out_activation: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        if self.norm or self.spectral:
            raise UserError("NORM and SPECTRAL are not supported: no published model uses them, leave them empty")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(f"ENCODER and GENERATOR: KERNEL must be odd, found {self.kernel}")
        if self.strided_kernel not in (2, 4):
            raise UserError(f"ENCODER: STRIDED_KERNEL must be 2 or 4, found {self.strided_kernel}")


@dataclass(frozen=True)
class CodebookConfig:
    """CODEBOOK node."""

    num: int = 1  # codebooks; each quantises DIM / NUM channels
    size: int = 512  # codes per codebook
    dim: int = 256  # channels of all codebooks together
    ema: bool = False  # codes follow the mean of their vectors, in place of gradients
    beta: float = 1.0  # weight of the commitment loss
    init_from_data: bool = True  # a fresh codebook starts from vectors of the first batch
    start_after: float = 0.0  # share of the training in which nothing is quantised yet
    restart_below: float = 0.0  # a code that gets fewer vectors per batch (running mean) is replaced; 0: never
    weights: str = ""

    def __post_init__(self) -> None:
        if self.num < 1 or self.dim % self.num:
            raise UserError(f"CODEBOOK: NUM {self.num} must divide DIM {self.dim}")
        if not 0 <= self.start_after < 1 or (self.start_after and not (self.ema and self.init_from_data)):
            raise UserError("CODEBOOK: START_AFTER is a share below 1, and needs EMA and INIT_FROM_DATA")


@dataclass(frozen=True)
class VQVAEConfig:
    """Shape and loss of a VQVAE."""

    encoder: ConvNetConfig
    generator: ConvNetConfig
    codebook: CodebookConfig
    pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    pixel_loss: Literal["l1", "l2"] = "l2"
    pixel_weight: float = 1.0
    perceptual_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.encoder.nf != self.codebook.dim or self.generator.in_channels != self.codebook.dim:
            raise UserError(
                f"ENCODER.NF {self.encoder.nf}, CODEBOOK.DIM {self.codebook.dim} and GENERATOR.IN_CHANNELS "
                f"{self.generator.in_channels} must be equal"
            )


def transformer_config(node: Mapping[str, Any]) -> TransformerConfig:
    """The config of a VT node, or of a configuration that holds one. Raises UserError for unknown keys."""
    for path in (("MODEL", "AUTOREGRESSIVE", "VT"), ("AUTOREGRESSIVE", "VT"), ("VT",)):
        found: Any = node
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            node = found
            break
    values = lower_keys(node, TransformerConfig, "VT")
    if isinstance(values.get("masked"), Mapping):
        values["masked"] = lower_keys(values["masked"], MaskedConfig, "VT.MASKED")
    return from_dict(TransformerConfig, values, "VT")


def vqvae_config(node: Mapping[str, Any]) -> VQVAEConfig:
    """The config of a MODEL node, or of a configuration that holds one. Raises UserError for unknown keys.

    The keys of the loss are read from LOSS.PIXEL and LOSS.PERCEPTUAL of a whole configuration, or from
    LOSS_PIXEL_MODE.
    """
    model = node.get("MODEL", node)
    try:
        halves = {name: model[name] for name in ("ENCODER", "GENERATOR", "CODEBOOK")}
    except KeyError as error:
        raise UserError(f"a VQVAE needs the node {error} in its configuration") from error
    pixel = node.get("LOSS", {}).get("PIXEL", {})
    perceptual = node.get("LOSS", {}).get("PERCEPTUAL", {})
    values = {
        "encoder": from_dict(ConvNetConfig, lower_keys(halves["ENCODER"], ConvNetConfig, "ENCODER")),
        "generator": from_dict(ConvNetConfig, lower_keys(halves["GENERATOR"], ConvNetConfig, "GENERATOR")),
        "codebook": from_dict(CodebookConfig, lower_keys(halves["CODEBOOK"], CodebookConfig, "CODEBOOK")),
        "pixel_mean": model.get("PIXEL_MEAN", (0.5, 0.5, 0.5)),
        "pixel_std": model.get("PIXEL_STD", (0.5, 0.5, 0.5)),
        "pixel_loss": model.get("LOSS_PIXEL_MODE", pixel.get("MODE", "l2")),
        "pixel_weight": pixel.get("LAMBDA", 1.0),
        "perceptual_weight": perceptual.get("LAMBDA", 0.0),
    }
    return from_dict(VQVAEConfig, values, "MODEL")


def lower_keys(node: Mapping[str, Any], kind: type, where: str) -> dict[str, Any]:
    """The node with the field names of `kind`. Raises UserError naming the nearest known key for an unknown one."""
    known = {entry.name.upper() for entry in fields(kind)}
    for key in node:
        if key not in known:
            raise unknown_key(f"{where}.{key}", [f"{where}.{name}" for name in known])
    return {key.lower(): value for key, value in node.items()}
