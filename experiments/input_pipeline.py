"""From the uint8 data set on the device to a batch, inside the compiled step.

Everything random is keyed by (seed, step, place in the global batch), never by device.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def epoch_order(key: Array, epoch: Array, num_examples: int) -> Array:
    """Order [num_examples] in which epoch number `epoch` visits the training examples."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


def flip_horizontally(images: Array, keys: Array) -> Array:
    """Mirrors each of images [B, h, w, c] with probability one half."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
