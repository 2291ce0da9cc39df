"""Faults in the numbers: non-finite losses and gradients, overflow, explosion."""

import logging

import pytest
import torch

from tests.training import processes
from tests.training.runs import run, settings, weights
from tests.training.test_two_optimizers import updater_for
from tests.training.tiny_gan import TinyClips, TinyGAN
from training import Losses, cli, log
from training.checkpoint import load_checkpoint
from training.cli import NonFiniteAbort
from training.log import CollapseWatch
from training.optim import build_optimizer
from training.state import build_state, flatten
from training.step import Updater, persistent_buffers


class PoisonedClips(TinyClips):
    """Clips of which those at the given positions are NaN."""

    def __init__(self, *positions: int) -> None:
        super().__init__()
        self.positions = positions

    def __getitem__(self, key):
        return super().__getitem__(key) * (float("nan") if key[1] in self.positions else 1.0)


class PoisonedDiscriminator(TinyGAN):
    """The discriminator's loss alone is infinite in step 2."""

    def losses(self, batch, step, networks):
        generator = super().losses(batch, step, networks)
        yield next(generator)
        item = next(generator)
        yield Losses(item.total * float("inf")) if step.index == 2 else item


def everything(updater):
    """Copies of all that a bad step must not touch: weights, buffers, averages, optimiser states."""
    state = updater.state.collect()
    return {
        name: value.clone() for name, value in flatten({key: state[key] for key in ("networks", "ema", "optimizers")})
    }


def test_a_nan_batch_changes_nothing_and_names_itself(tmp_path, caplog):
    """Weights, optimiser states, averages and running statistics stay bit-identical; loss and positions are logged."""
    recipe = TinyGAN(batch_norm=True)
    updater, feed = updater_for(recipe, tmp_path)
    feed_clips = iter([clean_batch(tmp_path), clean_batch(tmp_path, poisoned=True), clean_batch(tmp_path)])
    updater.step(feed_clips)
    before = everything(updater)
    assert not updater.step(feed_clips).applied
    after = everything(updater)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "loss/autoencoder" in caplog.text and "samples (index at position): 0 at 0" in caplog.text
    assert updater.step(feed_clips).applied
    assert updater.state.skipped_steps == 1 and updater.state.bad_steps == 0


def clean_batch(folder, poisoned=False):
    """One batch of four samples, the first of them NaN when poisoned."""
    from training.data import batches

    data = PoisonedClips(*([0] if poisoned else []))
    with batches(data, [[(i, i) for i in range(4)]], settings(folder), torch.device("cpu")) as feed:
        return next(feed)


@pytest.mark.slow
def test_a_nan_in_one_process_is_skipped_by_all(tmp_path, caplog):
    """Position 4 belongs to the first process alone; both skip step 1 and end with equal, finite weights."""
    digests = processes.launch(
        lambda: run(tmp_path / "run", dataset=PoisonedClips(4), steps=4).digest, 2, tmp_path / "launch"
    )
    assert digests[0] == digests[1]
    assert load_checkpoint(tmp_path / "run")["skipped_steps"] == 1
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


def test_too_many_bad_steps_in_a_row_abort_with_status_3(tmp_path, capsys):
    """The run stops after max_bad_steps with one line; the folder keeps its last good checkpoint."""
    poisoned = PoisonedClips(*range(16, 48))
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda _: run(tmp_path, dataset=poisoned, save_every=4, max_bad_steps=3), [])
    assert stop.value.code == 3
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "loss/autoencoder" in error and "3 steps in a row" in error
    assert load_checkpoint(tmp_path)["step"] == 4


def test_single_bad_steps_do_not_abort(tmp_path):
    """The count is of steps in a row: every other step bad is survived."""
    poisoned = PoisonedClips(*range(0, 48, 8))
    assert run(tmp_path, dataset=poisoned, max_bad_steps=2).finished
    assert load_checkpoint(tmp_path)["skipped_steps"] == 6


def test_a_bad_discriminator_loss_skips_the_generator_too(tmp_path, caplog):
    """Both networks of the iteration stay as they were, and the discriminator's loss is the one named."""
    updater, feed = updater_for(PoisonedDiscriminator(), tmp_path)
    with feed as batch:
        for _ in range(2):
            updater.step(batch)
            updater.state.step += 1
        before = everything(updater)
        assert not updater.step(batch).applied
    after = everything(updater)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "loss/discriminator" in caplog.text and "loss/autoencoder" not in caplog.text


def test_averages_follow_applied_steps_only(tmp_path):
    """The number of updates of the averages is the number of applied steps."""
    run(tmp_path, dataset=PoisonedClips(5, 20))
    state = load_checkpoint(tmp_path)
    assert (state["ema_updates"], state["skipped_steps"]) == (10, 2)


class OverflowGAN(TinyGAN):
    """Finite losses whose scaled gradients overflow in fp16 until the scale is at most `limit`."""

    limit = 1024.0

    def losses(self, batch, step, networks):
        for item in super().losses(batch, step, networks):
            item.total.register_hook(lambda grad: grad * (float("inf") if grad.item() > self.limit else 1.0))
            yield item


def test_fp16_overflow_lowers_the_scale_and_is_no_bad_step(tmp_path):
    """The scaler skips and halves until the gradients fit; then all networks train."""
    updater, feed = updater_for(OverflowGAN(), tmp_path, precision="fp16", steps=12)
    applied = []
    with feed as batch:
        for _ in range(10):
            applied.append(updater.step(batch).applied)
            updater.state.step += 1
    assert applied == [False] * 6 + [True] * 4  # 65536 / 2^6 = 1024
    assert updater.state.scaler.get_scale() == 1024 and updater.state.bad_steps == 0


def test_fp16_overflow_at_the_smallest_scale_aborts(tmp_path):
    """When even scale 1 overflows, the run ends like any other non-finite run."""
    recipe = OverflowGAN()
    recipe.limit = 0.0
    with pytest.raises(NonFiniteAbort):
        run(tmp_path, recipe, precision="fp16", steps=40, max_bad_steps=3)


def test_fp16_resumes_with_the_same_bits(tmp_path):
    """The loss scale is part of the checkpoint."""
    straight = run(tmp_path / "straight", OverflowGAN(), precision="fp16").digest
    run(tmp_path / "resumed", OverflowGAN(), precision="fp16", steps=5)
    assert run(tmp_path / "resumed", OverflowGAN(), precision="fp16").digest == straight


def test_gradients_are_clipped_per_optimizer_after_the_norm_is_taken(tmp_path):
    """The logged norm is the one before clipping; the gradients end at the limit."""
    updater, feed = updater_for(TinyGAN(), tmp_path, clip=1e-3)
    with feed as batch:
        update = updater.step(batch)
    for name, optimizer in updater.state.optimizers.items():
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert float(norm) == pytest.approx(1e-3, rel=1e-2)
        assert float(update.scalars[f"grad_norm/{name}"]) > 0.01


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_a_fused_optimizer_clips_while_it_steps(tmp_path, clip):
    """Weights and gradients are those of clipping first; to the last bit where nothing is clipped."""
    found = []
    for way in ("divided", "clipped"):
        recipe = TinyGAN()
        for name, network in recipe.networks.items():
            recipe.optimizers[name] = build_optimizer("adamw", network.parameters(), 1e-2, eps=1e-4)
        updater, feed = updater_for(recipe, tmp_path / way, clip=clip)
        assert all(updater.divides(optimizer) for optimizer in updater.state.optimizers.values())
        if way == "clipped":
            updater.divides = lambda optimizer: False
        with feed as batch:
            for _ in range(3):
                updater.step(batch)
        parameters = [p for network in recipe.networks.values() for p in network.parameters()]
        found.append([value for p in parameters for value in (p.detach(), p.grad)])
    exact = {"rtol": 0, "atol": 0} if clip > 1 else {}
    torch.testing.assert_close(*found, **exact)


def test_an_exploding_gradient_skips_the_step(tmp_path, caplog):
    """Above skip_grad_norm nothing is applied, and it counts as skipped, not as bad."""
    result = run(tmp_path, skip_grad_norm=1e-6, steps=3, max_bad_steps=1)
    assert result.finished and load_checkpoint(tmp_path)["skipped_steps"] == 3
    assert "gradient norm of autoencoder, discriminator above 1e-06" in caplog.text


def test_a_collapsed_codebook_is_warned_of_once(caplog):
    """100 logs in a row under 1 % of the codes: one warning, and another after a recovery; other recipes: none."""
    watch = CollapseWatch()
    for usage in [0.5] * 3 + [0.001] * 99 + [0.5] + [0.001] * 150 + [0.5] + [0.001] * 100:
        watch.look({"train/code_usage": usage})
        watch.look({"loss/vae": 1.0})
    assert caplog.text.count("WARN the codebook has collapsed: under 1 %") == 2


class CollapsedGAN(TinyGAN):
    """Logs a codebook of which nothing is used."""

    def losses(self, batch, step, networks):
        for item in super().losses(batch, step, networks):
            yield Losses(item.total, {**item.terms, "code_usage": torch.tensor(0.0)})


def test_the_training_log_is_watched_for_a_collapsed_codebook(tmp_path, caplog, monkeypatch):
    """The warning comes from a run's own log."""
    monkeypatch.setattr(log, "PATIENCE", 3)
    run(tmp_path, CollapsedGAN(), steps=3)
    assert "the codebook has collapsed" in caplog.text


def test_only_saved_buffers_are_guarded():
    """Running statistics are, constants that are not in the state dict are not."""
    network = torch.nn.BatchNorm1d(2)
    network.register_buffer("table", torch.zeros(5), persistent=False)
    assert len(persistent_buffers([network])) == 3


def test_frozen_networks_stay_as_they_are_and_out_of_checkpoints(tmp_path):
    """A frozen network is in eval mode, without gradients, unchanged, and in no checkpoint."""
    recipe = TinyGAN()
    frozen = torch.nn.Sequential(torch.nn.Conv3d(3, 3, 1), torch.nn.BatchNorm3d(3))
    recipe.frozen.append(frozen)
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    state = build_state(recipe, settings(tmp_path), torch.device("cpu"))
    Updater(state, settings(tmp_path), torch.device("cpu"))
    run(tmp_path, recipe, steps=2)
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    assert set(load_checkpoint(tmp_path)["networks"]) == {"autoencoder", "discriminator"}


@pytest.fixture(autouse=True)
def all_levels(caplog):
    """Messages of the training log reach caplog."""
    caplog.set_level(logging.INFO, logger="training")
