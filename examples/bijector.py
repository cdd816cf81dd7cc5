"""A bijective layer with a full matrix in LU factors, z = b + L U ε."""

import distrax
import jax
import jax.numpy as jnp
from flax import linen as nn

from configs import digits
from sere_jax.bijector import BIJECTORS
from sere_jax.config import ModelConfig
from sere_jax.networks.family import create_network


class LowerUpperLayer(nn.Module):
    """Window of codes [..., k, *latent_shape] (or None) to a bijector near the identity.

    On maps each position has a matrix of its own, which mixes its channels.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, window: jax.Array | None) -> distrax.Bijector:
        shape, size = self.config.latent_shape, self.config.latent_shape[-1]
        network = create_network(self.config, (*shape[:-1], size * (size + 1)), head_scale=0.1)
        shift, raw = jnp.split(network(window, 1 + len(shape), None), [size], axis=-1)
        # Bounded, because the Jacobians of all layers are multiplied.
        raw = jnp.tanh(raw.reshape(*raw.shape[:-1], size, size))
        matrix = jnp.where(jnp.eye(size) == 1.0, 1.0 + raw / 2.0, raw / size)
        return distrax.Block(distrax.LowerUpperTriangularAffine(matrix, shift), len(shape) - 1)


BIJECTORS["lower_upper"] = LowerUpperLayer


def get_config(variant=""):
    """Of `python -m experiments.main --config=examples/bijector.py`."""
    config = digits.get_config(variant)
    config.model.bijector = "lower_upper"
    return config
