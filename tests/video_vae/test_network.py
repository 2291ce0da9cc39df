"""The network: shapes, sizes, randomness, structure."""

import math
from pathlib import Path

import pytest
import torch

from tests.video_vae.tiny import TINY, random_clip, tiny_network
from training.randomness import SampleNoise
from video_vae import model
from video_vae.config import PRESETS, load_config
from video_vae.model import LOG_VAR_RANGE, TransformerNetwork
from videodata.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("frames", [1, 3, 7])
@pytest.mark.parametrize("size", [(16, 16), (17, 30), (9, 5)])
def test_any_length_and_size_comes_back_as_it_went_in(frames, size):
    """Frames are padded to what the levels need and cropped again, whatever T, H and W."""
    clip = random_clip(1, frames, *size)
    reconstruction, terms = tiny_network()(clip, SampleNoise(0, [0]))
    assert reconstruction.shape == clip.shape
    assert reconstruction.abs().max() <= 1
    assert {name: value.shape for name, value in terms.items()} == {"kl_1": (1,), "kl_2": (1,)}


def test_padding_repeats_the_border_and_is_not_seen_outside():
    """A frame of 15x15 is treated like the 16x16 frame whose last row and column repeat."""
    network, clip = tiny_network(), random_clip(1, 2, 15, 15)
    repeated = torch.cat([clip, clip[..., -1:]], dim=4)
    repeated = torch.cat([repeated, repeated[..., -1:, :]], dim=3)
    torch.testing.assert_close(network(clip)[0], network(repeated)[0][..., :15, :15])


def test_base_preset_has_the_documented_grids():
    """240x320 gives token grids of 32x40 down to 4x5, and latents of these grids."""
    with torch.device("meta"):
        network = TransformerNetwork.from_config(load_config("base"))
        latents = network.encode(torch.empty(2, 3, 1, 240, 320))
    assert [tuple(level.shape) for level in latents.levels] == [
        (2, 16, 32, 40),
        (2, 32, 16, 20),
        (2, 64, 8, 10),
        (2, 128, 4, 5),
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_build_and_are_as_large_as_documented(preset):
    """docs/video_vae.md states the number of parameters of each preset."""
    with torch.device("meta"):
        network = TransformerNetwork.from_config({"model": load_config(preset)})
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert f"| {preset} | {millions:.1f} M" in (ROOT / "docs" / "video_vae.md").read_text()


def test_every_parameter_learns():
    """A step reaches every parameter: nothing is built and not used."""
    for changes in ({}, {"prior": "hierarchical"}):
        network = tiny_network(**changes)
        reconstruction, terms = network(random_clip(), SampleNoise(0, [0, 1]))
        (reconstruction.square().mean() + sum(term.mean() for term in terms.values())).backward()
        unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
        assert not unused, changes


def test_options_change_the_result():
    """The number of iterations does something, and the result is still a clip."""
    clip = random_clip()
    plain, changed = tiny_network()(clip)[0], tiny_network(gen_iterations=1)(clip)[0]
    assert changed.shape == clip.shape and torch.isfinite(changed).all()
    assert not torch.allclose(plain, changed)


def test_a_part_of_the_frames_keeps_their_place_in_time():
    """Frames given with their moments are read and drawn as those moments, not as the first ones."""
    network, clip = tiny_network(), random_clip(1, 2)
    spread = network(clip, moments=[(1, 8), (5, 8)])[0]
    assert spread.shape == clip.shape and not torch.allclose(spread, network(clip)[0])
    torch.testing.assert_close(network(clip, moments=[(0, 2), (1, 2)])[0], network(clip)[0])


def test_evaluation_is_deterministic_and_training_noise_is_not():
    """Dropout acts in training only."""
    network, clip = tiny_network(dropout=0.1), random_clip()
    assert not torch.equal(network(clip)[0], network(clip)[0])
    network.eval()
    assert torch.equal(network(clip)[0], network(clip)[0])


def test_checkpointing_repeats_dropout():
    """With dropout, loss and gradients are still those of the plain computation."""
    results = []
    for checkpointing in (False, True):
        network = tiny_network(checkpointing=checkpointing, dropout=0.2)
        torch.manual_seed(5)
        network(random_clip(), SampleNoise(0, [0, 1]))[0].square().mean().backward()
        results.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    torch.testing.assert_close(results[0], results[1])


def test_what_a_step_keeps_is_counted_without_running_it():
    """The count on tensors without values bounds that of a forward pass, for more frames than it looks at, closely."""
    network, held = tiny_network(), {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = network(random_clip(2, 4, 32, 32))
    found = sum(size for place, size in held.items() if place not in weights)
    del result
    assert 1 <= model.kept_bytes(network.config, 2, 4, (32, 32)) / found < 1.5


def test_checkpointing_keeps_less_for_the_backward_pass():
    """What autograd holds after the forward pass shrinks by more than half."""
    sizes = []
    for checkpointing in (False, True):
        held = {}

        def keep(tensor, held=held):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            clip = tiny_network(checkpointing=checkpointing)(random_clip(2, 4, 32, 32))[0]
        sizes.append(sum(held.values()))
        del clip
    assert sizes[1] < sizes[0] / 2


def test_a_clip_does_not_depend_on_its_batch():
    """Encoding, noise and decoding treat each clip of a batch alone."""
    network, clip = tiny_network(prior="hierarchical").eval(), random_clip(3)
    together, terms = network(clip, SampleNoise(0, [4, 5, 6]))
    alone, alone_terms = network(clip[1:2], SampleNoise(0, [5]))
    torch.testing.assert_close(together[1:2], alone)
    torch.testing.assert_close(terms["kl_1"][1:2], alone_terms["kl_1"])


@pytest.mark.parametrize("prior", ["standard", "hierarchical"])
def test_samples_have_any_length_and_do_not_depend_on_their_number(prior):
    """Sample i is the same alone and among others; length and size are free; temperature 0 is the prior's mean."""
    network = tiny_network(prior=prior).eval()
    two = network.generate(2, 5, torch.Generator().manual_seed(1), size=(20, 12))
    assert two.shape == (2, 3, 5, 20, 12)
    torch.testing.assert_close(two[:1], network.generate(1, 5, torch.Generator().manual_seed(1), size=(20, 12)))
    assert not torch.allclose(two[0], two[1])
    cold = network.generate(2, 3, torch.Generator().manual_seed(1), temperature=0.0)
    torch.testing.assert_close(cold[0], cold[1])


def test_the_posterior_can_be_sharp_and_is_bounded():
    """The standard deviation reaches below 0.1 and neither explodes nor underflows."""
    network = tiny_network()
    states = [torch.zeros(1, 4, 4, 8), torch.zeros(1, 2, 2, 16)]
    for bias, expected in ((-6.0, math.exp(-3.0)), (-1e4, math.exp(LOG_VAR_RANGE[0] / 2)), (1e4, math.exp(2.0))):
        for layer in network.latents.posteriors:
            layer.bias.data[layer.out_features // 2 :] = bias
        noisy, mean = (network.latents.infer(states, noise)[0] for noise in (SampleNoise(0, [0]), None))
        assert (noisy[0] - mean[0]).std().item() == pytest.approx(expected, rel=0.4)


def test_divergence_has_its_closed_form():
    """KL of N(mu, s^2) from N(0, 1), summed over a level, is what the network reports."""
    network = tiny_network()
    for layer in network.latents.posteriors:
        torch.nn.init.zeros_(layer.weight)
        layer.bias.data[: layer.out_features // 2] = 0.5
        layer.bias.data[layer.out_features // 2 :] = -1.0
    _, terms = network(random_clip(1))
    per_element = 0.5 * (0.25 + math.exp(-1) - 1 + 1)
    assert terms["kl_1"].item() == pytest.approx(4 * 16 * per_element, rel=1e-5)
    assert terms["kl_2"].item() == pytest.approx(6 * 4 * per_element, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"canvas_heads": 3}, "3 attention heads do not divide the width 8 of the canvas"),
        ({"prior": "flat"}, "choose one of standard, hierarchical"),
        ({"stem_stride": 3}, "power of two"),
        ({"stem_dims": 8}, "stem_dim"),
        ({"levels": []}, "at least 1 level"),
        ({"head_dim": 10**12}, "16384"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, message):
    """A wrong configuration is one line that names the setting, before anything is built."""
    with pytest.raises(UserError, match=message):
        TransformerNetwork.from_config({**TINY, **changes})
