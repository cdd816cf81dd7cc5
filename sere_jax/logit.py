"""Logit space, in which flows model images (Papamakarios et al. 2017, appendix D)."""

import math

import jax
import jax.numpy as jnp

from sere_jax.arrays import as_floats, check_values, public

Array = jax.Array

ALPHA = 0.05


@public
def logit_transform(pixels: Array, alpha: float = ALPHA) -> Array:
    """x = logit(α + (1 - 2α) v) of pixels v in [0, 1], any shape.

    Raises:
        ValueError: a pixel is outside of [0, 1].
    """
    pixels = as_floats("pixels", pixels)
    check_values("pixels", pixels, (0.0, 1.0), "divide images of bytes by 255")
    squeezed = alpha + (1.0 - 2.0 * alpha) * pixels
    return jnp.log(squeezed) - jnp.log1p(-squeezed)


@public
def inverse_logit_transform(x: Array, alpha: float = ALPHA) -> Array:
    """Pixels v of x in logit space, any shape; beyond [0, 1] where no pixel maps to x.

    Raises:
        ValueError: a value is not finite.
    """
    x = _logits(x)
    return (jax.nn.sigmoid(x) - alpha) / (1.0 - 2.0 * alpha)


@public
def logit_log_det(x: Array, alpha: float = ALPHA) -> Array:
    """log|dx/dv| of `logit_transform` in nats, one for each value of x in logit space.

    A density of images in logit space becomes one of pixels in [0, 1] by
    log p(v) = log p(x) + Σ log|dx/dv| with log|dx/dv| = log(1 - 2α) - log σ(x) - log(1 - σ(x)).

    Raises:
        ValueError: a value is not finite.
    """
    x = _logits(x)
    return math.log(1.0 - 2.0 * alpha) - jax.nn.log_sigmoid(x) - jax.nn.log_sigmoid(-x)


def _logits(x):
    x = as_floats("x", x)
    check_values("x", x, None, "logit_transform makes finite ones of pixels in [0, 1]")
    return x
