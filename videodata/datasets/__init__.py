"""The published data sets: where they are, how they are divided, what their files are called, how many there are."""
