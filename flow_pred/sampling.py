"""What sampling with either predictor needs: networks at rest, and noise that belongs to the sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.randomness import SampleNoise

FRAMES_AT_ONCE = 64  # through an autoencoder, so that memory does not grow with the length of a roll-out


@contextmanager
def at_rest(*networks: nn.Module | None) -> Iterator[None]:
    """Eval mode and no gradients for the length of the block; each network gets its own mode back."""
    modes = [(network, network.training) for network in networks if network is not None]
    for network, _ in modes:
        network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for network, training in modes:
            network.train(training)


def sample_noise(
    batch: int, generator: torch.Generator | None, positions: Sequence[int] | None, device: torch.device
) -> SampleNoise:
    """One stream of noise per sample: row b depends on the generator's state and positions[b] (default b) alone."""
    source = generator.device if generator is not None else "cpu"
    seed = int(torch.randint(2**62, (), generator=generator, device=source))
    return SampleNoise(seed, range(batch) if positions is None else positions, device)


def encode_clip(autoencoder: nn.Module, clip: Tensor) -> Tensor:
    """Clip (B, 3, T, H, W) in [-1, 1] -> latents (B, T, C, h, w)."""
    frames = clip.transpose(1, 2)  # (B, T, 3, H, W)
    parts = frames.flatten(0, 1).split(FRAMES_AT_ONCE)
    return torch.cat([autoencoder.encode(part) for part in parts]).unflatten(0, frames.shape[:2])


def decode_clip(autoencoder: nn.Module, latents: Tensor) -> Tensor:
    """Latents (B, T, C, h, w) -> clip (B, 3, T, H, W), clamped to [-1, 1]."""
    parts = latents.flatten(0, 1).split(FRAMES_AT_ONCE)
    frames = torch.cat([autoencoder.decode(part) for part in parts]).unflatten(0, latents.shape[:2])
    return frames.transpose(1, 2).clamp(-1, 1)
