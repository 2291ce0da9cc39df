"""A small cluster of Ray on this machine, for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

TRIES = 3


@contextmanager
def local_ray(workers: int) -> Iterator[None]:
    """A cluster with so many workers for the length of the block; the test is skipped where Ray is not installed."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    for left in reversed(range(TRIES)):
        try:
            ray.init(num_cpus=workers, include_dashboard=False, logging_level="ERROR", object_store_memory=100 << 20)
            break
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error) or not left:  # it waits 30 seconds, whatever the machine
                raise
    yield
    ray.shutdown()
