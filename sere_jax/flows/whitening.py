"""The linear Gaussian autoregression of data, before the flows that have direct connections."""

import distrax
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from sere_jax.arrays import Array, masked

MIN_DEVIATION = 1e-4  # of data that activations are normalized by
WHITENING_RIDGE = 5.0  # over the number of images, added to variances of 1


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


class Whitening(nn.Module):
    """The linear Gaussian autoregression of data, least squares of each dimension on those before.

    It is estimated once, by `init`, and not trained: Adam's steps on weights of hundreds of inputs
    that rise and fall together would move their sum far. The flows after it see uncorrelated
    inputs; their direct connections correct it.
    """

    size: int  # D

    @nn.compact
    def __call__(
        self, condition: Array | None, x: Array | None, mask: Array | None = None
    ) -> distrax.Bijector:
        """A bijector from u to x [..., D], which is regressed on the condition [..., C] too.

        x is read by `init` alone. None, or a single x: the bijector is the identity. The mask [D]
        is 0 where x is padding, which stays as it is.
        """
        num_conditions = 0 if condition is None else condition.shape[-1]
        regression: tuple[Array, ...] | None = None
        if x is not None and x.size > self.size:
            data = x.reshape(-1, self.size)
            if condition is not None:
                data = jnp.concatenate([condition.reshape(-1, num_conditions), data], axis=-1)
            mean, kernel, log_scale = autoregression(data, self.size)
            regression = (mean, kernel[num_conditions:], log_scale, kernel[:num_conditions])

        def constant(index: int, name: str, *shape: int) -> Array:
            start = jnp.zeros(shape) if regression is None else regression[index]
            return masked(jax.lax.stop_gradient(self.param(name, lambda _: start)), mask)

        mean = constant(0, "mean", self.size)
        kernel = constant(1, "kernel", self.size, self.size)
        log_scale = constant(2, "log_scale", self.size)
        if condition is not None:
            of_condition = constant(3, "condition_kernel", num_conditions, self.size)
            mean = mean + jnp.matmul(condition, of_condition, precision="highest")
        return AffineAutoregressive(jnp.triu(kernel, 1), mean, log_scale)


def autoregression(
    x: Float[Array, "N D"], num_outputs: int
) -> tuple[Float[Array, " outputs"], Float[Array, "D outputs"], Float[Array, " outputs"]]:
    """Ridge regression of each of the last dimensions on all before it, in closed form.

    With the covariance L Lᵀ the regression of x_d on x_1 .. x_{d-1} can be read from row d of L⁻¹:
    (x_d - its regression) / s_d = Σ_i L⁻¹_di (x_i - mean), whose s_d is L_dd.

    Returns:
        Intercepts; weights, 0 where an input is not before the output; and the logs of residual
        deviations.
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
