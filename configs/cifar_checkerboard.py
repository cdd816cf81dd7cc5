"""ResNet SeRe-VAE on CIFAR-10: 16 layers, each for an (8, 8, 3) block (paper, section 4.2.1).

    python -m experiments.main --config=configs/cifar_checkerboard.py

First version: not yet trained to a result.
"""

from ml_collections import ConfigDict

from configs import base

VARIANTS = {
    "": {},
    "case1": {"couple_prior": False, "couple_bijector": False, "couple_data": False},
    "case2": {"couple_prior": False, "couple_bijector": False},
    "case3": {},
}


def get_config(variant: str = "") -> ConfigDict:
    """CIFAR-10, with the couplings of `variant`."""
    overrides = base.choose_variant(variant, VARIANTS)
    config = base.get_config()
    config.dataset.name = "cifar10"
    config.dataset.validation_size = 5000.0
    config.dataset.horizontal_flip = True
    model = config.model
    model.data_shape = (32, 32, 3)
    model.num_layers = 16
    model.latent_shape = (8, 8, 2)
    model.partition = "checkerboard"
    model.data_layer = "discretized_logistic_mixture"
    model.network = "resnet"
    model.hidden_size = 64
    model.sigma_min = 1.0
    model.update(overrides)
    config.training.batch_size = 64
    config.training.kl_warmup = "50%"
    return config
