"""Autoregressive and coupling bijectors whose parameters depend on the codes (paper, section 3.3).

Their networks belong to the bijectors, as pytrees: a layer maps its condition to a bijector, which
can then be applied in both directions, stacked over layers, returned and kept.
"""

import math

import distrax
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from sere_jax.masked import MADE, MaskedNetwork, spread_degrees
from sere_jax.mlp import head_initializer

Array = jax.Array

MAX_LOG_SCALE = 3.0  # of one autoregressive flow
SPLINE_RANGE = 5.0  # beyond it, splines are the identity
NUM_BINS = 8


class MaskedAutoregressive(distrax.Bijector):
    """x_d = m_d + s_d u_d with m_d, s_d functions of x_1 .. x_{d-1} (Papamakarios et al. 2017).

    The inverse takes one application of the network; so does forward, input by input. log s is
    bounded by `MAX_LOG_SCALE`.

    Args:
        network: x [..., D] to m and raw scales [..., 2, D].
        event_shape: of x; D is its size.
    """

    def __init__(self, network: MaskedNetwork, event_shape: tuple[int, ...]):
        super().__init__(event_ndims_in=len(event_shape))
        self.network = network
        self.event_shape = event_shape

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """u to x, and log|det dx/du| = Σ log s."""

        def invert(u, parameters):
            return parameters[..., 0] + jnp.exp(_log_scale(parameters[..., 1])) * u

        value = self.network.solve(invert, self._flatten(x))
        _, log_scale = self._mean_and_log_scale(value)
        return value.reshape(*value.shape[:-1], *self.event_shape), jnp.sum(log_scale, axis=-1)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """x to u, and log|det du/dx| = -Σ log s."""
        y = self._flatten(y)
        mean, log_scale = self._mean_and_log_scale(y)
        u = (y - mean) * jnp.exp(-log_scale)
        return u.reshape(*u.shape[:-1], *self.event_shape), -jnp.sum(log_scale, axis=-1)

    def same_as(self, other: distrax.Bijector) -> bool:
        """Whether `other` is certainly the same bijector."""
        return other is self

    def _mean_and_log_scale(self, x):
        parameters = self.network(x)
        return parameters[..., 0, :], _log_scale(parameters[..., 1, :])

    def _flatten(self, x):
        return x.reshape(*x.shape[: x.ndim - self.event_ndims_in], -1)


def _log_scale(raw):
    return MAX_LOG_SCALE * jnp.tanh(raw / MAX_LOG_SCALE)
