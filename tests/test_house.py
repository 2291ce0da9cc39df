"""Rules that hold for the whole repository: who may import whom, sizes, safe loading, and a README that is true."""

import ast
import compileall
import contextlib
import importlib
import io
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from datetime import date
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.interpreter import interpret, python_for_shells
from training.cli import make_parser

ROOT = Path(__file__).resolve().parent.parent
SHARED_GROUND = {"videodata", "training", "losses"}
MODELS = {"video_vae", "vqgan", "lvt", "vvae", "tokenizer3d"}
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
    """A file is a story of at most 600 lines, and no function is longer than 100."""
    for path in SOURCES:
        text = path.read_text()
        assert text.count("\n") <= 600, f"{path.relative_to(ROOT)} is too long"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = node.end_lineno - node.lineno + 1
                assert length <= 100, f"{path.relative_to(ROOT)}: {node.name} has {length} lines"


def test_no_modules_import_each_other_in_a_circle():
    """Not through imports inside functions either: each module can be read with those below it alone."""
    paths = [path for path in SOURCES if path.relative_to(ROOT).parts[0] not in {"tests", "benchmarks"}]
    modules = {module_name(path): path for path in paths}
    below = {name: imported_modules(path, name, set(modules)) for name, path in modules.items()}
    while leaves := [name for name, names in below.items() if not names & set(below)]:
        for name in leaves:
            del below[name]
    importers = set().union(*below.values()) & set(below)  # modules above a circle are not in it
    assert not below, f"modules that import each other: {sorted(importers)}"


def module_name(path: Path) -> str:
    """videodata/clips.py -> videodata.clips; a package is named by its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, name: str, known: set[str]) -> set[str]:
    """Modules of the project that a module imports, anywhere in it; `from package import module` is the module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = [*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])]
            start = ".".join(base) if node.level else node.module
            names = {f"{start}.{alias.name}" for alias in node.names}
            found |= (names & known) or {start}
    return (found & known) - {name}


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
    """What `python SCRIPT --help` prints, from a process that has the large libraries already where it is forked."""
    arguments = [*([subcommand] if subcommand else []), "--help"]
    results, sender = multiprocessing.Pipe(duplex=False)
    method = "fork" if hasattr(os, "fork") else "spawn"
    process = multiprocessing.get_context(method).Process(target=run_script, args=(sender, script, arguments))
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
    """Run a script, or `-m module`, in the forked process.

    Its help must come without torch, whose import takes seconds, so there is none here.
    """
    if not script.startswith(("-m pytest", "benchmarks/")):  # these are no scripts of the users
        sys.modules["torch"] = None
    os.chdir(ROOT)
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        status = interpret([*script.split(), *arguments])
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
        patterns = {flag: re.sub("(?<=.{2})[-_]", "[-_]", flag) + r"\b" for flag in flags}  # both spellings are taken
        if subcommands and not all(re.search(pattern, text) for pattern in patterns.values()):
            text += "".join(help_text(script, name) for name in subcommands[1].split(","))
        for flag, pattern in patterns.items():
            assert re.search(pattern, text), f"{page.name} uses {script} {flag}, which does not exist"


def scripts_with_help() -> list[str]:
    """Every entry point of the project."""
    scripts = [path for path in (ROOT / "scripts").glob("*.py") if path.name != "__init__.py"]
    return ["main.py", "prepare_ucf101.py", *sorted(f"scripts/{path.name}" for path in scripts)]


@pytest.mark.parametrize("script", scripts_with_help())
def test_help_answers_at_once(script):
    """Without torch, whose import takes seconds: `run_script` has taken it away."""
    assert help_text(script).startswith("usage: ")


@pytest.mark.parametrize("script", scripts_with_help())
def test_every_script_has_the_parser_of_the_house(script):
    """`build_parser()` gives one of `make_parser`, which takes --like_this and --like-this alike."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    assert type(module.build_parser()) is type(make_parser(""))


def quick_blocks(page: Path) -> list[str]:
    """Code blocks of a page that are marked as quick enough to be run here."""
    return re.findall(r"<!-- run by the tests -->\n```bash\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What git knows, without the tests; compiled once for all processes that run it."""
    folder = tmp_path_factory.mktemp("checkout")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in names:
        if name and not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    assert compileall.compile_dir(folder, quiet=1)
    return folder


@pytest.fixture(scope="module")
def python():
    """The `python` of the blocks."""
    with python_for_shells() as program:
        yield program


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if quick_blocks(page)], ids=lambda page: page.name)
def test_quick_blocks_run_as_pasted(page, tmp_path, checkout, python):
    """In order, in a checkout that holds nothing else."""
    shutil.copytree(checkout, tmp_path, dirs_exist_ok=True)
    path = os.pathsep.join([str(python.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    for block in quick_blocks(page):
        run = subprocess.run(
            ["bash", "-e", "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False,
            env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert run.returncode == 0, f"{page.name}: {block}\n{run.stderr[-600:]}"


def test_every_result_can_be_rerun():
    """Each row of a table of results names a command of the project that exists, a machine of the page and a day."""
    text = (ROOT / "docs" / "results.md").read_text()
    machines = set(re.findall(r"^- \*\*(\w+)\*\*:", text, re.MULTILINE))
    tables = re.findall(
        r"^\| what \| result \| command \| machine \| date \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, re.MULTILINE
    )
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for table in tables for line in table.splitlines()]
    rows = [[cell.strip() for cell in row] for row in rows]
    assert len(rows) > 30
    for row in rows:
        commands = re.findall(r"`([^`]+)`", row[2])
        assert commands and row[3] in machines and date.fromisoformat(row[4]), row
        for command in commands:
            match = re.match(r"(?:\S+=\S+ )*(?:python (?:-m )?(\S+)|make (\w+))", command)
            assert match, f"{command}: not a command of the project"
            if match[1]:
                path = ROOT / match[1]
                module = ROOT / (match[1].replace(".", "/") + ".py")
                assert path.is_file() or module.is_file() or match[1] == "pytest", command
            else:
                assert re.search(rf"^{match[2]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
