"""The adversarial game: losses on logits (any shape, real = large), the weight that balances them, and PatchGAN
discriminators for frames and clips, a logit per patch (Isola et al. 2017, arXiv 1611.07004).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

ADVERSARIAL_LOSSES = ("hinge", "vanilla", "non_saturating")

NORMS = ("batch", "group", "spectral", "none")


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


def _check(kind: str) -> None:
    if kind not in ADVERSARIAL_LOSSES:
        raise ValueError(f"unknown adversarial loss {kind!r}; choose one of {', '.join(ADVERSARIAL_LOSSES)}")


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


class LeCam(nn.Module):
    """Keeps the discriminator's logits near those that it gave to the other kind (Tseng et al. 2021, arXiv 2104.03310).

    Its two running means are buffers: saved, the same in all processes, and moved in training mode alone.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.tensor(0.0))
        self.register_buffer("fake", torch.tensor(0.0))

    def forward(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """Logits of any shape -> a float32 scalar, after the means have taken them in."""
        real, fake = logits_real.float(), logits_fake.float()
        if self.training:
            means = torch.stack([real.detach().mean(), fake.detach().mean()])
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(means)
                means = means / dist.get_world_size()
            self.real.lerp_(means[0], 1 - self.decay)
            self.fake.lerp_(means[1], 1 - self.decay)
        return F.relu(real - self.fake).square().mean() + F.relu(self.real - fake).square().mean()


class PatchDiscriminator(nn.Module):
    """Strided convolutions with LeakyReLU 0.2, without any global decision. Use PatchGAN2D or PatchGAN3D.

    Keys are those of the published VQGAN discriminators: with three layers and batch norm the convolutions are
    `main.{0,2,5,8,11}` and the norms `main.{3,6,9}`. `norm`: batch, group, spectral (on every convolution) or none.
    """

    def __init__(
        self,
        convolution: type[nn.Module],
        kernel: int,
        strides: Sequence[int | tuple[int, int, int]],
        in_channels: int = 3,
        width: int = 64,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"unknown norm {norm!r}; choose one of {', '.join(NORMS)}")
        widths = [width * min(2**level, 8) for level in range(len(strides))]
        batch_norm = nn.BatchNorm2d if convolution is nn.Conv2d else nn.BatchNorm3d
        norms = {"batch": batch_norm, "group": lambda channels: nn.GroupNorm(min(32, channels), channels)}
        norm_layer = norms.get(norm, nn.Identity)  # an Identity keeps the indices of the layers that follow
        layers: list[nn.Module] = [convolution(in_channels, width, kernel, strides[0], padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, len(strides)):
            bias = norm != "batch"  # batch norm subtracts it
            layers.append(convolution(widths[level - 1], widths[level], kernel, strides[level], padding=1, bias=bias))
            layers += [norm_layer(widths[level]), nn.LeakyReLU(0.2)]
        layers.append(convolution(widths[-1], 1, kernel, 1, padding=1))
        self.main = nn.Sequential(*layers)
        self.apply(initialise)
        if norm == "spectral":
            for layer in self.main:
                if isinstance(layer, convolution):
                    spectral_norm(layer)

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)


class PatchGAN2D(PatchDiscriminator):
    """Frames (N, C, H, W) -> logits (N, 1, h, w). Three layers: patches of 70x70 pixels, 64x64 frames give 6x6."""

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3, norm: str = "batch") -> None:
        super().__init__(nn.Conv2d, 4, [2] * layers + [1], in_channels, width, norm)


class PatchGAN3D(PatchDiscriminator):
    """Clips (B, C, T, H, W) -> logits (B, 1, t, h, w). Three layers: (B, 1, T/4, H/8, W/8)."""

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3, norm: str = "batch") -> None:
        strides = [2, *[(2 if level == 1 else 1, 2, 2) for level in range(1, layers)], 1]  # time is halved twice
        super().__init__(nn.Conv3d, 3, strides, in_channels, width, norm)


def initialise(module: nn.Module) -> None:
    """Start values of pix2pix: convolution weights N(0, 0.02), batch norm scales N(1, 0.02) with zero bias."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def discriminator_accuracy(logits_real: Tensor, logits_fake: Tensor) -> tuple[Tensor, Tensor]:
    """Share of real logits above 0 and of fake logits below 0, two scalars in [0, 1]; 0.5 is chance."""
    with torch.no_grad():
        return (logits_real > 0).float().mean(), (logits_fake < 0).float().mean()
