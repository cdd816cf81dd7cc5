"""Sums of many values under `jit`, against float64: XLA on CPUs is known to get some wrong."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import sere_jax

PROGRAM = """
import jax, numpy as np, sere_jax
from sere_jax import compilation
from sere_jax.posterior import Residual, kl_divergence
from sere_jax.prior import Prior

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
np.testing.assert_allclose(compilation.jit(several)(scale), expected, rtol=1e-4, atol=1e-4)

config = sere_jax.ModelConfig(data_shape=(4, 4, 1), num_layers=4, latent_shape=(10,))
model = sere_jax.create_model(config)
params = sere_jax.init(model, jax.random.key(0))
x = random.integers(0, 2, (2000, 4, 4, 1)).astype(np.float32)
out = sere_jax.infer(model, params, x, jax.random.key(1))
m, s = np.float64(out.prior_mean), np.float64(out.prior_scale)
d, r = np.float64(out.residual_mean), np.float64(out.residual_scale)
expected = ((d - (1 - r) * m) ** 2 / (2 * s**2) + r**2 / 2 - np.log(r) - 0.5).sum(-1)
np.testing.assert_allclose(out.kl, expected, rtol=1e-3, atol=1e-4)
elbo = sere_jax.elbo(model, params, x, jax.random.key(1))
np.testing.assert_allclose(elbo, out.log_likelihood - expected.sum(-1), rtol=1e-4)
"""


@pytest.mark.parametrize("flags", ["", "--xla_force_host_platform_device_count=2"])
def test_sums_of_many_values_are_right_whatever_the_flags_of_xla(flags):
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True)


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
