"""Rules that hold for the whole repository: who may import whom, sizes, safe loading, and a README that is true."""

import ast
import contextlib
import io
import multiprocessing
import os
import re
import runpy
import sys
import traceback
from datetime import date
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from scripts import results_table

ROOT = Path(__file__).resolve().parent.parent
SHARED_GROUND = {"videodata", "training", "losses"}
MODELS = {"video_vae", "vqgan", "lvt", "vvae"}
ALLOWED_IMPORTS = {
    **{name: SHARED_GROUND for name in SHARED_GROUND},
    **{name: SHARED_GROUND | {"evaluation"} for name in MODELS},
    "evaluation": SHARED_GROUND,
    "flow_pred": SHARED_GROUND | {"evaluation", "vqgan", "vvae"},
}
PACKAGES = [name for name in sorted(ALLOWED_IMPORTS) if (ROOT / name).is_dir()]
SOURCES = sorted(
    path for path in ROOT.rglob("*.py") if not {".venv", "runs", "data", ".git"} & set(path.relative_to(ROOT).parts)
)


def imported_packages(path: Path) -> set[str]:
    """Top-level names that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_imports_only_from_the_floors_below(package):
    """Shared packages never import a model, models never import scripts, and no model imports its neighbour."""
    ours = set(ALLOWED_IMPORTS) | {"scripts", "main", "prepare_ucf101", "benchmarks", "tests"}
    for path in (ROOT / package).rglob("*.py"):
        allowed = ALLOWED_IMPORTS[package] | {package}
        if package == "vvae" and path.name != "train.py":
            allowed = {"vvae"}
        stray = (imported_packages(path) & ours) - allowed
        assert not stray, f"{path.relative_to(ROOT)} imports {sorted(stray)}"


def test_files_and_functions_stay_readable():
    """No source file is longer than 500 lines and no function longer than 100."""
    for path in SOURCES:
        text = path.read_text()
        assert text.count("\n") <= 500, f"{path.relative_to(ROOT)} is too long"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = node.end_lineno - node.lineno + 1
                assert length <= 100, f"{path.relative_to(ROOT)}: {node.name} has {length} lines"


def test_checkpoints_are_only_ever_read_as_data():
    """Every torch.load in the repository passes weights_only=True."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("weights_only") == "True", f"{path.relative_to(ROOT)}:{node.lineno}"


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def documented_commands(page: Path) -> list[tuple[str, list[str]]]:
    """(script, flags) of every `python ...` line in the code blocks of a page."""
    commands = []
    for block in re.findall(r"```(?:bash|sh|console)?\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.match(r"\s*(?:\S+=\S+ )*(?:torchrun\b.*?|\S*python3?) ((?:-m )?[\w./]+)(.*)", line.split("#")[0])
            if match and not match[1].startswith("-m pip"):
                commands.append((match[1].strip(), re.findall(r"(?<!\S)--[\w-]+", match[2])))
    return commands


@cache
def help_text(script: str, subcommand: str = "") -> str:
    """What `python SCRIPT --help` prints, from a forked process, which has the large libraries already."""
    arguments = [*([subcommand] if subcommand else []), "--help"]
    results, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=run_script, args=(sender, script, arguments))
    process.start()
    sender.close()
    try:
        status, printed, errors = results.recv()
    except EOFError:
        status, printed, errors = "no status", "", "its process died"
    process.join()
    assert status == 0, f"{script} --help failed ({status}): {errors[-300:]}"
    return printed


def run_script(sender: Connection, script: str, arguments: list[str]) -> None:
    """Run a script, or `-m module`, as the interpreter would: its folder on the path, none of the project imported."""
    for name in [name for name in sys.modules if name.split(".")[0] in {*PACKAGES, "scripts", "tests"}]:
        del sys.modules[name]
    os.chdir(ROOT)
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    status, printed, errors = "no status", io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            if script.startswith("-m "):
                sys.path.insert(0, str(ROOT))
                sys.argv = [script, *arguments]
                runpy.run_module(script.removeprefix("-m "), run_name="__main__", alter_sys=True)
            else:
                sys.path.insert(0, str((ROOT / script).parent))
                sys.argv = [script, *arguments]
                runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException:  # noqa: BLE001
            errors.write(traceback.format_exc())
    sender.send((status, printed.getvalue(), errors.getvalue()))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_documented_command_exists_with_its_flags(page):
    """A script or flag that the README or docs/ name is there."""
    for script, flags in documented_commands(page):
        if not script.startswith("-m"):
            assert (ROOT / script).is_file(), f"{page.name} names {script}, which does not exist"
        text = help_text(script)
        subcommands = re.search(r"\{([\w,]+)\}", text)
        if subcommands and any(flag not in text for flag in flags):
            text += "".join(help_text(script, name) for name in subcommands[1].split(","))
        for flag in flags:
            assert re.search(rf"{flag}\b", text), f"{page.name} uses {script} {flag}, which does not exist"


def test_readme_and_results_agree():
    """The README shows the chosen rows of docs/results.md, as the script writes them."""
    results_table.main(["--check"])


def test_every_result_can_be_rerun():
    """Each row names a command of the project that exists, a machine of the page and a day."""
    text = (ROOT / "docs" / "results.md").read_text()
    machines = set(re.findall(r"^- \*\*(\w+)\*\*:", text, re.MULTILINE))
    for row in results_table.read_results(text):
        commands = re.findall(r"`([^`]+)`", row.command)
        assert commands and row.machine in machines and date.fromisoformat(row.date), row
        for command in commands:
            match = re.match(r"(?:\S+=\S+ )*(?:python (?:-m )?(\S+)|make (\w+))", command)
            assert match, f"{command}: not a command of the project"
            if match[1]:
                path = ROOT / match[1]
                module = ROOT / match[1].replace(".", "/") / "__main__.py"
                assert path.is_file() or module.is_file() or match[1] == "pytest", command
            else:
                assert re.search(rf"^{match[2]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
