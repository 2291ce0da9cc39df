"""The path of two networks with two optimisers: phases, accumulation, processes, averages."""

import copy
import json

import pytest
import torch

from tests.training import processes
from tests.training.runs import largest_difference, run, settings, weights
from tests.training.tiny_gan import TinyClips, TinyGAN
from training import Losses, train
from training.checkpoint import load_checkpoint
from training.data import PositionSampler, batches
from training.state import build_state
from training.step import Updater


class WatchedGAN(TinyGAN):
    """Notes in each phase which networks require gradients and which have some."""

    def losses(self, batch, step, networks):
        self.seen = []
        for item in super().losses(batch, step, networks):
            self.seen.append(
                {
                    name: (
                        any(p.requires_grad for p in net.parameters()),
                        any(p.grad is not None for p in net.parameters()),
                    )
                    for name, net in self.networks.items()
                }
            )
            yield item


def updater_for(recipe, folder, **changes):
    """An Updater and its batches, without a run around them."""
    chosen = settings(folder, **changes)
    state = build_state(recipe, chosen, torch.device("cpu"))
    keys = PositionSampler(16, chosen.batch_size, 0, 0, chosen.steps, 0, chosen.accumulation)
    return Updater(state, chosen, torch.device("cpu")), batches(TinyClips(), keys, chosen, torch.device("cpu"))


def test_only_the_stepping_network_gets_gradients(tmp_path):
    """The discriminator is frozen and without gradients in the generator's phase, and the other way round."""
    recipe = WatchedGAN()
    updater, feed = updater_for(recipe, tmp_path)
    with feed as batch:
        updater.step(batch)
    assert recipe.seen == [
        {"autoencoder": (True, False), "discriminator": (False, False)},
        {"autoencoder": (False, True), "discriminator": (True, False)},
    ]


def test_a_none_yield_leaves_the_other_optimizer_alone(tmp_path):
    """Until its first step the discriminator stays bit-identical and its optimiser stateless; then it moves."""
    fresh = TinyGAN().networks["discriminator"].state_dict()
    recipe = TinyGAN(start=3)
    run(tmp_path, recipe, steps=3)
    assert all(torch.equal(value, fresh[key]) for key, value in recipe.networks["discriminator"].state_dict().items())
    assert not recipe.optimizers["discriminator"].state_dict()["state"]
    recipe = TinyGAN(start=3)
    run(tmp_path, recipe, steps=4)
    assert not torch.equal(recipe.networks["discriminator"].state_dict()["last.weight"], fresh["last.weight"])


def test_accumulation_equals_the_large_batch(tmp_path):
    """Two micro-batches of two end within 1e-6 of one batch of four, losses included."""
    fixed = {"adaptive": False}  # the adaptive weight is a ratio of gradients of one micro-batch
    run(tmp_path / "whole", TinyGAN(**fixed))
    run(tmp_path / "parts", TinyGAN(**fixed), accumulation=2)
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "parts")) < 1e-6
    assert_same_losses(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"fsdp": True}, {"accumulation": 2}], ids=["ddp", "fsdp", "ddp_accumulation"])
def test_two_processes_equal_one(tmp_path, changes):
    """Two gloo processes, replicated or sharded, end within 1e-6 of one process with the doubled batch."""
    recipe = {"adaptive": "accumulation" not in changes}
    run(tmp_path / "one", TinyGAN(**recipe))
    digests = processes.launch(
        lambda: run(tmp_path / "two", TinyGAN(**recipe), **changes).digest, 2, tmp_path / "launch"
    )
    assert digests[0] == digests[1]
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-6
    assert_same_losses(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"fsdp": True}], ids=["ddp", "fsdp"])
def test_two_processes_resume_with_the_same_bits(tmp_path, changes):
    """A run of two processes, stopped and continued, ends bit for bit like a straight one; batch norm included."""

    def go(folder, steps):
        return run(folder, TinyGAN(batch_norm=True), steps=steps, **changes).digest

    straight = processes.launch(go, 2, tmp_path / "launch1", tmp_path / "straight", 6)
    processes.launch(go, 2, tmp_path / "launch2", tmp_path / "resumed", 3)
    assert processes.launch(go, 2, tmp_path / "launch3", tmp_path / "resumed", 6) == straight


@pytest.mark.slow
def test_moments_of_a_file_are_taken_over_whole_and_sharded(tmp_path):
    """A new run that starts from another run's optimiser state goes the same way sharded, and another way without."""
    run(tmp_path / "source", steps=3)
    stored = load_checkpoint(tmp_path / "source")["optimizers"]

    def continued():
        recipe = TinyGAN()
        for name, optimizer in recipe.optimizers.items():
            optimizer.load_state_dict(copy.deepcopy(stored[name]))
        return recipe

    run(tmp_path / "whole", continued(), steps=2)
    processes.launch(lambda: run(tmp_path / "sharded", continued(), steps=2, fsdp=True).digest, 1, tmp_path / "launch")
    run(tmp_path / "without", steps=2)
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "sharded")) < 1e-6
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "without")) > 1e-4


@pytest.mark.slow
def test_a_sharded_checkpoint_continues_in_one_process(tmp_path, caplog):
    """Checkpoints hold whole tensors: two sharded processes go on as one, close to 1e-6, and the log says so."""
    processes.launch(lambda: run(tmp_path / "run", steps=6, fsdp=True).digest, 2, tmp_path / "launch")
    run(tmp_path / "run")
    assert "world_size was 2 and is 1: the run continues, but not bit-exact" in caplog.text
    run(tmp_path / "straight")
    assert largest_difference(weights(tmp_path / "run"), weights(tmp_path / "straight")) < 1e-6


def test_averaged_weights_follow_the_formula(tmp_path):
    """EMA after n steps is the recursion d * ema + (1 - d) * weights from the first step's weights."""
    recipe = TinyGAN()
    updater, feed = updater_for(recipe, tmp_path, ema=0.5)
    expected = None
    with feed as batch:
        for _ in range(3):
            updater.step(batch)
            updater.state.step += 1
            weight = recipe.networks["autoencoder"].encoder.weight.detach().clone()
            expected = weight if expected is None else 0.5 * expected + 0.5 * weight
    average = updater.state.averaged.networks["autoencoder"].encoder.weight
    torch.testing.assert_close(average, expected)


def test_evaluation_uses_the_averaged_weights_and_leaves_no_trace(tmp_path):
    """A run that evaluates and shows pictures often ends with the bits of one that does not."""
    recipe, seen = TinyGAN(), []

    def watched(batch, step, networks, evaluate=recipe.evaluate):
        network, bare = networks["autoencoder"], recipe.networks["autoencoder"]
        seen.append((network is bare, network.training, torch.is_grad_enabled(), step.training))
        return evaluate(batch, step, networks)

    recipe.evaluate = watched
    chosen = settings(tmp_path / "often", evaluate_every=2, pictures_every=3)
    often = train(recipe, TinyClips(), chosen, {"model": {"width": 8}}, TinyClips(6, seed=1))
    assert often.digest == run(tmp_path / "never").digest
    assert set(seen) == {(False, False, False, False)}
    assert set(often.metrics) == {"psnr"}
    shown = sorted(path.name for path in (tmp_path / "often" / "samples").iterdir())
    assert shown == ["step-0000003", "step-0000006", "step-0000009", "step-0000012"]
    assert (tmp_path / "often" / "samples" / "step-0000012" / "reconstruction.png").stat().st_size > 0


@pytest.mark.slow
def test_validation_metrics_do_not_depend_on_the_processes(tmp_path):
    """Metrics are averages over samples, also when the processes get unequal shares of them."""

    def metrics(folder):
        return train(TinyGAN(), TinyClips(), settings(folder, steps=1), {"model": {}}, TinyClips(7, seed=1)).metrics

    one = metrics(tmp_path / "one")
    two = processes.launch(metrics, 2, tmp_path / "launch", tmp_path / "two")
    assert one["psnr"] == pytest.approx(two[0]["psnr"], abs=1e-5) == two[1]["psnr"]


def test_a_recipe_that_yields_too_little_is_told_so(tmp_path):
    """A losses function with fewer or more yields than optimisers is an error that names it."""

    class Short(TinyGAN):
        def losses(self, batch, step, networks):
            yield Losses(networks["autoencoder"](batch, self.latent_noise(batch, step)).mean())

    with pytest.raises(RuntimeError, match="Short.losses yields nothing for 'discriminator'"):
        run(tmp_path, Short())


def assert_same_losses(one, two):
    """All losses of two metrics.jsonl agree to 1e-6."""
    rows = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 12
    for first, second in zip(*rows, strict=True):
        for name in ("loss/autoencoder", "loss/discriminator"):
            assert first[name] == pytest.approx(second[name], abs=1e-6)


def test_moments_of_an_optimiser_that_was_not_fused_are_taken_over(tmp_path):
    """A run from before Adam was fused goes on, fused, with the steps that it would have taken."""
    ends = []
    for fused in (False, True):
        folder = tmp_path / str(fused)
        plain = TinyGAN()
        run(folder, plain, steps=3)
        assert all(not group["fused"] for group in plain.optimizers["autoencoder"].param_groups)
        later = TinyGAN()
        for name, optimizer in later.optimizers.items():
            groups = optimizer.param_groups
            later.optimizers[name] = torch.optim.Adam(
                groups[0]["params"], groups[0]["lr"], groups[0]["betas"], fused=fused
            )
        run(folder, later, steps=6)
        assert later.optimizers["autoencoder"].param_groups[0]["fused"] == fused
        ends.append(weights(folder))
    assert largest_difference(*ends) < 1e-6
