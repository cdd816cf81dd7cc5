"""From the uint8 data set on the device to a batch, inside the compiled step.

Everything random is keyed by (seed, step, place in the global batch), never by device.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

import sere_jax
from sere_jax.config import ModelConfig

Array = jax.Array


def epoch_order(key: Array, epoch: Array, num_examples: int) -> Array:
    """Order [num_examples] in which epoch number `epoch` visits the training examples."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


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


def flip_horizontally(images: Array, keys: Array) -> Array:
    """Mirrors each of images [B, h, w, c] with probability one half."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def to_data_space(images: Array, keys: Array, config: ModelConfig, max_value: int) -> Array:
    """uint8 images [B, h, w, c] as the model's data layer takes them (keys [B])."""
    if config.data_layer == "bernoulli":
        return binarize(images, keys, max_value)
    if config.data_layer == "gaussian":
        return dequantize(images, keys, max_value)
    if config.has_flows:
        return sere_jax.logit_transform(dequantize(images, keys, max_value))
    return images


def to_grey_levels(x: npt.ArrayLike, config: ModelConfig) -> np.ndarray:
    """x in data space, or expectations of it, as float32 in [0, 1], for pictures."""
    levels = np.asarray(x, np.float32)
    if config.has_flows:
        pixels = sere_jax.inverse_logit_transform(jnp.asarray(levels))
        return np.clip(np.asarray(pixels), 0.0, 1.0)
    return levels / 255.0 if config.data_layer == "discretized_logistic_mixture" else levels
