"""The documented commands: each flag does what its documentation says."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import main
from losses.perceptual import PerceptualLoss
from scripts import evaluate, generate_video_vae
from tests.video_vae.tiny import TINY, tiny_network
from training import trained_on
from training.checkpoint import load_checkpoint, newest_checkpoint
from training.randomness import SampleNoise
from training.recipe import Step
from video_vae import train as training_of_the_vae
from video_vae.config import LossConfig
from video_vae.files import load_model, split_model_path
from video_vae.train import VideoVAERecipe
from videodata.errors import UserError
from videodata.npy import NpySource
from videodata.pixels import normalize

SMALL = [
    "--set", f"levels={json.dumps(TINY['levels'])}", "stem_dim=8", "canvas_dim=8", "head_dim=4",
    "stem_heads=2", "canvas_heads=2",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working directory with clips.npy: 6 sequences of 3 frames, 20 wide and 12 high."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDEOGEN_WEIGHTS", str(tmp_path / "no weights"))
    np.save("clips.npy", np.random.default_rng(0).integers(0, 256, (6, 3, 12, 20, 3), dtype=np.uint8))
    return tmp_path


def train(*flags: object, perceptual_weight: float = 0, model: bool = True, npy: bool = True) -> None:
    """main.py with a tiny model and no warm-up."""
    common = ["--device", "cpu", "--warmup_steps", "0", "--val_fraction", "0"]
    common += ["--npy_file", "clips.npy"] if npy else []
    small = ["--preset", "tiny", *SMALL] if model else []
    main.main([*common, *small, "--perceptual_weight", str(perceptual_weight), *map(str, flags)])


def weights(path: str) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def test_06_and_07_any_number_of_frames_and_any_size_trains(folder):
    """Clips of 60 frames and of an odd size train, with nothing but --npy_file to say so."""
    np.save("clips.npy", np.zeros((1, 60, 11, 22, 3), np.uint8))
    train("--num_epochs", 1)
    assert load_model("transformer_model_epoch_1.pth")[1]["data"]["frames"] == 60
    assert load_model("transformer_model_epoch_1.pth")[0].config.image_size == (11, 22)


def test_08_the_documented_command_trains(folder):
    """python main.py --npy_file F is enough: the defaults are those of the documentation, and they train."""
    args = main.build_parser().parse_args(["--npy_file", "clips.npy"])
    documented = {
        "model_path": None, "batch_size": 1, "learning_rate": 1e-5, "num_epochs": 50,
        "load_model": False, "perceptual_weight": 1.0, "checkpointing": "auto", "preset": None,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in documented} == documented  # no model_path: transformer_model.pth
    main.main(["--npy_file", "clips.npy", "--perceptual_weight", "0", "--num_epochs", "1", *SMALL])
    network, config = load_model("transformer_model_epoch_1.pth")
    assert not config["checkpointing"] and network.config.image_size == (12, 20)


def test_09_and_12_each_epoch_leaves_its_file(folder):
    """<stem>_epoch_<N>.pth for every N up to num_epochs, also for few clips and with other suffixes."""
    train("--model_path", "deep/er/model.pth", "--num_epochs", 3, "--batch_size", 6)
    assert sorted(path.name for path in Path("deep/er").iterdir()) == [f"model_epoch_{n}.pth" for n in (1, 2, 3)]
    train("--model_path", "few.pth", "--num_epochs", 5, "--batch_size", 6, "--epoch_every", 2)
    assert sorted(path.name for path in Path().glob("few*")) == [f"few_epoch_{n}.pth" for n in (2, 4, 5)]
    assert split_model_path(Path("a/model_epoch_12.pth")) == (Path("a/model"), 12)
    assert split_model_path(Path("a/model.v2")) == (Path("a/model.v2"), 0)


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 6), (4, 2)])
def test_10_batch_size(folder, batch_size, steps):
    """An epoch has ceil(clips / batch_size) optimiser steps."""
    train("--num_epochs", 1, "--batch_size", batch_size, "--run_name", "r")
    assert load_checkpoint("runs/r")["step"] == steps


def test_a_named_run_folder_holds_all_unless_a_model_path_is_named(folder):
    """Nothing is written beside it; with --model_path the files of the epochs are."""
    before = set(Path().iterdir())
    train("--num_epochs", 1, "--run_dir", "mine")
    assert set(Path().iterdir()) - before == {Path("mine")}
    train("--num_epochs", 1, "--run_name", "other", "--model_path", "named.pth")
    assert {path.name for path in set(Path().iterdir()) - before} == {"mine", "runs", "named_epoch_1.pth"}


def test_11_learning_rate_reaches_the_optimiser(folder):
    """The flag is the rate of the optimiser's state; rate 0 trains nothing."""
    path = ["--model_path", "transformer_model.pth"]
    train("--num_epochs", 1, "--learning_rate", 0.125, "--run_name", "fast")
    assert load_checkpoint("runs/fast")["optimizers"]["vae"]["param_groups"][0]["lr"] == 0.125
    train("--num_epochs", 2, "--learning_rate", 0, "--run_name", "still", *path)
    first, second = weights("transformer_model_epoch_1.pth"), weights("transformer_model_epoch_2.pth")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_13_load_model_continues_the_exact_file(folder):
    """Training goes on from the weights and moments of that file, and counts its epochs on."""
    train("--num_epochs", 2)
    train("--num_epochs", 1, "--model_path", "transformer_model_epoch_2.pth", "--load_model", model=False)
    assert Path("transformer_model_epoch_3.pth").is_file() and not Path("transformer_model_epoch_4.pth").exists()
    moments = torch.load("transformer_model_epoch_3.pth", weights_only=True)["optimizer"]["state"][0]
    assert moments["step"].item() == 18
    train(
        "--num_epochs", 1, "--model_path", "transformer_model_epoch_2.pth", "--load_model", "--learning_rate", 0,
        "--run_name", "unchanged", "--overwrite", model=False,
    )  # fmt: skip
    before, after = weights("transformer_model_epoch_2.pth"), weights("transformer_model_epoch_3.pth")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_13_load_model_takes_a_bare_state_dict(folder):
    """A file of weights alone loads into the model that the flags describe; another model is a report of one line."""
    train("--num_epochs", 1)
    torch.save(weights("transformer_model_epoch_1.pth"), "bare_epoch_7.pth")
    train("--num_epochs", 1, "--model_path", "bare_epoch_7.pth", "--load_model")
    assert Path("bare_epoch_8.pth").is_file()
    with pytest.raises(UserError, match="does not fit the model"):
        train("--model_path", "bare_epoch_7.pth", "--load_model", "--set", "stem_dim=16", model=False)


def test_15_samples_come_from_the_prior(folder):
    """scripts/generate_video_vae.py writes clips of any length and size; sample i does not depend on how many."""
    train("--num_epochs", 1, "--run_name", "r")
    common = ["--checkpoint", "runs/r", "--device", "cpu", "--num_frames", "5", "--size", "14", "18"]
    generate_video_vae.main([*common, "--output_dir", "few", "--num_samples", "2", "--gif"])
    generate_video_vae.main([*common, "--output_dir", "many", "--num_samples", "6"])
    few, many = np.load("few/samples.npy"), np.load("many/samples.npy")
    assert few.shape == (2, 5, 14, 18, 3) and many.shape[0] == 6
    assert np.abs(few.astype(int) - many[:2]).max() <= 1
    assert {path.suffix for path in Path("few").iterdir()} == {".npy", ".png", ".mp4", ".gif"}


def test_15_given_clips_are_reconstructed_interpolated_and_traversed(folder):
    """Each product has its files, from every kind of weight file; without clips the command says what it needs."""
    train("--num_epochs", 1, "--run_name", "r", "--model_path", "transformer_model.pth")
    newest = newest_checkpoint(Path("runs/r/checkpoints"))
    for checkpoint in ("transformer_model_epoch_1.pth", newest.path, newest.weights):
        generate_video_vae.main(
            ["--checkpoint", str(checkpoint), "--data", "clips.npy", "--split", "all", "--num_samples", "0",
             "--steps", "3"]
        )  # fmt: skip
    names = {path.name for path in Path("generated").iterdir()}
    assert {"reconstructions.png", "interpolation.png", "traversal_level_1.png", "traversal_level_2.png"} <= names
    with pytest.raises(UserError, match="--data"):
        generate_video_vae.main(["--checkpoint", "runs/r", "--only", "interpolation"])


def test_16_weight_0_needs_no_vgg_and_weight_1_says_what_is_missing(folder, monkeypatch):
    """Without the VGG file the run stops in one line before training; with weight 0 it is never looked for."""

    def refuse(self):
        raise UserError("vgg16.pth is missing")

    monkeypatch.setattr(PerceptualLoss, "weights_file", refuse)
    with pytest.raises(UserError, match=r"vgg16.pth is missing \(--perceptual_weight 0"):
        train("--num_epochs", 1, perceptual_weight=1)
    assert not Path("runs").exists()
    train("--num_epochs", 1)


def test_17_checkpointing_does_not_change_the_result(folder):
    """With and without --no_checkpointing a run ends with the same weights up to rounding."""
    train("--num_epochs", 1, "--model_path", "with.pth", "--run_name", "with", "--checkpointing", "on")
    train("--num_epochs", 1, "--model_path", "without.pth", "--run_name", "without", "--no_checkpointing")
    torch.testing.assert_close(weights("without_epoch_1.pth"), weights("with_epoch_1.pth"), rtol=1e-4, atol=1e-6)


def test_activations_are_kept_where_they_fit(folder, monkeypatch, caplog):
    """By default the free memory decides, and says so; a run that goes on does as it did."""

    def kept(*flags, free):
        monkeypatch.setattr(training_of_the_vae.distributed, "free_memory", lambda device: free)
        train("--run_dir", "run", *flags)
        return not yaml.safe_load(Path("run/config.yaml").read_text())["checkpointing"]

    assert not kept("--steps", 1, free=10**6)
    assert "activations are computed again in the backward pass" in caplog.text
    assert not kept("--steps", 2, free=10**12)
    assert kept("--steps", 3, "--checkpointing", "off", free=10**6)
    shutil.rmtree("run")
    assert kept("--steps", 1, free=10**12) and "activations are kept: 0.00 GB of them, 1000.0 GB" in caplog.text
    shutil.rmtree("run")
    assert not kept("--steps", 1, free=None) and "an unknown amount of memory free" in caplog.text


def test_the_same_command_continues_and_another_one_starts_afresh(folder, capsys):
    """A finished run says so and restores its files; more epochs continue it; other settings have another folder."""
    train("--num_epochs", 1)
    content = weights("transformer_model_epoch_1.pth")
    Path("transformer_model_epoch_1.pth").unlink()
    train("--num_epochs", 1)
    assert "finished" in capsys.readouterr().out
    assert all(torch.equal(value, content[key]) for key, value in weights("transformer_model_epoch_1.pth").items())
    train("--num_epochs", 2, "--log_every", 3)
    assert len(list(Path("runs").iterdir())) == 1
    train("--num_epochs", 1, "--kl_weight", 0.5, "--overwrite")
    assert len(list(Path("runs").iterdir())) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--npy_file", "ucf101_50_frames.npy"], "prepare_ucf101.py --output_npy_file ucf101_50_frames.npy"),
        (["--npy_file", "empty.avi"], "empty.avi: the file is empty"),
        (["--batch_size", 7], "6 clips to train on are fewer than --batch_size 7"),
        (["--load_model", "--model_path", "none_epoch_3.pth"], "none_epoch_3.pth: no such file"),
        (["--config", "base.yaml"], "--preset and --config"),
        (["--perceptual", "gan"], "unknown perceptual loss"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(folder, flags, message):
    """The line names the file or flag and the remedy."""
    Path("empty.avi").touch()
    with pytest.raises(UserError, match=message):
        train(*flags)


@pytest.fixture
def parts(folder) -> Path:
    """A folder with train.npy, val.npy and test.npy of 4, 2 and 2 sequences, each of its own grey."""
    (folder / "parts").mkdir()
    greys = iter(range(0, 240, 30))
    for name, count in (("train", 4), ("val", 2), ("test", 2)):
        clips = np.stack([np.full((3, 12, 20, 3), next(greys), np.uint8) for _ in range(count)])
        np.save(folder / "parts" / f"{name}.npy", clips)
    return folder / "parts"


@pytest.mark.parametrize("val_fraction", [0, 0.1])
def test_what_is_declared_test_is_never_opened_by_a_training(parts, monkeypatch, capsys, val_fraction):
    """Only train is trained on and only val is validated with; an evaluation tells how many clips a run has seen."""
    opened = set()
    read = NpySource.read_clip

    def note(self, index, *arguments, **options):
        opened.add(self.place(index).removeprefix(f"{parts}/"))
        return read(self, index, *arguments, **options)

    monkeypatch.setattr(NpySource, "read_clip", note)
    data = ["--data", parts, "--frames", 3, "--size", 12, 20, "--val_fraction", val_fraction]
    train(*data, "--steps", 2, "--run_dir", "r", "--model_path", "short.pth", npy=False)
    assert load_checkpoint("r")["step"] == 2 and [path.name for path in Path().glob("*.pth")] == ["short_epoch_1.pth"]
    assert {place.split(".")[0] for place in opened} == {"train", "val"}
    record = trained_on("r")
    assert record["split"] == "train" and [place.split(".")[0] for place in record["ids"]] == ["train"] * 4
    assert record["source"] == str(parts)
    for checkpoint, split, seen, of in (
        ("r", "test", 0, 2), ("r", "train", 4, 4), ("r", "all", 4, 8), ("short_epoch_1.pth", "train", 4, 4),
    ):  # fmt: skip
        evaluate.main(
            ["video_vae", "--checkpoint", checkpoint, "--data", str(parts), "--split", split, "--device", "cpu"]
            + ["--out", "evaluation.json"]
        )
        report = json.loads(Path("evaluation.json").read_text())
        assert (report["clips_trained_on"], report["clips"]) == (seen, of)
        shown = capsys.readouterr()
        assert f"of these {of} clips, {seen} were in this run's training set" in shown.out
        assert ("WARNING" in shown.err) == (seen > 0)


def test_a_declared_part_alone_cannot_be_trained_on(parts):
    """Neither test.npy nor val.npy, named directly."""
    for name in ("test", "val"):
        with pytest.raises(UserError, match=f"{name}.npy has no split 'train': it has {name}"):
            train("--data", parts / f"{name}.npy", npy=False)


def test_evaluation_reports_each_level_and_the_mean_frame(folder):
    """scripts/evaluate.py video_vae writes PSNR, SSIM, the mean frame's PSNR and KL per level, in bits."""
    train("--num_epochs", 1, "--run_name", "r")
    common = ["video_vae", "--checkpoint", "runs/r", "--data", "clips.npy", "--split", "all", "--device", "cpu"]
    common += ["--out", "evaluation.json"]
    evaluate.main(common)
    scores = {score["name"]: score["mean"] for score in json.loads(Path("evaluation.json").read_text())["scores"]}
    assert {"PSNR", "SSIM", "PSNR of the mean frame", "KL level 1", "KL level 2", "KL total"} <= set(scores)
    assert scores["KL total"] == pytest.approx(scores["KL level 1"] + scores["KL level 2"])
    mean = np.load("clips.npy").mean(axis=1, keepdims=True)
    error = ((np.load("clips.npy") - mean) / 255) ** 2
    expected = (-10 * np.log10(error.mean(axis=(2, 3, 4)))).mean()
    assert scores["PSNR of the mean frame"] == pytest.approx(expected, abs=0.01)
    options = ["--metrics", "fvd", "diversity", "--samples", "2", "--allow-random-features", "--force"]
    evaluate.main([*common, "--generate", *options, "--feature_cache", "none"])
    names = [score["name"] for score in json.loads(Path("evaluation.json").read_text())["scores"]]
    assert names == ["FVD-RANDOM", "diversity RMSE"]
    for generate in ([], ["--generate"]):
        evaluate.main([*common, *generate, "--metrics", "fd-training"])
        made, true = json.loads(Path("evaluation.json").read_text())["scores"]
        assert made["name"].endswith("from training clips") and true["name"].endswith("true clips")
        assert true["mean"] == pytest.approx(0, abs=1e-6)  # these clips were all trained on
        assert made["mean"] > 1e-3
    for generate in ([], ["--generate"]):  # the distance from real clips, of reconstructions and of samples
        evaluate.main([*common, *generate, "--metrics", "fd-pca", "--force"])
        assert json.loads(Path("evaluation.json").read_text())["scores"][0]["name"].startswith("FD")


def test_the_kl_weight_warms_up():
    """Linear from 0 over a tenth of the run, at least 100 steps, or over the steps that are asked for."""

    def weight(index: int, total: int, **changes: int) -> float:
        recipe = VideoVAERecipe(tiny_network(), LossConfig(kl_weight=1.0, **changes))
        return recipe.kl_weight(Step(index, total, None, torch.device("cpu")))

    assert weight(0, 50) == 0 and weight(50, 50) == 0.5 and weight(300, 3000) == 1
    assert weight(150, 3000) == 0.5 and weight(5, 3000, kl_warmup_steps=10) == 0.5


def test_the_kl_is_per_pixel_value_of_the_whole_clip_while_few_frames_are_shown():
    """The latents are those of the whole clip, so a step that shows one frame does not make them dearer."""
    batch = torch.randint(0, 256, (2, 3, 8, 16, 16), dtype=torch.uint8)
    network = tiny_network()
    step = Step(0, 100, SampleNoise(0, [0, 1]), torch.device("cpu"))
    recipe = VideoVAERecipe(network, LossConfig(perceptual_weight=0.0, frames_warmup_steps=30))
    losses = next(recipe.losses(batch, step, recipe.networks))
    (moment,) = recipe.moments(step, 8)
    _, terms = network(normalize(batch[:, :, [moment[0]]]), SampleNoise(0, [0, 1]), [moment])
    assert losses.terms["kl"].item() == pytest.approx((sum(terms.values()) / batch[0].numel()).mean().item(), rel=1e-5)


def test_the_frame_warm_up_takes_every_frame_in_turn():
    """One frame per clip, then 2, 4 and all 8, evenly spread; the steps of a stage go through all of them."""
    recipe = VideoVAERecipe(tiny_network(), LossConfig(frames_warmup_steps=30))

    def frames(index: int, of: int = 8) -> list[int]:
        moments = recipe.moments(Step(index, 100, None, torch.device("cpu")), of)
        assert {total for _, total in moments} == {of}
        return [t for t, _ in moments]

    assert [frames(index) for index in (0, 3, 9)] == [[0], [3], [1]]
    assert frames(10) == [2, 6] and frames(21) == [1, 3, 5, 7] and frames(30) == list(range(8))
    assert frames(0, of=1) == [0] and frames(29, of=5) == [1, 3] and frames(30, of=5) == [0, 1, 2, 3, 4]


def test_the_epoch_files_of_another_run_stay(folder):
    """Refused before training, unless it is asked for; the same command and a longer one go on."""
    train("--num_epochs", 1)
    before = Path("transformer_model_epoch_1.pth").read_bytes()
    with pytest.raises(UserError, match=r"transformer_model_epoch_1.pth: is of another run; .* --overwrite"):
        train("--num_epochs", 1, "--seed", 3)
    assert Path("transformer_model_epoch_1.pth").read_bytes() == before
    train("--num_epochs", 2)
    train("--num_epochs", 1, "--seed", 3, "--overwrite")
    assert Path("transformer_model_epoch_1.pth").read_bytes() != before


def test_a_model_path_that_cannot_be_written(folder):
    """Told before training, with what helps."""
    Path("file").write_text("")
    with pytest.raises(UserError, match=r"file/model_epoch_1.pth: cannot be written \(Not a directory\)"):
        train("--model_path", "file/model.pth", "--num_epochs", 1)
    assert not Path("runs").exists()


def test_a_large_network_on_a_cpu_is_said(folder, monkeypatch, caplog):
    """The preset base would train for weeks there without a word."""
    monkeypatch.setattr(training_of_the_vae, "LARGE", 10)
    train("--num_epochs", 1)
    assert "million parameters on a CPU" in caplog.text and "--preset small or tiny" in caplog.text
