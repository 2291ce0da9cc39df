"""The recipes: the promises of every model, the schedule, what each loss is made of, and training that learns."""

import json

import pytest
import torch

from flow_pred.autoencoder import SimpleVQVAE
from flow_pred.config import AutoencoderObjective
from flow_pred.train import jitter_colors
from flow_pred.train_autoencoder import AutoencoderRecipe
from tests.contract import ModelContract
from tests.flow_pred.test_autoencoder import TINY
from tests.flow_pred.tiny import RandomClips, tiny_recipe
from training import SampleNoise, Step, TrainSettings, train
from training.optim import learning_rate_scale

SCHEDULE = {"schedule": "sqrt", "warmup_steps": 1, "warmup_start": 0.0, "final_rate": 1e-7}  # the original's


class TestRiver(ModelContract):
    """RIVER keeps what every model promises."""

    checkpointing_override = {"checkpointing": True}
    tolerance = 2e-4  # Adam scales up the rounding errors that are all the gradient a key's bias has

    def build_recipe(self, **overrides):
        return tiny_recipe("river", **overrides)

    def dataset(self):
        return RandomClips()

    def settings(self, folder, **changes):
        return super().settings(folder, **{**SCHEDULE, **changes})


class TestDiffusion(TestRiver):
    """So does the part of the neural SDE with the most frozen networks."""

    def build_recipe(self, **overrides):
        return tiny_recipe("g", **overrides)


class TestFlow(TestRiver):
    """And its drift."""

    def build_recipe(self, **overrides):
        return tiny_recipe("f_nll", **overrides)


class TestDenoiser(TestRiver):
    """And its denoiser, with the head that normalises over the batch."""

    def build_recipe(self, **overrides):
        return tiny_recipe("d", out_norm="bn", **overrides)


class TestAutoencoder(ModelContract):
    """And the autoencoder under both, on clips, with the quantiser from the second step on."""

    tolerance = 2e-4

    def build_recipe(self, **overrides):
        torch.manual_seed(0)
        model = SimpleVQVAE(**{key: value for key, value in TINY.items() if key != "type"})
        return AutoencoderRecipe(model, AutoencoderObjective(vq_warmup=1))

    def dataset(self):
        return RandomClips(side=16)


def step_for(batch: int, training: bool = True) -> Step:
    return Step(0, 4, SampleNoise(0, range(batch)), torch.device("cpu"), training)


def batch_of(count: int = 4) -> torch.Tensor:
    return torch.stack([RandomClips()[index] for index in range(count)])


@pytest.mark.parametrize("func", ["river", "f_nll", "f_mse", "d", "g"])
def test_every_component_has_losses_metrics_and_pictures(func):
    """One finite loss, per-sample metrics, pictures in [-1, 1]; frozen networks get no gradient."""
    recipe = tiny_recipe(func)
    (loss,) = list(recipe.losses(batch_of(), step_for(4), recipe.networks))
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert all(parameter.grad is not None for parameter in recipe.networks["regressor"].trained_parameters())
    assert all(parameter.grad is None for network in recipe.frozen for parameter in network.parameters())
    for network in recipe.networks.values():
        network.eval()
    with torch.no_grad():
        metrics = recipe.evaluate(batch_of(), step_for(4, False), recipe.networks)
        judged = metrics.pop("judged", None)  # sums for `summarize`
        assert {value.shape for value in metrics.values()} == {(4,)}
        assert (judged is None) == (recipe.config.model.role not in "dg")
        for clip in recipe.pictures(batch_of(), step_for(4, False), recipe.networks).values():
            assert clip.shape[1] == 3 and clip.abs().max() <= 1


@pytest.mark.parametrize("func", ["river", "f_nll", "g"])
def test_cached_latents_give_the_loss_of_the_pictures(func):
    """The same draws on {"latents": ...} as on the clip."""
    recipe, batch = tiny_recipe(func), batch_of()
    (pictures,), (latents,) = (
        list(recipe.losses(data, step_for(4), recipe.networks)) for data in (batch, {"latents": batch.transpose(1, 2)})
    )
    torch.testing.assert_close(pictures.total, latents.total)


def test_a_sample_loss_does_not_change_with_its_batch():
    """Validation losses of single clips are those of the clips in one batch."""
    recipe, batch = tiny_recipe("f_nll"), batch_of(3)
    with torch.no_grad():
        together = recipe.evaluate(batch, step_for(3, False), recipe.networks)["loss"]
        alone = [
            recipe.evaluate(
                batch[i : i + 1], Step(0, 4, SampleNoise(0, [i]), torch.device("cpu"), False), recipe.networks
            )["loss"]
            for i in range(3)
        ]
    torch.testing.assert_close(torch.cat(alone), together)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("river_lr1e-4", (1e-4, 1e-7, 5000, 300_000)),
        ("nsde_lr1e-4_end1e-7", (1e-4, 1e-7, 5000, 300_000)),
        ("nsde_f_lr1e-5_end1e-8", (1e-5, 1e-8, 5000, 300_000)),
        ("small_warm10_total100_lr1e-3_end1e-6", (1e-3, 1e-6, 10, 100)),
    ],
)
def test_the_learning_rate_is_the_originals(fixtures, name, settings):
    """At every step of the stored schedules, to the last bit."""
    expected = json.loads((fixtures / "flow_pred" / "lr_schedule.json").read_text())[name]
    base, end, warmup, total = settings
    for step, rate in expected.items():
        scale = learning_rate_scale(int(step), total, warmup, "sqrt", warmup_start=0.0, final_rate=end, base=base)
        assert base * scale == rate


def test_colour_augmentation_is_one_draw_per_clip():
    """All frames of a clip change alike, clips differ, values stay in range; validation is not augmented."""
    clip = (2 * torch.rand(1, 1, 3, 4, 4) - 1).expand(2, 3, -1, -1, -1)
    changed = jitter_colors(clip, SampleNoise(0, range(2)))
    assert torch.equal(changed[0, 0], changed[0, 2])
    assert (changed[0] - changed[1]).abs().max() > 0.01
    assert (changed - clip).abs().max() > 0.01 and changed.abs().max() <= 1
    recipe = tiny_recipe("f_mse", aug=True)
    plain, augmented = (
        list(recipe.losses(batch_of(), step_for(4, training), recipe.networks))[0].total.item()
        for training in (False, True)
    )
    assert plain != augmented


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_river_learns_a_motion_it_can_only_know_from_the_last_frame(tmp_path, optimizer):
    """After a short training the loss on a constant clip falls well below that of the untrained network."""

    class Still(RandomClips):
        def __getitem__(self, index):
            return super().__getitem__(index)[:, :1].expand(-1, 5, -1, -1).clone()

    recipe = tiny_recipe("river", optimizer=optimizer)
    settings = TrainSettings(
        run_dir=tmp_path, steps=150, batch_size=8, device="cpu", evaluate_every=150, log_every=50, **SCHEDULE
    )
    result = train(recipe, Still(), settings, {"model": {}}, Still())
    assert result.metrics["loss"] < 0.8
    assert (tmp_path / "samples").is_dir()


def test_the_autoencoder_learns_and_starts_its_codes_at_the_latents(tmp_path):
    """Both losses fall, codes are used, and frames in between are decoded from latents in between."""

    class Clips(RandomClips):
        def __getitem__(self, index):
            tone = torch.linspace(-0.8, 0.8, 8)[index] + torch.linspace(0, 0.2, 3)[:, None, None]
            return tone.expand(3, 3, 16, 16).contiguous()

    torch.manual_seed(0)
    model = SimpleVQVAE(**{key: value for key, value in TINY.items() if key != "type"})
    recipe = AutoencoderRecipe(model, AutoencoderObjective(learning_rate=3e-3, vq_warmup=30))
    settings = TrainSettings(
        run_dir=tmp_path, steps=100, batch_size=8, device="cpu", schedule="cosine", evaluate_every=100, log_every=50
    )
    result = train(recipe, Clips(), settings, {"model": {}}, Clips())
    assert result.metrics["psnr"] > 14 and result.metrics["psnr_blend"] > 14  # one grey for all: 12.6
    codes = model.vector_quantizer.embedding.weight
    assert bool(recipe.networks["reservoir"].used) and codes.std() > 0.05
    frames = torch.stack([Clips()[index][:, 0] for index in range(8)])
    assert len(model.eval().quantize(model.encode(frames))[1].unique()) > 3
