"""Configuration files, KEY VALUE overrides and learning-rate schedules are those of the original."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from lvt import config as configuration
from lvt import evaluators
from lvt import train as training_of_lvt
from lvt.config import is_transformer
from lvt.files import build_transformer, build_vqvae
from lvt.solver import schedule
from scripts import train_lvt
from training.config import dotted_keys
from training.optim import learning_rate_scale
from videodata.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "lvt"
SHIPPED = {
    "vqvae": ("Base-VQVAE", "PR-DVQVAE2", "K-DVQVAE"),
    "vt": ("DSFVT", "DSSVT", "DSTSVT", "KDSFVT"),
}
NAMES = [(folder, name) for folder, names in SHIPPED.items() for name in names]
PARAMETERS = {  # of the published models
    "PR-DVQVAE2": 3_684_867, "K-DVQVAE": 4_997_123, "DSFVT": 49_872_384, "DSSVT": 50_391_808, "DSTSVT": 59_830_528,
    "KDSFVT": 49_872_384,
}  # fmt: skip
OUR_PATHS = ("CFG", "WEIGHTS")  # where the weights lie is up to the project
OWN_DEFAULTS = {"MODEL.DEVICE": "auto", "MODEL.META_ARCHITECTURE": ""}


def value(config, dotted):
    for key in dotted.split("."):
        config = config[key]
    return config


@pytest.fixture(scope="module")
def published(fixtures):
    """Every key with its default, and per file the values that differ."""
    return json.loads((fixtures / "lvt" / "configs_merged.json").read_text())


def test_every_documented_key_exists_with_its_default(published):
    """The original's keys are all known; defaults differ only where its own would stop at once."""
    for key, default in published["defaults"].items():
        assert value(configuration.DEFAULTS, key) == OWN_DEFAULTS.get(key, default), key


@pytest.mark.parametrize(("folder", "name"), NAMES)
def test_files_in_original_hold_the_published_values(published, folder, name):
    """configs/lvt/original/<name>.yaml gives every merged value of the published file."""
    config = configuration.load_config(CONFIGS / "original" / f"{name}.yaml")
    expected = {**published["defaults"], **OWN_DEFAULTS, **published[f"{folder}/{name}"]}
    for key, wanted in expected.items():
        if not key.endswith(OUR_PATHS):
            assert value(config, key) == wanted, key


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_published_sizes(name):
    """The default files and those of the original recipe build networks with the published number of parameters."""
    for path in (CONFIGS / f"{name}.yaml", CONFIGS / "original" / f"{name}.yaml"):
        config = configuration.load_config(path)
        with torch.device("meta"):
            model = build_transformer(config) if is_transformer(config) else build_vqvae(config)
        codebooks = [] if is_transformer(config) else [book.embedding.weight for book in model.quantizer.ve]
        assert sum(p.numel() for p in [*model.parameters(), *codebooks]) == PARAMETERS[name]


def test_overrides_have_the_last_word():
    """KEY VALUE pairs replace values of files, tuples and numbers as they are written on a command line."""
    pairs = ["MODEL.AUTOREGRESSIVE.VT.KERNEL", "(5, 1, 1)", "DATASETS.TEST", "('a', 'b')", "SOLVER.LR_G", "1e-5"]
    config = configuration.load_config(
        CONFIGS / "DSFVT.yaml", [*pairs, "OUTPUT_DIR", "runs/x", "SOLVER.CLIP_NORM", "2"]
    )
    assert value(config, "MODEL.AUTOREGRESSIVE.VT.KERNEL") == [5, 1, 1]
    assert config["DATASETS"]["TEST"] == ["a", "b"]
    assert (config["SOLVER"]["LR_G"], config["SOLVER"]["CLIP_NORM"]) == (1e-5, 2.0)
    assert config["OUTPUT_DIR"] == "runs/x"


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["MODEL.CODEBOK.NUM", "2"], "did you mean 'MODEL.CODEBOOK"),
        (["SOLVER.MAX_ITER", "many"], "must be int"),
        (["SOLVER", "3"], "group of keys"),
        (["SEED"], "no value"),
    ],
)
def test_wrong_overrides_are_one_clear_line(pairs, message):
    """Unknown keys name the nearest one; values of another type say which is wanted."""
    with pytest.raises(UserError, match=message):
        configuration.load_config(CONFIGS / "PR-DVQVAE2.yaml", pairs)


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("PIXEL_STD", ["x", 0.5, 0.5], "pixel_std"),
        ("PIXEL_MEAN", "1", "pixel_mean"),
        ("LOSS_PIXEL_MODE", 3, "pixel_loss"),
    ],
)
def test_a_model_of_other_types_is_one_clear_line(key, value, name):
    """The configuration of a run is a file that anybody may have edited."""
    model = configuration.load_config(CONFIGS / "VQVAE_tiny.yaml")["MODEL"]
    with pytest.raises(UserError, match=f"MODEL.{name}"):
        configuration.vqvae_config({**model, key: value})


def test_a_base_file_is_refused_as_a_model():
    """Base-VQVAE.yaml takes one channel and gives three: it says that it is only a base."""
    with pytest.raises(UserError, match="only a base"):
        build_vqvae(configuration.load_config(CONFIGS / "Base-VQVAE.yaml"))


@pytest.mark.parametrize("name", ["multistep_linear", "multistep_constant", "cosine_linear"])
def test_learning_rates_equal_the_original(load_fixture, name):
    """The rate at every step of the warm-up schedules."""
    fixture = load_fixture("units")
    options, expected = fixture.config["lr"][name], fixture[f"lr/{name}"]
    solver = {
        "LR_SCHEDULER_NAME": "WarmupCosineLR" if "max_iters" in options else "WarmupMultiStepLR",
        "STEPS": options.get("milestones", []), "GAMMA": options.get("gamma", 0.1),
        "MAX_ITER": options.get("max_iters"),
        "WARMUP_ITERS": options["warmup_iters"], "WARMUP_FACTOR": options["warmup_factor"],
        "WARMUP_METHOD": name.rsplit("_", 1)[1],
    }  # fmt: skip
    scales = [learning_rate_scale(step, solver["MAX_ITER"], **schedule(solver)) for step in range(len(expected))]
    rates = [scale * options["base_lr"] for scale in scales]
    assert_close(torch.tensor(rates).double(), expected)


@pytest.mark.parametrize("kind", ["normal", "xavier_uniform"])
def test_fresh_weights_have_the_spread_that_the_file_names(kind):
    """INIT_TYPE sets convolutions and linear layers; biases are zero, other weights keep their own rule."""
    torch.manual_seed(0)
    changes = ["MODEL.INIT_TYPE", kind, "MODEL.AUTOREGRESSIVE.VT.KERNEL", "(7, 1, 1)"]
    model = build_transformer(configuration.load_config(CONFIGS / "VT_tiny.yaml", changes))
    conv, linear = model.encoder.conv.weight, model.ch_predictor.U[0].weight  # (64, 256, 7, 1, 1), (128, 128)
    expected = {"normal": (1.04 * 64 * 256 * 7) ** -0.5, "xavier_uniform": (2 / (7 * (64 + 256))) ** 0.5}
    assert_close(conv.std().item(), expected[kind], rtol=0.02, atol=0)
    assert_close(
        linear.std().item(), {"normal": (1.04 * 128) ** -0.5, "xavier_uniform": 128**-0.5}[kind], rtol=0.03, atol=0
    )
    assert not model.encoder.conv.bias.any()
    assert_close(model.encoder.slice_embedding.weight.std().item(), 1.0, rtol=0.2, atol=0)


def test_all_files_load():
    """Every file in configs/lvt has only known keys of the right type."""
    files = sorted(CONFIGS.rglob("*.yaml"))
    assert len(files) >= 16
    for file in files:
        assert dotted_keys(configuration.load_config(file))


def test_a_bare_name_is_a_tuple_of_one():
    """As the documented evaluation has it: DATASETS.TEST "kinetics_train_seq"; numbers still need a tuple."""
    base = CONFIGS / "Base-VQVAE.yaml"
    pairs = ["TEST.EVALUATORS", "CodesExtractor", "DATASETS.TEST", "kinetics_train_seq"]
    config = configuration.load_config(base, pairs)
    assert config["DATASETS"]["TEST"] == ["kinetics_train_seq"]
    assert configuration.load_config(base, ["DATASETS.TEST", ""])["DATASETS"]["TEST"] == []
    with pytest.raises(UserError, match="must be a tuple"):
        configuration.load_config(base, ["MODEL.PIXEL_MEAN", "a"])


def test_a_flag_behind_the_pairs_is_named():
    """argparse takes it for a key, and would tell of an override without value."""
    file = str(CONFIGS / "Base-VQVAE.yaml")
    with pytest.raises(UserError, match="^--resume: flags stand before the KEY VALUE pairs"):
        train_lvt.main(["--config-file", file, "SOLVER.MAX_ITER", "8", "--resume"])


def test_the_run_of_another_model_is_told(tmp_path):
    """Not by the first of its keys that this model does not have."""
    (tmp_path / "config.yaml").write_text("model: {levels: 4}\nengine: {steps: 1}\n")
    with pytest.raises(UserError, match=r"config.yaml: is of a run of another model; name a run of train_lvt.py"):
        configuration.load_config(tmp_path / "config.yaml")


def test_gpus_that_are_not_there_are_said(monkeypatch, caplog):
    """Two processes on a CPU are not what --num-gpus 2 asks for."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(training_of_lvt, "evaluate_lvt", lambda config: {})
    file = str(CONFIGS / "Base-VQVAE.yaml")
    for count, said in (("2", True), ("1", False)):
        caplog.clear()
        args = train_lvt.build_parser().parse_args(["--config-file", file, "--eval-only", "--num-gpus", count])
        assert training_of_lvt.train_lvt(args) == []
        assert ("--num-gpus 2: this machine has 0" in caplog.text) == said


def test_a_result_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    """--eval-only tries the place of evaluation.json first; no network is built."""
    monkeypatch.setattr(evaluators, "load_configured", None)
    (tmp_path / "evaluation.json").mkdir()
    command = ["--config-file", str(CONFIGS / "VQVAE_tiny.yaml"), "--eval-only", "OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(UserError, match="evaluation.json: is a folder; name a file in it"):
        train_lvt.main(command)
