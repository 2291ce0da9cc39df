"""The recipes: the promises of every model, the schedule, what each loss is made of, and training that learns."""

import json

import pytest
import torch

from flow_pred.autoencoder import SimpleVQVAE
from flow_pred.config import AutoencoderObjective, parse_config
from flow_pred.files import build_autoencoder
from flow_pred.latents import LatentSpace
from flow_pred.neural_sde import log_diffusion
from flow_pred.objectives import draw_state, times_of
from flow_pred.recipes import frames_ahead, jitter_colors
from flow_pred.train import build_recipe
from flow_pred.train_autoencoder import AutoencoderRecipe
from tests.contract import ModelContract
from tests.flow_pred.test_autoencoder import TINY
from tests.flow_pred.tiny import RandomClips, tiny_recipe, tiny_values
from tests.training import processes
from training import SampleNoise, Step, TrainSettings, train
from training.distributed import is_main
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


@pytest.mark.slow
def test_made_with_values_in_one_process_it_trains_as_if_made_in_all(tmp_path):
    """The network of the other process comes from the meta device."""

    def go(sharded):
        torch.manual_seed(0)
        config = parse_config(tiny_values("river"))
        made = build_recipe(config, LatentSpace(build_autoencoder(config.model.autoencoder)), sharded)
        meta = all(parameter.is_meta for parameter in made.networks["regressor"].parameters())
        assert meta == (sharded and not is_main())
        settings = TrainSettings(tmp_path / str(sharded), steps=2, batch_size=2, device="cpu", fsdp=True, ema=0.9)
        return train(made, RandomClips(), settings, {"model": {}}).digest

    one, two = (processes.launch(go, 2, tmp_path / f"launch-{sharded}", sharded) for sharded in (True, False))
    assert one == two


class TestDiffusion(TestRiver):
    """So does the part of the neural SDE with the most frozen networks."""

    def build_recipe(self, **overrides):
        return tiny_recipe("g", **overrides)


class TestConvolutionalRiver(TestRiver):
    """And RIVER as small trainings have it: convolutions, the last frames, the next frame, times at 0, classes."""

    def build_recipe(self, **overrides):
        changes = {"backbone": "conv", "condition": "last", "prediction": "frame", "start_share": 0.5, "unroll": 2}
        return tiny_recipe("river", "muon", context_noise=0.1, classes=["a", "b"], **changes, **overrides)

    def dataset(self):
        return LabelledNoise()


class TestFlow(TestRiver):
    """And its drift."""

    def build_recipe(self, **overrides):
        return tiny_recipe("f_nll", **overrides)


class TestDenoiser(TestRiver):
    """And its denoiser, with the head that normalises over the batch."""

    def build_recipe(self, **overrides):
        return tiny_recipe("d", out_norm="bn", **overrides)


class TestAutoencoderWithoutCodebook(ModelContract):
    """And the autoencoder without a codebook, on clips, with noise on its latents."""

    def build_recipe(self, **overrides):
        torch.manual_seed(0)
        model = SimpleVQVAE(TINY["encoder"], TINY["decoder"], space_to_depth=2, quantize=False)
        return AutoencoderRecipe(model, AutoencoderObjective(latent_noise=0.1, latent_penalty=1e-3))

    def dataset(self):
        return RandomClips(side=16)

    @pytest.mark.slow
    def test_two_processes_equal_one(self, tmp_path):
        """Losses and gradient of the first step: of what rounding leaves of a gradient of 0, Adam makes whole steps."""
        self.train(tmp_path / "one", steps=1)
        digests = processes.launch(lambda: self.train(tmp_path / "two", steps=1), 2, tmp_path / "launch")
        assert digests[0] == digests[1]
        one, two = (json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("one", "two"))
        for name in (key for key in one if key.startswith(("loss/", "train/", "grad_norm/"))):
            assert two[name] == pytest.approx(one[name], rel=1e-5), name


class TestAutoencoder(ModelContract):
    """And the autoencoder under both, on clips, with the quantiser from the second step on."""

    tolerance = 2e-4

    def build_recipe(self, **overrides):
        torch.manual_seed(0)
        model = SimpleVQVAE(**{key: value for key, value in TINY.items() if key != "type"})
        return AutoencoderRecipe(model, AutoencoderObjective(vq_warmup=1))

    def dataset(self):
        return RandomClips(side=16)


class LabelledNoise(RandomClips):
    """The same clips with the numbers of two classes."""

    def __getitem__(self, index):
        return super().__getitem__(index), torch.tensor(index % 2)


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


@pytest.mark.parametrize("optimizer", ["muon", pytest.param("adamw", marks=pytest.mark.exhaustive)])
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


def test_the_diffusion_starts_at_what_its_flow_leaves_unexplained():
    """The untrained amplitude is the residual's root mean square in each channel; a random start is far away."""
    nll = {}
    for start in ("random", "residual"):
        recipe = tiny_recipe("g", diffusion_start=start)
        with torch.no_grad():
            metrics = recipe.evaluate(batch_of(8), step_for(8, False), recipe.networks)
        nll[start] = metrics["nll"].mean()
    goal = recipe.state(batch_of(8), step_for(8, False))
    residual = recipe.residual(goal)
    with torch.no_grad():
        amplitude = log_diffusion(recipe.networks["regressor"](goal.state), (-9.0, 1.0)).exp()
    torch.testing.assert_close(amplitude.mean((0, 2, 3)), residual.square().mean((0, 2, 3)).sqrt(), rtol=0.05, atol=0)
    constant = 0.5 * residual.square().mean().log() + 0.5
    assert nll["residual"] < constant + 0.1 < nll["random"]


def test_networks_that_learned_nothing_are_named_in_one_line(caplog):
    """A diffusion at its limit, one that is worse than a constant, and a denoiser that might as well answer 0."""

    def said(recipe, change):
        caplog.clear()
        with torch.no_grad():
            change(recipe.networks["regressor"].last)
            metrics = recipe.evaluate(batch_of(8), step_for(8, False), recipe.networks)
        found = recipe.summarize({"judged": metrics["judged"].double().sum(0)})
        return found, [record.getMessage() for record in caplog.records]

    def constant(value):
        return lambda last: (last.weight.zero_(), last.bias.fill_(value))

    found, lines = said(tiny_recipe("g"), constant(5.0))
    assert found["at_limit"] == 1 and len(lines) == 1 and "100 % of the noise amplitudes" in lines[0]
    found, lines = said(tiny_recipe("g"), constant(0.0))
    assert found["at_limit"] == 0 and len(lines) == 1 and "no better than one amplitude" in lines[0]
    found, lines = said(tiny_recipe("g", diffusion_start="residual"), lambda last: None)
    assert found["at_limit"] == 0
    found, lines = said(tiny_recipe("d"), constant(0.0))
    assert found["loss_over_zero"] == pytest.approx(1) and len(lines) == 1 and "no better than 0" in lines[0]


def test_a_share_of_the_times_is_where_a_sample_starts():
    """The others stay uniform; without a share the draws are the originals'."""
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    times = times_of(uniform, 0.5)
    assert (times == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert times[times > 0].mean().item() == pytest.approx(0.5, abs=0.03) and times.max() < 1
    assert times_of(uniform, 0.0) is uniform
    shape, noise = (3, 4, 4), [SampleNoise(0, range(50)) for _ in range(2)]
    plain, half = (draw_state(source, 5, 2, shape, share) for source, share in zip(noise, (0.0, 0.5), strict=True))
    assert torch.equal(plain.target, half.target) and torch.equal(plain.noise, half.noise)
    assert (half.time == 0).sum() > 10 > (plain.time == 0).sum()


def test_a_frame_is_predicted_from_the_last_one_and_context_noise_is_for_training():
    """A network that answers 0 predicts the last frame: its loss is the change from frame to frame."""
    recipe = tiny_recipe("river", condition="last", prediction="frame", context_noise=0.5, backbone="conv")
    still = batch_of()[:, :, :1].expand(-1, -1, 5, -1, -1)
    with torch.no_grad():
        assert recipe.evaluate(still, step_for(4, False), recipe.networks)["loss"].abs().max() == 0
        (noisy,) = recipe.losses(still, step_for(4), recipe.networks)
    assert noisy.total > 0.01


def test_labels_are_kept_back_in_training_alone():
    """With a dropout of 1 the class acts in no loss, without dropout in every one."""
    losses = {}
    for dropout in (0.0, 1.0):
        recipe = tiny_recipe("river", classes=["a", "b"], class_dropout=dropout)
        torch.nn.init.normal_(recipe.networks["regressor"].class_code.table.weight)
        for label in (0, 1):
            data = (batch_of(), torch.full((4,), label))
            (found,) = recipe.losses(data, step_for(4), recipe.networks)
            losses[dropout, label] = found.total.item()
    assert losses[0.0, 0] != losses[0.0, 1] and losses[1.0, 0] == losses[1.0, 1]


def test_unrolled_training_predicts_from_its_own_frames():
    """The second frame's error is that of a network that saw its first prediction, not the true frame."""
    recipes = [tiny_recipe("river", condition="last", prediction="frame", unroll=n, backbone="conv") for n in (1, 2)]
    clips = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(4, 3, -1, 4, 4) / 10  # 0.1 brighter from frame to frame
    losses = [next(recipe.losses(clips, step_for(4), recipe.networks)).total.item() for recipe in recipes]
    assert losses == pytest.approx([0.01, (0.01 + 0.04) / 2])  # an untrained network repeats what it saw last


def test_the_frames_in_a_row_grow_from_two():
    """To all of them in half of the training; never more than asked for, and one where nothing is learned."""
    steps = [Step(index, 100, SampleNoise(0, [0]), torch.device("cpu")) for index in (0, 25, 49, 50, 99)]
    assert [frames_ahead(8, step) for step in steps] == [2, 5, 8, 8, 8]
    assert [frames_ahead(2, step) for step in steps] == [2] * 5 and frames_ahead(1, steps[-1]) == 1
    assert frames_ahead(8, Step(99, 100, SampleNoise(0, [0]), torch.device("cpu"), training=False)) == 1


def test_noise_on_latents_is_each_clips_own():
    """Whatever else is in the batch, on single frames and on the two ends of clips."""
    recipe = TestAutoencoderWithoutCodebook().build_recipe()
    for ends, frames in ((False, 1), (True, 2)):
        both, second = (
            recipe.latent_noise(torch.zeros(frames * len(keys), 3, 16, 16), ends, noise_step(keys))
            for keys in ((4, 7), (7,))
        )
        assert both.std() > 0.05
        assert torch.equal(both[1::2], second) if ends else torch.equal(both[1:], second)


def noise_step(positions):
    return Step(0, 4, SampleNoise(0, positions), torch.device("cpu"))
