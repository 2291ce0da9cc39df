"""Adversarial losses on discriminator logits (any shape, real = large), and the weight that balances them."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

ADVERSARIAL_LOSSES = ("hinge", "vanilla", "non_saturating")


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor, kind: str = "hinge") -> Tensor:
    """The discriminator's loss, a float32 scalar.

    hinge: Lim and Ye 2017 (arXiv 1705.02894); vanilla and non_saturating: binary cross-entropy, Goodfellow et al. 2014.
    """
    _check(kind)
    real, fake = logits_real.float(), logits_fake.float()
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_loss(logits_fake: Tensor, kind: str = "hinge") -> Tensor:
    """The generator's loss, a float32 scalar: -mean(logits) for hinge and vanilla, -log sigmoid for non_saturating.

    hinge and vanilla share it because that is how they are paired in VQGAN (Esser et al. 2021).
    """
    _check(kind)
    fake = logits_fake.float()
    return F.softplus(-fake).mean() if kind == "non_saturating" else -fake.mean()


def adaptive_weight(
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    last_layer: Tensor,
    maximum: float = 1e4,
    epsilon: float = 1e-4,
) -> Tensor:
    """Ratio of the two losses' gradient norms on the decoder's last layer, clamped to [0, maximum] and detached.

    Esser et al. 2021 (arXiv 2012.09841), equation 7. Gradients are averaged over the processes first, so that all
    use one weight. Both graphs are kept for the backward pass that follows.
    """
    reconstruction_norm = _gradient(reconstruction_loss, last_layer).norm()
    adversarial_norm = _gradient(adversarial_loss, last_layer).norm()
    return (reconstruction_norm / (adversarial_norm + epsilon)).clamp(0.0, maximum).detach()


def _gradient(loss: Tensor, parameter: Tensor) -> Tensor:
    gradient = torch.autograd.grad(loss, parameter, retain_graph=True)[0].detach().float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(gradient)
        gradient = gradient / dist.get_world_size()
    return gradient


def _check(kind: str) -> None:
    if kind not in ADVERSARIAL_LOSSES:
        raise ValueError(f"unknown adversarial loss {kind!r}; choose one of {', '.join(ADVERSARIAL_LOSSES)}")
