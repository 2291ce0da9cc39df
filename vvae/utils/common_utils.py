"""Build a model from a configuration node.

Works as `vvae.utils.common_utils`, and as `utils.common_utils` when the folder itself is on the path. The sources are
found beside this file, whatever else is called `src` on the path.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent

# Every class that a configuration may name. Others are refused: a configuration is data, it must not import code.
TARGETS = {
    "src.models.autoencoder2plus1d_1dcnn.AutoencoderKL2plus1D_1dcnn",
    "src.modules.losses.LPIPSWithDiscriminator",
    "src.modules.losses.LPIPSWithDiscriminator3D",
    "src.modules.losses.contperceptual.LPIPSWithDiscriminator",
    "src.modules.losses.contperceptual.LPIPSWithDiscriminator3D",
}
SENTINELS = ("__is_first_stage__", "__is_unconditional__")


def instantiate_from_config(config: Mapping[str, Any] | str, **overrides: Any) -> Any:
    """The object that a node `{target: dotted name, params: {...}}` describes; `overrides` replace params.

    A DictConfig of OmegaConf is accepted. Raises KeyError without a target. The two sentinel strings of latent
    diffusion configurations give None.
    """
    if isinstance(config, str) and config in SENTINELS:
        return None
    if not isinstance(config, Mapping) or "target" not in config:
        raise KeyError("a configuration node needs the key `target`")
    target = str(config["target"]).removeprefix("vvae.")
    if target not in TARGETS:
        near = difflib.get_close_matches(target, TARGETS, n=1, cutoff=0.0)
        raise _source("errors").VVAEError(f"unknown target {target!r}; did you mean {near[0]}?")
    module, name = target.rsplit(".", 1)
    params = _source("models.settings").plain(config.get("params") or {})
    return getattr(_source(module.removeprefix("src.")), name)(**{**params, **overrides})


def load_config(path: str | Path) -> Any:
    """A configuration file as OmegaConf node. Relative paths are tried in the current folder, then in the package.

    Raises VVAEError for a file that is missing, or holds no mapping of keys to values.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for candidate in (Path(path), FOLDER / path, FOLDER / "configs" / path):
        if candidate.is_file():
            try:
                found = OmegaConf.load(candidate)
            except (YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, RecursionError) as error:
                raise _source("errors").VVAEError(
                    f"{candidate}: not plain YAML: {' '.join(str(error).split())}"
                ) from error
            if not isinstance(found, DictConfig):
                raise _source("errors").VVAEError(f"{candidate}: holds no mapping of keys to values")
            return found
    raise _source("errors").VVAEError(f"{path}: no such configuration file (looked in the current folder and {FOLDER})")


def load_checkpoint(model: Any, path: str | Path) -> Any:
    """Load weights strictly into a model and return it. Raises an error with the list of keys that do not fit."""
    return _source("checkpoints").load_checkpoint(model, path)


def _source(name: str) -> Any:
    """A module of the `src` folder beside this file, under the one name that this process uses for it."""
    return importlib.import_module(f"{_source_package()}.{name}")


def _source_package() -> str:
    if __package__ and "." in __package__:
        return f"{__package__.rpartition('.')[0]}.src"
    spec = importlib.util.find_spec("src")
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve().parent == FOLDER / "src":
        return "src"
    if "vvae" not in sys.modules:  # another `src` comes first on the path
        spec = importlib.util.spec_from_file_location(
            "vvae", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules["vvae"] = module
        spec.loader.exec_module(module)
    return "vvae.src"
