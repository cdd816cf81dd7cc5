"""The folder of one run: configuration, lock, checkpoints, logs, weights, results."""

RESULTS_FILE = "results.json"
