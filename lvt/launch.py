"""Starts one process per GPU, on one machine or as one of several, when a flag asks for it in place of torchrun."""

from __future__ import annotations

import os
import sys
from urllib.parse import urlsplit

from videodata.errors import UserError


def relaunch(
    script: str, arguments: list[str], gpus: int, machines: int = 1, machine: int = 0, dist_url: str = "auto"
) -> None:
    """Replace this process by `torchrun script arguments`; does nothing for one process, or under torchrun already.

    dist_url: tcp://host:port where the machines meet; "auto" for a single machine. Raises UserError.
    """
    if "RANK" in os.environ or gpus * machines == 1:
        return
    if gpus < 1 or machines < 1 or not 0 <= machine < machines:
        raise UserError("--num-gpus and --num-machines must be at least 1, --machine-rank below --num-machines")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(gpus)]
    os.execv(sys.executable, [*command, *meeting_place(machines, machine, dist_url), script, *arguments])


def meeting_place(machines: int, machine: int, dist_url: str) -> list[str]:
    """torchrun's flags for where the processes meet."""
    if dist_url == "auto":
        if machines > 1:
            raise UserError("several machines need --dist-url tcp://<host of machine 0>:<port>")
        return ["--standalone"]
    address = urlsplit(dist_url)
    if address.scheme != "tcp" or not address.hostname or not address.port:
        raise UserError(f"--dist-url {dist_url}: write tcp://<host>:<port>")
    place = ["--master-addr", address.hostname, "--master-port", str(address.port)]
    return ["--nnodes", str(machines), "--node-rank", str(machine), *place]
