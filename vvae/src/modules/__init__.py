"""Building blocks of the autoencoder."""
