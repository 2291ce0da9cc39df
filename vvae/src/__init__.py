"""The VideoVAE+ autoencoder: networks, checkpoints, tiling, streaming."""
