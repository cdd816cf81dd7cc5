"""Arrays, parameters and keys as users pass them, made uniform once; and what all files share."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

if TYPE_CHECKING:
    Array: TypeAlias = jax.Array
    Values: TypeAlias = jax.typing.ArrayLike | Sequence[Any]  # real numbers, or lists of them
    Keys: TypeAlias = jax.typing.ArrayLike  # one PRNG key, or one per example
    Count: TypeAlias = int | np.integer[Any] | Array  # one whole number
else:
    Array = jax.Array | np.ndarray  # as JAX's own functions, all take both
    Values = Keys = Count = Any  # the functions refuse all else, each in one line
PerImage: TypeAlias = Float[Array, " batch"]
Images: TypeAlias = Shaped[Array, "batch height width channels"]
Noise: TypeAlias = Float[Array, "parts batch *event"]  # standard normal; L parts, or one
Limits: TypeAlias = tuple[int | float, int | float] | None  # the least and the largest value
Params: TypeAlias = Any  # the parameters of a model: nested dictionaries of arrays
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

REAL = (jnp.bool_, jnp.integer, jnp.floating)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def record(cls: type[Result]) -> type[Result]:
    """A frozen dataclass and pytree, as a decorator; `static` fields are no leaves.

    JAX rebuilds it without its constructor, which checks shapes in tests: while JAX works, leaves
    have further axes, or are no arrays.
    """
    fields = dataclasses.fields(dataclasses.dataclass(frozen=True)(cls))  # type: ignore[arg-type]
    static = [field.name for field in fields if "static" in field.metadata]
    leaves = [field.name for field in fields if field.name not in static]

    def flatten_with_keys(instance: Result) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        values = [(jax.tree_util.GetAttrKey(name), getattr(instance, name)) for name in leaves]
        return values, tuple(getattr(instance, name) for name in static)

    def unflatten(static_values: tuple[Any, ...], values: Iterable[Any]) -> Result:
        instance = object.__new__(cls)
        vars(instance).update(zip(leaves, values, strict=True))
        vars(instance).update(zip(static, static_values, strict=True))
        return instance

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
    return cls


def static() -> Any:
    """A field of a `record` that is no leaf of the pytree."""
    return dataclasses.field(metadata={"static": True})


def masked(values: Array, mask: Array | None) -> Array:
    """values [..., D], but 0 where mask [D] is; None: nowhere."""
    return values if mask is None else jnp.where(mask > 0, values, 0.0)


def flatten(inputs: Array, event_ndims: int) -> Array:
    """[..., *event] to [..., size of the event]."""
    batch_ndims = inputs.ndim - event_ndims
    # Of an empty batch -1 would be unknown.
    return inputs.reshape(*inputs.shape[:batch_ndims], math.prod(inputs.shape[batch_ndims:]))


def public(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """`in_float32` with matrix products in full, which GPUs and TPUs else shorten inputs of."""
    wrapped = in_float32(function)

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with jax.default_matmul_precision("highest"):
            return wrapped(*args, **kwargs)

    return call


def in_float32(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Lets a function compute in float32, broadcast and promote types, whatever JAX is set to.

    `jax_numpy_rank_promotion` and `jax_numpy_dtype_promotion` find mistakes in a user's own code;
    what this library, Flax and distrax broadcast is no mistake. With `jax_enable_x64` random
    numbers would be others, and scans would mix types.
    """

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with (
            jax.enable_x64(False),
            jax.numpy_rank_promotion("allow"),
            jax.numpy_dtype_promotion("standard"),
        ):
            return function(*args, **kwargs)

    return call


def as_array(name: str, values: Values) -> Any:
    """Real numbers as an array of JAX if they are on a device or traced, else one of NumPy.

    They may be an array in any byte order, what NumPy makes one of, or a list of arrays; `name` is
    what an error calls them.

    Raises:
        TypeError: they are no real numbers.
        ValueError: they are a list whose parts differ in shape or type.
    """
    parts = jax.tree.leaves(values) if isinstance(values, list | tuple) else [values]
    try:
        is_on_device = any(isinstance(part, jax.Array) for part in parts)
        array = jnp.asarray(values) if is_on_device else np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no array: its parts differ in shape or type") from error
    if not any(jnp.issubdtype(array.dtype, kind) for kind in REAL):
        raise TypeError(
            f"{name} holds values of type {array.dtype}; the model expects real numbers: give an "
            "array, or nested lists of numbers"
        )
    return _native(array)


def as_floats(name: str, values: Values) -> Any:
    """`as_array`, with all but float32 and float64 as float32."""
    array = as_array(name, values)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def check_values(name: str, array: Any, limits: Limits, way_out: str) -> None:
    """Refuses values that are not finite or not within limits (None: those of float32).

    Only values of NumPy arrays are looked at: under `jit` there are none yet, and for those on a
    device every call would wait.

    Raises:
        ValueError: there is such a value; the message ends with `way_out`.
    """
    if not isinstance(array, np.ndarray) or not array.size:
        return
    low, high = limits or (float(np.finfo(np.float32).min), float(np.finfo(np.float32).max))
    allowed = f"outside {low} to {high}" if limits else "which is not finite in float32"
    for value in (array.min(), array.max()):
        if not low <= float(value) <= high:  # nan too
            raise ValueError(f"{name} holds the value {value}, {allowed}; {way_out}")


def as_parameters(params: Any) -> Any:
    """Floating parameters as float32; raises a TypeError if one holds no real numbers."""

    def convert(leaf: Any) -> Any:
        array = as_array("params", leaf)
        is_other = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype != np.float32
        return array.astype(np.float32) if is_other else array

    return jax.tree.map(convert, params, is_leaf=lambda node: isinstance(node, list))


def as_key(key: Any) -> Array:
    """A key, or [B] keys, as keys of `threefry2x32`.

    With `rbg` and `unsafe_rbg`, what an example draws would depend on the keys of the others. Both
    make a key of a seed by repeating that of threefry, so that the same seed gives the same draws.

    Keys are from `jax.random.key`, or old ones of two or four uint32, from `jax.random.PRNGKey`;
    all else is refused with a TypeError.
    """
    key = _native(key) if isinstance(key, np.ndarray) else key
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    is_raw = dtype == np.uint32 and shape in ((2,), (4,))
    if not (is_raw or is_typed and key.ndim <= 1):
        got = type(key).__name__ if dtype is None else f"{dtype} of shape {shape}"
        raise TypeError(f"key is {got}; it must be jax.random.key(seed), or one key an example")
    if is_typed and jax.random.key_impl(key) not in ("rbg", "unsafe_rbg"):
        return key
    data = jax.random.key_data(key) if is_typed else key
    if data.shape[-1] == 4:
        first, second = data[..., :2], data[..., 2:]
        data = first ^ (first ^ second) * np.uint32(0x9E3779B9)  # odd: no bit of either is lost
    return jax.random.wrap_key_data(data, impl="threefry2x32")


def _native(array: Any) -> Any:
    dtype = array.dtype
    if not isinstance(array, np.ndarray) or dtype.isnative:
        return array
    return array.astype(dtype.newbyteorder("="))
