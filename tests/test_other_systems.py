"""What runs where fork, fcntl and the signals of Linux are missing, as on Windows: everything.

`tests/other_system/sitecustomize.py` takes these away from the processes that are started here, and says how the whole
suite is run without them. Texts and consoles are tested here too.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.lvt.test_scripts import VQVAE, VT
from videodata import write_video

OTHER_SYSTEM = ROOT / "tests" / "other_system"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(OTHER_SYSTEM), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "cp1252"}
PACKAGES = ("videodata", "training", "losses", "evaluation", "video_vae", "vqgan", "lvt", "vvae", "flow_pred")
PACKAGES += ("tokenizer3d",)
SOURCES = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
SOURCES += [ROOT / "main.py", ROOT / "prepare_ucf101.py", *(ROOT / "scripts").rglob("*.py")]
SHAPES = "shapes:8,frames=8,size=32"
CPU = ["--device", "cpu"]
FEW = ["--split", "all", "--num_clips", 2, *CPU]


def python(folder: Path, *words: object) -> str:
    """Output of `python words` on the other system, in `folder`; its exit status must be 0."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-3000:]
    return done.stdout.decode("cp1252")


def script(folder: Path, name: str, *words: object) -> str:
    return python(folder, ROOT / name, *words)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.slow
def test_everything_can_be_imported():
    """Each module and each script."""
    code = "import importlib, sys; sys.path.insert(0, '.'); [importlib.import_module(name) for name in sys.argv[1:]]"
    python(ROOT, "-c", code, *sorted(map(module_name, SOURCES)))


@pytest.mark.exhaustive  # the demonstration below has a run of it, too
def test_video_vae(tmp_path):
    """Videos to an array, training with a worker, its continuation, generation, evaluation."""
    (tmp_path / "films").mkdir()
    for number in range(3):
        frames = np.random.default_rng(number).integers(0, 256, (12, 32, 32, 3), np.uint8)
        write_video(tmp_path / "films" / f"{number}.mp4", frames, 25)
    size = ["--num_frames", 4, "--width", 32, "--height", 32, "--workers", 2]
    script(tmp_path, "prepare_ucf101.py", "--video_folder", "films", "--output_npy_file", "films.npy", *size)
    assert np.load(tmp_path / "films.npy", mmap_mode="r").shape == (9, 4, 32, 32, 3)
    tiny = ["--npy_file", "films.npy", "--preset", "tiny", "--perceptual_weight", 0, "--val_fraction", 0, *CPU]
    tiny += ["--batch_size", 3, "--workers", 1, "--run_dir", "run"]
    for epochs in (1, 2):
        script(tmp_path, "main.py", *tiny, "--num_epochs", epochs)
    common = ["--checkpoint", "run", "--data", "films.npy"]
    script(tmp_path, "scripts/generate_video_vae.py", *common, *CPU, "--num_samples", 2, "--out", "generated")
    assert len(np.load(tmp_path / "generated" / "samples.npy")) == 2
    script(tmp_path, "scripts/evaluate.py", "video_vae", *common, *FEW, "--metrics", "psnr", "--clips_dir", "clips")


@pytest.mark.exhaustive  # the demonstration below has a run of it, too
def test_vqgan(tmp_path):
    """Both stages, evaluation, codes of a data set."""
    size = ["--patch_size", 16, "--num_patches_h", 2, "--num_patches_w", 2, "--downsample_factor", 4, "--latent_dim", 4]
    size += ["--hidden_dims", 8, 16, 16, "--num_embeddings", 16, "--perceptual_weight", 0, "--batch_size", 4]
    steps = ["--steps", 2, "--gan_steps", 2, "--num_workers", 1]
    script(tmp_path, "scripts/train_vqgan.py", "--data_path", SHAPES, *size, *steps, *CPU)
    model = ["--checkpoint", "checkpoints/best_model_gan.pt"]
    script(tmp_path, "scripts/evaluate.py", "vqgan", *model, "--data", SHAPES, *FEW, "--metrics", "psnr")
    script(tmp_path, "scripts/project_vqgan.py", *model, "--data_path", SHAPES, "--out", "codes", *CPU)
    assert list((tmp_path / "codes").glob("*.npy"))


@pytest.mark.exhaustive  # the demonstration below has a run of it, too
def test_vvae(tmp_path):
    """Training and evaluation."""
    tiny = [
        "--config",
        ROOT / "configs/vvae/tiny.yaml",
        "--data",
        "shapes:8,frames=16,size=32",
        "--run_dir",
        "run",
        "--batch_size",
        2,
    ]
    script(tmp_path, "scripts/train_vvae.py", *tiny, "--steps", 2, "--workers", 1, *CPU)
    common = ["--checkpoint", "run", "--data", "shapes:8,frames=16,size=32", *FEW]
    script(tmp_path, "scripts/evaluate.py", "vvae", *common, "--metrics", "psnr", "--clips_dir", "clips")


@pytest.mark.exhaustive  # the demonstration below has a run of it, too
def test_lvt(tmp_path):
    """The VQ-VAE, the codes of its data, the transformer on them."""
    first = ["--config-file", ROOT / "configs/lvt/VQVAE_tiny.yaml"]
    script(tmp_path, "scripts/train_lvt.py", *first, *VQVAE, "OUTPUT_DIR", "vqvae", "SOLVER.MAX_ITER", 2)
    codes = ["DATASETS.TEST", "('shapes:6#train',)", "TEST.EVALUATORS", "CodesExtractor"]
    script(tmp_path, "scripts/train_lvt.py", *first, "--eval-only", *VQVAE, "OUTPUT_DIR", "vqvae", *codes)
    names = [f"TEST.VT_SAMPLER.VQ_VAE.{name}" for name in ("ENCODER_WEIGHTS", "GENERATOR_WEIGHTS", "CODEBOOK_WEIGHTS")]
    tokenizer = [text for name in names for text in (name, "vqvae")]
    tokenizer += ["TEST.VT_SAMPLER.VQ_VAE.CFG", "vqvae/config.yaml"]
    data = ["DATASETS.TRAIN", "('vqvae/inference/shapes-6-train',)", "DATASETS.TEST", "()", "TEST.EVALUATORS", "''"]
    second = ["--config-file", ROOT / "configs/lvt/VT_tiny.yaml", *VT, *tokenizer, *data, "SOLVER.MAX_ITER", 2]
    script(tmp_path, "scripts/train_lvt.py", *second, "OUTPUT_DIR", "vt")
    assert (tmp_path / "vt" / "config.yaml").is_file()


@pytest.mark.exhaustive  # the demonstration below has a run of it, too
def test_flow_pred(tmp_path):
    """Its autoencoder, RIVER, predicted videos."""
    config = ["--config", ROOT / "configs/flow_pred/shapes_river_tiny.yaml"]
    small = ["data.data_root='shapes:12,frames=48,size=32'", "model.vector_field_regressor.inner_dim=16"]
    small += ["model.autoencoder.ckpt_path=runs/shapes_run-autoencoder", "training.optimizer.num_training_steps=2"]
    small += ["training.batching.batch_size=2"]
    script(tmp_path, "scripts/train_flow_autoencoder.py", *config, "--steps", 2, "--batch_size", 2, *CPU, *small)
    script(tmp_path, "scripts/train_flow_pred.py", *config, "--run-name", "river", *CPU, *small)
    model = ["--ckpt", "runs/shapes_run-river", "--num-videos", 1, "--frames", 2, "--out", "videos"]
    script(tmp_path, "scripts/generate_flow_videos.py", *model, *CPU)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demonstration(tmp_path):
    """All stages of one model with next to no effort, in processes that begin anew."""
    words = ["-m", "scripts.demo", "--effort", 0.01, "--models", "vqgan", "--out", tmp_path / "demo"]
    python(ROOT, *words)
    assert (tmp_path / "demo" / "index.html").is_file()


@pytest.mark.slow
def test_a_console_that_lacks_a_letter(tmp_path):
    """A name that the code page of a terminal does not have is written with escapes; the run goes on."""
    code = "from training.cli import run; run(lambda _: print('caf\\u00e9 \\u65e5'))"
    assert python(ROOT, "-c", code).split() == ["café", "\\u65e5"]


def test_texts_name_their_encoding():
    """Windows reads and writes its own code page where none is named."""
    for path in SOURCES:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            modes = [word.value for word in call.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
            is_text = name in ("read_text", "write_text") or (
                name == "open" and any(set(mode) <= set("rwxat+") for mode in modes[:1])
            )
            names = {keyword.arg for keyword in call.keywords}
            of_videos = ast.unparse(call.func) == "av.open"
            assert not is_text or of_videos or "encoding" in names, f"{path.relative_to(ROOT)}:{call.lineno}"
