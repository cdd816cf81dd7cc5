"""From uint8 images to x and back to pictures."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import sere_jax
from sere_jax.data_space import binarize, dequantize


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


def uint8_images(*shape, high=256):
    return np.random.default_rng(0).integers(0, high, shape, np.uint8)


def test_every_data_layer_gets_the_data_space_that_it_models(tiny_config):
    images = uint8_images(5, 2, 3, 1)

    def both_ways(data_layer):
        model = sere_jax.create_model(tiny_config(data_layer=data_layer))
        x = sere_jax.to_data_space(model, images, jax.random.key(0))
        return np.asarray(x), np.asarray(sere_jax.to_pixels(model, x))

    x, pixels = both_ways("bernoulli")
    assert set(np.unique(x)) <= {0.0, 1.0}
    np.testing.assert_array_equal(pixels, x)
    x, pixels = both_ways("gaussian")
    np.testing.assert_array_equal(np.floor(256 * x), images)
    np.testing.assert_array_equal(pixels, x)
    x, pixels = both_ways("discretized_logistic_mixture")
    np.testing.assert_array_equal(x, images)
    np.testing.assert_allclose(pixels, images / 255, rtol=1e-6)
    x, pixels = both_ways("masked_autoregressive_flow")
    expected = (special.expit(x.astype(np.float64)) - 0.05) / 0.9
    np.testing.assert_array_equal(np.floor(256 * expected), images)
    np.testing.assert_allclose(pixels, expected, atol=1e-6)


def test_an_image_has_the_same_x_in_every_batch_with_its_own_key_and_under_jit(tiny_config):
    model = sere_jax.create_model(tiny_config(data_layer="gaussian"))
    images, keys = uint8_images(5, 2, 3, 1, high=17), jax.random.split(jax.random.key(0), 5)
    x = sere_jax.to_data_space(model, images, keys, max_value=16)
    part = jax.jit(lambda images: sere_jax.to_data_space(model, images, keys[3:], 16))(images[3:])
    np.testing.assert_array_equal(part, x[3:])
    np.testing.assert_array_equal(np.floor(17 * x), images)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (np.zeros((5, 2, 3, 1)), {}, TypeError, "images are float64; they must be uint8"),
        ([[0]], {}, TypeError, "images are list; they must be uint8"),
        (
            uint8_images(5, 3, 2, 1),
            {},
            ValueError,
            r"images has the shape \(5, 3, 2, 1\)",
        ),
        (
            np.full((1, 2, 3, 1), 17, np.uint8),
            {"max_value": 16},
            ValueError,
            "images holds the value 17, outside 0 to 16; give max_value",
        ),
        (
            uint8_images(5, 2, 3, 1),
            {"max_value": 0},
            ValueError,
            "max_value=0 must be from 1 to 255",
        ),
        (
            uint8_images(5, 2, 3, 1),
            {"max_value": 256},
            ValueError,
            "max_value=256 must be from 1 to 255",
        ),
        (uint8_images(5, 2, 3, 1), {"max_value": 1.0}, TypeError, "max_value=1.0 .* an integer"),
        (uint8_images(5, 2, 3, 1), {"max_value": True}, TypeError, "max_value=True .* an integer"),
        (
            uint8_images(5, 2, 3, 1, high=17),
            {"max_value": 16},
            ValueError,
            "max_value=16 must be 255 for data_layer='discretized_logistic_mixture'",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(tiny_config, images, options, error, message):
    model = sere_jax.create_model(tiny_config(data_layer="discretized_logistic_mixture"))
    with pytest.raises(error, match=message):
        sere_jax.to_data_space(model, images, jax.random.key(0), **options)


@pytest.mark.parametrize(
    ("data_layer", "value", "fault"),
    [
        ("bernoulli", 2.0, "outside 0.0 to 1.0"),
        ("bernoulli", np.nan, "outside 0.0 to 1.0"),
        ("bernoulli", 0.25, "which is no whole number"),
        ("discretized_logistic_mixture", -1.0, "outside 0.0 to 255.0"),
        ("discretized_logistic_mixture", 7.5, "which is no whole number"),
    ],
)
def test_x_outside_of_the_data_space_is_refused_with_the_way_out(
    random_model, data_layer, value, fault
):
    model, params = random_model(data_layer=data_layer)
    x = np.zeros((2, 2, 3, 1), np.float32)
    x[1, 0, 2] = value
    with pytest.raises(ValueError, match=f"holds the value {value}, {fault}; sere_jax.to"):
        sere_jax.elbo(model, params, x, jax.random.key(0))


def test_a_gaussian_data_layer_takes_any_real_number(random_model):
    model, params = random_model(data_layer="gaussian")
    x = np.linspace(-3, 4, 6, dtype=np.float32).reshape(1, 2, 3, 1)
    assert np.isfinite(sere_jax.elbo(model, params, x, jax.random.key(0))).all()
    np.testing.assert_array_equal(sere_jax.to_pixels(model, x), x.clip(0, 1))


IMPOSSIBLE = [
    ("bernoulli", (np.nan, np.inf, 0.5, 2.0)),
    ("gaussian", (np.nan, np.inf, -np.inf, 1e300)),
    ("discretized_logistic_mixture", (np.nan, -1.0, 0.5, 256.0)),
    ("masked_autoregressive_flow", (np.nan, np.inf)),
]


@pytest.mark.parametrize(("data_layer", "values"), IMPOSSIBLE, ids=lambda value: str(value))
def test_impossible_values_are_refused_by_all_functions(random_model, data_layer, values):
    model, params = random_model(data_layer=data_layer)
    good, key = np.zeros((2, 2, 3, 1)), jax.random.key(0)
    functions = [
        lambda x: sere_jax.init(model, key, x),
        lambda x: sere_jax.to_pixels(model, x),
        lambda x: sere_jax.interpolate(model, params, good[0], x[1], key, 3),
        lambda x: sere_jax.interpolate(model, params, x[1], good[0], key, 3),
    ]
    for name in ("infer", "elbo", "log_likelihood", "reconstruct", "objective"):
        function = getattr(sere_jax, name)
        functions.append(lambda x, function=function: function(model, params, x, key))
    for value in values:
        x = good.copy()
        x[1, 0, 2] = value
        for index, function in enumerate(functions):
            if index == 1 and value == 0.5:
                assert np.isfinite(function(x)).all()  # an expectation may be that
                continue
            for given in (x, x.astype(">f8"), x.tolist()):
                with pytest.raises(ValueError, match=re.escape(f"x holds the value {value}")):
                    function(given)


def test_pictures_of_another_shape_are_refused(random_model):
    model, _ = random_model()
    with pytest.raises(ValueError, match=r"x has the shape \(2, 3, 1\)"):
        sere_jax.to_pixels(model, np.zeros((2, 3, 1)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1, 255.0])
def test_pixels_outside_of_the_unit_interval_have_no_logits(value):
    with pytest.raises(ValueError, match=f"pixels holds the value {value}"):
        sere_jax.logit_transform(np.array([0.5, value]))


@pytest.mark.parametrize("alpha", [0.5, 0.6, 0.0, -0.1, np.nan])
@pytest.mark.parametrize(
    "function",
    [sere_jax.logit_transform, sere_jax.inverse_logit_transform, sere_jax.logit_log_det],
)
def test_an_alpha_without_finite_logits_is_refused(function, alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha} must be above 0 and below 0.5; .* 0.05"):
        function([0.5], alpha)


@pytest.mark.parametrize("function", [sere_jax.inverse_logit_transform, sere_jax.logit_log_det])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(function, value):
    with pytest.raises(ValueError, match=f"x holds the value {value}"):
        function([0.0, value])


def test_logits_and_pixels_may_be_lists_of_any_byte_order():
    pixels = np.array([[0.0, 0.25], [0.5, 1.0]], np.float32)
    x = sere_jax.logit_transform(pixels)
    for given in (pixels.astype(">f4"), pixels.tolist(), list(pixels), jnp.asarray(pixels)):
        np.testing.assert_allclose(sere_jax.logit_transform(given), x, rtol=1e-6, atol=1e-7)
    for function in (sere_jax.inverse_logit_transform, sere_jax.logit_log_det):
        for given in (np.asarray(x).astype(">f4"), list(x)):
            np.testing.assert_allclose(function(given), function(x), rtol=1e-6)
