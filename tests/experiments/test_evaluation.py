"""Evaluation covers every image once, whatever the batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import sere_jax
from configs import base
from experiments.data.stored import StoredImages
from experiments.distributed.devices import replicate
from experiments.training.evaluation import Evaluator, bits_per_dim, standard_error

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def model():
    config = base.get_config()
    config.model.update(data_shape=(2, 3, 1), num_layers=3, latent_shape=(2,), hidden_size=8)
    return sere_jax.create_model(config)


@pytest.fixture(scope="module")
def params(model):
    return sere_jax.init(model, jax.random.key(0))


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 2, 3, 1))
    return replicate(pixels.astype(np.uint8))


def evaluator(model, batch_size, samples_at_once=10):
    return Evaluator(
        model,
        max_value=255,
        batch_size=batch_size,
        num_importance_samples=5,
        samples_at_once=samples_at_once,
    )


def test_elbo_is_the_mean_over_all_images(model, params, images, monkeypatch):
    monkeypatch.setattr(
        "experiments.training.evaluation.ELBO_IMAGES_PER_IMAGE", 1
    )  # 7 images: 3 + 3 + 1
    ours = evaluator(model, 3)
    elbo = ours.elbo(params, images)
    terms = elbo.means()
    x, keys = ours.to_data_space(images, jnp.arange(7))
    each = [sere_jax.infer(model, params, x[i : i + 1], keys[i : i + 1]) for i in range(7)]
    elbos = np.array([float(one.elbo[0]) for one in each])
    np.testing.assert_allclose(elbo.per_image, elbos, rtol=1e-5)
    assert terms["elbo"] == pytest.approx(elbos.mean(), rel=1e-5)
    assert terms["elbo_stderr"] == pytest.approx(elbos.std(ddof=1) / np.sqrt(7), rel=1e-4)
    kl = np.mean([np.asarray(one.kl[0]) for one in each], axis=0)
    np.testing.assert_allclose(terms["kl_per_layer"], kl, rtol=1e-4)
    assert terms["kl"] == pytest.approx(kl.sum(), rel=1e-5)
    assert terms["log_likelihood"] - terms["kl"] == pytest.approx(terms["elbo"], rel=1e-5)


@pytest.mark.parametrize("batch_size", [3, 7, 100])
def test_likelihood_of_each_image_does_not_depend_on_the_batches(model, params, images, batch_size):
    ours = evaluator(model, batch_size)
    seen = []
    values, elbo = ours.log_likelihood(params, images, lambda num, mean: seen.append((num, mean)))
    x, keys = ours.to_data_space(images, jnp.arange(7))
    expected = sere_jax.log_likelihood(model, params, x, keys, num_samples=5)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert np.all(elbo <= values)
    # The weights of single samples from K and K - 1 of them.
    bounds = [k * np.exp(_log_likelihood(model, params, x, keys, k)) for k in range(6)]
    np.testing.assert_allclose(elbo, np.log(np.diff(bounds, axis=0)).mean(axis=0), rtol=1e-4)
    done = np.cumsum([num for num, _ in seen])
    assert done[-1] == 7
    so_far = [values[:num].mean() for num in done]
    np.testing.assert_allclose([mean for _, mean in seen], so_far)


def test_figures_do_not_depend_on_how_many_samples_are_computed_at_once(model, params, images):
    expected = evaluator(model, 7).log_likelihood(params, images)
    for samples_at_once in (1, 2):
        found = evaluator(model, 7, samples_at_once).log_likelihood(params, images)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_images_that_are_read_batch_by_batch_change_no_bit(model, params, images, tmp_path):
    pixels = np.asarray(images)
    (tmp_path / "images").write_bytes(b"header" + pixels.tobytes())
    stored = StoredImages(tmp_path / "images", len(b"header"), pixels.shape)
    for batch_size in (2, 7):
        ours = evaluator(model, batch_size)
        expected = ours.elbo(params, images), ours.log_likelihood(params, images)
        for others in (pixels, stored):
            elbo, bounds = ours.elbo(params, others), ours.log_likelihood(params, others)
            np.testing.assert_array_equal(elbo.kl, expected[0].kl)
            np.testing.assert_array_equal(elbo.log_likelihood, expected[0].log_likelihood)
            np.testing.assert_array_equal(bounds, expected[1])


def _log_likelihood(model, params, x, keys, num_samples):
    if num_samples == 0:
        return np.zeros(len(x))
    return np.float64(sere_jax.log_likelihood(model, params, x, keys, num_samples))


def test_standard_error_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(0, 3, (2000, 100))
    errors = [standard_error(row) for row in values]
    assert np.mean(errors) == pytest.approx(values.mean(axis=1).std(), rel=0.05)


def test_bits_per_dim_of_a_uniform_distribution_are_the_logarithm_of_the_number_of_values():
    shape = {"data_shape": (2, 3, 1), "num_layers": 3, "latent_shape": (2,)}
    bernoulli = sere_jax.ModelConfig(**shape)
    gaussian = sere_jax.ModelConfig(**shape, data_layer="gaussian")
    assert bits_per_dim(6 * np.log(2), bernoulli, 255) == pytest.approx(1)
    assert bits_per_dim(0.0, gaussian, 255) == pytest.approx(8)  # density 1 on [0, 1]^6
    assert bits_per_dim(6 * np.log(2), gaussian, 15) == pytest.approx(5)


def test_bits_per_dim_of_a_density_in_logit_space_are_those_of_papamakarios(images):
    config = base.get_config()
    config.model.update(data_shape=(2, 3, 1), num_layers=3, latent_shape=(2,), hidden_size=8)
    config.model.update(data_layer="masked_autoregressive_flow", flow_hidden_size=8)
    model = sere_jax.create_model(config)
    ours = evaluator(model, 3)
    x, _ = ours.to_data_space(images, jnp.arange(7))
    x = np.asarray(x, np.float64)

    volume = ours.log_volume(np.asarray(images))
    assert ours.log_volume(images) == volume

    # Their appendix D, for 256 values.
    sigmoid = special.expit(x)
    for nll in (-3.7, 12.0):
        expected = nll / (6 * np.log(2)) - np.log2(0.9) + 8
        expected += np.mean(np.log2(sigmoid) + np.log2(1 - sigmoid))
        assert bits_per_dim(nll, model.config, 255, volume) == pytest.approx(expected, rel=1e-5)
    # A uniform density of pixels, in logit space.
    log_density = -np.log(0.9 / (sigmoid * (1 - sigmoid))).sum(axis=(1, 2, 3))
    nll = -log_density.mean()
    assert bits_per_dim(nll, model.config, 255, volume) == pytest.approx(8, rel=1e-5)
