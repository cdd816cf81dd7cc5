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
from sere_jax.networks.masked import MADE, MaskedNetwork, masked, spread_degrees
from sere_jax.networks.mlp import flatten, head_initializer

Array = jax.Array

MAX_LOG_SCALE = 3.0  # of one autoregressive flow
MIN_DEVIATION = 1e-4  # of data that activations are normalized by
NUM_NORMALIZED = 1000  # of the images that are whitened; to normalize activations they suffice
WHITENING_RIDGE = 5.0  # over the number of images, added to variances of 1
SPLINE_RANGE = 5.0  # beyond it, splines are the identity
NUM_BINS = 8
# Both bound the slopes of splines, and so what float32 loses on the way forth and back.
MIN_BIN_SIZE = 0.05
MIN_SLOPE = 0.01


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
        return flatten(x, self.event_ndims_in)


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
        hidden = flatten(x, len(self.event_shape)) @ self.kernels[0] + self.biases[0]
        if self.offset is not None:
            hidden = hidden + self.offset
        parameters = nn.elu(hidden) @ self.kernels[1] + self.biases[1]
        num_parameters = parameters.shape[-1] // math.prod(self.event_shape)
        return parameters.reshape(*parameters.shape[:-1], *self.event_shape, num_parameters)


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
    """Conditions to a `MaskedAutoregressive` bijector, near the identity at the start.

    Attributes:
        event_shape: of the bijector.
        hidden_sizes: of the masked network.
        reverse: whether the order of the inputs is the opposite one.
        direct: whether the network has direct connections.
    """

    event_shape: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    reverse: bool = False
    direct: bool = False

    @nn.compact
    def __call__(self, *conditions: Array | None, mask: Array | None = None) -> distrax.Bijector:
        """A bijector over events of `event_shape`.

        Args:
            *conditions: [..., features], or None.
            mask: [D], 0 where events are padding, which stays as it is; None: nowhere.
        """
        conditional = any(condition is not None for condition in conditions)
        degrees = spread_degrees(
            math.prod(self.event_shape), self.hidden_sizes, conditional=conditional
        )
        degrees = degrees.reversed() if self.reverse else degrees
        made = MADE(degrees, num_parameters=2, direct=self.direct, name="network")
        network = made(*conditions, mask=mask)
        return MaskedAutoregressive(network, self.event_shape)


class ActivationNorm(nn.Module):
    """x = m + s u with constants m, s of each dimension (Kingma and Dhariwal 2018, section 3.1).

    Like the batch normalization of Papamakarios et al. 2017 it keeps the inputs of every flow at
    order 1. But it needs no statistics of the batch after the start: training and evaluation,
    one device and several compute the same density.

    Attributes:
        event_shape: of the bijector.
    """

    event_shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array | None, mask: Array | None = None) -> distrax.Bijector:
        """A bijector from u to x.

        Args:
            x: [..., *event_shape], read by `init` alone: m and log s start at their means and
                deviations. None, or a single x: at 0.
            mask: [D], 0 where x is padding, which stays as it is.
        """
        size = math.prod(self.event_shape)
        if x is not None:
            x = x.reshape(-1, size)
            x = x if len(x) > 1 else None

        def start_mean(key, shape):
            del key
            return jnp.zeros(shape) if x is None else jnp.mean(x, axis=0)

        def start_log_scale(key, shape):
            del key
            if x is None:
                return jnp.zeros(shape)
            deviation = jnp.std(x, axis=0)
            return jnp.where(deviation > MIN_DEVIATION, jnp.log(deviation), 0.0)

        mean = masked(self.param("mean", start_mean, (size,)), mask)
        log_scale = masked(self.param("log_scale", start_log_scale, (size,)), mask)
        affine = distrax.ScalarAffine(
            shift=mean.reshape(self.event_shape), log_scale=log_scale.reshape(self.event_shape)
        )
        return distrax.Block(affine, len(self.event_shape))


class AffineAutoregressive(distrax.Bijector):
    """x_d = m_d + Σ_{i<d} x_i w_id + s_d u_d with constants w, s.

    Args:
        kernel: w, [D, D], 0 on its diagonal and below.
        offset: m, [..., D].
        log_scale: log s, [D].
    """

    def __init__(self, kernel: Array, offset: Array, log_scale: Array):
        super().__init__(event_ndims_in=1)
        self.kernel = kernel
        self.offset = offset
        self.log_scale = log_scale

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """u to x, and log|det dx/du| = Σ log s."""
        u = jnp.exp(self.log_scale) * x + self.offset
        value = jax.scipy.linalg.solve_triangular(
            jnp.eye(u.shape[-1]) - self.kernel,
            u.reshape(-1, u.shape[-1]).T,
            trans=1,
            unit_diagonal=True,
        )
        value = value.T.reshape(u.shape)
        return value, jnp.broadcast_to(jnp.sum(self.log_scale), value.shape[:-1])

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """x to u, and log|det du/dx| = -Σ log s."""
        # Residuals are small beside what is subtracted.
        mean = jnp.matmul(y, self.kernel, precision="highest") + self.offset
        u = (y - mean) * jnp.exp(-self.log_scale)
        return u, jnp.broadcast_to(-jnp.sum(self.log_scale), u.shape[:-1])

    def same_as(self, other: distrax.Bijector) -> bool:
        """Whether `other` is certainly the same bijector."""
        return other is self


class Whitening(nn.Module):
    """The linear Gaussian autoregression of data, least squares of each dimension on those before.

    It is estimated once, by `init`, and not trained: Adam's steps on weights of hundreds of inputs
    that rise and fall together would move their sum far. The flows after it see uncorrelated
    inputs; their direct connections correct it.

    Attributes:
        size: D.
    """

    size: int

    @nn.compact
    def __call__(
        self, condition: Array | None, x: Array | None, mask: Array | None = None
    ) -> distrax.Bijector:
        """A bijector from u to x, over vectors.

        Args:
            condition: [..., C], which x is regressed on too, or None.
            x: [..., D], read by `init` alone. None, or a single x: the bijector is the identity.
            mask: [D], 0 where x is padding, which stays as it is.
        """
        num_conditions = 0 if condition is None else condition.shape[-1]
        regression: tuple[Array, ...] | None = None
        if x is not None and x.size > self.size:
            data = x.reshape(-1, self.size)
            if condition is not None:
                data = jnp.concatenate([condition.reshape(-1, num_conditions), data], axis=-1)
            mean, kernel, log_scale = autoregression(data, self.size)
            regression = (mean, kernel[num_conditions:], log_scale, kernel[:num_conditions])

        def constant(index, name, shape):
            def start(key):
                del key
                return jnp.zeros(shape) if regression is None else regression[index]

            return masked(jax.lax.stop_gradient(self.param(name, start)), mask)

        mean = constant(0, "mean", (self.size,))
        kernel = constant(1, "kernel", (self.size, self.size))
        log_scale = constant(2, "log_scale", (self.size,))
        if condition is not None:
            of_condition = constant(3, "condition_kernel", (num_conditions, self.size))
            mean = mean + jnp.matmul(condition, of_condition, precision="highest")
        return AffineAutoregressive(jnp.triu(kernel, 1), mean, log_scale)


def autoregression(x: Array, num_outputs: int) -> tuple[Array, Array, Array]:
    """Ridge regression of each of the last dimensions on all before it, in closed form.

    With the covariance L Lᵀ the regression of x_d on x_1 .. x_{d-1} can be read from row d of L⁻¹:
    (x_d - its regression) / s_d = Σ_i L⁻¹_di (x_i - mean), whose s_d is L_dd.

    Args:
        x: [N, D].
        num_outputs: how many of the dimensions are regressed.

    Returns:
        Intercepts [num_outputs]; weights [D, num_outputs], 0 where an input is not before the
        output; and the logs of residual deviations [num_outputs].
    """
    mean, deviation = jnp.mean(x, axis=0), jnp.std(x, axis=0)
    varies = deviation > MIN_DEVIATION
    deviation = jnp.where(varies, deviation, 1.0)
    u = (x - mean) / deviation
    ridge = jnp.where(varies, WHITENING_RIDGE / len(x), 1.0)
    covariance = jnp.matmul(u.T, u, precision="highest") / len(x)
    factor = jnp.linalg.cholesky(covariance + jnp.diag(ridge))
    rows = jax.scipy.linalg.solve_triangular(factor, jnp.eye(len(mean)), lower=True)
    rows = rows[len(mean) - num_outputs :]
    first = len(mean) - num_outputs
    scale = 1.0 / jnp.diagonal(rows, first)
    own = deviation[first:]
    kernel = jnp.eye(len(mean), num_outputs, -first) - (rows * scale[:, None]).T
    kernel = kernel * own / deviation[:, None]
    intercept = mean[first:] - jnp.matmul(mean, kernel, precision="highest")
    return intercept, kernel, jnp.log(scale * own)


class MaskedAutoregressiveFlows(nn.Module):
    """Several flows of alternating order, an activation normalization before each.

    With direct connections, a `Whitening` before all of them.

    Attributes:
        event_shape: of the bijector.
        hidden_sizes: of the masked networks.
        num_flows: how many.
        direct: whether the masked networks have direct connections.
    """

    event_shape: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    num_flows: int
    direct: bool = False

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
                name=f"flow_{index}",
            )
            norm = ActivationNorm(self.event_shape, name=f"norm_{index}")(x, mask)
            if x is not None:
                x = flow(*few, mask=mask).inverse(norm.inverse(x))
            bijectors.append(distrax.Chain([norm, flow(*conditions, mask=mask)]))
        return distrax.Chain(bijectors)


@struct.dataclass
class RankOneNormal:
    """N(mean, diag(variance) + direction directionᵀ) over the last axis, D.

    Densities and samples cost O(D), by the Sherman-Morrison formula and the matrix determinant
    lemma. `distrax.MultivariateNormalDiagPlusLowRank` perturbs the factor of the covariance, not
    the covariance.
    """

    mean: Array  # [..., D]
    variance: Array  # [..., D], positive
    direction: Array  # [..., D]
    mask: Array | None = None  # [D], 0 in dimensions that are left out; None: nowhere

    def log_prob(self, x: Array) -> Array:
        """Log-density in nats of x [..., D], [...]."""
        centered = masked(x - self.mean, self.mask)
        weight = masked(self.direction, self.mask) / self.variance
        capacitance = 1.0 + jnp.sum(self.direction * weight, axis=-1)
        distance = jnp.sum(jnp.square(centered) / self.variance, axis=-1)
        distance -= jnp.square(jnp.sum(weight * centered, axis=-1)) / capacitance
        log_det = jnp.sum(masked(jnp.log(self.variance), self.mask), axis=-1)
        size = x.shape[-1] if self.mask is None else jnp.sum(self.mask)
        constant = size * math.log(2 * math.pi)
        return -0.5 * (distance + log_det + jnp.log(capacitance) + constant)

    def sample(self, noise: Array, common_noise: Array) -> Array:
        """A sample [..., D] for standard normal noise [..., D] and [...]; 0 where left out."""
        common = self.direction * common_noise[..., None]
        return masked(self.mean + jnp.sqrt(self.variance) * noise + common, self.mask)


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
