"""Interpolation between images: its ends, its path, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

import sere_jax
from sere_jax.interpolation import on_great_circle

MODELS = {
    "paper": {},
    "longer_memory": {"context": 2, "data_context": 3, "encoder": "shared"},
    "unequal_latents": {"latent_shape": (3,), "latent_sizes": (1, 3, 2)},
    "maps": {"latent_shape": (2, 1, 2)},
    "state": {"latent_shape": (2, 1, 2), "state_size": 3},
    "standard_normal": {"prior": "standard_normal", "bijector": "inverse_autoregressive"},
    "grey": {"data_layer": "gaussian", "data_scale": 0.3},
    "ladder": {"system": "ladder_vae", "latent_shape": (4,), "latent_sizes": (4, 2, 1)},
    "iaf": {"system": "iaf_vae", "num_layers": 1, "latent_shape": (3,)},
    "relaxed_bernoulli": {
        "system": "relaxed_bernoulli_vae",
        "num_layers": 1,
        "latent_shape": (3,),
    },
}


@pytest.fixture
def ends():
    return np.random.default_rng(0).integers(0, 2, (2, 2, 3, 1)).astype(np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_the_ends_are_the_reconstructions_of_both_images(random_model, ends, name):
    model, params = random_model(**MODELS[name])
    for seed in range(3):
        key = jax.random.key(seed)
        images = sere_jax.interpolate(model, params, *ends, key, 4)

        assert images.shape == (4, 2, 3, 1)
        for place, end in ((0, ends[:1]), (-1, ends[1:])):
            expected = sere_jax.reconstruct(model, params, end, key, expected=True)
            np.testing.assert_allclose(images[place], expected[0], rtol=1e-3, atol=1e-4)
        assert np.abs(images[1] - images[0]).max() > 1e-3


def test_the_way_from_an_image_to_itself_stays_there(random_model, ends):
    model, params = random_model()
    images = sere_jax.interpolate(model, params, ends[0], ends[0], jax.random.key(0), 5)
    np.testing.assert_allclose(images, np.broadcast_to(images[0], images.shape), atol=1e-5)


def test_the_path_is_a_rotation_of_the_start_into_the_end():
    generator = np.random.default_rng(0)
    start, other = generator.normal(size=(2, 6))
    first = start / np.linalg.norm(start)
    second = other - (other @ first) * first
    second /= np.linalg.norm(second)
    for angle in (0.01, 1.0, 2.0, 3.1):
        plane = angle * (np.outer(second, first) - np.outer(first, second))
        end = linalg.expm(plane) @ start
        for part in (0.0, 0.3, 0.5, 1.0):
            ours = on_great_circle(jnp.float32(start), jnp.float32(end), part)
            expected = linalg.expm(part * plane) @ start
            np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("factor", [1.0, 1.0001, 3.0, -1.0])
def test_where_there_is_no_great_circle_the_path_is_straight(factor):
    start = jnp.array([1.0, -2.0, 0.5])
    for part in (0.0, 0.25, 1.0):
        ours = on_great_circle(start, factor * start, part)
        np.testing.assert_allclose(ours, (1 - part + part * factor) * start, atol=1e-6)


def test_a_path_to_noise_of_no_length_arrives():
    start = jnp.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(on_great_circle(start, 0 * start, 0.0), start)
    np.testing.assert_allclose(on_great_circle(start, 0 * start, 1.0), 0 * start, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"num": 1}, ValueError, "num=1 must be at least 2"),
        ({"num": 2.0}, TypeError, "num=2.0 must be an integer, at least 2"),
        ({"x_end": np.zeros((1, 2, 3, 1))}, ValueError, "x has the shape .1, 1, 2, 3, 1."),
        ({"x_start": np.zeros((3, 2, 1))}, ValueError, "x has the shape .1, 3, 2, 1."),
        ({"x_end": np.full((2, 3, 1), 255, np.uint8)}, ValueError, "x holds the value 255"),
        ({"x_start": np.full((2, 3, 1), 0.25)}, ValueError, "0.25, which is no whole number"),
        ({"key": 0}, TypeError, "key is int"),
    ],
)
def test_what_cannot_be_interpolated_is_refused(random_model, ends, overrides, error, message):
    model, params = random_model()
    arguments = {"x_start": ends[0], "x_end": ends[1], "key": jax.random.key(0), "num": 3}
    with pytest.raises(error, match=message):
        sere_jax.interpolate(model, params, **arguments | overrides)
