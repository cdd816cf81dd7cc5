"""From the uint8 data set on the device to a batch, inside the compiled step.

Everything random is keyed by (seed, step, place in the global batch), never by device.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

Array = jax.Array

# Bounds of random affine maps, each drawn uniformly: they keep a handwritten digit what it is.
ROTATION = 0.15  # radians
SCALE = 0.1
SHEAR = 0.1
SHIFT = 0.7  # pixels
# Of the parameters of a map: angle, height, width, shear, two shifts.
BOUNDS = (ROTATION, SCALE, SCALE, SHEAR, SHIFT, SHIFT)


def epoch_order(key: Array, epoch: Array, num_examples: int) -> Array:
    """Order [num_examples] in which epoch number `epoch` visits the training examples."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


def flip_horizontally(images: Array, keys: Array) -> Array:
    """Mirrors each of images [B, h, w, c] with probability one half."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def random_parameters(key: Array) -> Array:
    """Parameters [6] of an affine map, each in [-1, 1] of its bound."""
    return jax.random.uniform(key, (len(BOUNDS),), minval=-1.0, maxval=1.0)


def affine_map(parameters: Array) -> tuple[Array, Array]:
    """A matrix [2, 2] near the identity, and a shift [2] in pixels; of zeros the identity itself.

    Parameters are those of `random_parameters`.
    """
    angle, height, width, shear, *shift = jnp.array(BOUNDS) * parameters
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.array([[cosine, -sine], [sine, cosine]])
    return rotation @ jnp.array([[1 + height, shear], [0.0, 1 + width]]), jnp.array(shift)


def transform(
    image: Array, matrix: Array, shift: Array, contrast: float = 1.0, max_value: int = 255
) -> Array:
    """The image [h, w, c] uint8 whose pixel at p is that of `image` at m + matrix (p - m) + shift.

    m is the middle; between pixels it is bilinear, beyond the edge 0. That blurs it: `contrast`
    above 1 moves its values away from the grey in the middle, max_value / 2, and no further than 0
    and max_value. It is rounded to uint8.
    """
    size = jnp.array(image.shape[:2])
    middle = (size - 1) / 2
    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, image.shape[:2]), indexing="ij"), -1)
    sources = middle + shift + (places - middle) @ matrix.T
    values = jax.vmap(
        lambda channel: map_coordinates(channel, [sources[..., 0], sources[..., 1]], order=1),
        in_axes=-1,
        out_axes=-1,
    )(image.astype(jnp.float32))
    if contrast != 1.0:
        grey = max_value / 2
        values = jnp.clip(grey + contrast * (values - grey), 0.0, max_value)
    return jnp.round(values).astype(image.dtype)


def transform_at_random(
    images: Array, keys: Array, share: float, contrast: float = 1.0, max_value: int = 255
) -> tuple[Array, Array]:
    """Applies a random affine map to each of images [B, h, w, c] with probability `share`.

    `contrast` and `max_value` are those of `transform`. Returns the images, and the parameters
    [B, 6] of their maps, zeros where the image is as it was.
    """

    def one(image, key):
        choice_key, map_key = jax.random.split(key)
        parameters = random_parameters(map_key)
        transformed = transform(image, *affine_map(parameters), contrast, max_value)
        is_chosen = jax.random.bernoulli(choice_key, share)
        return jnp.where(is_chosen, transformed, image), jnp.where(is_chosen, parameters, 0.0)

    return jax.vmap(one)(images, keys)


def augmentation(
    dataset: Any, affine_until: int, max_value: int
) -> Callable[[Array, Array, Array], tuple[Array, Array | None]]:
    """What `config.dataset` does to training images: (images, keys [B], step []) -> images.

    With them comes how they were transformed, [B, 6], where `condition="affine"`; else None.

    Args:
        dataset: `config.dataset`.
        affine_until: from this step on there are no affine maps.
        max_value: largest pixel value of the images.
    """
    return functools.partial(_augment, dataset, affine_until, max_value)


def _augment(
    dataset: Any, affine_until: int, max_value: int, images: Array, keys: Array, step: Array
) -> tuple[Array, Array | None]:
    parameters = None
    if dataset.horizontal_flip:
        images = flip_horizontally(images, keys)
    if dataset.random_affine:
        affine_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        share, contrast = dataset.random_affine, dataset.affine_contrast
        images, parameters = jax.lax.cond(
            step < affine_until,
            lambda images: transform_at_random(images, affine_keys, share, contrast, max_value),
            lambda images: (images, jnp.zeros((len(images), len(BOUNDS)))),
            images,
        )
    return images, parameters if dataset.condition == "affine" else None
