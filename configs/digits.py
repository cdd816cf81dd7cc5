"""Quickstart: a small SeRe-VAE on scikit-learn's 8x8 handwritten digits; no download.

python -m experiments.main --config=configs/digits.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    """Eight layers, one for each row of pixels; there are no variants."""
    base.choose_variant(variant, {"": {}})
    config = base.get_config()
    config.model.num_layers = 8
    config.model.latent_shape = (4,)
    config.model.hidden_size = 128
    config.training.batch_size = 128
    config.training.num_epochs = 200
    config.training.learning_rate = 1e-3
    config.training.warmup = "100 steps"
    config.training.ema_decay = 0.995
    config.training.evaluate_every = "10 epochs"
    config.training.checkpoint_every = "10 epochs"
    return config
