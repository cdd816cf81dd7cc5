"""Relaxed Bernoulli VAE of 30 latents on dynamically binarized MNIST (Webb et al. 2018).

    python -m experiments.main --config=configs/mnist_relaxed_bernoulli.py

The paper has about 90 nats. `configs/mnist_comparison.py:relaxed_bernoulli`, of width 1020 and a
posterior temperature of 1, has 89.22 after 150 epochs.
"""

from ml_collections import ConfigDict

from configs import base, mnist_mlp

VARIANTS: dict[str, dict[str, int]] = {"": {}}


def get_config(variant: str = "") -> ConfigDict:
    """`mnist_mlp` with another system."""
    base.choose_variant(variant, VARIANTS)
    config = mnist_mlp.get_config()
    config.model.system = "relaxed_bernoulli_vae"
    config.model.num_layers = 1
    config.model.latent_shape = (30,)
    config.paper.nll = 90.0
    config.paper.expected_nll = None
    return config
