"""What the public functions check and draw: images, counts, keys, noise."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key, Shaped

from sere_jax.arrays import Array, Count, Images, Noise, Values, as_array, as_floats, check_values
from sere_jax.data_layer import data_space_of, has_independent_pixels
from sere_jax.model import LatentVariableModel
from sere_jax.rules import python_value

# Numbers that an example's key is folded with; those of the samples of its codes go from 0 up.
OF_BLOCKS, OF_DROPOUT, OF_ACCEPTANCE = 2**32 - 1, 2**32 - 2, 2**32 - 3


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


def check_has_codes(model: LatentVariableModel, function: str) -> None:
    """Refuses, with a ValueError, a model without codes."""
    if not model.config.has_latents:
        raise ValueError(
            f"{function} needs codes, which there are none of with latent_shape="
            f"{model.config.latent_shape}; sere_jax.sample and log_likelihood do without"
        )


def check_codes(model: LatentVariableModel, z: Any) -> tuple[Any, int]:
    """z as `infer(...).z` in float32, and the size of the batch.

    Raises:
        TypeError: it does not hold real numbers.
        ValueError: it has another shape, or values, which are looked at where `check_values` does,
            are not finite or beyond `model.code_limits`.
    """
    shapes = model.code_shape
    has_parts = isinstance(shapes[0], tuple)
    parts = list(z) if has_parts and isinstance(z, list | tuple) else [z]
    arrays = [as_array("z", part) for part in parts]
    expected = shapes if has_parts else (shapes,)
    num = arrays[0].shape[0] if arrays and arrays[0].ndim else 0
    found = tuple(array.shape for array in arrays)
    if found != tuple((num, *shape) for shape in expected):
        wanted = ", ".join(f"(batch, {', '.join(map(str, shape))})" for shape in expected)
        raise ValueError(
            f"z has the shape {', '.join(map(str, found))}; the model expects {wanted}, as "
            "sere_jax.encode returns it"
        )
    for array in arrays:
        check_values("z", array, model.code_limits, "sere_jax.encode returns codes")
    codes = tuple(jnp.asarray(as_floats("z", array), jnp.float32) for array in arrays)
    return codes if has_parts else codes[0], num


def check_place_of_code(
    model: LatentVariableModel, layer: Count, index: Any
) -> tuple[int, tuple[int, ...]]:
    """The layer from 0, and the index in it as a tuple; raises a TypeError or ValueError."""
    config = model.config
    layer = checked_count("layer", layer, 0, config.num_layers - 1)
    shape = config.latent_shape
    if len(shape) == 1:
        shape = (config.latents_per_layer[layer],)
    value = python_value(index)
    places = value if isinstance(value, tuple | list) else (value,)
    if len(places) != len(shape):
        raise ValueError(
            f"index={index!r} must be {len(shape)} numbers, for codes of shape {shape}"
        )
    checked = (
        checked_count("index", place, 0, size - 1)
        for place, size in zip(places, shape, strict=True)
    )
    return layer, tuple(checked)


def check_values_of_code(model: LatentVariableModel, values: Values) -> Float[Array, " num"]:
    """Values of one latent in float32; raises a TypeError or ValueError."""
    array = as_array("values", values)
    if array.ndim != 1:
        raise ValueError(f"values has the shape {array.shape}; give a list of numbers, (num,)")
    check_values("values", array, model.code_limits, "sere_jax.encode says what codes are like")
    return jnp.asarray(as_floats("values", array), jnp.float32)


def checked_temperature(model: LatentVariableModel, temperature: Any) -> float | None:
    """The factor of the noise; None for 1, which changes nothing."""
    value = python_value(temperature)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"temperature={value!r} must be a number above 0")
    if not 0.0 < value < math.inf:
        raise ValueError(f"temperature={value} must be a finite number above 0; 1 is the prior")
    if value != 1.0:
        check_has_codes(model, f"temperature={value}")
    return None if value == 1.0 else float(value)


def check_completable(model: LatentVariableModel) -> None:
    """Refuses, with a ValueError, a model whose missing pixels cannot be drawn."""
    config = model.config
    if not has_independent_pixels(config):
        raise ValueError(
            f"complete needs pixels that are independent given the codes, which those of "
            f"data_layer={config.data_layer!r} are not; take a model with another data layer"
        )
    if type(model).log_weight is LatentVariableModel.log_weight:
        raise ValueError(
            f"complete needs the methods log_weight and redraw, which system={config.system!r} "
            "does not have; write them, as in sere_jax/model.py"
        )


def check_observed(model: LatentVariableModel, observed: Values) -> np.ndarray:
    """The mask of observed pixels [*data_shape]; raises a TypeError or ValueError."""
    mask = np.asarray(as_array("observed", observed))
    if mask.dtype != bool:
        raise TypeError(f"observed holds {mask.dtype}; it must be bool, True at observed pixels")
    shape = model.config.data_shape
    if mask.shape != shape:
        raise ValueError(f"observed has the shape {mask.shape}; it must be data_shape={shape}")
    if not mask.any():
        raise ValueError("observed is False everywhere; sere_jax.sample draws whole images")
    if mask.all():
        raise ValueError("observed is True everywhere; there is nothing to complete")
    if (mask.any(axis=-1) != mask.all(axis=-1)).any():
        raise ValueError(
            "observed differs between the channels of a pixel; observe all of them or none"
        )
    return mask


def with_zeros(x: Values, observed: np.ndarray) -> Any:
    """x with 0, which is in all data spaces, at pixels that are not observed."""
    array = as_array("x", x)
    library: Any = np if isinstance(array, np.ndarray) else jnp
    has_shape = array.shape[1:] == observed.shape
    return library.where(observed, array, array.dtype.type(0)) if has_shape else array


def checked_count(name: str, count: Count, at_least: int = 1, at_most: int | None = None) -> int:
    """A whole number of Python's; refuses others with a TypeError or ValueError."""
    number: Any = count if isinstance(count, jax.core.Tracer) else python_value(count)
    allowed = f"at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name}={number!r} must be an integer, {allowed}")
    if number < at_least or (at_most is not None and number > at_most):
        raise ValueError(f"{name}={number} must be {allowed}")
    return number


def example_keys(key: Key[Array, "*keys"], num_examples: int) -> Key[Array, " batch"]:
    """[B] keys: `key` itself if it holds one per example, else folded with the example's index.

    Raises:
        ValueError: it holds another number of keys than one or `num_examples`.
    """
    if key.ndim == 1:
        if key.shape != (num_examples,):
            raise ValueError(
                f"key holds {key.shape[0]} keys for {num_examples} examples; give one key, or "
                f"{num_examples}"
            )
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
