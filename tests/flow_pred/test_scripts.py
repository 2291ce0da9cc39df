"""The commands, as a user types them."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from flow_pred.config import plain_config
from flow_pred.latents import LatentSpace
from flow_pred.run import build_recipe, configure, engine_settings
from tests.flow_pred.fixture_files import Fixture
from videodata import open_clips
from videodata.errors import UserError

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
    sde = [f"--ckpt-{part[0]}={runs}/shapes_run-{part}" for part in ("f-01-mse", "d-01", "g-01-nll")]
    shared = ["--num-videos", 2, "--metrics", "--frames", 2]
    command("generate_flow_videos.py", *sde, *shared, "--res", 4, "--context", 4, "--out", tmp_path / "sde")
    assert "PSNR in between" in capsys.readouterr().out
    command("generate_flow_videos.py", "--ckpt", runs / "shapes_run-river", *shared, "--out", tmp_path / "river")
    with h5py.File(tmp_path / "sde" / "videos.h5") as file:
        assert file["generated_videos"].shape == (2, 12, 3, 32, 32)
    report = json.loads((tmp_path / "river" / "metrics.json").read_text())
    assert report["excluded_frames"] == 4 and report["details"]["videos"] == 2
    assert {"strip.png", "0000.mp4"} <= {path.name for path in (tmp_path / "river").iterdir()}
    common = ["--data", "shapes:12,frames=48,size=32", "--split", "test", "--num_clips", 2, "--device", "cpu"]
    parts = ["--denoiser", runs / "shapes_run-d-01", "--diffusion", runs / "shapes_run-g-01-nll"]
    for name, further in (("f-01-mse", parts), ("river", ["--steps", 2])):
        output = tmp_path / f"{name}.json"
        arguments = ["--checkpoint", runs / f"shapes_run-{name}", "--frames", 6, "--output", output, *further]
        command("evaluate.py", "flow_pred", *common, *arguments)
        stored = json.loads(output.read_text())
        scores = {score["name"]: score for score in stored["scores"]}
        assert {"PSNR", "SSIM", "PSNR last frame repeated"} <= set(scores) and stored["excluded_frames"] == 4
        assert len(scores["PSNR"]["per_frame"]) == 2 and stored["details"]["steps"] == 2
    with pytest.raises(UserError, match="no time between frames"):
        command("generate_flow_videos.py", "--ckpt", runs / "shapes_run-river", "--res", 2)
    arguments = ["--config", river, "--run-name", "river", "--runs", runs, "--num-gpus", 0, "--resume-step", 7]
    with pytest.raises(UserError, match="newest is 2"):
        command("train_flow_pred.py", *arguments, *small)


@pytest.mark.parametrize(
    ("flags", "schedule", "warmup"),
    [([], "sqrt", 5), (["--schedule", "constant"], "constant", 5), (["--warmup_steps", "2"], "sqrt", 2)],
)
def test_the_schedule_that_acts_is_the_one_on_record(tmp_path, flags, schedule, warmup):
    """Of the configuration, or of the flags where they are given: for the recipe, the loop and config.yaml alike."""
    values = {"training.optimizer.num_warmup_steps": 5, "model.autoencoder": "{type: identity}"}
    overrides = [f"{key}={value}" for key, value in values.items()]
    arguments = ["--config", str(ROOT / "configs" / "flow_pred" / "shapes_river_tiny.yaml"), "--run-name", "x"]
    args = module_of("train_flow_pred.py").build_parser().parse_args([*arguments, *flags, *overrides])
    config = configure(args)
    settings = engine_settings(args, config, tmp_path)
    assert (settings.schedule, settings.warmup_steps) == (schedule, warmup)
    stored = plain_config(config)["training"]["optimizer"]
    assert (stored["schedule"], stored["num_warmup_steps"]) == (schedule, warmup)
    config.model.vector_field_regressor.inner_dim = 16
    scale = build_recipe(config, LatentSpace(torch.nn.Identity())).learning_rate_scale(1)
    assert scale is None if schedule == "constant" else scale == pytest.approx(1 / warmup)


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
