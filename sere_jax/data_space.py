"""Data spaces: how images of integers become x, what a data layer models, and x a picture."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sere_jax.logit import inverse_logit_transform, logit_log_det, logit_transform

Array = jax.Array


def _unchanged(x):
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


def binarize(images: Array, keys: Array, max_value: int) -> Array:
    """Draws each pixel as 1 with probability value / max_value.

    16 random bits a pixel are compared with the value scaled to 0..2^16 (8 bits would be biased),
    so that a black pixel is never and a white one is always 1.

    Args:
        images: [B, h, w, c] uint8 in 0..max_value.
        keys: [B] keys.
        max_value: the value of white.

    Returns:
        [B, h, w, c] float32 of zeros and ones.
    """
    threshold = (images.astype(jnp.uint32) * 2**16 + max_value // 2) // max_value
    bits = jax.vmap(lambda key: jax.random.bits(key, images.shape[1:], jnp.uint16))(keys)
    return (bits < threshold).astype(jnp.float32)


def dequantize(images: Array, keys: Array, max_value: int) -> Array:
    """Spreads each of the max_value + 1 values evenly over its share of [0, 1].

    The mean log-density of the result is a lower bound on the log-probability of the images plus
    log(max_value + 1) a value (Theis et al. 2016, section 3.1).

    Args:
        images: [B, h, w, c] uint8 in 0..max_value.
        keys: [B] keys.
        max_value: the value of white.

    Returns:
        [B, h, w, c] float32 in [0, 1].
    """
    noise = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:]))(keys)
    return (images + noise) / (max_value + 1)


def _values(images, keys, max_value):
    del keys, max_value
    return images


def _logits(images, keys, max_value):
    return logit_transform(dequantize(images, keys, max_value))


def _pixels_of_logits(x):
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
