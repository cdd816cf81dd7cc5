"""The condition: every network sees it, one example sees its own, zeros leave all as it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import (
    all_images,
    assert_normalized_and_sampled,
    estimate_likelihoods,
    mean_and_standard_error,
)
from flax import linen as nn
from flax import traverse_util
from jaxprs import equations
from scipy import stats

import sere_jax
from sere_jax.bijector import BIJECTORS, Identity
from sere_jax.inputs import block_keys, example_keys, noise_of_samples, sample_noise
from sere_jax.layer import Layer
from sere_jax.model import apply
from sere_jax.partition import create_partition
from sere_jax.pixels import Seen

SIZE = 3
MAPS = {"data_shape": (2, 4, 1), "num_layers": 4, "partition": "checkerboard"}
FLOW = {"data_layer": "masked_autoregressive_flow", "flow_hidden_size": 8}
EVERYTHING = {"context": 2, "data_context": 2, "couple_data_to_prior": True}
MODELS = {
    "paper": {},
    "everything coupled": EVERYTHING,
    "shared encoder": {"encoder": "shared"},
    "linear": {"network": "linear"},
    "maps of perceptrons": {**MAPS, "latent_shape": (1, 2, 2)},
    "residual networks": {"network": "resnet", "bijector": "spline_coupling"},
    "residual networks on maps": {
        **MAPS,
        **EVERYTHING,
        "network": "resnet",
        "latent_shape": (1, 2, 2),
        "encoder": "shared",
    },
    "vectors to maps in data layers": {
        **MAPS,
        **EVERYTHING,
        "network": "resnet",
        "data_channels": 3,
    },
    "autoregressive, sizes": {"bijector": "inverse_autoregressive", "latent_sizes": (2, 1, 2)},
    "recomputed": {"rematerialize": True, "bijector": "masked_autoregressive"},
    "levels": {"data_layer": "discretized_logistic_mixture", "num_mixtures": 2},
    "flow": FLOW,
    "direct flow": {**FLOW, "flow_direct_connections": True, "couple_data": False},
}
UNCOUPLED = {
    "uncoupled": {"couple_prior": False, "couple_bijector": False, "couple_data": False},
    "uncoupled maps": {
        **MAPS,
        "network": "resnet",
        "latent_shape": (1, 2, 1),
        "couple_prior": False,
        "couple_bijector": False,
    },
    "uncoupled flows of codes": {"couple_bijector": False, "bijector": "masked_autoregressive"},
}


@pytest.fixture(scope="module", params=MODELS)
def conditional(request, random_model):
    """A model with a condition, and random parameters."""
    return random_model(condition_size=SIZE, **MODELS[request.param])


def random_values(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def images_for(model, num):
    x = random_values(num, *model.config.data_shape, seed=2)
    if model.config.has_flows:
        return x
    return np.float32(x > 0) * (255 if "mixture" in model.config.data_layer else 1)


# ---------------------------------------------------------------------------- who sees it


@pytest.mark.parametrize("name", [*MODELS, *UNCOUPLED])
def test_every_network_of_a_layer_sees_the_whole_condition(tiny_config, random_module, name):
    config = tiny_config(condition_size=SIZE, **(MODELS | UNCOUPLED)[name])
    layer = Layer(config)
    block_shape = create_partition(config).block_shape
    window = random_values(config.context, *config.latent_shape)
    previous = np.float32(random_values(config.data_context, *block_shape) > 0)
    x, noise = images_for(layer, 1)[0], random_values(*config.latent_shape, seed=3)

    def compute(layer, condition):
        if config.has_shared_encoder:
            hidden = layer.data_layer.observed(previous, 4)  # of the right shape
            encoding = layer.refine(hidden, None)[1]
        else:
            encoding = layer.encode(x, condition)
        observed = layer.observe(encoding, previous, previous[-1], condition)
        inputs = (observed.prior, observed.posterior, noise, None, observed.condition)
        _, latents = layer.infer(window, inputs)
        alone = layer.data_layer(noise, observed.data._replace(previous=None))
        both = layer.decode(noise, observed.data)
        parts = {
            "prior": latents.prior,
            "residual": latents.residual,
            "bijector": latents.bijector.forward(noise),
            "γ¹": alone.base if config.has_flows else alone,
            "block": layer.data_layer.block_log_prob(both, previous[-1], None),
        }
        if config.couple_data and not config.has_flows:
            parts["δγ"] = both - alone
        return parts

    condition = random_values(SIZE, seed=4)
    params = random_module(layer, condition, method=compute)
    jacobians = jax.jit(jax.jacrev(functools.partial(layer.apply, method=compute), argnums=1))(
        params, condition
    )

    if config.has_shared_encoder:
        del jacobians["residual"]  # the encoder is not the layer's; see the test below
    for part, by_part in jacobians.items():
        for jacobian in jax.tree.leaves(by_part):
            influence = np.abs(np.asarray(jacobian)).reshape(-1, SIZE).sum(axis=0)
            assert (influence > 1e-4).all(), part


def test_all_layers_see_their_example_s_condition_and_no_other_s(conditional):
    model, params = conditional
    x, noise = (
        images_for(model, 2),
        random_values(model.config.num_layers, 2, *model.config.latent_shape),
    )

    def compute(condition):
        out = apply(model, params, x, noise, condition=condition)
        data = out.data_parameters.base if model.config.has_flows else out.data_parameters
        parts = (out.prior_mean, out.residual_mean, out.residual_scale, out.z, data, out.kl)
        return *parts, out.log_likelihood[:, None]

    jacobians = jax.jit(jax.jacrev(compute))(random_values(2, SIZE, seed=4))

    for jacobian in jacobians:
        values = np.abs(np.asarray(jacobian))
        *_, given_to, _ = range(values.ndim)
        by_example = np.moveaxis(values, given_to, 1)  # [of example, condition of example, L, ...]
        summed = by_example.reshape(*by_example.shape[:3], -1).sum(axis=-1)
        assert (summed[0, 1] == 0).all() and (summed[1, 0] == 0).all()
        assert (summed[0, 0] > 0).all() and (summed[1, 1] > 0).all()


def without_condition(params):
    """Parameters of the model without a condition: those of its kernels are left out."""
    flat = traverse_util.flatten_dict(params)
    own = {"condition", "prior_condition", "bijector_condition"}
    kept = {path: leaf for path, leaf in flat.items() if not own & set(path)}
    return traverse_util.unflatten_dict(kept)


@pytest.mark.parametrize("name", [name for name in MODELS if "flow" not in name])
def test_zeros_leave_a_model_as_it_is_without_a_condition(random_model, tiny_config, name):
    model, params = random_model(condition_size=SIZE, **MODELS[name])
    plain = sere_jax.create_model(tiny_config(**MODELS[name]))
    x, key = images_for(model, 4), jax.random.key(0)

    def results(model, params, **given):
        return (
            sere_jax.infer(model, params, x, key, **given),
            sere_jax.sample(model, params, key, 4, expected=True, **given),
        )

    found = results(model, params, condition=np.zeros((4, SIZE)))
    expected = results(plain, without_condition(params))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected
    )
    other = results(model, params, condition=random_values(4, SIZE))
    for one, another in zip(other[1:], expected[1:], strict=True):
        for left, right in zip(*map(jax.tree.leaves, (one, another)), strict=True):
            assert np.abs(left - right).max() > 1e-4


# -------------------------------------------------------------------------- the densities


def with_prior_as_posterior(params):
    """Parameters with δμ = 0 and δσ = 1."""
    network = params["hierarchy"]["layers"]["posterior"]["network"]
    bias = np.zeros(network["head"]["bias"].shape, np.float32)
    bias[..., bias.shape[-1] // 2 :] = 50.0
    head = {"kernel": np.zeros_like(network["head"]["kernel"]), "bias": bias}
    posterior = {"network": {**network, "head": head}}
    layers = {**params["hierarchy"]["layers"], "posterior": posterior}
    return {**params, "hierarchy": {**params["hierarchy"], "layers": layers}}


@pytest.mark.parametrize(
    "name", ["paper", "everything coupled", "shared encoder", "residual networks"]
)
def test_probabilities_of_all_images_sum_to_one_for_each_condition(random_model, name):
    model, params = random_model(condition_size=SIZE, **MODELS[name])
    params = with_prior_as_posterior(params)
    means = []
    for condition in ([0.0, 1.0, 0.0], [-0.5, 0.5, 0.3]):
        likelihoods = estimate_likelihoods(model, params, condition)
        assert_normalized_and_sampled(
            model, params, likelihoods, largest_error=0.08, condition=condition
        )
        means.append(mean_and_standard_error(likelihoods))
    (one, error), (other, other_error) = means
    assert (np.abs(one - other) / np.hypot(error, other_error)).max() > 10


@pytest.mark.parametrize("direct", [False, True])
def test_a_plain_flow_integrates_to_one_for_each_condition(random_model, direct):
    model, params = random_model(
        data_shape=(1, 2, 1),
        num_layers=1,
        latent_shape=(0,),
        couple_data=False,
        condition_size=2,
        flow_direct_connections=direct,
        **FLOW,
    )
    params = jax.tree.map(lambda leaf: leaf / 2, params)
    axis = np.linspace(-14.0, 14.0, 281, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 1, 2, 1)
    densities = []
    for condition in ([1.0, 0.0], [-0.5, 2.0]):
        given = np.tile(np.float32(condition), (len(points), 1))
        log_p = sere_jax.log_likelihood(model, params, points, jax.random.key(0), condition=given)
        densities.append(np.exp(np.float64(log_p)))
        assert densities[-1].sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=0.01)
    assert np.abs(densities[0] - densities[1]).max() > 0.01


def test_weights_are_those_of_gaussian_densities_with_everything_computed_anew(conditional):
    """The features of image and condition, computed once, serve all samples."""
    model, params = conditional
    x, keys = images_for(model, 3), example_keys(jax.random.key(5), 3)
    condition = random_values(3, SIZE)
    noise = noise_of_samples(model, keys, jnp.arange(4))

    @jax.jit
    def once(params):
        observed = apply(model, params, x, method="observe", condition=condition)
        return apply(model, params, x, observed, noise, method="log_weights")

    log_likelihood, ratio = once(params)

    infer = jax.jit(lambda noise: apply(model, params, x, noise, condition=condition))
    for sample in range(4):
        out = infer(noise[:, sample])
        expected = stats.norm.logpdf(out.epsilon, out.prior_mean, out.prior_scale)
        expected -= stats.norm.logpdf(noise[:, sample].swapaxes(0, 1)) - np.log(out.posterior_scale)
        sizes = model.config.latent_sizes or (expected[0, 0].size,) * model.config.num_layers
        expected = expected.reshape(*expected.shape[:2], -1)
        expected = sum(expected[:, layer, :size].sum(-1) for layer, size in enumerate(sizes))
        np.testing.assert_allclose(log_likelihood[sample], out.log_likelihood, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ratio[sample], expected, rtol=1e-3, atol=2e-3)


def test_what_depends_on_the_condition_alone_is_not_computed_for_each_sample(random_model):
    """Products with its axis, of a size that is no other's, are as few for 40 samples as for 1."""
    model, params = random_model(condition_size=5, latent_shape=(3,))
    x, condition = images_for(model, 2), random_values(2, 5)

    def num_products(num_samples):
        def estimate(params, condition):
            options = {"samples_at_once": 1, "condition": condition}
            key = jax.random.key(0)
            return sere_jax.log_likelihood(model, params, x, key, num_samples, **options)

        return sum(
            repeats
            for equation, repeats in equations(jax.make_jaxpr(estimate)(params, condition).jaxpr)
            if equation.primitive.name == "dot_general"
            and any(variable.aval.shape[-1:] == (5,) for variable in equation.invars)
        )

    # Of encoders, priors, bijectors and both parts of data layers, of all layers at once.
    assert num_products(1) == num_products(40) == 5


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_objectives_are_the_bounds_of_an_example_whatever_its_batch(random_model, dropout):
    model, params = random_model(condition_size=SIZE, dropout=dropout)
    x, keys = images_for(model, 4), jax.random.split(jax.random.key(0), 4)
    condition = random_values(4, SIZE)
    for num_samples in (1, 3):
        found = sere_jax.objective(
            model, params, x, keys, num_samples=num_samples, condition=condition
        ).value
        alone = [
            sere_jax.objective(
                model,
                params,
                x[i : i + 1],
                keys[i : i + 1],
                num_samples=num_samples,
                condition=condition[i : i + 1],
            ).value[0]
            for i in range(4)
        ]
        np.testing.assert_allclose(found, alone, rtol=1e-4)
        bound = sere_jax.log_likelihood(model, params, x, keys, num_samples, condition=condition)
        if num_samples == 1:
            bound = sere_jax.elbo(model, params, x, keys, condition=condition)
            out = sere_jax.infer(model, params, x, keys, condition=condition)
            np.testing.assert_allclose(bound, out.elbo, rtol=1e-5)
        assert np.allclose(found, bound, rtol=1e-4) == (dropout == 0.0)


# --------------------------------------------------------------------------- making images


def test_what_is_generated_is_what_the_likelihood_says_of_each_condition(random_model):
    model, params = random_model(condition_size=SIZE, **EVERYTHING)
    keys, condition = example_keys(jax.random.key(1), 6), random_values(6, SIZE)
    noise = sample_noise(model, keys, 0)
    options = {"method": "generate", "condition": condition}
    images, means = apply(model, params, noise, block_keys(model, keys), **options)
    np.testing.assert_array_equal(
        images, sere_jax.sample(model, params, keys, 6, condition=condition)
    )
    assert len(np.unique(means.round(4))) > 20

    def codes(model, observed):
        return model.hierarchy.infer(observed, noise).z

    def means_given(model, z, observed):
        logits, _ = model.hierarchy.decode(z, observed)
        return jax.nn.sigmoid(model.hierarchy.partition.merge(logits))

    observed = apply(model, params, images, method="observe", condition=condition)
    z = model.apply({"params": with_prior_as_posterior(params)}, observed, method=codes)
    expected = model.apply({"params": params}, z, observed, method=means_given)
    np.testing.assert_allclose(means, expected, rtol=1e-4, atol=1e-5)


def test_the_ends_of_a_path_are_the_reconstructions_of_both_images(conditional):
    model, params = conditional
    x, condition = images_for(model, 2), random_values(2, SIZE)
    if model.config.couple_data_to_prior:
        return  # priors see the blocks that are generated
    key = jax.random.key(2)
    way = sere_jax.interpolate(model, params, *x, key, 4, condition=condition)
    for place, end in ((0, 0), (-1, 1)):
        part = slice(end, end + 1)
        expected = sere_jax.reconstruct(
            model, params, x[part], key, expected=True, condition=condition[part]
        )
        np.testing.assert_allclose(way[place], expected[0], rtol=1e-3, atol=2e-3)


def test_reconstructions_without_the_residual_are_those_of_the_base(random_model):
    model, params = random_model(condition_size=SIZE)
    x, key, condition = images_for(model, 5), jax.random.key(0), random_values(5, SIZE)
    given = {"condition": condition, "expected": True}
    found = sere_jax.reconstruct(model, params, x, key, residual=False, **given)
    z = sere_jax.infer(model, params, x, key, condition=condition).z

    def of_layer(layer, z):
        seen = layer.data_layer.observe(None, condition)
        return layer.data_layer(z, Seen(None, seen.condition))

    layer = functools.partial(Layer(model.config).apply, method=of_layer)
    own = {"params": params["hierarchy"]["layers"]}
    blocks = jax.nn.sigmoid(jax.vmap(layer)(own, z.swapaxes(0, 1)))
    expected = blocks.swapaxes(0, 1).reshape(5, *model.config.data_shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------- refusals


PUBLIC = ("infer", "elbo", "log_likelihood", "reconstruct", "objective")


def call(name, model, params, condition):
    x, key = np.zeros((2, *model.config.data_shape)), jax.random.key(0)
    given = {} if condition is None else {"condition": condition}
    if name == "sample":
        return sere_jax.sample(model, params, key, 2, **given)
    if name == "interpolate":
        return sere_jax.interpolate(model, params, *x, key, 3, **given)
    return getattr(sere_jax, name)(model, params, x, key, **given)


@pytest.mark.parametrize("name", [*PUBLIC, "sample", "interpolate"])
@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        (None, ValueError, r"needs a condition of shape \(2, 3\).* zeros mean 'as it is'"),
        (np.zeros(3), ValueError, r"condition has the shape \(3,\); .* shape \(2, 3\)"),
        (np.zeros((2, 4)), ValueError, r"condition has the shape \(2, 4\)"),
        (np.zeros((3, 3)), ValueError, r"condition has the shape \(3, 3\)"),
        ([[0, 1, np.nan]] * 2, ValueError, "condition holds the value nan"),
        ([[0, 1, np.inf]] * 2, ValueError, "condition holds the value inf"),
        (np.full((2, 3), "a"), TypeError, "condition holds values of type <U1"),
    ],
)
def test_a_condition_that_is_missing_or_wrong_is_refused(
    random_model, name, condition, error, message
):
    model, params = random_model(condition_size=SIZE)
    with pytest.raises(error, match=message):
        call(name, model, params, condition)


@pytest.mark.parametrize("name", [*PUBLIC, "sample", "interpolate"])
def test_a_model_without_a_condition_refuses_one(random_model, name):
    model, params = random_model()
    with pytest.raises(ValueError, match=r"without one \(condition_size=0\); leave it out"):
        call(name, model, params, np.zeros((2, 3)))


def test_booleans_integers_and_lists_are_conditions(random_model):
    model, params = random_model(condition_size=SIZE)
    rows = [[1, 0, 1], [0, 0, 1]]
    expected = call("elbo", model, params, np.float32(rows))
    for condition in (rows, np.array(rows), np.array(rows, bool), jnp.array(rows)):
        np.testing.assert_array_equal(call("elbo", model, params, condition), expected)


@pytest.mark.parametrize("system", ["ladder_vae", "iaf_vae", "relaxed_bernoulli_vae"])
def test_other_systems_refuse_a_condition_by_name(tiny_config, system):
    message = f"condition_size=2 means nothing to system='{system}'; leave it at 0"
    with pytest.raises(sere_jax.ConfigError, match=message):
        tiny_config(system=system, condition_size=2)
    with pytest.raises(sere_jax.ConfigError, match="condition_size=-1 must be an integer"):
        tiny_config(condition_size=-1)


def test_a_bijective_layer_that_takes_no_condition_is_refused_by_name(tiny_config, monkeypatch):
    class Own(nn.Module):
        config: sere_jax.ModelConfig

        def __call__(self, window):
            return Identity()

    monkeypatch.setitem(BIJECTORS, "own", Own)
    sere_jax.create_model(tiny_config(bijector="own"))
    with pytest.raises(sere_jax.ConfigError, match="bijector='own' takes no condition"):
        sere_jax.create_model(tiny_config(bijector="own", condition_size=2))


def test_a_model_and_its_condition_are_saved_and_loaded(random_model, tmp_path):
    model, params = random_model(condition_size=SIZE)
    sere_jax.save_pretrained(tmp_path, model, params)
    loaded, loaded_params = sere_jax.load_pretrained(tmp_path)
    condition = random_values(2, SIZE)
    np.testing.assert_array_equal(
        call("elbo", model, params, condition), call("elbo", loaded, loaded_params, condition)
    )
    x = all_images(model.config)[:2]
    assert sere_jax.elbo(model, params, x, jax.random.key(0), condition=condition).shape == (2,)
