"""Faults on demand, for the tests of what a run survives: VIDEOGEN_FAULT="kill_in_save@15" or "exit_in_step@7:1".

<action>_<place>@<step>[:<rank>] with action kill (SIGKILL), exit (status 9), term (SIGTERM to itself) or full (disk).
Without the variable nothing happens.
"""

from __future__ import annotations

import errno
import os
import re
import signal

from training.distributed import rank

VARIABLE = "VIDEOGEN_FAULT"


def fault_point(place: str, step: int) -> None:
    """Suffer the fault that the environment orders for this place and step."""
    order = os.environ.get(VARIABLE)
    if not order:
        return
    match = re.fullmatch(r"(kill|exit|term|full)_(\w+)@(\d+)(?::(\d+))?", order)
    if match is None:
        raise ValueError(f"{VARIABLE}={order}: expected <action>_<place>@<step>[:<rank>]")
    action, ordered_place, ordered_step, ordered_rank = match.groups()
    if (ordered_place, int(ordered_step)) != (place, step) or (ordered_rank and int(ordered_rank) != rank()):
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "exit":
        os._exit(9)
    elif action == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
