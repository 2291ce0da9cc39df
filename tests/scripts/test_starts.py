"""Starting costs what is used: short commands, and the modules behind the trainings, import no library in vain."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 0.4  # of the processor, on a free core of 2026
IN_VAIN = ("h5py", "filelock", "rarfile", "torch", "scipy", "torchvision", "tensorboard", "pandas", "matplotlib")
PREPARING = ("prepare_ucf101.py --help", "scripts/prepare_data.py --help", "scripts/convert_to_h5.py --help")
SHORT = [*PREPARING, "main.py --help", "scripts/evaluate.py --protocol list", "scripts/encode.py --nonsense"]
UNUSED = ["torch.distributed.tensor", "torchvision", "sklearn", "pandas", "matplotlib", "scipy", "wandb"]
MODULES = {
    "losses": ["lpips"],
    "flow_pred.train": ["vector_quantize_pytorch"],
    "video_vae.train": ["vector_quantize_pytorch", "h5py"],
    "vqgan.train": ["h5py"],
    "lvt.train": ["vector_quantize_pytorch"],
    "tokenizer3d.train": ["vector_quantize_pytorch"],
}

IMPORT_EACH = """
import os, sys, torch
for words in sys.argv[1:]:
    module, *unused = words.split()
    if os.fork() == 0:
        __import__(module)
        print(module, *[name for name in unused if name in sys.modules], flush=True)
        os._exit(0)
    os.wait()
"""


def ran(command: str) -> tuple[set[str], float]:
    """The modules that a command imports, and what it costs, in CPU seconds."""
    before = os.times()
    words = [sys.executable, "-X", "importtime", *command.split()]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    after = os.times()
    assert done.returncode in (0, 2), done.stderr[-500:]
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    spent = sum(after[2:4]) - sum(before[2:4])
    return modules, spent


@pytest.mark.parametrize("command", SHORT)
def test_short_commands_are_light(command):
    """By what they import, and by twice the time that they take on a free core."""
    modules, seconds = ran(command)
    assert modules & set(IN_VAIN) == set()
    assert seconds < 2 * SECONDS


@pytest.mark.slow
@pytest.mark.posix
def test_modules_import_what_they_use():
    """Libraries for sharded networks, augmentation, metrics and quantisers that a run may not have. torch is imported
    once, in a new process, and each module in one that is forked from there.
    """
    asked = [" ".join([module, *UNUSED, *unused]) for module, unused in MODULES.items()]
    words = [sys.executable, "-c", IMPORT_EACH, *asked]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines() == list(MODULES), done.stderr
