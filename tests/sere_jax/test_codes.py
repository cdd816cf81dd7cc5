"""Codes of images and images of codes: they agree with infer, reconstruct and sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import all_images

import sere_jax
from sere_jax.inputs import block_keys, example_keys
from sere_jax.model import apply

FLOW = {"data_layer": "masked_autoregressive_flow", "flow_hidden_size": 8, "num_flows": 2}
EVERYTHING = {"context": 2, "data_context": 2, "couple_data_to_prior": True}
ONE = {"num_layers": 1, "latent_shape": (3,)}
MODELS = {
    "paper": {},
    "everything coupled": EVERYTHING,
    "spline prior, condition": {"prior": "spline", "condition_size": 2, **EVERYTHING},
    "maps": {"latent_shape": (2, 1, 2), "encoder": "shared", "bijector": "spline_coupling"},
    "unequal latents": {"latent_shape": (3,), "latent_sizes": (1, 3, 2)},
    "state": {"state_size": 3, "data_context": 2, "condition_size": 2},
    "levels": {"data_layer": "discretized_logistic_mixture", "num_mixtures": 2},
    "grey": {"data_layer": "gaussian"},
    "flow": FLOW,
    "local encoders": {"encoder": "local", **FLOW},
    "ladder": {"system": "ladder_vae", "latent_shape": (4,), "latent_sizes": (4, 2, 1)},
    "iaf": {"system": "iaf_vae", "num_flows": 2, **ONE},
    "relaxed bernoulli": {"system": "relaxed_bernoulli_vae", **ONE},
}
NO_CODES = {**FLOW, "num_layers": 1, "latent_shape": (0,), "couple_data": False}


@pytest.fixture(scope="module", params=MODELS)
def of_a_model(request, random_model):
    """A model, its parameters, five images and what it needs besides."""
    model, params = random_model(**MODELS[request.param])
    x = all_images(model.config)[[0, 7, 22, 41, 63]]
    x = x * (255 if "mixture" in model.config.data_layer else 1)
    size = model.config.condition_size
    condition = np.random.default_rng(0).normal(size=(5, size)) if size else None
    return model, params, x, {"condition": condition}


def test_what_was_inferred_is_decoded_to_the_reconstruction(of_a_model):
    model, params, x, given = of_a_model
    keys = jax.random.split(jax.random.key(3), 5)
    for key in (jax.random.key(1), keys):
        z = sere_jax.infer(model, params, x, key, **given).z
        for expected in (False, True):
            options = given | {"expected": expected}
            again = sere_jax.reconstruct(model, params, x, key, **options)
            decoded = sere_jax.decode(model, params, z, key, **options)
            assert decoded.dtype == again.dtype
            np.testing.assert_allclose(decoded, again, rtol=1e-4, atol=1e-4)


def test_without_a_code_given_it_is_a_sample(of_a_model):
    model, params, x, given = of_a_model
    z, key = sere_jax.encode(model, params, x, **given), jax.random.key(1)
    decoded = sere_jax.decode(model, params, z, key, 0, **given)
    np.testing.assert_array_equal(decoded, sere_jax.sample(model, params, key, 5, **given))


def test_codes_of_later_layers_are_those_of_the_sample(of_a_model):
    """Its own first codes give the sample again; other later codes change nothing."""
    model, params, x, given = of_a_model
    num_layers, is_ladder = model.config.num_layers, model.config.system == "ladder_vae"
    key, z = jax.random.key(1), sere_jax.encode(model, params, x, **given)
    options = given | {"expected": True}
    for num_given in range(1, num_layers):
        rest = range(num_layers - num_given) if is_ladder else range(num_given, num_layers)
        decoded = sere_jax.decode(model, params, z, key, num_given, **options)
        other = (
            tuple(z[i] + (i in rest) for i in range(num_layers))
            if is_ladder
            else jnp.asarray(z).at[:, rest.start :].add(1.0)
        )
        same = sere_jax.decode(model, params, other, key, num_given, **options)
        np.testing.assert_array_equal(decoded, same)
        whole = sere_jax.decode(model, params, z, key, num_given + 1, **options)
        assert np.abs(np.float32(decoded) - np.float32(whole)).max() > 1e-3


@pytest.mark.parametrize("name", ["paper", "everything coupled", "ladder"])
def test_given_the_first_codes_of_a_sample_the_rest_is_that_sample(random_model, name):
    model, params = random_model(**MODELS[name])
    key, num_layers = jax.random.key(5), model.config.num_layers
    expected = sere_jax.sample(model, params, key, 4)
    # Codes of the prior: with no evidence, and with the blocks that were generated.
    keys = example_keys(key, 4)
    noise = sere_jax.inputs.sample_noise(model, keys, 0)
    if name == "ladder":
        z = apply(model, params, noise, None, method="_top_down")[0]
    else:
        z = codes_of_the_prior(model, params, expected, noise)
    for num_given in range(num_layers + 1):
        decoded = sere_jax.decode(model, params, z, key, num_given)
        np.testing.assert_array_equal(decoded, expected)


def codes_of_the_prior(model, params, x, noise):
    """z [B, L, N] of this noise under the prior, by inference whose residual is the identity."""
    layers = params["hierarchy"]["layers"]
    network = layers["posterior"]["network"]
    head = network[max(network)]
    bias = np.zeros(head["bias"].shape, np.float32)
    bias[..., bias.shape[-1] // 2 :] = 50.0
    constant = {"kernel": np.zeros_like(head["kernel"]), "bias": bias}
    posterior = {"network": {**network, max(network): constant}}
    as_prior = {"hierarchy": {**params["hierarchy"], "layers": {**layers, "posterior": posterior}}}
    return apply(model, as_prior, x, noise).z


def test_each_layer_is_encoded_at_its_posterior_mean(of_a_model):
    """Means of q from `infer` with noise that makes its codes those that were encoded."""
    model, params, x, given = of_a_model
    z = sere_jax.encode(model, params, x, **given)
    num_parts, *event = model.noise_shape
    noise = jnp.zeros((num_parts, 5, *event))
    inference = apply(model, params, x, noise, **given)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(jnp.shape, z), shapes(model, 5))
    if hasattr(inference, "posterior_mean"):
        mask = model.config.latent_sizes and model.config.system == "sere_vae"
        means = np.asarray(inference.posterior_mean) if not isinstance(z, tuple) else None
        if means is not None and not mask:
            np.testing.assert_allclose(inference.epsilon, means, rtol=1e-5, atol=1e-5)
        if isinstance(z, tuple):
            for part, mean in zip(z, inference.posterior_mean, strict=True):
                np.testing.assert_allclose(part, mean, rtol=1e-4, atol=1e-5)
    # Small noise to either side moves every code to either side of what was encoded, on average.
    draws = [apply(model, params, x, noise + size, **given).z for size in (-1e-3, 1e-3)]
    for low, high, middle in zip(*map(jax.tree.leaves, (*draws, z)), strict=True):
        np.testing.assert_allclose((low + high) / 2, middle, atol=1e-3)


def shapes(model, num):
    part = model.code_shape
    if isinstance(part[0], tuple):
        return tuple((num, *shape) for shape in part)
    return (num, *part)


def test_one_code_changes_and_the_rest_stays(of_a_model):
    model, params, x, given = of_a_model
    key, values = jax.random.key(2), np.float32([0.1, 0.5, 0.9])
    condition = given["condition"]
    row = {"condition": None if condition is None else condition[1]}
    rows = {"condition": None if condition is None else np.tile(condition[1], (3, 1))}
    z = sere_jax.encode(
        model,
        params,
        x[1:2],
        **{"condition": rows["condition"][:1]} if condition is not None else {},
    )
    for layer in {0, model.config.num_layers - 1}:
        shape = model.config.latent_shape
        index = 0 if len(shape) == 1 else (1, 0, 1)
        images = sere_jax.traverse(model, params, x[1], layer, index, values, key, **row)
        assert images.shape == (3, *model.config.data_shape)
        for place, value in enumerate(values):
            changed = with_code(model, z, layer, index, value)
            one = {"condition": None if condition is None else condition[1:2]}
            keys = jax.random.fold_in(key, 0)[None]
            expected = sere_jax.decode(model, params, changed, keys, **one)
            np.testing.assert_allclose(images[place], expected[0], rtol=1e-4, atol=1e-4)


def with_code(model, z, layer, index, value):
    parts = [np.array(part) for part in (z if isinstance(z, tuple) else (z,))]
    index = index if isinstance(index, tuple) else (index,)
    if isinstance(z, tuple):
        parts[layer][(0, *index)] = value
        return tuple(parts)
    place = (0, layer, *index) if model.generates_blocks else (0, *index)
    parts[0][place] = value
    return parts[0]


# ---------------------------------------------------------------------------- temperature


def test_a_temperature_of_one_changes_nothing(of_a_model):
    model, params, _, given = of_a_model
    key = jax.random.key(4)
    images = sere_jax.sample(model, params, key, 5, **given)
    for temperature in (1, 1.0, np.float32(1)):
        same = sere_jax.sample(model, params, key, 5, temperature, **given)
        np.testing.assert_array_equal(images, same)


def test_it_scales_the_deviation_of_the_prior(random_model):
    """A prior of independent N(μ, σ²), uncoupled: γ of temperature t are those of σ t."""
    options = {"couple_prior": False, "couple_bijector": False, "couple_data": False}
    model, params = random_model(**options, num_layers=2)
    key = jax.random.key(4)
    keys = example_keys(key, 6)
    noise = sere_jax.inputs.sample_noise(model, keys, 0)
    expected = apply(model, params, 0.3 * noise, block_keys(model, keys), method="generate")[1]
    found = sere_jax.sample(model, params, key, 6, temperature=0.3, expected=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    spread = [
        np.std(sere_jax.sample(model, params, key, 500, temperature=t, expected=True), axis=0)
        for t in (0.01, 0.3, 1.0)
    ]
    assert (spread[0] < spread[1]).all() and spread[1].mean() < spread[2].mean()


# ---------------------------------------------------------------------------- refusals


def test_a_model_without_codes_is_refused_by_name(random_model):
    model, params = random_model(**NO_CODES)
    x, key = np.zeros((1, 2, 3, 1)), jax.random.key(0)
    refused = {
        "encode": lambda: sere_jax.encode(model, params, x),
        "decode": lambda: sere_jax.decode(model, params, x, key),
        "traverse": lambda: sere_jax.traverse(model, params, x[0], 0, 0, [1.0], key),
        "temperature=0.5": lambda: sere_jax.sample(model, params, key, 1, 0.5),
    }
    for name, call in refused.items():
        with pytest.raises(ValueError, match=rf"{name} needs codes, .*latent_shape=\(0,\)"):
            call()
    assert sere_jax.sample(model, params, key, 1, 1.0).shape == (1, 2, 3, 1)


@pytest.mark.parametrize(
    ("temperature", "error"),
    [(0, ValueError), (-1.0, ValueError), (np.nan, ValueError), (np.inf, ValueError)]
    + [("hot", TypeError), (True, TypeError), (None, TypeError)],
)
def test_an_impossible_temperature_is_refused(random_model, temperature, error):
    with pytest.raises(error, match=r"temperature=\S+ must be a (finite )?number above 0"):
        sere_jax.sample(*random_model(), jax.random.key(0), 2, temperature)


@pytest.mark.parametrize(
    ("z", "options", "error", "message"),
    [
        (np.zeros((2, 3)), {}, ValueError, r"z has the shape \(2, 3\); .* \(batch, 3, 2\)"),
        (np.zeros((2, 2, 2)), {}, ValueError, r"z has the shape \(2, 2, 2\); .*encode"),
        (3.0, {}, ValueError, r"z has the shape \(\)"),
        (np.full((2, 3, 2), np.nan), {}, ValueError, "z holds the value nan"),
        (np.full((2, 3, 2), "a"), {}, TypeError, "z holds values of type <U1"),
        (np.zeros((2, 3, 2)), {"num_layers_given": 4}, ValueError, "given=4 must be from 0 to 3"),
        (np.zeros((2, 3, 2)), {"num_layers_given": -1}, ValueError, "given=-1 must be from 0 to 3"),
        (np.zeros((2, 3, 2)), {"num_layers_given": 1.5}, TypeError, "given=1.5 must be an integer"),
        (np.zeros((2, 3, 2)), {"condition": [[1.0]]}, ValueError, "condition is given to a model"),
        (np.zeros((2, 3, 2)), {"key": 0}, TypeError, "key is int"),
    ],
)
def test_codes_that_are_none_are_refused(random_model, z, options, error, message):
    with pytest.raises(error, match=message):
        sere_jax.decode(*random_model(), z, **{"key": jax.random.key(0)} | options)


def test_codes_of_the_wrong_parts_are_refused(random_model):
    model, params = random_model(**MODELS["ladder"])
    for z in (np.zeros((2, 7)), (np.zeros((2, 4)), np.zeros((2, 2))), ()):
        with pytest.raises(ValueError, match=r"expects \(batch, 4\), \(batch, 2\), \(batch, 1\)"):
            sere_jax.decode(model, params, z, jax.random.key(0))
    model, params = random_model(**MODELS["relaxed bernoulli"])
    with pytest.raises(ValueError, match=r"z holds the value 1.5, outside 0.0 to 1.0"):
        sere_jax.decode(model, params, np.full((2, 3), 1.5), jax.random.key(0))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"layer": 3}, ValueError, "layer=3 must be from 0 to 2"),
        ({"layer": -1}, ValueError, "layer=-1 must be from 0 to 2"),
        ({"layer": "first"}, TypeError, "layer='first' must be an integer"),
        ({"index": 2}, ValueError, "index=2 must be from 0 to 1"),
        ({"index": (0, 1)}, ValueError, r"index=\(0, 1\) must be 1 numbers"),
        ({"index": 0.5}, TypeError, "index=0.5 must be an integer"),
        ({"values": 1.0}, ValueError, r"values has the shape \(\); give a list"),
        ({"values": [np.inf]}, ValueError, "values holds the value inf"),
        ({"values": ["a"]}, TypeError, "values holds values of type"),
        ({"x": np.zeros((1, 2, 3, 1))}, ValueError, "x has the shape .1, 1, 2, 3, 1."),
    ],
)
def test_a_code_that_there_is_not_is_refused(random_model, overrides, error, message):
    arguments = {"x": np.zeros((2, 3, 1)), "layer": 0, "index": 0, "values": [0.0]}
    arguments["key"] = jax.random.key(0)
    with pytest.raises(error, match=message):
        sere_jax.traverse(*random_model(), **arguments | overrides)


def test_a_code_that_a_smaller_layer_does_not_have_is_refused(random_model):
    model, params = random_model(**MODELS["unequal latents"])
    with pytest.raises(ValueError, match="index=1 must be from 0 to 0"):
        sere_jax.traverse(model, params, np.zeros((2, 3, 1)), 0, 1, [0.0], jax.random.key(0))
