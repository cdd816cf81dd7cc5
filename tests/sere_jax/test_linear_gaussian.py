"""The exact linear Gaussian model against scipy, and against the samples of a SeRe-VAE."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import optimize, stats

import sere_jax
from sere_jax.linear_gaussian import LinearGaussian

NUM_LAYERS, BLOCK_SIZE = 4, 2


@pytest.fixture(scope="module")
def exact():
    generator = np.random.default_rng(0)

    def normal(*shape):
        return 0.7 * generator.normal(size=shape)

    return LinearGaussian(
        prior_shift=normal(NUM_LAYERS),
        prior_slope=normal(NUM_LAYERS),
        prior_scale=generator.uniform(0.5, 1.5, NUM_LAYERS),
        code_shift=normal(NUM_LAYERS),
        code_slope=normal(NUM_LAYERS),
        code_gain=generator.uniform(0.5, 1.9, NUM_LAYERS),
        data_shift=normal(NUM_LAYERS, BLOCK_SIZE),
        data_slope=normal(NUM_LAYERS, BLOCK_SIZE),
        block_slope=normal(NUM_LAYERS, BLOCK_SIZE, BLOCK_SIZE),
        data_scale=0.5,
    )


@pytest.fixture(params=["coupled prior", "uncoupled prior"])
def model_and_params(request, exact):
    couple_prior = request.param == "coupled prior"
    linear = exact if couple_prior else exact.with_uncoupled_prior()
    model = sere_jax.create_model(linear.config(couple_prior=couple_prior))
    return model, linear.parameters(model, jax.random.key(0))


def test_samples_of_the_model_have_the_moments_of_the_joint_gaussian(exact, model_and_params):
    num = 50_000
    x = np.asarray(sere_jax.sample(*model_and_params, jax.random.key(1), num), np.float64)
    x = x.reshape(num, -1)
    mean, loadings, noise = exact.moments()
    covariance = loadings @ loadings.T + noise

    variance = np.diag(covariance)
    assert (np.abs(x.mean(axis=0) - mean) < 4.5 * np.sqrt(variance / num)).all()
    error = np.sqrt((covariance**2 + np.outer(variance, variance)) / num)
    assert (np.abs(np.cov(x.T) - covariance) < 4.5 * error).all()
    assert (np.abs(covariance) > 4.5 * error).mean() > 0.8


def test_log_prob_is_that_of_scipy(exact):
    x = np.random.default_rng(1).normal(size=(5, NUM_LAYERS, BLOCK_SIZE))
    mean, loadings, noise = exact.moments()

    expected = stats.multivariate_normal(mean, loadings @ loadings.T + noise).logpdf(
        x.reshape(5, -1)
    )
    np.testing.assert_allclose(exact.log_prob(x), expected)
    np.testing.assert_allclose(exact.with_uncoupled_prior().log_prob(x), expected)


def test_posterior_is_the_joint_over_the_marginal(exact):
    generator = np.random.default_rng(2)
    x, e = generator.normal(size=(NUM_LAYERS, BLOCK_SIZE)), generator.normal(size=NUM_LAYERS)
    data_mean, loadings, noise = exact.moments()
    mean, precision = exact.posterior(x)

    log_posterior = stats.multivariate_normal(mean, np.linalg.inv(precision)).logpdf(e)
    log_joint = stats.norm.logpdf(e).sum()
    log_joint += stats.multivariate_normal(data_mean + loadings @ e, noise).logpdf(x.ravel())
    np.testing.assert_allclose(log_posterior, log_joint - exact.log_prob(x))


def test_the_exact_posterior_of_the_codes_is_a_markov_chain_given_x(exact):
    """The factorization of Proposition 2: z_l sees z_{l-1} and x, and no older code."""
    _, precision = exact.posterior(np.zeros((NUM_LAYERS, BLOCK_SIZE)))
    slope = exact.code_slope + exact.code_gain * exact.prior_slope
    noise_by_code = (np.eye(NUM_LAYERS) - np.diag(slope[1:], -1)) / (
        exact.code_gain * exact.prior_scale
    )[:, None]

    of_codes = noise_by_code.T @ precision @ noise_by_code

    distance = np.abs(np.subtract.outer(np.arange(NUM_LAYERS), np.arange(NUM_LAYERS)))
    scale = np.abs(of_codes).max()
    assert (np.abs(of_codes[distance > 1]) < 1e-10 * scale).all()
    assert (np.abs(of_codes[distance == 1]) > 1e-3 * scale).all()
    # So the noises themselves have no such structure: a mean-field posterior over them is inexact.
    assert (np.abs(precision[distance > 1]) > 1e-3 * np.abs(precision).max()).any()


def test_no_factorized_posterior_has_a_smaller_gap(exact):
    _, precision = exact.posterior(np.zeros((NUM_LAYERS, BLOCK_SIZE)))
    log_det = np.linalg.slogdet(precision)[1]

    def divergence(log_variances):
        trace = np.diag(precision) @ np.exp(log_variances)
        return 0.5 * (trace - NUM_LAYERS - log_det - log_variances.sum())

    best = optimize.minimize(divergence, np.zeros(NUM_LAYERS), tol=1e-10)
    assert exact.mean_field_gap() == pytest.approx(best.fun, rel=1e-6)
    assert best.fun > 0.1


@pytest.mark.parametrize(("name", "value"), [("prior_scale", 2.5), ("code_gain", 0.1)])
def test_coefficients_that_the_model_cannot_have_are_refused(exact, name, value):
    impossible = dataclasses.replace(exact, **{name: np.full(exact.num_layers, value)})
    with pytest.raises(sere_jax.ConfigError, match=f"{name}=.*{value}.* must lie between"):
        impossible.parameters(sere_jax.create_model(exact.config()), jax.random.key(0))


def test_an_uncoupled_prior_needs_a_model_that_is_uncoupled(exact):
    model = sere_jax.create_model(exact.config(couple_prior=False))
    with pytest.raises(sere_jax.ConfigError, match="with_uncoupled_prior"):
        exact.parameters(model, jax.random.key(0))


@pytest.mark.parametrize(
    "convert", [np.ndarray.tolist, lambda a: a.astype(">f8")], ids=["list", "big-endian"]
)
def test_coefficients_and_data_are_what_they_hold(exact, convert):
    fields = dataclasses.asdict(exact)
    data_scale = np.float64(fields.pop("data_scale"))
    same = LinearGaussian(**{k: convert(v) for k, v in fields.items()}, data_scale=data_scale)
    x = np.random.default_rng(1).normal(size=(5, NUM_LAYERS, BLOCK_SIZE))

    np.testing.assert_array_equal(same.log_prob(convert(x)), exact.log_prob(x))
    np.testing.assert_array_equal(same.posterior(convert(x))[0], exact.posterior(x)[0])
    assert same.log_prob(x[:0]).shape == (0,)
    assert same.config() == exact.config()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prior_shift", np.zeros(3), r"prior_shift has the shape \(3,\); it must be \(4,\)"),
        ("data_scale", np.ones(1), r"data_scale has the shape \(1,\)"),
        ("data_slope", np.full((4, 2), np.nan), "data_slope holds the value nan"),
        ("data_scale", np.inf, "data_scale holds the value inf"),
    ],
)
def test_impossible_coefficients_are_refused(exact, field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(exact, **{field: value})


def test_impossible_data_are_refused(exact):
    for function in (exact.log_prob, exact.posterior):
        with pytest.raises(ValueError, match="x holds the value nan"):
            function(np.full((4, 2), np.nan))
        with pytest.raises(ValueError, match=r"x has the shape \(2, 4\)"):
            function(np.zeros((2, 4)))
        with pytest.raises(TypeError, match="x holds values of type complex128"):
            function(np.zeros((4, 2), complex))
