"""Each model's own door on a GPU: results stay there, and equal those of the CPU for the same weights and noise."""

from __future__ import annotations

import copy

import pytest
import torch

from flow_pred import NeuralSDE, RiverPredictor, build_autoencoder
from lvt import generate_codes
from tests.flow_pred.test_autoencoder import OTHERS, TINY
from tests.flow_pred.test_sampling import K, context, neural_sde, river
from tests.lvt.test_generate import STRIDES, random_model
from tests.lvt.test_train import VQVAE_SIZES, build_vqvae
from tests.lvt.test_train import tiny as lvt_config
from tests.video_vae.tiny import random_clip, tiny_network
from tests.vqgan.tiny import tiny_model
from tests.vvae.conftest import make_tiny

TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}  # float32 without TF32


def pair(module):
    """The module in eval mode on the CPU, and its copy on the GPU."""
    return module.eval(), copy.deepcopy(module).cuda().eval()


def assert_same(on_gpu, on_cpu, **tolerance):
    """The first lies on the GPU and has the values of the second."""
    assert on_gpu.is_cuda and not on_cpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, **{**TOLERANCE, **tolerance})


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def seeded(device="cpu"):
    return torch.Generator(device).manual_seed(3)


@pytest.mark.parametrize("prior", ["standard", "hierarchical"])
def test_video_vae(prior):
    """Reconstruction, latents and generated clips; a generator of the CPU gives the same clips on both."""
    (cpu, gpu), clip = pair(tiny_network(prior=prior)), random_clip(2, 3, 17, 14)
    assert_same(gpu(clip.cuda())[0], cpu(clip)[0])
    latents = gpu.encode(clip.cuda())
    for found, expected in zip(latents.levels, cpu.encode(clip).levels, strict=True):
        assert_same(found, expected)
    assert_same(gpu.decode(latents), cpu.decode(cpu.encode(clip)))
    assert_same(gpu.generate(2, 4, seeded()), cpu.generate(2, 4, seeded()))
    assert torch.equal(gpu.generate(3, 2, seeded("cuda")), gpu.generate(3, 2, seeded("cuda")))


@pytest.mark.parametrize("kind", ["ema", "fsq", "lfq"])
def test_vqgan(kind):
    """Codes, indices and frames of every quantiser."""
    (cpu, gpu), frames = pair(tiny_model(kind)), random_clip(1, 5)[0].transpose(0, 1)
    codes, indices, stats = gpu.encode(frames.cuda())
    expected, own, _ = cpu.encode(frames)
    assert torch.equal(indices.cpu(), own) and stats["commitment"].is_cuda
    assert_same(codes, expected)
    assert_same(gpu.decode(codes), cpu.decode(expected))
    assert_same(gpu.decode_indices(indices), cpu.decode_indices(own))


def test_ldm_vqgan():
    """Latents, codes and frames with and without quantiser."""
    (cpu, gpu), frames = pair(tiny_model(ldm=True)), random_clip(1, 5)[0].transpose(0, 1)
    latents = gpu.encode(frames.cuda())
    assert_same(latents, cpu.encode(frames))
    assert torch.equal(gpu.quantize(latents)[1].cpu(), cpu.quantize(cpu.encode(frames))[1])
    for bypass in (True, False):
        found = gpu.decode(latents, force_not_quantize=bypass)
        assert_same(found, cpu.decode(cpu.encode(frames), force_not_quantize=bypass))


def test_lvt_vqvae():
    """Codes of clips and frames of codes."""
    cpu, gpu = pair(build_vqvae(lvt_config("VQVAE_tiny.yaml", VQVAE_SIZES)))
    clips = torch.randint(256, (2, 3, 3, 16, 16), dtype=torch.uint8, generator=seeded())
    codes = gpu.encode(clips.cuda())
    assert torch.equal(codes.cpu(), cpu.encode(clips))
    assert_same(gpu.decode(codes), cpu.decode(codes.cpu()))


@pytest.mark.parametrize("name", STRIDES)
def test_lvt_sampling(name, monkeypatch):
    """Logits; then codes with caches, greedy, drawn, and by the step that is made for the compiler, as on the CPU."""
    model, size = random_model(name)
    cpu, gpu = pair(model)
    codes = torch.randint(11, (2, 2, *size), generator=seeded())
    assert_same(gpu.clip_logits(codes.cuda()), cpu.clip_logits(codes), atol=1e-3)
    greedy = generate_codes(gpu, codes.cuda(), 3, greedy=True)
    chosen = gpu.clip_logits(greedy).argmax(2)
    assert torch.equal(chosen[:, :, 3:], greedy[:, :, 3:])  # what it computes without caches
    assert torch.equal(greedy.cpu(), generate_codes(cpu, codes, 3, greedy=True))
    options = {"seeds": [1, 2], "top_k": 9, "top_p": 0.95}
    drawn = generate_codes(gpu, codes.cuda(), 3, **options)
    assert drawn.is_cuda and torch.equal(drawn.cpu(), generate_codes(cpu, codes, 3, **options))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    assert torch.equal(generate_codes(gpu, codes.cuda(), 3, compiled=True, **options), drawn)
    made = [generate_codes(gpu, codes.cuda(), 3, generator=seeded("cuda")) for _ in range(2)]
    assert torch.equal(made[0], made[1])


@pytest.mark.parametrize("grid", ["uniform", "reference"])
def test_river(grid):
    """Roll-outs with given noise; with the GPU's own noise they repeat and do not depend on the batch."""
    cpu, gpu = pair(river())
    assert isinstance(gpu, RiverPredictor)
    steps, evaluations = (4, 8) if grid == "uniform" else (4, 12)
    options = {
        "frames": 3, "steps": steps, "grid": grid, "noise": torch.randn(3, 3, 2, 2, 3, generator=seeded()),
        "condition_indices": torch.randint(2, (3, evaluations, 3), generator=seeded()),
    }  # fmt: skip
    assert_same(gpu.sample(context().cuda(), **options), cpu.sample(context(), **options))
    for source in ("cpu", "cuda"):
        together = gpu.sample(context().cuda(), 3, grid=grid, steps=steps, generator=seeded(source))
        alone = gpu.sample(
            context()[1:2].cuda(), 3, grid=grid, steps=steps, generator=seeded(source), positions=[1]
        )  # fmt: skip
        assert together.is_cuda
        torch.testing.assert_close(alone, together[1:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_neural_sde_with_fixed_steps(method):
    """Roll-outs with given increments, between frames too."""
    cpu, gpu = pair(neural_sde())
    assert isinstance(gpu, NeuralSDE)
    increments = 0.5 * torch.randn(2, 4, 3, K * 2 * 2 * 3, generator=seeded())
    options = {"frames": 2, "steps": 4, "outputs_per_interval": 2, "method": method, "increments": increments}
    assert_same(gpu.sample(context().cuda(), **options), cpu.sample(context(), **options))


def test_neural_sde_with_adaptive_steps():
    """Without diffusion as on the CPU; with it a sample repeats and does not depend on its batch."""
    cpu, gpu = pair(neural_sde(diffusion_scale=0.3))
    options = {"method": "adaptive", "atol": 3e-2, "outputs_per_interval": 2}
    together = gpu.sample(context().cuda(), 2, generator=seeded("cuda"), **options)
    alone = gpu.sample(context()[1:2].cuda(), 2, generator=seeded("cuda"), positions=[1], **options)
    assert together.is_cuda and torch.isfinite(together).all()
    torch.testing.assert_close(alone, together[1:2], rtol=1e-3, atol=1e-3)
    for sde in (cpu, gpu):
        sde.log_amplitude = None
    assert_same(gpu.sample(context().cuda(), 2, **options), cpu.sample(context(), 2, **options), atol=1e-3)


@pytest.mark.parametrize("kind", ["ours", *OTHERS])
def test_flow_pred_autoencoders(kind):
    """Latents and images of every type of autoencoder."""
    torch.manual_seed(0)
    cpu, gpu = pair(build_autoencoder(TINY if kind == "ours" else OTHERS[kind][0]))
    images = random_clip(1, 3, 32, 32)[0].transpose(0, 1)
    latents = gpu.encode(images.cuda())
    assert_same(latents, cpu.encode(images))
    assert_same(gpu.decode(latents), cpu.decode(latents.cpu()))


def test_vvae():
    """Latents and clips: whole, sample by sample, frames in slices, in tiles, images, and drawn from a posterior."""
    (cpu, gpu), clip = pair(make_tiny()), random_clip(2, 8, 48, 40)

    def compare():
        latent = gpu.encode(clip.cuda()).mode()
        assert_same(latent, cpu.encode(clip).mode())
        assert_same(gpu.decode(latent), cpu.decode(latent.cpu()))

    compare()
    drawn = [model.encode(x, sample_posterior=True, generator=seeded()).latent for model, x in both(cpu, gpu, clip)]
    assert_same(drawn[1], drawn[0])
    own = [gpu.encode(clip.cuda(), sample_posterior=True, generator=seeded("cuda")).latent for _ in range(2)]
    assert torch.equal(own[0], own[1])
    images = [model.encode(x, mask_temporal=True).mode() for model, x in both(cpu, gpu, clip[:, :, :1])]
    assert_same(images[1], images[0])
    for model in (cpu, gpu):
        model.encoder.slice_frames = model.decoder.slice_frames = 3
        model.enable_slicing()
    compare()
    for model in (cpu, gpu):
        model.disable_slicing()
        model.enable_tiling(32, 32, 8, 24, 24, 4)
    compare()


def both(cpu, gpu, clip):
    """Each model with the clip on its side."""
    return (cpu, clip), (gpu, clip.cuda())


def test_vvae_with_captions():
    """Embeddings and masks that lie on the CPU serve a model on the GPU."""
    ddconfig = {"z_channels": 4, "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [27, 54]}
    ppconfig = {"ch": 4, "hidden_channel": 32, "attn_temporal_factor": [2, 4]}
    cpu, gpu = pair(make_tiny(ddconfig=ddconfig, ppconfig=ppconfig, caption_guide=True))
    clip = random_clip(1, 8, 32, 32)
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    text = {"text_embeddings": torch.randn(1, 4, 1024, generator=seeded()), "text_attn_mask": mask}
    latent = gpu.encode(clip.cuda(), **text).mode()
    assert_same(latent, cpu.encode(clip, **text).mode())
    assert_same(gpu.decode(latent, **text), cpu.decode(latent.cpu(), **text))
