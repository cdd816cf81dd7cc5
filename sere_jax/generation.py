"""Images of a model: samples and reconstructions. Arguments are those of `sere_jax.functions`."""

from typing import Any

from sere_jax.arrays import (
    Array,
    Count,
    Images,
    Keys,
    Params,
    Values,
    as_key,
    as_parameters,
    public,
)
from sere_jax.compilation import jit
from sere_jax.inputs import (
    block_keys,
    check_condition,
    check_has_codes,
    check_images,
    checked_count,
    checked_temperature,
    example_keys,
    sample_noise,
)
from sere_jax.model import LatentVariableModel, apply


@public
def sample(
    model: LatentVariableModel,
    params: Params,
    key: Keys,
    num: Count,
    temperature: Count | float = 1.0,
    *,
    expected: bool = False,
    condition: Values | None = None,
) -> Images:
    """Draws images from the model, in O(L) steps; flows take num_flows D steps in all.

    Args:
        key: PRNG key, or [num] keys.
        num: how many images.
        temperature: factor, above 0, of the standard normal noise that codes are made of, and so
            of the prior's deviation where that is Gaussian. Below 1 images are more typical and
            less diverse.
        expected: return each block's expectation given the sampled codes and blocks before it,
            as figures show it, instead of the sample itself. A flow has none in closed form, and
            returns the sample.
        condition: [num, C], if the model has one.

    Returns:
        [num, *data_shape] in data space.

    Raises:
        TypeError: `num` is no integer.
        ValueError: `num` is below 1; or `temperature` is not above 0 and finite, or not 1 where
            there are no codes.
    """
    num = checked_count("num", num)
    factor = checked_temperature(model, temperature)
    condition = check_condition(model, condition, num)
    keys = example_keys(as_key(key), num)
    images = generate_images(model, as_parameters(params), keys, factor, condition)
    return images[int(expected)]


@jit(static_argnums=0)
def generate_images(
    model: LatentVariableModel,
    params: Params,
    keys: Array,
    temperature: Array | float | None,
    condition: Array | None,
) -> tuple[Array, Array]:
    """Images and their expectations from [B] keys; temperature None is 1."""
    noise, keys = sample_noise(model, keys, 0), block_keys(model, keys)
    noise = noise if temperature is None else temperature * noise
    return apply(model, params, noise, keys, method="generate", condition=condition)


@public
def reconstruct(
    model: LatentVariableModel,
    params: Params,
    x: Values,
    key: Keys,
    *,
    expected: bool = False,
    residual: bool = True,
    condition: Values | None = None,
) -> Images:
    """Infers the codes of x and generates images from them.

    The data layers see the blocks that they generate, never those of x.

    Args:
        x: [B, *data_shape] in data space.
        key: PRNG key, or [B] keys.
        expected: as in `sample`.
        residual: whether δγ(x_{l-1}, z_l) is added to the data layers' parameters; without it
            each block comes from γ¹(z_l) alone (paper, Figure S7).
        condition: [B, C], if the model has one.

    Returns:
        [B, *data_shape] in data space.

    Raises:
        ValueError: x has the wrong shape, or the model has no codes.
    """
    check_has_codes(model, "reconstruct")
    x = check_images(model, x)
    condition = check_condition(model, condition, len(x))
    images = _reconstruct(model, as_parameters(params), x, as_key(key), bool(residual), condition)
    return images[int(expected)]


@jit(static_argnums=(0, 4))
def _reconstruct(
    model: LatentVariableModel,
    params: Params,
    x: Array,
    key: Array,
    residual: bool,
    condition: Array | None,
) -> tuple[Array, Array]:
    keys = example_keys(key, len(x))
    given: dict[str, Any] = {"condition": condition}
    z = apply(model, params, x, sample_noise(model, keys, 0), method="codes", **given)
    return apply(model, params, z, block_keys(model, keys), residual, method="regenerate", **given)
