"""Autoregressive flows whose parameters depend on conditions (Papamakarios et al. 2017).

Their networks belong to the bijectors, as pytrees: a layer maps its condition to a bijector, which
can then be applied in both directions, stacked over layers, returned and kept.
"""

import math

import distrax
import jax
import jax.numpy as jnp
from flax import linen as nn

from sere_jax.arrays import Array, flatten, masked
from sere_jax.flows.whitening import MIN_DEVIATION, Whitening
from sere_jax.networks.masked import MADE, MaskedNetwork, spread_degrees

MAX_LOG_SCALE = 3.0  # of one autoregressive flow
GATE_START = 2.0  # logit of the gates at the start (Kingma et al. 2016, section 4)
NUM_NORMALIZED = 1000  # of the images that are whitened; to normalize activations they suffice


class MaskedAutoregressive(distrax.Bijector):
    """x_d = m_d + s_d u_d with m_d, s_d functions of x_1 .. x_{d-1} (Papamakarios et al. 2017).

    The inverse is one application of the network. Forward solves for one input after another, at
    about the same cost, and applies it once more for the log-determinant. |log s| is at most
    `MAX_LOG_SCALE`.

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

        def invert(u: Array, parameters: Array) -> Array:
            return self._from_noise(u, parameters[..., 0], self._log_scale(parameters[..., 1]))

        value = self.network.solve(invert, self._flatten(x))
        _, log_scale = self._mean_and_log_scale(value)
        return value.reshape(*value.shape[:-1], *self.event_shape), jnp.sum(log_scale, axis=-1)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """x to u, and log|det du/dx| = -Σ log s."""
        y = self._flatten(y)
        mean, log_scale = self._mean_and_log_scale(y)
        u = self._to_noise(y, mean, log_scale)
        return u.reshape(*u.shape[:-1], *self.event_shape), -jnp.sum(log_scale, axis=-1)

    def _mean_and_log_scale(self, x: Array) -> tuple[Array, Array]:
        parameters = self.network(x)
        return parameters[..., 0, :], self._log_scale(parameters[..., 1, :])

    def _flatten(self, x: Array) -> Array:
        return flatten(x, self.event_ndims_in)

    def _log_scale(self, raw: Array) -> Array:
        return MAX_LOG_SCALE * jnp.tanh(raw / MAX_LOG_SCALE)

    def _from_noise(self, u: Array, mean: Array, log_scale: Array) -> Array:
        return mean + jnp.exp(log_scale) * u

    def _to_noise(self, x: Array, mean: Array, log_scale: Array) -> Array:
        return (x - mean) * jnp.exp(-log_scale)


class GatedAutoregressive(MaskedAutoregressive):
    """x_d = m_d + (u_d - m_d) / g_d, whose inverse is u_d = g_d x_d + (1 - g_d) m_d, 0 < g_d < 1.

    The inverse is the step of an inverse autoregressive flow that Kingma et al. 2016 prefer (Eqs.
    13 and 14). Several of them do not multiply to large scales, as those of (x - m) / s can.
    """

    def _log_scale(self, raw: Array) -> Array:
        return jax.nn.softplus(-(raw + GATE_START))  # -log g

    def _from_noise(self, u: Array, mean: Array, log_scale: Array) -> Array:
        return mean + jnp.exp(log_scale) * (u - mean)

    def _to_noise(self, x: Array, mean: Array, log_scale: Array) -> Array:
        return mean + jnp.exp(-log_scale) * (x - mean)


class MaskedAutoregressiveFlow(nn.Module):
    """Conditions to a masked autoregressive bijector, near the identity at the start."""

    event_shape: tuple[int, ...]
    hidden_sizes: tuple[int, ...]  # of the masked network
    reverse: bool = False  # whether the order of the inputs is the opposite one
    direct: bool = False  # whether the network has direct connections
    gated: bool = False  # whether the bijector is a `GatedAutoregressive`

    @nn.compact
    def __call__(self, *conditions: Array | None, mask: Array | None = None) -> distrax.Bijector:
        """A bijector over events of `event_shape`, from conditions [..., features] or None.

        The mask [D] is 0 where events are padding, which stays as it is; None: nowhere.

        Raises:
            ValueError: There is a mask, which gates would not leave as it is.
        """
        if self.gated and mask is not None:
            raise ValueError("flows with gates change padding; give them no mask")
        conditional = any(condition is not None for condition in conditions)
        degrees = spread_degrees(
            math.prod(self.event_shape), self.hidden_sizes, conditional=conditional
        )
        degrees = degrees.reversed() if self.reverse else degrees
        name = "gated_network" if self.gated else "network"
        made = MADE(degrees, num_parameters=2, direct=self.direct, name=name)
        network = made(*conditions, mask=mask)
        bijector = GatedAutoregressive if self.gated else MaskedAutoregressive
        return bijector(network, self.event_shape)


class ActivationNorm(nn.Module):
    """x = m + s u with constants m, s of each dimension (Kingma and Dhariwal 2018, section 3.1).

    Like the batch normalization of Papamakarios et al. 2017 it keeps the inputs of every flow at
    order 1. But it needs no statistics of the batch after the start: training and evaluation,
    one device and several compute the same density.
    """

    event_shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array | None, mask: Array | None = None) -> distrax.Bijector:
        """A bijector from u to x [..., *event_shape], which is read by `init` alone.

        m and log s start at means and deviations of x; where it is None or a single one, at 0. The
        mask [D] is 0 where x is padding, which stays as it is.
        """
        size = math.prod(self.event_shape)
        start_mean = start_log_scale = jnp.zeros(size)
        if x is not None and x.size > size:
            start_mean, deviation = (f(x.reshape(-1, size), axis=0) for f in (jnp.mean, jnp.std))
            start_log_scale = jnp.where(deviation > MIN_DEVIATION, jnp.log(deviation), 0.0)
        mean = masked(self.param("mean", lambda _: start_mean), mask)
        log_scale = masked(self.param("log_scale", lambda _: start_log_scale), mask)
        affine = distrax.ScalarAffine(
            shift=mean.reshape(self.event_shape), log_scale=log_scale.reshape(self.event_shape)
        )
        return distrax.Block(affine, len(self.event_shape))


class MaskedAutoregressiveFlows(nn.Module):
    """Several flows of alternating order, an activation normalization before each.

    With direct connections, a `Whitening` before all of them.
    """

    event_shape: tuple[int, ...]
    hidden_sizes: tuple[int, ...]  # of the masked networks
    num_flows: int  # how many
    direct: bool = False  # whether the masked networks have direct connections
    gated: bool = False  # whether the flows are `GatedAutoregressive`

    @nn.compact
    def __call__(
        self,
        *conditions: Array | None,
        x: Array | None = None,
        mask: Array | None = None,
        observed: Array | None = None,
    ) -> distrax.Bijector:
        """A bijector from u to x.

        Args:
            *conditions: [..., features], what the flows depend on; they are never masked.
            x: [..., *event_shape], data for `init` to normalize the activations by, or None.
            mask: [D], 0 where x is padding, which stays as it is; None: nowhere.
            observed: [..., C], the condition that is data too and not codes, for the whitening.
        """
        x = x if self.is_initializing() else None
        few = conditions
        bijectors: list[distrax.Bijector] = []
        if self.direct:
            whitening = Whitening(self.event_shape[0], name="whitening")(observed, x, mask)
            bijectors.append(whitening)
            if x is not None:
                x = whitening.inverse(x)[:NUM_NORMALIZED]
                few = jax.tree.map(lambda condition: condition[:NUM_NORMALIZED], conditions)
        for index in range(self.num_flows):
            flow = MaskedAutoregressiveFlow(
                self.event_shape,
                self.hidden_sizes,
                reverse=index % 2 == 1,
                direct=self.direct,
                gated=self.gated,
                name=f"flow_{index}",
            )
            norm = ActivationNorm(self.event_shape, name=f"norm_{index}")(x, mask)
            if x is not None:
                x = flow(*few, mask=mask).inverse(norm.inverse(x))
            bijectors.append(distrax.Chain([norm, flow(*conditions, mask=mask)]))
        return distrax.Chain(bijectors)
