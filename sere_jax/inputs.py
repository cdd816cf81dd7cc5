"""What the public functions check and draw: images, counts, keys, noise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key, Shaped

from sere_jax.arrays import Array, Count, Images, Noise, Values, as_array, as_floats, check_values
from sere_jax.config import python_value
from sere_jax.data_layer import data_space_of
from sere_jax.model import LatentVariableModel

# Numbers that an example's key is folded with; those of the samples of its codes go from 0 up.
OF_BLOCKS, OF_DROPOUT = 2**32 - 1, 2**32 - 2


def check_images(model: LatentVariableModel, x: Values, *, may_be_expected: bool = False) -> Images:
    """x as an array of floats; an expectation is seldom a whole number.

    Raises:
        TypeError: it does not hold real numbers.
        ValueError: its shape is not [B, *data_shape], or values, which are looked at where
            `check_values` does, lie outside of the data space.
    """
    x = as_array("x", x)
    space, way_out = data_space_of(model.config), "sere_jax.to_data_space makes x of uint8 images"
    check_values("x", x, space.limits, way_out)
    if space.is_discrete and not may_be_expected and isinstance(x, np.ndarray):
        for value in x[x != np.round(x)][:1]:
            raise ValueError(f"x holds the value {value}, which is no whole number; {way_out}")
    x = jnp.asarray(as_floats("x", x), jnp.float32)
    check_shape("x", x, model)
    return x


def check_condition(
    model: LatentVariableModel, condition: Values | None, num: int
) -> Float[Array, "batch C"] | None:
    """The condition of `num` examples as an array of float32; None for a model without one.

    Raises:
        TypeError: it does not hold real numbers.
        ValueError: it is missing, or there should be none; its shape is not [num, C], or values,
            which are looked at where `check_values` does, are not finite.
    """
    size = model.config.condition_size
    if not size:
        if condition is not None:
            raise ValueError(
                "condition is given to a model without one (condition_size=0); leave it out"
            )
        return None
    expected = f"condition of shape ({num}, {size})"
    if condition is None:
        raise ValueError(
            f"the model needs a {expected}, (batch, condition_size); zeros mean 'as it is' for "
            "models trained with transformed images, one-hot rows are classes for models trained "
            "with labels"
        )
    array = as_array("condition", condition)
    if array.shape != (num, size):
        raise ValueError(f"condition has the shape {array.shape}; the model needs a {expected}")
    check_values("condition", array, None, "give finite numbers")
    return jnp.asarray(as_floats("condition", array), jnp.float32)


def check_bytes(
    model: LatentVariableModel, images: Values, max_value: Count
) -> tuple[Shaped[Any, "batch height width channels"], int]:
    """Images as uint8, and `max_value`; see `to_data_space` for what is refused."""
    max_value = checked_count("max_value", max_value, at_most=255)
    array = as_array("images", images)
    if array.dtype != np.uint8:
        dtype = getattr(images, "dtype", type(images).__name__)
        raise TypeError(f"images are {dtype}; they must be uint8, 0 to max_value={max_value}")
    check_shape("images", array, model)
    check_values("images", array, (0, max_value), "give max_value, or the images scaled to it")
    expected = data_space_of(model.config).max_value
    if expected not in (None, max_value):
        raise ValueError(
            f"max_value={max_value} must be {expected} for data_layer={model.config.data_layer!r}"
        )
    return array, max_value


def check_shape(name: str, x: Any, model: LatentVariableModel) -> None:
    """Refuses, with a ValueError, what has not the shape [B, *data_shape]."""
    if x.shape[1:] != model.config.data_shape or x.ndim != 4:
        raise ValueError(
            f"{name} has the shape {x.shape}; the model expects (batch, *data_shape) = "
            f"(batch, {', '.join(map(str, model.config.data_shape))})"
        )


def checked_count(name: str, count: Count, at_least: int = 1, at_most: int | None = None) -> int:
    """A whole number of Python's; refuses others with a TypeError or ValueError."""
    number: Any = count if isinstance(count, jax.core.Tracer) else python_value(count)
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name}={number!r} must be an integer of at least {at_least}")
    if number < at_least:
        raise ValueError(f"{name}={number} must be at least {at_least}")
    if at_most is not None and number > at_most:
        raise ValueError(f"{name}={number} must be at most {at_most}")
    return number


def example_keys(key: Key[Array, "*keys"], num_examples: int) -> Key[Array, " batch"]:
    """[B] keys: `key` itself if it holds one per example, else folded with the example's index.

    Raises:
        ValueError: it holds another number of keys than one or `num_examples`.
    """
    if key.ndim == 1:
        if key.shape != (num_examples,):
            raise ValueError(f"key holds {key.shape[0]} keys for {num_examples} examples")
        return key
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(num_examples))


def sample_noise(
    model: LatentVariableModel, keys: Key[Array, " batch"], sample: Array | int
) -> Noise:
    """Standard normal noise of sample number `sample` of each example's codes."""
    sample_keys = jax.vmap(lambda key: jax.random.fold_in(key, sample))(keys)
    num_layers, *event_shape = model.noise_shape

    def draw(layer: Array) -> Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, layer), event_shape))(
            sample_keys
        )

    layers = jnp.arange(num_layers)
    # On CPUs layer by layer: XLA's time to compile one draw for all grows with their number.
    return jax.lax.map(draw, layers) if jax.default_backend() == "cpu" else jax.vmap(draw)(layers)


def noise_of_samples(
    model: LatentVariableModel, keys: Key[Array, " batch"], samples: Array
) -> Float[Array, "parts samples batch *event"]:
    """`sample_noise` of several samples."""
    return jax.vmap(lambda sample: sample_noise(model, keys, sample), out_axes=1)(samples)


def block_keys(
    model: LatentVariableModel, keys: Key[Array, " batch"]
) -> Key[Array, "blocks batch"]:
    """Keys of the data layers that generate the examples."""

    def split(key: Array) -> Array:
        return jax.random.split(jax.random.fold_in(key, OF_BLOCKS), model.num_block_keys)

    return jax.vmap(split, out_axes=1)(keys)
