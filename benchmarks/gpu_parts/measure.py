"""How long a call takes on a device, how much memory, and what share of the device's arithmetic that is.

A `Contestant` is one way to do a job; `race` lets several of them take turns. What fails, for lack of memory or of a
compiler, becomes the contestant's `problem` and ends nothing else.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from training.cli import is_out_of_memory
from training.distributed import resolve_device

GIB = 2**30
WARM_UP = 2  # calls that are not timed: the first builds, the second finds its memory in place
ROUNDS = 3

# Dense TFLOP/s with sums in float32: (name as torch gives it, float32 without tensor cores, TF32, bfloat16).
# Sources: NVIDIA's data sheets of H200, H100, A100, L40S, L4, A10 and of HGX B200 (an eighth of eight, half of what
# stands there for sparse matrices); GeForce: appendices of the white papers of the architectures GA102, Ada and
# Blackwell RTX.
PEAKS = (
    (r"B200", 75.0, 1125.0, 2250.0),
    (r"H200", 67.0, 494.5, 989.0),
    (r"H200 NVL", 60.0, 417.5, 835.5),
    (r"H100 80GB HBM3", 67.0, 494.5, 989.0),
    (r"H100 NVL", 60.0, 417.5, 835.5),
    (r"H100 PCIe", 51.0, 378.0, 756.0),
    (r"A100-(SXM4|PCIE)-(40|80)GB|A100 80GB PCIe", 19.5, 156.0, 312.0),
    (r"L40S", 91.6, 183.0, 362.0),
    (r"L4", 30.3, 60.0, 121.0),
    (r"A10", 31.2, 62.5, 125.0),
    (r"GeForce RTX 5090", 104.8, 104.8, 209.5),
    (r"GeForce RTX 4090", 82.6, 82.6, 165.2),
    (r"GeForce RTX 3090", 35.6, 35.6, 71.0),
)
PRECISIONS = ("fp32", "tf32", "bf16")


def peak_flops(device_name: str, precision: str) -> float | None:
    """FLOP/s that a GPU of this name can reach in `fp32`, `tf32` or `bf16`; None for one that is not in the table.

    Names must be whole: a part of a GPU ("... MIG 1g.10gb") or a laptop's is another device.
    """
    name = device_name.removeprefix("NVIDIA ")
    for pattern, *tera in PEAKS:
        if re.fullmatch(pattern, name):
            return 1e12 * tera[PRECISIONS.index(precision)]
    return None


def utilization(flops: float, seconds: float, peak: float | None) -> float | None:
    """Share of the peak that `flops` in `seconds` are: MFU, where they are those that the model needs."""
    return None if peak is None else flops / seconds / peak


@dataclass
class Job:
    """Where a part runs, at which size, and how long it may take."""

    device_name: str = "auto"
    small: bool = False
    seconds: float = 60.0
    start: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        return resolve_device(self.device_name)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self.start)

    @property
    def turns(self) -> tuple[int, float]:
        """Calls in a round of `race` at most, and seconds after which no further one begins."""
        return (1, 0.0) if self.small else (5, 0.6)


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """In the block, matrix products and convolutions in float32 are rounded to TF32 on a GPU, or are not."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = on
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def one_line(error: BaseException) -> str:
    """What went wrong, short enough for a table."""
    if is_out_of_memory(error):
        return "out of memory"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


@dataclass
class Contestant:
    """One way to do a job. precision: fp32 turns TF32 off, tf32 and bf16 leave it on; bf16 is up to the call itself."""

    name: str
    call: Callable[[], object]
    precision: str = "tf32"
    seconds: list[float] = field(default_factory=list)
    first: float = 0.0  # seconds of the first call
    peak: int = 0  # bytes on the GPU; 0 on a CPU
    held: int = 0  # of them before a call: weights and moments, those of the other contestants too
    problem: str | None = None

    def warm_up(self, device: torch.device) -> None:
        """The calls that are not timed."""
        for number in range(WARM_UP):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                self.held = torch.cuda.memory_allocated(device)
            self.run(device)
            if number == 0 and self.seconds:
                self.first = self.seconds[0]
            if self.problem:
                break
        if device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(device)
        self.seconds.clear()

    def run(self, device: torch.device) -> None:
        """One call; after a problem none."""
        if self.problem:
            return
        try:
            with tf32(self.precision != "fp32"):
                wait(device)
                start = time.perf_counter()
                self.call()
                wait(device)
                self.seconds.append(time.perf_counter() - start)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
            self.problem = one_line(error)
        if self.problem:
            free_memory(device)  # here, where the error with its frames is gone

    def row(self, what: str, unit: str, count: float = 1, base: Contestant | None = None, **more: Any) -> dict:
        """A line of the table: `count` times `unit` is what a call makes; base: what it is compared with."""
        row: dict[str, Any] = {"what": what, "way": self.name}
        if self.problem or not self.seconds:
            return {**row, "problem": self.problem or "not run"}
        seconds = median(self.seconds)
        row |= {
            "calls": len(self.seconds),
            f"seconds per {unit}": seconds / count,
            f"{unit}s per second": count / seconds,
        }
        if base is not None and base.seconds:
            row["times as fast"] = median(base.seconds) / seconds
        if self.peak:
            row |= {"peak GiB": self.peak / GIB, "held before": self.held / GIB}
        return {**row, **{key: value for key, value in more.items() if value is not None}}


def race(contestants: Sequence[Contestant], job: Job) -> None:
    """Warm all up, then let them take turns in rounds, so that a clock that changes changes for all."""
    device, (calls, seconds) = job.device, job.turns
    for contestant in contestants:
        contestant.warm_up(device)
    for number in range(1 if job.small else ROUNDS):
        for contestant in contestants:
            if number and job.left < 2 * sum(contestant.seconds[-1:]):
                return
            start = time.perf_counter()
            for _ in range(calls):
                contestant.run(device)
                if time.perf_counter() - start > seconds:
                    break
