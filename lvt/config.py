"""Configuration files and KEY VALUE overrides -> one nested dictionary with every key."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from lvt.defaults import DEFAULTS
from training.config import dotted_keys, load_config, split_overrides, unknown_key
from videodata.errors import UserError

OF_A_RUN = ("model", "training")  # what the training loop adds to the config.yaml of a run


def load(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The defaults, under the file (and its _BASE_), under KEY VALUE pairs.

    Raises UserError for unknown keys, naming the nearest one, and for values of another type than the default's.
    """
    config = deepcopy(DEFAULTS)
    file = {key: value for key, value in load_config(path).items() if key not in OF_A_RUN}
    override(config, file, str(path))
    for key, value in split_overrides(overrides):
        override(config, nested(key, value), "the command line")
    return config


def override(config: dict[str, Any], changes: dict[str, Any], source: str, prefix: str = "") -> None:
    """Set the values of a nested dictionary in `config`, in place."""
    for key, value in changes.items():
        dotted = prefix + key
        if key not in config:
            raise unknown_key(f"{dotted} of {source}", [f"{prefix}{name} of {source}" for name in config])
        if isinstance(config[key], dict):
            if not isinstance(value, dict):
                raise UserError(f"{source}: {dotted} is a group of keys: {', '.join(dotted_keys(config[key]))}")
            override(config[key], value, source, f"{dotted}.")
        else:
            config[key] = checked(dotted, value, config[key], source)


def checked(key: str, value: Any, default: Any, source: str) -> Any:
    """The value, with the type of the default. Raises UserError when it has another type."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, str) and value is None:
        return ""
    if type(value) is type(default):
        return value
    advice = f"write \"('{value}',)\"" if isinstance(default, list) and isinstance(value, str) else ""
    kinds = {list: "a tuple such as \"('a', 'b')\" or (7, 1, 1)"}
    expected = kinds.get(type(default), type(default).__name__)
    raise UserError(f"{source}: {key} must be {expected}, found {value!r}" + (f"; {advice}" if advice else ""))


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """ "A.B" and a value -> {"A": {"B": value}}."""
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value
