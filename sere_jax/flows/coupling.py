"""Neural spline couplings (Durkan et al. 2019)."""

import math

import distrax
from flax import linen as nn

from sere_jax.arrays import Array, flatten, record, static
from sere_jax.networks.activations import elu
from sere_jax.networks.initializers import head_initializer
from sere_jax.networks.products import Dense, matmul

SPLINE_RANGE = 5.0  # beyond it, splines are the identity
NUM_BINS = 8
NUM_PARAMETERS = 3 * NUM_BINS + 1  # of a spline: widths, heights and slopes
# Against what float32 loses on the way forth and back: a bin's mean slope is at most 193, slopes at
# knots are at least 0.01. Nothing bounds those from above.
MIN_BIN_SIZE = 0.05
MIN_SLOPE = 0.01


@record
class CouplingNetwork:
    """A perceptron with its weights: what stays to the parameters of splines of what moves."""

    kernels: tuple[Array, Array]  # [values that stay, width], [width, values that move * P]
    biases: tuple[Array, Array]  # [width], [values that move * P]
    offset: Array | None  # [..., width], from the condition
    shapes: tuple[tuple[int, ...], tuple[int, ...]] = static()  # of what stays, of what moves

    def __call__(self, x: Array) -> Array:
        """x [..., *stays] to [..., *moves, P]."""
        stays, moves = self.shapes
        hidden = matmul(flatten(x, len(stays)), self.kernels[0]) + self.biases[0]
        if self.offset is not None:
            hidden = hidden + self.offset
        parameters = elu(hidden) @ self.kernels[1] + self.biases[1]
        return parameters.reshape(*parameters.shape[:-1], *moves, NUM_PARAMETERS)


class SplineCoupling(nn.Module):
    """Rational-quadratic spline couplings (Durkan et al. 2019), near the identity at the start.

    Events are halved along their longest axis. Two couplings: the first moves the second half given
    the first, the second the first half given the second. A single value moves given the condition.
    """

    event_shape: tuple[int, ...]
    hidden_size: int  # width of the conditioners

    @nn.compact
    def __call__(self, condition: Array | None) -> distrax.Bijector:
        """condition [..., features], or None, to a bijector over events of `event_shape`."""
        shape = self.event_shape
        axis = shape.index(max(shape))
        first, second = (
            (*shape[:axis], size, *shape[axis + 1 :])
            for size in (shape[axis] // 2, -(-shape[axis] // 2))
        )
        couplings = [
            distrax.SplitCoupling(
                split_index=first[axis],
                event_ndims=len(shape),
                conditioner=self._conditioner(name, stays, moves, condition),
                bijector=_spline,
                swap=moves is first,
                split_axis=axis - len(shape),
            )
            for name, stays, moves in (("second", first, second), ("first", second, first))
            if math.prod(moves)
        ]
        return distrax.Chain(couplings[::-1])

    def _conditioner(
        self, name: str, stays: tuple[int, ...], moves: tuple[int, ...], condition: Array | None
    ) -> CouplingNetwork:
        """The network of the coupling that moves the half called `name`."""
        num_inputs, num_outputs = math.prod(stays), math.prod(moves) * NUM_PARAMETERS
        zeros = nn.initializers.zeros_init()
        kernels = (
            self.param(
                f"{name}_kernel",
                head_initializer(1.0 if num_inputs else 0.0),
                (num_inputs, self.hidden_size),
            ),
            self.param(f"{name}_head", head_initializer(0.1), (self.hidden_size, num_outputs)),
        )
        biases = (
            self.param(f"{name}_bias", zeros, (self.hidden_size,)),
            self.param(f"{name}_head_bias", zeros, (num_outputs,)),
        )
        offset = None
        if condition is not None:
            offset = Dense(self.hidden_size, use_bias=False, name=f"{name}_condition")(condition)
        return CouplingNetwork(kernels, biases, offset, (stays, moves))


def _spline(parameters: Array) -> distrax.Bijector:
    return distrax.RationalQuadraticSpline(
        parameters,
        -SPLINE_RANGE,
        SPLINE_RANGE,
        boundary_slopes="identity",
        min_bin_size=MIN_BIN_SIZE,
        min_knot_slope=MIN_SLOPE,
    )
