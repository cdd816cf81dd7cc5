"""A deterministic state of the codes so far, h_l = g(h_{l-1}, z_l), with h_0 = 0.

Priors, posteriors and bijectors read h_{l-1} in the place of z_{l-1}, data layers z_l and h_l. As
h_{l-1} is a function of z_1 .. z_{l-1} alone, the model is p(z_l | z_1 .. z_{l-1}) and the
posterior q(z_l | z_1 .. z_{l-1}, x), the factorization of the true one; a layer costs as much as
with one code in view, whatever l is.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from sere_jax.arrays import Array
from sere_jax.config import ModelConfig
from sere_jax.networks.activations import tanh
from sere_jax.networks.products import Dense
from sere_jax.networks.resnet import Conv

GATE_START = -1.0  # of which the sigmoid is the share of h_l that is new at the start


class TopDownState(nn.Module):
    """h_l = (1 - u) h_{l-1} + u tanh(c), with u in (0, 1) and c affine in z_l and h_{l-1}.

    It is a gated recurrent unit without the reset gate; 3x3 convolutions where codes are maps.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, state: Array, z: Array) -> Array:
        """h_{l-1} [..., *state_shape] and z_l [..., *latent_shape] to h_l."""
        size = self.config.state_size
        layer = Conv if len(self.config.latent_shape) == 3 else Dense
        gate, new = jnp.split(layer(2 * size)(jnp.concatenate([z, state], axis=-1)), 2, axis=-1)
        return state + jax.nn.sigmoid(gate + GATE_START) * (tanh(new) - state)


def state_shape(config: ModelConfig) -> tuple[int, ...]:
    """Of h_l: as many positions as codes have, and `state_size` channels."""
    return (*config.latent_shape[:-1], config.state_size)
