"""Neural spline couplings (Durkan et al. 2019)."""

import math

import distrax
import jax.numpy as jnp
from flax import linen as nn

from sere_jax.arrays import Array, flatten, record, static
from sere_jax.networks.activations import elu
from sere_jax.networks.initializers import head_initializer
from sere_jax.networks.products import Dense, matmul

SPLINE_RANGE = 5.0  # beyond it, splines are the identity
NUM_BINS = 8
# Both bound the slopes of splines, and so what float32 loses on the way forth and back.
MIN_BIN_SIZE = 0.05
MIN_SLOPE = 0.01


@record
class CouplingNetwork:
    """A perceptron with its weights: x to the parameters of an elementwise bijector."""

    kernels: tuple[Array, Array]  # [D, width], [width, D * P]
    biases: tuple[Array, Array]  # [width], [D * P]
    offset: Array | None  # [..., width], from the condition
    event_shape: tuple[int, ...] = static()

    def __call__(self, x: Array) -> Array:
        """x [..., *event_shape] to [..., *event_shape, P]."""
        hidden = matmul(flatten(x, len(self.event_shape)), self.kernels[0]) + self.biases[0]
        if self.offset is not None:
            hidden = hidden + self.offset
        parameters = elu(hidden) @ self.kernels[1] + self.biases[1]
        num_parameters = parameters.shape[-1] // math.prod(self.event_shape)
        return parameters.reshape(*parameters.shape[:-1], *self.event_shape, num_parameters)


class SplineCoupling(nn.Module):
    """Rational-quadratic spline couplings (Durkan et al. 2019), near the identity at the start.

    Two of them: the first moves every other dimension given the rest, the second the rest.
    """

    event_shape: tuple[int, ...]
    hidden_size: int  # width of the conditioners

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

    def _conditioner(self, name: str, condition: Array | None) -> CouplingNetwork:
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
            offset = Dense(self.hidden_size, use_bias=False, name=f"{name}_condition")(condition)
        return CouplingNetwork(kernels, biases, offset, self.event_shape)


def _spline(parameters: Array) -> distrax.Bijector:
    return distrax.RationalQuadraticSpline(
        parameters,
        -SPLINE_RANGE,
        SPLINE_RANGE,
        boundary_slopes="identity",
        min_bin_size=MIN_BIN_SIZE,
        min_knot_slope=MIN_SLOPE,
    )
