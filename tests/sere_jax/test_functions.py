"""The public functions: bounds, likelihood and samples that agree with each other, in nats.

Sums over all images of a few binary pixels stand in for integrals that have no closed form.
"""

import collections
import functools
import itertools
import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import (
    all_images,
    assert_as_frequent_as_likely,
    assert_normalized_and_sampled,
    estimate_likelihoods,
    fit_to_random_distribution,
    mean_and_standard_error,
    replicated,
)
from jaxprs import equations
from scipy import special, stats

import sere_jax
import sere_jax.functions
import sere_jax.inputs
from sere_jax.bijector import BIJECTORS

BLOCKS_SEEN = {"data_context": 2, "couple_data_to_prior": True}
EVERYTHING = {"context": 2, **BLOCKS_SEEN}


def with_prior_as_posterior(params):
    """Parameters with δμ = 0 and δσ = 1, so that importance sampling draws from the prior."""
    network = params["hierarchy"]["layers"]["posterior"]["network"]
    head = network[max(network)]
    bias = np.zeros(head["bias"].shape, np.float32)
    bias[..., bias.shape[-1] // 2 :] = 50.0
    constant = {"kernel": np.zeros_like(head["kernel"]), "bias": bias}
    posterior = {"network": {**network, max(network): constant}}
    layers = {**params["hierarchy"]["layers"], "posterior": posterior}
    return {"hierarchy": {"layers": layers}}


@pytest.fixture(scope="module")
def tiny(random_model):
    """A model with every coupling, random parameters, a batch of images and their keys."""
    model, params = random_model(**EVERYTHING)
    return model, params, *replicated(all_images(model.config))


@pytest.fixture(scope="module")
def inference(tiny):
    return sere_jax.infer(*tiny)


@pytest.fixture(scope="module")
def weights(tiny):
    """log p(x | z) and log p(ε) - log q(ε | x), [7, B], from Gaussian densities of scipy."""
    model, params, x, keys = tiny
    noise = sere_jax.inputs.noise_of_samples(model, keys, jnp.arange(7))
    infer = jax.vmap(lambda noise: model.apply({"params": params}, x, noise), in_axes=1)
    out = jax.jit(infer)(noise)
    ratio = stats.norm.logpdf(out.epsilon, out.prior_mean, out.prior_scale)
    ratio -= stats.norm.logpdf(out.epsilon, out.posterior_mean, out.posterior_scale)
    return np.asarray(out.log_likelihood), ratio.sum(axis=(2, 3))


@pytest.fixture(scope="module")
def fitted(tiny_config):
    return fit_to_random_distribution(sere_jax.create_model(tiny_config(**EVERYTHING)))


@pytest.mark.parametrize(
    ("overrides", "block_shape"),
    [
        ({"data_shape": (28, 28, 1), "num_layers": 10, "latent_shape": (10,)}, (1, 79, 1)),
        (
            {
                "data_shape": (4, 6, 3),
                "num_layers": 4,
                "latent_shape": (2, 1, 3),
                "partition": "checkerboard",
                "bijector": "identity",
                **EVERYTHING,
            },
            (2, 3, 3),
        ),
    ],
    ids=["mnist", "checkerboard"],
)
def test_shapes_and_types_of_the_public_functions(tiny_config, overrides, block_shape):
    config = tiny_config(**overrides)
    model, key = sere_jax.create_model(config), jax.random.key(0)
    params = jax.eval_shape(functools.partial(sere_jax.init, model), key)
    x = jax.ShapeDtypeStruct((5, *config.data_shape), jnp.float32)

    def shape_of(function, *arguments, **kwargs):
        result = jax.eval_shape(functools.partial(function, model, **kwargs), params, *arguments)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(result))
        return jax.tree.map(lambda leaf: leaf.shape, result)

    out = shape_of(sere_jax.infer, x, key)
    latents = (5, config.num_layers, *config.latent_shape)
    assert out.log_likelihood == (5,)
    assert out.kl == (5, config.num_layers)
    for name in ("epsilon", "z", "prior_mean", "prior_scale", "residual_mean", "residual_scale"):
        assert getattr(out, name) == latents
    assert out.data_parameters == (5, config.num_layers, *block_shape)
    assert shape_of(sere_jax.elbo, x, key) == (5,)
    assert shape_of(sere_jax.log_likelihood, x, key, num_samples=3) == (5,)
    assert shape_of(lambda *a: sere_jax.sample(*a, num=4), key) == (4, *config.data_shape)
    assert shape_of(sere_jax.reconstruct, x, key) == (5, *config.data_shape)


@pytest.mark.parametrize("data_shape", [(2, 3, 1), (5, 3, 2, 1), (5, 2, 3), (5, 2, 3, 3)])
@pytest.mark.parametrize("name", ["infer", "elbo", "log_likelihood", "reconstruct"])
def test_images_of_another_shape_are_refused_with_both_shapes(tiny, name, data_shape):
    model, params, *_ = tiny

    with pytest.raises(ValueError, match="x has the shape") as refusal:
        getattr(sere_jax, name)(model, params, np.zeros(data_shape), jax.random.key(0))

    assert str(data_shape) in str(refusal.value)
    assert "(batch, 2, 3, 1)" in str(refusal.value)


PUBLIC = ("infer", "elbo", "log_likelihood", "reconstruct", "objective")


@pytest.mark.parametrize("jit", [False, True], ids=["concrete", "jit"])
@pytest.mark.parametrize("name", PUBLIC)
def test_complex_images_are_refused_even_under_jit(tiny, name, jit):
    model, params, x, _ = tiny
    function = functools.partial(getattr(sere_jax, name), model, params)

    with pytest.raises(TypeError, match="x holds values of type complex64; .* real numbers"):
        (jax.jit(function) if jit else function)(x.astype(np.complex64), jax.random.key(0))


@pytest.mark.parametrize("dtype", [object, str, bytes, "datetime64[s]"], ids=str)
@pytest.mark.parametrize("name", PUBLIC)
def test_images_that_are_not_numbers_are_refused(tiny, name, dtype):
    model, params, x, _ = tiny

    with pytest.raises(TypeError, match="x holds values of type .* real numbers"):
        getattr(sere_jax, name)(model, params, x.astype(int).astype(dtype), jax.random.key(0))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float64, jnp.bfloat16], ids=str)
def test_images_may_have_any_real_type(tiny, dtype):
    model, params, x, _ = tiny
    shape = jax.eval_shape(
        functools.partial(sere_jax.elbo, model, params), x.astype(dtype), jax.random.key(0)
    )
    assert (shape.shape, shape.dtype) == (x.shape[:1], jnp.float32)


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize(
    ("key", "words"),
    [(3, "int"), (np.zeros(2, np.float32), "float32"), (np.zeros((2, 2), np.uint32), "uint32")],
    ids=["int", "float", "matrix"],
)
def test_what_is_no_key_is_refused(tiny, name, key, words):
    model, params, x, _ = tiny

    with pytest.raises(TypeError, match=rf"key is {words}.* must be jax\.random\.key\(seed\)"):
        getattr(sere_jax, name)(model, params, x, key)


def test_an_old_key_is_the_new_one_of_its_seed(tiny):
    model, params, x, _ = tiny
    functions = (
        functools.partial(sere_jax.elbo, model, params, x),
        functools.partial(sere_jax.reconstruct, model, params, x),
        functools.partial(sere_jax.sample, model, params, num=3),
        functools.partial(sere_jax.interpolate, model, params, x[0], x[1], num=3),
    )
    for function in functions:
        old, new = (function(key=key) for key in (jax.random.PRNGKey(3), jax.random.key(3)))
        np.testing.assert_array_equal(old, new)


def test_no_key_and_too_few_keys_are_refused(tiny):
    model, params, x, _ = tiny

    with pytest.raises(TypeError, match="key is NoneType"):
        sere_jax.sample(model, params, None, 3)
    with pytest.raises(
        ValueError, match=f"key holds 3 keys for {len(x)} examples; give one key, or {len(x)}"
    ):
        sere_jax.elbo(model, params, x, jax.random.split(jax.random.key(0), 3))


def test_counts_that_are_no_integers_are_refused(tiny):
    model, params, x, _ = tiny
    key = jax.random.key(0)

    for count in (2.0, "2", True, None):
        with pytest.raises(TypeError, match=f"num_samples={count!r} must be an integer"):
            sere_jax.log_likelihood(model, params, x, key, num_samples=count)
        with pytest.raises(TypeError, match=f"num_samples={count!r} must be an integer"):
            sere_jax.objective(model, params, x, key, num_samples=count)
        with pytest.raises(TypeError, match=f"num={count!r} must be an integer"):
            sere_jax.sample(model, params, key, count)


def test_numbers_below_one_are_refused(tiny):
    model, params, x, _ = tiny
    key = jax.random.key(0)

    with pytest.raises(ValueError, match="num=0 must be at least 1"):
        sere_jax.sample(model, params, key, 0)
    with pytest.raises(ValueError, match="num_samples=0 must be at least 1"):
        sere_jax.log_likelihood(model, params, x, key, num_samples=0)


def test_a_new_posterior_starts_close_to_the_prior(tiny_config):
    model = sere_jax.create_model(tiny_config(**EVERYTHING))
    params = sere_jax.init(model, jax.random.key(0))

    out = sere_jax.infer(model, params, *replicated(all_images(model.config)))

    assert np.abs(out.residual_mean).max() < 0.5
    np.testing.assert_allclose(out.residual_scale, special.expit(1.0), atol=0.15)
    np.testing.assert_allclose(out.prior_scale, 1.0, atol=0.3)
    first, *others = np.asarray(params["hierarchy"]["layers"]["encoder"]["Dense_0"]["kernel"])
    assert all(np.abs(first - other).min() > 0 for other in others)


def test_elbo_is_the_expected_likelihood_minus_all_kl(tiny, inference):
    elbo = sere_jax.elbo(*tiny)

    expected = inference.log_likelihood - np.asarray(inference.kl).sum(axis=1)
    np.testing.assert_allclose(elbo, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(inference.elbo, expected, rtol=1e-5, atol=1e-4)


def test_kl_is_that_of_the_two_gaussians(inference):
    prior = distrax.Normal(inference.prior_mean, inference.prior_scale)
    posterior = distrax.Normal(inference.posterior_mean, inference.posterior_scale)

    expected = posterior.kl_divergence(prior).sum(axis=-1)
    np.testing.assert_allclose(inference.kl, expected, rtol=1e-3, atol=1e-4)


def test_log_likelihood_of_one_sample_is_the_elbo_on_average(tiny):
    difference = sere_jax.log_likelihood(*tiny, num_samples=1) - sere_jax.elbo(*tiny)

    mean, standard_error = mean_and_standard_error(difference)
    assert np.abs(difference).max() > 1
    assert abs(mean) < 4 * standard_error < 1.5


def test_log_likelihood_rises_with_the_number_of_samples(tiny):
    bounds = [sere_jax.log_likelihood(*tiny, num_samples=num) for num in (1, 5, 50)]

    for lower, higher in itertools.pairwise(bounds):
        mean, standard_error = mean_and_standard_error(higher - lower)
        assert mean > 4 * standard_error


@pytest.mark.parametrize(("num_samples", "samples_at_once"), [(5, 50), (7, 3)])
def test_log_likelihood_averages_the_weights_whatever_the_chunks(
    tiny, weights, num_samples, samples_at_once
):
    numbers = {"num_samples": num_samples, "samples_at_once": samples_at_once}
    log_likelihood = sere_jax.log_likelihood(*tiny, **numbers)

    log_weights = sum(weights)[:num_samples]
    expected = special.logsumexp(log_weights, axis=0) - np.log(num_samples)
    np.testing.assert_allclose(log_likelihood, expected, rtol=1e-4, atol=1e-3)
    again, elbo = sere_jax.functions.likelihood_and_elbo(*tiny, **numbers)
    np.testing.assert_array_equal(again, log_likelihood)
    np.testing.assert_allclose(elbo, log_weights.mean(axis=0), rtol=1e-4, atol=1e-3)
    assert np.all(elbo <= log_likelihood)


def test_memory_of_a_likelihood_grows_with_the_samples_at_once(tiny):
    model, *arguments = tiny

    def memory(samples_at_once):
        compute = functools.partial(
            sere_jax.log_likelihood, model, num_samples=100, samples_at_once=samples_at_once
        )
        program = jax.jit(compute).lower(*arguments).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert memory(50) > 5 * memory(5)


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
@pytest.mark.parametrize("num_samples", [1, 4])
def test_objective_is_the_weighted_bound(tiny, inference, weights, num_samples, kl_weight):
    out = objective(num_samples)(*tiny, kl_weight)

    log_likelihood, ratio = (terms[:num_samples] for terms in weights)
    if num_samples == 1:
        ratio = -np.asarray(inference.kl).sum(axis=1)[None]
    expected = special.logsumexp(log_likelihood + kl_weight * ratio, axis=0)
    np.testing.assert_allclose(out.value, expected - np.log(num_samples), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(out.log_likelihood, log_likelihood.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(out.kl, -ratio.mean(axis=0), rtol=1e-3, atol=1e-3)


@functools.cache
def objective(num_samples):
    def compute(model, params, x, keys, kl_weight):
        return sere_jax.objective(
            model, params, x, keys, kl_weight=kl_weight, num_samples=num_samples
        )

    return jax.jit(compute, static_argnums=0)


@pytest.mark.parametrize(
    "function",
    [
        sere_jax.elbo,
        functools.partial(sere_jax.log_likelihood, num_samples=5),
        functools.partial(sere_jax.reconstruct, expected=True),
    ],
    ids=["elbo", "log_likelihood", "reconstruct"],
)
def test_the_result_of_an_example_does_not_depend_on_its_batch(tiny, function):
    model, params, x, keys = tiny
    kept = np.arange(0, len(x), 3)[::-1]
    order = np.random.default_rng(0).integers(len(x), size=len(x))
    order[: len(kept)] = kept

    result = np.asarray(function(*tiny))
    reordered = np.asarray(function(model, params, x[order], keys[order]))

    np.testing.assert_allclose(reordered[: len(kept)], result[kept], rtol=1e-5, atol=1e-5)
    assert np.abs(reordered - result).max() > 0.1


def test_one_key_gives_every_example_its_own_noise(tiny):
    model, params, x, _ = tiny
    x = np.zeros_like(x)

    out = sere_jax.infer(model, params, x, jax.random.key(0))

    noise = (out.epsilon - out.posterior_mean) / out.posterior_scale
    assert len(np.unique(out.epsilon[:, 0, 0])) > 0.99 * len(x)
    assert stats.kstest(np.asarray(noise).ravel(), "norm").pvalue > 1e-3


def test_kl_is_the_same_for_epsilon_and_for_z(inference):
    """Proposition 1, by Monte Carlo and in closed form."""
    num_samples, examples = 20_000, slice(0, 64, 11)
    mean, scale, prior_mean, prior_scale = (
        np.moveaxis(np.asarray(values), 1, 0)[:, examples]
        for values in (
            inference.posterior_mean,
            inference.posterior_scale,
            inference.prior_mean,
            inference.prior_scale,
        )
    )
    bijector = jax.tree.map(lambda leaf: leaf[:, examples], inference.bijector)
    kl = np.asarray(inference.kl)[examples].T
    noise = np.random.default_rng(0).normal(size=(num_samples, *mean.shape)).astype(np.float32)

    epsilon = mean + scale * noise
    log_q = stats.norm.logpdf(epsilon, mean, scale).sum(axis=-1)
    log_p = stats.norm.logpdf(epsilon, prior_mean, prior_scale).sum(axis=-1)
    z, forward_log_det = bijector.forward_and_log_det(epsilon)
    back, inverse_log_det = bijector.inverse_and_log_det(z)
    log_q_z = log_q - forward_log_det
    log_p_z = stats.norm.logpdf(back, prior_mean, prior_scale).sum(axis=-1) + inverse_log_det

    for log_ratio in (log_q - log_p, log_q_z - log_p_z):
        estimate, standard_error = mean_and_standard_error(log_ratio)
        assert (np.abs(estimate - kl) < 4.5 * standard_error).all()

    jacobian = jax.vmap(jax.vmap(jax.jacobian(lambda epsilon, f: f.forward(epsilon))))
    jacobian = np.asarray(jax.jit(jacobian)(mean, bijector), np.float64)
    covariance = jacobian * scale[..., None, :] ** 2 @ jacobian.mT
    deviation = np.asarray(z - bijector.forward(mean), np.float64)[:1000, ..., None]
    distance = (deviation.mT @ np.linalg.inv(covariance) @ deviation)[..., 0, 0]
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    np.testing.assert_allclose(log_q_z[:1000], -0.5 * (distance + log_det), rtol=1e-2, atol=5e-2)
    np.testing.assert_allclose(
        gaussian_kl(
            jacobian @ (mean - prior_mean)[..., None],
            covariance,
            jacobian * prior_scale[..., None, :] ** 2 @ jacobian.mT,
        ),
        kl,
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("couple_bijector", [True, False], ids=["coupled", "constant"])
@pytest.mark.parametrize("name", sorted(BIJECTORS))
def test_the_inferred_bijectors_make_z_of_epsilon(random_model, name, couple_bijector):
    model, params = random_model(bijector=name, couple_bijector=couple_bijector)
    x = all_images(model.config)[::13]
    out = sere_jax.infer(model, params, x, jax.random.key(0))

    z = jax.vmap(lambda f, epsilon: f.forward(epsilon))(
        out.bijector, jnp.moveaxis(out.epsilon, 1, 0)
    )

    np.testing.assert_allclose(jnp.moveaxis(z, 0, 1), out.z, rtol=1e-5, atol=1e-5)


def gaussian_kl(shift, covariance, prior_covariance):
    """KL of N(shift, covariance) to N(0, prior_covariance)."""
    precision = np.linalg.inv(prior_covariance)
    trace = np.trace(precision @ covariance, axis1=-2, axis2=-1)
    distance = (shift.mT @ precision @ shift)[..., 0, 0]
    log_dets = np.linalg.slogdet(prior_covariance)[1] - np.linalg.slogdet(covariance)[1]
    return 0.5 * (trace + distance - covariance.shape[-1] + log_dets)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({}, id="case 3"),
        pytest.param({"couple_prior": False, "couple_bijector": False}, id="case 2"),
        pytest.param(
            {
                "couple_prior": False,
                "couple_bijector": False,
                "couple_data": False,
                "data_shape": (2, 2, 1),
                "num_layers": 4,
                "partition": "checkerboard",
            },
            id="case 1, checkerboard",
        ),
        pytest.param({"couple_prior": False, "data_shape": (1, 5, 1)}, id="DLGM, padded"),
        pytest.param(EVERYTHING, id="all couplings"),
        pytest.param(
            {
                "data_shape": (2, 2, 1),
                "num_layers": 4,
                "partition": "tiles",
                "context": 2,
                "data_context": 3,
                "couple_data_to_prior": True,
                "bijector": "identity",
            },
            id="tiles, longer context, no bijector",
        ),
        pytest.param(
            {
                "data_shape": (2, 2, 1),
                "num_layers": 4,
                "partition": "checkerboard",
                "block_order": "boustrophedon",
                **EVERYTHING,
            },
            id="boustrophedon",
        ),
        pytest.param({"num_joint_layers": 2, **EVERYTHING}, id="joint layers"),
        pytest.param({"state_size": 3, **BLOCKS_SEEN}, id="a state"),
        pytest.param({"network": "linear"}, id="linear networks"),
        pytest.param({"encoder": "local", **EVERYTHING}, id="local encoders"),
        pytest.param({"network": "resnet", **EVERYTHING}, id="residual networks on vectors"),
        pytest.param(
            {
                "network": "resnet",
                "data_shape": (2, 4, 1),
                "num_layers": 4,
                "partition": "tiles",
                "latent_shape": (1, 2, 1),
                **EVERYTHING,
            },
            id="residual networks on maps",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_probabilities_of_all_images_sum_to_one_and_are_those_of_samples(random_model, overrides):
    model, params = random_model(**overrides)

    likelihoods = estimate_likelihoods(model, with_prior_as_posterior(params))

    assert_normalized_and_sampled(model, params, likelihoods, largest_error=0.08)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"data_channels": 3, **EVERYTHING}, id="data layers on maps"),
        pytest.param({"latent_shape": (1, 2, 1), "state_size": 2, **BLOCKS_SEEN}, id="a state"),
    ],
)
def test_probabilities_of_maps_sum_to_one_and_are_those_of_samples(
    tiny_config, randomize, overrides
):
    """With larger weights the codes decide too much for estimates by samples of the prior."""
    maps = {"network": "resnet", "partition": "checkerboard", **overrides}
    config = tiny_config(data_shape=(2, 4, 1), num_layers=4, **maps)
    model = sere_jax.create_model(config)
    shapes = jax.eval_shape(functools.partial(sere_jax.init, model), jax.random.key(0))
    params = randomize(shapes, kernel_scale=0.8)

    likelihoods = estimate_likelihoods(model, with_prior_as_posterior(params))

    assert_normalized_and_sampled(model, params, likelihoods, largest_error=0.02)


@pytest.mark.slow
def test_probabilities_sum_to_one_under_a_fitted_posterior(fitted):
    """The same probabilities as from samples of the prior."""
    model, params = fitted

    by_posterior = estimate_likelihoods(model, params)
    by_prior = estimate_likelihoods(model, with_prior_as_posterior(params))

    total, standard_error = mean_and_standard_error(by_posterior.sum(axis=1))
    assert abs(total - 1) < 4 * standard_error < 0.04
    mean, error = mean_and_standard_error(by_posterior)
    prior_mean, prior_error = mean_and_standard_error(by_prior)
    assert (np.abs(mean - prior_mean) < 4.5 * np.hypot(error, prior_error)).all()


@pytest.fixture(scope="module")
def samples(tiny):
    """100,000 samples, and their expectations."""
    model, params, *_ = tiny
    return tuple(
        np.asarray(sere_jax.sample(model, params, jax.random.key(3), 100_000, expected=expected))
        for expected in (False, True)
    )


def test_samples_are_as_frequent_as_their_likelihood_says(tiny, samples):
    model, params, *_ = tiny

    assert samples[0].shape == (100_000, 2, 3, 1)
    likelihoods = estimate_likelihoods(model, with_prior_as_posterior(params))
    assert_as_frequent_as_likely(samples[0], likelihoods, model.config)


def test_expected_samples_are_probabilities_with_the_mean_of_the_samples(samples):
    images, expected = samples

    assert ((expected >= 0) & (expected <= 1)).all()
    assert (expected > 0.01).mean() > 0.5
    mean, standard_error = mean_and_standard_error(images - expected)
    assert (np.abs(mean) < 4 * standard_error).all()


def test_reconstruction_sees_the_image_through_its_codes_only(tiny):
    model, params, x, keys = tiny
    blind = with_prior_as_posterior(params)
    layers = blind["hierarchy"]["layers"]
    layers["prior_observed"] = jax.tree.map(np.zeros_like, layers["prior_observed"])

    for expected in (False, True):
        np.testing.assert_array_equal(
            sere_jax.reconstruct(model, blind, x, keys, expected=expected),
            sere_jax.reconstruct(model, blind, 1 - x, keys, expected=expected),
        )


def test_reconstruction_decodes_the_inferred_codes_given_its_own_blocks(tiny, inference):
    model, params, x, keys = tiny
    image, expected = (
        np.asarray(sere_jax.reconstruct(model, params, x, keys, expected=flag)).reshape(-1, 3, 2)
        for flag in (False, True)
    )
    true_blocks = x.reshape(-1, 3, 2)
    probability = special.expit(np.asarray(inference.data_parameters)).reshape(-1, 3, 2)

    assert set(np.unique(image)) == {0.0, 1.0}
    for layer in range(3):
        correct_so_far = (image == true_blocks)[:, :layer].all(axis=(1, 2))
        assert correct_so_far.sum() > 50
        np.testing.assert_allclose(
            expected[correct_so_far, layer], probability[correct_so_far, layer], rtol=1e-4
        )
    assert np.abs(expected - probability).max() > 0.1


@pytest.mark.parametrize("expected", [False, True])
def test_reconstruction_without_residual_is_that_of_a_model_whose_residual_is_zero(tiny, expected):
    model, params, x, keys = tiny
    without = jax.tree.map(np.asarray, params)
    head = without["hierarchy"]["layers"]["data_layer"]["residual"]["head"]
    head.update(jax.tree.map(np.zeros_like, head))

    images = sere_jax.reconstruct(model, params, x, keys, expected=expected, residual=False)

    np.testing.assert_array_equal(
        images, sere_jax.reconstruct(model, without, x, keys, expected=expected)
    )
    assert np.any(images != sere_jax.reconstruct(model, params, x, keys, expected=expected))


def trace(function, model, num_examples=5, **kwargs):
    """The program of a public function of (model, params, x, key)."""
    params = jax.eval_shape(functools.partial(sere_jax.init, model), jax.random.key(0))
    x = jax.ShapeDtypeStruct((num_examples, *model.config.data_shape), jnp.float32)
    return jax.make_jaxpr(functools.partial(function, model, **kwargs))(
        params, x, jax.random.key(0)
    ).jaxpr


def count_operations(jaxpr):
    """Multiplications in all matrix products."""
    total = 0
    for equation, repeats in equations(jaxpr):
        if equation.primitive.name == "dot_general":
            left = equation.invars[0].aval.shape
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(left[axis] for axis in contracted)
            total += repeats * inner * math.prod(equation.outvars[0].aval.shape)
    return total


@pytest.mark.parametrize("name", ["elbo", "log_likelihood", "sample"])
def test_programs_do_not_grow_with_the_number_of_layers(tiny_config, name):
    def function(model, params, x, key):
        if name == "sample":
            return sere_jax.sample(model, params, key, num=5)
        return getattr(sere_jax, name)(model, params, x, key)

    sizes = set()
    for num_layers in (10, 100):
        config = tiny_config(data_shape=(10, 20, 1), num_layers=num_layers, **EVERYTHING)
        jaxpr = trace(function, sere_jax.create_model(config))
        sizes.add(sum(1 for _ in equations(jaxpr)))

    assert len(sizes) == 1
    assert sizes.pop() > 100


def test_importance_sampling_encodes_an_image_once(tiny_config):
    """Every example goes once through the kernels that read pixels, S times through the others."""
    model = sere_jax.create_model(tiny_config(data_shape=(7, 11, 1), **EVERYTHING))
    num_examples, kernel_sizes = 5, collections.Counter()
    params = jax.eval_shape(functools.partial(sere_jax.init, model), jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = {entry.key for entry in path}
        if "kernel" in names:
            reads_pixels = bool(names & {"encoder", "observed", "prior_observed"})
            kernel_sizes[reads_pixels] += leaf.size

    for num_samples in (1, 50, 100):
        jaxpr = trace(sere_jax.log_likelihood, model, num_examples, num_samples=num_samples)
        expected = num_examples * (kernel_sizes[True] + num_samples * kernel_sizes[False])
        assert count_operations(jaxpr) == expected


def test_memory_does_not_grow_with_the_number_of_importance_samples(tiny_config):
    model = sere_jax.create_model(tiny_config(**EVERYTHING))

    def largest_array(num_samples):
        jaxpr = trace(sere_jax.log_likelihood, model, num_samples=num_samples)
        return max(
            math.prod(variable.aval.shape)
            for equation, _ in equations(jaxpr)
            for variable in equation.outvars
        )

    assert largest_array(100) == largest_array(10_000)
