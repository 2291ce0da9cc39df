"""What the models' demonstrations share: the folder, the data, and a way to run the project's own scripts."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from videodata.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Stage:
    """One demonstration run: `folder` holds all that it writes, `clips` is the prepared .npy."""

    folder: Path
    clips: Path

    def run(self, what: str, script: str, *arguments: object) -> None:
        """Run one of the project's scripts as a user would; its output goes to the log folder.

        Raises UserError with the end of the log when it fails.
        """
        command = [sys.executable, *script.split(), *map(str, arguments)]
        log = self.folder / "log" / f"{what.replace(' ', '-')}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"  {what} ...", end="", flush=True)
        start = time.monotonic()
        with open(log, "w") as output:
            output.write(" ".join(command) + "\n")
            output.flush()
            result = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False)
        print(f" {time.monotonic() - start:.0f} s")
        if result.returncode != 0:
            last = (log.read_text().strip().splitlines() or ["no output"])[-1]
            raise UserError(f"the demonstration stopped while it wanted to {what}: {last} (all of it: {log})")
