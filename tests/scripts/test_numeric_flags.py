"""Every numeric flag of every script refuses what makes no sense, in one line, before anything is imported or read."""

import argparse
import importlib
import math
from fractions import Fraction
from pathlib import Path

import pytest

from training.cli import frame_rate, number, positive_int, seconds, seed_number
from training.settings import FLAGS, TrainSettings, check_ranges
from videodata.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ["main", "prepare_ucf101", *sorted(f"scripts.{path.stem}" for path in (ROOT / "scripts").glob("*.py"))]
SENSELESS = ("nan", "inf", "-inf", "1e400", "x", "", "1/0", "-7", "99999999999999999999999")
MINUS_ONE = {"past_horizon", "resume_step", "seed", "class_index"}  # flags of which some scripts know -1
ZERO = ("0", "from 0", "number of", "this machine")  # words in the help of flags that know 0
KNOWN_ZERO = {  # where 0 is plainly a number like any other, or the weight that switches a term off
    *("alpha", "gscale", "temperature", "guidance", "context", "given", "overlap", "quality", "depth", "test_batch"),
    "choice_temperature",
    *("learning_rate", "weight_decay", "lr", "lr_g", "lr_d", "cpu_seconds", "directions", "video_idx", "start_frame"),
    *("warm_start", "decay", "dropout", "dead_code_fraction", "commitment_cost", "class_dropout", "gpu", "class_index"),
    *("keep", "log_every", "warmup_steps", "warmup_start", "final_rate", "batch_idx", "window", "machine_rank", "seed"),
    *("disc_start", "disc_ramp", "disc_limit", "vq_warmup", "decay_ramp", "perceptual_weight", "adv_weight", "skip"),
    *("past_horizon", "resume_step", "num_gpus", "max_bad_fraction", "latent_noise", "latent_penalty", "blend_weight"),
    *("vq_weight", "tile_overlap", "sleep", "workers", "val_fraction", "recon_weight", "kl_weight", "ema"),
    *("kl_warmup_steps", "frames_warmup_steps", "free_bits", "top_k", "gan_steps"),
}


def parsers_of(name):
    """The script's parser, and those of its sub-commands."""
    module = importlib.import_module(name)
    found = [module.build_parser()] if hasattr(module, "build_parser") else []
    for parser in found:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += list(dict.fromkeys(action.choices.values()))
    return found


def numeric_flags():
    """(script, action) of all flags that take a number: those of a type that reads "1"."""
    for name in SCRIPTS:
        for parser in parsers_of(name):
            for action in parser._actions:
                if action.type is None or action.choices or action.type in (str, Path):
                    continue
                try:
                    value = action.type("1")
                except (ValueError, argparse.ArgumentTypeError):
                    continue
                if isinstance(value, int | float | Fraction):
                    yield name, action


NUMERIC = list(numeric_flags())


def taken(action, text):
    """The value that a flag makes of a text; None where it refuses."""
    try:
        return action.type(text)
    except (ValueError, argparse.ArgumentTypeError):
        return None


def test_all_scripts_are_looked_at():
    """There are many; a script whose parser is hidden from this test would go unnoticed."""
    assert len(NUMERIC) > 300
    without = [name for name in SCRIPTS if not parsers_of(name)]
    assert without == []


def test_no_flag_takes_what_is_no_number_or_has_no_end():
    """Neither NaN nor infinity, nor what overflows; nothing escapes as another exception."""
    wrong = [
        (name, action.dest, text) for name, action in NUMERIC for text in SENSELESS
        if (value := taken(action, text)) is not None and not (isinstance(value, float) and 0 <= value < math.inf)
    ]  # fmt: skip
    assert wrong == []


def test_negative_numbers_and_zero_only_where_they_mean_something():
    """-1 where a flag says so; 0 where the help explains it or where it is plainly a number."""
    negative = {(name, action.dest) for name, action in NUMERIC if taken(action, "-1") is not None}
    assert {dest for _, dest in negative} <= MINUS_ONE
    zero = {
        action.dest
        for _, action in NUMERIC
        if taken(action, "0") is not None and not any(word in (action.help or "") for word in ZERO)
    }
    assert zero - KNOWN_ZERO == set()


SENSELESS_IN = [  # scripts that once took the value, or ended in a traceback
    *(("reconstruct_vvae", *flag) for flag in (("slice_frames", "0"), ("resolution", "0"), ("quality", "99"))),
    *(("vvae", *flag) for flag in (("slice_frames", "0"), ("resolution", "0"), ("quality", "99"))),
    *(("generate_flow_videos", *flag) for flag in (("res", "0"), ("frames", "0"), ("num_videos", "-1"))),
    *(("train_vqgan", "num_embeddings", "0"), ("train_vqgan", "batch_size", "0"), ("train_vvae", "steps", "0")),
    *(("train_flow_autoencoder", "steps", "0"), ("train_flow_pred", "seed", "-1"), ("evaluate", "stride", "0")),
    *(("main", *flag) for flag in (("workers", "-1"), ("seed", "-1"), ("learning_rate", "-1"), ("stride", "0"))),
]  # fmt: skip


@pytest.mark.parametrize(("script", "dest", "text"), SENSELESS_IN)
def test_values_of_no_meaning_are_refused(script, dest, text):
    """Where 0 or a value above the scale means nothing, whatever the help says of 0 elsewhere."""
    actions = [action for name, action in NUMERIC if name.removeprefix("scripts.") == script and action.dest == dest]
    assert actions and all(taken(action, text) is None for action in actions)


@pytest.mark.parametrize("flag", ["--batch_size 0", "--seed -1", "--workers -1", "--learning_rate nan", "--frames 0"])
def test_a_refusal_is_one_line_with_the_limits(flag, capsys):
    """Status 2; the line names the flag, what is wanted and what was found."""
    name, value = flag.split()
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("main").build_parser().parse_args(["--data", "x", name, value])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert name in error and "must be at least" in error and error.split("found ")[1].startswith(value)


def test_the_types():
    """Values at the limits."""
    assert positive_int("2147483647") == 2**31 - 1 and seed_number("9223372036854775807") == 2**63 - 1
    assert frame_rate("30000/1001") == Fraction(30000, 1001) and seconds("0.5") == 0.5
    for kind, text in ((positive_int, "2147483648"), (seconds, "1e9"), (frame_rate, "0"), (number(float, 0), "inf")):
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)
    with pytest.raises(ValueError):
        frame_rate("1/0")


def test_configuration_files_have_the_same_ranges(tmp_path):
    """What a flag refuses is refused from a file, before training."""
    check_ranges(TrainSettings(tmp_path, 1))
    for name, value in (("batch_size", 0), ("workers", -1), ("clip", math.nan), ("keep", -3), ("milestones", (0,))):
        with pytest.raises(UserError, match=f"^--{name}: "):
            check_ranges(TrainSettings(tmp_path, 1, **{name: value}))
    assert {entry.name for entry in FLAGS} >= {"batch_size", "seed"}
