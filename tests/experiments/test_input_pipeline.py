"""Shuffling, binarization and flips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import sere_jax
from experiments import input_pipeline
from sere_jax.data_space import binarize, dequantize


def test_every_epoch_visits_every_example_once_in_its_own_order():
    orders = [
        np.asarray(input_pipeline.epoch_order(jax.random.key(0), epoch, 100)) for epoch in (0, 1)
    ]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(100))
    assert not np.array_equal(*orders)


@pytest.mark.parametrize("max_value", [1, 16, 255])
def test_binarization_has_the_probability_of_the_grey_level(max_value):
    levels = np.unique(np.array([0, 1, max_value // 3, max_value - 1, max_value], np.uint8))
    num = 40_000
    images = np.broadcast_to(levels, (num, len(levels)))[:, None, :, None]
    keys = jax.random.split(jax.random.key(0), num)
    x = np.asarray(binarize(jnp.asarray(images), keys, max_value))
    assert set(np.unique(x)) <= {0.0, 1.0}
    probability = levels / max_value
    error = np.sqrt(probability * (1 - probability) / num)
    assert np.all(np.abs(x.mean(axis=(0, 1, 3)) - probability) <= 4 * error)


def test_black_is_never_and_white_is_always_drawn():
    keys = jax.random.split(jax.random.key(1), 4)
    for value, expected in ((0, 0.0), (255, 1.0)):
        images = jnp.full((4, 128, 256, 1), value, jnp.uint8)
        assert np.all(np.asarray(binarize(images, keys, 255)) == expected)


def test_binarization_of_an_example_depends_on_its_key_alone():
    images = jax.random.randint(jax.random.key(0), (6, 4, 4, 1), 0, 256).astype(jnp.uint8)
    keys = jax.random.split(jax.random.key(1), 6)
    together = binarize(images, keys, 255)
    alone = [binarize(images[i : i + 1], keys[i : i + 1], 255) for i in range(6)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("max_value", [16, 255])
def test_dequantization_spreads_each_value_evenly_over_its_share(max_value):
    levels = np.array([0, 1, max_value], np.uint8)
    num = 20_000
    images = np.broadcast_to(levels, (num, 3))[:, None, :, None]
    x = dequantize(jnp.asarray(images), jax.random.split(jax.random.key(0), num), max_value)
    noise = np.asarray(x, np.float64)[:, 0, :, 0] * (max_value + 1) - levels
    assert x.dtype == jnp.float32
    for column in noise.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3


def test_every_data_layer_gets_the_data_space_that_it_models():
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 3, 1), np.uint8)
    keys = jax.random.split(jax.random.key(0), 3)

    def in_data_space(data_layer):
        config = sere_jax.ModelConfig((2, 3, 1), 3, (2,), data_layer=data_layer)
        return np.asarray(input_pipeline.to_data_space(jnp.asarray(images), keys, config, 255))

    assert set(np.unique(in_data_space("bernoulli"))) <= {0.0, 1.0}
    np.testing.assert_array_equal(np.floor(256 * in_data_space("gaussian")), images)
    logits = in_data_space("masked_autoregressive_flow")
    pixels = (special.expit(logits.astype(np.float64)) - 0.05) / 0.9
    np.testing.assert_array_equal(np.floor(256 * pixels), images)
    config = sere_jax.ModelConfig((2, 3, 1), 3, (2,), data_layer="masked_autoregressive_flow")
    np.testing.assert_allclose(
        input_pipeline.to_grey_levels(logits, config), (images + 0.5) / 256, atol=0.51 / 256
    )


def test_half_of_the_images_are_mirrored():
    images = jnp.arange(6, dtype=jnp.uint8).reshape(1, 2, 3, 1)
    images = jnp.broadcast_to(images, (1000, 2, 3, 1))
    flipped = np.asarray(
        input_pipeline.flip_horizontally(images, jax.random.split(jax.random.key(0), 1000))
    )
    mirrored = np.all(flipped == np.asarray(images)[:, :, ::-1], axis=(1, 2, 3))
    same = np.all(flipped == np.asarray(images), axis=(1, 2, 3))
    assert np.all(mirrored ^ same)
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(1000)
