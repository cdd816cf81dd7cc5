"""Experiments with sere_jax: flags, data, training, evaluation, checkpoints and reports."""
