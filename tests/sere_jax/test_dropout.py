"""Dropped hidden units: which they are, whose they are, and that evaluation drops none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sere_jax
from sere_jax.inputs import OF_DROPOUT, noise_of_samples
from sere_jax.networks.mlp import MLPFeatures

RATE = 0.3
COUPLED = {"data_context": 3, "couple_data_to_prior": True}


@pytest.fixture(scope="module")
def batch():
    """Images [50, 2, 3, 1] of binary pixels, and a key of each."""
    x = np.random.default_rng(0).integers(0, 2, (50, 2, 3, 1)).astype(np.float32)
    return x, jax.random.split(jax.random.key(1), len(x))


@functools.partial(jax.jit, static_argnums=(0, 4))
def objective(model, params, x, keys, num_samples):
    return sere_jax.objective(model, params, x, keys, num_samples=num_samples).value


def test_units_are_dropped_with_the_rate_and_the_others_make_up_for_them(tiny_config):
    units = 400
    features = MLPFeatures(tiny_config(hidden_size=units, dropout=RATE), num_hidden_layers=1)
    x = np.random.default_rng(0).standard_normal((30, 2, 3, 1)).astype(np.float32)
    hidden = {"kernel": np.ones((6, units)), "bias": np.linspace(-1.0, 1.0, units)}
    identity = {"kernel": np.eye(units), "bias": np.zeros(units)}
    variables = {"params": {"Dense_0": hidden, "Dense_1": identity}}

    kept_all = np.asarray(features.apply(variables, x, 3))
    dropped = np.asarray(features.apply(variables, x, 3, rngs={"dropout": jax.random.key(0)}))

    sums = x.sum(axis=(1, 2, 3))[:, None] + hidden["bias"]
    expected = np.where(sums > 0, sums, np.expm1(sums))
    np.testing.assert_allclose(kept_all, expected, rtol=1e-4, atol=1e-6)
    is_dropped = dropped == 0
    np.testing.assert_allclose(
        dropped[~is_dropped], kept_all[~is_dropped] / (1 - RATE), rtol=1e-4, atol=1e-6
    )
    standard_error = np.sqrt(RATE * (1 - RATE) / dropped.size)
    assert abs(is_dropped.mean() - RATE) < 4 * standard_error


@pytest.mark.parametrize("encoder", ["independent", "shared"])
def test_layers_drop_units_of_their_own(random_model, batch, encoder):
    model, params = random_model(dropout=RATE, encoder=encoder, **COUPLED)
    first_layer = jax.tree.map(
        lambda leaf: np.broadcast_to(leaf[:1], leaf.shape), params["hierarchy"]["layers"]
    )
    params = {"hierarchy": {**params["hierarchy"], "layers": first_layer}}
    x = np.zeros_like(batch[0])  # all layers see the same

    def observe(**options):
        observed = model.apply({"params": params}, x, method="observe", **options)
        features = (observed.posterior, observed.prior, observed.data)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(features)]

    kept_all, dropped = observe(), observe(rngs={"dropout": jax.random.key(0)})

    for features, of_dropped in zip(kept_all, dropped, strict=True):
        assert np.abs(of_dropped - features).max(axis=(1, 2)).min() > 0.1
    for features, of_dropped in zip(kept_all[1:], dropped[1:], strict=True):  # of previous blocks
        np.testing.assert_allclose(features[0], features[1], rtol=1e-5, atol=1e-6)
        assert np.abs(of_dropped[0] - of_dropped[1]).max() > 0.1


def test_nothing_is_dropped_but_in_training(random_model, batch):
    plain, params = random_model(**COUPLED)
    with_dropout, _ = random_model(dropout=RATE, **COUPLED)
    for function in (
        sere_jax.elbo,
        functools.partial(sere_jax.log_likelihood, num_samples=5),
        functools.partial(sere_jax.reconstruct, expected=True),
    ):
        expected = function(plain, params, *batch)
        np.testing.assert_allclose(function(with_dropout, params, *batch), expected, rtol=1e-5)


@pytest.mark.parametrize("num_samples", [1, 4])
def test_what_an_example_drops_depends_on_its_key_and_not_on_its_batch(
    random_model, batch, num_samples
):
    model, params = random_model(dropout=RATE, **COUPLED)
    plain, _ = random_model(**COUPLED)
    x, keys = batch

    value = np.asarray(objective(model, params, x, keys, num_samples))

    every_third = objective(model, params, x[::3], keys[::3], num_samples)
    np.testing.assert_allclose(every_third, value[::3], rtol=1e-4, atol=1e-4)
    assert np.abs(value - objective(plain, params, x, keys, num_samples)).max() > 0.1
    assert value.shape == (len(x),)


@pytest.mark.parametrize("num_samples", [1, 4])
def test_the_objective_is_that_of_the_units_that_are_kept(random_model, batch, num_samples):
    """An example alone, with what it drops handed to Flax directly."""
    model, params = random_model(dropout=RATE, **COUPLED)
    x, keys = batch[0][:1], batch[1][:1]

    value = objective(model, params, x, keys, num_samples)

    noise = noise_of_samples(model, keys, jnp.arange(num_samples))
    rngs = {"dropout": jax.random.fold_in(keys[0], OF_DROPOUT)}
    apply = functools.partial(model.apply, {"params": params})
    if num_samples == 1:
        terms, kl = apply(x, noise[:, 0], method="elbo_terms", rngs=rngs)
        expected = terms - kl.sum(axis=-1)
    else:
        observed = apply(x, method="observe", rngs=rngs)
        log_weights = sum(apply(x, observed, noise, method="log_weights"))
        expected = jax.nn.logsumexp(log_weights, axis=0) - np.log(num_samples)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)


def test_a_plain_flow_has_one_objective_whatever_the_number_of_samples(random_model, batch):
    flow = {"data_layer": "masked_autoregressive_flow", "flow_hidden_size": 8}
    model, params = random_model(dropout=RATE, latent_shape=(0,), **flow)
    x, keys = batch

    one, several = (objective(model, params, x, keys, num_samples) for num_samples in (1, 4))

    np.testing.assert_array_equal(one, several)
    assert one.shape == (len(x),)
