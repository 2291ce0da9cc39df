"""The `python` that is forked from a process with the large libraries: to its user it is the interpreter."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.interpreter import python_for_shells

SCRIPT = """
import os, sys
print(*sys.argv, os.getcwd(), os.environ["WORD"], sys.stdin.read(), sep="|")
print([name for name in ("tests", "training") if name in sys.modules], file=sys.stderr)
print({root!r} in sys.path, sys.path[0], __name__, file=sys.stderr)
"""
pytestmark = pytest.mark.posix


@pytest.fixture(scope="module")
def python():
    with python_for_shells() as program:
        yield program


def run(program, *words, **options):
    options = {"capture_output": True, "text": True, "check": False, **options}
    return subprocess.run([program, *words], **options)


def test_a_script_has_its_words_its_folder_and_none_of_the_project(python, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(root=str(ROOT)))
    words = ["script.py", "--a", "b c"]
    environment = {**os.environ, "WORD": "word"}
    found = [run(of, *words, cwd=tmp_path, env=environment, input="in") for of in (python, sys.executable)]
    assert found[0].stdout == found[1].stdout == f"script.py|--a|b c|{tmp_path}|word|in\n"
    assert found[0].stderr == found[1].stderr == f"[]\nFalse {tmp_path} __main__\n"
    assert found[0].returncode == found[1].returncode == 0


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no such file')", 1, "no such file\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("import atexit; atexit.register(print, 'end')", 0, ""),
    ],
)
def test_it_ends_as_the_interpreter_does(python, code, status, error):
    forked, new = run(python, "-c", code), run(sys.executable, "-c", code)
    assert forked.returncode == new.returncode == status
    assert forked.stdout == new.stdout == ("end\n" if "atexit" in code else "")
    assert forked.stderr.endswith(error) and new.stderr.endswith(error) and bool(forked.stderr) == bool(error)


def test_modules_and_kills(python, tmp_path):
    (tmp_path / "module.py").write_text("import sys; print(sys.argv[1:], __name__)")
    assert run(python, "-m", "module", "x", cwd=tmp_path).stdout == "['x'] __main__\n"
    code = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
    assert run(python, "-c", code).returncode == 128 + signal.SIGKILL  # as a shell tells of it
    assert run(python, "-c", "print(1)").stdout == "1\n"
