"""The harness that kills commands: its table, and that it tells whole files from torn ones and equal from unequal."""

import importlib
import json
import sys

import numpy as np
import pytest
from PIL import Image

if sys.platform != "linux":
    pytest.skip("the harness forks, and reads CPU times in /proc", allow_module_level=True)

from benchmarks.faults.commands import KINDS, compared, contents, is_unfinished, read_commands, torn_files
from videodata.files import atomic_path


def test_every_command_of_the_table_is_understood_by_its_script():
    """Those that others need come first; what is not preparing needs no file of its own."""
    commands = read_commands()
    for number, (name, command) in enumerate(commands.items()):
        assert command.kind in KINDS and set(command.needs) <= set(list(commands)[:number]), name
        parser = importlib.import_module(command.words[0].removesuffix(".py").replace("/", ".")).build_parser()
        parser.parse_args(command.words[1:])
    assert {command.kind for command in commands.values()} == set(KINDS)


def test_torn_files_are_found(tmp_path):
    """A file with a final name is read to its end, and compared; one that is being written may be anything."""
    whole = tmp_path / "whole"
    whole.mkdir()
    np.save(whole / "a.npy", np.arange(1000))
    (whole / "a.json").write_text(json.dumps({"a": 1}))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(whole / "a.png")
    expected = contents(whole)
    assert torn_files(whole, expected) == []
    for path in list(whole.iterdir()):
        content = path.read_bytes()
        with atomic_path(path) as temporary:
            temporary.write_bytes(content[: len(content) // 2])
            assert is_unfinished(temporary) and torn_files(whole, expected) == []
        assert len(torn_files(whole, expected)) == 1 and path.name in torn_files(whole, expected)[0]
        assert compared(expected, contents(whole)) == [f"other bytes in {path.name}"]
        path.write_bytes(content)
    np.save(whole / "a.npy", np.arange(1000) + 1)
    assert torn_files(whole, expected) == ["a.npy: is not that of the undisturbed run"]


def test_how_fast_a_run_was_is_no_difference(tmp_path):
    """Of a log of numbers, all others are compared."""
    row = {"step": 1, "loss": 2.0, "samples_per_second": 3.0}
    for name, change in {"a": {}, "b": {"samples_per_second": 4.0}, "c": {"loss": 2.5}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({**row, **change}) + "\n")
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b and compared(a, c) == ["other bytes in metrics.jsonl"]
