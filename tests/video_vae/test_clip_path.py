"""The direct path of a whole clip: a low-pass at the start, of any length, and absent unless it is asked for."""

import pytest
import torch

from tests.video_vae.tiny import random_clip, tiny_network
from video_vae.clip_path import ClipDecoder, ClipEncoder, low_pass
from video_vae.config import ClipPathConfig, VideoVAEConfig
from videodata.errors import UserError


def through(clip: torch.Tensor, times: int, latent_dim: int, stride: int = 4) -> torch.Tensor:
    """A clip through encoder and decoder with their first weights."""
    config = ClipPathConfig(times, width=8, depth=1)
    mean = ClipEncoder(config, stride, latent_dim)(clip).chunk(2, dim=-1)[0].permute(0, 3, 1, 2)
    decoder = ClipDecoder(config, stride, latent_dim)
    coefficients, frames = decoder(mean), clip.shape[2]
    return torch.stack([decoder.frame(coefficients, t, frames) for t in range(frames)], dim=2)


def test_the_first_weights_are_an_orthonormal_low_pass():
    """All functions together lose nothing; fewer keep what is coarse in space, time and colour."""
    rows = low_pass(96, times=2, stride=4).flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(96))
    clip = random_clip(frames=4)
    torch.testing.assert_close(through(clip, times=4, latent_dim=192), clip)
    still = clip.mean((3, 4), keepdim=True).mean(2, keepdim=True).expand_as(clip).mean(1, keepdim=True).expand_as(clip)
    torch.testing.assert_close(through(still, times=4, latent_dim=1), still)
    coarse = through(clip, times=4, latent_dim=60)
    assert (coarse - clip).square().mean() < 0.8 * (clip.mean((2, 3, 4), keepdim=True) - clip).square().mean()


def test_frames_of_a_clip_of_another_length_lie_between():
    """Coefficients hold for all times: frame 1 of 3 is seen at the middle of the clip, frame 4 of 9 too."""
    decoder = ClipDecoder(ClipPathConfig(4, width=8, depth=1), 4, 64)
    coefficients = decoder(torch.randn(1, 64, 2, 2))
    torch.testing.assert_close(decoder.frame(coefficients, 1, 3), decoder.frame(coefficients, 4, 9))


def test_a_network_with_the_path_trains_all_of_it_and_reads_the_whole_clip():
    """Gradients reach both sides; a step with few frames still tells apart clips that differ elsewhere."""
    network = tiny_network(clip_path={"times": 3, "width": 8, "depth": 1})
    clip = random_clip(frames=5, height=18, width=21)
    reconstruction, terms = network(clip)
    assert reconstruction.shape == clip.shape and set(terms) == {"kl_1", "kl_2"}
    reconstruction.square().mean().backward()
    assert network.clip_encoder.linear.weight.grad.abs().sum() > 0
    assert network.clip_decoder.layers[-1].weight.grad.abs().sum() > 0
    other = clip.clone()
    other[:, :, 4] = 0
    first = [network(clip[:, :, :1], moments=[(0, 5)], whole=whole)[0] for whole in (clip, other)]
    assert not torch.equal(*first)


def test_without_the_path_the_network_is_as_before():
    """Old configurations and checkpoints have no such key and no such weights."""
    assert VideoVAEConfig.from_dict({"levels": [{"dim": 8, "heads": 2, "latent_dim": 4}]}).clip_path.times == 0
    assert not [name for name in tiny_network().state_dict() if name.startswith("clip_")]
    with pytest.raises(UserError, match="clip_path needs"):
        tiny_network(clip_path={"times": 3, "width": 0})
