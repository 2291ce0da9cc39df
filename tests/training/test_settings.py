"""Settings: every flag acts and is recorded, or is refused; optimisers, rates, and what a run says of itself."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import ConcatDataset, Subset

from evaluation.runner import trained_on_of
from tests.training.runs import run, settings
from tests.training.tiny_gan import TinyClips, TinyGAN
from training import add_training_arguments, cli, read_tensors, settings_from, train, trained_on
from training.optim import Muon, build_optimizer, learning_rate_scale
from training.settings import FLAGS, check_schedule
from training.step import decided
from videodata import open_clips
from videodata.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

OTHER = {  # another value than the default, for each flag
    **{"device": "cpu", "precision": "bf16", "schedule": "cosine", "warmup": "constant", "resume": "never"},
    **{"milestones": (3, 5), "batch_size": 3, "accumulation": 3, "clip": 0.5, "replicas": 2},
}


class ToldClips(TinyClips):
    """Clips that say where they come from."""

    def __init__(self, length=16, source="shapes:16", split="train"):
        super().__init__(length)
        self.source, self.split = source, split

    def provenance(self):
        ids = [f"{self.source}/{index}" for index in range(self.length)]
        return {"source": self.source, "split": self.split, "fingerprint": f"f-{self.source}", "ids": ids}


def parsed(*argv, defaults=None, of_config=None):
    """TrainSettings from a command line; `of_config`: what the configuration says where no flag was given."""
    parser = cli.make_parser("A training.")
    add_training_arguments(parser, **(defaults or {}), **dict.fromkeys(of_config or {}))
    return settings_from(parser.parse_args(list(map(str, argv))), Path("run"), 12, **(of_config or {}))


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"batch_sise": 4}, "unknown configuration key 'engine.batch_sise'; did you mean 'engine.batch_size'?"),
        ({"batch_size": "four"}, "configuration key 'engine.batch_size': expected int, found 'four'"),
    ],
)
def test_a_key_of_the_engine_that_is_wrong_is_named(engine, message):
    """What a configuration says under `engine:` is checked like the rest of it."""
    with pytest.raises(UserError) as error:
        parsed(of_config=engine)
    assert str(error.value) == message


@pytest.mark.parametrize("entry", FLAGS, ids=[entry.name for entry in FLAGS])
@pytest.mark.parametrize("spell", [str, lambda name: name.replace("_", "-")], ids=["_", "-"])
def test_every_flag_sets_its_setting_in_both_spellings(entry, spell):
    """No setting without a flag, no flag that is lost; given flags stand above the configuration."""
    wanted = OTHER.get(entry.name, not entry.default if isinstance(entry.default, bool) else 1)
    words = [] if isinstance(wanted, bool) else [*wanted] if isinstance(wanted, tuple) else [wanted]
    found = parsed(spell(f"--{entry.name}"), *words, of_config={entry.name: entry.default})
    assert getattr(found, entry.name) == wanted != entry.default
    assert getattr(parsed(of_config={"warmup_steps": 2, entry.name: wanted}), entry.name) == wanted


def test_a_schedule_on_the_command_line_acts_and_is_recorded(tmp_path):
    """Over the one of the configuration: the rates of the log are those of the flags, config.yaml names them."""
    of_config = {"schedule": "sqrt", "warmup_steps": 6, "warmup_start": 0.0, "final_rate": 1e-4}
    rates = {}
    for name, flags in {
        "own": (),
        "flags": ("--schedule", "multistep", "--milestones", 4, 8, "--warmup-steps", 2),
    }.items():
        chosen = parsed("--log_every", 1, "--batch_size", 4, *flags, of_config=of_config)
        chosen.run_dir = tmp_path / name
        train(TinyGAN(rate=1.0), TinyClips(), chosen, {"model": {}})
        rows = [json.loads(line) for line in (chosen.run_dir / "metrics.jsonl").read_text().splitlines()]
        rates[name] = [row["lr/autoencoder"] for row in rows]
        recorded = yaml.safe_load((chosen.run_dir / "config.yaml").read_text())
        assert recorded.keys() == {"model", "engine"}
        assert recorded["engine"]["schedule"] == chosen.schedule
        assert recorded["engine"]["warmup_steps"] == chosen.warmup_steps
    assert rates["own"][:7] == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]) and rates["own"][-1] < 0.5
    assert rates["flags"] == pytest.approx([0, 0.5, 1, 1, *4 * [0.1], *4 * [0.01]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"milestones": (3,)}, "--milestones has no effect on --schedule constant"),
        ({"gamma": 0.5, "schedule": "cosine"}, "--gamma has no effect on --schedule cosine"),
        ({"final_rate": 1e-3}, "--final_rate has no effect on --schedule constant"),
        ({"final_rate": 1e-3, "schedule": "multistep"}, "--final_rate has no effect"),
        ({"warmup_start": 0.1}, "--warmup_start has no effect without --warmup_steps"),
        ({"warmup": "constant", "warmup_steps": 3}, "--warmup constant needs --warmup_start"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(tmp_path, changes, message):
    """Before the folder is made."""
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_schedule_drops_what_only_the_configurations_own_asks_for():
    """--schedule constant alone is enough, and so is --warmup_steps 0."""
    of_config = {"schedule": "sqrt", "warmup_steps": 6, "warmup_start": 0.0, "final_rate": 1e-4}
    found = parsed("--schedule", "constant", of_config=of_config)
    assert (found.schedule, found.final_rate, found.warmup_steps, found.warmup_start) == ("constant", 0.0, 6, 0.0)
    check_schedule(found)
    check_schedule(parsed("--warmup_steps", 0, of_config=of_config))


@pytest.mark.parametrize("schedule", ["cosine", "cosine_full", "linear", "sqrt"])
def test_decays_end_at_the_final_rate(schedule):
    """From the base rate to the final one, never rising."""
    scales = [learning_rate_scale(step, 100, 0, schedule, final_rate=0.02, base=0.1) for step in range(101)]
    assert scales[0] == pytest.approx(1) and scales[100] == pytest.approx(0.2)
    assert all(after <= before for before, after in zip(scales, scales[1:], strict=False))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size", "0"], "argument --batch_size: must be at least 1, found 0"),
        (["--ema", "1.5"], "argument --ema: must be at least 0 and at most 1, found 1.5"),
        (["--save-every", "-1"], "argument --save_every: must be at least 0, found -1"),
        (["--loader_timeout", "0"], "argument --loader_timeout: must be above 0, found 0"),
        (["--workers", "two"], "argument --workers: invalid int value: 'two'"),
        (["--scedule", "cosine"], "unrecognized arguments: --scedule"),
    ],
)
def test_wrong_flags_are_one_line(capsys, flags, message):
    """Status 2, and what is wrong."""
    with pytest.raises(SystemExit) as end:
        parsed(*flags)
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_optimizers_by_name():
    """Options that an optimiser does not have are dropped, others are its own errors."""
    weights = [torch.nn.Parameter(torch.ones(2, 2))]
    options = {"betas": (0.5, 0.9), "weight_decay": 0.1, "fused": True, "convolutions": True, "momentum": 0.9}
    for name, kind in {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "muon": Muon}.items():
        made = build_optimizer(name, weights, 1e-3, **options)
        assert type(made) is kind and made.defaults["betas"] == (0.5, 0.9) and made.defaults["weight_decay"] == 0.1
        assert made.param_groups[0]["lr"] == 1e-3
    whole = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    for parameters in (iter(whole), [{"params": iter(whole[:1])}, {"params": whole[1:], "lr": 1e-2}]):
        assert build_optimizer("adamw", parameters, 1e-3).defaults["fused"]
    assert not build_optimizer("adam", [torch.nn.Parameter(torch.ones(2, device="meta"))], 1e-3).defaults["fused"]
    assert not build_optimizer("adamw", whole, 1e-3, fused=False).defaults["fused"]
    assert build_optimizer("rmsprop", weights, 1e-3, **options).defaults["momentum"] == 0.9
    with pytest.raises(UserError, match="unknown optimizer 'lion'; choose one of adam, adamw, muon, rmsprop"):
        build_optimizer("lion", weights, 1e-3)
    for rate in (math.nan, math.inf, -1.0):  # with the first all weights become NaN in the first step
        with pytest.raises(UserError, match="learning rate must be a finite number"):
            build_optimizer("adam", weights, rate)
    with pytest.raises(TypeError):
        build_optimizer("adam", weights, 1e-3, typo=1)


def test_a_run_says_what_it_does_and_what_it_wrote(tmp_path, caplog):
    """First line: where, how, how long, on what, in which folder. Last ones: the files and what shows them."""

    class Shown(TinyGAN):
        def show_command(self, run_dir):
            return f"python show.py --checkpoint {run_dir}"

    folder, recipe = tmp_path / "run", Shown()
    recipe.notes.append("what a recipe has to say comes after")
    told = run(folder, recipe, ToldClips()).told("psnr 20")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == f"cpu, 1 process, fp32, batch 4, 12 steps, trained on 16 clips of shapes:16 (train), in {folder}"
    assert lines[1] == "what a recipe has to say comes after"
    assert lines[-1].startswith(f"wrote {folder}/checkpoints/step-0000012.pt and weights-0000012.safetensors")
    end = [f"{folder}: finished after 12 steps, psnr 20", f"next: python show.py --checkpoint {folder}"]
    assert told.splitlines() == end
    caplog.clear()
    stopped = run(tmp_path / "silent", max_minutes=1e-9)
    assert "trained on 16 samples, in" in caplog.records[0].getMessage()
    assert stopped.told() == f"{tmp_path / 'silent'}: stopped at step 1 of 12; the same command continues"


def test_a_run_records_what_it_was_trained_on(tmp_path):
    """Also of parts, and of all that a continued run has seen; found from the folder and from its checkpoints."""
    run(tmp_path, dataset=ToldClips())
    first = ToldClips().provenance()
    assert trained_on(tmp_path) == first == trained_on(tmp_path / "checkpoints" / "weights-0000012.safetensors")
    run(tmp_path, dataset=ToldClips())
    assert trained_on(tmp_path) == first
    more = ConcatDataset([Subset(ToldClips(8, "other", None), [1, 2]), ToldClips(16)])
    for _ in range(2):
        run(tmp_path, dataset=more, steps=13)
    both = trained_on(tmp_path)
    assert (both["source"], both["split"]) == ("shapes:16 + other", None) and len(both["ids"]) == 24
    assert [part["source"] for part in both["parts"]] == ["shapes:16", "other"]


def test_evaluation_knows_what_a_run_was_trained_on(tmp_path):
    """All of its own clips, none of another part; of data that cannot tell, the record says unknown, also in part."""
    part, other = (open_clips("shapes:20,frames=8,size=16", 4, 8, split=split) for split in ("train", "test"))
    run(tmp_path / "told", dataset=part)
    record = json.loads((tmp_path / "told" / "trained_on.json").read_text())
    assert record == trained_on(tmp_path / "told") == part.provenance()
    assert trained_on_of([tmp_path / "told"], part) == len(part) and trained_on_of([tmp_path / "told"], other) == 0
    for name, data in {"untold": TinyClips(), "mixed": ConcatDataset([part, TinyClips()])}.items():
        run(tmp_path / name, dataset=data)
        assert json.loads((tmp_path / name / "trained_on.json").read_text())["source"] == "unknown"
        assert trained_on(tmp_path / name) is None and trained_on_of([tmp_path / name], part) is None
    run(tmp_path / "told", dataset=TinyClips(), steps=13)  # whatever it is, the clips from before stay known
    assert trained_on_of([tmp_path / "told"], part) == len(part) and trained_on_of([tmp_path / "told"], other) is None


def test_flags_and_settings_are_imported_at_once():
    """A script's --help needs none of the libraries that take their time."""
    heavy = ("torch", "numpy", "av", "yaml", "omegaconf")
    code = f"import sys, training.cli, training.settings; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_tensors_are_read_from_every_kind_of_file(tmp_path):
    """.pt in both of torch's formats and .safetensors; anything else is one line."""
    run(tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-0000012.pt"
    assert read_tensors(checkpoint)["step"] == 12
    flat = read_tensors(checkpoint.with_name("weights-0000012.safetensors"))
    assert flat["autoencoder.encoder.weight"].shape == (8, 3, 1, 4, 4)
    torch.save({"a": torch.ones(1)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert read_tensors(tmp_path / "old.ckpt")["a"].item() == 1
    (tmp_path / "broken.safetensors").write_bytes(b"12")
    (tmp_path / "broken.pth").write_bytes(checkpoint.read_bytes()[:900])
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    for name, message in {
        **{"absent.pt": "no such file", "absent.safetensors": "no such file", "list.pt": "holds a list"},
        **{"broken.safetensors": "not a readable weight file", "broken.pth": "not a readable weight file"},
    }.items():
        with pytest.raises(UserError, match=rf"{name}: {message}"):
            read_tensors(tmp_path / name)


def test_settings_have_no_value_that_only_the_loop_would_refuse(tmp_path):
    """The checks of sizes stay for callers without a command line."""
    with pytest.raises(UserError, match="--batch_size"):
        train(TinyGAN(), TinyClips(), settings(tmp_path, batch_size=0), {"model": {}})


@pytest.mark.parametrize("fast", [True, False])
def test_precision_auto_is_bf16_only_where_it_pays(fast, tmp_path, monkeypatch):
    """The run says and notes which it took; a precision that is named is taken as it is."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert decided("fp32", torch.device("cpu")) == "fp32" and decided("bf16", torch.device("cpu")) == "bf16"
    run(tmp_path, precision="auto", steps=1, log_every=1)
    taken = "bf16" if fast else "fp32"
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["engine"]["precision"] == taken
