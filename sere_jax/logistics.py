"""Expectations of discretized logistics, in closed form but for the rounding to 256 values."""

import jax
import jax.numpy as jnp
import numpy as np

from sere_jax.arrays import Array

WINDOW = 6  # values to each side of the mean whose rounding is counted
WIDE = 8.0  # scales, in values, from which rounding changes the expectation by less than 0.003


def expectation(mean: Array, scale: Array) -> Array:
    """E[v] of v = X rounded to 0..255, with all that lies beyond at the ends, for X logistic.

    It is Σ_t P(v >= t) = Σ_t σ((mean - t + 1/2) / scale) over t = 1..255. An integral over t has a
    closed form; what the sum has more is added for the t near the mean, as elsewhere both agree.
    `mean` and `scale` [...] are in the units of v.
    """

    def integral(start: Array | float, end: Array | float) -> Array:
        upper, lower = (mean - start + 0.5) / scale, (mean - end + 0.5) / scale
        return scale * (jax.nn.softplus(upper) - jax.nn.softplus(lower))

    def add(total: Array, offset: Array) -> tuple[Array, None]:
        t = jnp.floor(mean) + 1.0 + offset
        more = jax.nn.sigmoid((mean - t + 0.5) / scale) - integral(t - 0.5, t + 0.5)
        counts = (t >= 1.0) & (t <= 255.0) & (scale < WIDE)
        return total + jnp.where(counts, more, 0.0), None

    offsets = jnp.arange(-WINDOW, WINDOW + 1, dtype=jnp.float32)
    return jax.lax.scan(add, integral(0.5, 255.5), offsets)[0]


def quantiles(num: int, channel: int) -> np.ndarray:
    """[num] values of a standard logistic variable, as evenly as they come, for one channel.

    The k-th values of all channels are one point of a lattice; `num` is no multiple of 5 or 7.
    """
    places = np.arange(num) * (1, 5, 7)[channel % 3] % num
    probability = (places + 0.5) / num
    return np.log(probability) - np.log1p(-probability)
