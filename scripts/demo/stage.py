"""What the models' demonstrations share: the folder, the data, and a way to run the project's own scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from evaluation.metrics import psnr
from videodata.clips import ClipDataset, open_clips
from videodata.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
FRAMES = 8  # of a clip
SHOWN = 4  # clips of a kind


@dataclass
class Stage:
    """One demonstration run: `folder` holds all that it writes, `clips` is the prepared .npy."""

    folder: Path
    clips: Path
    effort: float = 1.0  # factor on the steps of every training
    threads: int | None = None  # of each script; None: as many as PyTorch wants

    def steps(self, count: int) -> int:
        """So many optimiser steps at effort 1."""
        return max(2, round(count * self.effort))

    def validation(self, size: int) -> ClipDataset:
        """The validation clips, (3, FRAMES, size, size) in [-1, 1]."""
        return open_clips(str(self.clips), frames=FRAMES, size=size, split="val")

    @cached_property
    def shown(self) -> int:
        """How many validation clips are shown."""
        return min(SHOWN, len(self.validation(64)))

    def mean_frame_psnr(self, size: int) -> float:
        """The trivial reconstruction: PSNR of every validation clip's mean frame, in dB."""
        clips = (clip[None] for clip in self.validation(size))
        return fmean(float(psnr(clip, clip.mean(dim=2, keepdim=True).expand_as(clip))) for clip in clips)

    def run(self, what: str, script: str, *arguments: object) -> None:
        """Run one of the project's scripts as a user would; its output goes to the log folder.

        Raises UserError with the end of the log when it fails.
        """
        command = [sys.executable, *script.split(), *map(str, arguments)]
        log = self.folder / "log" / f"{what.replace(' ', '-')}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"  {what} ...", flush=True)
        start = time.monotonic()
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        with open(log, "w") as output:
            output.write(" ".join(command) + "\n")
            output.flush()
            result = subprocess.run(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False, env=os.environ | threads
            )
        if result.returncode != 0:
            last = (log.read_text().strip().splitlines() or ["no output"])[-1]
            raise UserError(f"the demonstration stopped while it wanted to {what}: {last} (all of it: {log})")
        print(f"  {what}: done in {time.monotonic() - start:.0f} s", flush=True)


def read_scores(path: Path) -> dict[str, float]:
    """The means of an evaluation by name."""
    return {score["name"]: score["mean"] for score in json.loads(path.read_text())["scores"]}


def clip_names(count: int) -> list[str]:
    """Headings of the columns."""
    return [f"clip {number + 1}" for number in range(count)]
