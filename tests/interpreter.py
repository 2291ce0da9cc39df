"""Scripts as the interpreter runs them, in processes that are forked and so have the large libraries already.

A new interpreter spends seconds on importing torch; `python_for_shells` is a `python` for shells that does not.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import runpy
import select
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

PROJECT = {path.parent.name for path in ROOT.glob("*/*.py")} | {path.stem for path in ROOT.glob("*.py")}
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    words = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    sent = socket.send_fds(server, [words], [0, 1, 2])
    server.sendall(words[sent:])
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(16) or 70))
"""


def interpret(words: list[str]) -> int:
    """What `python WORDS` does, in this process, which was forked for it; gives the exit status.

    None of the project is imported before, and its folder is on the path only where the interpreter puts it there.
    """
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in PROJECT or str(getattr(module, "__file__", "")).startswith(f"{ROOT / 'vvae'}/"):
            del sys.modules[name]  # vvae's sources are known by short names, too
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            sys.path.insert(0, "")
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def python_for_shells() -> Iterator[Path]:
    """The path of a program `python`: one that forks from this process as it is now, where there are forks."""
    if not hasattr(os, "fork"):
        yield Path(sys.executable)
        return
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        address, program = f"{folder}/socket", Path(folder, "python")
        listening.bind(address)
        listening.listen()
        program.write_text(CLIENT.format(python=sys.executable, address=address))
        program.chmod(0o755)
        waiting, alive = os.pipe()
        server = os.fork()
        if server == 0:
            os.close(alive)
            _serve(listening, waiting)
        os.close(waiting)
        try:
            yield program
        finally:
            os.close(alive)  # which ends the server, as the end of this process does
            os.waitpid(server, 0)


def _serve(listening: socket.socket, waiting: int) -> None:
    """Fork a process for each client, one after the other, until the other end of `waiting` is closed."""
    try:
        while listening in select.select([listening, waiting], [], [])[0]:
            client, _ = listening.accept()
            with client:
                text, files, *_ = socket.recv_fds(client, 1 << 16, 3)
                while more := client.recv(1 << 16):
                    text += more
                words, folder, environment = json.loads(text)
                child = os.fork()
                if child == 0:
                    _become(words, folder, environment, files)
                for file in files:
                    os.close(file)
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                client.sendall(str(status if status >= 0 else 128 - status).encode())
    finally:
        os._exit(0)


def _become(words: list[str], folder: str, environment: dict[str, str], files: list[int]) -> None:
    """Be the process of a client: its folder, its environment, its files, and nothing of the tests; never returns."""
    status = 70
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        logging.getLogger().handlers.clear()
        atexit._clear()
        status = interpret(words)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
