"""The way from one image to another through the codes."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

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
from sere_jax.inputs import (
    block_keys,
    check_condition,
    check_has_codes,
    check_images,
    checked_count,
    example_keys,
    sample_noise,
)
from sere_jax.model import LatentVariableModel, apply

TINY = 1e-30


@public
def interpolate(
    model: LatentVariableModel,
    params: Params,
    x_start: Values,
    x_end: Values,
    key: Keys,
    num: Count,
    *,
    condition: Values | None = None,
) -> Images:
    """Expected images on the way from one image to another through the codes.

    What is interpolated is the standard normal noise that would make the codes of either image
    under the prior, (ε_l - μ_l(z_{l-1})) / σ_l(z_{l-1}) if that is Gaussian, of all layers as one
    vector, and the model generates from it. So every code on the way is one that fits the codes
    before it, which those halfway between two z need not be. The path is a great circle (spherical
    interpolation): noise of N dimensions has a length near √N, and the middle of a straight line is
    too short.

    The ends are what `reconstruct` makes of either image alone with this key; but not with
    `couple_data_to_prior`, where the priors see the blocks that are generated.

    Args:
        x_start, x_end: [*data_shape] in data space.
        key: one PRNG key, for the codes of both images and all images on the way.
        num: how many images, both ends included; at least 2.
        condition: [2, C], of the two images; on the way it changes from one to the other linearly.

    Returns:
        [num, *data_shape] in data space, as `reconstruct` with `expected=True` returns images.

    Raises:
        ValueError: an image or `condition` has the wrong shape, `num` is below 2, or the model has
            no codes.
    """
    check_has_codes(model, "interpolate")
    ends = [check_images(model, as_array("x", x)[None]) for x in (x_start, x_end)]
    num = checked_count("num", num, at_least=2)
    condition = check_condition(model, condition, 2)
    (own_key,) = example_keys(as_key(key), 1)
    params = as_parameters(params)
    return _interpolate(model, params, jnp.concatenate(ends), own_key, num, condition)


@jit(static_argnums=(0, 4))
def _interpolate(
    model: LatentVariableModel,
    params: Params,
    ends: Array,
    key: Array,
    num: int,
    condition: Array | None,
) -> Array:
    noise = sample_noise(model, jnp.stack([key, key]), 0)
    of_ends = apply(model, params, ends, noise, method="prior_noise", condition=condition)
    start, end = of_ends.swapaxes(0, 1)
    parts = jnp.linspace(0.0, 1.0, num)
    way = jax.vmap(on_great_circle, (None, None, 0), 1)(start, end, parts)
    keys = block_keys(model, jnp.broadcast_to(key, (num,)))
    if condition is not None:
        condition = (1.0 - parts[:, None]) * condition[0] + parts[:, None] * condition[1]
    return apply(model, params, way, keys, method="generate", condition=condition)[1]


def on_great_circle(
    start: Float[Array, "*noise"], end: Float[Array, "*noise"], part: Array | float
) -> Float[Array, "*noise"]:
    """Spherical interpolation (Shoemake 1985); lengths go from one to the other likewise."""
    lengths = jnp.linalg.norm(start) * jnp.linalg.norm(end)
    angle = jnp.arccos(jnp.clip(jnp.vdot(start, end) / jnp.maximum(lengths, TINY), -1.0, 1.0))
    is_straight = jnp.sin(angle) < 1e-3  # and the formula divides by nearly 0
    sine = jnp.sin(jnp.where(is_straight, 1.0, angle))
    weights = jnp.where(
        is_straight,
        jnp.stack([1.0 - part, part]),
        jnp.stack([jnp.sin((1.0 - part) * angle), jnp.sin(part * angle)]) / sine,
    )
    return weights[0] * start + weights[1] * end
