"""The two recipes: stage 1 learns to reconstruct, stage 2 adds a discriminator.

Batches are frames (N, 3, H, W) in [-1, 1]. The generator runs once per step, and its codebook moves once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluation.codebook_usage import CodebookUsage, code_usage
from losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from losses.discriminator import discriminator_accuracy
from losses.perceptual import LPIPS
from training import Losses, Recipe, Step, derive_seed
from training.distributed import all_mean, world_size
from training.muon import Muon
from vqgan.config import GAN_LOSSES, Objective
from vqgan.evaluate import frame_scores
from vqgan.ldm import LDMVQModel
from vqgan.model import VQGAN, Reconstruction
from vqgan.quantize import CodeRevival, LatentReservoir

REFEREE_MEMORY = 0.9  # decay of the discriminator's running accuracy, per batch


class ReconstructionRecipe(Recipe):
    """Stage 1: reconstruction + perceptual_weight * LPIPS + the quantiser's loss, by Adam.

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
        self.usage = CodebookUsage(model.num_embeddings)

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
        parameters, settings = self.model.parameters(), {"lr": self.objective.lr, "betas": (0.9, 0.999)}
        if self.objective.optimizer == "adam":
            return {"generator": torch.optim.Adam(parameters, **settings)}
        tables = self.model.quantizer.parameters()  # of codes, which are no maps: Adam moves them
        return {"generator": Muon(parameters, **settings, convolutions=True, tables=tables)}

    @property
    def warmup_steps(self) -> int:
        """Steps without quantiser."""
        return self.objective.vq_warmup if self.model.quantizer.needs_start else 0

    def losses(self, batch: Tensor, step: Step) -> Iterator[Losses | None]:
        """The generator's loss."""
        out = self.reconstruct(batch, step)
        total, terms = self.reconstruction_losses(batch, out)
        yield Losses(total + out.loss, {**terms, **self.quantizer_terms(out, step)})

    def reconstruct(self, batch: Tensor, step: Step) -> Reconstruction:
        """The one forward pass of the generator in a step."""
        bypass = step.index < self.warmup_steps
        self.prepare_codebook(batch, step)
        out: Reconstruction = self.networks["model"](batch, bypass=bypass)
        if bypass:
            self.networks["reservoir"](self.model.quantizer.project(out.latents.detach()))
        elif "revival" in self.networks:
            self.revive(out)
        return out

    def quantizer_terms(self, out: Reconstruction, step: Step) -> dict[str, Tensor]:
        """What the log tells of the quantiser."""
        terms = {"quantizer": out.loss}
        if step.index >= self.warmup_steps:
            terms["code_usage"] = code_usage(out.indices, self.model.num_embeddings)
        return terms

    def revive(self, out: Reconstruction) -> None:
        """Let dead codes of an LDMVQModel begin anew; the codes of this step's gradients stay those of its pass."""
        quantizer = self.model.quantizer
        revived = self.networks["revival"](quantizer.project(out.latents.detach()), out.indices, quantizer.seed)
        if revived is not None:
            quantizer.replace(revived)

    def prepare_codebook(self, batch: Tensor, step: Step) -> None:
        """Set what the codebook does in this step, and start it after the warm-up."""
        quantizer = self.model.quantizer
        quantizer.seed = derive_seed("codebook", step.index)
        quantizer.set_decay(self.decay_at(step) ** (1 / self.micro_batches))  # each micro-batch moves the codebook
        reservoir = self.networks.get("reservoir")
        if reservoir is None or step.index < self.warmup_steps or reservoir.used or not reservoir.count:
            return
        # The hits that the start stands for are those of one batch, or the first updates would hardly move the codes.
        pixels = batch.shape[0] * batch.shape[-2] * batch.shape[-1] * world_size()
        quantizer.start(reservoir.newest(), tokens=pixels // self.model.downsample_factor**2)
        reservoir.used.fill_(True)

    def decay_at(self, step: Step) -> float:
        """Decay per step of the codebook's running means."""
        return self.objective.codebook_decay(step.index, self.final_decay)

    def reconstruction_losses(self, batch: Tensor, out: Reconstruction) -> tuple[Tensor, dict[str, Tensor]]:
        """Their weighted sum, and the terms without weights."""
        error = reconstruction_error(batch, out.frames, self.objective.recon).mean()
        terms = {"reconstruction": error}
        if self.objective.perceptual_weight > 0:
            terms["perceptual"] = self.perceptual(batch, out.frames).mean()
            error = error + self.objective.perceptual_weight * terms["perceptual"]
        return error, terms

    def evaluate(self, batch: Tensor, step: Step) -> dict[str, Tensor]:
        """mse (pixels in [0, 1]), PSNR and SSIM of the rounded frames, LPIPS when it is trained on."""
        out: Reconstruction = self.networks["model"](batch)
        self.usage.update(out.indices)
        frames, reconstruction = batch[:, :, None].float(), out.frames[:, :, None].float().clamp(-1, 1)
        error = reconstruction_error(batch, reconstruction[:, :, 0], "mse")
        metrics = {"mse": error, **frame_scores(frames, reconstruction)}
        if self.objective.perceptual_weight > 0:
            metrics["lpips"] = self.perceptual(batch, reconstruction[:, :, 0])
        return metrics

    def summarize(self) -> dict[str, float]:
        """Codes in use, and their perplexity, over the whole validation set."""
        total = self.usage.over_processes()
        self.usage = CodebookUsage(self.model.num_embeddings)
        return {"codes_used": float(total.used), "perplexity": total.perplexity}

    def pictures(self, batch: Tensor, step: Step) -> dict[str, Tensor]:
        """Originals above their reconstructions."""
        out: Reconstruction = self.networks["model"](batch[:8])
        return {"reconstructions": torch.cat([batch[:8], out.frames.float().clamp(-1, 1)], dim=2)}


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
            name: torch.optim.Adam(network.parameters(), lr=rates[name], betas=(0.5, 0.999))
            for name, network in networks.items()
        }

    def decay_at(self, step: Step) -> float:
        return self.final_decay

    def losses(self, batch: Tensor, step: Step) -> Iterator[Losses | None]:
        """The generator's loss, then the discriminator's on the same reconstruction."""
        out = self.reconstruct(batch, step)
        total, terms = self.reconstruction_losses(batch, out)
        share = self.objective.adversarial_share(step.index)
        if share > 0 and self.objective.adv_weight > 0:
            adversarial = generator_loss(self.networks["discriminator"](out.frames), self.kind)
            weight = share * self.objective.adv_weight * self.balance(total, adversarial)
            terms |= {"adversarial": adversarial, "adversarial_weight": weight}
            total = total + weight * adversarial
        terms |= self.quantizer_terms(out, step)
        terms["discriminator_accuracy"] = self.networks["referee"].accuracy.clone()
        yield Losses(total + out.loss, terms)
        yield self.discriminator_losses(batch, out.frames.detach())

    def balance(self, reconstruction_loss: Tensor, adversarial: Tensor) -> Tensor:
        """The adaptive weight, or 1."""
        if not self.objective.adaptive_weight:
            return torch.ones_like(adversarial)
        last_layer = self.bare["model"].last_layer
        return adaptive_weight(reconstruction_loss, adversarial, last_layer, maximum=self.objective.adaptive_max)

    def discriminator_losses(self, real: Tensor, fake: Tensor) -> Losses | None:
        """The discriminator's loss on real frames and (detached) reconstructions; None while it rests."""
        resting = bool(self.networks["referee"].accuracy > self.objective.disc_limit)
        with torch.set_grad_enabled(not resting):
            both = torch.cat([real, fake.to(real)])  # one pass, so that spectral norm's power iteration moves once
            logits_real, logits_fake = self.networks["discriminator"](both).chunk(2)
        on_real, on_fake = discriminator_accuracy(logits_real, logits_fake)
        self.networks["referee"](on_real, on_fake)
        if resting:
            return None
        loss = discriminator_loss(logits_real, logits_fake, self.kind)
        return Losses(loss, {"discriminator": loss, "accuracy_real": on_real, "accuracy_fake": on_fake})

    def evaluate(self, batch: Tensor, step: Step) -> dict[str, Tensor]:
        """The metrics of stage 1, and the share of patches that the discriminator tells right (0.5 is chance)."""
        metrics = super().evaluate(batch, step)
        reconstruction = self.networks["model"](batch).frames
        real, fake = self.networks["discriminator"](batch), self.networks["discriminator"](reconstruction)
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
