"""The commands of benchmarks/pairs.py, which run for hours: all of them are ones that the scripts take."""

import importlib
import json

import pytest

from benchmarks import pairs
from tests.conftest import ROOT
from videodata.errors import UserError


class Noted(pairs.Bench):
    """Notes the commands in place of running them."""

    def __init__(self, out):
        super().__init__(out, 0.01)
        self.commands = {}

    def call(self, name, command, **words):
        self.commands[name] = [word.format(**words) for word in pairs.shlex.split(command)]


@pytest.mark.parametrize("tokenizer", pairs.TOKENIZERS)
def test_every_command_is_one(tmp_path, tokenizer):
    bench = Noted(tmp_path / "a folder")
    for generator in pairs.generators_of(tokenizer):
        bench.pair(tokenizer, generator)
    for script, *flags in bench.commands.values():
        assert (ROOT / script).is_file()
        importlib.import_module(script.removesuffix(".py").replace("/", ".")).build_parser().parse_args(flags)
    trained = [name for name, words in bench.commands.items() if "/train_" in words[0]]
    assert len(trained) == 1 + len(pairs.generators_of(tokenizer)) + ("sde" in pairs.generators_of(tokenizer))


def test_the_table_has_what_was_measured(tmp_path, capsys):
    bench = pairs.Bench(tmp_path, 1.0)
    scores = [{"name": name, "mean": 0.5} for name in pairs.SCORES]
    (tmp_path / "3-D-codes-causal.json").write_text(json.dumps({"scores": scores}))
    (tmp_path / "done").mkdir()
    for name, seconds in (("3-D-codes", 300.4), ("3-D-codes-causal", 299.6)):
        (tmp_path / "done" / f"{name}.json").write_text(json.dumps({"seconds": seconds}))
    bench.table()
    assert "| 3-D, codes | 797 |  | causal | 0.50 | 0.5000 | 0.5 | 0.50 | 0.50 | 300 + 300 |" in capsys.readouterr().out


def test_a_command_runs_once_and_a_failed_one_is_told(tmp_path):
    bench = pairs.Bench(tmp_path, 1.0)
    seconds = bench.call("splits", "scripts/split_batch_files.py --help")
    assert bench.call("splits", "scripts/none.py") == seconds > 0
    with pytest.raises(UserError, match="none ended with status 2"):
        bench.call("none", "scripts/none.py")
