"""Data spaces: how images of integers become x, what a data layer models, and x a picture."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key, UInt8

from sere_jax.arrays import Array, Values, as_floats, check_values, public

ALPHA = 0.05  # of logit space


def _unchanged(x: Any) -> Any:
    return x


class DataSpace(NamedTuple):
    """Where the x of a data layer comes from, and what its densities are densities of.

    Attributes:
        from_images: (images [B, h, w, c] uint8 in 0..max_value, keys [B], max_value) to
            x [B, h, w, c]; pure, for it is compiled into the training step. An image's x depends on
            its own key alone.
        to_pixels: x, or expectations of it, to pixels in [0, 1].
        is_density: whether log p(x) is a density, of images dequantized to max_value + 1 shares
            of [0, 1], and not a log-probability.
        log_det: log|dx/dv| of pixels v in [0, 1], at x and for each of its values; None: 0.
        max_value: the only `max_value` of images that x can come from; None: any.
        limits: the least and the largest value of x; None: all real numbers.
        is_discrete: whether x holds whole numbers alone.
    """

    from_images: Callable[[Array, Array, int], Array]
    to_pixels: Callable[[Any], Any] = _unchanged
    is_density: bool = False
    log_det: Callable[[Array], Array] | None = None
    max_value: int | None = None
    limits: tuple[float, float] | None = None
    is_discrete: bool = False


@public
def logit_transform(pixels: Values, alpha: float = ALPHA) -> Float[Array, "..."]:
    """x = logit(α + (1 - 2α) v) of pixels v in [0, 1], any shape (Papamakarios et al. 2017).

    Args:
        alpha: above 0 and below 1/2; keeps x finite. The default is the data layers'.

    Raises:
        ValueError: a pixel is outside of [0, 1], or `alpha` outside of (0, 1/2).
    """
    alpha = _checked_alpha(alpha)
    array = as_floats("pixels", pixels)
    check_values("pixels", array, (0.0, 1.0), "divide images of bytes by 255")
    squeezed = alpha + (1.0 - 2.0 * alpha) * array
    return jnp.log(squeezed) - jnp.log1p(-squeezed)


@public
def inverse_logit_transform(x: Values, alpha: float = ALPHA) -> Float[Array, "..."]:
    """Pixels v of x in logit space, any shape; beyond [0, 1] where no pixel maps to x.

    Raises:
        ValueError: a value is not finite, or `alpha` outside of (0, 1/2).
    """
    alpha = _checked_alpha(alpha)
    return (jax.nn.sigmoid(_finite(x)) - alpha) / (1.0 - 2.0 * alpha)


@public
def logit_log_det(x: Values, alpha: float = ALPHA) -> Float[Array, "..."]:
    """log|dx/dv| of `logit_transform` in nats, one for each value of x in logit space.

    A density of images in logit space becomes one of pixels in [0, 1] by
    log p(v) = log p(x) + Σ log|dx/dv| with log|dx/dv| = log(1 - 2α) - log σ(x) - log(1 - σ(x)).

    Raises:
        ValueError: a value is not finite, or `alpha` outside of (0, 1/2).
    """
    alpha = _checked_alpha(alpha)
    logits = _finite(x)
    return math.log(1.0 - 2.0 * alpha) - jax.nn.log_sigmoid(logits) - jax.nn.log_sigmoid(-logits)


def _checked_alpha(alpha: float) -> float:
    if not 0.0 < alpha < 0.5:
        raise ValueError(
            f"alpha={alpha!r} must be above 0 and below 0.5; that of the data layers is {ALPHA}"
        )
    return alpha


def _finite(x: Values) -> Any:
    x = as_floats("x", x)
    check_values("x", x, None, "logit_transform makes finite ones of pixels in [0, 1]")
    return x


def binarize(
    images: UInt8[Array, "batch h w c"], keys: Key[Array, " batch"], max_value: int
) -> Float[Array, "batch h w c"]:
    """Draws each pixel as 1 with probability value / max_value, else 0; one key an image.

    16 random bits a pixel are compared with the value scaled to 0..2^16 (8 bits would be biased),
    so that a black pixel is never and a white one is always 1.
    """
    threshold = (images.astype(jnp.uint32) * 2**16 + max_value // 2) // max_value
    bits = jax.vmap(lambda key: jax.random.bits(key, images.shape[1:], jnp.uint16))(keys)
    return (bits < threshold).astype(jnp.float32)


def dequantize(
    images: UInt8[Array, "batch h w c"], keys: Key[Array, " batch"], max_value: int
) -> Float[Array, "batch h w c"]:
    """Spreads each of the max_value + 1 values evenly over its share of [0, 1]; one key an image.

    The mean log-density of the result is a lower bound on the log-probability of the images plus
    log(max_value + 1) a value (Theis et al. 2016, section 3.1).
    """
    noise = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:]))(keys)
    return (images + noise) / (max_value + 1)


def _values(images: Array, keys: Array, max_value: int) -> Array:
    del keys, max_value
    return images


def _logits(images: Array, keys: Array, max_value: int) -> Array:
    return logit_transform(dequantize(images, keys, max_value))


def _pixels_of_logits(x: Array) -> Array:
    return jnp.clip(inverse_logit_transform(x), 0.0, 1.0)


BINARY = DataSpace(binarize, limits=(0.0, 1.0), is_discrete=True)
UNIT_INTERVAL = DataSpace(dequantize, lambda x: jnp.clip(x, 0.0, 1.0), is_density=True)
LOGITS = DataSpace(_logits, _pixels_of_logits, is_density=True, log_det=logit_log_det)
BYTES = DataSpace(
    _values,
    to_pixels=lambda x: x / 255.0,
    max_value=255,
    limits=(0.0, 255.0),
    is_discrete=True,
)
