"""Video prediction in the latent space of any autoencoder: RIVER flow matching and a neural SDE."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flow_pred.autoencoder import build_autoencoder
    from flow_pred.neural_sde import NeuralSDE
    from flow_pred.regressor import VectorFieldRegressor
    from flow_pred.river import RiverPredictor

__all__ = ["NeuralSDE", "RiverPredictor", "VectorFieldRegressor", "build_autoencoder"]

# These need torch. Commands that only show their flags, with the defaults of flow_pred.config, start without it.
_MODULES = {
    "NeuralSDE": "neural_sde",
    "RiverPredictor": "river",
    "VectorFieldRegressor": "regressor",
    "build_autoencoder": "autoencoder",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
