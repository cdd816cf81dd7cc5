"""The residual posterior and the prior that it starts from, against distrax, scipy and numpy."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sere_jax.posterior import (
    PosteriorLayer,
    Residual,
    kl_divergence,
    log_density_ratio,
    posterior_sample,
)
from sere_jax.prior import Prior, PriorLayer


def random_prior_and_residual(shape=(5, 3)):
    generator = np.random.default_rng(0)
    prior = Prior(
        mean=generator.normal(size=shape).astype(np.float32),
        scale=generator.uniform(0.1, 2.0, shape).astype(np.float32),
    )
    residual = Residual(
        mean=generator.normal(size=shape).astype(np.float32),
        log_scale=np.log(generator.uniform(0.2, 1.0, shape)).astype(np.float32),
    )
    return prior, residual


def gaussians(prior, residual):
    """(p, q), written from the definition q = N(μ δσ + δμ, (σ δσ)²)."""
    scale = np.exp(residual.log_scale)
    q = distrax.Normal(prior.mean * scale + residual.mean, prior.scale * scale)
    return distrax.Normal(prior.mean, prior.scale), q


def test_samples_follow_the_residual_gaussian():
    prior, residual = random_prior_and_residual()
    noise = np.random.default_rng(1).normal(size=(7, 5, 3)).astype(np.float32)
    _, q = gaussians(prior, residual)

    epsilon = posterior_sample(prior, residual, noise)

    np.testing.assert_allclose(epsilon, q.loc + q.scale * noise, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(prior.sample(noise), prior.mean + prior.scale * noise, rtol=1e-6)


def test_kl_is_the_divergence_of_the_two_gaussians():
    prior, residual = random_prior_and_residual()
    p, q = gaussians(prior, residual)

    np.testing.assert_allclose(
        kl_divergence(prior, residual), q.kl_divergence(p), rtol=1e-4, atol=1e-6
    )


def test_kl_is_the_monte_carlo_mean_of_the_log_density_ratio():
    prior, residual = random_prior_and_residual(shape=(3,))
    noise = np.random.default_rng(1).normal(size=(20_000, 3)).astype(np.float32)
    epsilon = np.asarray(posterior_sample(prior, residual, noise))
    p, q = gaussians(prior, residual)

    log_ratio = stats.norm.logpdf(epsilon, q.loc, q.scale)
    log_ratio -= stats.norm.logpdf(epsilon, p.loc, p.scale)

    standard_error = log_ratio.std(axis=0) / np.sqrt(len(log_ratio))
    error = kl_divergence(prior, residual) - log_ratio.mean(axis=0)
    assert (np.abs(error) < 4 * standard_error).all()
    np.testing.assert_allclose(
        log_density_ratio(prior, residual, noise), -log_ratio, rtol=1e-3, atol=1e-4
    )


def test_log_density_ratio_is_that_of_distrax():
    prior, residual = random_prior_and_residual()
    noise = np.random.default_rng(1).normal(size=(7, 5, 3)).astype(np.float32)
    p, q = gaussians(prior, residual)
    epsilon = q.loc + q.scale * noise

    np.testing.assert_allclose(
        log_density_ratio(prior, residual, noise),
        p.log_prob(epsilon) - q.log_prob(epsilon),
        rtol=1e-4,
        atol=1e-4,
    )


def test_without_a_residual_the_posterior_is_the_prior_exactly():
    prior, _ = random_prior_and_residual()
    none = Residual(mean=np.zeros_like(prior.mean), log_scale=np.zeros_like(prior.mean))
    noise = np.random.default_rng(1).normal(size=prior.mean.shape).astype(np.float32)

    np.testing.assert_array_equal(kl_divergence(prior, none), 0)
    np.testing.assert_array_equal(log_density_ratio(prior, none, noise), 0)
    np.testing.assert_array_equal(posterior_sample(prior, none, noise), prior.sample(noise))


def test_kl_keeps_its_precision_next_to_the_prior():
    prior = Prior(mean=np.full((), 0.5, np.float32), scale=np.full((), 1.5, np.float32))
    residual = Residual(
        mean=np.full((), 1e-3, np.float32), log_scale=np.full((), -1e-3, np.float32)
    )
    delta_scale = np.exp(np.float64(residual.log_scale))
    shift = np.float64(residual.mean) - (1 - delta_scale) * prior.mean
    expected = shift**2 / (2 * 1.5**2) + 0.5 * delta_scale**2 - np.log(delta_scale) - 0.5

    np.testing.assert_allclose(kl_divergence(prior, residual), expected, rtol=1e-3)


def with_constant_output(layer, head, *inputs):
    """Applies the layer with networks whose output is `head`, whatever their input."""
    variables = jax.eval_shape(lambda: layer.init(jax.random.key(0), *inputs))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
    last = max(zeros["params"]["network"])
    zeros["params"]["network"][last]["bias"] = np.asarray(head, np.float32)
    return jax.jit(layer.apply)(zeros, *inputs)


@pytest.mark.parametrize("raw", [-1e4, -100.0, -3.0, 0.0, 3.0, 100.0, 1e4])
def test_the_posterior_is_never_wider_than_the_prior(tiny_config, raw):
    layer = PosteriorLayer(tiny_config(residual_scale_start=0.2))
    window, offset = jnp.zeros((1, 2)), jnp.zeros(8)

    residual = with_constant_output(layer, [0.5, -0.5, raw, -raw], window, offset)

    np.testing.assert_array_equal(residual.mean, [0.5, -0.5])
    assert (residual.scale <= 1).all()
    assert np.isfinite(residual.log_scale).all()
    np.testing.assert_allclose(
        residual.log_scale,
        -np.logaddexp(0, -(np.array([raw, -raw]) + np.log(0.2 / 0.8))),
        rtol=1e-5,
        atol=1e-30,
    )
    if raw == 0:
        np.testing.assert_allclose(residual.scale, 0.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("bounds", "start"),
    [
        ((0.0, 2.0), 1),
        ((0.1, 2.0), 1),
        ((1.0, 3.0), 2),
        ((0.1, 0.5), 0.3),
        ((0.5, 1 + 1e-8), 0.75),  # whose float32 is 1
    ],
)
def test_the_prior_scale_starts_at_one_and_stays_within_its_bounds(tiny_config, bounds, start):
    low, high = bounds
    layer = PriorLayer(tiny_config(sigma_min=low, sigma_max=high))
    window = jnp.zeros((1, 2))

    first = with_constant_output(layer, [0.5, -0.5, 0.0, 0.0], window, None)
    extreme = with_constant_output(layer, [0.0, 0.0, -1e4, 1e4], window, None)

    np.testing.assert_array_equal(first.mean, [0.5, -0.5])
    np.testing.assert_allclose(first.scale, start, rtol=1e-6)
    np.testing.assert_allclose(extreme.scale, np.maximum(bounds, 1e-18), rtol=1e-6)
    assert (np.square(extreme.scale) > 0).all()  # by which the KL divides
