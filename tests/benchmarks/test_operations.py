"""Counts of operations beside XLA's of programs without loops, and beside arithmetic."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sere_jax
from benchmarks import importance, operations, production, unrolled
from configs import cifar_checkerboard, mnist_mlp
from sere_jax.config import model_config

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "scaling.md"


def experiments():
    mlp = mnist_mlp.get_config()
    mlp.model.num_layers = 2
    resnet = cifar_checkerboard.get_config("data_context4")
    resnet.model.update(num_layers=4, latent_shape=(16, 16, 2), hidden_size=128, num_mixtures=5)
    return [mlp, resnet]


def shapes_of(model, batch_size):
    params = jax.eval_shape(functools.partial(sere_jax.init, model), jax.random.key(0))
    return params, jax.ShapeDtypeStruct((batch_size, *model.config.data_shape), jnp.float32)


def operations_by_xla(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize("config", experiments(), ids=["mlp", "resnet"])
def test_operations_of_a_gradient_are_those_of_its_program(config):
    batch_size = 200 if config.model.network == "mlp" else 4
    model = unrolled.UnrolledSeReVAE(model_config(config))

    def objective(params, x):
        return jnp.mean(sere_jax.objective(model, params, x, jax.random.key(0)).value)

    counted = operations.of_training(config, batch_size)
    program = operations_by_xla(jax.grad(objective), *shapes_of(model, batch_size))
    assert counted == pytest.approx(program, rel=0.04)


def test_operations_of_the_likelihood_are_those_of_its_program():
    checked = model_config(experiments()[0])
    model = unrolled.UnrolledSeReVAE(checked)
    params, x = shapes_of(model, 20)

    def log_weights(params, x, noise):
        variables = {"params": params}
        observed = model.apply(variables, x, method="observe")
        return model.apply(variables, x, observed, noise, method="log_weights")

    num_layers, *event_shape = model.noise_shape
    noise = jax.ShapeDtypeStruct((num_layers, 30, 20, *event_shape), jnp.float32)
    scanned = sere_jax.create_model(checked)
    counted = operations.of_likelihood(scanned, num_images=20, num_samples=30)
    program = operations_by_xla(log_weights, params, x, noise)
    assert counted == pytest.approx(program, rel=0.04)


def test_operations_of_an_mlp_are_those_of_its_layers():
    values, layers, codes, width, block, batch = 16, 4, 2, 8, 4, 5
    config = mnist_mlp.get_config()
    config.model.update(
        data_shape=(4, 4, 1), num_layers=layers, latent_shape=(codes,), hidden_size=width
    )
    square = width * width
    # What reads the image and the block before: data need no gradient.
    of_data = values * width + block * width
    of_image = of_data + 3 * square
    # Prior, posterior and bijector; the data layer by itself, and with the block before.
    of_codes = 3 * (codes * width + square) + width * (2 + 2 + 3) * codes
    of_codes += 2 * (codes * width + square + width * block)
    expected = 2 * batch * layers * (3 * (of_image + of_codes) - of_data)
    assert operations.of_training(config, batch) == expected
    model = sere_jax.create_model(config)
    expected = 2 * batch * layers * (of_image + 30 * of_codes)
    assert operations.of_likelihood(model, batch, num_samples=30) == expected


def test_loops_count_as_often_as_they_run():
    a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 5), (5, 5)))
    once = 2 * 3 * 5 * 5

    def scanned(a, b):
        return jax.lax.scan(lambda a, _: (a @ b, None), a, length=7)[0]

    def nested(a, b):
        return jax.lax.fori_loop(0, 4, lambda _, a: jax.jit(scanned)(a, b), a)

    def either(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: scanned(a, b), lambda: a)

    def unused(a, b):
        return scanned(a, b), jnp.sum(a @ b)

    def unknown(a, b):
        return jax.lax.while_loop(lambda a: a[0, 0] > 0, lambda a: a @ b, a)

    assert operations.count(scanned, a, b) == 7 * once
    assert operations.count(nested, a, b) == 28 * once
    assert operations.count(either, a, b) == 7 * once
    assert operations.count(lambda a, b: unused(a, b)[0], a, b) == 7 * once
    assert operations.count(jax.checkpoint(unused), a, b) == 8 * once
    with pytest.raises(ValueError, match="unknown length"):
        operations.count(unknown, a, b)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_and_their_gradients_are_counted(groups):
    image = jax.ShapeDtypeStruct((2, 9, 8, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 2, 4 // groups, 6), jnp.float32)

    def convolve(image, kernel):
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "VALID", dimension_numbers=names, feature_group_count=groups
        )

    forward = 2 * (2 * 7 * 7 * 6) * (3 * 2 * 4 // groups)
    assert operations.count(convolve, image, kernel) == forward
    assert operations_by_xla(convolve, image, kernel) == forward
    gradient = jax.grad(lambda image, kernel: jnp.sum(convolve(image, kernel) ** 2), argnums=1)
    assert operations.count(gradient, image, kernel) == 2 * forward


@pytest.mark.parametrize("name", ["window_strides", "lhs_dilation", "rhs_dilation"])
def test_convolutions_with_borders_are_counted_as_xla_does(name):
    """Zeros of a border, and between pixels, are not multiplied."""
    image = jax.ShapeDtypeStruct((2, 9, 8, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.float32)
    options = {"window_strides": (1, 1), name: (2, 3)}

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            image,
            kernel,
            padding=((1, 2), (3, 0)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            **options,
        )

    assert operations.count(convolve, image, kernel) == operations_by_xla(convolve, image, kernel)


def test_the_page_has_the_rows():
    page = PAGE.read_text()
    for row in operations.rows().splitlines():
        assert row in page


def test_repeated_images_have_the_same_likelihood(quick_compilation):
    config = production.reduced_mlp(mnist_mlp.get_config(), quick=True)
    model = sere_jax.create_model(config)
    params = sere_jax.init(model, jax.random.key(0))
    x = jnp.asarray(production.random_images(config, 3) > 127, jnp.float32)
    arguments = (model, params, x, jax.random.key(1), 20)
    ours = sere_jax.log_likelihood(*arguments)
    theirs = importance.log_likelihood_of_repeated_images(*arguments)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
