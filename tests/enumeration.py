"""Sums over all images of a few binary pixels, which stand in for integrals."""

import collections
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

import sere_jax

REPLICATES = 32


def all_images(config):
    """Every binary image [2^D, *data_shape]."""
    pixels = itertools.product((0.0, 1.0), repeat=math.prod(config.data_shape))
    return np.array(list(pixels), np.float32).reshape(-1, *config.data_shape)


def replicated(x):
    """Copies of the batch, replicate by replicate, and a key for every example."""
    keys = jax.random.split(jax.random.key(7), REPLICATES * len(x))
    return np.tile(x, (REPLICATES, 1, 1, 1)), keys


def mean_and_standard_error(values, axis=0):
    values = np.asarray(values, np.float64)
    return values.mean(axis), values.std(axis, ddof=1) / np.sqrt(values.shape[axis])


def estimate_likelihoods(model, params, condition=None):
    """Independent estimates of p(x) of every image, [REPLICATES, 2^D], for one condition [C]."""
    x, keys = replicated(all_images(model.config))
    given = {"condition": rows(condition, len(x))}
    log_likelihood = sere_jax.log_likelihood(model, params, x, keys, num_samples=50, **given)
    return np.exp(np.asarray(log_likelihood, np.float64)).reshape(REPLICATES, -1)


def assert_as_frequent_as_likely(images, likelihoods, config):
    """Compares samples [num, ...] with estimates of p(x) of every image, by Pearson's χ² test."""
    num_samples, (mean, error) = len(images), mean_and_standard_error(likelihoods)
    assert set(np.unique(images)) == {0.0, 1.0}
    counts = collections.Counter(map(tuple, images.reshape(num_samples, -1).astype(int)))
    order = [tuple(image.ravel().astype(int)) for image in all_images(config)]
    frequencies = np.array([counts[image] / num_samples for image in order])
    variance = mean * (1 - mean) / num_samples + error**2
    chi_square = ((frequencies - mean) ** 2 / variance).sum()
    assert stats.chi2.sf(chi_square, len(order)) > 1e-3


def rows(condition, num):
    """A condition [C] for each of `num` examples; None: none."""
    return None if condition is None else np.tile(np.float32(condition), (num, 1))


def assert_normalized_and_sampled(model, params, likelihoods, *, largest_error, condition=None):
    """Estimates [REPLICATES, 2^D] of p(x) sum to one, and samples of the model have them."""
    total, standard_error = mean_and_standard_error(likelihoods.sum(axis=1))
    assert abs(total - 1) < 4 * standard_error < largest_error
    assert likelihoods.mean(axis=0).max() > 2 * likelihoods.mean(axis=0).min()
    key, given = jax.random.key(3), {"condition": rows(condition, 20_000)}
    images = np.asarray(sere_jax.sample(model, params, key, 20_000, **given))
    assert_as_frequent_as_likely(images, likelihoods, model.config)


def fit_to_random_distribution(model, num_steps=300, sharpness=1.5):
    """The model and its parameters after a few hundred steps on random binary images."""
    images = jnp.asarray(all_images(model.config))
    logits = sharpness * jax.random.normal(jax.random.key(1), (len(images),))
    optimizer = optax.adam(1e-2)

    def loss(params, key):
        choice_key, noise_key = jax.random.split(key)
        x = images[jax.random.categorical(choice_key, logits, shape=(64,))]
        return -jnp.mean(sere_jax.objective(model, params, x, noise_key).value)

    def step(state, key):
        params, optimizer_state = state
        gradient = jax.grad(loss)(params, key)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return (optax.apply_updates(params, updates), optimizer_state), None

    @jax.jit
    def fit(params):
        keys = jax.random.split(jax.random.key(2), num_steps)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    return model, fit(sere_jax.init(model, jax.random.key(0)))
