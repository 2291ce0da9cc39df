"""Trained models of one file each: packed, opened by name in every script, and what they say about themselves."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from scripts import pack_weights
from tests.flow_pred.test_scripts import ROOT
from tests.lvt.test_scripts import VQVAE, VT
from tests.video_vae.test_commands import SMALL as SMALL_VAE
from training import open_pretrained, pretrained
from training.checkpoint import load_checkpoint
from training.cli import explain
from videodata.errors import UserError

CONFIGS = ROOT / "configs"
DATA = "shapes:12,frames=16,size=16"
FLOW = "flow_pred/shapes_{}_tiny.yaml"


def call(script, *arguments):
    """A script's main, as a user would call it."""
    importlib.import_module(script).main([str(argument) for argument in arguments])


def train_video_vae():
    size = ["--frames", 3, "--size", 16, 16, "--preset", "tiny", *SMALL_VAE]
    rest = ["--perceptual_weight", 0, "--device", "cpu", "--batch_size", 2, "--warmup_steps", 0]
    call("main", "--data", DATA, "--run_dir", "runs/vae", "--steps", 2, *size, *rest)
    return {"vae": "runs/vae"}


def train_vqgan():
    sizes = "--patch_size 16 --num_patches_h 1 --num_patches_w 1 --downsample_factor 4 --hidden_dims 8 16 16"
    rest = "--latent_dim 4 --num_embeddings 16 --perceptual_weight 0 --batch_size 4 --gan_steps 0 --steps 2 --no_cuda"
    call("scripts.train_vqgan", "--data", DATA, "--run_dir", "runs/vqgan", *sizes.split(), *rest.split())
    return {"vqgan": "runs/vqgan/stage1"}


def train_vvae():
    call("scripts.train_vvae", "--config", CONFIGS / "vvae" / "tiny.yaml", "--data", DATA, "--run_dir", "runs/vvae",
         "--steps", 2, "--batch_size", 1, "--device", "cpu", "data.size=16", "data.frames=4")  # fmt: skip
    return {"vvae": "runs/vvae"}


def train_lvt():
    config, data = CONFIGS / "lvt", [("DATASETS.TRAIN", f"('{DATA}#train',)"), ("DATASETS.TEST", f"('{DATA}#val',)")]
    common = [*VQVAE, *(word for pair in data for word in pair), "OUTPUT_DIR", "runs/vqvae"]
    call("scripts.train_lvt", "--config-file", config / "VQVAE_tiny.yaml", *common, "SOLVER.MAX_ITER", 2)
    codes = ["DATASETS.TEST", f"('{DATA}#train', '{DATA}#val')", "TEST.EVALUATORS", "CodesExtractor"]
    call("scripts.train_lvt", "--config-file", config / "VQVAE_tiny.yaml", "--eval-only", *common, *codes)
    parts = {path.name.rpartition("-")[2]: path for path in Path("runs/vqvae/inference").iterdir()}
    own = [f"TEST.VT_SAMPLER.VQ_VAE.{name}_WEIGHTS" for name in ("ENCODER", "GENERATOR", "CODEBOOK")]
    call("scripts.train_lvt", "--config-file", config / "VT_tiny.yaml", *VT, "OUTPUT_DIR", "runs/lvt",
         "DATASETS.TRAIN", f"('{parts['train']}',)", "DATASETS.TEST", f"('{parts['val']}',)", "TEST.EVALUATORS", "",
         "SOLVER.MAX_ITER", 2, *(word for key in own for word in (key, "runs/vqvae")))  # fmt: skip
    return {"transformer": "runs/lvt", "vqvae": "runs/vqvae"}


def flow_words(config):
    small = ["model.vector_field_regressor.inner_dim=16", "model.vector_field_regressor.state_res=[4,4]"]
    sizes = ["data.input_size=16", "data.crop_size=16", "data.skip_frames=0", f"data.data_root='{DATA}'"]
    where = ["model.autoencoder.ckpt_path=runs/shapes_run-autoencoder", "training.batching.batch_size=2"]
    return ["--config", CONFIGS / FLOW.format(config), "--runs", "runs", "--steps", 2, *sizes, *where], small


def train_autoencoder():
    words, small = flow_words("river")
    call("scripts.train_flow_autoencoder", *words, *small, "--batch_size", 2)


def train_river():
    train_autoencoder()
    words, small = flow_words("river")
    call("scripts.train_flow_pred", *words, *small, "--run-name", "river", "--num-gpus", 0)
    return {"river": "runs/shapes_run-river", "autoencoder": "runs/shapes_run-autoencoder"}


def train_sde():
    train_autoencoder()
    for name in ("f-01-mse", "g-01-nll"):
        words, small = flow_words(name)
        flow = ["model.f_ckpt_path=runs/shapes_run-f-01-mse", "model.d_ckpt_path=null"] if name[0] == "g" else []
        call("scripts.train_flow_pred", *words, *small, *flow, "--run-name", name, "--num-gpus", 0)
    runs = {"f": "runs/shapes_run-f-01-mse", "g": "runs/shapes_run-g-01-nll"}
    return {**runs, "autoencoder": "runs/shapes_run-autoencoder"}


KINDS = {  # name: model, training, flags of evaluate.py
    "vae-test": ("video_vae", train_video_vae, []),
    "vqgan-test": ("vqgan", train_vqgan, ["--patch_size", 16, "--frames", 2]),
    "vvae-test": ("vvae", train_vvae, ["--chunk_size", 4, "--overlap", 0, "--metrics", "psnr"]),
    "lvt-test": ("lvt", train_lvt, ["--metrics", "psnr"]),
    "river-test": ("flow_pred", train_river, ["--frames", 6, "--steps", 1, "--metrics", "psnr"]),
    "sde-test": ("flow_pred", train_sde, ["--frames", 6, "--steps", 1, "--metrics", "psnr"]),
}


def scores(checkpoint, model, *flags):
    """(the report, its means by name) of an evaluation on the two validation clips."""
    common = ["--data", DATA, "--split", "val", "--device", "cpu", "--out", "report.json"]
    call("scripts.evaluate", model, "--checkpoint", checkpoint, *common, *flags)
    report = json.loads(Path("report.json").read_text())
    return report, {score["name"]: score["mean"] for score in report["scores"]}


def pack(name, parts, *flags):
    model = KINDS[name][0]
    call("scripts.pack_weights", name, "--model", model, "--part", *(f"{k}={v}" for k, v in parts.items()), *flags)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory; its weights/ is where names are looked up."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(pretrained, "LARGEST", 10**8)  # the smallest VideoVAE+ has 17 MB
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What puts the runs of a training into the working directory and gives its parts; each is trained once."""
    done = {}

    def runs_of(train):
        if train not in done:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path_factory.mktemp("trained"))
                done[train] = Path("runs").absolute(), train()
        runs, parts = done[train]
        shutil.copytree(runs, "runs")
        return parts

    return runs_of


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_packed_model_is_the_model_that_was_trained(folder, trained, name):
    """Under its name, without its run folders: the same scores, and none of the clips trained on; in half precision
    nearly the same.
    """
    model, train, flags = KINDS[name]
    parts = trained(train)
    expected = scores(next(iter(parts.values())), model, *flags, *sde_flags(parts))[1]
    pack(name, parts, "--dtype", "fp32", "--evaluation", "report.json", "--command", "make it", "--cpu_seconds", 7)
    half = folder / "weights" / "half.safetensors"
    shutil.move(folder / "weights" / f"{name}.safetensors", "single.safetensors")
    pack(name, parts)
    shutil.move(folder / "weights" / f"{name}.safetensors", half)
    shutil.move("single.safetensors", folder / "weights" / f"{name}.safetensors")
    shutil.move("runs", "elsewhere")
    report, found = scores(name, model, *flags)
    assert found == expected and len(found) > 1
    assert report["checkpoint"] == f"weights/{name}.safetensors" and report["details"]["checkpoint_sha256"]
    assert report["clips_trained_on"] == 0
    assert half.stat().st_size < 0.7 * (folder / "weights" / f"{name}.safetensors").stat().st_size
    near = scores(half, model, *flags)[1]
    assert near["PSNR"] == pytest.approx(found["PSNR"], abs=0.05)
    facts = pretrained.read_facts(folder / "weights" / f"{name}.safetensors")
    assert facts["command"] == "make it" and facts["cpu_seconds"] == 7 and facts["licence"] == "Apache-2.0"
    assert str(folder) not in json.dumps(facts) and len(facts["trained_on"]) <= 2
    assert json.loads((folder / "weights" / f"{name}.json").read_text())["scores"]
    assert open_pretrained(name) is not None


def sde_flags(parts):
    return ["--diffusion", parts["g"]] if "g" in parts else []


@pytest.mark.slow
def test_generation_takes_a_name(folder, trained):
    """Continuations of the transformer and of both predictors, without their run folders."""
    for name in ("lvt-test", "river-test", "sde-test"):
        pack(name, trained(KINDS[name][1]))
        shutil.rmtree("runs")
    call("scripts.generate_videos", "--checkpoint", "lvt-test", "--given", 0, "--samples", 2, "--out", "lvt")
    assert {"video.mp4", "sample_1"} <= {path.name for path in Path("lvt").iterdir()}
    for name in ("river-test", "sde-test"):
        words = ["--data", DATA, "--split", "val", "--num-videos", 1, "--frames", 2, "--format", "mp4"]
        call("scripts.generate_flow_videos", "--checkpoint", name, *words, "--out", name)
        assert (folder / name / "0000.mp4").is_file()
    assert open_pretrained("sde-test").predictor.diffusion is not None


@pytest.mark.slow
def test_the_second_stage_of_a_video_vae_comes_with_it(folder, trained):
    """Its run lies inside that of the first; samples are the same as from the run folder."""
    trained(train_video_vae)
    small = ["--width", 8, "--depth", 1, "--heads", 2, "--batch_size", 4, "--warmup_steps", 0, "--device", "cpu"]
    call("scripts.train_video_vae_prior", "--checkpoint", "runs/vae", "--steps", 2, *small)
    words = ["--prior", "flow", "--num_samples", 2, "--only", "samples", "--out"]
    call("scripts.generate_video_vae", "--checkpoint", "runs/vae", *words, "from_run")
    pack("vae-test", {"vae": "runs/vae", "prior": "runs/vae/prior"}, "--dtype", "fp32")
    shutil.rmtree("runs")
    call("scripts.generate_video_vae", "--checkpoint", "vae-test", *words, "from_name")
    assert Path("from_run/samples.npy").read_bytes() == Path("from_name/samples.npy").read_bytes()


@pytest.mark.slow
def test_what_can_be_wrong_is_one_line(folder, trained, monkeypatch):
    """Names that nobody knows, files of something else, parts that are missing, files that are too large."""
    with pytest.raises(UserError, match=r"vae-tset: no such file, and .*weights/; there are none"):
        scores("vae-tset", "video_vae")
    parts = trained(train_river)
    with pytest.raises(UserError, match=re.escape("names the run runs/shapes_run-autoencoder: give it as a part")):
        pack("river-test", {"river": parts["river"]})
    with pytest.raises(UserError, match="lower-case"):
        pack_weights.main(["River", "--model", "flow_pred", "--part", f"river={parts['river']}"])
    with pytest.raises(UserError, match="lower-case"):
        pack("river-test", {"a/b": parts["river"]})
    Path("foreign.json").write_text("{}")
    with pytest.raises(UserError, match="foreign.json: not an evaluation"):
        pack("river-test", parts, "--evaluation", "foreign.json")
    monkeypatch.setattr(pretrained, "LARGEST", 100)
    with pytest.raises(UserError, match="more than 100"):
        pack("river-test", parts)
    assert not list(Path("weights").glob("*.safetensors*"))
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(pretrained, "WEIGHTS", folder / "weights")
    pack("river-test", parts)
    with pytest.raises(UserError, match=r"river: no .*there are: river-test"):
        open_pretrained("river")
    weights = next(Path(parts["river"]).rglob("*.safetensors"))
    with pytest.raises(UserError, match=r"not a file of scripts/pack_weights.py"):
        open_pretrained(weights)
    assert pretrained.pretrained_folder(weights) == weights  # which the scripts go on to read themselves


def test_a_run_folder_of_weights_alone_is_read(tmp_path):
    """As a trained model is unpacked; one with a training state, even an unfinished one, is not read so."""
    state = {"recipe": "tiny", "step": 3, "config": {"a": 1}, "networks": {"net": {"w": torch.ones(2)}}, "ema": {}}
    (tmp_path / "checkpoints").mkdir()
    from training.checkpoint import write_weights

    write_weights(tmp_path / "checkpoints" / "weights-0000003.safetensors", state)
    assert load_checkpoint(tmp_path)["networks"]["net"]["w"].tolist() == [1, 1]
    (tmp_path / "checkpoints" / "step-0000003.pt").write_bytes(b"cut")
    with pytest.raises(UserError, match="holds no valid checkpoint"):
        load_checkpoint(tmp_path)


def test_the_file_says_what_is_in_it(tmp_path):
    """Keys are <part>/<network>/<key>; tied weights are stored for each key; integers keep their type."""
    from training.checkpoint import write_weights

    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    weights = torch.arange(4.0)
    networks = {"net": {"a": weights, "count": torch.tensor([2**40 + 1])}, "discriminator": {"w": weights}}
    state = {"recipe": "tiny", "step": 3, "config": {"engine": {"run_dir": str(tmp_path / "run")}}, "ema": {}}
    write_weights(run / "weights-0000003.safetensors", {**state, "networks": networks})
    inside = tmp_path / "run" / "second" / "checkpoints"
    inside.mkdir(parents=True)
    write_weights(inside / "weights-0000003.safetensors", {**state, "networks": {}})
    runs = {"main": tmp_path / "run", "prior": tmp_path / "run" / "second"}
    path = pretrained.pack(tmp_path / "x.safetensors", "lvt", runs, "bf16")
    with safetensors.safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["main/net/a", "main/net/count"]
        assert file.get_tensor("main/net/a").dtype == torch.bfloat16
    assert pretrained.read_facts(path)["parts"]["main"]["config"] == {"engine": {"run_dir": "part:main"}}
    folder, second = pretrained.unpack(path).values()
    assert second == folder / "second" and (second / "config.yaml").is_file()
    read = load_checkpoint(folder)
    assert read["networks"]["net"]["count"].item() == 2**40 + 1 and read["networks"]["net"]["a"].dtype == torch.float32
    assert read["config"] == {"engine": {"run_dir": str(folder)}}
    assert pretrained.parts_beside(folder) == {"main": folder, "prior": second} and pretrained.source_of(folder) == path
    assert pretrained.parts_beside(tmp_path) == {} and pretrained.source_of(tmp_path) == tmp_path


def packed(folder):
    """A file of one part in the weights/ of the folder."""
    from training.checkpoint import write_weights

    (folder / "run" / "checkpoints").mkdir(parents=True)
    state = {"recipe": "tiny", "step": 1, "config": {}, "ema": {}, "networks": {"net": {"a": torch.zeros(1)}}}
    write_weights(folder / "run" / "checkpoints" / "weights-0000001.safetensors", state)
    return pretrained.pack(folder / "weights" / "lvt-test.safetensors", "lvt", {"main": folder / "run"})


def test_errors_show_the_name_and_not_where_it_was_unpacked(folder):
    """One name for all that lies in the file; a file elsewhere is named as it was given."""
    path = packed(folder)
    place = pretrained.pretrained_folder("lvt-test")
    told = UserError(f"{place}/checkpoints/weights-0000001.safetensors: no; {place}: is no run")
    assert explain(told) == "lvt-test: no; lvt-test: is no run"
    other = path.rename(folder / "mine.safetensors")
    assert explain(UserError(f"{pretrained.pretrained_folder(other)}, again")) == f"{other}, again"


@pytest.mark.posix
def test_what_a_killed_process_unpacked_is_removed_by_the_next(folder, monkeypatch):
    """And what a living one has unpacked is left alone."""
    path, place = packed(folder), folder / "tmp"
    place.mkdir()
    code = (
        "import os, sys; from training import pretrained\n"
        "print(pretrained.pretrained_folder(sys.argv[1]), flush=True)\n"
        "if sys.argv[2] == 'killed': os.kill(os.getpid(), 9)\n"
        "sys.stdin.read()"
    )

    def process(how):
        started = subprocess.Popen(
            [sys.executable, "-c", code, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=ROOT, env={**os.environ, "TMPDIR": str(place), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return started, Path(started.stdout.readline().strip())

    killed, left = process("killed")
    killed.wait()
    assert left.is_dir()
    living, used = process("living")
    assert used.is_dir() and not left.exists()
    other, _ = process("living")
    other.communicate()
    assert used.is_dir()
    living.communicate()
    assert list(place.iterdir()) == []


def test_a_relative_path_is_of_the_working_directory(tmp_path, monkeypatch):
    """The same name in another directory is another file, also after the first one was unpacked."""
    from training.checkpoint import write_weights

    for number in range(2):
        run = tmp_path / str(number) / "run"
        (run / "checkpoints").mkdir(parents=True)
        networks = {"net": {"a": torch.tensor([float(number)])}}
        state = {"recipe": "tiny", "step": 1, "config": {}, "ema": {}, "networks": networks}
        write_weights(run / "checkpoints" / "weights-0000001.safetensors", state)
        monkeypatch.chdir(run.parent)
        folder = pretrained.unpack(pretrained.pack(Path("x.safetensors"), "lvt", {"main": run}))["main"]
        assert load_checkpoint(folder)["networks"]["net"]["a"].item() == number
        assert pretrained.source_of(folder) == Path("x.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"folder": "../x"},
        {"folder": "/x"},
        {"step": "x"},
        {"config": None},
        {"config": {"a": "part:other"}},
        {"trained_on": 7},
        {"more": 1},
    ],
)
def test_a_damaged_file_is_one_line_and_unpacks_nothing_elsewhere(tmp_path, change):
    """What a file says of its parts is checked before a folder is made."""
    part = {"folder": "net", "recipe": "tiny", "step": 3, "config": {}, "trained_on": None, **change}
    facts = {"format": 1, "model": "vqgan", "trained_on": [], "parts": {"net": part}}
    path = tmp_path / "x.safetensors"
    save_file({"net/model/w": torch.zeros(2)}, path, metadata={"pretrained": json.dumps(facts)})
    with pytest.raises(UserError, match="x.safetensors: ") as caught:
        pretrained.unpack(path)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == [path]
