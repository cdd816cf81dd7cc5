"""Expectations of discretized logistics, in closed form but for the rounding to 256 values."""

import jax
import jax.numpy as jnp
import numpy as np

from sere_jax.arrays import Array

WINDOW = 6  # values to each side of the mean that are added one by one
WIDE = 8.0  # scales, in values, from which rounding changes the expectation by less than 0.003


def expectation(mean: Array, scale: Array) -> Array:
    """E[v] of v = X rounded to 0..255, with all that lies beyond at the ends, for X logistic.

    It is Σ_t P(v >= t) = Σ_t σ((mean - t + 1/2) / scale) over t = 1..255. Far from the mean, or
    with a wide scale, an integral over t agrees with the sum and has a closed form. The terms near
    the mean are added one by one. `mean` and `scale` [...] are in the units of v.
    """

    def integral(start: Array | float, end: Array | float) -> Array:
        upper, lower = (mean - start + 0.5) / scale, (mean - end + 0.5) / scale
        return scale * (jax.nn.softplus(upper) - jax.nn.softplus(lower))

    nearest = jnp.floor(mean) + 1.0
    first = jnp.clip(nearest - WINDOW, 1.0, 256.0)
    last = jnp.where(scale < WIDE, jnp.clip(nearest + WINDOW, 0.0, 255.0), first - 1.0)
    total = integral(0.5, first - 0.5) + integral(last + 0.5, 255.5)
    for offset in range(2 * WINDOW + 1):  # unrolled, so that XLA makes one loop over memory of it
        t = first + offset
        total += jnp.where(t <= last, jax.nn.sigmoid((mean - t + 0.5) / scale), 0.0)
    return total


def quantiles(num: int, channel: int) -> np.ndarray:
    """[num] values of a standard logistic variable, as evenly as they come, for one channel.

    The k-th values of all channels are one point of a lattice; `num` is no multiple of 5 or 7.
    """
    places = np.arange(num) * (1, 5, 7)[channel % 3] % num
    probability = (places + 0.5) / num
    return np.log(probability) - np.log1p(-probability)
