"""The folder of one run: configuration, lock, checkpoints, metrics, weights."""
