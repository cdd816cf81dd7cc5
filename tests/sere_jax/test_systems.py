"""The other systems: Ladder, IAF and relaxed Bernoulli VAE; and the hierarchy beyond the paper."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import (
    all_images,
    assert_normalized_and_sampled,
    estimate_likelihoods,
    fit_to_random_distribution,
    mean_and_standard_error,
)
from scipy import integrate, special, stats

import sere_jax
from sere_jax.inputs import noise_of_samples, sample_noise
from sere_jax.model import LatentVariableModel, apply
from sere_jax.networks.family import NETWORKS, create_network
from sere_jax.systems.ladder_vae import Evidence, _product
from sere_jax.systems.relaxed_bernoulli_vae import log_density

SYSTEMS = {
    "ladder": {
        "system": "ladder_vae",
        "latent_shape": (4,),
        "latent_sizes": (4, 2, 1),
        "hidden_size": 16,
    },
    "iaf": {
        "system": "iaf_vae",
        "num_layers": 1,
        "latent_shape": (3,),
        "num_flows": 2,
        "hidden_size": 6,
    },
    "relaxed_bernoulli": {
        "system": "relaxed_bernoulli_vae",
        "num_layers": 1,
        "latent_shape": (3,),
        "hidden_size": 16,
        "prior_temperature": 0.6,
        "posterior_temperature": 0.55,
    },
    "unequal_latents": {"latent_shape": (3,), "latent_sizes": (1, 3, 2)},
    "shared_encoder": {"encoder": "shared"},
    "carried_codes": {"carry_start": 0.9},
    "state": {"state_size": 4},
    "local_encoders": {"encoder": "local"},
}


@pytest.fixture(scope="module", params=SYSTEMS)
def fitted(request, tiny_config):
    """Each system, fitted to a random distribution over the images."""
    model = sere_jax.create_model(tiny_config(**SYSTEMS[request.param]))
    return fit_to_random_distribution(model, num_steps=600, sharpness=4.0)


@pytest.fixture(scope="module", params=["ladder", "iaf", "relaxed_bernoulli"])
def whole_image(request, random_model):
    """The systems that have no blocks, with random parameters; none of a probability of 0 or 1."""
    model, params = random_model(**SYSTEMS[request.param])
    return model, jax.tree.map(lambda leaf: leaf / 2, params)


@pytest.fixture(scope="module")
def ladder(random_model):
    return random_model(**SYSTEMS["ladder"])


@pytest.fixture(scope="module")
def relaxed_bernoulli(random_model):
    return random_model(**SYSTEMS["relaxed_bernoulli"])


@pytest.mark.slow
def test_probabilities_sum_to_one_and_are_those_of_samples(fitted):
    model, params = fitted
    likelihoods = estimate_likelihoods(model, params)

    assert_normalized_and_sampled(model, params, likelihoods, largest_error=0.06)


@pytest.mark.slow
def test_the_kl_is_the_expectation_of_the_log_density_ratio(fitted):
    model, params = fitted
    x = all_images(model.config)[::9]
    keys = jax.random.split(jax.random.key(5), len(x))
    noise = noise_of_samples(model, keys, jnp.arange(4000))
    variables = {"params": params}

    observed = model.apply(variables, x, method="observe")
    log_likelihood, ratio = jax.jit(functools.partial(model.apply, method="log_weights"))(
        variables, x, observed, noise
    )
    inference = jax.jit(jax.vmap(functools.partial(model.apply, variables, x), in_axes=1))(noise)

    np.testing.assert_allclose(log_likelihood, inference.log_likelihood, rtol=1e-4, atol=1e-4)
    difference, standard_error = mean_and_standard_error(inference.kl.sum(-1) + ratio)
    assert (np.abs(difference) < 4.5 * standard_error + 1e-4).all()
    assert inference.kl.sum(-1).mean() > 0.05


def test_reconstructions_come_from_the_inferred_codes(whole_image):
    model, params = whole_image
    x, key = all_images(model.config), jax.random.key(0)
    mean = np.asarray(sere_jax.reconstruct(model, params, x, key, expected=True), np.float64)
    log_likelihood = (x * np.log(mean) + (1 - x) * np.log1p(-mean)).sum(axis=(1, 2, 3))
    inferred = sere_jax.infer(model, params, x, key).log_likelihood
    np.testing.assert_allclose(log_likelihood, inferred, rtol=1e-4, atol=1e-4)
    images = np.asarray(sere_jax.reconstruct(model, params, x, key))
    assert set(np.unique(images)) == {0.0, 1.0}
    standard_error = (mean * (1 - mean)).sum() ** 0.5
    assert abs(images.sum() - mean.sum()) < 4 * standard_error


def test_the_posterior_of_a_ladder_is_the_product_of_prior_and_evidence():
    mean, variance = jnp.float32(0.7), jnp.float32(0.3)
    evidence = Evidence(jnp.float32(-0.4), jnp.float32(1.5))
    z = np.linspace(-12, 12, 20_001)
    density = stats.norm.pdf(z, mean, variance**0.5)
    density *= stats.norm.pdf(z, evidence.mean, evidence.variance**0.5)
    density /= integrate.trapezoid(density, z)

    actual_mean, actual_variance = _product(mean, variance, evidence)

    expected_mean = integrate.trapezoid(z * density, z)
    assert actual_mean == pytest.approx(expected_mean, abs=1e-5)
    expected_variance = integrate.trapezoid((z - expected_mean) ** 2 * density, z)
    assert actual_variance == pytest.approx(expected_variance, abs=1e-5)


def test_a_ladder_has_layers_of_the_given_sizes_from_the_data_up(ladder):
    model, params = ladder
    x = all_images(model.config)[:5]
    out = sere_jax.infer(model, params, x, jax.random.key(0))
    assert [z.shape for z in out.z] == [(5, 4), (5, 2), (5, 1)]
    assert out.kl.shape == (5, 3) and out.log_likelihood.shape == (5,)
    np.testing.assert_array_equal(out.prior_scale[-1], np.ones((5, 1)))
    total = 0.0
    parameters = (out.posterior_mean, out.posterior_scale, out.prior_mean, out.prior_scale)
    for mean, scale, *prior in np.stack([layers[1][0] for layers in parameters], axis=1):
        z = np.linspace(mean - 9 * scale, mean + 9 * scale, 4001)
        ratio = stats.norm.logpdf(z, mean, scale) - stats.norm.logpdf(z, *prior)
        total += integrate.trapezoid(stats.norm.pdf(z, mean, scale) * ratio, z)
    assert float(out.kl[0, 1]) == pytest.approx(total, rel=1e-3)


def change_with_scale(function, num_codes):
    """By how much five times the codes change what a network makes of them, in its deviations."""
    codes = jax.random.normal(jax.random.key(1), (100, num_codes))
    result, result_of_larger = (np.asarray(function(scale * codes)) for scale in (1, 5))
    return np.abs(result_of_larger - result).mean() / result.std()


@pytest.mark.parametrize("layer", [0, 1])
def test_priors_of_a_ladder_see_the_scale_of_the_codes_above(tiny_config, layer):
    model = sere_jax.create_model(tiny_config(**SYSTEMS["ladder"]))
    params = sere_jax.init(model, jax.random.key(0))

    def prior(codes):
        with_params = model.bind({"params": params})
        return with_params.prior[layer](with_params.top_down[layer](codes))

    assert change_with_scale(prior, model.config.latent_sizes[layer + 1]) > 0.1


@pytest.mark.parametrize("system", ["ladder", "iaf", "relaxed_bernoulli"])
def test_pixels_of_whole_images_see_the_scale_of_the_codes(tiny_config, system):
    model = sere_jax.create_model(tiny_config(**SYSTEMS[system]))
    params = sere_jax.init(model, jax.random.key(0))

    def logits(codes):
        return model.bind({"params": params}).data_layer(codes)

    assert change_with_scale(logits, model.config.latent_shape[0]) > 0.1


@pytest.mark.parametrize("family", NETWORKS)
def test_networks_of_the_hierarchy_see_the_scale_of_the_codes(tiny_config, family):
    network = create_network(tiny_config(network=family), (3,))
    params = network.init(jax.random.key(0), jnp.zeros((1, 2)), 1, None)
    assert change_with_scale(lambda codes: network.apply(params, codes, 1, None), 2) > 0.1


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_every_posterior_of_a_ladder_sees_the_whole_image(ladder, layer):
    model, params = ladder
    x = all_images(model.config)[37:38]

    @jax.jit
    @jax.jacobian
    def jacobian(x):
        return sere_jax.infer(model, params, x, jax.random.key(0)).posterior_mean[layer]

    assert (np.abs(jacobian(x)).max(axis=(0, 1)) > 1e-5).all()


def test_the_posterior_of_an_iaf_has_the_density_of_the_map_that_draws_it(random_model):
    model, params = random_model(**SYSTEMS["iaf"])
    x = all_images(model.config)[::13]
    (noise,) = sample_noise(model, jax.random.split(jax.random.key(0), len(x)), 0)

    def infer(x, noise):
        return model.apply({"params": params}, x[None], noise[None, None])

    @jax.jit
    @jax.vmap
    @functools.partial(jax.jacobian, argnums=(0, 1))
    def jacobian(x, noise):
        return infer(x, noise).z[0]

    inferred = jax.vmap(infer)(x, noise)
    by_x, by_noise = jacobian(x, noise)

    z, epsilon = inferred.z[:, 0], noise
    _, log_det = np.linalg.slogdet(by_noise.reshape(-1, 3, 3))
    log_posterior = stats.norm.logpdf(epsilon).sum(-1) - log_det
    expected = log_posterior - stats.norm.logpdf(z).sum(-1)
    np.testing.assert_allclose(inferred.kl[:, 0, 0], expected, rtol=1e-4, atol=1e-4)
    assert (np.abs(by_noise) > 1e-6).any(axis=0).all()  # orders alternate: no code is independent
    assert (np.abs(by_x) > 1e-6).any(axis=0).all()


@pytest.mark.parametrize("temperature", [0.5, 2 / 3])
def test_the_density_of_a_relaxed_bernoulli_variable_is_that_of_scipy_logistics(temperature):
    epsilon, logit = np.linspace(-30, 30, 601), 1.7
    expected = stats.logistic.logpdf(temperature * epsilon - logit) + np.log(temperature)
    actual = log_density(jnp.float32(epsilon), jnp.float32(logit), temperature)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    assert integrate.trapezoid(np.exp(actual), epsilon) == pytest.approx(1, abs=1e-3)


def test_relaxed_bernoulli_codes_are_above_a_half_as_often_as_their_logits_say(relaxed_bernoulli):
    model, params = relaxed_bernoulli
    x = np.repeat(all_images(model.config)[21:22], 20_000, axis=0)
    out = sere_jax.infer(model, params, x, jax.random.key(1))
    probability = special.expit(out.posterior_logits[:, 0])
    assert np.ptp(probability) < 1e-6  # the first code has none before it
    standard_error = (probability[0] * (1 - probability[0]) / len(x)) ** 0.5
    assert abs(np.mean(out.z[:, 0] > 0.5) - probability[0]) < 4 * standard_error
    np.testing.assert_allclose(out.z, special.expit(out.epsilon), rtol=1e-4, atol=1e-6)


def test_logits_of_relaxed_bernoulli_codes_see_the_codes_before_them_and_the_image(
    relaxed_bernoulli,
):
    model, params = relaxed_bernoulli
    x = all_images(model.config)[21:22]
    noise = sample_noise(model, jax.random.split(jax.random.key(0), 1), 0)

    @jax.jit
    @functools.partial(jax.jacobian, argnums=(0, 1))
    def jacobian(x, noise):
        return model.apply({"params": params}, x, noise).posterior_logits[0]

    by_x, by_noise = jacobian(x, noise)
    seen = np.abs(by_noise.reshape(3, 3)) > 1e-6
    np.testing.assert_array_equal(seen, np.tril(np.ones((3, 3)), -1).astype(bool))
    assert (np.abs(by_x).reshape(3, 6) > 1e-6).all()


def test_layers_have_no_other_codes_than_their_sizes_say(random_model):
    model, params = random_model(**SYSTEMS["unequal_latents"])
    x = all_images(model.config)
    out = sere_jax.infer(model, params, x, jax.random.key(0))
    absent = ~(np.arange(3) < np.array([1, 3, 2])[:, None])
    assert (np.asarray(out.z)[:, absent] == 0).all()
    assert (np.abs(np.asarray(out.z)[:, ~absent]) > 0).all()
    noise = sample_noise(model, jax.random.split(jax.random.key(0), len(x)), 0)
    other = jnp.where(absent[:, None], noise + 5.0, noise)
    with_other = model.apply({"params": params}, x, other)
    np.testing.assert_allclose(with_other.log_likelihood, out.log_likelihood, rtol=1e-6)
    np.testing.assert_allclose(with_other.kl, out.kl, rtol=1e-5)


def test_sizes_of_all_codes_are_the_model_without_sizes(random_model):
    model, params = random_model()
    masked = sere_jax.create_model(dataclasses.replace(model.config, latent_sizes=(2, 2, 2)))
    x, key = all_images(model.config), jax.random.key(0)
    one, other = (sere_jax.infer(m, params, x, key) for m in (model, masked))
    np.testing.assert_array_equal(one.log_likelihood, other.log_likelihood)
    np.testing.assert_array_equal(one.kl, other.kl)


@pytest.mark.parametrize("network", ["mlp", "resnet", "linear"])
def test_a_shared_encoder_is_refined_from_the_last_layer_to_the_first(random_model, network):
    model, params = random_model(encoder="shared", network=network)
    x = all_images(model.config)[5:6]

    def features(params):
        return model.apply({"params": params}, x, method="observe").posterior

    jacobian = jax.jit(jax.jacobian(features))(params)["hierarchy"]
    refinement = jacobian["layers"]["refinement"]
    bias = next(
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(refinement)
        if "offset" not in str(path) and "bias" in str(path)
    )
    seen = np.abs(bias).reshape(3, 8, 3, -1).max(axis=(1, 3)) > 0
    np.testing.assert_array_equal(seen, np.triu(np.ones((3, 3))).astype(bool))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(jacobian["encoder"]))


@pytest.mark.parametrize("context", [1, 2])
def test_codes_are_handed_on_at_the_start_with_a_variance_that_rises_to_one(tiny_config, context):
    config = tiny_config(
        num_layers=6, latent_shape=(50,), carry_start=0.8, context=context, hidden_size=4
    )
    model = sere_jax.create_model(config)
    params = sere_jax.init(model, jax.random.key(0))
    noise = jax.random.normal(jax.random.key(1), (6, 400, 50))
    z = _prior_codes(model, params, noise)
    correlation = np.corrcoef(z[:, 4].ravel(), z[:, 5].ravel())[0, 1]
    assert correlation == pytest.approx(0.8, abs=0.08)
    np.testing.assert_allclose(
        z.std(axis=(0, 2)), (1 - 0.8 ** (2 * np.arange(1, 7))) ** 0.5, atol=0.1
    )
    uncoupled = dataclasses.replace(config, couple_bijector=False)
    model = sere_jax.create_model(uncoupled)
    z = _prior_codes(model, sere_jax.init(model, jax.random.key(0)), noise)
    assert abs(np.corrcoef(z[:, 4].ravel(), z[:, 5].ravel())[0, 1]) < 0.08
    assert z[:, 0].std() == pytest.approx(1.0, abs=0.1)


def _prior_codes(model, params, noise):
    """z of the prior: what the posterior infers where it adds nothing to it."""
    layers = params["hierarchy"]["layers"]
    head = jax.tree.map(jnp.zeros_like, layers["posterior"]["network"]["head"])
    num_latents = model.config.latent_shape[0]
    head["bias"] = head["bias"].at[..., num_latents:].set(50.0)
    posterior = {"network": layers["posterior"]["network"] | {"head": head}}
    params = {"hierarchy": {"layers": layers | {"posterior": posterior}}}
    x = jnp.zeros((noise.shape[1], *model.config.data_shape))
    return np.asarray(model.apply({"params": params}, x, noise).z)


class OfOnesOwn(LatentVariableModel):
    """What it infers is the condition."""

    def __call__(self, x, noise, condition):
        del noise
        each = jnp.sum(condition, axis=-1)
        return types.SimpleNamespace(z=x, epsilon=condition, log_likelihood=each, kl=condition)


def test_methods_of_the_base_class_hand_the_condition_on(tiny_config):
    model = OfOnesOwn(tiny_config(condition_size=2))
    x, noise, condition = jnp.zeros((3, 2, 3, 1)), jnp.zeros((3, 3, 2)), jnp.ones((3, 2))
    z, coordinates, (log_likelihood, kl) = (
        apply(model, {}, x, noise, method=method, condition=condition)
        for method in ("codes", "coordinates", "elbo_terms")
    )
    assert z is not None
    np.testing.assert_array_equal(coordinates, condition)
    np.testing.assert_array_equal(log_likelihood, [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(kl, condition)
