"""Small commands of every kind, and what they write: for benchmarks that disturb them.

A command runs in a process that is forked from one which has imported everything already: fifty of them pay for the
imports once, and a kill meets the work and not the imports.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.context import ForkProcess
from pathlib import Path

import av
import h5py
import numpy as np
import torch
import yaml
from PIL import Image

from training.checkpoint import read_tensors
from training.lanes import run_command
from videodata.files import TEMPORARY, sha256_of

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("commands.yaml")
KINDS = ("prepare", "train", "encode", "evaluate", "show")
PRELOADED = (
    *("scripts.evaluate", "evaluation.gallery", "evaluation.runner", "evaluation.videos", "tensorboard"),
    *("torch.utils.tensorboard", "video_vae.train", "video_vae.train_prior", "video_vae.evaluate", "vqgan.train"),
    *("vqgan.project", "vqgan.evaluate", "lvt.train", "lvt.evaluate", "vvae.train", "vvae.commands", "vvae.evaluate"),
    *("flow_pred.train", "flow_pred.train_autoencoder", "flow_pred.evaluate", "flow_pred.predict"),
    *("tokenizer3d.train", "tokenizer3d.films", "tokenizer3d.evaluate", "tokenizer3d.scores", "training.encoded"),
)
# What two runs do not have in common: times of the day, and how fast the machine was.
OF_THE_CLOCK = ("train.log", "events.out.tfevents")
SPEED = "samples_per_second"
POLL, LONGEST_POLL = 0.002, 0.1  # seconds between looks at a process
SHOWN = 8  # names in a line


@dataclass(frozen=True)
class Command:
    """One command of the table."""

    name: str
    kind: str
    needs: tuple[str, ...]
    words: tuple[str, ...]

    def start(self, folder: Path, log: Path) -> ForkProcess:
        """Start it in the folder; what it says is added to the file `log`."""
        process = multiprocessing.get_context("fork").Process(target=_work, args=(folder, list(self.words), log))
        process.start()
        return process

    def run(self, folder: Path, log: Path) -> float:
        """Run it undisturbed; gives its CPU seconds. Raises SystemExit with the end of the log where it fails."""
        process = self.start(folder, log)
        spent = watch(process)
        self.check(process, log)
        return spent

    def check(self, process: ForkProcess, log: Path) -> None:
        """Raise SystemExit when it has failed."""
        if process.exitcode:
            raise SystemExit(f"{self.name}: ended with status {process.exitcode}\n{log.read_text()[-2000:]}")


def watch(process: ForkProcess, until: float = math.inf) -> float:
    """Wait until the process has ended, or has used so many CPU seconds; gives those that it has used.

    Not by the clock: on a machine that others use, the same work takes now a second and now a minute.
    """
    spent = 0.0
    while process.exitcode is None and spent < until:
        process.join(min(max(POLL, (until - spent) / 2), LONGEST_POLL))
        spent = max(spent, cpu_seconds(process.pid))
    return spent


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process, without its children; 0 when it is gone."""
    with suppress(OSError, ValueError):
        return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
    return 0.0


def _work(folder: Path, words: list[str], log: Path) -> None:
    torch.set_num_threads(1)
    run_command(folder, words, log)


def read_commands() -> dict[str, Command]:
    """The commands of the table by name, those that others need first."""
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    words = {name: text.format(configs=ROOT / "configs") for name, text in table["common"].items()}
    commands: dict[str, Command] = {}

    def add(name: str) -> None:
        entry = table["commands"][name]
        for needed in entry.get("needs", ()):
            add(needed)
        run = entry["run"].format(**words, configs=ROOT / "configs")
        commands.setdefault(name, Command(name, entry["kind"], tuple(entry.get("needs", ())), tuple(shlex.split(run))))

    for name in table["commands"]:
        add(name)
    return commands


def preload() -> None:
    """Import all that the commands import, and nothing that starts a thread."""
    for name in (*PRELOADED, *(command.words[0].removesuffix(".py").replace("/", ".") for command in
                               read_commands().values())):  # fmt: skip
        import_module(name)


class Workshop:
    """A folder in which each command has been run undisturbed once, where somebody asked for it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commands = folder, read_commands()
        self.seconds: dict[str, float] = {}  # of the CPU, of the undisturbed commands

    def undisturbed(self, name: str) -> Path:
        """The folder with all that the command has written, and what it needed."""
        folder = self.folder / "undisturbed" / name
        if name not in self.seconds:
            self.lay_out(name, folder)
            self.seconds[name] = self.commands[name].run(folder, self.log(name))
        return folder

    def lay_out(self, name: str, folder: Path) -> None:
        """Make the folder in which the command can be run for the first time."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for needed in self.commands[name].needs:
            shutil.copytree(self.undisturbed(needed), folder, symlinks=True, dirs_exist_ok=True)

    def bytes_written(self, name: str) -> int:
        """By the undisturbed command, without what it needed."""
        before = sum(size_of(self.undisturbed(needed)) for needed in self.commands[name].needs)
        return size_of(self.undisturbed(name)) - before

    def log(self, name: str) -> Path:
        """Where it is written what the command says."""
        return self.folder / f"{name}.txt"


def files_below(folder: Path) -> Iterator[Path]:
    """All files, hidden ones too."""
    for place, _, names in os.walk(folder):
        for name in names:
            yield Path(place, name)


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in files_below(folder))


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of all that can be compared, by its path in the folder.

    Left out are unfinished files, and locks: the empty file of a process that was killed is taken by the next one that
    has something to do.
    """
    return {
        str(path.relative_to(folder)): digest(path)
        for path in sorted(files_below(folder))
        if path.suffix != ".lock" and not path.name.startswith(OF_THE_CLOCK) and not is_unfinished(path)
    }


def compared(whole: dict[str, str], found: dict[str, str]) -> list[str]:
    """A line that names the files in which two `contents` differ; none where they agree."""
    different = [name for name in sorted({*whole, *found}) if whole.get(name) != found.get(name)]
    more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    return [f"other bytes in {', '.join(different[:SHOWN])}{more}"] if different else []


def digest(path: Path) -> str:
    """Of the bytes; of a log of numbers without those that tell how fast the machine was."""
    if path.name != "metrics.jsonl":
        return sha256_of(path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return hashlib.sha256(json.dumps([{**row, SPEED: None} for row in rows]).encode()).hexdigest()


def is_unfinished(path: Path) -> bool:
    """Whether its name says that the file is being written."""
    return path.name.startswith(".") and (path.name.endswith(TEMPORARY) or ".partial." in path.name)


GROWING = (".partial", ".progress", ".journal.jsonl", ".lock", ".jsonl", ".log")  # that say themselves how far they are


def torn_files(folder: Path, whole: dict[str, str]) -> list[str]:
    """Files of a disturbed command that have a final name and are not what that name promises.

    whole: `contents` of an undisturbed run. Text that grows line by line, and what bears the name of something
    unfinished, is passed over.
    """
    found = []
    for path in sorted(files_below(folder)):
        name = str(path.relative_to(folder))
        if is_unfinished(path) or path.name.startswith(OF_THE_CLOCK) or ".partial" in name or name.endswith(GROWING):
            continue
        try:
            read_whole(path)
        except Exception as error:  # noqa: BLE001
            found.append(f"{name}: {type(error).__name__} {' '.join(str(error).split())[:100]}")
            continue
        if name in whole and path.suffix in WRITTEN_ONCE and digest(path) != whole[name]:
            found.append(f"{name}: is not that of the undisturbed run")
    return found


def read_film(path: Path) -> None:
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) > 0


def read_hdf5(path: Path) -> None:
    with h5py.File(path) as file:
        file.visititems(lambda _, item: item[()] if isinstance(item, h5py.Dataset) else None)


READERS: dict[str, Callable[[Path], object]] = {
    ".npy": np.load,
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".yaml": lambda path: yaml.safe_load(path.read_text(encoding="utf-8")),
    ".pt": read_tensors,
    ".pth": read_tensors,
    ".safetensors": read_tensors,
    ".hdf5": read_hdf5,
    ".h5": read_hdf5,
    ".png": lambda path: Image.open(path).load(),
    ".mp4": read_film,
}
WRITTEN_ONCE = {*READERS} - {".json", ".yaml"}  # what stands in a .json may grow


def read_whole(path: Path) -> None:
    """Read all of a file. Raises what its reader raises; a kind of file that is not known is an error, too."""
    READERS.get(path.suffix, Path.read_text)(path)
