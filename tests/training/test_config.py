"""Configuration files and overrides: what they mean, and that they stay data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from training.config import from_dict, load_config
from videodata.errors import UserError


@pytest.fixture
def config(tmp_path):
    """A configuration over a base, with everything that needs parsing."""
    (tmp_path / "base.yaml").write_text("model: {width: 8, depth: 2}\nrate: 1e-4\nname: base\n")
    (tmp_path / "top.yaml").write_text(
        "_BASE_: base.yaml\nmodel: {width: 16, kernel: '(7, 1, 1)'}\nlow: '-1.5'\nsame: ${model.width}\n"
        "version: 1.2.3\n"
    )
    return tmp_path / "top.yaml"


def test_a_file_over_its_base(config):
    """Merged dict by dict; strings that look like numbers or tuples are; ${key} is replaced; all plain types."""
    assert load_config(config) == {
        "model": {"width": 16, "depth": 2, "kernel": [7, 1, 1]},
        **{"rate": 1e-4, "name": "base", "low": -1.5, "same": 16, "version": "1.2.3"},
    }
    assert type(load_config(config)["model"]) is dict and type(load_config(config)["model"]["kernel"]) is list


@pytest.mark.parametrize(
    "overrides", [["model.width=32", "rate=2e-3", "name=null"], ["model.width", "32", "rate", "2e-3", "name", "null"]]
)
def test_overrides_in_both_spellings(config, overrides):
    """key=value and KEY VALUE mean the same, reach interpolations, and null clears."""
    loaded = load_config(config, overrides)
    assert (loaded["model"]["width"], loaded["same"], loaded["rate"], loaded["name"]) == (32, 32, 2e-3, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.widht=3"], "unknown configuration key 'model.widht'; did you mean 'model.width'?"),
        (["model.width.x=3"], "unknown configuration key"),
        (["model.width"], "has no value"),
    ],
)
def test_wrong_overrides_name_the_nearest_key(config, overrides, message):
    """An override never invents a key."""
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        load_config(config, overrides)


def test_files_stay_data(tmp_path, monkeypatch):
    """Python tags do not run, resolvers do not read the environment, and a circle of bases ends."""
    marker = tmp_path / "marker"
    bad = {
        "tag": f"x: !!python/object/apply:os.system ['touch {marker}']",
        "env": "x: ${oc.env:HOME}",
        "nested": "y: 1\nx: ${y}${oc.decode:${oc.env:HOME}}",
        "circle": "_BASE_: circle.yaml",
        "list": "- 1",
        "broken": "x: [1",
    }
    for name, text in bad.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        with pytest.raises(UserError, match=name) as report:
            load_config(path)
        assert "\n" not in str(report.value)
    assert not marker.exists()
    with pytest.raises(UserError, match=r"absent.yaml: cannot be read"):
        load_config(tmp_path / "absent.yaml")


@dataclass
class Inner:
    sizes: tuple[int, ...] = (1, 2)
    mode: Literal["a", "b"] = "a"


@dataclass
class Outer:
    width: int
    rate: float = 1.0
    path: Path | None = None
    inner: Inner = field(default_factory=Inner)
    pair: tuple[int, int] = (1, 1)


def test_overrides_reach_what_a_file_leaves_to_the_defaults(tmp_path):
    """A field of the dataclass is a known key, though the file does not name it; others still are not."""
    (tmp_path / "short.yaml").write_text("width: 4\n")
    loaded = load_config(tmp_path / "short.yaml", ["inner.mode=b"], Outer)
    assert from_dict(Outer, loaded) == Outer(4, inner=Inner(mode="b"))
    with pytest.raises(UserError, match="unknown configuration key 'inner.moed'; did you mean 'inner.mode'"):
        load_config(tmp_path / "short.yaml", ["inner.moed=b"], Outer)
    with pytest.raises(UserError, match="unknown configuration key 'inner.mode'"):
        load_config(tmp_path / "short.yaml", ["inner.mode=b"])


def test_a_dataclass_from_a_dict():
    """Nested dataclasses, lists as tuples, ints as floats, None where it is allowed."""
    made = from_dict(
        Outer, {"width": 3, "rate": 2, "path": "x", "inner": {"sizes": [4, 5], "mode": "b"}, "pair": [1, 2]}
    )
    assert made == Outer(3, 2.0, Path("x"), Inner((4, 5), "b"), (1, 2)) and isinstance(made.rate, float)
    assert from_dict(Outer, {"width": 3, "path": None}) == Outer(3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 3, "inner": {"size": []}}, "unknown configuration key 'inner.size'; did you mean 'inner.sizes'"),
        ({"width": "wide"}, "'width': expected int, found 'wide'"),
        ({"width": 3.5}, "'width': expected int, found 3.5"),
        ({"width": True}, "'width': expected int, found True"),
        ({"width": 3, "inner": {"mode": "c"}}, "'inner.mode'"),
        ({"width": 3, "inner": {"sizes": [1, "x"]}}, "'inner.sizes.1': expected int"),
        ({"width": 3, "pair": [1]}, "'pair': expected tuple of 2"),
        ({"width": 3, "inner": 4}, "inner: expected keys and values"),
        ({}, "'width' is missing"),
    ],
)
def test_a_wrong_value_is_named(values, message):
    """Unknown keys name the nearest one, wrong types what was expected and found."""
    with pytest.raises(UserError, match=message):
        from_dict(Outer, values)


@pytest.mark.parametrize(
    "content",
    [b"_BASE_: [1]\n", "a: ü\n".encode("utf-16"), b"a: " + b"[" * 3000, b"a: ${b\n", b"\x00", b'_BASE_: "a\\0b"\n'],
    ids=["base", "utf-16", "deep", "open", "null", "null in a name"],
)
def test_files_that_are_no_configuration_are_one_line(tmp_path, content):
    """Whatever the parser raises for them."""
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(UserError, match="a.yaml: ") as caught:
        load_config(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


def test_an_override_that_looks_like_a_date_stays_text(config):
    """YAML knows dates, and Python refuses those that do not exist."""
    assert load_config(config, ["name=2024-13-45"])["name"] == "2024-13-45"
