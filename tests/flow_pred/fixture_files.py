"""Parity fixtures as tensors."""

import json
from pathlib import Path

import torch
from safetensors import safe_open


class Fixture:
    """One file: `fixture["in.state"]`, `fixture.weights()`, and metadata values parsed from JSON."""

    def __init__(self, fixtures: Path, name: str) -> None:
        with safe_open(fixtures / "flow_pred" / f"{name}.safetensors", "pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.metadata = {key: parse(value) for key, value in file.metadata().items()}

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def weights(self, prefix: str = "sd.") -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def inputs(self) -> dict[str, torch.Tensor]:
        return self.weights("in.")

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        return self.weights(prefix)


def parse(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def regressor(fixtures: Path, name: str) -> torch.nn.Module:
    """The network of a fixture, in eval mode."""
    from flow_pred import VectorFieldRegressor

    fixture = Fixture(fixtures, name)
    network = VectorFieldRegressor(**fixture.metadata["config"])
    network.load_state_dict(fixture.weights())
    return network.eval()


def shapes_of(module: torch.nn.Module) -> dict[str, list[int]]:
    """Key -> shape of a state dict."""
    return {key: list(value.shape) for key, value in module.state_dict().items()}


def key_list(fixtures: Path, name: str) -> dict[str, list[int]]:
    return json.loads((fixtures / "flow_pred" / f"keys_{name}.json").read_text())
