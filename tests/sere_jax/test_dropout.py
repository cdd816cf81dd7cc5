"""Dropped units and pixels: which they are, whose they are, and that evaluation drops none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sere_jax
from sere_jax.data_layer import create_data_layer
from sere_jax.hierarchy import Hierarchy, Layer
from sere_jax.inputs import OF_DROPOUT, noise_of_samples, sample_noise
from sere_jax.networks.mlp import MLPFeatures, MLPNetwork

RATE = 0.3
COUPLED = {"data_context": 3, "couple_data_to_prior": True}
DROPS = {"dropout": RATE}, {"generative_dropout": RATE}, {"block_dropout": RATE}


@pytest.fixture(scope="module")
def batch():
    """Images [50, 2, 3, 1] of binary pixels, and a key of each."""
    x = np.random.default_rng(0).integers(0, 2, (50, 2, 3, 1)).astype(np.float32)
    return x, jax.random.split(jax.random.key(1), len(x))


@functools.partial(jax.jit, static_argnums=(0, 4))
def objective(model, params, x, keys, num_samples):
    return sere_jax.objective(model, params, x, keys, num_samples=num_samples).value


@pytest.mark.parametrize(("of_all", "of_these"), [(RATE, 0.0), (RATE, 0.1), (0.1, RATE)])
def test_units_are_dropped_with_the_larger_rate_and_the_others_make_up_for_them(
    tiny_config, of_all, of_these
):
    units = 400
    config = tiny_config(hidden_size=units, dropout=of_all)
    features = MLPFeatures(config, num_hidden_layers=1, dropout=of_these)
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


@pytest.mark.parametrize("bounded", [True, False])
def test_networks_of_codes_drop_units_after_each_hidden_layer(tiny_config, bounded):
    units = 400
    config = tiny_config(hidden_size=units, num_hidden_layers=3)
    network = MLPNetwork(config, (units,), bounded=bounded, num_joint_layers=1, dropout=RATE)
    zeros = np.zeros(units, np.float32)
    identity = {"kernel": np.eye(units, dtype=np.float32), "bias": zeros}
    nothing = {"kernel": np.zeros((units, units), np.float32), "bias": zeros}
    first = {"kernel": np.ones((2, units), np.float32), "bias": np.linspace(0.5, 1.5, units)}
    hidden = {"Dense_0": first, "Dense_1": identity, "Dense_2": identity}
    variables = {"params": {**hidden, "joint_0": nothing, "head": identity}}
    codes = np.random.default_rng(0).uniform(0.0, 1.0, (30, 2)).astype(np.float32)

    def output(first_bias, **options):
        params = {**variables["params"], "Dense_0": {**first, "bias": first_bias}}
        return network.apply({"params": params}, codes, 1, None, **options)

    rngs = {"dropout": jax.random.key(0)}
    dropped = np.asarray(output(first["bias"], rngs=rngs))
    gradient = jax.grad(lambda bias: output(bias, rngs=rngs).sum())(first["bias"])

    sums = codes.sum(axis=1)[:, None] + first["bias"]  # positive, where ELU is the identity
    kept_all = np.tanh(sums) if bounded else sums
    np.testing.assert_allclose(output(first["bias"]), kept_all, rtol=1e-5)
    is_dropped = dropped == 0
    # Two layers of the codes, the sum with the offset, and the joint layer.
    np.testing.assert_allclose(
        dropped[~is_dropped], kept_all[~is_dropped] / (1 - RATE) ** 4, rtol=1e-4
    )
    share = 1 - (1 - RATE) ** 4
    assert abs(is_dropped.mean() - share) < 4 * np.sqrt(share * (1 - share) / dropped.size)
    slope = 1 - kept_all**2 if bounded else np.ones_like(kept_all)
    expected = np.where(is_dropped, 0.0, slope / (1 - RATE) ** 4).sum(axis=0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_features_of_blocks_belong_to_generation_and_those_of_x_do_not(random_model):
    model, params = random_model(generative_dropout=0.6, couple_data_to_prior=True)

    def shares(model):
        layer = model.hierarchy.layer
        features = (layer.encoder, layer.prior_observed, layer.data_layer.observed)
        return [module.dropout for module in features]

    assert model.apply({"params": params}, method=shares) == [0.0, 0.6, 0.6]


@pytest.mark.parametrize("data_layer", ["bernoulli", "discretized_logistic_mixture"])
def test_pixels_of_previous_blocks_are_dropped_with_the_rate_and_not_rescaled(
    tiny_config, data_layer
):
    shape = (3, 2, 1, 50, 3)
    config = tiny_config(data_layer=data_layer, data_shape=(10, 30, 3), block_dropout=RATE)
    layer = create_data_layer(config, shape[-3:])
    previous = np.random.default_rng(0).integers(1, 256, (40, *shape)).astype(np.uint8)
    read = functools.partial(layer.apply, {}, previous, method="read_previous")

    dropped = np.asarray(read(rngs={"dropout": jax.random.key(0)}))

    kept_all = np.asarray(layer.apply({}, previous, method="to_network"))
    assert (kept_all != 0).all()
    np.testing.assert_array_equal(read(), kept_all)
    is_dropped = (dropped == 0).all(axis=-1)
    np.testing.assert_array_equal(dropped[~is_dropped], kept_all[~is_dropped])
    np.testing.assert_array_equal(dropped[is_dropped], 0.0)
    standard_error = np.sqrt(RATE * (1 - RATE) / is_dropped.size)
    assert abs(is_dropped.mean() - RATE) < 4 * standard_error


@pytest.mark.parametrize("share", DROPS, ids=str)
@pytest.mark.parametrize(
    "family", [{}, {"data_layer": "masked_autoregressive_flow", "flow_hidden_size": 8}], ids=str
)
def test_what_layers_and_examples_see_of_the_same_blocks_is_dropped_independently(
    random_model, share, family
):
    model, params = random_model(**share, **family, **COUPLED)
    first_layer = jax.tree.map(
        lambda leaf: np.broadcast_to(leaf[:1], leaf.shape), params["hierarchy"]["layers"]
    )
    previous = np.ones((3, 5, 3, 1, 2, 1), np.float32)  # [L, B, j, h, w, c]

    def observe(**options):
        def features(model):
            hierarchy = model.hierarchy
            observe = hierarchy._all_at_once(Layer.observe_previous, (0,))
            return observe(hierarchy.layer, previous)

        variables = {"params": {"hierarchy": {"layers": first_layer}}}
        return jax.tree.leaves(model.apply(variables, method=features, **options))

    kept_all, dropped = observe(), observe(rngs={"dropout": jax.random.key(0)})

    for features, of_dropped in zip(kept_all, dropped, strict=True):
        np.testing.assert_allclose(features, np.broadcast_to(features[:1, :1], features.shape))
        is_read = features.shape[-1] != 6 or "block_dropout" in share  # a flow reads blocks too
        rows = np.asarray(of_dropped).reshape(15, -1)
        assert len(np.unique(rows.round(5), axis=0)) > (10 if is_read else 0)
        assert is_read == (np.abs(of_dropped - features).max() > 0.1)


def test_the_posterior_has_the_prior_that_was_drawn(random_model, batch):
    model, params = random_model(generative_dropout=RATE, **COUPLED)
    x, keys = batch
    noise = sample_noise(model, keys, 0)
    infer = functools.partial(model.apply, {"params": params}, x, noise)

    kept_all, dropped = infer(), infer(rngs={"dropout": jax.random.key(0)})

    prior = dropped.prior_mean + dropped.prior_scale * np.moveaxis(noise, 0, 1)
    expected = dropped.residual_mean + dropped.residual_scale * prior
    np.testing.assert_allclose(dropped.epsilon, expected, rtol=1e-5, atol=1e-6)
    shift = dropped.residual_mean + (dropped.residual_scale - 1.0) * dropped.prior_mean
    variance = np.square(dropped.residual_scale)
    kl = np.square(shift / dropped.prior_scale) + variance - np.log(variance) - 1.0
    np.testing.assert_allclose(dropped.kl, 0.5 * kl.sum(axis=-1), rtol=1e-4, atol=1e-5)
    assert np.abs(dropped.prior_mean - kept_all.prior_mean).max() > 0.1
    # Of the first layer, the posterior sees the same codes, zeros, and drops nothing.
    for name in ("residual_mean", "residual_scale"):
        first = (np.asarray(getattr(inferred, name))[:, 0] for inferred in (dropped, kept_all))
        np.testing.assert_array_equal(*first)


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


@pytest.mark.parametrize("share", DROPS, ids=str)
def test_nothing_is_dropped_but_in_training(random_model, batch, share):
    plain, params = random_model(**COUPLED)
    with_dropout, of_dropout = random_model(**share, **COUPLED)
    jax.tree.map(np.testing.assert_array_equal, of_dropout, params)
    for function in (
        sere_jax.elbo,
        functools.partial(sere_jax.log_likelihood, num_samples=5),
        functools.partial(sere_jax.reconstruct, expected=True),
    ):
        expected = function(plain, params, *batch)
        np.testing.assert_array_equal(function(with_dropout, params, *batch), expected)


@pytest.mark.parametrize(
    ("share", "as_gpus_scan"), [*((share, False) for share in DROPS), (DROPS[1], True)], ids=str
)
@pytest.mark.parametrize("num_samples", [1, 4])
def test_what_an_example_drops_depends_on_its_key_and_not_on_its_batch(
    random_model, batch, num_samples, share, as_gpus_scan, monkeypatch
):
    monkeypatch.setattr(Hierarchy, "_is_launch_bound", as_gpus_scan)
    model, params = random_model(**share, **COUPLED)
    plain, _ = random_model(**COUPLED)
    x, keys = batch

    @functools.partial(jax.jit, static_argnums=0)  # anew, or it would be the other's program
    def value_of(model, x, keys):
        return sere_jax.objective(model, params, x, keys, num_samples=num_samples).value

    value = np.asarray(value_of(model, x, keys))

    every_third = value_of(model, x[::3], keys[::3])
    np.testing.assert_allclose(every_third, value[::3], rtol=1e-4, atol=1e-4)
    assert np.abs(value - value_of(plain, x, keys)).max() > 0.1
    assert value.shape == (len(x),)


@pytest.mark.parametrize("share", DROPS, ids=str)
@pytest.mark.parametrize("num_samples", [1, 4])
def test_the_objective_is_that_of_the_units_that_are_kept(random_model, batch, num_samples, share):
    """An example alone, with what it drops handed to Flax directly."""
    model, params = random_model(**share, **COUPLED)
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
        log_weights = sum(apply(x, observed, noise, method="log_weights", rngs=rngs))
        expected = jax.nn.logsumexp(log_weights, axis=0) - np.log(num_samples)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)


def test_a_plain_flow_has_one_objective_whatever_the_number_of_samples(random_model, batch):
    flow = {"data_layer": "masked_autoregressive_flow", "flow_hidden_size": 8}
    model, params = random_model(dropout=RATE, latent_shape=(0,), **flow)
    x, keys = batch

    one, several = (objective(model, params, x, keys, num_samples) for num_samples in (1, 4))

    np.testing.assert_array_equal(one, several)
    assert one.shape == (len(x),)
