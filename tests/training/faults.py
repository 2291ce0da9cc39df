"""Faults on demand: "kill_in_save@15" or "exit_in_step@7:1" make a run suffer at that place and step.

<action>_<place>@<step>[:<rank>] with action kill (SIGKILL), exit (status 9), term (SIGTERM to itself) or full (disk).
The places are wrapped around the engine's own functions, which know nothing of it.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable
from typing import Any

from training import checkpoint, loop
from training.distributed import rank

VARIABLE = "VIDEOGEN_FAULT"  # read by the scripts of the tests


def install(order: str | None, replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let the runs of this process, and of those that it forks, suffer the fault; `replace`: monkeypatch.setattr."""
    if not order:
        return
    match = re.fullmatch(r"(kill|exit|term|full)_(\w+)@(\d+)(?::(\d+))?", order)
    assert match, f"{order}: expected <action>_<place>@<step>[:<rank>]"
    action, place, step, only = match.group(1), match.group(2), int(match.group(3)), match.group(4)
    report, save, weights = loop.Run.report, checkpoint.save_checkpoint, checkpoint.write_weights
    manifest, rename = checkpoint.write_json, os.replace

    def at(here: str, now: int) -> None:
        if (here, now) == (place, step) and (only is None or int(only) == rank()):
            suffer(action)

    def in_step(self: loop.Run, *arguments: Any) -> None:
        at("in_step", self.state.step)
        report(self, *arguments)

    def around_save(folder: Any, state: dict[str, Any], facts: dict[str, Any]) -> Any:
        at("before_save", state["step"])
        saved = save(folder, state, facts)
        at("after_save", state["step"])
        return saved

    def after_weights(path: Any, state: dict[str, Any]) -> None:
        weights(path, state)
        at("after_weights", state["step"])

    def in_save(source: Any, target: Any) -> None:
        if str(target).endswith(f"step-{step:07d}.pt"):
            at("in_save", step)
        rename(source, target)

    def before_manifest(path: Any, value: Any) -> None:
        if path.name == f"step-{step:07d}.json":
            at("before_manifest", step)
        manifest(path, value)

    replace(loop.Run, "report", in_step)
    replace(checkpoint, "save_checkpoint", around_save)
    replace(checkpoint, "write_weights", after_weights)
    replace(checkpoint, "write_json", before_manifest)
    replace(os, "replace", in_save)


def suffer(action: str) -> None:
    """Do what the order says."""
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "exit":
        os._exit(9)
    elif action == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
