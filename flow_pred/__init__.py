"""Video prediction in the latent space of any autoencoder: RIVER flow matching and a neural SDE."""

from flow_pred.autoencoder import build_autoencoder
from flow_pred.neural_sde import NeuralSDE
from flow_pred.regressor import VectorFieldRegressor
from flow_pred.river import RiverPredictor

__all__ = ["NeuralSDE", "RiverPredictor", "VectorFieldRegressor", "build_autoencoder"]
