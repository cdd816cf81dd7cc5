"""Data layers: the Bernoulli against distrax, and what their parameters depend on."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from sere_jax.data_layer import MIN_SCALE, create_data_layer

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
    parameters = 2 * random_values(1, 2, layer.parameters_per_value)
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
