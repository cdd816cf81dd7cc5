"""The scan with its own gradient against JAX's, and the layers as GPUs compute them."""

import functools
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax import recurrence
from sere_jax.model import apply

recurrence_scan = recurrence.scan
LENGTH, BATCH, SIZE = 5, 7, 3
MAPS = {"network": "resnet", "partition": "checkerboard", "data_shape": (2, 4, 1), "num_layers": 4}
OPTIONS = {
    "two codes, blocks to the prior": {
        "context": 2,
        "data_context": 2,
        "couple_data_to_prior": True,
        "bijector": "spline_coupling",
    },
    "independent layers": {"couple_prior": False, "couple_bijector": False, "couple_data": False},
    "codes of several sizes": {
        "latent_sizes": (2, 1, 1),
        "prior": "standard_normal",
        "carry_start": 0.9,
        "num_joint_layers": 1,
    },
    "no bijector": {
        "bijector": "identity",
        "condition_residual_on_latents": False,
        "encoder": "shared",
        "network": "linear",
    },
    "autoregressive": {"bijector": "inverse_autoregressive"},
    "splines in the prior": {"prior": "spline", "couple_data_to_prior": True},
    "residual networks on vectors": {"network": "resnet"},
    "residual networks on maps": {**MAPS, "latent_shape": (1, 2, 2)},
    "vectors to maps in data layers": {**MAPS, "data_channels": 3},
    "a state": {"state_size": 4, "latent_sizes": (2, 1, 1)},
    "a state on maps": {**MAPS, "encoder": "local", "latent_shape": (1, 2, 2), "state_size": 3},
    "a condition": {"condition_size": 3, "couple_prior": False, "bijector": "spline_coupling"},
    "a condition on maps": {**MAPS, "latent_shape": (1, 2, 2), "condition_size": 2},
}


def random_values(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def step(carry, inputs):
    kernel, bias, mask = inputs
    hidden = jnp.tanh(jnp.where(mask, carry["codes"] @ kernel + bias, 0.3))
    return {"codes": hidden, "sum": carry["sum"] + hidden.sum()}, (hidden**2, carry["sum"])


def test_values_and_gradients_are_those_of_a_scan():
    carry = {"codes": random_values(BATCH, SIZE), "sum": jnp.float32(0.5)}
    kernels, biases = random_values(LENGTH, SIZE, SIZE), random_values(LENGTH, SIZE)
    mask = np.arange(LENGTH * SIZE).reshape(LENGTH, SIZE) % 3 > 0

    def outputs(scan, carry, kernels, biases):
        return scan(step, carry, (kernels, biases, mask))

    weights = jax.tree.map(
        lambda leaf: random_values(*leaf.shape, seed=leaf.ndim),
        jax.eval_shape(functools.partial(outputs, jax.lax.scan), carry, kernels, biases),
    )

    def value_and_gradients(scan):
        value, pull_back = jax.vjp(functools.partial(outputs, scan), carry, kernels, biases)
        return value, pull_back(weights)

    ours, expected = value_and_gradients(recurrence.scan), value_and_gradients(jax.lax.scan)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), ours, expected
    )


@pytest.mark.parametrize("overrides", OPTIONS.values(), ids=OPTIONS)
def test_gpus_compute_the_same_layers_in_larger_pieces(random_model, monkeypatch, overrides):
    model, params = random_model(**overrides)
    x = random_values(5, *model.config.data_shape) < 0.0
    noise = random_values(model.noise_shape[0], 2, 5, *model.config.latent_shape)

    condition = (
        random_values(5, model.config.condition_size) if "condition_size" in overrides else None
    )

    def compute(params, x, noise, condition):
        given = {"condition": condition}
        observed = apply(model, params, x, method="observe", **given)
        weights = apply(model, params, x, observed, noise, method="log_weights")
        return apply(model, params, x, noise[:, 0], method="elbo_terms", **given), weights

    def results():
        def total(*arguments):  # a new function, or JAX would take the other backend's program
            values = compute(*arguments)
            return sum(jnp.sum(jnp.tanh(value / 8)) for value in jax.tree.leaves(values)), values

        arguments = (0,) if condition is None else (0, 3)
        program = jax.jit(jax.value_and_grad(total, arguments, has_aux=True))
        return program(*jax.tree.map(np.float64, (params, x, noise, condition)))

    calls = unittest.mock.Mock(wraps=recurrence.scan)
    monkeypatch.setattr(recurrence, "scan", calls)
    with jax.enable_x64(True):
        expected = results()
        assert not calls.called
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        found = results()
        assert calls.call_count == 2
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-9), found, expected
    )


@pytest.mark.parametrize("method", ["elbo_terms", "log_weights"])
def test_what_gpus_drop_in_priors_is_the_same_in_the_scan_and_for_its_gradient(
    random_model, monkeypatch, method
):
    model, params = random_model(generative_dropout=0.4, couple_data_to_prior=True)
    x = random_values(5, *model.config.data_shape) < 0.0
    noise = random_values(model.noise_shape[0], 2, 5, *model.config.latent_shape)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def results(scan):
        monkeypatch.setattr(recurrence, "scan", scan)

        def total(params, key):
            apply = functools.partial(model.apply, {"params": params}, x, rngs={"dropout": key})
            if method == "elbo_terms":
                values = apply(noise[:, 0], method=method)
            else:
                values = apply(apply(method="observe"), noise, method=method)
            return sum(jnp.sum(jnp.tanh(value / 8)) for value in values), values

        # Keys of examples, as in training.
        def of_keys(params, keys):
            totals, values = jax.vmap(total, (None, 0))(params, keys)
            return totals.sum(), values

        program = jax.jit(jax.value_and_grad(of_keys, has_aux=True))
        return program(params, jax.random.split(jax.random.key(0), 3))

    (value, values), gradient = results(jax.lax.scan)
    found = results(recurrence_scan)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        found,
        ((value, values), gradient),
    )
    assert all(np.abs(of_keys[0] - of_keys[1]).max() > 1e-2 for of_keys in values)
