"""The network learns: the shortest runs that show it."""

import torch

from training.randomness import SampleNoise
from training.recipe import Step
from video_vae.config import LossConfig, load_preset
from video_vae.model import TransformerNetwork
from video_vae.train import VideoVAERecipe
from videodata.clips import open_clips


def test_the_tiny_preset_overfits_one_clip():
    """One clip of moving shapes comes back with more than 25 dB after 35 steps, through noisy latents."""
    clip = open_clips("shapes:1", frames=4, size=32)[0][None]
    torch.manual_seed(0)
    network = TransformerNetwork.from_config(load_preset("tiny"), checkpointing=False)
    recipe = VideoVAERecipe(network, LossConfig(perceptual_weight=0.0), 2e-3, optimizer="muon")
    optimizer = recipe.optimizers["vae"]
    for index in range(35):
        step = Step(index, 35, SampleNoise(0, [index]), torch.device("cpu"))
        next(recipe.losses(clip, step)).total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    network.eval()
    with torch.no_grad():
        scores = recipe.evaluate(clip, Step(35, 35, SampleNoise(1, [0]), torch.device("cpu"), training=False))
    assert scores["psnr"].item() > 25
    assert scores["ssim"].item() > 0.7
