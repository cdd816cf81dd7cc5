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

from sere_jax.config import ModelConfig
from sere_jax.masked import MADE, MaskedNetwork, spread_degrees
from sere_jax.mlp import flatten, head_initializer

Array = jax.Array

MAX_LOG_SCALE = 3.0  # of one autoregressive flow
SPLINE_RANGE = 5.0  # beyond it, splines are the identity
NUM_BINS = 8
# Both bound the slopes of splines, and so what float32 loses on the way forth and back.
MIN_BIN_SIZE = 0.05
MIN_SLOPE = 0.01


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


@struct.dataclass
class CouplingNetwork:
    """A perceptron with its weights: x to the parameters of an elementwise bijector."""

    kernels: tuple[Array, Array]  # [D, width], [width, D * P]
    biases: tuple[Array, Array]  # [width], [D * P]
    offset: Array | None  # [..., width], from the condition
    event_shape: tuple[int, ...] = struct.field(pytree_node=False)

    def __call__(self, x: Array) -> Array:
        """x [..., *event_shape] to [..., *event_shape, P]."""
        batch_shape = x.shape[: x.ndim - len(self.event_shape)]
        hidden = x.reshape(*batch_shape, -1) @ self.kernels[0] + self.biases[0]
        if self.offset is not None:
            hidden = hidden + self.offset
        parameters = nn.elu(hidden) @ self.kernels[1] + self.biases[1]
        return parameters.reshape(*parameters.shape[:-1], *self.event_shape, -1)


class SplineCoupling(nn.Module):
    """Rational-quadratic spline couplings (Durkan et al. 2019), near the identity at the start.

    Two of them: the first moves every other dimension given the rest, the second the rest.

    Attributes:
        event_shape: of the bijector.
        hidden_size: width of the conditioners.
    """

    event_shape: tuple[int, ...]
    hidden_size: int

    @nn.compact
    def __call__(self, condition: Array | None) -> distrax.Bijector:
        """condition [..., features], or None, to a bijector over events of `event_shape`."""
        is_even = (jnp.arange(math.prod(self.event_shape)) % 2 == 0).reshape(self.event_shape)
        couplings = [
            distrax.MaskedCoupling(
                mask=mask,
                conditioner=self._conditioner(name, condition),
                bijector=_spline,
                event_ndims=len(self.event_shape),
            )
            for name, mask in (("odd", is_even), ("even", ~is_even))
        ]
        return distrax.Chain(couplings[::-1])

    def _conditioner(self, name, condition):
        size = math.prod(self.event_shape)
        num_outputs = size * (3 * NUM_BINS + 1)
        zeros = nn.initializers.zeros_init()
        kernels = (
            self.param(f"{name}_kernel", head_initializer(1.0), (size, self.hidden_size)),
            self.param(f"{name}_head", head_initializer(0.1), (self.hidden_size, num_outputs)),
        )
        biases = (
            self.param(f"{name}_bias", zeros, (self.hidden_size,)),
            self.param(f"{name}_head_bias", zeros, (num_outputs,)),
        )
        offset = None
        if condition is not None:
            offset = nn.Dense(self.hidden_size, use_bias=False, name=f"{name}_condition")(condition)
        return CouplingNetwork(kernels, biases, offset, self.event_shape)


def _spline(parameters):
    return distrax.RationalQuadraticSpline(
        parameters,
        -SPLINE_RANGE,
        SPLINE_RANGE,
        boundary_slopes="identity",
        min_bin_size=MIN_BIN_SIZE,
        min_knot_slope=MIN_SLOPE,
    )


class MaskedAutoregressiveFlow(nn.Module):
    """A condition to a `MaskedAutoregressive` bijector, near the identity at the start.

    Attributes:
        event_shape: of the bijector.
        hidden_sizes: of the masked network.
        reverse: whether the order of the inputs is the opposite one.
    """

    event_shape: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    reverse: bool = False

    @nn.compact
    def __call__(self, condition: Array | None) -> distrax.Bijector:
        """condition [..., features], or None, to a bijector over events of `event_shape`."""
        degrees = spread_degrees(
            math.prod(self.event_shape), self.hidden_sizes, conditional=condition is not None
        )
        degrees = degrees.reversed() if self.reverse else degrees
        network = MADE(degrees, num_parameters=2, name="network")(condition)
        return MaskedAutoregressive(network, self.event_shape)


class _CodeFlow(nn.Module):
    """Base of bijective layers of the hierarchy: reads the window of codes as the condition.

    Attributes:
        config: the model's configuration.
    """

    config: ModelConfig

    def _condition(self, window):
        if window is None:
            return None
        codes = flatten(window, 1 + len(self.config.latent_shape))
        return jnp.tanh(nn.Dense(self.config.hidden_size, name="codes")(codes))


class SplineCouplingLayer(_CodeFlow):
    """Window of codes to spline couplings of ε."""

    @nn.compact
    def __call__(self, window: Array | None) -> distrax.Bijector:
        """window [..., k, *latent_shape], or None: the same for all codes."""
        flow = SplineCoupling(self.config.latent_shape, self.config.hidden_size, name="flow")
        return flow(self._condition(window))


class MaskedAutoregressiveLayer(_CodeFlow):
    """Window of codes to z_d = m_d + s_d ε_d with m, s functions of z_1 .. z_{d-1}; sequential."""

    @nn.compact
    def __call__(self, window: Array | None) -> distrax.Bijector:
        """window [..., k, *latent_shape], or None: the same for all codes."""
        config = self.config
        hidden_sizes = (config.hidden_size,) * (config.num_hidden_layers - 1)
        flow = MaskedAutoregressiveFlow(config.latent_shape, hidden_sizes, name="flow")
        return flow(self._condition(window))


class InverseAutoregressiveLayer(MaskedAutoregressiveLayer):
    """The inverse of a masked autoregressive flow (Kingma et al. 2016): ε to z in one pass.

    z_d = (ε_d - m_d) / s_d with m, s functions of ε_1 .. ε_{d-1}.
    """

    def __call__(self, window: Array | None) -> distrax.Bijector:
        """window [..., k, *latent_shape], or None: the same for all codes."""
        return distrax.Inverse(super().__call__(window))
