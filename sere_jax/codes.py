"""Codes of images, images of codes, and what one latent does."""

from typing import Any

import jax
import jax.numpy as jnp

from sere_jax.arrays import (
    Array,
    Count,
    Images,
    Keys,
    Params,
    Values,
    as_array,
    as_key,
    as_parameters,
    public,
)
from sere_jax.compilation import jit
from sere_jax.generation import generate_images
from sere_jax.inputs import (
    block_keys,
    check_codes,
    check_condition,
    check_has_codes,
    check_images,
    check_place_of_code,
    check_values_of_code,
    checked_count,
    example_keys,
    sample_noise,
)
from sere_jax.model import LatentVariableModel, apply


@public
def encode(
    model: LatentVariableModel,
    params: Params,
    x: Values,
    *,
    condition: Values | None = None,
) -> Any:
    """The codes of images without chance: each layer at the mean of its posterior.

    From the first layer to the last, ε_l is the mean of q(ε_l | z_{l-1}, x), given the codes z that
    were found so, and z_l = f_l(ε_l). Of `iaf_vae` and `relaxed_bernoulli_vae`, whose q is a
    transformation of noise, z is what noise 0 gives.

    To describe images it is better than a sample of z: docs/model.md has figures.

    Args:
        x: [B, *data_shape] in data space.
        condition: [B, C].

    Returns:
        z like `infer(...).z`: [B, L, *latent_shape]; of `ladder_vae` a tuple of [B, N_l], of the
        other systems [B, N].

    Raises:
        ValueError: x has the wrong shape, or the model has no codes.
    """
    check_has_codes(model, "encode")
    x = check_images(model, x)
    condition = check_condition(model, condition, len(x))
    return _encode(model, as_parameters(params), x, condition)


@jit(static_argnums=0)
def _encode(model: LatentVariableModel, params: Params, x: Array, condition: Array | None) -> Any:
    num_layers, *event_shape = model.noise_shape
    noise = jnp.zeros((num_layers, len(x), *event_shape))
    return apply(model, params, x, noise, condition=condition).z


@public
def decode(
    model: LatentVariableModel,
    params: Params,
    z: Any,
    key: Keys,
    num_layers_given: Count | None = None,
    *,
    expected: bool = False,
    condition: Values | None = None,
) -> Images:
    """Draws images from codes; the codes of the layers that are not given come from the prior.

    With all layers given and z = infer(x, key).z this is `reconstruct(x, key)`, with none given
    `sample(key, B)`.

    Args:
        z: codes like those of `encode` and `infer(...).z`.
        key: PRNG key, or [B] keys.
        num_layers_given: how many layers take their codes from z, in the order in which they
            generate: z_1 first, of `ladder_vae` z_L. What z holds of the others changes nothing.
            None: all layers.
        expected: as in `sample`.
        condition: [B, C].

    Returns:
        [B, *data_shape] in data space.

    Raises:
        TypeError: z does not hold real numbers, or `num_layers_given` is no integer.
        ValueError: z has the wrong shape, `num_layers_given` is not 0 to L, or the model has no
            codes.
    """
    check_has_codes(model, "decode")
    codes, num = check_codes(model, z)
    num_layers = model.config.num_layers
    if num_layers_given is None:
        num_layers_given = num_layers
    num_given = checked_count("num_layers_given", num_layers_given, 0, num_layers)
    condition = check_condition(model, condition, num)
    keys = example_keys(as_key(key), num)
    params = as_parameters(params)
    if not num_given:
        return generate_images(model, params, keys, None, condition)[int(expected)]
    return _decode(model, params, codes, keys, num_given, condition)[int(expected)]


@jit(static_argnums=(0, 4))
def _decode(
    model: LatentVariableModel,
    params: Params,
    z: Any,
    keys: Array,
    num_given: int,
    condition: Array | None,
) -> tuple[Array, Array]:
    given: dict[str, Any] = {"condition": condition}
    codes = apply(model, params, z, method="arranged")
    of_blocks = block_keys(model, keys)
    if num_given == model.config.num_layers:
        return apply(model, params, codes, of_blocks, True, method="regenerate", **given)
    noise = sample_noise(model, keys, 0)
    return apply(model, params, codes, num_given, noise, of_blocks, method="generate_rest", **given)


@public
def traverse(
    model: LatentVariableModel,
    params: Params,
    x: Values,
    layer: Count,
    index: Count | tuple[int, ...],
    values: Values,
    key: Keys,
    *,
    expected: bool = False,
    condition: Values | None = None,
) -> Images:
    """Images from the codes of one image, in which one latent takes several values.

    The codes are those of `encode`; all others keep their values, those of later layers too.

    Args:
        x: [*data_shape] in data space, one image.
        layer: which one, 0 to L - 1 (z_1 to z_L).
        index: which latent of the layer; in maps a tuple of three.
        values: [num] values of the latent; those of the prior are of order 1, of
            `relaxed_bernoulli_vae` between 0 and 1.
        key: one PRNG key, for all images.
        expected: as in `sample`.
        condition: [C].

    Returns:
        [num, *data_shape] in data space.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has the wrong shape; there is no such layer or latent; a value is
            not finite, or beyond what the latent can be; or the model has no codes.
    """
    check_has_codes(model, "traverse")
    x = check_images(model, as_array("x", x)[None])
    place = check_place_of_code(model, layer, index)
    values = check_values_of_code(model, values)
    given = check_condition(model, condition if condition is None else [condition], 1)
    (own_key,) = example_keys(as_key(key), 1)
    images = _traverse(model, as_parameters(params), x, place, values, own_key, given)
    return images[int(expected)]


@jit(static_argnums=(0, 3))
def _traverse(
    model: LatentVariableModel,
    params: Params,
    x: Array,
    place: tuple[int, tuple[int, ...]],
    values: Array,
    key: Array,
    condition: Array | None,
) -> tuple[Array, Array]:
    layer, index = place
    z = jax.tree.map(
        lambda part: jnp.broadcast_to(part, (len(values), *part.shape[1:])),
        _encode(model, params, x, condition),
    )
    if isinstance(z, tuple):
        changed = z[layer].at[(slice(None), *index)].set(values)
        z = (*z[:layer], changed, *z[layer + 1 :])
    else:
        of_layer = (layer, *index) if model.has_codes_of_layers else index
        z = z.at[(slice(None), *of_layer)].set(values)
    if condition is not None:
        condition = jnp.broadcast_to(condition, (len(values), condition.shape[1]))
    keys = jnp.broadcast_to(key, (len(values),))
    return _decode(model, params, z, keys, model.config.num_layers, condition)
