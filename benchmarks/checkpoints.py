"""What a save costs the processes of a sharded training: memory, and the time in which no process trains.

Two ways, in turn, in the same processes with the same state (weights, averages and the two moments of AdamW): each
process gathers all of it (torch's `get_state_dict(full_state_dict=True)`) and the first one writes one file, or each
writes its own shards in the background. Memory: the peak of a process above what it held before, over its shard, the
largest of all processes. Time: until all processes are free to train, medians over rounds. Prints ratios first.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python benchmarks/...` finds the packages

from training import Recipe, TrainSettings, distributed
from training.checkpoint import MANIFEST_FACTS, ShardedSaver, save_checkpoint
from training.cli import make_parser, number, positive_int, run
from training.state import TrainState, build_state, flatten

WIDTH = 512
MEGABYTE = 1e6
LIBC = ctypes.CDLL(None)
M_MMAP_THRESHOLD, LARGE = -3, 2**16  # of mallopt(3): memory of tensors goes back to the system when they do


class Stack(Recipe):
    """Square layers."""

    name = "stack"
    ema_networks = ("network",)
    shard_types = (nn.Linear,)

    def __init__(self, parameters: int) -> None:
        with distributed.made_on_main(True):
            network = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(max(1, parameters // WIDTH**2))))
        super().__init__({"network": network}, {"network": torch.optim.AdamW(network.parameters(), lr=1e-4)})

    def losses(self, *_: Any) -> Any:
        raise NotImplementedError("it is never trained")


def build(parameters: int, replicas: int, folder: Path) -> TrainState:
    """The state after one step, so that there are moments."""
    settings = TrainSettings(folder, steps=1, fsdp=True, replicas=replicas, ema=0.9, device="cpu")
    state = build_state(Stack(parameters), settings, torch.device("cpu"))
    state.networks["network"](torch.ones(1, WIDTH)).sum().backward()
    for optimizer in state.optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state.averaged.update(state.networks)
    return state


def peak() -> int:
    """Bytes of the largest memory of this process since `forget_peak`."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def forget_peak() -> int:
    """Bytes that this process holds now, from which its peak is counted anew."""
    gc.collect()
    LIBC.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def measured(save: Callable[[], object], end: Callable[[], object]) -> dict[str, float]:
    """Of this process: bytes, seconds until all can train, and until all is written."""
    distributed.barrier()
    before, start = forget_peak(), time.perf_counter()
    save()
    distributed.barrier()
    blocking = time.perf_counter() - start
    end()
    distributed.barrier()
    return {"bytes": peak() - before, "blocking": blocking, "all": time.perf_counter() - start}


def gather(state: TrainState, facts: dict[str, Any], folder: Path) -> None:
    """Every process gathers the whole state, and the first writes it."""
    options = StateDictOptions(full_state_dict=True)
    network, optimizer = get_state_dict(state.networks["network"], state.optimizers["network"], options=options)
    averages = get_model_state_dict(state.averaged.networks["network"], options=options)
    whole = {"networks": {"network": network}, "ema": {"network": averages}, "optimizers": {"network": optimizer}}
    complete = {**state.collect(whole=False), **facts, **whole}
    if distributed.is_main():
        save_checkpoint(folder, complete, {name: complete[name] for name in MANIFEST_FACTS})


def process(number: int, world: int, folder: Path, parameters: int, replicas: int, rounds: int) -> None:
    """One of the processes; writes its measurements."""
    LIBC.mallopt(M_MMAP_THRESHOLD, LARGE)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=number, world_size=world)
    state = build(parameters, replicas, folder)
    facts = {"config": {}, "torch": str(torch.__version__), "device_type": "cpu", "world_size": world}
    saver = ShardedSaver(folder / "parts", 0, 1, None)
    own = [value for _, value in flatten(state.collect(whole=False)) if isinstance(value, DTensor)]
    found = {"shard": sum(value.to_local().nbytes for value in own), "gathered": [], "parts": []}
    del own
    for step in range(rounds):
        state.step = step
        found["gathered"].append(measured(lambda: gather(state, facts, folder / "whole"), lambda: None))
        parts = measured(lambda: saver.save({**state.collect(whole=False), **facts}), saver.settle)
        found["parts"].append(parts)
        if distributed.is_main():
            shutil.rmtree(folder / "whole")
    (folder / f"{number}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--processes", type=number(int, 2, 64), default=4, help="processes, of this machine")
    parser.add_argument("--replicas", type=positive_int, default=1, help="groups of them that hold a copy each")
    parser.add_argument("--parameters", type=positive_int, default=50, help="size of the network, in millions")
    parser.add_argument("--rounds", type=positive_int, default=5, help="saves of each way")
    parser.add_argument("--out", type=Path, help="folder to write to (default: a temporary one)")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.out) as name:
        folder = Path(name)
        sizes = (args.processes, folder, args.parameters * 10**6, args.replicas, args.rounds)
        torch.multiprocessing.start_processes(process, sizes, nprocs=args.processes, start_method="fork")
        found = [json.loads((folder / f"{number}.json").read_text()) for number in range(args.processes)]
    ways = ("gathered", "parts")
    memory = {way: max(median(e["bytes"] for e in own[way]) / own["shard"] for own in found) for way in ways}
    rounds = {way: [max(own[way][n]["blocking"] for own in found) for n in range(args.rounds)] for way in ways}
    seconds = {way: median(rounds[way]) for way in ways}
    done = {way: median(entry["all"] for entry in found[0][way]) for way in ways}
    print(f"time that a save blocks, in parts / gathered: {seconds['parts'] / seconds['gathered']:.3f}")
    print(f"memory at a save, over the shard: {memory['parts']:.2f} in parts, {memory['gathered']:.2f} gathered")
    print(f"shard: {found[0]['shard'] / MEGABYTE:.0f} MB of each of {args.processes} processes")
    for way in ways:
        print(f"{way}: {seconds[way]:.2f} s until all can train, {done[way]:.2f} s until all is written")


if __name__ == "__main__":
    run(main)
