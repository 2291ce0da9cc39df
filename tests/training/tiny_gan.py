"""The smallest recipe with two networks and two optimisers: an autoencoder of 8x8x4 clips against a discriminator."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset

from losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from training import Losses, Networks, Recipe, Step, derive_seed


class TinyAutoencoder(nn.Module):
    """Clip (B, 3, T, H, W) and latent noise (B, 8, T, H/2, W/2) -> reconstruction."""

    def __init__(self, width: int = 8, checkpointing: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Conv3d(3, width, (1, 4, 4), (1, 2, 2), (0, 1, 1))
        self.decoder = nn.ConvTranspose3d(width, 3, (1, 4, 4), (1, 2, 2), (0, 1, 1))
        self.checkpointing = checkpointing

    def forward(self, clip: Tensor, noise: Tensor) -> Tensor:
        if self.checkpointing:
            return checkpoint(self.decode, self.encoder(clip), noise, use_reentrant=False)
        return self.decode(self.encoder(clip), noise)

    def decode(self, latents: Tensor, noise: Tensor) -> Tensor:
        return self.decoder(torch.tanh(latents + 0.1 * noise))


class TinyDiscriminator(nn.Module):
    """Clip (B, 3, T, H, W) -> patch logits; with running statistics when asked."""

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv3d(3, 8, (1, 4, 4), (1, 2, 2))
        self.norm = nn.BatchNorm3d(8) if batch_norm else nn.GroupNorm(2, 8)
        self.last = nn.Conv3d(8, 1, (1, 3, 3))

    def forward(self, clip: Tensor) -> Tensor:
        return self.last(F.leaky_relu(self.norm(self.first(clip)), 0.2))


class TinyGAN(Recipe):
    """VQGAN's losses without the codebook: L1 + adaptive weight * hinge, then the discriminator's hinge."""

    name = "tiny_gan"
    best_metric = ("psnr", "max")
    ema_networks = ("autoencoder",)

    def __init__(
        self, width: int = 8, checkpointing: bool = False, batch_norm: bool = False, adaptive: bool = True,
        start: int = 0, rate: float = 1e-2, seed: int = 0,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        autoencoder, discriminator = TinyAutoencoder(width, checkpointing), TinyDiscriminator(batch_norm)
        super().__init__(
            {"autoencoder": autoencoder, "discriminator": discriminator},
            {
                "autoencoder": torch.optim.Adam(autoencoder.parameters(), lr=rate, betas=(0.5, 0.9)),
                "discriminator": torch.optim.Adam(discriminator.parameters(), lr=rate, betas=(0.5, 0.9)),
            },
        )
        self.adaptive = adaptive
        self.start = start  # first step of the discriminator

    def losses(self, batch: Tensor, step: Step, networks: Networks) -> Iterator[Losses | None]:
        """Generator first, then the discriminator once `start` is reached."""
        fake = networks["autoencoder"](batch, self.latent_noise(batch, step))
        l1 = (fake - batch).abs().mean()
        if step.index < self.start:
            yield Losses(l1, {"l1": l1})
            yield None
            return
        adversarial = generator_loss(networks["discriminator"](fake))
        weight = 0.1
        if self.adaptive:
            weight = 0.1 * adaptive_weight(l1, adversarial, self.networks["autoencoder"].decoder.weight)
        yield Losses(l1 + weight * adversarial, {"l1": l1, "adversarial": adversarial})
        real, fake = networks["discriminator"](batch), networks["discriminator"](fake.detach())
        yield Losses(discriminator_loss(real, fake), {"logits_real": real.mean()})

    def evaluate(self, batch: Tensor, step: Step, networks: Networks) -> dict[str, Tensor]:
        """PSNR per clip, (B,)."""
        fake = networks["autoencoder"](batch, self.latent_noise(batch, step)).float()
        return {"psnr": -10 * torch.log10((fake - batch).square().mean((1, 2, 3, 4)) / 4)}

    def pictures(self, batch: Tensor, step: Step, networks: Networks) -> dict[str, Tensor]:
        """Reconstructed clips."""
        return {"reconstruction": networks["autoencoder"](batch, self.latent_noise(batch, step))}

    def latent_noise(self, batch: Tensor, step: Step) -> Tensor:
        return step.noise.normal(8, batch.shape[2], batch.shape[3] // 2, batch.shape[4] // 2)


class TinyClips(Dataset):
    """Smooth random clips (3, 4, 8, 8) in [-1, 1], each shifted at random by position."""

    takes_positions = True

    def __init__(self, length: int = 16, seed: int = 0) -> None:
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: int | tuple[int, int]) -> Tensor:
        index, position = key if isinstance(key, tuple) else (key, 0)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "clip", index))
        coarse = torch.rand(1, 3, 2, 3, 3, generator=generator) * 2 - 1
        clip = F.interpolate(coarse, (4, 8, 8), mode="trilinear", align_corners=False)[0]
        return clip.roll(derive_seed(self.seed, "shift", position) % 8, dims=-1)

    def fingerprint(self) -> str:
        return f"tiny {self.length} {self.seed}"
