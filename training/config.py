"""Configuration: YAML files and command-line overrides -> plain dicts -> dataclasses."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import logging
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from videodata.errors import UserError, said_by

logger = logging.getLogger(__name__)
T = TypeVar("T")
BASE = "_BASE_"  # key that names the file below, relative to the file that holds it
NAMES = ("classes", "CLASSES")  # keys of lists of names, which stay text although some look like numbers
RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")  # ${oc.env:HOME} and its like
# What the parser of YAML and OmegaConf raise for a text that is none, or a date that does not exist.
UNREADABLE = (
    yaml.YAMLError,
    OmegaConfBaseException,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)
LITERAL = re.compile(r"\s*(\(.*\)|\[.*\]|[-+]?[\d.][\d.eE_+-]*)\s*")


def load_config(path: str | Path, overrides: Sequence[str] = (), kind: type | None = None) -> dict[str, Any]:
    """A YAML file, on top of its _BASE_, under the overrides, as plain dicts and lists.

    Overrides are `key=value` entries, or KEY VALUE pairs; keys are dotted and must exist, in the file or among the
    fields of the dataclass `kind`; the value null clears.
    Strings that look like a number or a tuple become one. ${other.key} is replaced, ${resolver:...} is an error.
    Raises UserError for a file that is missing or no YAML and for an unknown key.
    """
    config = literals(read_with_base(Path(path), ()))
    fields = field_keys(kind) if kind else []
    for key, value in split_overrides(overrides):
        set_known(config, key, value, fields)
    return interpolate(config, path)


def read_with_base(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping in a YAML file merged over the one that its _BASE_ names."""
    if path in above:
        raise UserError(f"{path}: {BASE} leads back to the file itself")
    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path of the configuration") from error
    except UNREADABLE as error:
        raise UserError(f"{path}: not plain YAML: {said_by(error)}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds no mapping of keys to values")
    base = config.pop(BASE, None)
    if base is None:
        return config
    if not isinstance(base, str):
        raise UserError(f"{path}: {BASE} must name a file, found {base!r}")
    try:
        below = (path.parent / base).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a zero byte, or links that lead in a circle
        raise UserError(f"{path}: {BASE} names no file: {said_by(error)}") from error
    return merged(read_with_base(below, (*above, path)), config)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, dict by dict."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def literals(value: Any) -> Any:
    """Nested configuration in which strings such as "(7, 1, 1)" or "1e-4" are lists and numbers."""
    if isinstance(value, dict):
        return {str(key): entry if key in NAMES else literals(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [literals(entry) for entry in value]
    if isinstance(value, str) and LITERAL.fullmatch(value):
        try:
            parsed = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            return value
        return literals(parsed) if isinstance(parsed, (int, float, tuple, list)) else value
    return value


def split_overrides(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """`key=value` entries or KEY VALUE pairs -> (dotted key, value). Raises UserError for a key without value."""
    pairs, entries = [], list(overrides)
    while entries:
        key = entries.pop(0)
        if "=" in key:
            key, text = key.split("=", 1)
        elif entries:
            text = entries.pop(0)
        else:
            raise UserError(f"override {key!r} has no value: write {key}=value or {key} value")
        with suppress(*UNREADABLE):  # YAML, with numbers and tuples as in a file; null is None
            text = literals(yaml.safe_load(text))
        pairs.append((key.strip(), text))
    return pairs


def set_known(config: dict[str, Any], dotted: str, value: Any, fields: Sequence[str] = ()) -> None:
    """Set a key that exists, or one of `fields`. Raises UserError naming the nearest known key otherwise."""
    known = dotted_keys(config)
    if dotted not in known and dotted not in fields:
        raise unknown_key(dotted, {*known, *fields})
    *path, last = dotted.split(".")
    node = config
    for part in path:
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    node[last] = value


def field_keys(kind: type, prefix: str = "") -> list[str]:
    """All dotted keys of a dataclass and of the dataclasses in it."""
    keys = []
    for name, hint in typing.get_type_hints(kind).items():
        keys.append(prefix + name)
        if dataclasses.is_dataclass(hint):
            keys += field_keys(hint, f"{prefix}{name}.")
    return keys


def dotted_keys(config: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in config.items():
        keys.append(prefix + key)
        if isinstance(value, dict):
            keys += dotted_keys(value, f"{prefix}{key}.")
    return keys


def unknown_key(key: str, known: Iterable[str], what: str = "configuration key") -> UserError:
    """The error for a name that nobody knows, with the nearest one that is known."""
    known = sorted(known)
    near = difflib.get_close_matches(key, known, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return UserError(f"unknown {what} {key!r}; {hint}")


def interpolate(config: dict[str, Any], source: object) -> dict[str, Any]:
    """Replace ${other.key}. Raises UserError for a resolver, because that would read the environment."""
    for text in strings(config):
        if RESOLVER.search(text):
            raise UserError(f"{source}: {text!r} calls a resolver; only ${{other.key}} is supported, write the value")
    try:
        return OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except UNREADABLE as error:
        raise UserError(f"{source}: {said_by(error)}") from error


def strings(value: Any) -> list[str]:
    if isinstance(value, (dict, list)):
        entries = value.values() if isinstance(value, dict) else value
        return [text for entry in entries for text in strings(entry)]
    return [value] if isinstance(value, str) else []


def from_dict(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """A dataclass from a mapping, nested dataclasses included.

    Raises UserError naming the nearest known key for an unknown one, a missing key, and a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where or kind.__name__}: expected keys and values, found {values!r}")
    known = {entry.name: entry for entry in dataclasses.fields(kind) if entry.init}
    hints = typing.get_type_hints(kind)
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in known:
            raise unknown_key(f"{prefix}{key}", [prefix + name for name in known])
    for name, entry in known.items():
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UserError(f"configuration key {prefix}{name!r} is missing")
    return kind(**{key: convert(value, hints[key], prefix + key) for key, value in values.items()})


def convert(value: Any, hint: Any, key: str) -> Any:
    """The value as the type of a field. Raises UserError when it is none."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (value is None and type(None) in parts):
        return value
    if origin in (typing.Union, types.UnionType):
        return convert_to_any(value, [part for part in parts if part is not type(None)], hint, key)
    if origin is typing.Literal:
        fits = value in parts
    elif dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, key)
    elif origin in (list, tuple, Sequence):
        return convert_sequence(value, origin, parts, key)
    elif hint is float:
        fits, value = is_number(value), float(value) if is_number(value) else value
    elif hint is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif hint is Path:
        fits, value = isinstance(value, (str, Path)), Path(value) if isinstance(value, str) else value
    else:
        plain = origin or hint
        fits = isinstance(value, Mapping if plain is dict else plain) if isinstance(plain, type) else True
    if not fits:
        raise wrong_type(value, hint, key)
    return value


def convert_to_any(value: Any, hints: list[Any], union: Any, key: str) -> Any:
    """The value as the first type of a union that takes it."""
    for hint in hints:
        try:
            return convert(value, hint, key)
        except UserError as error:
            if len(hints) == 1:
                raise
            logger.debug("%s", error)
    raise wrong_type(value, union, key)


def convert_sequence(value: Any, origin: type, parts: tuple, key: str) -> Any:
    """A list as list[x], tuple[x, ...] or tuple[x, y]."""
    fixed = origin is tuple and parts and parts[-1] is not Ellipsis
    if not isinstance(value, (list, tuple)) or (fixed and len(parts) != len(value)):
        raise wrong_type(value, f"{origin.__name__} of {len(parts)}" if fixed else origin, key)
    hints = parts if fixed else [parts[0] if parts else Any] * len(value)
    entries = [convert(entry, hint, f"{key}.{i}") for i, (entry, hint) in enumerate(zip(value, hints, strict=True))]
    return tuple(entries) if origin is tuple else entries


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def wrong_type(value: Any, hint: Any, key: str) -> UserError:
    name = hint.__name__ if isinstance(hint, type) else str(hint)
    return UserError(f"configuration key {key!r}: expected {name}, found {value!r}")
