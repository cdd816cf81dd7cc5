"""Continuous Bernoulli pixels (Loaiza-Ganem and Cunningham 2019): p(x) ∝ exp(γ x) on [0, 1]."""

import jax
import jax.numpy as jnp

from configs import digits
from sere_jax.data_layer import DATA_LAYERS, DataLayer
from sere_jax.data_space import UNIT_INTERVAL


class ContinuousBernoulliDataLayer(DataLayer):
    """log p(x) = γ (x - 1/2) - log(sinh(γ/2) / (γ/2)) in nats, of dequantized pixels x."""

    space = UNIT_INTERVAL

    def log_prob(self, parameters, block):
        return parameters * (block - 0.5) - _log_normalizer(parameters)

    def sample(self, parameters, key):
        u, size = jax.random.uniform(key, parameters.shape), jnp.maximum(jnp.abs(parameters), 1e-3)
        x = 1 + jnp.logaddexp(jnp.log(u), jnp.log1p(-u) - size) / size  # solves P(X < x) = u
        return jnp.where(parameters > 0, x, 1 - x)

    def mean(self, parameters):
        return 0.5 + jax.grad(lambda γ: jnp.sum(_log_normalizer(γ)))(parameters)


def _log_normalizer(γ):
    size = jnp.maximum(jnp.abs(γ), 0.05)
    return jnp.where(jnp.abs(γ) < 0.05, γ**2 / 24, size / 2 + jnp.log(-jnp.expm1(-size) / size))


DATA_LAYERS["continuous_bernoulli"] = ContinuousBernoulliDataLayer


def get_config(variant=""):
    """Of `python -m experiments.main --config=examples/data_layer.py`."""
    config = digits.get_config(variant)
    config.model.data_layer = "continuous_bernoulli"
    return config
