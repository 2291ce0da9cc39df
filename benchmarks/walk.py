"""How many of the project's files and functions a command enters, as a reader who follows it must.

python benchmarks/walk.py main.py --data shapes:40 ...      # counts, and the files with their lines with --list first
"""

from __future__ import annotations

import inspect
import runpy
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main(argv: list[str]) -> None:
    """Run a script of the project under a profiler that only notes where calls go."""
    shown = argv[:1] == ["--list"]
    script, *arguments = argv[shown:]
    entered: dict[str, set[str]] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        function = code.co_flags & inspect.CO_OPTIMIZED  # not the body of a module or of a class, which imports run
        if event == "call" and function and code.co_filename.startswith(str(ROOT)):
            entered.setdefault(code.co_filename, set()).add(f"{code.co_name}:{code.co_firstlineno}")

    sys.argv = [script, *arguments]
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        sys.setprofile(None)
    own = {name: functions for name, functions in entered.items() if "/.venv/" not in name}
    lines = {name: Path(name).read_text(encoding="utf-8").count("\n") for name in own}
    for name in sorted(own) if shown else ():
        print(f"{Path(name).relative_to(ROOT)!s:40} {len(own[name]):4} functions {lines[name]:5} lines")
    print(f"{len(own)} files, {sum(map(len, own.values()))} functions, {sum(lines.values())} lines in these files")


if __name__ == "__main__":
    main(sys.argv[1:])
