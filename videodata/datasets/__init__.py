"""The published data sets: where they are, how they are divided, what their files are called, how many there are."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videodata.datasets.dataset import DataSet


def data_sets() -> list[type[DataSet]]:
    """Every data set of the modules of this folder that has a command, by name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        for entry in vars(import_module(f"{__name__}.{module.name}")).values():
            if isinstance(entry, type) and getattr(entry, "help", "") and getattr(entry, "name", ""):
                found[entry.name] = entry
    return [found[name] for name in sorted(found)]
