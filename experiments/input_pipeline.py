"""From the uint8 data set on the device to a batch, inside the compiled step.

Everything random is keyed by (seed, step, place in the global batch), never by device.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from sere_jax.config import ModelConfig
from sere_jax.data_layer import data_space_of

Array = jax.Array


def epoch_order(key: Array, epoch: Array, num_examples: int) -> Array:
    """Order [num_examples] in which epoch number `epoch` visits the training examples."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


def flip_horizontally(images: Array, keys: Array) -> Array:
    """Mirrors each of images [B, h, w, c] with probability one half."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def to_data_space(images: Array, keys: Array, config: ModelConfig, max_value: int) -> Array:
    """uint8 images [B, h, w, c] as the model's data layer takes them (keys [B])."""
    return data_space_of(config).from_images(images, keys, max_value)


def to_grey_levels(x: npt.ArrayLike, config: ModelConfig) -> np.ndarray:
    """x in data space, or expectations of it, as float32 in [0, 1], for pictures."""
    return np.asarray(data_space_of(config).to_pixels(np.asarray(x, np.float32)))
