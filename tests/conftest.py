"""Shared by all tests: one thread per process, and the optional folders of real clips and parity fixtures."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
import torch._dynamo

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that are about Linux and macOS are skipped where there is no fork."""
    if item.get_closest_marker("posix") and not hasattr(os, "fork"):
        pytest.skip("needs a system with fork, signals and limits")


def _shared_folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: the real {name} do not ship with the project")
    return folder


@pytest.fixture(scope="session")
def clips() -> Path:
    """Folder of real and synthetic test videos; the test is skipped where it is absent."""
    return _shared_folder("clips")


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Folder of parity fixtures (weights, inputs, outputs); the test is skipped where it is absent."""
    return _shared_folder("fixtures")
