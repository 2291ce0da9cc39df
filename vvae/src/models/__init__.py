"""The autoencoder and its two stages."""
