"""The commands, as a user types them."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from flow_pred.files import load_model
from tests.flow_pred.fixture_files import Fixture
from tests.flow_pred.tiny import tiny_values
from videodata import open_clips, write_video
from videodata.errors import UserError
from videodata.labels import classes_of
from videodata.video_folder import VideoFolder
from vvae.src.modules.t5 import CaptionCache

ROOT = Path(__file__).resolve().parent.parent.parent


def command(script: str, *arguments: object) -> None:
    """What `python scripts/<script> <arguments>` does, without the seconds that a new process takes to start."""
    module_of(script).main([str(argument) for argument in arguments])


def module_of(script: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), ROOT / "scripts" / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_documented_commands_train_and_predict(tmp_path, capsys):
    """Autoencoder, cache, flow, denoiser, diffusion, RIVER, and videos of both predictors with metrics."""
    runs, configs = tmp_path / "runs", ROOT / "configs" / "flow_pred"
    data = "data.data_root='shapes:12,frames=48,size=32'"
    small = [
        data,
        "model.vector_field_regressor.inner_dim=16",
        f"model.autoencoder.ckpt_path={runs}/shapes_run-autoencoder",
        "training.optimizer.num_training_steps=2",
        "training.batching.batch_size=2",
        "data.frames_per_sample=8",
        "training.num_observations=6",
    ]
    river = configs / "shapes_river_tiny.yaml"
    command("train_flow_autoencoder.py", "--config", river, "--runs", runs, "--steps", 2, "--batch_size", 2, *small)
    command("encode_latents.py", "--config", river, "--out", tmp_path / "latents", *small)
    for name in ("f-01-mse", "d-01", "g-01-nll", "river"):
        options = [f"data.latents={tmp_path}/latents"] if name != "river" else []
        if name == "g-01-nll":
            options.append(f"model.f_ckpt_path={runs}/shapes_run-f-01-mse/checkpoints/final_step_2.pth")
            options.append(f"model.d_ckpt_path={runs}/shapes_run-d-01")
        arguments = ["--run-name", name, "--runs", runs, "--num-gpus", 0, "--random-seed", 3]
        command("train_flow_pred.py", "--config", configs / f"shapes_{name}_tiny.yaml", *arguments, *small, *options)
    more = [word.replace("num_training_steps=2", "num_training_steps=3") for word in small]  # a finished run goes on
    command("train_flow_pred.py", "--config", configs / "shapes_river_tiny.yaml", *arguments, *more)
    assert (runs / "shapes_run-river" / "checkpoints" / "final_step_3.pth").is_file()
    sde = [f"--ckpt-{part[0]}={runs}/shapes_run-{part}" for part in ("f-01-mse", "d-01", "g-01-nll")]
    shared = ["--num-videos", 2, "--metrics", "--frames", 2]
    command("generate_flow_videos.py", *sde, *shared, "--res", 2, "--context", 4, "--out", tmp_path / "sde")
    assert "PSNR in between" in capsys.readouterr().out
    command("generate_flow_videos.py", "--ckpt", runs / "shapes_run-river", *shared, "--out", tmp_path / "river")
    with h5py.File(tmp_path / "sde" / "videos.h5") as file:
        assert file["generated_videos"].shape == (2, 8, 3, 32, 32)
    report = json.loads((tmp_path / "river" / "metrics.json").read_text())
    assert report["excluded_frames"] == 4 and report["details"]["videos"] == 2
    assert {"strip.png", "0000.mp4"} <= {path.name for path in (tmp_path / "river").iterdir()}
    common = ["--data", "shapes:12,frames=48,size=32", "--split", "test", "--num_clips", 2, "--device", "cpu"]
    parts = ["--denoiser", runs / "shapes_run-d-01", "--diffusion", runs / "shapes_run-g-01-nll"]
    for name, further in (("f-01-mse", [*parts, "--steps", 2]), ("river", ["--steps", 2])):
        output = tmp_path / f"{name}.json"
        arguments = ["--checkpoint", runs / f"shapes_run-{name}", "--frames", 6, "--output", output, *further]
        arguments += ["--metrics", "psnr", "ssim", "energy", "coverage", "--samples", 2]
        command("evaluate.py", "flow_pred", *common, *arguments)
        stored = json.loads(output.read_text())
        scores = {score["name"]: score for score in stored["scores"]}
        assert {"PSNR", "SSIM", "PSNR last frame repeated"} <= set(scores) and stored["excluded_frames"] == 4
        assert len(scores["ES-frame"]["per_frame"]) == 2 and stored["details"]["steps"] == 2
        assert {"PSNR best of 2", "ES-clip", "ES-clip last frame repeated", "CRPS", "coverage"} <= set(scores)
    with pytest.raises(UserError, match="no time between frames"):
        command("generate_flow_videos.py", "--ckpt", runs / "shapes_run-river", "--res", 2)
    arguments = ["--config", river, "--run-name", "river", "--runs", runs, "--num-gpus", 0, "--resume-step", 7]
    with pytest.raises(UserError, match="step 7 is not kept; there are 2"):
        command("train_flow_pred.py", *arguments, *small)


@pytest.mark.parametrize(
    ("texts", "cached"),
    [
        *((False, True), (True, False)),
        *(pytest.param(*both, marks=pytest.mark.exhaustive) for both in ((False, False), (True, True))),
    ],
    ids=["classes-latents", "texts-pictures", "classes-pictures", "texts-latents"],
)
def test_river_is_trained_and_asked_by_class(tmp_path, capsys, cached, texts):
    """The classes are the data's, by a table or by cached embeddings of their names; flags ask for one of them."""
    config, folder = tmp_path / "tiny_river.yaml", tmp_path / "texts"
    values = tiny_values("river", classes="auto", condition="last", backbone="conv")
    values["data"]["data_root"] = data = "digits:12,frames=6,size=4,digits=1"
    config.write_text(yaml.safe_dump(values))
    options = []
    if cached:
        command("encode_latents.py", "--config", config, "--out", tmp_path / "latents", "--device", "cpu")
        options.append(f"data.latents={tmp_path}/latents")
    labels = classes_of(open_clips(data, 2, 4, split="train"))
    arguments = ["--config", config, "--runs", tmp_path, "--num-gpus", 0, "--steps", 2]
    if texts:
        folder.mkdir()
        options.append(f"data.texts={folder}")
        with pytest.raises(UserError, match=f"caption '{labels[0]}'"):
            command("train_flow_pred.py", *arguments, *options)
        cache = CaptionCache(folder)
        cache.fill(labels, lambda caption: (torch.randn(1, 3, 1024), torch.tensor([[True, True, False]])))
    validation = open_clips(data, 2, 4, split="val")
    unknown = {validation.label(index) for index in range(len(validation))} - set(labels)
    if unknown:
        pytest.skip(f"digits {unknown} are in val alone")
    command("train_flow_pred.py", *arguments, *options)
    run_dir = tmp_path / "tiny_run-river"
    stored = yaml.safe_load((run_dir / "config.yaml").read_text())["model"]
    assert stored["classes"] == list(labels) and stored["text_width"] == (1024 if texts else 0)
    if texts:
        loaded = load_model(run_dir).predictor.regressor.class_code
        embeddings, mask = cache.get(labels[0])
        torch.testing.assert_close(loaded.texts[0], embeddings[mask].mean(0))
    shared = ["--checkpoint", run_dir, "--device", "cpu", "--steps", 1]
    for asked in ([], ["--class", labels[0]], ["--class", labels[0], "--guidance", 3]):
        out = tmp_path / "out"
        command("generate_flow_videos.py", *shared, "--num-videos", 1, "--out", out, "--format", "npy", *asked)
        calls = 4 if "--guidance" in asked else 2  # of a midpoint step
        assert f"{calls}.0 network calls" in capsys.readouterr().out
    command("evaluate.py", "flow_pred", *shared, "--data", data, "--split", "train", "--guidance", 2, "--metrics",
            "psnr", "--num_clips", 2, "--output", tmp_path / "report.json")  # fmt: skip
    assert json.loads((tmp_path / "report.json").read_text())["details"]["guidance"] == 2
    with pytest.raises(UserError, match="none of the"):
        command("generate_flow_videos.py", *shared, "--class", "eleven", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "schedule", "warmup", "rates"),
    [
        ([], "sqrt", 5, [0, 2e-4, 4e-4]),
        (["--schedule", "constant"], "constant", 5, [0, 2e-4, 4e-4]),
        (["--warmup_steps", "1"], "sqrt", 1, [0, 1e-3, 7.0714e-4]),
        (["--warmup-steps", "1", "--schedule", "constant"], "constant", 1, [0, 1e-3, 1e-3]),
        (["--warmup_steps", "0", "--final-rate", "1e-3"], "sqrt", 0, [1e-3, 1e-3, 1e-3]),
    ],
)
def test_the_schedule_that_acts_is_the_one_on_record(tmp_path, flags, schedule, warmup, rates):
    """Of the configuration, or of the flags where they are given: in the rates, and in config.yaml for both readers."""
    path = tmp_path / "tiny_river.yaml"
    values = tiny_values()
    values["training"]["optimizer"] |= {"num_warmup_steps": 5, "num_training_steps": 9}
    path.write_text(yaml.safe_dump(values))
    arguments = ["--config", path, "--runs", tmp_path, "--num-gpus", 0, "--log_every", 1, "--steps", 3]
    command("train_flow_pred.py", *arguments, *flags)
    run_dir = tmp_path / "tiny_run-river"
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr/regressor"] for row in rows] == pytest.approx(rates, rel=1e-4)
    stored = yaml.safe_load((run_dir / "config.yaml").read_text())
    optimizer, engine = stored["training"]["optimizer"], stored["engine"]
    assert (optimizer["schedule"], optimizer["num_warmup_steps"], optimizer["num_training_steps"]) == (
        schedule,
        warmup,
        3,
    )
    assert (engine["schedule"], engine["warmup_steps"], engine["steps"]) == (schedule, warmup, 3)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True], ids=["pictures", "latents"])
def test_no_clip_that_is_declared_test_is_trained_on(tmp_path, monkeypatch, capsys, cached):
    """Nor one of val; the run says what it was trained on, and an evaluation how much of what it scores that is."""
    for number, (split, count) in enumerate({"train": 4, "val": 2, "test": 3}.items()):
        for video in range(count):
            pixels = np.full((8, 16, 16, 3), 40 * number + 10 * video, np.uint8)
            path = tmp_path / "data" / split / f"{video}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, pixels, 8)
    config, opened = tmp_path / "tiny_river.yaml", set()
    values = tiny_values()
    values["data"] |= {"data_root": str(tmp_path / "data"), "input_size": 16, "crop_size": 16}
    values["model"]["vector_field_regressor"]["state_res"] = [16, 16]
    config.write_text(yaml.safe_dump(values))
    read_clip = VideoFolder.read_clip

    def watched(self, video, *arguments, **options):
        opened.add(Path(self.place(video)).relative_to(tmp_path / "data").parts[0])
        return read_clip(self, video, *arguments, **options)

    monkeypatch.setattr(VideoFolder, "read_clip", watched)
    options = []
    if cached:
        command("encode_latents.py", "--config", config, "--out", tmp_path / "latents", "--device", "cpu")
        options = [f"data.latents={tmp_path}/latents"]
    command(
        "train_flow_pred.py", "--config", config, "--runs", tmp_path, "--num-gpus", 0, "--steps", 2,
        "--evaluate_every", 1, *options,
    )  # fmt: skip
    assert opened == {"train", "val"}
    run_dir = tmp_path / "tiny_run-river"
    record = json.loads((run_dir / "trained_on.json").read_text())
    assert record["split"] == "train" and record["source"] == str(tmp_path / "data")
    assert sorted(record["ids"]) == [f"train/{video}.mp4" for video in range(4)]
    for split, seen, count in (("train", 4, 4), ("test", 0, 3), (None, 0, 3)):
        output = tmp_path / "report.json"
        chosen = ["--split", split] if split else []
        command(
            "evaluate.py", "flow_pred", "--checkpoint", run_dir, "--data", tmp_path / "data", "--device", "cpu",
            "--steps", 1, "--output", output, *chosen,
        )  # fmt: skip
        report, printed = json.loads(output.read_text()), capsys.readouterr()
        assert (report["clips_trained_on"], report["clips"]) == (seen, count)
        assert f"of these {count} clips, {seen} were in this run's training set" in printed.out
        assert ("WARNING" in printed.err) == (seen > 0)
    command("generate_flow_videos.py", "--config", config, "--checkpoint", run_dir, "--metrics", "--steps", 1,
            "--num-videos", 0, "--device", "cpu", "--format", "npy", "--out", tmp_path / "out")  # fmt: skip
    assert "3 videos" in (printed := capsys.readouterr().out) and "(test, the default)" in printed
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["clips_trained_on"] == 0


def frame_tree(folder: Path) -> None:
    """Two videos of train, one broken; one of test; no val."""
    for split, name, count in (("train", "b", 3), ("train", "a", 2), ("test", "c", 2)):
        path = folder / split / name
        path.mkdir(parents=True)
        for number in range(count):
            pixels = np.full((6, 10, 3), 10 * number + len(name), np.uint8)
            Image.fromarray(pixels).save(path / f"{number:03d}.png")


@pytest.mark.parametrize("layout", ["river", "chunked"])
def test_frame_trees_become_shards_that_both_readers_know(tmp_path, layout):
    """Sorted videos, squeezed frames, missing splits left out; a broken video is named and the others are stored."""
    frame_tree(tmp_path / "frames")
    arguments = ["--out_dir", tmp_path / "h5", "--data_dir", tmp_path / "frames", "--image_size", 8, "--layout", layout]
    command("convert_to_h5.py", *arguments, "--extension", "png")
    clips = open_clips(tmp_path / "h5", frames=2, size=8, split="train", windows="first", dtype="uint8")
    assert [clips.source.length(video) for video in range(len(clips.source))] == [2, 3]
    assert clips[0].shape == (3, 2, 8, 8) and clips[0][0, 1, 0, 0] == 11
    if layout == "river":
        with h5py.File(tmp_path / "h5" / "train" / "shard_0001.hdf5") as file:
            assert sorted(file) == ["0", "1", "len", "videos"] and file["1/2"].compression == "lzf"
            assert file["1/2"].chunks == (8, 8, 3) and file["len/1"].dtype == np.int64
    (tmp_path / "frames" / "train" / "a" / "001.png").write_bytes(b"no picture")
    arguments[1] = tmp_path / "again"
    with pytest.raises(UserError, match=r"001\.png"):
        command("convert_to_h5.py", *arguments)
    assert len(open_clips(tmp_path / "again", frames=3, size=8, split="train")) == 1
    with pytest.raises(UserError, match="shards already"):
        command("convert_to_h5.py", *arguments)


def test_the_originals_shards_give_the_originals_clips(fixtures):
    """Two shards of five videos: lengths, the order of videos, frames, and clips cut and resized as the original."""
    fixture = Fixture(fixtures, "h5_clips")
    folder = fixtures / "flow_pred" / "h5_example"
    source = open_clips(folder, frames=1, size=None).source
    assert [source.length(video) for video in range(len(source))] == fixture.metadata["lengths"]
    for video in range(len(source)):
        assert np.array_equal(source.read(video), fixture[f"in.video{video}"].numpy())
    for case in fixture.metadata["cases"]:
        clips = open_clips(
            folder,
            case["frames_per_sample"],
            case["crop_size"],
            case["skip_frames"] + 1,
            short_side=case["input_size"],
        )
        clip = clips.read(case["index"], case["time_idx"]).transpose(0, 1)
        tolerance = 8e-3 if case["tag"] == "resize_tv" else 0
        torch.testing.assert_close(clip, fixture[f"out.{case['tag']}"], atol=tolerance, rtol=0, msg=case["tag"])
