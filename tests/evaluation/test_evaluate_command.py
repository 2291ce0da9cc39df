"""scripts/evaluate.py: two models and folders of videos; the others are evaluated in the tests that train them."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation import report as report_module
from evaluation import runner
from evaluation.report import default_place
from scripts import evaluate, train_vvae
from tests.vqgan.tiny import tiny_model
from training.cli import run
from videodata import write_video
from videodata.errors import UserError
from vqgan.files import model_config, save_model
from vvae import AutoencoderKL2plus1D_1dcnn

ROOT = Path(__file__).parents[2]
CLIPS = "shapes:6,frames=16,size=32"
RANDOM = ("--allow-random-features", "--force", "--feature_cache", "none")


def report(folder, *arguments):
    """The JSON file that the command writes."""
    path = folder / "scores.json"
    evaluate.main([*map(str, arguments), "--device", "cpu", "--out", str(path)])
    return json.loads(path.read_text())


def names(stored):
    return {score["name"]: score for score in stored["scores"]}


def test_vqgan(tmp_path, capsys):
    """Frames of patches, codebook over all of them, FVD; the table and the file say how."""
    model = tiny_model()
    save_model(tmp_path / "model.pt", model, config={"model": model_config(model)})
    grid = ("--patch_size", 16, "--num_patches_h", 2, "--num_patches_w", 2)
    stored = report(
        tmp_path, "vqgan", "--checkpoint", tmp_path / "model.pt", "--data", CLIPS, "--split", "all", *grid, *RANDOM,
        "--metrics", "psnr", "fvd", "codebook",
    )  # fmt: skip
    scores = names(stored)
    assert set(scores) == {
        "PSNR", "PSNR of the mean frame", "FVD-RANDOM", "codebook usage", "codebook perplexity", "code map",
    }  # fmt: skip
    assert scores["codebook usage"]["tokens"] == 6 * 8 * 4 * 8 * 8 and scores["codebook usage"]["codes"] == 16
    details = stored["details"]
    assert details["codes_used"] == round(16 * scores["codebook usage"]["mean"]) and details["bits_per_frame"] == 1024
    assert (stored["frames"], stored["height"], details["clips"], details["seed"]) == (8, 32, 6, 0)
    assert len(details["checkpoint_sha256"]) == 64 and "--metrics psnr fvd codebook" in details["command"]
    assert "FVD-RANDOM" in capsys.readouterr().out


def test_digits_without_weight_files_of_others(tmp_path):
    """Energy, small clips beside those of the training part, what is recognised; no class of a model without any."""
    model = tiny_model()
    save_model(tmp_path / "model.pt", model, config={"model": model_config(model)})
    grid = ("--patch_size", 16, "--num_patches_h", 2, "--num_patches_w", 2)
    asked = ("vqgan", "--checkpoint", tmp_path / "model.pt", "--data", "digits:100,frames=8", "--split", "val", *grid)
    stored = report(tmp_path, *asked, "--metrics", "energy", "fd-pca", "identity", "recognised")
    scores, true = names(stored), [f"{name} true clips" for name in ("identity frame 4,", "recognised")]
    assert set(scores) == {
        *(f"{name}{row}" for name in ("ES-clip", "ES-frame", "CRPS") for row in ("", " of the mean frame")),
        "FD-pca2", "identity frame 4", "recognised", *true,
    }  # fmt: skip
    assert "80 real clips (split train)" in scores["FD-pca2"]["feature_network"]["text"]
    assert all(scores[name]["mean"] > 0.5 for name in true) and scores["recognised"]["mean"] == 0
    assert (stored["details"]["class"], stored["details"]["guidance"]) == (None, 1)
    for flags in (("--class", "07"), ("--guidance", 2)):
        with pytest.raises(UserError, match="trained without classes"):
            report(tmp_path, *asked, *flags)


def test_vvae(tmp_path):
    """Windows over clips that are longer than a window, with the ratio at their borders."""
    torch.manual_seed(0)
    small = {"z_channels": 4, "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    model = AutoencoderKL2plus1D_1dcnn(ddconfig=small, ppconfig={"ch": 4, "hidden_channel": 32})
    model.freeze().save_pretrained(tmp_path / "vvae")
    stored = report(
        tmp_path, "vvae", "--checkpoint", tmp_path / "vvae", "--data", CLIPS, "--split", "all", "--num_clips", 1,
        "--frames", 10, "--size", 32, 32, "--chunk_size", 8, "--overlap", 4,
    )  # fmt: skip
    scores = names(stored)
    assert {"PSNR", "SSIM", "PSNR of the mean frame", "boundary ratio"} <= set(scores)
    assert scores["boundary ratio"]["window"] == 4 and len(scores["PSNR"]["per_frame"]) == 10


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders with three videos each: the second 4 levels brighter, and the same under other names."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        coarse = np.random.default_rng(number).integers(40, 200, (12, 3, 4, 3), dtype=np.uint8)
        frames = coarse.repeat(8, axis=1).repeat(8, axis=2)
        write_video(folder / "a" / f"{number}.mp4", frames, 8, lossless=True)
        write_video(folder / "b" / f"{number}.mp4", frames + 4, 8, lossless=True)
        write_video(folder / "c" / f"other{number}.mp4", frames, 8, lossless=True)
    return folder


def test_folders_of_videos(folders, tmp_path):
    """Pairs by name, given frames left out; FVD of sets does not need names."""
    clips = ("--frames", 10, "--size", 24, 32)
    stored = report(
        tmp_path, "videos", folders / "a", folders / "b", "--context", 2, *clips, *RANDOM[:2],
        "--metrics", "psnr", "brightness", "fvd",
    )  # fmt: skip
    scores = names(stored)
    assert scores["brightness bias"]["mean"] == pytest.approx(4.0) and stored["excluded_frames"] == 2
    assert scores["PSNR"]["per_clip"] == pytest.approx([20 * np.log10(255 / 4)] * 3, abs=1e-6)
    assert scores["FVD-RANDOM"]["mean"] > 0 and stored["details"]["set_clips"]["frames"] == 10
    with pytest.raises(UserError, match="there is no video of that name"):
        report(tmp_path, "videos", folders / "a", folders / "c")
    same = report(tmp_path, "videos", folders / "a", folders / "c", "--metrics", "fvd", *clips, *RANDOM[:2])
    assert names(same)["FVD-RANDOM"]["mean"] < 1e-3


def test_borders_of_windows_in_videos(folders, tmp_path):
    """Their place has to be told; an error that never changes has no ratio."""
    metrics = ("psnr", "ssim", "boundary", "brightness")
    stored = report(tmp_path, "videos", folders / "a", folders / "b", "--window", 12, "--metrics", *metrics)
    assert list(names(stored)) == ["PSNR", "SSIM", "brightness bias"]
    with pytest.raises(UserError, match="--window"):
        report(tmp_path, "videos", folders / "a", folders / "b", "--metrics", "boundary")


def test_missing_weights_end_in_one_line_and_status_2(folders, tmp_path, monkeypatch, capsys):
    """File, address and folder; nothing is written and nothing downloaded."""
    for variable in ("HOME", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("VIDEOGEN_WEIGHTS", str(tmp_path / "weights"))
    arguments = ["videos", folders / "a", folders / "b", "--metrics", "fvd", "--frames", 10]
    with pytest.raises(SystemExit) as ended:
        run(evaluate.main, [*map(str, arguments), "--output", str(tmp_path / "scores.json")])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and "i3d_pretrained_400.pt" in line and str(tmp_path / "weights") in line
    assert not (tmp_path / "scores.json").exists()


def test_clips_that_were_trained_on_are_told_by_the_run(tmp_path, capsys):
    """A real training of two steps: all clips of its train part are known again, and none of the others."""
    run_dir, data = tmp_path / "run", "shapes:20,frames=8,size=16"
    train_vvae.main([
        "--config", str(ROOT / "configs" / "vvae" / "tiny.yaml"), "--data", data, "--run_dir", str(run_dir),
        "--steps", "2", "--batch_size", "2", "--device", "cpu", "data.size=16", "data.frames=8",
        "optimization.isometric_start=false",
    ])  # fmt: skip
    common = ("vvae", "--checkpoint", run_dir, "--data", data, "--frames", 8, "--chunk_size", 8, "--overlap", 0)
    for split, seen, count in (("train", 16, 16), ("test", 0, 2)):
        capsys.readouterr()
        stored = report(tmp_path, *common, "--size", 16, 16, "--metrics", "psnr", "--split", split)
        assert (stored["clips"], stored["clips_trained_on"], stored["details"]["split"]) == (count, seen, split)
        printed, note = capsys.readouterr(), f"of these {count} clips, {seen} were in this run's training set"
        assert note in printed.out and ("WARNING" in printed.out) is (note in printed.err) is (seen > 0)


def small_vqgan(folder):
    """A run folder in form alone: what matters is where the result goes."""
    model = tiny_model()
    (folder / "run" / "checkpoints").mkdir(parents=True)
    save_model(folder / "run" / "checkpoints" / "model.pt", model, config={"model": model_config(model)})
    return [
        "vqgan", "--checkpoint", str(folder / "run" / "checkpoints" / "model.pt"), "--data", CLIPS, "--split", "all",
        "--patch_size", "16", "--num_patches_h", "2", "--num_patches_w", "2", "--device", "cpu", "--num_clips", "1",
    ]  # fmt: skip


def test_results_lie_in_the_run_folder_beside_each_other(tmp_path, monkeypatch, capsys):
    """The same protocol writes over its result, another one beside it; nothing appears in the current folder."""
    monkeypatch.chdir(tmp_path)
    command = small_vqgan(tmp_path)
    for metrics in (["psnr"], ["codebook"], ["psnr"]):
        evaluate.main([*command, "--metrics", *metrics])
    assert sorted(path.name for path in (tmp_path / "run").glob("*.json")) == ["evaluation.json", "evaluation_2.json"]
    assert set(names(json.loads((tmp_path / "run" / "evaluation.json").read_text()))) == {
        "PSNR", "PSNR of the mean frame",
    }  # fmt: skip
    assert list(tmp_path.glob("*.json")) == [] and "written to run/evaluation.json" not in capsys.readouterr().err
    (tmp_path / "run" / "evaluation_3.json").write_text("mine")
    evaluate.main([*command, "--metrics", "psnr", "--seed", "5"])
    assert (tmp_path / "run" / "evaluation_3.json").read_text() == "mine"
    assert (tmp_path / "run" / "evaluation_4.json").is_file()


def test_places_of_results(tmp_path, monkeypatch):
    """Of a run folder, of its files, of a file of weights/, of folders of videos."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a" / "checkpoints").mkdir(parents=True)
    run_folder = Path("runs/a/evaluation.json")
    assert default_place(Path("runs/a")) == default_place(Path("runs/a/checkpoints/step-0000001.pt")) == run_folder
    assert default_place(Path("runs/a/best_model.pt")) == run_folder
    assert default_place(Path("weights/lvt-digits.safetensors")) == Path("evaluation_lvt-digits.json")
    assert default_place(None) == Path("evaluation.json")


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    """Nothing is opened or computed."""
    (tmp_path / "file").write_text("")
    command = small_vqgan(tmp_path)
    monkeypatch.setattr(runner, "evaluate_model", None)
    with pytest.raises(UserError, match=r"file/a.json: cannot be written \(Not a directory\)"):
        evaluate.main([*command, "--out", str(tmp_path / "file" / "a.json")])


def test_the_table_is_shown_where_the_disk_is_full(tmp_path, monkeypatch, capsys):
    """The numbers have cost the time; then the error with its remedy."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report_module, "write_file", full)
    with pytest.raises(UserError, match="No space left on device.; free disk space"):
        evaluate.main([*small_vqgan(tmp_path), "--metrics", "psnr", "--out", str(tmp_path / "a.json")])
    assert "PSNR" in capsys.readouterr().out
