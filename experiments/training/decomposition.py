"""Where the nats of a trained model are: bounds of single images, encoders made better for each.

The ELBO of an image falls short of log p(x) by the divergence of q(z | x) and p(z | x). A part of
it is amortization: one encoder of all images finds worse features than a search for each image
would (Cremer et al. 2018). What is left is the family of q. Of images that were trained on the ELBO
is higher than of others because the generative half fits them better, or the encoders do.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sere_jax
from experiments.training.evaluation import standard_error
from sere_jax.arrays import record
from sere_jax.compilation import jit
from sere_jax.inputs import noise_of_samples
from sere_jax.model import apply
from sere_jax.objectives import weighted_bounds
from sere_jax.sere_vae import SeReVAE

Array = jax.Array
SEARCH_LEARNING_RATE = 0.02
SEARCH_SAMPLES = 4  # of the codes of each image, a step


@record
class Bounds:
    """Of images, in nats."""

    log_likelihood: Array  # [B], importance-weighted
    elbo: Array  # [B], the mean over the same samples


def bounds(
    model: sere_jax.LatentVariableModel,
    params: Any,
    x: Array,
    keys: Array,
    *,
    num_samples: int,
    samples_at_once: int,
    search_steps: int = 0,
    condition: Array | None = None,
) -> Bounds:
    """Both bounds of x [B, *data_shape], with what q knows of x improved for `search_steps`.

    The search is for what the encoders found: features [hidden_size] of each layer, or whatever the
    system's `observe` returns. `keys` [B] are those of the noise, `condition`
    [B, C] is that of a model that has one.
    """
    return _bounds(model, params, x, keys, num_samples, samples_at_once, search_steps, condition)


@jit(static_argnums=(0, 4, 5, 6))
def _bounds(model, params, x, keys, num_samples, samples_at_once, search_steps, condition):
    given = () if condition is None else (condition,)
    observed = apply(model, params, x, *given, method="observe")
    search_keys, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    if search_steps:
        observed = _search(model, params, x, observed, search_keys, search_steps)

    return Bounds(*weighted_bounds(model, params, x, observed, keys, num_samples, samples_at_once))


def _search(model, params, x, observed, keys, steps):
    """`observed` with the features that q reads moved up the ELBO of each image by Adam."""
    optimizer = optax.adam(optax.cosine_decay_schedule(SEARCH_LEARNING_RATE, steps))

    def loss(features, step):
        samples = step * SEARCH_SAMPLES + jnp.arange(SEARCH_SAMPLES)
        improved = _with_features(model, observed, features)
        return -_log_weights(model, params, x, improved, keys, samples).mean(0).sum()

    def improve(step, carry):
        features, state = carry
        updates, state = optimizer.update(jax.grad(loss)(features, step), state)
        return optax.apply_updates(features, updates), state

    features = _features(model, observed)
    start = features, optimizer.init(features)
    return _with_features(model, observed, jax.lax.fori_loop(0, steps, improve, start)[0])


def _features(model: sere_jax.LatentVariableModel, observed: Any) -> Any:
    """What q reads alone: all of it, but in the hierarchy what encoders made of the whole image."""
    return observed.posterior if isinstance(model, SeReVAE) else observed


def _with_features(model: sere_jax.LatentVariableModel, observed: Any, features: Any) -> Any:
    return (
        dataclasses.replace(observed, posterior=features)
        if isinstance(model, SeReVAE)
        else features
    )


def _log_weights(model, params, x, observed, keys, samples):
    """log p(x, z) / q(z | x) in nats [samples, B]."""
    noise = noise_of_samples(model, keys, samples)
    log_likelihood, ratio = apply(model, params, x, observed, noise, method="log_weights")
    return log_likelihood + ratio


def hardness(images: np.ndarray) -> np.ndarray:
    """What makes an image hard to code, whatever the model is, of images [num, h, w, c] uint8.

    Returns:
        [num, 3]: its ink (the mean of its values), the length of its edges (mean absolute
        differences of neighbours) and the square of the ink, standardized.
    """
    values = images.astype(np.float64) / 255.0
    ink = values.mean(axis=(1, 2, 3))
    axes = [axis for axis in (1, 2) if values.shape[axis] > 1]
    steps = [np.abs(np.diff(values, axis=axis)).mean(axis=(1, 2, 3)) for axis in axes]
    edges = sum(steps, start=np.zeros(len(values)))
    columns = np.stack([ink, edges, np.square(ink)], axis=1)
    return (columns - columns.mean(0)) / np.maximum(columns.std(0), 1e-12)


def adjusted_difference(
    first: np.ndarray, second: np.ndarray, covariates: Sequence[np.ndarray]
) -> tuple[float, float]:
    """The mean of `first` [n] less that of `second` [m] at equal covariates, and its error.

    By least squares on the covariates [n, k] and [m, k] and on the group.
    """
    values = np.concatenate([first, second])
    group = np.concatenate([np.ones(len(first)), np.zeros(len(second))])
    columns = np.column_stack([group, np.ones(len(values)), np.concatenate(covariates)])
    inverse = np.linalg.pinv(columns.T @ columns)
    solution = inverse @ columns.T @ values
    residual = values - columns @ solution
    # Of Huber and White: the groups need not have the same spread.
    middle = columns.T @ (np.square(residual)[:, None] * columns)
    return float(solution[0]), float(np.sqrt((inverse @ middle @ inverse)[0, 0]))


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error of values [num]."""
    return float(values.mean()), standard_error(values)
