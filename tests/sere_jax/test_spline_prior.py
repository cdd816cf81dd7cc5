"""The prior with splines: its density, its samples, and a model that has it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import (
    assert_normalized_and_sampled,
    estimate_likelihoods,
    fit_to_random_distribution,
)
from scipy import stats

import sere_jax
from sere_jax.inputs import noise_of_samples, sample_noise
from sere_jax.posterior import (
    PosteriorLayer,
    Residual,
    log_density_ratio,
    log_density_ratio_with_splines,
    posterior_sample,
)
from sere_jax.prior import Prior, PriorLayer, started_from_gaussian

COUPLED = {"context": 2, "data_context": 2, "couple_data_to_prior": True}
RESNET = {"network": "resnet", "data_shape": (2, 4, 1), "num_layers": 4}
MAPS = {**RESNET, "partition": "tiles", "latent_shape": (1, 2, 2)}


def random_values(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def prior_and_residual(tiny_config, random_module, shape, inputs):
    """Of 5 examples, with random parameters."""
    config = tiny_config(prior="spline", latent_shape=shape, context=2)
    window = random_values(5, 2, *shape) if "codes" in inputs else None
    offset = random_values(5, 8) if "blocks" in inputs else None
    layers = PriorLayer(config), PosteriorLayer(config)
    arguments = (window, offset), (window, random_values(5, 8, seed=2))
    return (
        layer.apply(random_module(layer, *given), *given)
        for layer, given in zip(layers, arguments, strict=True)
    )


@pytest.mark.parametrize("inputs", ["codes and blocks", "codes", "blocks", "nothing"])
@pytest.mark.parametrize("shape", [(3,), (1,), (2, 1, 2)], ids=str)
def test_the_density_is_that_of_the_jacobian_of_what_samples(
    tiny_config, random_module, shape, inputs
):
    prior, residual = prior_and_residual(tiny_config, random_module, shape, inputs)
    size = int(np.prod(shape))

    def compute(prior, residual, noise):
        epsilon = posterior_sample(prior, residual, noise)
        ratio = log_density_ratio_with_splines(prior, residual, noise)
        u = prior.noise(epsilon)
        jacobian = jax.jacobian(lambda u: prior.sample(u).reshape(5, size))(u)
        return epsilon, ratio, u, prior.sample(u), jacobian.reshape(5, size, 5, size)

    with jax.enable_x64(True):  # random splines are steep
        prior, residual, noise = jax.tree.map(
            lambda leaf: leaf if leaf.dtype == bool else np.float64(leaf),
            (prior.broadcast_to((5, *shape)), residual, random_values(5, *shape, seed=3)),
        )
        epsilon, ratio, u, again, jacobian = map(
            np.asarray, jax.jit(compute)(prior, residual, noise)
        )

    np.testing.assert_allclose(again, epsilon, rtol=1e-7, atol=1e-7)
    own = np.stack([jacobian[i, :, i] for i in range(5)])
    log_p = stats.norm.logpdf(u.reshape(5, size)).sum(axis=1) - np.linalg.slogdet(own)[1]
    scale = np.exp(residual.log_scale)
    log_q = stats.norm.logpdf(epsilon, residual.mean + scale * prior.mean, scale * prior.scale)
    np.testing.assert_allclose(ratio, log_p - log_q.reshape(5, size).sum(axis=1), rtol=1e-6)
    assert np.abs(epsilon - (prior.mean + prior.scale * u)).max() > 0.1  # S is not the identity


def test_samples_have_the_density(tiny_config, random_module):
    """Moments of many samples against integrals of the density over a grid."""
    prior, _ = prior_and_residual(tiny_config, random_module, (2,), "codes and blocks")
    prior = jax.tree.map(
        lambda leaf: leaf[:1] if leaf.shape[:1] == (5,) else leaf, prior.broadcast_to((5, 2))
    )
    samples = np.asarray(jax.jit(prior.sample)(random_values(200_000, 2)), np.float64)

    axes = [
        np.linspace(low - 0.5, high + 0.5, 1500)
        for low, high in zip(samples.min(axis=0), samples.max(axis=0), strict=True)
    ]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)
    weights = np.exp(np.asarray(jax.jit(prior.log_prob)(grid), np.float64))
    weights *= np.prod([axis[1] - axis[0] for axis in axes])
    assert abs(weights.sum() - 1) < 2e-3
    for function in (np.sin, np.cos, np.tanh):
        for direction in ([1.0, 0.0], [0.0, 1.0], [1.0, -1.0]):
            values = function(samples @ direction)
            expected = (weights * function(grid @ direction)).sum()
            error = values.std() / np.sqrt(len(values))
            assert abs(values.mean() - expected) < 4.5 * error + 2e-3
    assert (stats.kstest(stats.zscore(samples), "norm").statistic > 0.02).any()  # not Gaussian


def without_splines(params, num_latents):
    """The same parameters with S the identity; and those of the Gaussian prior."""
    network = params["hierarchy"]["layers"]["prior"]["network"]
    head = jax.tree.map(lambda leaf: leaf[..., : 2 * num_latents], network["head"])
    of_gaussian = {"network": {**network, "head": head}}
    return with_the_identity(params), with_prior(params, of_gaussian)


def with_the_identity(params):
    """The same parameters with S the identity."""
    prior = params["hierarchy"]["layers"]["prior"]
    splines = jax.tree.map(np.zeros_like, prior["splines"])
    return with_prior(params, {**prior, "splines": splines})


def with_prior(params, prior):
    return {"hierarchy": {"layers": {**params["hierarchy"]["layers"], "prior": prior}}}


def test_with_the_identity_it_is_the_gaussian_prior(random_model):
    model, params = random_model(prior="spline", **COUPLED)
    gaussian, _ = random_model(**COUPLED)
    params, of_gaussian = without_splines(params, num_latents=2)
    x = (random_values(6, 2, 3, 1) > 0).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 6)

    def log_weights(model, params):
        noise = noise_of_samples(model, keys, jnp.arange(4))
        apply = functools.partial(model.apply, {"params": params}, x)
        return apply(apply(method="observe"), noise, method="log_weights")

    for found, expected in zip(
        log_weights(model, params), log_weights(gaussian, of_gaussian), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    out = sere_jax.infer(gaussian, of_gaussian, x, keys)
    prior = Prior(out.prior_mean, out.prior_scale)
    residual = Residual(out.residual_mean, jnp.log(out.residual_scale))
    noise = jnp.moveaxis(sample_noise(model, keys, 0), 0, 1)
    estimate = -log_density_ratio(prior, residual, noise).sum(axis=-1)
    found = sere_jax.infer(model, params, x, keys)
    np.testing.assert_allclose(found.kl, estimate, rtol=1e-3, atol=1e-3)
    assert np.abs(found.kl - out.kl).max() > 0.1  # in closed form
    samples = (
        sere_jax.sample(each, own, jax.random.key(3), 5, expected=True)
        for each, own in ((model, params), (gaussian, of_gaussian))
    )
    np.testing.assert_allclose(*samples, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "family",
    [{}, MAPS, {"latent_shape": (2, 1, 2), "hidden_size": 8}],
    ids=["perceptrons", "maps", "perceptrons with maps"],
)
def test_it_starts_from_gaussian_priors(family, random_model):
    model, params = random_model(prior="spline", **family, **COUPLED)
    gaussian, of_gaussian = random_model(**family, **COUPLED)
    x = (random_values(6, *model.config.data_shape) > 0).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 6)

    hidden_size = model.config.hidden_size
    started = started_from_gaussian(params, of_gaussian, hidden_size)

    assert jax.tree.map(np.shape, started) == jax.tree.map(np.shape, params)
    found = sere_jax.log_likelihood(model, with_the_identity(started), x, keys, 3)
    expected = sere_jax.log_likelihood(gaussian, of_gaussian, x, keys, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    splines = [tree["hierarchy"]["layers"]["prior"]["splines"] for tree in (started, params)]
    jax.tree.map(np.testing.assert_array_equal, *splines)
    unchanged = started_from_gaussian(of_gaussian, of_gaussian, hidden_size)
    jax.tree.map(np.testing.assert_array_equal, unchanged, of_gaussian)


def test_the_ends_of_an_interpolation_are_reconstructions(random_model):
    model, params = random_model(prior="spline", context=2)
    ends = (random_values(2, 2, 3, 1) > 0).astype(np.float32)
    key = jax.random.key(0)

    images = sere_jax.interpolate(model, params, *ends, key, 4)

    for place, end in ((0, ends[:1]), (-1, ends[1:])):
        expected = sere_jax.reconstruct(model, params, end, key, expected=True)
        np.testing.assert_allclose(images[place], expected[0], rtol=1e-3, atol=1e-4)
    assert np.abs(images[0] - images[-1]).max() > 1e-2


@pytest.mark.slow
def test_probabilities_of_a_fitted_model_sum_to_one_and_are_those_of_samples(tiny_config):
    model = sere_jax.create_model(tiny_config(prior="spline", **COUPLED))
    model, params = fit_to_random_distribution(model)

    likelihoods = estimate_likelihoods(model, params)

    assert_normalized_and_sampled(model, params, likelihoods, largest_error=0.04)
    x = np.zeros((1, 2, 3, 1), np.float32)
    latents = model.apply(
        {"params": params},
        lambda model: model.hierarchy.infer(model.observe(x), random_values(3, 1, 2)),
        method=lambda model, function: function(model),
    )
    noise = jax.vmap(Prior.noise)(latents.prior, latents.epsilon)
    moved = jax.vmap(lambda prior, noise: prior.splines.forward(noise) - noise)
    assert np.abs(moved(latents.prior, noise)).max() > 0.1


@pytest.mark.parametrize("shift", [40.0, -700.0])
def test_the_density_moves_with_the_mean(tiny_config, random_module, shift):
    """Splines act on standardized codes: means may be anywhere, far beyond what splines change."""
    prior, residual = prior_and_residual(tiny_config, random_module, (3,), "codes and blocks")
    noise = random_values(5, 3, seed=3)
    moved_prior = Prior(prior.mean + shift, prior.scale, prior.splines)
    # So that the posterior moves by as much.
    moved = Residual(residual.mean - np.expm1(residual.log_scale) * shift, residual.log_scale)

    def ratio(prior, residual):
        return log_density_ratio_with_splines(prior, residual, noise)

    expected = np.asarray(jax.jit(ratio)(prior, residual))
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(jax.jit(ratio)(moved_prior, moved), expected, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(
        moved_prior.sample(noise), shift + prior.sample(noise), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("far", [0.0, 4.999999, 5.0, -5.0, 7.0, -300.0])
def test_gradients_are_finite_also_beyond_the_splines(tiny_config, random_module, far):
    config = tiny_config(prior="spline")
    layer = PriorLayer(config)
    window, offset = random_values(5, 1, 2), random_values(5, 8)
    variables = random_module(layer, window, offset)
    residual = Residual(jnp.zeros((5, 2)), jnp.full((5, 2), -0.5))

    def log_ratio(variables, residual):
        prior = layer.apply(variables, window, offset)
        # There, whatever the prior is: `far` scales from its mean.
        mean = far * prior.scale - jnp.expm1(residual.log_scale) * prior.mean
        mean = residual.mean + jax.lax.stop_gradient(mean - residual.mean)
        residual = Residual(mean, residual.log_scale)
        return log_density_ratio_with_splines(prior, residual, jnp.zeros((5, 2))).sum()

    value, gradients = jax.jit(jax.value_and_grad(log_ratio, (0, 1)))(variables, residual)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("family", [RESNET, MAPS], ids=["vectors", "maps"])
def test_residual_networks_have_it_too(random_model, family):
    model, params = random_model(prior="spline", **family, **COUPLED)
    x = (random_values(4, 2, 4, 1) > 0).astype(np.float32)

    elbo = sere_jax.elbo(model, params, x, jax.random.key(0))
    bound = sere_jax.log_likelihood(model, params, x, jax.random.key(0), num_samples=1)

    np.testing.assert_allclose(bound, elbo, rtol=1e-4, atol=1e-4)  # both estimate the KL
    assert np.isfinite(elbo).all()
