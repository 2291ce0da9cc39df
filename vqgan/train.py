"""How a VQGAN is trained: stage 1 learns to reconstruct, stage 2 adds a discriminator; and the command
scripts/train_vqgan.py, which trains both and writes the documented files.

Batches are frames (N, 3, H, W), uint8 or already in [-1, 1]. The generator runs once per step, and its codebook moves
once.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.codebook import CodebookUsage, code_counts, code_usage
from evaluation.metrics import SMALLEST_SIDE, psnr, ssim
from losses.adversarial import adaptive_weight, discriminator_accuracy, discriminator_loss, generator_loss
from losses.perceptual import LPIPS
from losses.quantize import CodeRevival, LatentReservoir
from training import Losses, Networks, Recipe, Step, derive_seed, settings_from, train, trained_on
from training.checkpoint import best_checkpoint, load_checkpoint, strict_load
from training.cli import command_line
from training.config import load_config
from training.distributed import all_mean, barrier, is_main, join_processes, world_size
from training.folder import TRAINED_ON, link_folder, record_training_data
from training.loop import TrainResult
from training.optim import build_optimizer
from videodata.errors import UserError
from videodata.pixels import as_float
from videodata.splits import declared_splits
from vqgan.config import GAN_LOSSES, Objective, VQGANConfig
from vqgan.data import PatchDataset, find_batch_files, open_frames
from vqgan.files import (
    GAN_FILE,
    STAGE1_FILE,
    build_model,
    load_model,
    model_config,
    read_weights,
    save_model,
    settle_device,
)
from vqgan.ldm import LDM_CONFIGS, LDMVQModel
from vqgan.model import VQGAN, Discriminator, Reconstruction
from vqgan.scores import write_test_scores

logger = logging.getLogger(__name__)
REFEREE_MEMORY = 0.9  # decay of the discriminator's running accuracy, per batch
JITTER = 0.05  # brightness, contrast, saturation, hue
OF_STAGE1 = ("lr", "vq_warmup", "decay_ramp")
OF_STAGE2 = (
    *("adv_weight", "gan_loss", "adaptive_weight", "adaptive_max"),
    *("disc_start", "disc_ramp", "disc_limit", "lr_g", "lr_d"),
)
OF_OTHER = {1: OF_STAGE2, 2: OF_STAGE1}  # not in a stage's configuration: a resumed run may change the other's part
DISCRIMINATOR_FILE = "best_discriminator.pt"


class ReconstructionRecipe(Recipe):
    """Stage 1: reconstruction + perceptual_weight * LPIPS + the quantiser's loss.

    A learned codebook is bypassed for the first `vq_warmup` steps; then it starts at the k-means of the latents of
    the last steps, because one that starts far from the latents can stay unused for ever.
    """

    name = "vqgan_stage1"
    ema_networks = ("model",)

    def __init__(
        self,
        model: VQGAN | LDMVQModel,
        objective: Objective,
        perceptual_weights: Path | str | None = None,
        micro_batches: int = 1,
        dead_code_fraction: float = 0.1,
    ) -> None:
        self.dead_code_fraction = dead_code_fraction  # for an LDMVQModel; VQGAN has its own
        self.model, self.objective, self.micro_batches = model, objective, micro_batches
        self.final_decay = getattr(model.quantizer, "decay", 0.0)
        super().__init__(self.build_networks(), self.build_optimizers())
        self.perceptual = LPIPS("vgg", perceptual_weights)  # looks for its weights at the first call
        self.best_metric = ("lpips", "min") if objective.perceptual_weight > 0 else ("mse", "min")

    def build_networks(self) -> dict[str, nn.Module]:
        """The networks of the stage, by name."""
        networks: dict[str, nn.Module] = {"model": self.model}
        if self.warmup_steps:
            quantizer = self.model.quantizer
            networks["reservoir"] = LatentReservoir(quantizer.size, quantizer.codebook_dim)
        if isinstance(self.model, LDMVQModel):  # outside the model, whose keys are the published ones
            networks["revival"] = CodeRevival(self.model.num_embeddings, self.dead_code_fraction)
        return networks

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers of the stage, in the order in which they step."""
        tables = self.model.quantizer.parameters()  # of codes, which are no maps: Muon leaves them to Adam
        options = {"betas": (0.9, 0.999), "convolutions": True, "tables": tables}
        name, parameters = self.objective.optimizer, self.model.parameters()
        return {"generator": build_optimizer(name, parameters, self.objective.lr, **options)}

    @property
    def warmup_steps(self) -> int:
        """Steps without quantiser."""
        return self.objective.vq_warmup if self.model.quantizer.needs_start else 0

    def losses(self, batch: Tensor, step: Step, networks: Networks) -> Iterator[Losses | None]:
        """The generator's loss."""
        frames = as_float(batch)
        out = self.reconstruct(frames, step, networks)
        total, terms = self.reconstruction_losses(frames, out)
        yield Losses(total + out.loss, {**terms, **self.quantizer_terms(out, step)})

    def reconstruct(self, frames: Tensor, step: Step, networks: Networks) -> Reconstruction:
        """The one forward pass of the generator in a step."""
        bypass = step.index < self.warmup_steps
        self.prepare_codebook(frames, step, networks)
        out: Reconstruction = networks["model"](frames, bypass=bypass)
        if bypass:
            networks["reservoir"](self.model.quantizer.project(out.latents.detach()))
        elif "revival" in networks:
            self.revive(out, networks)
        return out

    def quantizer_terms(self, out: Reconstruction, step: Step) -> dict[str, Tensor]:
        """What the log tells of the quantiser."""
        terms = {"quantizer": out.loss}
        if step.index >= self.warmup_steps:
            terms["code_usage"] = code_usage(out.indices, self.model.num_embeddings)
        return terms

    def revive(self, out: Reconstruction, networks: Networks) -> None:
        """Let dead codes of an LDMVQModel begin anew; the codes of this step's gradients stay those of its pass."""
        quantizer = self.model.quantizer
        revived = networks["revival"](quantizer.project(out.latents.detach()), out.indices, quantizer.seed)
        if revived is not None:
            quantizer.replace(revived)

    def prepare_codebook(self, frames: Tensor, step: Step, networks: Networks) -> None:
        """Set what the codebook does in this step, and start it after the warm-up."""
        quantizer = self.model.quantizer
        quantizer.seed = derive_seed("codebook", step.index)
        quantizer.set_decay(self.decay_at(step) ** (1 / self.micro_batches))  # each micro-batch moves the codebook
        reservoir = networks.get("reservoir")
        if reservoir is None or step.index < self.warmup_steps or reservoir.used or not reservoir.count:
            return
        # The hits that the start stands for are those of one batch, or the first updates would hardly move the codes.
        pixels = frames.shape[0] * frames.shape[-2] * frames.shape[-1] * world_size()
        quantizer.start(reservoir.newest(), tokens=pixels // self.model.downsample_factor**2)
        reservoir.used.fill_(True)

    def decay_at(self, step: Step) -> float:
        """Decay per step of the codebook's running means."""
        return self.objective.codebook_decay(step.index, self.final_decay)

    def reconstruction_losses(self, frames: Tensor, out: Reconstruction) -> tuple[Tensor, dict[str, Tensor]]:
        """Their weighted sum, and the terms without weights."""
        error = reconstruction_error(frames, out.frames, self.objective.recon).mean()
        terms = {"reconstruction": error}
        if self.objective.perceptual_weight > 0:
            terms["perceptual"] = self.perceptual(frames, out.frames).mean()
            error = error + self.objective.perceptual_weight * terms["perceptual"]
        return error, terms

    def evaluate(self, batch: Tensor, step: Step, networks: Networks) -> dict[str, Tensor]:
        """mse (pixels in [0, 1]), PSNR and SSIM of the rounded frames, LPIPS when it is trained on."""
        frames = as_float(batch)
        return self.measure(frames, networks["model"](frames), networks)

    def measure(self, frames: Tensor, out: Reconstruction, networks: Networks) -> dict[str, Tensor]:
        """The metrics of frames and what became of them in one pass."""
        made = out.frames.float().clamp(-1, 1)
        clips = frames[:, :, None], made[:, :, None]  # of one frame each
        metrics = {"mse": reconstruction_error(frames, made, "mse"), "psnr": psnr(*clips)}
        if min(frames.shape[-2:]) >= SMALLEST_SIDE:
            metrics["ssim"] = ssim(*clips)
        if self.objective.perceptual_weight > 0:
            metrics["lpips"] = self.perceptual(frames, made)
        metrics["codes"] = code_counts(out.indices, self.model.num_embeddings)
        return metrics

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Codes in use, and their perplexity, over the whole validation set."""
        total = CodebookUsage(self.model.num_embeddings, sums["codes"])
        return {"codes_used": float(total.used), "perplexity": total.perplexity}

    def pictures(self, batch: Tensor, step: Step, networks: Networks) -> dict[str, Tensor]:
        """Originals above their reconstructions."""
        frames = as_float(batch[:8])
        made = networks["model"](frames).frames.float().clamp(-1, 1)
        return {"reconstructions": torch.cat([frames, made], dim=2)}


class AdversarialRecipe(ReconstructionRecipe):
    """Stage 2: stage 1's loss and a discriminator's opinion.

    The discriminator learns from the first step on, and rests while it is right more often than `disc_limit`. The
    generator hears it from `disc_start`, at a weight that grows over `disc_ramp` steps. With `adaptive_weight`, the
    two terms' gradients at the last layer are brought to the ratio `adv_weight` (Esser et al. 2021, equation 7).
    """

    name = "vqgan_stage2"

    def __init__(
        self,
        model: VQGAN | LDMVQModel,
        discriminator: nn.Module,
        objective: Objective,
        perceptual_weights: Path | str | None = None,
        micro_batches: int = 1,
        dead_code_fraction: float = 0.1,
    ) -> None:
        self.discriminator = discriminator
        self.kind = GAN_LOSSES[objective.gan_loss]
        super().__init__(model, objective, perceptual_weights, micro_batches, dead_code_fraction)

    warmup_steps = 0

    def build_networks(self) -> dict[str, nn.Module]:
        return {**super().build_networks(), "discriminator": self.discriminator, "referee": Referee()}

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        rates = {"generator": self.objective.lr_g, "discriminator": self.objective.lr_d}
        networks = {"generator": self.model, "discriminator": self.discriminator}
        return {
            name: build_optimizer("adam", network.parameters(), rates[name], betas=(0.5, 0.999))
            for name, network in networks.items()
        }

    def decay_at(self, step: Step) -> float:
        return self.final_decay

    def losses(self, batch: Tensor, step: Step, networks: Networks) -> Iterator[Losses | None]:
        """The generator's loss, then the discriminator's on the same reconstruction."""
        frames = as_float(batch)
        out = self.reconstruct(frames, step, networks)
        total, terms = self.reconstruction_losses(frames, out)
        share = self.objective.adversarial_share(step.index)
        if share > 0 and self.objective.adv_weight > 0:
            adversarial = generator_loss(networks["discriminator"](out.frames), self.kind)
            weight = torch.ones_like(adversarial)
            if self.objective.adaptive_weight:  # between the gradients at the weight that both losses reach last
                last_layer = self.networks["model"].last_layer
                weight = adaptive_weight(total, adversarial, last_layer, maximum=self.objective.adaptive_max)
            weight = share * self.objective.adv_weight * weight
            terms |= {"adversarial": adversarial, "adversarial_weight": weight}
            total = total + weight * adversarial
        terms |= self.quantizer_terms(out, step)
        terms["discriminator_accuracy"] = networks["referee"].accuracy.clone()
        yield Losses(total + out.loss, terms)
        yield self.discriminator_losses(frames, out.frames.detach(), networks)

    def discriminator_losses(self, real: Tensor, fake: Tensor, networks: Networks) -> Losses | None:
        """The discriminator's loss on real frames and (detached) reconstructions; None while it rests."""
        resting = bool(networks["referee"].accuracy > self.objective.disc_limit)
        with torch.set_grad_enabled(not resting):
            both = torch.cat([real, fake.to(real)])  # one pass, so that spectral norm's power iteration moves once
            logits_real, logits_fake = networks["discriminator"](both).chunk(2)
        on_real, on_fake = discriminator_accuracy(logits_real, logits_fake)
        networks["referee"](on_real, on_fake)
        if resting:
            return None
        loss = discriminator_loss(logits_real, logits_fake, self.kind)
        return Losses(loss, {"discriminator": loss, "accuracy_real": on_real, "accuracy_fake": on_fake})

    def measure(self, frames: Tensor, out: Reconstruction, networks: Networks) -> dict[str, Tensor]:
        """The metrics of stage 1, and the share of patches that the discriminator tells right (0.5 is chance)."""
        metrics = super().measure(frames, out, networks)
        real, fake = networks["discriminator"](frames), networks["discriminator"](out.frames)
        right = ((real > 0).float() + (fake < 0).float()) / 2
        return {**metrics, "discriminator_accuracy": right.mean(dim=(1, 2, 3))}


def reconstruction_error(frames: Tensor, reconstruction: Tensor, kind: str) -> Tensor:
    """Error per frame, float32 (N,), of pixels in [0, 1]: the mean square ("mse") or the mean absolute value ("l1")."""
    difference = (reconstruction.float() - frames.float()) / 2  # [-1, 1] is twice as wide as [0, 1]
    return (difference.square() if kind == "mse" else difference.abs()).mean(dim=(1, 2, 3))


class Referee(nn.Module):
    """Running accuracy of the discriminator over the batches of all processes; part of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("accuracy", torch.tensor(0.5))  # chance

    @torch.no_grad()
    def forward(self, on_real: Tensor, on_fake: Tensor) -> None:
        """Take in the shares of real and of reconstructed patches that were told right in a batch, two scalars."""
        self.accuracy.lerp_(all_mean(((on_real + on_fake) / 2).float()), 1 - REFEREE_MEMORY)


def train_vqgan(args: argparse.Namespace) -> list[str]:
    """Train both stages, or continue them; gives what is to be said at the end, by line. Raises UserError."""
    check(args)
    settle_device(args)
    settle_precision(args)
    device = join_processes(args.device, args.process_timeout)
    training, validation = open_data(args)
    testing = open_patches(args, scored_split(args))
    per_epoch = -(-len(training) // args.batch_size)
    steps = args.steps or args.num_epoch * args.epochs_per_batch * per_epoch
    gan_steps = max(1, args.num_epoch - 1) * args.gan_epochs_per_batch * per_epoch
    gan_steps = gan_steps if args.gan_steps is None else args.gan_steps
    objective, notes = build_objective(args, steps, gan_steps, per_epoch)

    summary = []
    for stage, stage_steps in ((1, 0 if args.gan_mode else steps), (2, gan_steps)):
        if stage_steps:
            recipe = build_recipe(args, objective, stage)
            recipe.notes, notes = notes, []
            result = run_stage(args, stage, recipe, training, validation, stage_steps, per_epoch)
            if not result.finished:
                return [f"{args.checkpoint_dir}: stage {stage} stopped at step {result.step}; the same command goes on"]
            summary.append(describe(f"stage {stage}", result))
    best = args.checkpoint_dir / (GAN_FILE if gan_steps else STAGE1_FILE)
    scores = args.results_dir / "test_scores.json"
    write_test_scores(best, testing, scores, device, args.test_patches)
    show = command_line(["scripts/visualize_vqgan.py", "--checkpoint", str(best), "--data", str(args.data_path)])
    return [f"{best}: {'; '.join(summary)}", f"{scores}: scores of {testing.clips.split} clips", f"next: python {show}"]


def check(args: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together, and for a folder that another model's run is in."""
    if (args.checkpoint_dir / "config.yaml").is_file():  # those of both stages lie in folders of their own
        raise UserError(f"{args.checkpoint_dir}: holds another model's run; use another folder")
    if args.gan_epochs_per_batch if args.gan_steps is None else args.gan_steps:
        Discriminator.check_side(args.hidden_dims, args.patch_size)
    if args.cache_mode:
        logger.info("--cache_mode: no effect; data files are memory-mapped anyway")
    if args.gan_mode and not weights_named(args) and not (args.checkpoint_dir / STAGE1_FILE).is_file():
        place = args.checkpoint_dir / STAGE1_FILE
        raise UserError(f"--gan_mode needs a model of stage 1: name it with --resume FILE, or train {place} first")


def weights_named(args: argparse.Namespace) -> bool:
    """Whether --resume names a file of weights to start from."""
    return args.resume not in ("auto", "never")


def settle_precision(args: argparse.Namespace) -> None:
    """Let --fp16 have its say: mixed precision on a GPU, in bf16, whose range the adaptive weight's gradients need."""
    if args.fp16 and args.precision == "fp32":
        on_gpu = args.device != "cpu" and torch.cuda.is_available()
        args.precision = "bf16" if on_gpu else "fp32"
        logger.info("--fp16: %s", "mixed precision in bf16" if on_gpu else "no effect on a CPU")


def scored_split(args: argparse.Namespace) -> str:
    """What the finished model is scored on: test, but val where the data declares val and no test."""
    declared = () if find_batch_files(args.data_path) else declared_splits(args.data_path)
    return "val" if "val" in declared and "test" not in declared else "test"


def open_data(args: argparse.Namespace) -> tuple[PatchDataset, PatchDataset]:
    """The patches to train on and to validate with."""
    return open_patches(args, "train"), open_patches(args, "val")


def open_patches(args: argparse.Namespace, split: str) -> PatchDataset:
    """The patches of one split; only training patches are augmented, in floats, the others come as they are stored."""
    augment = args.augment and split == "train"
    clips = open_frames(
        args.data_path, split, (args.num_patches_h * args.patch_size, args.num_patches_w * args.patch_size),
        test_batch=args.test_batch, seed=args.seed, flip=augment, dtype="float32" if augment else "uint8",
    )  # fmt: skip
    return PatchDataset(clips, args.num_patches_h, args.num_patches_w, JITTER if augment else 0.0)


def build_objective(
    args: argparse.Namespace, steps: int, gan_steps: int, per_epoch: int
) -> tuple[Objective, list[str]]:
    """The objective that the flags describe, with schedules that fit into the run, and what is to be said of these."""
    chosen = {entry.name: getattr(args, entry.name) for entry in fields(Objective) if hasattr(args, entry.name)}
    # The defaults are for long runs: in a short one the quantiser would never start, nor the adversarial term.
    limits = {"vq_warmup": steps // 5, "decay_ramp": steps // 2, "disc_ramp": gan_steps // 5}
    too_long = {name: limit for name, limit in limits.items() if chosen[name] > limit}
    notes = [f"{name} is {limit} in this short run, not {chosen[name]}" for name, limit in too_long.items()]
    chosen |= too_long
    if args.disc_start is None:
        chosen["disc_start"] = min(per_epoch, gan_steps // 10)
    return Objective(**chosen), notes


def build_recipe(args: argparse.Namespace, objective: Objective, stage: int) -> ReconstructionRecipe:
    """Stage 1 on a new model, or on the weights that --resume names; stage 2 on the best model of stage 1, or on the
    one that --resume names under --gan_mode.
    """
    start = args.checkpoint_dir / STAGE1_FILE if stage == 2 else None
    if weights_named(args) and (stage == 1 or args.gan_mode):
        start = args.resume
    if start is None:
        torch.manual_seed(derive_seed(args.seed, "weights"))
        model = build_model(flags_config(args))
    else:
        model, _ = load_model(start, config=flags_config(args))
        model.train()
    options = args.vgg_weights, args.accumulation, dead_code_fraction(args)
    if stage == 1:
        return ReconstructionRecipe(model, objective, *options)
    torch.manual_seed(derive_seed(args.seed, "discriminator"))
    discriminator = Discriminator(args.hidden_dims)
    if args.resume_disc:
        strict_load(discriminator, read_weights(Path(args.resume_disc))[0], args.resume_disc)
    return AdversarialRecipe(model, discriminator, objective, *options)


def flags_config(args: argparse.Namespace) -> dict[str, Any]:
    """The model's configuration as the flags describe it."""
    if args.ldm in LDM_CONFIGS:
        return {"type": "ldm", **LDM_CONFIGS[args.ldm], "commitment_cost": args.commitment_cost}
    if args.ldm:
        return {"type": "ldm", **load_config(args.ldm)}
    config = {entry.name: getattr(args, entry.name) for entry in fields(VQGANConfig) if hasattr(args, entry.name)}
    return {"type": "vqgan", **config, "dead_code_fraction": dead_code_fraction(args)}


def dead_code_fraction(args: argparse.Namespace) -> float:
    """Share of the mean usage below which a code is revived; 0 under --no-restart_unused."""
    return args.dead_code_fraction if args.restart_unused else 0.0


def run_stage(
    args: argparse.Namespace, stage: int, recipe: ReconstructionRecipe, training: PatchDataset,
    validation: PatchDataset, steps: int, per_epoch: int,
) -> TrainResult:  # fmt: skip
    """Train one stage to its end, or to the next stop, and write its best model."""
    if recipe.objective.perceptual_weight > 0:
        try:  # now and not after the first step
            recipe.perceptual.weights_file()
        except UserError as error:
            raise UserError(f"{error} (--perceptual_weight 0)") from error
    recipe.model.set_checkpointing(args.checkpointing)
    values = argparse.Namespace(**vars(args))
    del values.steps  # of stage 1, while settings_from is told those of this stage
    values.resume = "never" if args.resume == "never" else "auto"
    values.save_every = args.checkpoint_freq * per_epoch or args.save_every
    values.pictures_every = args.vis_freq * per_epoch or args.pictures_every
    settings = settings_from(values, args.checkpoint_dir / f"stage{stage}", steps)
    grid = {name: getattr(args, name) for name in ("patch_size", "num_patches_h", "num_patches_w")}
    config = {
        "model": model_config(recipe.model),
        "objective": {name: value for name, value in asdict(recipe.objective).items() if name not in OF_OTHER[stage]},
        "data": {"data_path": str(args.data_path), "test_batch": args.test_batch, "augment": args.augment, **grid},
        "stage": stage,
    }
    if is_main():
        link_folder(settings.run_dir / "log", args.log_dir / f"stage{stage}")
        link_folder(settings.run_dir / "samples", args.results_dir / f"stage{stage}")
    result = train(recipe, training, settings, config, validation)
    if result.finished and is_main():
        write_best(args.checkpoint_dir, settings.run_dir, recipe, stage)
        note_training_data(args, settings.run_dir)
    barrier()
    return result


def write_best(folder: Path, run_dir: Path, recipe: ReconstructionRecipe, stage: int) -> None:
    """Write the best checkpoint's networks under their documented names."""
    best = best_checkpoint(run_dir, recipe.best_metric)
    checkpoint = load_checkpoint(best or run_dir)
    facts = {"config": checkpoint["config"], "step": checkpoint["step"], "metrics": checkpoint["metrics"]}
    networks = {**checkpoint["networks"], **checkpoint["ema"]}
    recipe.model.load_state_dict(networks["model"])
    save_model(folder / (STAGE1_FILE if stage == 1 else GAN_FILE), recipe.model, stage=stage, **facts)
    if isinstance(recipe, AdversarialRecipe):
        recipe.discriminator.load_state_dict(networks["discriminator"])
        save_model(folder / DISCRIMINATOR_FILE, recipe.discriminator, stage=stage, **facts)


def note_training_data(args: argparse.Namespace, run_dir: Path) -> None:
    """Say beside the best models what they were trained on: all stages, and the weights that --resume names.

    Where that is not known of one of them, nothing is said, and an evaluation calls it unknown.
    """
    records = [trained_on(run_dir), *([trained_on(args.resume)] if weights_named(args) else [])]
    if None in records:
        (args.checkpoint_dir / TRAINED_ON).unlink(missing_ok=True)
        return
    for record in records:
        record_training_data(args.checkpoint_dir, record)


def describe(name: str, result: TrainResult) -> str:
    """The last validation of a stage in a few words."""
    shown = ("psnr", "lpips", "codes_used", "perplexity", "discriminator_accuracy")
    scores = ", ".join(f"{key} {result.metrics[key]:.4g}" for key in shown if key in result.metrics)
    return f"{name} {result.step} steps, {scores}"
