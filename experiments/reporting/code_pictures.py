"""Pictures of what single latents do, and of how the model goes on from parts of images."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sere_jax
from experiments.reporting import sheets
from experiments.reporting.captions import LEAST_KL
from sere_jax.data_layer import has_independent_pixels
from sere_jax.inputs import example_keys

Array = jax.Array
_Place = tuple[int, tuple[int, ...]]  # of a latent: its layer, and where it is there
_NUM_LATENTS, _NUM_VALUES = 6, 8
# Of these, latents are shown that change the image most. Both ends of each are as many images as
# are shown, so that one compiled program decodes both.
_NUM_TRIED = _NUM_LATENTS * _NUM_VALUES // 2
_NUM_COMPLETED, _NUM_WAYS = 8, 3


def save_traversals(
    model: sere_jax.LatentVariableModel,
    params: Any,
    x: Array,
    key: Array,
    condition: Array | None,
    kl: np.ndarray,
    workdir: pathlib.Path,
) -> None:
    """Writes a row for each of the latents that change the first image most.

    A latent goes from two standard deviations below its mean over the images `x` to two above.
    Those tried vary most in the layers that carry something of the image, by their KL [L] in nats.
    Those of other layers vary too, with the codes before them.
    """
    z = jax.tree.map(np.asarray, sere_jax.encode(model, params, x, condition=condition))
    tried = _most_varied(z, model, np.flatnonzero(kl >= min(LEAST_KL, kl.max())))

    def images(places: Sequence[_Place], num_values: int) -> np.ndarray:
        """[places, num_values, h, w, c] of the first image, with one latent along its way."""
        num = len(places) * num_values
        changed = jax.tree.map(lambda part: np.repeat(part[:1], num, axis=0), z)
        for row, (layer, index) in enumerate(places):
            codes = np.moveaxis(_of_layer(changed, layer, model), 0, -1)[index]  # [num], a view
            values = np.moveaxis(_of_layer(z, layer, model), 0, -1)[index]
            codes[row * num_values :][:num_values] = _way(values, num_values, model)
        # `sere_jax.traverse` would be compiled for each latent.
        keys = jnp.broadcast_to(example_keys(key, 1)[0], (num,))
        given = None if condition is None else jnp.repeat(condition[:1], num, axis=0)
        drawn = sere_jax.decode(model, params, changed, keys, expected=True, condition=given)
        return pixels(model, drawn).reshape(len(places), num_values, *drawn.shape[1:3], -1)

    ends = images(tried, 2).astype(float)
    changes = np.abs(ends[:, 1] - ends[:, 0]).mean(axis=(1, 2, 3))
    chosen = [tried[i] for i in sorted(np.argsort(changes)[-_NUM_LATENTS:])]
    names = (
        f"layer {layer + 1}: {', '.join(str(i + 1) for i in index)}" for layer, index in chosen
    )
    rows = dict(zip(names, images(chosen, _NUM_VALUES), strict=True))
    sheets.save_comparison(rows, workdir / "traversals.png")


def _way(values: np.ndarray, num: int, model: sere_jax.LatentVariableModel) -> np.ndarray:
    """`num` values a latent can have, from two standard deviations below the mean to two above."""
    mean, deviation = values.mean(), values.std()
    low, high = mean - 2.0 * deviation, mean + 2.0 * deviation
    if model.code_limits is not None:
        low, high = np.clip([low, high], *(np.array(model.code_limits) + [1e-3, -1e-3]))
    return np.linspace(low, high, num)


def save_completions(
    model: sere_jax.LatentVariableModel,
    params: Any,
    x: Array,
    key: Array,
    condition: Array | None,
    num_steps: int,
    workdir: pathlib.Path,
) -> None:
    """Writes images, their upper halves, and below each what the model draws for the rest.

    Of images one pixel high it is their left half. Writes nothing for images of one pixel, nor for
    flows, whose missing pixels `sere_jax.complete` cannot draw.
    """
    height, width, _ = model.config.data_shape
    if height * width == 1 or not has_independent_pixels(model.config):
        return
    x = x[:_NUM_COMPLETED]
    observed = np.zeros(model.config.data_shape, bool)
    if height > 1:
        observed[: height // 2] = True
    else:
        observed[:, : width // 2] = True
    given = None if condition is None else jnp.tile(condition[: len(x)], (_NUM_WAYS, 1))
    several = jnp.tile(x, (_NUM_WAYS, *[1] * (x.ndim - 1)))
    drawn = sere_jax.complete(model, params, several, observed, key, num_steps, condition=given)
    pictures = pixels(model, x)
    rows = {"original": pictures, "observed": np.where(observed[..., :1], pictures, 0.5)}
    for way, images in enumerate(np.split(pixels(model, drawn), _NUM_WAYS), 1):
        rows[f"drawn, {way}"] = images
    sheets.save_comparison(rows, workdir / "completions.png")


def pixels(model: sere_jax.LatentVariableModel, x: Any) -> np.ndarray:
    """For pictures: of other numbers of channels than 1 and 3 the first three, or the first."""
    return three_or_one(np.asarray(sere_jax.to_pixels(model, jnp.asarray(x, np.float32))))


def three_or_one(images: np.ndarray) -> np.ndarray:
    """The first three channels, or the first of fewer."""
    return images[..., : 3 if images.shape[-1] >= 3 else 1]


def _most_varied(
    z: Any, model: sere_jax.LatentVariableModel, layers: Iterable[int]
) -> list[_Place]:
    """In the order of the layers, among `layers`."""
    found = [
        (float(deviation), int(layer), place)
        for layer in layers
        for place, deviation in np.ndenumerate(_of_layer(z, layer, model).std(axis=0))
    ]
    return sorted((layer, place) for _, layer, place in sorted(found)[-_NUM_TRIED:])


def _of_layer(z: Any, layer: int, model: sere_jax.LatentVariableModel) -> np.ndarray:
    """A view [B, *codes]: see `sere_jax.encode`."""
    if isinstance(z, tuple):
        return z[layer]
    return z[:, layer] if model.has_codes_of_layers else z
