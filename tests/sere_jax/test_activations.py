"""Activations and their gradients against closed forms in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.networks import activations

X = np.concatenate([np.linspace(-30.0, 30.0, 601), np.linspace(-1e-3, 1e-3, 201)])
EXPECTED = {
    "elu": (np.where(X > 0, X, np.expm1(np.minimum(X, 0))), np.exp(np.minimum(X, 0))),
    "tanh": (np.tanh(X), 1 / np.cosh(X) ** 2),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_values_and_gradients_are_those_of_float64(name):
    function, (value, slope) = getattr(activations, name), EXPECTED[name]
    x = jnp.float32(X)
    np.testing.assert_allclose(function(x), value, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(jax.vmap(jax.grad(function))(x), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_backward_pass_keeps_the_result_alone(name):
    y, pullback = jax.vjp(getattr(activations, name), jnp.float32(X))
    (kept,) = (leaf for leaf in jax.tree.leaves(pullback) if np.ndim(leaf))
    np.testing.assert_array_equal(kept, y)


@pytest.mark.parametrize("name", EXPECTED)
def test_infinite_and_undefined_values_pass_through(name):
    x = jnp.array([jnp.inf, -jnp.inf, jnp.nan])
    values, slopes = (
        getattr(activations, name)(x),
        jax.vmap(jax.grad(getattr(activations, name)))(x),
    )
    np.testing.assert_array_equal(values[1:], [-1.0, jnp.nan])
    np.testing.assert_array_equal(slopes, [1.0 if name == "elu" else 0.0, 0.0, jnp.nan])
