"""Sums of many values under `jit`, against float64: XLA on CPUs is known to get some wrong."""

import contextlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import EMITTERS
from jax.flatten_util import ravel_pytree

import sere_jax
from sere_jax import compilation, xla_flag

PROGRAM = """
import sys, warnings
import jax, numpy as np

if sys.argv[1] == "late":
    jax.jit(lambda x: x + 1)(1.0)  # from now on XLA heeds no flags
import sere_jax
from sere_jax import compilation
from sere_jax.posterior import Residual, kl_divergence
from sere_jax.prior import Prior

is_right = sys.argv[1] != "late" and "=reduce" not in sys.argv[2] or not compilation.is_faulty()
random = np.random.default_rng(0)
mean, shift = random.normal(size=(2, 2000, 10)).astype(np.float32)
scale = random.uniform(0.2, 2, (2000, 10)).astype(np.float32)
log_scale = -random.uniform(0.001, 0.5, (2000, 10)).astype(np.float32)

def kl(mean, scale, shift, log_scale):
    return kl_divergence(Prior(mean, scale), Residual(shift, log_scale)).sum(-1)

m, s, d, r = (np.float64(a) for a in (mean, scale, shift, np.exp(np.float64(log_scale))))
expected = ((d - (1 - r) * m) ** 2 / (2 * s**2) + r**2 / 2 - np.log(r) - 0.5).sum(-1)
np.testing.assert_allclose(jax.jit(kl)(mean, scale, shift, log_scale), expected, rtol=1e-4)

def several(x):
    return (jax.numpy.log(x) + jax.numpy.log(2 * x) + jax.numpy.expm1(-x)).sum(-1)

expected = (2 * np.log(s) + np.log(2) + np.expm1(-s)).sum(-1)
for jit in (compilation.jit, jax.jit) if is_right else (compilation.jit,):
    np.testing.assert_allclose(jit(several)(scale), expected, rtol=1e-4, atol=1e-4)
x = np.linspace(0.1, 2, 4096, dtype=np.float32)
found = (jax.jit if is_right else compilation.jit)(
    lambda x: jax.numpy.sum(jax.numpy.expm1(x) + jax.numpy.expm1(2 * x), axis=-1)
)(x)
np.testing.assert_allclose(found, np.sum(np.expm1(np.float64(x)) + np.expm1(2 * np.float64(x))))

config = sere_jax.ModelConfig(data_shape=(4, 4, 1), num_layers=2, latent_shape=(10,))
model = sere_jax.create_model(config)
params = sere_jax.init(model, jax.random.key(0))
x = random.integers(0, 2, (2000, 4, 4, 1)).astype(np.float32)
out = sere_jax.infer(model, params, x, jax.random.key(1))
m, s = np.float64(out.prior_mean), np.float64(out.prior_scale)
d, r = np.float64(out.residual_mean), np.float64(out.residual_scale)
expected = ((d - (1 - r) * m) ** 2 / (2 * s**2) + r**2 / 2 - np.log(r) - 0.5).sum(-1)
np.testing.assert_allclose(out.kl, expected, rtol=1e-3, atol=1e-4)
expected = out.log_likelihood - expected.sum(-1)
elbo = sere_jax.elbo(model, params, x, jax.random.key(1))
np.testing.assert_allclose(elbo, expected, rtol=1e-4)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for jit in (jax.jit, compilation.jit, jax.jit):
        elbo = jit(lambda p: sere_jax.elbo(model, p, x, jax.random.key(1)))(params)
        if is_right or jit is compilation.jit:
            np.testing.assert_allclose(elbo, expected, rtol=1e-4)
messages = [str(warning.message) for warning in told if warning.category is RuntimeWarning]
assert len(messages) == (not is_right), messages
assert is_right or compilation.FLAG in messages[0]
print("right" if is_right else "told")
"""


@pytest.mark.parametrize(
    ("flags", "when"),
    [
        ("", "first"),
        ("", "late"),
        ("--xla_force_host_platform_device_count=2", "first"),
        ("its default", "first"),
    ],
)
def test_sums_of_many_values_are_right_whatever_the_flags_of_xla(flags, when):
    if flags == "its default" and xla_flag.is_known(xla_flag.OPTION):
        flags = f"--{xla_flag.OPTION}=reduce,individual_dot,individual_convolution"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
    arguments = [sys.executable, "-c", PROGRAM, when, flags]
    finished = subprocess.run(
        arguments, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    assert finished.stdout in ("right\n", "told\n")
    if when == "first" and "reduce" not in flags:
        assert finished.stdout == "right\n"


def test_the_probe_is_right_in_these_tests():
    assert not compilation.is_faulty()


def test_the_probe_may_be_asked_while_a_function_is_traced():
    compilation._is_right.cache_clear()
    assert jax.jit(lambda x: x + compilation.is_faulty())(jnp.zeros(())) == 0


def test_a_version_that_no_option_mends_is_refused(monkeypatch):
    monkeypatch.setattr(compilation, "_is_right", lambda options: False)
    compilation._right_options.cache_clear()
    with pytest.raises(RuntimeError, match=f"jaxlib {jax.lib.__version__} computes wrong sums"):
        compilation.jit(lambda x: x + 1)(1.0)
    compilation._right_options.cache_clear()


def test_where_jit_is_wrong_functions_get_the_first_option_that_is_right(monkeypatch):
    monkeypatch.setattr(compilation, "_is_right", lambda options: options != ())
    compilation._right_options.cache_clear()
    assert compilation._right_options() == ((xla_flag.OPTION, compilation._VALUES[0]),)
    compilation._right_options.cache_clear()


def test_an_option_that_xla_does_not_know_is_not_right():
    assert not compilation._is_right((("xla_cpu_no_such_option", ""),))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, xla_flag.FLAG),
        ("--a=1", f"--a=1 {xla_flag.FLAG}"),
        (f"--{xla_flag.OPTION}=dot --a=1", f"--{xla_flag.OPTION}=dot --a=1"),
    ],
)
def test_the_flag_is_added_to_those_there_are_but_never_overrides(monkeypatch, before, after):
    monkeypatch.setattr(xla_flag, "is_known", lambda option: True)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if before is not None:
        monkeypatch.setenv("XLA_FLAGS", before)
    xla_flag.set_flag()
    assert os.environ["XLA_FLAGS"] == after


def test_a_version_that_does_not_know_the_flag_does_not_get_it(monkeypatch):
    monkeypatch.setattr(xla_flag, "OPTION", "xla_cpu_no_such_option")
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    xla_flag.is_known.cache_clear()
    xla_flag.set_flag()
    xla_flag.is_known.cache_clear()
    assert os.environ["XLA_FLAGS"] == "--a=1"


AS_XLA_DOES = {EMITTERS: True} if xla_flag.is_known(EMITTERS) else {}


@contextlib.contextmanager
def optimized():
    """Compiles as users do, with the fusions that could be wrong."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


LAYERS = {
    "bernoulli": {},
    "gaussian": {"data_layer": "gaussian"},
    "logistics": {"data_layer": "discretized_logistic_mixture", "num_mixtures": 2},
    "flow": {"data_layer": "masked_autoregressive_flow", "flow_hidden_size": 32},
    "plain flow": {
        "data_layer": "masked_autoregressive_flow",
        "flow_hidden_size": 32,
        "num_layers": 1,
        "latent_shape": (0,),
        "couple_data": False,
    },
    "spline": {"bijector": "spline_coupling"},
    "resnet": {"network": "resnet", "partition": "checkerboard", "num_layers": 4},
    "ladder": {"system": "ladder_vae"},
    "iaf": {"system": "iaf_vae", "num_layers": 1},
    "relaxed": {"system": "relaxed_bernoulli_vae", "num_layers": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("overrides", LAYERS.values(), ids=LAYERS)
def test_bounds_and_gradients_of_all_systems_and_layers_are_those_of_float64(
    overrides, random_model
):
    sizes = {"data_shape": (8, 8, 1), "num_layers": 2, "latent_shape": (4,), "hidden_size": 16}
    model, params = random_model(**(sizes | overrides))
    x = np.random.default_rng(0).integers(0, 2, (300, 8, 8, 1)).astype(np.float32)
    num_layers, *event_shape = model.noise_shape
    shape = (num_layers, 3, 300, *event_shape)
    noise = jax.random.uniform(jax.random.key(0), shape, minval=0.1)

    def bounds(params, x, noise):
        def apply(*arguments, method):
            return model.apply({"params": params}, *arguments, method=method)

        log_likelihood, kl = apply(x, noise[:, 0], method="elbo_terms")
        elbo = log_likelihood - jnp.sum(kl, axis=-1)
        observed = apply(x, method="observe")
        log_likelihood, ratio = apply(x, observed, noise, method="log_weights")
        return elbo, jax.nn.logsumexp(log_likelihood + ratio, axis=0)

    def mean_bound(params, x, noise):
        both = bounds(params, x, noise)
        return jnp.mean(both[0] + both[1]), both

    differentiated = jax.value_and_grad(mean_bound, has_aux=True)
    with optimized():
        as_users_do = jax.jit(differentiated, compiler_options=AS_XLA_DOES)
        (_, found), gradient = as_users_do(params, x, noise)
    with jax.enable_x64(True):
        exact = jax.tree.map(np.float64, (params, x, noise))
        (_, expected), exact_gradient = jax.jit(differentiated)(*exact)
    assert expected[0].dtype == np.float64
    for bound, exact_bound in zip(found, expected, strict=True):
        np.testing.assert_allclose(bound, exact_bound, rtol=2e-4, atol=1e-2)
    gradient, exact_gradient = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (gradient, exact_gradient)
    )
    error = np.linalg.norm(gradient - exact_gradient)
    assert error < 2e-3 * np.linalg.norm(exact_gradient)


def test_public_functions_may_be_transformed(random_model):
    model, params = random_model()
    x, key = jnp.zeros((3, 2, 3, 1)), jax.random.key(0)

    def elbo(params, x):
        return sere_jax.elbo(model, params, x, key).sum()

    expected = elbo(params, x)
    np.testing.assert_allclose(jax.jit(lambda: elbo(params, x))(), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(lambda x: elbo(params, x[None]))(x).shape, (3,))
    assert jax.eval_shape(elbo, params, x).shape == ()
    gradient, _ = ravel_pytree(jax.jit(jax.grad(elbo))(params, x))
    np.testing.assert_allclose(
        ravel_pytree(jax.grad(elbo)(params, x))[0], gradient, rtol=1e-4, atol=1e-5
    )
    start, unravel = ravel_pytree(params)
    norm = jnp.linalg.norm(gradient)

    def elbo_at(distance):
        return elbo(unravel(start + distance * gradient / norm), x)

    np.testing.assert_allclose((elbo_at(1e-2) - elbo_at(-1e-2)) / 2e-2, norm, rtol=0.02)
