"""The architecture and the training step of the original, as it computes them: the yardstick of benchmarks/vqgan.py.

Residual blocks with the activation after the sum, attention with a materialised score matrix at every level of the
decoder, a codebook look-up by one-hot matrices, and in stage 2 a second forward pass for the discriminator. Frames are
in [0, 1]. One of its defects is left out: latents are quantised per position, not per channel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Residual(nn.Module):
    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(narrow, wide, 3, padding=1), nn.GroupNorm(8, wide), nn.SiLU(),
            nn.Conv2d(wide, wide, 3, padding=1), nn.GroupNorm(8, wide),
        )  # fmt: skip
        self.skip = nn.Identity() if narrow == wide else nn.Conv2d(narrow, wide, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.main(x) + self.skip(x))


class Attention(nn.Module):
    """`materialize` False computes the same with the fused kernel."""

    materialize = True

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels * heads) ** -0.5
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x)).chunk(3, dim=1)
        q, k, v = (part.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3) for part in parts)  # (B, heads, N, c)
        if self.materialize:
            mixed = (q @ k.transpose(2, 3) * self.scale).softmax(dim=-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return x + self.project(mixed.transpose(2, 3).reshape(x.shape))


class OneHotQuantizer(nn.Module):
    """Running means by one-hot matrices, from unit-length Gaussian rows, without revival."""

    def __init__(self, codes: int, dim: int, commitment_cost: float = 0.25, decay: float = 0.99) -> None:
        super().__init__()
        self.commitment_cost, self.decay = commitment_cost, decay
        self.register_buffer("embeddings", F.normalize(torch.randn(codes, dim), dim=1))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.embeddings.clone())

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vectors = latents.movedim(1, -1)
        flat = vectors.reshape(-1, vectors.shape[-1])
        squares = flat.square().sum(1, keepdim=True) + self.embeddings.square().sum(1)
        indices = (squares - 2 * flat @ self.embeddings.T).argmin(dim=1)
        one_hot = flat.new_zeros(len(flat), len(self.embeddings)).scatter_(1, indices[:, None], 1)
        codes = (one_hot @ self.embeddings).view(vectors.shape)
        if self.training:
            self.update(one_hot, flat.detach())
        loss = F.mse_loss(codes, vectors.detach()) + self.commitment_cost * F.mse_loss(codes.detach(), vectors)
        passed = vectors + (codes - vectors).detach()
        return passed.movedim(-1, 1), indices.view(vectors.shape[:-1]), loss

    @torch.no_grad()
    def update(self, one_hot: Tensor, flat: Tensor) -> None:
        self.counts.mul_(self.decay).add_(one_hot.sum(0), alpha=1 - self.decay)
        total = self.counts.sum()
        self.counts.copy_((self.counts + 1e-5) / (total + len(self.counts) * 1e-5) * total)
        self.sums.mul_(self.decay).add_(one_hot.T @ flat, alpha=1 - self.decay)
        self.embeddings.copy_(self.sums / self.counts[:, None])


class OriginalVQGAN(nn.Module):
    """Frames (N, 3, H, W) in [0, 1]; downsamples by 8 for four widths."""

    def __init__(self, dims: tuple[int, ...] = (16, 32, 64, 128), latent_dim: int = 8, codes: int = 128) -> None:
        super().__init__()
        encoder: list[nn.Module] = [nn.Conv2d(3, dims[0], 3, padding=1), nn.GroupNorm(8, dims[0]), nn.SiLU()]
        for level, (narrow, wide) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            encoder += [nn.Conv2d(narrow, narrow, 3, 2, 1), Residual(narrow, wide)]
            encoder += [Attention(wide)] if level >= 2 else []
            encoder.append(Residual(wide, wide))
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(dims[-1], latent_dim, 3, padding=1))
        self.quantizer = OneHotQuantizer(codes, latent_dim)
        decoder: list[nn.Module] = [nn.Conv2d(latent_dim, dims[-1], 3, padding=1), nn.GroupNorm(8, dims[-1]), nn.SiLU()]
        for wide, narrow in zip(dims[:0:-1], dims[-2::-1], strict=True):
            decoder += [nn.ConvTranspose2d(wide, wide, 4, 2, 1), Residual(wide, narrow), Attention(narrow)]
            decoder.append(Residual(narrow, narrow))
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(dims[0], 3, 3, padding=1))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes, indices, loss = self.quantizer(self.encoder(frames))
        return torch.sigmoid(self.decoder(codes)), indices, loss


class OriginalDiscriminator(nn.Sequential):
    def __init__(self, dims: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, dims[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for narrow, wide in zip(dims[:-1], dims[1:], strict=True):
            layers += [spectral_norm(nn.Conv2d(narrow, wide, 4, 2, 1, bias=False)), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(dims[-1], 1, 1))


class OriginalTraining:
    """The original's steps of both stages, without perceptual loss."""

    def __init__(self, stage: int, adv_weight: float = 0.05, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.stage, self.adv_weight = stage, adv_weight
        self.model, self.discriminator = OriginalVQGAN(), OriginalDiscriminator()
        first = stage == 1
        self.adam = torch.optim.Adam(
            self.model.parameters(), lr=1e-4 if first else 5e-5, betas=(0.9 if first else 0.5, 0.999)
        )
        self.adam_d = torch.optim.Adam(self.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))

    def step(self, frames: Tensor) -> None:
        """One step on frames (N, 3, H, W) in [-1, 1]."""
        frames = (frames + 1) / 2
        if self.stage == 2:
            self.step_discriminator(frames)
        reconstruction, _, loss = self.model(frames)
        loss = loss + F.mse_loss(reconstruction, frames)
        if self.stage == 2:
            logits = self.discriminator(reconstruction)
            adversarial = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
            loss = loss + self.adv_weight * adversarial
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()

    def step_discriminator(self, frames: Tensor) -> None:
        with torch.no_grad():
            reconstruction = self.model(frames)[0]
        real, fake = self.discriminator(frames), self.discriminator(reconstruction)
        loss = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
        loss = 0.5 * (loss + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake)))
        self.adam_d.zero_grad()
        loss.backward()
        self.adam_d.step()
