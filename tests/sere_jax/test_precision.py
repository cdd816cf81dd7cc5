"""Products in bfloat16: what is rounded, what is not, and that nothing but the objective is."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from enumeration import all_images, replicated
from jax.extend import core

import sere_jax
import sere_jax.functions
from sere_jax.networks import resnet
from sere_jax.networks.mlp import LinearNetwork
from sere_jax.networks.products import Dense, matmul
from sere_jax.networks.stripes import MaskedKernel, cut_stripes

MAPS = {"data_shape": (4, 4, 1), "partition": "checkerboard", "num_layers": 4}
MODELS = {
    "mlp": {"num_hidden_layers": 3},
    "everything": {
        "context": 2,
        "data_context": 2,
        "couple_data_to_prior": True,
        "num_joint_layers": 1,
        "encoder": "shared",
    },
    "dropout": {"dropout": 0.3},
    "linear": {"network": "linear"},
    "residual_vectors": {"network": "resnet"},
    "residual_maps": {"network": "resnet", "latent_shape": (2, 2, 2), **MAPS},
    "residual_vectors_to_maps": {"network": "resnet", "data_channels": 4, **MAPS},
    "masked": {"bijector": "masked_autoregressive"},
    "inverse": {"bijector": "inverse_autoregressive"},
    "spline": {"bijector": "spline_coupling"},
    "flows": {"data_layer": "masked_autoregressive_flow", "flow_direct_connections": True},
    "ladder": {"system": "ladder_vae", "latent_shape": (4,), "latent_sizes": (4, 2, 1)},
    "iaf": {"system": "iaf_vae", "num_layers": 1, "latent_shape": (3,)},
    "relaxed": {"system": "relaxed_bernoulli_vae", "num_layers": 1, "latent_shape": (3,)},
}
in_bfloat16 = functools.partial(jax.default_matmul_precision, "bfloat16")


def rounded(values):
    """What bfloat16 keeps, in float64."""
    return np.asarray(values, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def dense(x, kernel):
    return Dense(kernel.shape[1], use_bias=False).apply({"params": {"kernel": kernel}}, x)


def striped(x, kernel):
    stripes = cut_stripes(np.full(kernel.shape[1], len(kernel)), 2)
    parts = tuple(kernel[:, stripe.start : stripe.stop] for stripe in stripes)
    empty = tuple(jnp.zeros((0, part.shape[1])) for part in parts)
    return MaskedKernel(parts, empty, (len(kernel),) * kernel.shape[1], stripes)(x)


@pytest.mark.parametrize("function", [dense, striped, matmul])
@pytest.mark.parametrize("batch", [(300,), (7, 3), (1,)])
def test_products_and_their_gradients_are_those_of_rounded_inputs(function, batch):
    x, kernel, cotangent = random(*batch, 400), random(400, 20), random(*batch, 20)

    @jax.jit
    def compute(x, kernel):
        with in_bfloat16():
            value, backward = jax.vjp(function, x, kernel)
        return value, *backward(cotangent)

    flat, out = rounded(x).reshape(-1, 400), rounded(cotangent).reshape(-1, 20)
    expected = (rounded(x) @ rounded(kernel), out @ rounded(kernel).T, flat.T @ out)
    for found, value in zip(compute(x, kernel), expected, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, value.reshape(found.shape), rtol=1e-4, atol=1e-4)
    exact = np.asarray(x, np.float64) @ kernel
    assert np.abs(expected[0] - exact).max() > 0.02  # so that rounding shows


def test_products_of_nothing_have_gradients():
    """As those of the network of spline couplings, where a layer has one latent."""

    @jax.jit
    def compute(x, kernel):
        with in_bfloat16():
            value, backward = jax.vjp(matmul, x, kernel)
        return value, *backward(jnp.ones_like(value))

    value, by_x, by_kernel = compute(np.zeros((7, 3, 0), np.float32), np.zeros((0, 20), np.float32))
    assert value.shape == (7, 3, 20) and not value.any()
    assert (by_x.shape, by_kernel.shape) == ((7, 3, 0), (0, 20))


def types_of_factors(function, *arguments):
    """What the compiled program of a function multiplies, such as ["bf16", "bf16"]."""
    program = jax.jit(function).lower(*arguments).compile().as_text()
    types = dict(re.findall(r"%([\w.-]+) = (\w+)\[", program))
    factors = re.findall(r" dot\(%([\w.-]+), %([\w.-]+)\)", program)
    return [types[name] for pair in factors for name in pair]


def in_a_loop(function):
    return lambda *arrays: jax.lax.map(lambda slices: function(*slices), arrays)


@pytest.mark.parametrize("over_layers", [jax.vmap, in_a_loop])
def test_gradients_of_kernels_multiply_bfloat16_on_machines_that_do(over_layers):
    def product(x, kernel):
        with in_bfloat16():
            return matmul(x, kernel)

    def by_kernel(x, kernel, cotangent):
        return jax.vjp(functools.partial(product, x), kernel)[1](cotangent)

    x, kernel, cotangent = random(3, 64, 96), random(3, 96, 32), random(3, 64, 32)
    expected = types_of_factors(over_layers(product), x, kernel)
    assert expected in (["bf16"] * 2, ["f32"] * 2)  # the latter where hardware has no bfloat16
    assert types_of_factors(over_layers(by_kernel), x, kernel, cotangent) == expected


def test_convolutions_and_their_gradients_are_those_of_rounded_inputs():
    maps, kernel, cotangent = random(5, 4, 6, 7), random(3, 3, 7, 8), random(5, 4, 6, 8)

    @jax.jit
    def compute(maps, kernel):
        with in_bfloat16():
            value, backward = jax.vjp(resnet.convolve, maps, kernel)
        return value, *backward(cotangent)

    padded = np.pad(rounded(maps), [(0, 0), (1, 1), (1, 1), (0, 0)])
    value = np.zeros((5, 4, 6, 8))
    by_padded, by_kernel = np.zeros_like(padded), np.zeros(kernel.shape)
    for i, j in np.ndindex(3, 3):
        part = padded[:, i : i + 4, j : j + 6]
        value += part @ rounded(kernel)[i, j]
        by_kernel[i, j] = np.einsum("bhwc,bhwd->cd", part, rounded(cotangent))
        by_padded[:, i : i + 4, j : j + 6] += rounded(cotangent) @ rounded(kernel)[i, j].T
    expected = (value, by_padded[:, 1:-1, 1:-1], by_kernel)
    for found, numbers in zip(compute(maps, kernel), expected, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, numbers, rtol=1e-4, atol=1e-4)


def test_hidden_layers_are_rounded_and_heads_are_not(tiny_config):
    network = LinearNetwork(tiny_config(hidden_size=30), (11,))
    codes, offset = random(50, 2), random(50, 30)
    variables = network.init(jax.random.key(0), codes, 1, offset)
    kernels = {name: layer["kernel"] for name, layer in variables["params"].items()}

    with in_bfloat16():
        found = network.apply(variables, codes, 1, offset)

    hidden = offset + rounded(codes) @ rounded(kernels["Dense_0"])
    np.testing.assert_allclose(found, hidden @ kernels["head"], rtol=1e-4, atol=1e-5)
    with_rounded_head = rounded(hidden) @ rounded(kernels["head"])
    assert np.abs(with_rounded_head - found).max() > 1e-3


@functools.cache
def gradient(model, num_samples, precision):
    def mean(params, x, keys):
        terms = sere_jax.objective(
            model, params, x, keys, num_samples=num_samples, precision=precision
        )
        return jnp.mean(terms.value), terms

    return jax.jit(jax.grad(mean, has_aux=True))


@pytest.mark.parametrize(
    ("name", "num_samples"), [*((name, 1) for name in MODELS), ("mlp", 3), ("relaxed", 3)]
)
def test_objective_and_gradient_are_near_those_of_float32(tiny_config, name, num_samples):
    model = sere_jax.create_model(tiny_config(**MODELS[name]))
    images = np.random.default_rng(0).integers(0, 256, (20, *model.config.data_shape))
    x = sere_jax.to_data_space(model, images.astype(np.uint8), jax.random.key(0))
    keys, params = (
        jax.random.split(jax.random.key(1), 20),
        sere_jax.init(model, jax.random.key(2), x),
    )

    (exact, terms), (short, short_terms) = (
        gradient(model, num_samples, precision)(params, x, keys)
        for precision in ("float32", "bfloat16")
    )

    assert not np.array_equal(terms.value, short_terms.value)
    np.testing.assert_allclose(short_terms.value, terms.value, rtol=0.02, atol=0.05)
    exact, short = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (exact, short)
    )
    distance = np.linalg.norm(exact - short) / np.linalg.norm(exact)
    assert 0 < distance < 0.03
    assert short.dtype == np.float32


def products(jaxpr):
    """All matrix products and convolutions of a program, the inner ones too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda leaf: isinstance(leaf, core.Jaxpr | core.ClosedJaxpr),
        ):
            if isinstance(inner, core.ClosedJaxpr):
                inner = inner.jaxpr
            if isinstance(inner, core.Jaxpr):
                yield from products(inner)


FUNCTIONS = {
    "infer": sere_jax.infer,
    "elbo": sere_jax.elbo,
    "log_likelihood": functools.partial(sere_jax.log_likelihood, num_samples=3),
    "reconstruct": sere_jax.reconstruct,
}


@pytest.mark.parametrize("name", ["mlp", "residual_maps", "flows", "spline", "ladder"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_other_functions_multiply_in_full_whatever_jax_is_set_to(tiny_config, name, function):
    model = sere_jax.create_model(tiny_config(**MODELS[name]))
    x, key = jnp.zeros((2, *model.config.data_shape)), jax.random.key(0)
    params = sere_jax.init(model, key)
    compute = functools.partial(FUNCTIONS[function], model)

    with in_bfloat16():
        found = list(products(jax.make_jaxpr(compute)(params, x, key).jaxpr))

    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert found
    for equation in found:
        assert equation.params["precision"] == highest
        assert all(variable.aval.dtype == jnp.float32 for variable in equation.invars)


def test_gradients_of_other_functions_are_in_full_too(tiny_config):
    model = sere_jax.create_model(tiny_config(**MODELS["flows"]))
    params = sere_jax.init(model, jax.random.key(0))
    x = jnp.zeros((2, *model.config.data_shape))

    def mean(params):
        return jnp.mean(sere_jax.elbo(model, params, x, jax.random.key(1)))

    for equation in products(jax.make_jaxpr(jax.grad(mean))(params).jaxpr):
        assert equation.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2


def test_the_precision_that_jax_is_set_to_changes_no_bit_of_a_likelihood(random_model):
    model, params = random_model(**MODELS["everything"])
    x, keys = replicated(all_images(model.config))
    compute = functools.partial(sere_jax.log_likelihood, model, params, x, keys, 3)

    expected = compute()
    for precision in ("bfloat16", "tensorfloat32", "highest"):
        with jax.default_matmul_precision(precision):
            np.testing.assert_array_equal(compute(), expected)


def test_the_objective_in_float32_has_the_precision_that_jax_is_set_to(tiny_config):
    model = sere_jax.create_model(tiny_config())
    x, params = jnp.zeros((2, 2, 3, 1)), sere_jax.init(model, jax.random.key(0))

    @jax.jit
    def compute(params):
        return sere_jax.objective(model, params, x, jax.random.key(1)).value

    for expected in (None, "highest", "bfloat16"):  # one compiled program for each
        with jax.default_matmul_precision(expected):
            found = list(products(jax.make_jaxpr(compute)(params).jaxpr))
        precisions = {equation.params["precision"] for equation in found}
        types = {equation.invars[0].aval.dtype for equation in found}
        highest = (jax.lax.Precision.HIGHEST,) * 2
        assert (precisions == {highest}) == (expected == "highest")
        assert (jnp.dtype(jnp.bfloat16) in types) == (expected == "bfloat16")


@pytest.mark.parametrize("precision", ["float16", "highest", ""])
def test_an_unknown_precision_is_refused(tiny_config, precision):
    model = sere_jax.create_model(tiny_config())
    params = sere_jax.init(model, jax.random.key(0))
    with pytest.raises(ValueError, match="must be one of: float32, bfloat16") as error:
        sere_jax.objective(
            model, params, np.zeros((1, 2, 3, 1)), jax.random.key(0), precision=precision
        )
    assert f"precision={precision!r}" in str(error.value)


def test_networks_have_the_parameters_of_plain_affine_maps():
    x = random(3, 4)
    ours, plain = (layer.init(jax.random.key(0), x) for layer in (Dense(5), nn.Dense(5)))
    jax.tree.map(np.testing.assert_array_equal, ours, plain)
