"""Parity fixtures as dictionaries of tensors with their configuration."""

import json

import pytest
from safetensors import safe_open


class Fixture(dict):
    """Tensors of one file by name; `config` is the configuration they were made with."""

    def __init__(self, path):
        with safe_open(path, framework="pt") as file:
            super().__init__({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            metadata = file.metadata() or {}
        self.config = json.loads(metadata["config"]) if "config" in metadata else {}

    def below(self, prefix):
        """The tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): value for name, value in self.items() if name.startswith(prefix)}


@pytest.fixture(scope="session")
def load_fixture(fixtures):
    """Opens a parity fixture by name."""
    opened = {}

    def load(name):
        if name not in opened:
            opened[name] = Fixture(fixtures / "lvt" / f"{name}.safetensors")
        return opened[name]

    return load
