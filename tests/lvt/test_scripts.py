"""The commands from end to end: train, extract codes, train on them, evaluate, continue given frames."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lvt.evaluators import begin_samples
from lvt.train import VQVAERecipe
from scripts import evaluate, generate_videos, train_lvt
from tests.training import faults
from training.cli import run
from videodata import read_video

ROOT = Path(__file__).resolve().parents[2]
VQVAE = [
    "MODEL.ENCODER.NF", 16, "MODEL.GENERATOR.NF", 16, "MODEL.GENERATOR.IN_CHANNELS", 16, "MODEL.CODEBOOK.DIM", 16,
    "MODEL.CODEBOOK.SIZE", 32, "INPUT.SIZE", 16, "SOLVER.IMS_PER_BATCH", 4, "INPUT.N_FRAMES_PER_VIDEO_TEST", 4,
    "DATASETS.TRAIN", "('shapes:6#train',)", "DATASETS.TEST", "('shapes:6#val',)", "MODEL.DEVICE", "cpu",
    "SOLVER.WARMUP_ITERS", 2,
]  # fmt: skip
VT = [
    "MODEL.AUTOREGRESSIVE.VT.N_PRIME", 1, "MODEL.AUTOREGRESSIVE.VT.NV", 32, "MODEL.AUTOREGRESSIVE.VT.D", 24,
    "MODEL.AUTOREGRESSIVE.VT.STRIDE", "(4, 1, 1)", "MODEL.AUTOREGRESSIVE.VT.BLOCKS_E", "((1, 4, 4),)",
    "MODEL.AUTOREGRESSIVE.VT.BLOCKS_D", "((1, 4, 4),)", "MODEL.AUTOREGRESSIVE.VT.N_HEAD_E", "(2,)",
    "MODEL.AUTOREGRESSIVE.VT.N_HEAD_D", "(2,)", "INPUT.SIZE", 16, "INPUT.N_FRAMES_PER_VIDEO_TRAIN", 4,
    "INPUT.N_FRAMES_PER_VIDEO_TEST", 4, "SOLVER.IMS_PER_BATCH", 1, "MODEL.DEVICE", "cpu", "SOLVER.WARMUP_ITERS", 2,
    "TEST.VT_SAMPLER.N_PRIME", 2, "TEST.VT_SAMPLER.NUM_SAMPLES", 2,
]  # fmt: skip


def config(name):
    return ROOT / "configs" / "lvt" / name


def call(main, *arguments):
    """Exit status of a script, in this process."""
    with pytest.raises(SystemExit) as ended:
        run(main, [str(argument) for argument in arguments])
    return ended.value.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of the VQ-VAE with codes of both splits, and one of the transformer."""
    folder = tmp_path_factory.mktemp("lvt")
    vqvae, vt = folder / "vqvae", folder / "vt"
    assert call(
        train_lvt.main, "--config-file", config("VQVAE_tiny.yaml"), *VQVAE, "SOLVER.MAX_ITER", 3, "OUTPUT_DIR", vqvae
    ) == 0  # fmt: skip
    assert call(
        train_lvt.main, "--config-file", config("VQVAE_tiny.yaml"), "--eval-only", *VQVAE, "OUTPUT_DIR", vqvae,
        "DATASETS.TEST", "('shapes:6#train', 'shapes:6#val')", "TEST.EVALUATORS", "MSEEvaluator,CodesExtractor",
    ) == 0  # fmt: skip
    codes = vqvae / "inference"
    weights = [f"TEST.VT_SAMPLER.VQ_VAE.{name}_WEIGHTS" for name in ("ENCODER", "GENERATOR", "CODEBOOK")]
    options = [*VT, *(text for key in weights for text in (key, vqvae))]
    options += ["TEST.VT_SAMPLER.VQ_VAE.CFG", vqvae / "config.yaml", "OUTPUT_DIR", vt]
    data = ["DATASETS.TRAIN", f"('{codes}/shapes-6-train',)", "DATASETS.TEST", f"('{codes}/shapes-6-val',)"]
    assert call(
        train_lvt.main, "--config-file", config("VT_tiny.yaml"), *options, *data, "SOLVER.MAX_ITER", 3,
        "TEST.EVALUATORS", "BitsEvaluator,VTSampler,ContinuationEvaluator", "VIS_PERIOD", 3,
        "DATASETS.VIDEOS", "('shapes:6#val',)",
    ) == 0  # fmt: skip
    return {"vqvae": vqvae, "vt": vt, "options": options, "folder": folder}


def test_both_networks_are_evaluated(trained, tmp_path):
    """evaluate.py lvt: continuations with bits, best of the samples and baselines; reconstructions of the VQ-VAE."""
    common = (
        "--data",
        "shapes:6",
        "--split",
        "all",
        "--num_clips",
        2,
        "--device",
        "cpu",
        "--output",
        tmp_path / "e.json",
    )
    metrics = ("psnr", "energy", "coverage", "bits", "codebook", "diversity", "fvd", "kvd", "jedi")
    assert call(
        evaluate.main, "lvt", "--checkpoint", trained["vt"], *common, "--metrics", *metrics, "--samples", 2,
        "--allow-random-features", "--force", "--feature_cache", "none",
    ) == 0  # fmt: skip
    stored = json.loads((tmp_path / "e.json").read_text())
    scores = {score["name"]: score for score in stored["scores"]}
    assert {
        "PSNR", "PSNR best of 2", "PSNR last frame repeated", "PSNR reconstruction of the true frames",
        "bits per token", "bits per subpixel", "diversity RMSE", "FVD-RANDOM", "codebook usage codebook 2",
        "ES-clip", "ES-frame", "CRPS", "coverage", "CRPS last frame repeated", "KVD-RANDOM", "JEDi-RANDOM unbiased",
    } <= set(scores)  # fmt: skip
    assert stored["excluded_frames"] == 2 and stored["details"]["codes_per_frame"] == 2 * 4 * 4
    assert scores["bits per token"]["tokens"] == stored["details"]["clips"] * 2 * 2 * 4 * 4
    assert call(evaluate.main, "lvt", "--checkpoint", trained["vqvae"], *common, "--metrics", "psnr", "codebook") == 0
    stored = json.loads((tmp_path / "e.json").read_text())
    assert stored["excluded_frames"] == 0 and stored["scores"][0]["name"] == "PSNR"
    with pytest.raises(SystemExit):
        evaluate.main(["lvt", "--checkpoint", str(trained["vt"]), "--metrics", "cucumber"])


def test_everything_that_is_promised_is_written(trained):
    """Run folder, the original's weight files, codes of all frames, samples, evaluation.json."""
    vqvae, vt = trained["vqvae"], trained["vt"]
    for group in ("netE", "netG", "netC"):
        assert (vqvae / group / "last_checkpoint").read_text() == "model_final.pth"
    stored = torch.load(vt / "netG" / "model_final.pth", weights_only=True)
    assert stored["iteration"] == 2 and "decoder.block_local_attention.0.mask" in stored["model"]
    results = json.loads((vqvae / "evaluation.json").read_text())["shapes:6#val"]
    assert 0 < results["reconstruction"]["MSE"] < 1
    codes = np.load(vqvae / "inference" / "shapes-6-train" / "codes.npy", mmap_mode="r", allow_pickle=False)
    assert codes.dtype == np.int16 and codes.shape[1:] == (64, 2, 4, 4)
    scores = json.loads((vt / "evaluation.json").read_text())
    (likelihood,) = [tasks["likelihood"] for tasks in scores.values() if "likelihood" in tasks]
    assert 0 < likelihood["bits_per_dim"] < 8
    continuation = scores["shapes:6#val"]["continuation"]
    assert continuation["psnr_sample"] <= continuation["psnr_best_of_2"] < continuation["psnr_last_frame_repeated"]
    assert len(read_video(vt / "inference" / "continuation" / "shapes-6-val" / "0_sample_1.mp4")[0]) == 4
    samples = sorted((vt / "inference" / "samples" / "shapes-6-val").iterdir())
    assert [path.name for path in samples] == ["video_0_0", "video_1_0"]
    assert np.load(samples[0] / "codes.npy", allow_pickle=False).shape == (4, 2, 4, 4)
    assert (vt / "samples" / "step-0000003" / "continuation.mp4").is_file()


def test_killed_sampling_goes_on_where_it_stopped(trained):
    """VTSampler makes what is missing, the same as before, and keeps what is there; other settings begin again."""
    folder = trained["vt"] / "inference" / "samples" / "shapes-6-val"
    data = ["DATASETS.TEST", f"('{trained['vqvae']}/inference/shapes-6-val',)", "TEST.EVALUATORS", "VTSampler"]
    command = ["--config-file", config("VT_tiny.yaml"), "--eval-only", *trained["options"], *data]
    paths = [folder / f"video_{sample}_0" / "codes.npy" for sample in range(2)]
    codes = [np.load(path, allow_pickle=False) for path in paths]
    mark = paths[0].with_name("mark")
    mark.touch()
    paths[1].unlink()
    assert call(train_lvt.main, *command) == 0
    assert mark.exists() and all(map(np.array_equal, codes, map(np.load, paths)))
    assert call(train_lvt.main, *command, "SEED", 1) == 0
    assert not mark.exists() and not np.array_equal(np.load(paths[0]), codes[0])


def test_given_frames_are_continued(trained, clips):
    """PNGs and videos of all samples: same given frames, each sample as its own seed says."""
    folder, given, alone = (trained["folder"] / name for name in ("continued", "given", "alone"))
    given.mkdir()
    for number in (0, 1, 2, 10):
        with Image.open(clips / "lvt_bair_priming" / f"{min(number, 4)}.png") as image:
            image.resize((16, 16)).save(given / f"{number}.png")
    command = ["--config-file", config("VT_tiny.yaml"), "--video-dir", given]
    options = [*trained["options"], "MODEL.GENERATOR.WEIGHTS", trained["vt"], "TEST.VT_SAMPLER.N_PRIME", 3]
    options += ["TEST.VT_SAMPLER.NUM_SAMPLES"]
    assert call(generate_videos.main, *command, "--seed", 5, *options, 3, "OUTPUT_DIR", folder) == 0
    frames = [np.asarray(Image.open(folder / f"{number}.png")) for number in range(4)]
    assert frames[0].shape == (16, 16, 3) and not (folder / "4.png").exists()
    assert len(read_video(folder / "video.mp4")[0]) == 4
    assert read_video(folder / "samples.mp4")[0].shape == (4, 16, 48, 3)
    other = [np.asarray(Image.open(folder / "sample_2" / f"{number}.png")) for number in range(4)]
    assert all(np.array_equal(frames[number], other[number]) for number in range(3))
    # One sample with the last one's seed, longer than the model's clips, in half precision.
    longer = ["--seed", 7, "--frames", 6, "--precision", "bf16"]
    assert call(generate_videos.main, *command, *longer, *options, 1, "OUTPUT_DIR", alone) == 0
    assert "PRECISION: bf16" in (alone / "config.yaml").read_text(encoding="utf-8")
    assert len(list(alone.glob("*.png"))) == 6
    assert all(np.array_equal(np.asarray(Image.open(alone / f"{number}.png")), other[number]) for number in range(3))
    # Nothing given: no folder is needed.
    nothing = ["--config-file", config("VT_tiny.yaml"), *options, 1, "TEST.VT_SAMPLER.N_PRIME", 0]
    assert call(generate_videos.main, *nothing, "OUTPUT_DIR", trained["folder"] / "invented") == 0
    assert read_video(trained["folder"] / "invented" / "video.mp4")[0].shape == (4, 16, 16, 3)
    absent = trained["folder"] / "absent"
    assert call(generate_videos.main, "--config-file", config("VT_tiny.yaml"), *options, 1, "OUTPUT_DIR", absent) == 2
    assert not absent.exists()


def test_a_digit_is_asked_for(tmp_path, monkeypatch, capsys):
    """Labels go from the videos through the codes into the transformer, which is asked for one by its name.

    The last line of the VQ-VAE's training is the command that encodes the videos.
    """
    monkeypatch.chdir(tmp_path)
    data = "digits:12,frames=4,size=16,digits=1"
    vqvae = ["--config-file", config("VQVAE_tiny.yaml"), *VQVAE]
    assert call(train_lvt.main, *vqvae, "SOLVER.MAX_ITER", 2, "OUTPUT_DIR", "v", "DATASETS.TRAIN", f"('{data}',)",
                "DATASETS.TEST", f"('{data}',)") == 0  # fmt: skip
    following = capsys.readouterr().out.strip().splitlines()[-1]
    script, *words = following.split("next: python ")[1].split()
    assert script == "scripts/train_lvt.py" and call(train_lvt.main, *words) == 0
    codes = "v/inference/digits-12,frames=4,size=16,digits=1"
    classes = ["MODEL.AUTOREGRESSIVE.VT.CLASS_NUM", -1, "MODEL.AUTOREGRESSIVE.VT.CLASS_DROPOUT", 0.5]
    command = [
        "--config-file",
        config("VT_tiny.yaml"),
        "--vqvae",
        "v",
        "--run_dir",
        "t",
        "--data",
        codes,
        *VT,
        *classes,
    ]
    assert call(train_lvt.main, *command, "SOLVER.MAX_ITER", 2, "MODEL.AUTOREGRESSIVE.VT.N_PRIME", 0) == 0
    ask = ["--config-file", "t/config.yaml", "--checkpoint", "t", "--given", 0, "--samples", 1, "--device", "cpu"]
    names = json.loads((tmp_path / "v/inference/digits-12,frames=4,size=16,digits=1-train/codes.json").read_text())
    name = names["videos"][0]["label"]
    assert name in "0123456789"
    made = {}
    for number, extra in enumerate([[], ["--class", name], ["--class", name, "--guidance", 9]]):
        assert call(generate_videos.main, *ask, *extra, "--out", f"o{number}") == 0
        made[number] = read_video(tmp_path / f"o{number}" / "video.mp4")[0]
    assert not np.array_equal(made[1], made[2])
    assert call(generate_videos.main, *ask, "--class", "eleven", "--out", "x") == 2
    assert "class 'eleven' is none of the" in capsys.readouterr().err
    common = [
        "--checkpoint",
        "t",
        "--data",
        data,
        "--split",
        "train",
        "--num_clips",
        2,
        "--given",
        1,
        "--device",
        "cpu",
    ]
    sampler = ["--guidance", 2, "--precision", "bf16"]
    assert call(evaluate.main, "lvt", *common, "--metrics", "psnr", "bits", *sampler, "--out", "e.json") == 0
    assert json.loads((tmp_path / "e.json").read_text())["details"]["guidance"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eval-only", *VQVAE, "OUTPUT_DIR", "absent"], "train first"),
        (
            [*VQVAE, "DATASETS.TRAIN", "('bair_train',)", "OUTPUT_DIR", "x"],
            "datasets/bair/train does not exist; "
            "python scripts/prepare_data.py bair --format frames --out datasets/bair makes it; frames that you have",
        ),
        ([*VQVAE, "TEST.EVALUATORS", "BitsEvaluator", "--eval-only"], "flags stand before the KEY VALUE pairs"),
        (["--eval-only", *VQVAE, "TEST.EVALUATORS", "BitsEvaluator"], "does not fit this model"),
        ([*VQVAE, "SOLVER.OPTIMIZER_NAME", "sgd", "OUTPUT_DIR", "x"], "use adam, adamw, muon, rmsprop"),
        ([*VQVAE, "TEST.EVALUATORS", "VTSampler", "OUTPUT_DIR", "x"], "does not fit this model"),
        (["--num-machines", 2, *VQVAE], "--dist-url"),
        ([*VQVAE, "SOLVER.MAX_ITER", 0], "SOLVER.MAX_ITER must be at least 1"),
        (["--resume", *VQVAE, "SOLVER.EMA", 2], "SOLVER.EMA must be 0.0 .. 1.0"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    """Missing weights are never replaced by random ones; missing data and wrong options say what to do."""
    monkeypatch.chdir(tmp_path)
    assert call(train_lvt.main, "--config-file", config("VQVAE_tiny.yaml"), *arguments) == 2
    assert message in capsys.readouterr().err


def test_missed_expectations_end_with_status_1(trained):
    """TEST.EXPECTED_RESULTS compares a result with its value and tolerance."""
    arguments = ["--config-file", config("VQVAE_tiny.yaml"), "--eval-only", *VQVAE, "OUTPUT_DIR", trained["vqvae"]]
    arguments += ["TEST.EVALUATORS", "MSEEvaluator", "TEST.EXPECTED_RESULTS"]
    assert call(train_lvt.main, *arguments, "(('reconstruction', 'MSE', 0.5, 0.5),)") == 0
    assert call(train_lvt.main, *arguments, "(('reconstruction', 'MSE', 9.0, 0.1),)") == 1


def in_a_process(monkeypatch, fault, *arguments):
    """Exit status of scripts/train_lvt.py in a forked process that suffers a fault."""
    with monkeypatch.context() as patch:
        faults.install(fault, patch.setattr)
        arguments = (train_lvt.main, list(map(str, arguments)))
        process = multiprocessing.get_context("fork").Process(target=run, args=arguments)
        process.start()
        process.join(120)
    return process.exitcode


@pytest.mark.parametrize(("network", "fault", "status"), [("vqvae", "kill_in_step@5", -9), ("vt", "full_in_step@5", 2)])
@pytest.mark.posix
def test_a_run_that_was_cut_off_continues_with_the_same_bits(trained, tmp_path, monkeypatch, network, fault, status):
    """After SIGKILL, or an exception in a step, a run goes on at the next step: same losses, same final weights."""
    folders = {name: tmp_path / name for name in ("straight", "cut_off")}
    arguments = ["--config-file", config("VQVAE_tiny.yaml"), *VQVAE]
    if network == "vt":
        codes = f"('{trained['vqvae']}/inference/shapes-6-train',)"
        arguments = ["--config-file", config("VT_tiny.yaml"), *trained["options"], "DATASETS.TRAIN", codes]
        arguments += ["DATASETS.TEST", "()"]
    arguments += ["SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2, "LOG_PERIOD", 1, "TEST.EVALUATORS", "''"]
    arguments += ["OUTPUT_DIR"]
    assert call(train_lvt.main, *arguments, folders["straight"]) == 0
    assert in_a_process(monkeypatch, fault, *arguments, folders["cut_off"]) == status
    assert call(train_lvt.main, "--resume", "never", *arguments, folders["cut_off"]) == 2
    assert call(train_lvt.main, *(["--resume"] if network == "vt" else []), *arguments, folders["cut_off"]) == 0
    losses, weights = [], []
    for folder in folders.values():
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        names = [name for name in rows[0] if name.startswith(("loss/", "train/"))]
        losses.append([[row["step"], *map(row.get, names)] for row in rows])
        files = [torch.load(file, weights_only=True)["model"] for file in sorted(folder.glob("net?/model_final.pth"))]
        weights.append([value for file in files for value in file.values()])
    assert losses[0] == losses[1] and [row[0] for row in losses[0]] == [1, 2, 3, 4, 5, 6]
    assert len(weights[0]) == len(weights[1]) > 10 and all(map(torch.equal, *weights))


@pytest.mark.posix
def test_an_exception_that_nobody_expects_ends_with_a_status_other_than_0(tmp_path, monkeypatch, capfd):
    """A bug in a training step is not swallowed."""
    monkeypatch.setattr(VQVAERecipe, "losses", lambda *_: 1 / 0)
    arguments = ["--config-file", config("VQVAE_tiny.yaml"), *VQVAE, "SOLVER.MAX_ITER", 2, "OUTPUT_DIR", tmp_path]
    assert in_a_process(monkeypatch, "", *arguments) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_samples_of_before_the_precision_stay(tmp_path):
    """Its key is younger than they are; they were made in single precision."""
    made_from = {"seed": 0, "sampler": {"TOP_K": 0}}
    for name in ("fp32", "bf16"):
        (tmp_path / f"{name}.json").write_text(json.dumps(made_from))
        (tmp_path / name / "video_0_0").mkdir(parents=True)
        begin_samples(tmp_path / name, {"seed": 0, "sampler": {"TOP_K": 0, "PRECISION": name}})
        assert (tmp_path / name / "video_0_0").exists() == (name == "fp32")
