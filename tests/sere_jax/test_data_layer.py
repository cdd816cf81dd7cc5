"""Data layers: the Bernoulli against distrax, and what their parameters depend on."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from sere_jax.data_layer import create_data_layer
from sere_jax.pixels import MIN_SCALE

BLOCK_SHAPE = (1, 2, 1)


def random_values(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("pixel", [0.0, 1.0])
def test_bernoulli_log_prob_is_that_of_distrax(tiny_config, pixel):
    layer = create_data_layer(tiny_config(), BLOCK_SHAPE)
    logits = jnp.array([-1e4, -100.0, -15.0, -1.0, 0.0, 0.5, 15.0, 100.0, 1e4])

    log_prob = layer.log_prob(logits, jnp.full_like(logits, pixel))

    np.testing.assert_allclose(
        log_prob, distrax.Bernoulli(logits=logits).log_prob(pixel), rtol=1e-5, atol=1e-6
    )


def test_bernoulli_samples_ones_as_often_as_its_mean_says(tiny_config):
    layer = create_data_layer(tiny_config(), BLOCK_SHAPE)
    logits, num_samples = jnp.linspace(-3.0, 3.0, 6).reshape(1, 6, 1), 20_000
    keys = jax.random.split(jax.random.key(0), num_samples)

    blocks = np.asarray(jax.vmap(layer.sample, (None, 0))(logits, keys))

    probability = special.expit(np.asarray(logits))
    standard_error = np.sqrt(probability * (1 - probability) / num_samples)
    assert blocks.dtype == np.float32
    assert set(np.unique(blocks)) == {0.0, 1.0}
    assert (np.abs(blocks.mean(axis=0) - probability) < 4 * standard_error).all()
    np.testing.assert_allclose(layer.mean(logits), probability, rtol=1e-5)


@pytest.mark.parametrize("data_scale", [0.0, 0.3])
def test_gaussian_log_prob_samples_and_mean_are_those_of_scipy(tiny_config, data_scale):
    layer = create_data_layer(
        tiny_config(data_layer="gaussian", data_scale=data_scale), BLOCK_SHAPE
    )
    num_samples = 20_000
    parameters = 2 * random_values(1, 2, layer.parameters_per_pixel)
    mean = parameters[..., :1]
    scale = data_scale or MIN_SCALE + np.log1p(np.exp(parameters[..., 1:]))
    keys = jax.random.split(jax.random.key(0), num_samples)

    blocks = np.asarray(jax.vmap(layer.sample, (None, 0))(parameters, keys))

    assert blocks.shape == (num_samples, *BLOCK_SHAPE) and blocks.dtype == np.float32
    for pixel in np.ndindex(BLOCK_SHAPE):
        standardized = ((blocks - mean) / scale)[:, *pixel]
        assert stats.kstest(standardized, "norm").pvalue > 1e-3
    np.testing.assert_allclose(
        layer.log_prob(parameters, blocks),
        stats.norm.logpdf(blocks, mean, scale),
        rtol=1e-4,
        atol=1e-4,
    )
    np.testing.assert_array_equal(layer.mean(parameters), mean)


def test_a_learned_gaussian_scale_is_bounded_below(tiny_config):
    layer = create_data_layer(tiny_config(data_layer="gaussian"), BLOCK_SHAPE)
    parameters = np.array([0.0, -1e4], np.float32).reshape(1, 1, 2)

    highest = layer.log_prob(parameters, np.zeros((1, 1, 1), np.float32))

    np.testing.assert_allclose(highest, -np.log(MIN_SCALE * np.sqrt(2 * np.pi)), rtol=1e-5)


def logistic_mixture(tiny_config, channels, num_mixtures=3, scale=1.0, seed=1):
    """A layer for one pixel and random parameters [1, 1, P], some components very narrow."""
    config = tiny_config(data_layer="discretized_logistic_mixture", num_mixtures=num_mixtures)
    layer = create_data_layer(config, (1, 1, channels))
    parameters = np.random.default_rng(seed).normal(size=(1, 1, layer.parameters_per_pixel))
    return layer, (scale * parameters).astype(np.float32)


def reference_log_prob(parameters, pixel, num_mixtures=3):
    """log P of one pixel in float64, straight from the definition (Salimans et al. 2017)."""
    channels = len(pixel)
    logits, *rest = np.split(np.asarray(parameters, np.float64).ravel(), parameters.size // 3)
    means, log_scales, shifts = np.split(np.array(rest), [channels, 2 * channels])
    pairs = [(1, 0), (2, 0), (2, 1)]
    edges = (np.arange(257) - 0.5) / 127.5 - 1
    edges[0], edges[-1] = -np.inf, np.inf
    values = np.array(pixel) / 127.5 - 1
    total = 0
    for k in range(num_mixtures):
        probability = special.softmax(logits)[k]
        for channel in range(channels):
            mean = means[channel, k]
            for (to, by), shift in zip(pairs, shifts, strict=False):
                if to == channel:
                    mean = mean + np.tanh(shift[k]) * values[by]
            scale = np.exp(np.clip(log_scales[channel, k], -7, 7))
            value = int(pixel[channel])
            lower, upper = (edges[value : value + 2] - mean) / scale
            probability *= special.expit(upper) - special.expit(lower)
        total += probability
    return np.log(total)


@pytest.mark.parametrize("scale", [1.0, 3.0, 30.0])
def test_probabilities_of_the_values_of_a_channel_sum_to_those_of_the_channels_before(
    tiny_config, scale
):
    """Σ_b P(r, g, b) = P(r, g), Σ_g P(r, g) = P(r), Σ_r P(r) = 1."""
    _, parameters = logistic_mixture(tiny_config, 3, scale=scale)
    weights, red, green, blue, *others = np.split(parameters, 10, axis=-1)
    (red_scale, green_scale, _), (by_red, _, _) = others[:3], others[3:]
    of_channels = {
        1: [weights, red, red_scale],
        2: [weights, red, green, red_scale, green_scale, by_red],
        3: [parameters],
    }

    def probability(pixels):
        channels = pixels.shape[-1]
        layer, _ = logistic_mixture(tiny_config, channels)
        parameters = np.concatenate(of_channels[channels], axis=-1)
        log_prob = layer.log_prob(parameters, pixels.reshape(-1, 1, 1, channels))
        return np.exp(np.asarray(log_prob, np.float64)).ravel()

    values = np.arange(256, dtype=np.uint8)[:, None]
    assert probability(values).sum() == pytest.approx(1, abs=1e-5)
    for before in ([0], [77], [255], [0, 0], [255, 13], [90, 200]):
        pixels = np.concatenate([np.tile(np.uint8(before), (256, 1)), values], axis=1)
        expected = probability(np.uint8([before])).item()
        assert probability(pixels).sum() == pytest.approx(expected, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_logistic_mixture_is_that_of_the_definition(tiny_config, channels):
    layer, parameters = logistic_mixture(tiny_config, channels, scale=1.5)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 1, channels), np.uint8)
    pixels[:10][pixels[:10] < 128] = 0
    pixels[:10][pixels[:10] >= 128] = 255

    ours = np.asarray(layer.log_prob(parameters, pixels))

    assert ours.shape == (40, 1, 1, 1)
    expected = [reference_log_prob(parameters, pixel.ravel()) for pixel in pixels]
    np.testing.assert_allclose(ours.ravel(), expected, rtol=1e-4, atol=1e-4)
    as_floats = layer.log_prob(parameters, pixels.astype(np.float32))
    np.testing.assert_array_equal(ours, as_floats)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_logistic_mixture_is_finite_with_finite_gradients_everywhere(tiny_config, scale):
    layer, parameters = logistic_mixture(tiny_config, 3, scale=scale)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 1, 1, 3), np.uint8)
    pixels[0], pixels[1] = 0, 255

    def total(parameters):
        return layer.log_prob(parameters, pixels).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(parameters)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_samples_of_logistic_mixtures_are_as_frequent_as_their_probabilities(tiny_config):
    num_samples = 100_000
    layer, parameters = logistic_mixture(tiny_config, 2, seed=3)
    keys = jax.random.split(jax.random.key(0), num_samples)

    pixels = np.asarray(jax.jit(jax.vmap(layer.sample, (None, 0)))(parameters, keys))

    assert pixels.dtype == np.uint8 and pixels.shape == (num_samples, 1, 1, 2)
    values = np.arange(256, dtype=np.uint8)
    every = np.stack(np.meshgrid(values, values, indexing="ij"), axis=-1).reshape(-1, 1, 1, 2)
    probabilities = np.exp(np.asarray(jax.jit(layer.log_prob)(parameters, every), np.float64))
    # The two ends by themselves, and between them bins of 16 values.
    bin_of_value = np.concatenate([[0], np.arange(1, 255) // 16 + 1, [17]])

    def counts(pixels, weights):
        first, second = bin_of_value[pixels.reshape(-1, 2)].T
        return np.bincount(18 * first + second, weights, minlength=18**2)

    observed = counts(pixels, np.ones(num_samples))
    expected = counts(every, num_samples * probabilities.ravel())
    kept = expected > 5
    assert kept.sum() > 100
    chi_square = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
    assert stats.chi2.sf(chi_square, kept.sum()) > 1e-3


def test_the_mean_of_a_narrow_logistic_mixture_is_where_its_samples_are(tiny_config):
    layer, parameters = logistic_mixture(tiny_config, 3, num_mixtures=1)
    parameters[..., 1:4] = np.array([-0.5, 0.1, 0.3])
    parameters[..., 4:7] = -6.0
    keys = jax.random.split(jax.random.key(0), 2000)

    pixels = np.asarray(jax.vmap(layer.sample, (None, 0))(parameters, keys), np.float64)

    np.testing.assert_allclose(layer.mean(parameters)[0, 0], pixels.mean((0, 1, 2)), atol=0.5)


@pytest.mark.parametrize("mean", [-5.0, -1.0, -0.995, 0.0, 0.3, 0.9, 1.0, 1.2])
def test_the_expectation_of_a_discretized_logistic_is_the_sum_over_its_values(tiny_config, mean):
    for log_scale in (-7.0, -5.0, -4.0, -2.5, -1.0, 0.0, 3.0, 7.0):
        layer, parameters = logistic_mixture(tiny_config, 1, num_mixtures=1)
        parameters[..., 1], parameters[..., 2] = mean, log_scale
        expected = exact_expectation(mean, np.exp(log_scale))
        actual = layer.mean(parameters).item()
        assert actual == pytest.approx(expected, abs=0.02), log_scale


def exact_expectation(mean, scale):
    """Of one logistic in float64: the sum over 256 values."""
    edges = (np.arange(1, 256) - 0.5) / 127.5 - 1
    below = np.concatenate([[0.0], special.expit((edges - mean) / scale), [1.0]])
    return np.arange(256) @ np.diff(below)


@pytest.mark.parametrize("scales", [(-4.0, -3.0), (-1.0, -3.0), (0.5, -1.0), (-2.0, 0.5)])
@pytest.mark.parametrize("shift", [-3.0, 0.4])
def test_the_expectation_of_a_channel_is_over_all_values_of_the_one_before(
    tiny_config, scales, shift
):
    layer, parameters = logistic_mixture(tiny_config, 2, num_mixtures=1)
    parameters[0, 0] = (0.0, 0.2, -0.4, *scales, shift)
    values = np.arange(256) / 127.5 - 1
    edges = (np.arange(1, 256) - 0.5) / 127.5 - 1
    below = np.concatenate([[0.0], special.expit((edges - 0.2) / np.exp(scales[0])), [1.0]])
    means = -0.4 + np.tanh(shift) * values
    given = np.array([exact_expectation(mean, np.exp(scales[1])) for mean in means])

    expected = np.diff(below) @ np.stack([np.arange(256), given], axis=1)

    np.testing.assert_allclose(layer.mean(parameters)[0, 0], expected, atol=1.0)


def parameters_function(config, random_module, seed=0):
    """γ as a function of z_l and the previous blocks, with random parameters."""
    layer = create_data_layer(config, BLOCK_SHAPE)

    def compute(layer, z, previous):
        return layer(z, layer.observe(previous))

    z, previous = np.zeros(2), np.zeros((config.data_context, *BLOCK_SHAPE))
    variables = random_module(layer, z, previous, seed=seed, method=compute)
    return variables["params"], jax.jit(
        lambda params, z, previous: layer.apply({"params": params}, z, previous, method=compute)
    )


@pytest.mark.parametrize("data_context", [1, 3])
@pytest.mark.parametrize("couple_data", [True, False])
def test_parameters_depend_on_every_previous_block_if_and_only_if_coupled(
    tiny_config, random_module, couple_data, data_context
):
    config = tiny_config(couple_data=couple_data, data_context=data_context)
    params, compute = parameters_function(config, random_module)
    z, previous = random_values(2), random_values(data_context, *BLOCK_SHAPE)

    by_code, by_blocks = jax.jit(jax.jacobian(compute, argnums=(1, 2)))(params, z, previous)

    assert by_blocks.shape == (*BLOCK_SHAPE, data_context, *BLOCK_SHAPE)
    assert (np.abs(by_blocks) > 1e-4).all() if couple_data else (by_blocks == 0).all()
    assert (np.abs(by_code) > 1e-4).all()


def test_the_residual_is_added_to_what_the_code_alone_says(tiny_config, random_module):
    params, coupled = parameters_function(tiny_config(), random_module)
    _, uncoupled = parameters_function(tiny_config(couple_data=False), random_module)
    z, previous = random_values(5, 2), random_values(5, 1, *BLOCK_SHAPE)
    no_residual = jax.tree.map(np.zeros_like, params) | {"base": params["base"]}

    base = uncoupled({"base": params["base"]}, z, previous)
    residual = coupled(params, z, previous) - base

    np.testing.assert_array_equal(coupled(no_residual, z, previous), base)
    assert np.abs(residual[0] - residual[1]).min() > 1e-3
    changed_blocks = coupled(params, z, previous[::-1]) - base
    changed_code = coupled(params, z[::-1], previous) - uncoupled(
        {"base": params["base"]}, z[::-1], previous
    )
    assert np.abs(changed_blocks - residual)[:2].min() > 1e-3
    assert np.abs(changed_code - residual)[:2].min() > 1e-3


def test_joint_layers_add_to_what_codes_and_blocks_are_together(tiny_config, random_module):
    params, compute = parameters_function(tiny_config(num_joint_layers=2), random_module)
    _, plain = parameters_function(tiny_config(), random_module)
    z, previous = random_values(5, 2), random_values(5, 1, *BLOCK_SHAPE)
    residual = params["residual"]

    def dense(name, values):
        return values @ residual[name]["kernel"] + residual[name].get("bias", 0.0)

    def elu(values):
        return np.where(values > 0, values, np.expm1(values))

    def network(num_joint_layers):
        offset = params["observed"]
        blocks = previous.reshape(5, -1)
        hidden = elu(blocks @ offset["Dense_0"]["kernel"] + offset["Dense_0"]["bias"])
        hidden = hidden @ offset["Dense_1"]["kernel"] + offset["Dense_1"]["bias"]
        hidden = elu(hidden + dense("Dense_1", elu(dense("Dense_0", z))))
        for layer in range(num_joint_layers):
            hidden = elu(hidden + dense(f"joint_{layer}", hidden))
        return dense("head", hidden).reshape(5, *BLOCK_SHAPE)

    without = {name: value for name, value in residual.items() if not name.startswith("joint")}
    found = compute(params, z, previous) - plain(params | {"residual": without}, z, previous)

    expected = network(num_joint_layers=2) - network(num_joint_layers=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected).min() > 1e-3
