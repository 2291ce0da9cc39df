"""The commands of docs/cluster.md, also those in batch files and YAML, are ones that their programs understand."""

import ast
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cluster.md"
TEXT = PAGE.read_text(encoding="utf-8")
TASK = {"name", "num_nodes", "workdir", "resources", "file_mounts", "envs", "setup", "run"}  # what SkyPilot calls them


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def shell_texts() -> list[str]:
    """Blocks for a shell, and what a task of SkyPilot runs."""
    tasks = [yaml.safe_load(block) for block in blocks("yaml")]
    return [*blocks("bash"), *(task[part] for task in tasks for part in ("setup", "run"))]


def commands() -> list[list[str]]:
    """Words of each command of Python or torchrun, with something in the place of the shell's variables."""
    found = []
    for text in shell_texts():
        for line in text.replace("\\\n", " ").splitlines():
            line = re.sub(r"\$\([^)]*\)", "node0", line)
            line = re.sub(r"\$\w+", "2", line)
            if match := re.match(r"\s*(?:\w+=\S+ |srun )*(?=(python|torchrun) )", line):
                found.append(shlex.split(line[match.end() :], comments=True))
    return found


COMMANDS = commands()


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_a_command_is_understood(words):
    """By the parser of its script, and by that of torchrun where it is started so."""
    script, arguments = words[1], words[2:]
    if words[0] == "torchrun":
        launch = get_args_parser().parse_args(words[1:])
        script, arguments = launch.training_script, launch.training_script_args
        assert launch.rdzv_backend == "c10d" and launch.rdzv_endpoint and launch.nnodes == "2"
    parser = importlib.import_module(script.removesuffix(".py").replace("/", ".")).build_parser()
    parser.parse_args(arguments)  # exits where it does not understand


def test_all_ways_are_there():
    """Each engine, the array of SLURM, and three trainings of several machines."""
    lines = [" ".join(words) for words in COMMANDS]
    assert all(any(f"--engine {name}" in line for line in lines) for name in ("ray", "dask", "spark"))
    assert sum("--shard 2/64" in line for line in lines) == 1
    assert sum(words[0] == "torchrun" for words in COMMANDS) == 3


@pytest.mark.posix
@pytest.mark.parametrize("text", shell_texts(), ids=range(len(shell_texts())))
def test_the_shell_understands_it(text):
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_python_and_yaml_are_well_formed():
    for block in blocks("python"):
        ast.parse(block)
    (task,) = (yaml.safe_load(block) for block in blocks("yaml"))
    assert set(task) <= TASK and task["num_nodes"] == 2
