"""Training: what every model promises, and the steps, stages and options that this one has."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from scripts import evaluate, train_tokenizer3d
from tests.contract import ModelContract
from tests.tokenizer3d.tiny import clip
from tokenizer3d import Tokenizer3D
from tokenizer3d.files import load_model
from tokenizer3d.objective import ObjectiveConfig
from tokenizer3d.train import (
    DataConfig,
    OptimizationConfig,
    Tokenizer3DRecipe,
    TrainConfig,
    build_recipe,
    open_data,
)
from training import TrainSettings, train
from training.checkpoint import load_checkpoint, write_weights
from training.config import from_dict, load_config
from videodata.errors import UserError
from videodata.pixels import denormalize

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "tokenizer3d"
KL = {"regularizer": "kl", "z_channels": 4, "ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1}
KL |= {"space_down": [0], "time_down": [0], "space_up": [1], "time_up": [1]}
FSQ = {**KL, "regularizer": "fsq", "z_channels": 3, "levels": [5, 4, 3]}
EMA = {**KL, "regularizer": "ema", "regularizer_options": {"codebook_size": 16, "num_quantizers": 2}}
LFQ = {**KL, "regularizer": "lfq", "regularizer_options": {"codebook_size": 16}}


class Drifting(Dataset):
    """Moving noise, uint8 (3, 5, 24, 24)."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return denormalize(clip(5, 24, 24, seed=index)[0])

    def fingerprint(self) -> str:
        return "drifting"


def recipe(model: dict, optimization: dict | None = None, **objective) -> Tokenizer3DRecipe:
    """A tiny recipe with the same weights at each call, without the perceptual term."""
    objective = {"perceptual_weight": 0.0, "disc_weight": 0.0, **objective}
    settings = {"learning_rate": 1e-3, **(optimization or {})}
    return build_recipe({"model": model, "objective": objective, "optimization": settings})


def run(folder: Path, made: Tokenizer3DRecipe, steps: int, **changes):
    settings = TrainSettings(run_dir=folder, steps=steps, batch_size=2, device="cpu", log_every=1, **changes)
    return train(made, Drifting(), settings, {"model": made.tokenizer.config.to_dict()}, Drifting())


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def equal(network: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class TestKL(ModelContract):
    """The promises of every model; the discriminator joins half-way through these runs."""

    checkpointing_override = {"checkpointing": True}
    batch_size = 2
    model = KL

    def build_recipe(self, **overrides):
        # SGD, because Adam's first steps are as large where a gradient is pure rounding error as anywhere else.
        made = recipe(self.model, overrides, disc_weight=0.2, disc_start=2, disc_norm="group")
        made.tokenizer.decoder.conv_in.conv.bias.data += 0.1
        for name, optimizer in made.optimizers.items():
            made.optimizers[name] = torch.optim.SGD(optimizer.param_groups[0]["params"], lr=1e-4)
        return made

    def settings(self, folder, **changes):
        return super().settings(folder, **{"clip": 0.5, **changes})

    def dataset(self):
        return Drifting()


class TestFSQ(TestKL):
    """With the auxiliary loss of the codes, whose mean is taken over all processes."""

    model = FSQ


def test_nothing_of_the_discriminator_moves_before_its_start(tmp_path):
    """Not its weights, not the statistics of its norms, not the running means of LeCAM: it is not even called."""
    made = recipe(KL, disc_weight=0.2, disc_start=3)
    before = weights(made.networks["discriminator"])
    calls = []
    made.networks["discriminator"].register_forward_hook(lambda *_: calls.append(1))
    run(tmp_path, made, 3)
    assert not calls
    assert equal(made.networks["discriminator"], before)
    assert float(made.objective.lecam.real) == 0


def test_the_running_means_are_resumed_and_not_moved_by_validation(tmp_path):
    made = recipe(KL, disc_weight=0.2, disc_start=0)
    run(tmp_path, made, 2)
    means = made.objective.lecam.real.item(), made.objective.lecam.fake.item()
    assert 0 not in means
    stored = load_checkpoint(tmp_path)["networks"]["loss"]
    assert (stored["lecam.real"].item(), stored["lecam.fake"].item()) == means
    again = recipe(KL, disc_weight=0.2, disc_start=0)
    run(tmp_path, again, 3)
    assert again.objective.lecam.decay == 0.999
    assert 0 < abs(again.objective.lecam.real.item() - means[0]) < 0.01


def test_stage_two_leaves_the_encoder_as_it_is(tmp_path):
    """After 20 steps every bit of the encoder is there, it has no gradient, and the decoder has moved."""
    run(tmp_path / "one", recipe(KL), 2)
    start = {"trained": "decoder", "start": str(tmp_path / "one")}
    made = recipe(KL, start)
    first = load_model(tmp_path / "one")[0]
    assert equal(made.tokenizer, weights(first))
    run(tmp_path / "two", made, 20)
    assert equal(made.tokenizer.encoder, weights(first.encoder))
    assert all(parameter.grad is None for parameter in made.tokenizer.encoder.parameters())
    assert not equal(made.tokenizer.decoder, weights(first.decoder))
    with pytest.raises(UserError, match="another model"):
        recipe(FSQ, start)
    other = load_checkpoint(tmp_path / "two")
    write_weights(tmp_path / "weights-0000001.safetensors", {**other, "recipe": "vvae"})
    with pytest.raises(UserError, match="'vvae', not of a 3-D tokenizer"):
        load_model(tmp_path / "weights-0000001.safetensors")


@pytest.mark.slow
def test_fifty_steps_on_real_clips_lower_the_error(tmp_path, clips):
    """Acceptance row 21, on the sample clips that are long enough."""
    data = DataConfig(path=str(clips), frames=5, size=32, split=False)
    training, _ = open_data(data)
    start = {"optimizer": "muon", "learning_rate": 5e-3, "isometric_start": True}
    made = recipe({**KL, "patch_size": 2, "ch": 16}, start)
    settings = TrainSettings(run_dir=tmp_path, steps=50, batch_size=2, device="cpu", log_every=1)
    found = []

    def noted(batch, step, networks, losses=made.losses):
        for item in losses(batch, step, networks):
            found.append(float(item.terms["rec_loss"]))
            yield item

    made.losses = noted
    train(made, training, settings, {"model": {}})
    assert sum(found[-10:]) < 0.7 * sum(found[:10])


@pytest.mark.parametrize("model", [FSQ, EMA, LFQ], ids=["fsq", "ema", "lfq"])
def test_codes_are_learned_saved_and_decoded(tmp_path, model):
    """Fifteen steps lower the error; the file gives the same tokens, and these the same clip."""
    made = recipe(model, {"optimizer": "muon", "learning_rate": 5e-3})
    first = run(tmp_path / "a", recipe(model, {"optimizer": "muon", "learning_rate": 5e-3}), 1).metrics
    last = run(tmp_path / "b", made, 15).metrics
    assert last["rec_loss"] < first["rec_loss"]
    assert last["codes_used"] > 1
    stored, config = load_model(tmp_path / "b")
    file = next((tmp_path / "b" / "checkpoints").glob("weights-*15.safetensors"))
    assert equal(load_model(file)[0], weights(stored))
    stored.save_pretrained(tmp_path / "c")
    assert equal(load_model(tmp_path / "c")[0], weights(stored))
    assert config["model"]["regularizer"] == model["regularizer"]
    x = clip(5, 16, 16, seed=3)
    found = stored.encode(x)
    assert torch.equal(found.indices, made.tokenizer.eval().encode(x).indices)
    assert torch.equal(stored.decode_indices(found.indices), stored.decode(found))


@pytest.mark.parametrize(
    "change",
    [{}, {"version": "1.1"}, {"causal": False}, {"patch_size": 2}, {"regularizer": "fsq", "levels": [9] * 4}],
    ids=["causal", "1.1", "not causal", "patches", "codes"],
)
def test_an_isometric_start_passes_colours_on(change):
    """Cells of one colour each, as large as a latent, come out as they are; those of other start values do not."""
    model = {**KL, "ch": 32, **change}
    started, usual = (recipe(model, {"isometric_start": start}).tokenizer.eval() for start in (True, False))
    size = started.spatial_factor
    cells = torch.rand(1, 3, 1, 3, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = F.interpolate(cells, (8, 3 * size, 3 * size))
    errors = [(network(x)[1] - x).abs().mean() for network in (started, usual)]
    assert errors[0] < 0.12 < 0.4 < errors[1]
    assert not any(value.any() for name, value in started.state_dict().items() if "conv2.weight" in name)


def test_an_isometric_start_needs_channels():
    for change in ({"ch": 7}, {"z_channels": 2}):
        with pytest.raises(UserError, match="isometric start needs at least 8 channels"):
            recipe({**KL, **change}, {"isometric_start": True})


def test_single_frames_come_first(tmp_path):
    """In the first steps, one frame of each clip; afterwards whole clips."""
    made = recipe(KL, {"image_steps": 2})
    frames = []
    made.tokenizer.register_forward_pre_hook(lambda _, arguments: frames.append(arguments[0].shape[2]))
    settings = TrainSettings(run_dir=tmp_path, steps=3, batch_size=2, device="cpu", log_every=1)
    train(made, Drifting(), settings, {"model": {}})
    assert frames[:3] == [1, 1, 5]  # what follows is validation


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_one(path):
    """Its keys are known, its model can be built, and its engine's settings are settings."""
    config = from_dict(TrainConfig, load_config(path, (), TrainConfig))
    with torch.device("meta"):
        model = Tokenizer3D.from_config(config.model)
    assert model.is_causal
    assert (config.optimization.trained == "decoder") == ("stage2" in path.stem)
    engine = {name: value for name, value in config.engine.items() if name != "steps"}
    from_dict(TrainSettings, {"run_dir": Path(), "steps": config.engine["steps"], **engine}, "engine")
    assert from_dict(ObjectiveConfig, vars(config.objective)) == config.objective


def test_what_makes_no_sense_is_one_line(tmp_path):
    for options in (
        {"optimizer": "none"},
        {"trained": "encoder"},
        {"image_steps": -1},
        {"isometric_start": True, "start": "x"},
    ):
        with pytest.raises(UserError, match="optimization"):
            Tokenizer3DRecipe(Tokenizer3D.from_config(KL), ObjectiveConfig(), OptimizationConfig(**options))
    with pytest.raises(UserError, match="--data"):
        open_data(DataConfig())
    with pytest.raises(UserError, match="no such checkpoint"):
        load_model(tmp_path / "none.pt")


def test_the_commands_train_resume_and_score(tmp_path, monkeypatch, capsys):
    """scripts/train_tokenizer3d.py, again with more steps, and scripts/evaluate.py on its run."""
    data = "digits:12,frames=5,size=16"
    words = ["--preset", "tiny_fsq", "--data", data, "--run_dir", str(tmp_path / "run"), "--device", "cpu"]
    words += ["--warmup_steps", "0", "--precision", "fp32", "data.frames=5", "data.size=16", "model.ch=8"]
    train_tokenizer3d.main([*words, "--steps", "2", "--schedule", "constant"])
    train_tokenizer3d.main([*words, "--steps", "3", "--schedule", "constant"])
    assert load_checkpoint(tmp_path / "run")["step"] == 3
    assert "next: python scripts/evaluate.py tokenizer3d" in capsys.readouterr().out
    scored = ["tokenizer3d", "--checkpoint", str(tmp_path / "run"), "--data", data, "--num_clips", "2"]
    evaluate.main([*scored, "--device", "cpu", "--out", str(tmp_path / "scores.json")])
    said = capsys.readouterr().out
    assert "PSNR" in said
    assert "codes" in said
