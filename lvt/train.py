"""How the two networks are trained: the VQ-VAE on frames, the transformer on slices of clips of codes; and the command
scripts/train_lvt.py.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from evaluation.codebook import CodebookUsage, code_counts
from losses.perceptual import LPIPS
from lvt.codes import Cells, decode_codes
from lvt.config import configure, is_transformer
from lvt.datasets import (
    class_names,
    codebook_path,
    known_classes,
    name_tokenizer,
    open_code_windows,
    open_frames,
    thinned,
    together,
    trained_cells,
    with_part,
)
from lvt.evaluators import evaluate_lvt, evaluators_of, missed_expectations
from lvt.files import (
    build_transformer,
    build_vqvae,
    find_sampler_tokenizer,
    load_transformer_weights,
    load_vqvae_weights,
    write_original,
)
from lvt.generate import generate_frames
from lvt.masked import hide, masked_loss, masked_nats, random_order_nats
from lvt.scores import squared_error
from lvt.solver import optimizer_of, precision_of, schedule
from lvt.subscale import slice_frames, slice_of_position
from lvt.table_start import start_tables
from lvt.transformer import VideoTransformer, bits_per_code, clip_nats, cross_entropy
from lvt.vqvae import VQVAE, decode_clips, encode_clips
from training import TrainSettings, distributed, train
from training.conditions import drop_labels
from training.randomness import seed_everything
from training.recipe import Losses, Networks, Recipe, Step
from training.tokenizer import Tokenizer
from videodata import pixels
from videodata.errors import UserError
from videodata.npy import read_array
from videodata.provenance import provenance_of

logger = logging.getLogger(__name__)
CLIPS_SHOWN, FRAMES_SHOWN = 4, 8  # in the log's pictures
DRAWS_WHILE_TRAINING = 4  # masks per slice and clip of the bound: many clips make up for it
FREE_KEYS = frozenset(
    {
        *("MAX_ITER", "DEVICE", "NUM_WORKERS", "OUTPUT_DIR", "CHECKPOINT_PERIOD", "EVAL_PERIOD", "VIS_PERIOD"),
        *("LOG_PERIOD", "MAX_MINUTES", "EVALUATORS", "N_SAMPLES", "TEST", "GRADIENT_CHECKPOINTING", "COMPILE", "CFG"),
        *("WEIGHTS", "ENCODER_WEIGHTS", "GENERATOR_WEIGHTS", "CODEBOOK_WEIGHTS", "NUM_SAMPLES", "TEMPERATURE"),
        *("TOP_K", "TOP_P", "EXPECTED_RESULTS", "TABLE_START", "TOKENIZER", "TOKENIZER_DIGEST"),
        "TEST.VT_SAMPLER.PRECISION",  # and not that of the solver
        *("MASKED", "SCHEDULE", "CHOICE_TEMPERATURE", "ORDER", "GUIDANCE", "GUIDANCE_RAMP"),
        *("MASKS", "RANDOM_GIVEN"),  # which runs of before do not have
    }
)  # configuration keys that a continued run may change


NEW_KEYS = {"KERNEL": 3, "STRIDED_KERNEL": 4, "CLASS_DROPOUT": 0.0, "DECODER": "causal"}  # of a network's shape
NO_SHAPE = ("CLASSES", "MASKED")  # keys of a VT node that say nothing of it
MISSING = object()


class LVTRecipe(Recipe):
    """What both networks have in common."""

    free_keys = FREE_KEYS
    held_out: str | None = None  # flags of evaluate.py for clips that are not trained on

    def show_command(self, run_dir: Path) -> str | None:
        if self.held_out is None:
            return None
        return f"python scripts/evaluate.py lvt --checkpoint {run_dir} {self.held_out} --clips_dir {run_dir}/clips"


class VQVAERecipe(LVTRecipe):
    """Trains a VQVAE on clips (B, 3, T, H, W) uint8, frame by frame. `config` is the whole configuration."""

    name = "lvt-vqvae"
    best_metric = ("mse", "min")
    ema_networks = ("vqvae",)

    def show_command(self, run_dir: Path) -> str:
        """The command that comes next: that which encodes the videos for the transformer."""
        return f"python scripts/train_lvt.py --config-file {run_dir}/config.yaml --run_dir {run_dir} --encode"

    def __init__(self, model: VQVAE, config: dict[str, Any]) -> None:
        super().__init__({"vqvae": model}, {"vqvae": optimizer_of(model, config)})
        self.first_quantized = int(config["SOLVER"]["MAX_ITER"] * model.config.codebook.start_after)  # step
        weight, file = config["LOSS"]["PERCEPTUAL"]["LAMBDA"], config["LOSS"]["PERCEPTUAL"]["WEIGHTS"]
        self.perceptual_weight = weight
        self.perceptual = LPIPS(weights=file or None) if weight > 0 else None

    def losses(self, batch: Tensor, step: Step, networks: Networks) -> Iterator[Losses | None]:
        model = self.networks["vqvae"]
        frames = model.normalize(frames_of(batch)).contiguous(memory_format=torch.channels_last)  # faster on CPUs
        out = networks["vqvae"](frames, step.index >= self.first_quantized)
        terms = model.losses(frames, out)
        if self.perceptual is not None:
            distance = self.perceptual(out.reconstruction, frames)
            terms["perceptual"] = self.perceptual_weight * distance.mean()
        logged = {name: value.detach() for name, value in terms.items()}
        usage = {} if out.codes is None else model.quantizer.usage(out.codes)
        yield Losses(sum(terms.values()), {**logged, **usage})

    def evaluate(self, batch: Tensor, step: Step, networks: Networks) -> dict[str, Tensor]:
        model, clips = networks["vqvae"], pixels.normalize(batch)
        codes = encode_clips(model, clips)  # (B, C, T, h, w)
        counts = [code_counts(own, model.config.codebook.size) for own in codes.unbind(1)]
        return {"mse": squared_error(decode_clips(model, codes), clips), "codes": torch.cat(counts, 1)}

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Use of the codebooks over the whole validation set, mean over them."""
        size = self.networks["vqvae"].config.codebook.size
        usages = [CodebookUsage(size, counts) for counts in sums["codes"].split(size)]
        shares, perplexities = zip(*((usage.used_share, usage.perplexity) for usage in usages), strict=True)
        return {"perplexity": fmean(perplexities), "code_usage": fmean(shares)}

    def pictures(self, batch: Tensor, step: Step, networks: Networks) -> dict[str, Tensor]:
        model, frames = networks["vqvae"], pixels.normalize(frames_of(batch[:FRAMES_SHOWN, :, :1]))
        return {"original": frames, "reconstruction": model.denormalize(model.decode(model.encode(frames)))}


class TransformerRecipe(LVTRecipe):
    """Trains a VideoTransformer on {"codes": (B, C, T, h, w), "class_index": (B,)}.

    SOLVER.SLICES_PER_CLIP different slices of each clip are trained in a step, -1: all that have anything to predict.
    `tokenizer` decodes the samples of the log; None: no pictures. cells: what a code stands for.
    """

    name = "lvt-transformer"
    best_metric = ("bits_per_code", "min")
    ema_networks = ("transformer",)

    def __init__(
        self, model: VideoTransformer, config: dict[str, Any], tokenizer: Tokenizer | None = None,
        cells: Cells | None = None,
    ) -> None:  # fmt: skip
        super().__init__({"transformer": model}, {"transformer": optimizer_of(model, config)})
        self.slices_per_clip = config["SOLVER"]["SLICES_PER_CLIP"]
        if not self.slices_per_clip:
            raise UserError("SOLVER.SLICES_PER_CLIP must be at least 1, or -1 for all, found 0")
        self.sampler = config["TEST"]["VT_SAMPLER"]
        self.tokenizer, self.cells = tokenizer, cells or Cells()
        self.frozen = [] if tokenizer is None else [tokenizer.module]

    def losses(self, batch: dict[str, Tensor], step: Step, networks: Networks) -> Iterator[Losses | None]:
        model = self.networks["transformer"]
        codes, index, classes = self.chosen(batch, step)
        clip, stride = tuple(codes.shape[2:]), model.config.stride
        codes, index = codes.repeat_interleave(index.shape[1], 0), index.flatten()
        context, slice_codes = model.slice_inputs(codes, index)
        ignore = slice_frames(index, clip, stride)[:, None] < model.config.n_prime
        logits = networks["transformer"](context, slice_codes, index, classes)
        # Processes differ in how many positions count: weighted so that their mean is the mean over all positions.
        count = (~ignore).sum()
        share = count * distributed.world_size() / distributed.all_sum(count)
        loss = cross_entropy(logits, slice_codes, ignore) * share
        yield Losses(loss, {"bits_per_code": bits_per_code(loss.detach(), 1)})

    def chosen(self, batch: dict[str, Tensor], step: Step) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes (B, C, T, h, w), slices (B, S) of each clip that are trained, and classes (B S,), some of them dropped
        and the same for all slices of a clip.
        """
        config, (codes, classes) = self.networks["transformer"].config, self.unpack(batch)
        index = self.choose_slices(tuple(codes.shape[2:]), step)
        if classes is not None and config.class_dropout:
            classes = drop_labels(classes, config.no_class, config.class_dropout, step.noise.uniform())
        return codes, index, None if classes is None else classes.repeat_interleave(index.shape[1])

    def choose_slices(self, clip: tuple[int, int, int], step: Step) -> Tensor:
        """Numbers of different slices with something to predict, drawn per sample: int64 (B, slices)."""
        config = self.networks["transformer"].config
        useful = slice_of_position(clip, config.stride)[config.n_prime :].unique().to(step.device)
        if not len(useful):
            raise UserError(f"clips of {clip[0]} frames have nothing after the first N_PRIME {config.n_prime}")
        count = len(useful) if self.slices_per_clip < 0 else min(self.slices_per_clip, len(useful))
        order = step.noise.uniform(len(useful)).argsort(1)
        return useful[order[:, :count]]

    def evaluate(self, batch: dict[str, Tensor], step: Step, networks: Networks) -> dict[str, Tensor]:
        model, (codes, classes) = networks["transformer"], self.unpack(batch)
        bits = bits_per_code(*clip_nats(model, codes, model.config.n_prime, classes))
        subpixels = self.cells.subpixels_per_code(tuple(codes.shape[1:]))
        return {"bits_per_code": bits, "bits_per_subpixel": bits / subpixels}

    def pictures(self, batch: dict[str, Tensor], step: Step, networks: Networks) -> dict[str, Tensor]:
        if self.tokenizer is None:
            return {}
        codes, classes = self.unpack(batch)
        codes, classes = codes[:CLIPS_SHOWN], None if classes is None else classes[:CLIPS_SHOWN]
        samples = generate_frames(
            networks["transformer"], self.tokenizer, codes, self.sampler["N_PRIME"], codes.shape[2],
            seeds=range(len(codes)), class_idx=classes,
        )  # fmt: skip
        return {"codes decoded": decode_codes(self.tokenizer, codes), "continuation": samples}

    def unpack(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Codes int64 (B, C, T, h, w), and the classes (B,) where the model is conditioned on them."""
        codes, config = batch["codes"].long(), self.networks["transformer"].config
        return codes, known_classes(config, batch["class_index"]) if config.class_num else None


class MaskedTransformerRecipe(TransformerRecipe):
    """Trains a VideoTransformer with a masked decoder, likewise: it fills in what is hidden of the slices."""

    name = "lvt-masked-transformer"
    best_metric = ("bits_bound", "min")

    def losses(self, batch: dict[str, Tensor], step: Step, networks: Networks) -> Iterator[Losses | None]:
        model = self.networks["transformer"]
        codes, index, classes = self.chosen(batch, step)
        hidden = hide(model, codes, index, step.noise)
        logits = networks["transformer"](hidden.context, hidden.codes, index.flatten(), classes, hidden.mask)
        loss, nats = masked_loss(logits, hidden, model.config.masked.label_smoothing)
        yield Losses(loss, {"bits_per_masked_code": bits_per_code(nats, 1)})

    def evaluate(self, batch: dict[str, Tensor], step: Step, networks: Networks) -> dict[str, Tensor]:
        model, (codes, classes) = networks["transformer"], self.unpack(batch)
        seeds, given = step.noise.integers(2**62).tolist(), model.config.n_prime
        bound, _, count = random_order_nats(model, codes, given, seeds, DRAWS_WHILE_TRAINING, classes)
        _, right, asked = masked_nats(model, codes, given, seeds, 0.5, classes)
        return {"bits_bound": bits_per_code(bound, count), "accuracy_of_half": right / asked}


def frames_of(clips: Tensor) -> Tensor:
    """uint8 clips (B, 3, T, H, W) -> frames (B * T, 3, H, W)."""
    return clips.transpose(1, 2).flatten(0, 1)


def train_lvt(args: argparse.Namespace) -> list[str]:
    """The command scripts/train_lvt.py: train and evaluate, or with --eval-only evaluate, or with --encode encode.

    Gives what of TEST.EXPECTED_RESULTS is missed, by line. Raises UserError.
    """
    config = configure(args)
    notes, gpus = [], torch.cuda.device_count()
    if args.num_gpus > max(1, gpus):
        place = "shared GPUs" if gpus else "its CPU"
        notes.append(f"WARN --num-gpus {args.num_gpus}: this machine has {gpus}; the processes compute on {place}")
    if args.encode:
        config["DATASETS"]["TEST"], config["TEST"]["EVALUATORS"] = list(parts_of(config)), "CodesExtractor"
    if args.eval_only or args.encode:
        distributed.announced(distributed.join_processes(config["MODEL"]["DEVICE"]))
        for note in notes if distributed.is_main() else ():
            logger.warning(note)
        results = evaluate_lvt(config)
    else:
        results = train_network(config, args.resume == "auto", args.allow_config_change, notes)
    return missed_expectations(config, results)


def train_network(
    config: dict[str, Any], resume: bool = True, allow_config_change: bool = False, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Train the network of a configuration in OUTPUT_DIR, write it in the original's layout too, evaluate it.

    The run that the folder holds is continued; without `resume`, such a folder is refused. Gives the results by data
    set and task. Raises UserError.
    """
    seed_everything(max(config["SEED"], 0))
    name_tokenizer(config)
    evaluators_of(config)  # a mistake there shall not wait for the end of the training
    name_classes(config)
    training, validation = open_data(config)
    recipe = build_recipe(config)
    recipe.held_out, recipe.notes = flags_of(validation), list(notes)
    chosen = settings(config, resume, allow_config_change)
    result = train(recipe, training, chosen, {**config, "model": shape_of_model(config)}, validation)
    if not result.finished:
        distributed.print0(result.told())
        return {}
    distributed.barrier()  # the main process has written the last checkpoint
    (model,) = recipe.networks.values()
    load = load_transformer_weights if is_transformer(config) else load_vqvae_weights
    load(model, chosen.run_dir)  # the averaged weights where there are any
    if distributed.is_main():
        write_original(chosen.run_dir, model.original_state(), result.step - 1, "model_final")
    scores = evaluate_lvt(config, model)
    distributed.print0(result.told())
    return scores


def open_data(config: dict[str, Any]) -> tuple[Dataset, Dataset | None]:
    """What to train on, and TEST.N_SAMPLES items to validate with; None: DATASETS.TEST is empty."""
    names, opened = config["DATASETS"], open_code_windows if is_transformer(config) else open_frames
    training = together([opened(config, name, training=True) for name in names["TRAIN"]])
    tests = [opened(config, name, training=False) for name in names["TEST"]]
    return training, thinned(together(tests), config["TEST"]["N_SAMPLES"]) if tests else None


def build_recipe(config: dict[str, Any]) -> VQVAERecipe | TransformerRecipe:
    """The network of a configuration, freshly initialised, with its losses and optimiser."""
    if not is_transformer(config):
        return VQVAERecipe(build_vqvae(config), config)
    model, shows = build_transformer(config), config["VIS_PERIOD"] <= config["SOLVER"]["MAX_ITER"]
    tokenizer, start = find_sampler_tokenizer(config, torch.device("cpu")) if shows else None, model.config.table_start
    if start != "matrix":
        books = codebooks_of(config, model, tokenizer) if start == "codebook" else None
        start_tables(model, config["INPUT"]["N_FRAMES_PER_VIDEO_TRAIN"], books)
    recipe = MaskedTransformerRecipe if model.config.decoder == "masked" else TransformerRecipe
    return recipe(model, config, tokenizer, trained_cells(config))


def codebooks_of(
    config: dict[str, Any], model: VideoTransformer, tokenizer: Tokenizer | None = None
) -> list[Tensor] | None:
    """The vectors of the codes that the transformer models, a tensor (V, D) for each codebook: those that lie beside
    the codes, else those of the tokenizer of TEST.VT_SAMPLER, which may be given. None, with a warning, where they do
    not fit.
    """
    path, why = codebook_path(config, config["DATASETS"]["TRAIN"][0]), "is not the one of these codes"
    try:
        if path is not None:
            books = [torch.from_numpy(read_array(path, mapped=False))]
        else:
            tokenizer = tokenizer or find_sampler_tokenizer(config, torch.device("cpu"))
            books = [] if tokenizer is None else list(tokenizer.vectors or ())
    except (UserError, OSError, ValueError, TypeError) as error:
        books, why = [], f"cannot be read ({error})"
    if len(books) == model.config.nc and all(len(book) == model.config.nv for book in books):
        return books
    logger.warning(
        "WARN VT.TABLE_START codebook: %s %s; taps is taken, which starts from random vectors",
        path or config["TEST"]["VT_SAMPLER"]["TOKENIZER"] or "TEST.VT_SAMPLER.VQ_VAE", why,
    )  # fmt: skip
    return None


def name_classes(config: dict[str, Any]) -> None:
    """Write the names of the classes into the configuration of a class-conditional transformer, and for CLASS_NUM -1
    how many there are. Raises UserError for data without labels.
    """
    node = config["MODEL"]["AUTOREGRESSIVE"]["VT"]
    if not is_transformer(config) or not node["CLASS_NUM"]:
        return
    node["CLASSES"] = class_names(config)
    if not node["CLASSES"]:
        raise UserError("VT.CLASS_NUM is set, but no video of DATASETS.TRAIN has a class")
    if node["CLASS_NUM"] < 0:
        node["CLASS_NUM"] = len(node["CLASSES"])


def parts_of(config: dict[str, Any]) -> tuple[str, ...]:
    """What of the data of a VQ-VAE is to be encoded: every data set that it is trained or tested on, with its part."""
    names = config["DATASETS"]
    marked = [with_part(name, part) for key, part in (("TRAIN", "train"), ("TEST", "val")) for name in names[key]]
    return tuple(dict.fromkeys(marked))


def flags_of(validation: Dataset | None) -> str | None:
    """Flags of evaluate.py for the clips of the first validation set; None: it does not say where they are from."""
    while isinstance(validation, (Subset, ConcatDataset)):
        validation = validation.dataset if isinstance(validation, Subset) else validation.datasets[0]
    videos = provenance_of(validation)
    return videos and f"--data {videos['source']} --split {videos['split'] or 'all'}"


def shape_of_model(config: dict[str, Any]) -> dict[str, Any]:
    """The part of the configuration that a continued run must share."""
    model = config["MODEL"]
    if is_transformer(config):
        node = model["AUTOREGRESSIVE"]["VT"]
        shape = {"META_ARCHITECTURE": model["META_ARCHITECTURE"], "VT": without_defaults(node)}
        classes = class_names(config)
        return shape if classes is None else {**shape, "CLASSES": classes}
    parts = {name: without_defaults(model[name]) for name in ("ENCODER", "GENERATOR", "CODEBOOK")}
    return {"META_ARCHITECTURE": model["META_ARCHITECTURE"], **parts}


def without_defaults(node: dict[str, Any]) -> dict[str, Any]:
    """The node without keys that runs of before did not have yet, where they say what was the only choice then."""
    return {key: value for key, value in node.items() if key not in NO_SHAPE and NEW_KEYS.get(key, MISSING) != value}


def settings(config: dict[str, Any], resume: bool, allow_config_change: bool) -> TrainSettings:
    """The settings of the training loop."""
    solver = config["SOLVER"]
    return TrainSettings(
        run_dir=Path(config["OUTPUT_DIR"]),
        steps=solver["MAX_ITER"],
        batch_size=solver["IMS_PER_BATCH"],
        accumulation=solver["ACCUMULATION_STEPS"],
        seed=max(config["SEED"], 0),
        device=config["MODEL"]["DEVICE"],
        precision=precision_of(config),
        compile=solver["COMPILE"],
        clip=solver["CLIP_NORM"],
        ema=solver["EMA"],
        resume="auto" if resume else "never",
        allow_config_change=allow_config_change,
        save_every=solver["CHECKPOINT_PERIOD"],
        log_every=config["LOG_PERIOD"],
        evaluate_every=config["TEST"]["EVAL_PERIOD"] or solver["MAX_ITER"],
        pictures_every=config["VIS_PERIOD"],
        max_minutes=config["MAX_MINUTES"],
        workers=config["DATALOADER"]["NUM_WORKERS"],
        **schedule(solver),
    )
