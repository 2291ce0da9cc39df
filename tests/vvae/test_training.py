"""Training: what every model promises, and the steps that this one takes."""

import csv
import json
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from scripts import evaluate, train_vvae
from tests.contract import ModelContract
from tests.training import processes
from tests.vvae.conftest import TINY
from tests.vvae.test_files import smooth_clip
from training import Step, TrainSettings, train, trained_on
from training.checkpoint import load_checkpoint as load_state
from training.config import load_config
from training.distributed import is_main
from training.randomness import SampleNoise
from training.state import flatten
from videodata.errors import UserError
from videodata.npy import NpySource
from videodata.pixels import denormalize, normalize
from vvae import AutoencoderKL2plus1D_1dcnn, load_checkpoint, save_text
from vvae.files import load_model
from vvae.src.errors import VVAEError
from vvae.src.images import to_clip
from vvae.src.modules.losses import LPIPSWithDiscriminator, LPIPSWithDiscriminator3D
from vvae.src.modules.t5 import CaptionCache
from vvae.src.streaming import Streaming
from vvae.src.tiling import Windows
from vvae.src.video_io import write_video
from vvae.train import Reconstructions, VVAEConfig, VVAERecipe, build_recipe, open_data


class Gradients(Dataset):
    """Faint moving gradients on different colours, uint8 (3, 4, 16, 16)."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        colour = torch.rand(3, 1, 1, 1, generator=torch.Generator().manual_seed(index)) * 1.6 - 0.8
        return denormalize(to_clip(smooth_clip(4, 16, 16, seed=index)) * 0.2 + colour)

    def fingerprint(self) -> str:
        return "gradients"


def recipe(
    checkpointing: bool = False, image_prob: float = 0.0, image_steps: int = 0, branch_start: int = 0, **loss
) -> VVAERecipe:
    """A tiny recipe with the same weights at each call, without the perceptual term."""
    torch.manual_seed(0)
    model = AutoencoderKL2plus1D_1dcnn(**TINY)
    if checkpointing:
        model.enable_gradient_checkpointing()
    images = {"image_prob": image_prob, "image_steps": image_steps}
    kind = LPIPSWithDiscriminator if any(images.values()) else LPIPSWithDiscriminator3D
    settings = {
        "disc_start": 2,
        "perceptual_weight": 0.0,
        "kl_weight": 1e-6,
        "disc_num_layers": 2,
        "disc_norm": "group",
    }
    return VVAERecipe(model, kind(**{**settings, **loss}), learning_rate=1e-3, branch_start=branch_start, **images)


class TestVVAE(ModelContract):
    """The promises of every model; the discriminator joins in the last step of these runs."""

    checkpointing_override = {"checkpointing": True}
    steps = 3
    batch_size = 2

    def build_recipe(self, **overrides):
        # SGD, because Adam's first steps are as large where a gradient is pure rounding error as anywhere else.
        made = recipe(**overrides)
        for name in made.optimizers:
            made.optimizers[name] = torch.optim.SGD(made.networks[name].parameters(), lr=1e-3)
        return made

    def dataset(self):
        return Gradients()

    @pytest.mark.exhaustive  # tests/training shards networks in any case
    def test_two_sharded_processes_equal_one(self, tmp_path, tmp_path_factory):
        """With --fsdp, two processes with a part of the weights each end with those of one process."""
        alone, _ = self.straight(tmp_path_factory)
        train_sharded = partial(self.train, fsdp=True)
        digests = processes.launch(train_sharded, 2, tmp_path / "launch", tmp_path / "two")
        assert digests[0] == digests[1]
        one, two = (dict(flatten(load_state(folder)["networks"])) for folder in (alone, tmp_path / "two"))
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=0, atol=self.tolerance)


@pytest.mark.exhaustive  # RIVER is trained so in any case
def test_made_with_values_in_one_process_it_trains_as_if_made_in_all(tmp_path):
    """The autoencoder of the other process comes from the meta device."""
    changes = ["optimization.optimizer=adam", "optimization.isometric_start=false"]  # the two that are against it
    config = load_config("configs/vvae/tiny.yaml", changes, VVAEConfig)

    def go(sharded):
        made = build_recipe(config, sharded=sharded)
        meta = all(parameter.is_meta for parameter in made.networks["autoencoder"].parameters())
        assert meta == (sharded and not is_main())
        return run(tmp_path / str(sharded), made, steps=1, fsdp=True).digest

    one, two = (processes.launch(go, 2, tmp_path / f"launch-{sharded}", sharded) for sharded in (True, False))
    assert one == two


def run(folder, made: VVAERecipe, steps: int = 4, **changes):
    settings = TrainSettings(run_dir=folder, steps=steps, batch_size=2, device="cpu", log_every=1, clip=0, **changes)
    return train(made, Gradients(), settings, {"model": {}}, Gradients())


def test_twenty_steps_lower_the_error_and_leave_an_idle_discriminator_alone(tmp_path):
    """The L1 error of held-out clips falls clearly; before disc_start not a bit of the discriminator changes."""
    made = recipe(disc_start=1000)
    discriminator = {key: value.clone() for key, value in made.networks["discriminator"].state_dict().items()}
    before = run(tmp_path / "one", recipe(disc_start=1000), steps=1).metrics["rec_loss"]
    after = run(tmp_path / "twenty", made, steps=20).metrics["rec_loss"]
    assert after < 0.9 * before
    for key, value in made.networks["discriminator"].state_dict().items():
        assert torch.equal(value, discriminator[key]), key
    exported = max((tmp_path / "twenty" / "checkpoints").glob("weights-*.safetensors"))  # the last, not the best
    loaded = load_checkpoint(AutoencoderKL2plus1D_1dcnn(**TINY), exported)
    trained = made.networks["autoencoder"].state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in loaded.state_dict().items())


def test_the_discriminator_learns_from_its_start_on(tmp_path):
    """After disc_start the discriminator's weights move, and so does the autoencoder in another direction."""
    with_it, without = recipe(disc_start=1), recipe(disc_start=1000)
    start = {key: value.clone() for key, value in with_it.networks["discriminator"].state_dict().items()}
    run(tmp_path / "with", with_it, steps=3)
    run(tmp_path / "without", without, steps=3)
    assert any(not torch.equal(v, start[key]) for key, v in with_it.networks["discriminator"].state_dict().items())
    assert not torch.equal(with_it.networks["autoencoder"].last_layer, without.networks["autoencoder"].last_layer)


def test_one_pass_of_the_autoencoder_per_step():
    """Both optimisers share one forward pass, and the discriminator sees a detached reconstruction."""
    made, calls = recipe(disc_start=0), []
    made.networks["autoencoder"].register_forward_hook(lambda *_: calls.append(1))
    batch = torch.stack([Gradients()[0], Gradients()[1]])
    losses = list(made.losses(batch, Step(0, 10, SampleNoise(0, [0, 1]), torch.device("cpu")), made.networks))
    assert len(losses) == 2 and len(calls) == 1
    losses[1].total.backward()
    assert all(parameter.grad is None for parameter in made.networks["autoencoder"].parameters())


def test_images_and_videos_are_trained_jointly(tmp_path):
    """With image_prob, some steps take single frames, whose temporal layers get no gradient; 3D losses refuse it."""
    made = recipe(image_prob=0.5)
    steps = [Step(index, 40, SampleNoise(0, [0]), torch.device("cpu")) for index in range(40)]
    images = [step.index for step in steps if made.takes_images(step)]
    assert 8 <= len(images) <= 32
    made.networks["autoencoder"].train()
    next(iter(made.losses(Gradients()[0][None], steps[images[0]], made.networks))).total.backward()
    model = made.networks["autoencoder"]
    assert model.encoder.conv_in.weight.grad is not None
    assert model.encoder_temporal.conv_in.conv.weight.grad is None
    assert run(tmp_path, recipe(image_prob=0.5), steps=6).finished
    with pytest.raises(UserError, match="image_prob needs the loss"):
        VVAERecipe(model, LPIPSWithDiscriminator3D(disc_start=0), image_prob=0.2)


def test_images_first(tmp_path):
    """The first image_steps steps leave the temporal stage as it was; from then on it is trained."""
    made = recipe(image_steps=2)
    start = made.networks["autoencoder"].encoder_temporal.conv_in.conv.weight.clone()
    run(tmp_path / "a", made, steps=2)
    assert torch.equal(made.networks["autoencoder"].encoder_temporal.conv_in.conv.weight, start)
    made = recipe(image_steps=2)
    run(tmp_path / "b", made, steps=3)
    assert not torch.equal(made.networks["autoencoder"].encoder_temporal.conv_in.conv.weight, start)


def test_layers_over_time_join_at_branch_start(tmp_path):
    """Before it nothing of them moves, and a pass without them gives what one with them gives; then they move."""
    made = recipe(branch_start=2, disc_start=1000)
    model, batch = made.networks["autoencoder"], torch.stack([Gradients()[0], Gradients()[1]])
    branches = [p for name, p in model.named_parameters() if "_tmp." in name and "temporal." not in name]
    start = [parameter.clone() for parameter in branches]
    totals = []
    for index in (0, 2):
        step = Step(index, 4, SampleNoise(0, [0, 1]), torch.device("cpu"))
        totals.append(next(iter(made.losses(batch, step, made.networks))).total)
        totals[-1].backward()
        assert any(parameter.grad is not None for parameter in branches) == (index == 2)
        assert model.decoder_temporal.conv_in.conv.weight.grad is not None
    assert torch.allclose(*totals)
    run(tmp_path / "a", made, steps=2)
    assert all(map(torch.equal, branches, start))
    assert not load_model(tmp_path / "a")[0].encoder.temporal_branches
    run(tmp_path / "b", recipe(branch_start=2, disc_start=1000), steps=2)
    made = recipe(branch_start=2, disc_start=1000)
    run(tmp_path / "b", made, steps=3)
    assert load_model(tmp_path / "b")[0].decoder.temporal_branches
    moved = [p for name, p in made.networks["autoencoder"].named_parameters() if "_tmp." in name and p.ndim > 1]
    assert not all(map(torch.equal, moved, [value for value in start if value.ndim > 1]))


def test_squared_errors_in_place_of_absolute_ones():
    frames, made = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4)
    for kind, error in (("l1", 0.5), ("l2", 0.25)):
        nll, mean = LPIPSWithDiscriminator(disc_start=0, pixel_loss=kind)(frames, made, None)
        assert mean.item() == error and nll.item() == error * 48
    with pytest.raises(VVAEError, match="pixel_loss must be one of l1, l2, found 'mse'"):
        LPIPSWithDiscriminator(disc_start=0, pixel_loss="mse")


def test_the_tiny_configuration_starts_isometric_and_only_from_nothing():
    config = load_config("configs/vvae/tiny.yaml")
    made = build_recipe(config)
    assert made.branch_start == 1000 and type(made.optimizers["autoencoder"]).__name__ == "Muon"
    assert made.networks["autoencoder"].encode(normalize(Gradients()[0][None])).logvar.eq(-6).all()
    config["model"]["params"]["ckpt_path_2d"] = "image.ckpt"
    with pytest.raises(UserError, match="isometric_start is for training from nothing, but model.params.ckpt_path_2d"):
        build_recipe(config)
    with pytest.raises(UserError, match="must be adam or muon, found 'sgd'"):
        build_recipe(load_config("configs/vvae/tiny.yaml", ["optimization.optimizer=sgd"]))


def test_options_beyond_the_original(tmp_path):
    """A learnt log-variance is trained, and the KL of the first stage counts when it has a weight."""
    made = recipe(learn_logvar=True, logvar_init=0.5)
    run(tmp_path, made, steps=2)
    assert made.networks["loss"].logvar.item() != 0.5
    totals = []
    for weight in (0.0, 1.0):
        step = Step(0, 4, SampleNoise(0, [0]), torch.device("cpu"))
        made = recipe(kl_weight_spatial=weight)
        totals.append(next(iter(made.losses(Gradients()[0][None], step, made.networks))).total)
    assert totals[1] > totals[0]


def test_configurations_build_and_captions_come_from_a_csv(tmp_path):
    """Every training configuration describes a recipe; a csv gives clips with the embeddings of their captions."""
    config = load_config("configs/vvae/tiny.yaml", ["optimization.keep_unused=true"])
    made = build_recipe(config)
    trained = sum(len(group["params"]) for group in made.optimizers["autoencoder"].param_groups)
    assert 0 < trained < len(list(made.networks["autoencoder"].parameters()))
    for index in range(12):
        write_video(tmp_path / f"{index}.mp4", smooth_clip(8, 32, 32, seed=index), 25)
    with open(tmp_path / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "text"), *((f"{i}.mp4", "" if i else "a wave") for i in range(12))])
    cache = CaptionCache(tmp_path / "text")
    for number, caption in enumerate(("", "a wave")):
        save_text(cache.path(caption), torch.full((1, 3, 1024), float(number)), torch.ones(1, 3))
    made.networks["autoencoder"].config.caption_guide = True
    data = {"path": str(tmp_path / "list.csv"), "frames": 8, "size": 32, "text_folder": str(tmp_path / "text")}
    clips = open_data(data, made.networks["autoencoder"])
    items = {part.caption(i): part[i] for part in clips for i in range(len(part))}
    assert items["a wave"]["text_embeddings"].shape == (3, 1024) and items["a wave"]["text_embeddings"].all()
    assert not items[""]["text_embeddings"].any() and items[""]["video"].shape == (3, 8, 32, 32)
    with pytest.raises(UserError, match="data.path is empty"):
        open_data({"path": None}, made.networks["autoencoder"])


def test_the_original_frames_and_their_errors_are_logged(tmp_path):
    """Pictures of a run show clip, reconstruction and samples; metrics.jsonl has the original's names."""
    run(tmp_path, recipe(disc_start=0), steps=2)
    text = (tmp_path / "metrics.jsonl").read_text()
    for name in ("rec_loss", "nll_loss", "kl_loss", "d_weight", "g_loss", "logits_real", "validation/psnr"):
        assert name in text
    assert {"original.png", "reconstruction.png", "samples.png"} <= {p.name for p in tmp_path.glob("samples/*/*")}
    assert np.isfinite(recipe().objective.logvar.item())


def test_what_is_declared_test_is_never_opened_by_a_training(tmp_path, monkeypatch, capsys):
    """Only train is trained on and only val is validated with; an evaluation tells how many clips a run has seen."""
    opened = set()
    read = NpySource.read_clip

    def note(self, index, *arguments, **options):
        opened.add(self.place(index).removeprefix(f"{parts}/").split(".")[0])
        return read(self, index, *arguments, **options)

    parts = tmp_path / "parts"
    parts.mkdir()
    for number, (name, count) in enumerate((("train", 4), ("val", 2), ("test", 2))):
        np.save(parts / f"{name}.npy", np.full((count, 4, 16, 16, 3), 80 * number, np.uint8))
    monkeypatch.setattr(NpySource, "read_clip", note)
    command = ["--config", "configs/vvae/tiny.yaml", "--data", parts, "--run_dir", tmp_path / "run", "--steps", 2]
    changes = ["data.frames=4", "data.size=16", "model.params.ddconfig.ch=32", "optimization.image_steps=1"]
    train_vvae.main([*map(str, [*command, "--batch_size", 2, "--device", "cpu"]), *changes])
    assert opened == {"train", "val"}
    record = trained_on(tmp_path / "run")
    assert record["split"] == "train" and [place.split(".")[0] for place in record["ids"]] == ["train"] * 4
    for split, seen, of in (("test", 0, 2), ("train", 4, 4)):
        arguments = ["--checkpoint", tmp_path / "run", "--data", parts, "--split", split, "--device", "cpu"]
        evaluate.main(["vvae", *map(str, [*arguments, "--output", tmp_path / "scores.json"])])
        report = json.loads((tmp_path / "scores.json").read_text())
        assert (report["clips_trained_on"], report["clips"], report["frames"]) == (seen, of, 4)
        shown = capsys.readouterr()
        assert f"of these {of} clips, {seen} were in this run's training set" in shown.out
        assert ("WARNING" in shown.err) == (seen > 0)


def test_parts_of_their_own_are_kept_apart_too(tmp_path):
    """Without validation and with data.validation_path, too, only train is trained on and only val validated with."""
    for name in ("train", "val", "test"):
        np.save(tmp_path / f"{name}.npy", np.zeros((2, 4, 16, 16, 3), np.uint8))
    model = AutoencoderKL2plus1D_1dcnn(**TINY)
    data = {"path": str(tmp_path), "frames": 4, "size": 16}
    for changes in ({"split": False}, {"validation_path": str(tmp_path)}):
        training, validation = open_data(data | changes, model)
        assert {place.split(".")[0] for place in training.provenance()["ids"]} == {"train"}
        if validation is not None:
            assert {place.split(".")[0] for place in validation.provenance()["ids"]} == {"val"}
    for changes in ({"path": str(tmp_path / "test.npy")}, {"validation_path": str(tmp_path / "test.npy")}):
        with pytest.raises(UserError, match="it has test"):
            open_data(data | changes, model)
    config = ["--config", "configs/vvae/tiny.yaml", "--data", str(tmp_path), "optimization.image_stpes=1"]
    with pytest.raises(UserError, match="did you mean 'optimization.image_steps'"):
        train_vvae.main(config)


def test_a_clip_of_one_window_has_no_borders(tiny):
    """What has no border has no boundary ratio; two windows have one, at the first's end without the overlap."""
    subject = Reconstructions(tiny, Streaming(windows=Windows(8, 4)))
    assert "boundary" not in subject.made_for(8, (32, 32)).metrics and subject.window == 0
    assert "boundary" in subject.made_for(12, (32, 32)).metrics and subject.window == 4
