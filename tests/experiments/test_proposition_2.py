"""Proposition 2: trained alone, the SeRe posterior becomes exact, and a mean-field one cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import sere_jax
from experiments import proposition_2

pytestmark = pytest.mark.usefixtures("quick_compilation")
STEPS = (1, 1500)


@pytest.fixture(scope="module")
def exact():
    return proposition_2.example_model()


@pytest.fixture(scope="module")
def x(exact):
    return proposition_2.exact_samples(exact, jax.random.key(2), 512)


@pytest.fixture(scope="module")
def log_prob(exact, x):
    return exact.log_prob(np.asarray(x)[..., 0])


@pytest.fixture(scope="module")
def trained(exact, quick_compilation):
    return proposition_2.train_both(exact, STEPS)


@pytest.fixture(scope="module")
def sere(trained):
    model, history = trained["SeRe-VAE"]
    return model, history[-1]


@pytest.fixture(scope="module")
def mean_field(trained):
    model, history = trained["mean field"]
    return model, history[-1]


def mean_and_standard_error(values):
    values = np.asarray(values, np.float64)
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


def test_the_elbo_of_the_sere_posterior_reaches_the_exact_likelihood(exact, sere, x, log_prob):
    gap = proposition_2.posterior_gap(exact, *sere, x)
    assert -1e-5 < gap.mean() < 1e-3

    # One importance sample has the mean of the ELBO, and no variance where q is exact.
    one_sample = log_prob - sere_jax.log_likelihood(*sere, x, jax.random.key(3), num_samples=1)
    mean, standard_error = mean_and_standard_error(one_sample)
    assert abs(mean - gap.mean()) < 4 * standard_error < 0.01
    elbo = sere_jax.elbo(*sere, jnp.tile(x, (64, 1, 1, 1)), jax.random.key(4))
    mean, standard_error = mean_and_standard_error(np.tile(log_prob, 64) - elbo)
    assert abs(mean - gap.mean()) < 4 * standard_error < 0.06


def test_only_the_posterior_was_trained(exact, sere):
    model, params = sere
    before = exact.parameters(model, jax.random.key(0))["hierarchy"]["layers"]
    for name, layer in params["hierarchy"]["layers"].items():
        same = jax.tree.leaves(jax.tree.map(np.array_equal, before[name], layer))
        assert not any(same) if name in ("encoder", "posterior") else all(same)


def test_every_layer_of_the_sere_posterior_becomes_the_exact_conditional(exact, sere, x):
    mean, covariance = proposition_2.trained_posterior(*sere, x)
    exact_mean, precision = exact.posterior(np.asarray(x)[..., 0])

    np.testing.assert_allclose(mean, exact_mean, atol=0.05)
    np.testing.assert_allclose(covariance, np.linalg.inv(precision), atol=0.02)


def test_a_mean_field_posterior_of_the_same_model_stays_at_the_analytic_gap(
    exact, mean_field, x, log_prob
):
    least_gap = exact.mean_field_gap()
    assert least_gap > 1

    gap = proposition_2.posterior_gap(exact, *mean_field, x)
    assert least_gap - 1e-4 < gap.mean() < least_gap + 0.01
    one_sample = log_prob - sere_jax.log_likelihood(
        *mean_field, x, jax.random.key(3), num_samples=1
    )
    mean, standard_error = mean_and_standard_error(one_sample)
    assert abs(mean - gap.mean()) < 4 * standard_error < 0.4


def test_the_importance_weighted_bound_rises_to_the_exact_likelihood(exact, x):
    """From an untrained posterior, whose ELBO is far away."""
    model = sere_jax.create_model(exact.config())
    params = exact.parameters(model, jax.random.key(0))
    posterior = params["hierarchy"]["layers"]["posterior"]["network"]["head"]
    posterior["kernel"][:] = 0.0
    posterior["bias"][:] = [0.0, 20.0]  # δμ = 0, δσ = 1: the prior, so that weights are bounded

    def gap(num_samples, x):
        bound = sere_jax.log_likelihood(model, params, x, jax.random.key(5), num_samples)
        return mean_and_standard_error(exact.log_prob(np.asarray(x)[..., 0]) - bound)

    closed_form = proposition_2.posterior_gap(exact, model, params, x).mean()
    one_sample, standard_error = gap(1, x)
    assert abs(one_sample - closed_form) < 4 * standard_error < 0.4 * closed_form
    gaps = [one_sample, *(gap(num_samples, x[:32])[0] for num_samples in (20, 400))]
    assert gaps == sorted(gaps, reverse=True)
    mean, standard_error = gap(30_000, x[:32])
    assert abs(mean) < 4 * standard_error + 1e-3 < 0.05


def test_the_figure_is_drawn_from_the_trained_posteriors(exact, trained, tmp_path):
    gaps = proposition_2.compare(exact, trained, STEPS, tmp_path / "figure.png")

    for name, (first, last) in gaps.items():
        assert first > 5 > last, name
    with PIL.Image.open(tmp_path / "figure.png") as figure:
        assert figure.size == (1500, 645)
        assert len(figure.convert("RGB").getcolors(2**20)) > 100
