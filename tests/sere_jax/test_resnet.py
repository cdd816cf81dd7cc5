"""Residual networks: the convolution against that of XLA, and what may be combined."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sere_jax
from sere_jax.data_layer import create_data_layer
from sere_jax.networks.resnet import convolve, space_to_depth

MAPS = {
    "network": "resnet",
    "data_shape": (4, 4, 2),
    "num_layers": 4,
    "partition": "checkerboard",
    "latent_shape": (2, 2, 3),
}


def random_values(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(3, 5, 4, 2), (1, 1, 1, 3), (2, 1, 6, 1)], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_convolution_and_its_gradients_are_those_of_xla(monkeypatch, backend, shape):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    maps, kernel = random_values(*shape), random_values(3, 3, shape[-1], 4)
    cotangent = random_values(*shape[:-1], 4, seed=2)

    def reference(maps, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(maps, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    def value_and_gradients(function):
        value, pull_back = jax.vjp(function, maps, kernel)
        return value, *pull_back(cotangent)

    ours, expected = value_and_gradients(convolve), value_and_gradients(reference)
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_space_to_depth_puts_the_pixels_of_a_cell_into_its_channels():
    images = random_values(3, 4, 6, 2)

    cells = space_to_depth(images, (2, 3))

    assert cells.shape == (3, 2, 3, 8)
    for row, column in itertools.product(range(2), range(3)):
        cell = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(cells[:, row, column], cell.reshape(3, 8))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"latent_shape": (4, 4, 3)}, ["=(4, 4, 3) does not fit", "2x2", "(2, 2, channels)"]),
        ({"latent_shape": (2, 2)}, ["=(2, 2) does not fit", "2x2 pixels", "vector"]),
        (
            {"latent_shape": (1, 6, 3), "partition": "raster", "num_layers": 3},
            ["1x6 grid", "does not divide 4x4 pixels", "partition"],
        ),
    ],
    ids=str,
)
def test_codes_that_do_not_fit_the_blocks_are_refused(tiny_config, overrides, words):
    with pytest.raises(sere_jax.ConfigError) as refusal:
        sere_jax.create_model(tiny_config(**{**MAPS, **overrides}))
    for word in ["latent_shape", *words]:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("network", "latent_shape"), [("resnet", (2, 2, 3)), ("resnet", (3,)), ("mlp", (3,))]
)
def test_rematerialization_changes_neither_values_nor_gradients(
    random_model, network, latent_shape
):
    overrides = {**MAPS, "network": network, "latent_shape": latent_shape}
    x = (random_values(5, 4, 4, 2) > 0).astype(np.float32)
    results = []
    for rematerialize in (False, True):
        model, params = random_model(**overrides, rematerialize=rematerialize)

        @jax.jit
        @jax.value_and_grad
        def loss(params, model=model):
            return jnp.mean(sere_jax.elbo(model, params, x, jax.random.key(0)))

        results.append(loss(params))
        assert ("remat" in str(jax.make_jaxpr(loss)(params))) == rematerialize
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *results)


def test_a_code_reaches_the_positions_around_it_and_no_others(random_model):
    """Two convolutions lie between a code and the prior of the next layer."""
    model, params = random_model(
        **{**MAPS, "data_shape": (16, 16, 1), "latent_shape": (8, 8, 1), "bijector": "identity"}
    )

    def next_prior_mean(noise):
        out = model.apply({"params": params}, jnp.zeros((1, 16, 16, 1)), noise)
        return out.prior_mean[0, 1, :, :, 0]

    noise = jnp.zeros((4, 1, 8, 8, 1))
    corner = noise.at[0, 0, 0, 0, 0].set(1.0)
    compute = jax.jit(next_prior_mean)
    change = np.asarray(compute(corner)) - np.asarray(compute(noise))

    reached = np.zeros((8, 8), bool)
    reached[:3, :3] = True
    np.testing.assert_array_equal(change != 0, reached)


def test_with_data_channels_data_layers_are_convolutions_of_the_previous_blocks(
    tiny_config, random_module
):
    """Three convolutions lie between a pixel of a previous block and the parameters of the next."""
    config = {"data_shape": (16, 16, 1), "latent_shape": (3,), "data_channels": 2}
    layer = create_data_layer(tiny_config(**{**MAPS, **config}), (8, 8, 1))
    inputs = random_values(3), random_values(1, 8, 8, 1)

    def logit_in_the_corner(layer, z, previous):
        return layer(z, layer.observe(previous))[0, 0, 0]

    params = random_module(layer, *inputs, method=logit_in_the_corner)
    logit = functools.partial(layer.apply, params, method=logit_in_the_corner)
    by_codes, by_pixels = jax.jit(jax.grad(logit, argnums=(0, 1)))(*inputs)

    reached = np.zeros((8, 8), bool)
    reached[:4, :4] = True
    np.testing.assert_array_equal(by_pixels[0, :, :, 0] != 0, reached)
    assert (by_codes != 0).all()
