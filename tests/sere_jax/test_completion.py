"""Completion: the limit of the chain is the exact conditional, which is enumerated."""

import functools

import jax
import numpy as np
import pytest
from enumeration import all_images, mean_and_standard_error, replicated, rows
from scipy import stats

import sere_jax
from sere_jax.completion import State, advance
from sere_jax.inputs import block_keys, example_keys, sample_noise
from sere_jax.model import apply
from sere_jax.prior import Prior

EVERYTHING = {"context": 2, "data_context": 2, "couple_data_to_prior": True}
ONE = {"num_layers": 1, "latent_shape": (3,)}
MODELS = {
    "paper": {},
    "everything coupled": EVERYTHING,
    "all blocks": {"data_context": 3, "couple_data_to_prior": True},
    "uncoupled data": {"couple_data": False},
    "prior alone sees blocks": {"couple_data": False, "couple_data_to_prior": True},
    "spline prior": {"prior": "spline", "couple_data_to_prior": True},
    "state": {"state_size": 3, "couple_data_to_prior": True},
    "condition": {"condition_size": 2, "couple_data_to_prior": True},
    "unequal latents": {"latent_shape": (3,), "latent_sizes": (1, 3, 2), **EVERYTHING},
    "padding": {"data_shape": (1, 5, 1), "num_layers": 2, "bijector": "spline_coupling"},
    "ladder": {"system": "ladder_vae", "latent_shape": (4,), "latent_sizes": (4, 2, 1)},
    "iaf": {"system": "iaf_vae", "num_flows": 2, **ONE},
    "relaxed bernoulli": {"system": "relaxed_bernoulli_vae", **ONE},
}
# Those whose chains forget their start within as many steps as a test can take.
WELL_MIXED = ["paper", "everything coupled", "all blocks", "ladder", "iaf", "relaxed bernoulli"]
NUM_CHAINS, NUM_STEPS, NUM_DRAWS = 3000, 40, 10_000


def with_wide_posteriors(params):
    """Random parameters whose q is about as wide as the prior, so that a chain moves soon."""

    def change(path, leaf):
        names = [part.key for part in path]
        is_head_of_scales = any(n == "base" or "evidence" in n for n in names)
        if not (is_head_of_scales or {"posterior", "flows"} & set(names)):
            return 0.7 * leaf
        leaf = 0.2 * leaf
        if is_head_of_scales and names[-1] == "bias":
            leaf[leaf.size // 2 :] += 0.8 if names[0] == "base" else 2.0
        return leaf

    return jax.tree_util.tree_map_with_path(change, params)


def masks(config):
    """Pixels that are observed: some of every block, and the last ones alone."""
    mixed, last = np.zeros((2, *config.data_shape), bool)
    mixed.reshape(-1)[::2] = True
    last.reshape(-1)[-3:] = True
    return mixed, last


def conditionals(model, params, observed, x, condition):
    """Estimates [REPLICATES, 2^M] of p(m | o) for every completion of one image x, and those."""
    images = all_images(model.config)
    images = images[(images == x)[:, observed].all(axis=1)]
    many, keys = replicated(images)
    given = {"condition": rows(condition, len(many))}
    log_likelihood = sere_jax.log_likelihood(model, params, many, keys, num_samples=200, **given)
    likelihoods = np.exp(np.asarray(log_likelihood, np.float64)).reshape(-1, len(images))
    return likelihoods / likelihoods.sum(axis=1, keepdims=True), images


def frequencies(completed, images):
    matches = (completed[:, None] == images[None]).all(axis=(2, 3, 4))
    assert matches.any(axis=1).all()  # observed pixels have not changed
    return matches.mean(axis=0)


def draw_from_the_joint(model, params, num, key, given):
    """Images and coordinates of their codes, exactly from p(z, x), as `sample` draws them."""
    keys = example_keys(key, num)
    noise = sample_noise(model, keys, 0)
    x = apply(model, params, noise, block_keys(model, keys), method="generate", **given)[0]
    system = model.config.system
    if system == "ladder_vae":
        return x, apply(model, params, noise, None, method="_top_down")[0]
    if system == "iaf_vae":
        return x, noise[0]
    if system == "relaxed_bernoulli_vae":
        uniform = stats.norm.cdf(np.float64(noise[0]))
        return x, np.float32(np.log(uniform / (1 - uniform)) / model.config.prior_temperature)
    epsilon = np.zeros(noise.shape, np.float32)
    for _ in range(len(epsilon)):  # the first layer is right after one, the next after two, ...
        prior = model.apply({"params": params}, x, epsilon, method=priors_of, **given)
        epsilon = jax.vmap(Prior.sample)(prior, noise)
    return x, np.moveaxis(epsilon, 0, 1)


def priors_of(model, x, epsilon, condition=None):
    """p(ε_l | .) of all layers, given the blocks and the codes before."""
    return model.hierarchy.follow(model.observe(x, condition), epsilon).prior


def counts(x):
    """How often each binary image [2^D] is in x [B, ...]."""
    flat = np.asarray(x, int).reshape(len(x), -1)
    return np.bincount(flat @ (1 << np.arange(flat.shape[1])), minlength=1 << flat.shape[1])


def p_value_of_two_samples(first, second):
    """χ² test that two arrays of counts are of one distribution."""
    table = np.stack([first, second])
    return stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue


@pytest.mark.parametrize("name", MODELS)
def test_what_is_drawn_from_the_model_stays_so(random_model, name):
    """Stationarity, whatever q is: p(z, x), and with it every p(z, m | o), is left as it is."""
    model, params = random_model(**MODELS[name])
    given = {"condition": None}
    if model.config.condition_size:
        given["condition"] = rows((1.0, -0.5), NUM_DRAWS)

    def draw(key):
        return draw_from_the_joint(model, params, NUM_DRAWS, key, given)

    key = jax.random.key(3)
    reference = counts(draw(jax.random.key(4))[0])
    for observed in masks(model.config):
        x, codes = draw(key)
        keys = example_keys(jax.random.fold_in(key, 1), NUM_DRAWS)
        state = run(model, params, State(x, codes), observed, keys, given["condition"])
        np.testing.assert_array_equal(np.asarray(state.x)[:, observed], np.asarray(x)[:, observed])
        assert (np.asarray(state.x) != np.asarray(x)).mean() > 0.001  # the chain moves
        assert p_value_of_two_samples(counts(state.x), reference) > 1e-4


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, state, observed, keys, condition):
    return advance(model, params, state, observed, keys, 4, condition)


@pytest.mark.parametrize("name", WELL_MIXED)
def test_completions_are_as_frequent_as_the_exact_conditional_says(random_model, name):
    is_sere_vae = "system" not in MODELS[name]
    wide = {"residual_scale_start": 0.9} if is_sere_vae else {}
    model, params = random_model(**MODELS[name], **wide)
    params, config = with_wide_posteriors(params), model.config
    condition = (1.0, -0.5) if config.condition_size else None
    x = np.zeros(config.data_shape, np.float32)
    x.reshape(-1)[::3] = 1.0
    batch, given = np.tile(x, (NUM_CHAINS, 1, 1, 1)), {"condition": rows(condition, NUM_CHAINS)}
    for seed, observed in enumerate(masks(config)):
        estimates, images = conditionals(model, params, observed, x, condition)
        mean, error = mean_and_standard_error(estimates)
        key = jax.random.key(seed)
        completed = np.asarray(
            sere_jax.complete(model, params, batch, observed, key, NUM_STEPS, **given)
        )
        np.testing.assert_array_equal(completed[:, observed], batch[:, observed])
        found = frequencies(completed, images)
        variance = mean * (1 - mean) / NUM_CHAINS + error**2
        chi_square = ((found - mean) ** 2 / variance).sum()
        assert stats.chi2.sf(chi_square, len(images)) > 1e-3, (found, mean)
        assert mean.max() > 1.5 * mean.min()  # not all alike: there is something to get wrong


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("ladder", "iaf")])
def test_weights_of_given_codes_are_those_of_the_noise_that_makes_them(random_model, name):
    """Those that `log_likelihood` averages, which the noise gives and not the codes."""
    check_weights(*random_model(**MODELS[name]))


@pytest.mark.parametrize("name", ["ladder", "iaf"])
def test_the_same_of_systems_whose_scales_are_learned(random_model, name):
    model, params = random_model(**MODELS[name])
    check_weights(model, with_wide_posteriors(params))


def check_weights(model, params):
    x = all_images(model.config)[:16]
    size = model.config.condition_size
    given = {"condition": rows((1.0, -0.5), len(x)) if size else None}
    noise = sample_noise(model, example_keys(jax.random.key(1), len(x)), 0)
    observed = apply(model, params, x, method="observe", **given)
    terms = apply(model, params, x, observed, noise[:, None], method="log_weights")
    expected = sum(np.asarray(term) for term in terms)[0]
    coordinates = apply(model, params, x, noise, method="coordinates", **given)
    found = apply(model, params, x, coordinates, method="log_weight", **given)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


def test_the_data_layers_draw_from_what_they_say(random_model):
    """`redraw`: what is missing alone changes, and the three log-probabilities are consistent."""
    model, params = random_model(**EVERYTHING)
    x = all_images(model.config)[::7]
    missing = np.float32(~masks(model.config)[0])
    keys = example_keys(jax.random.key(2), len(x))
    codes = apply(model, params, x, sample_noise(model, keys, 0), method="coordinates")
    of_blocks = block_keys(model, keys)
    drawn, _, terms = apply(model, params, x, codes, missing, of_blocks, method="redraw")
    np.testing.assert_array_equal(np.where(missing > 0, x, drawn), x)
    assert (np.asarray(drawn) != x).any()
    everything = np.ones_like(missing)
    _, _, of_all = apply(model, params, x, codes, everything, of_blocks, method="redraw")
    np.testing.assert_allclose(of_all.old, terms.whole, rtol=1e-5)
    observed = apply(model, params, x, codes, 1 - missing, of_blocks, method="redraw")[2].old
    np.testing.assert_allclose(terms.old + observed, terms.whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        {"data_layer": "discretized_logistic_mixture", "num_mixtures": 2, "data_shape": (2, 3, 3)},
        {"data_layer": "gaussian", "network": "resnet"},
    ],
    ids=["levels", "grey"],
)
def test_other_data_layers_complete_too(random_model, overrides):
    model, params = random_model(**overrides)
    shape = model.config.data_shape
    images = np.random.default_rng(0).integers(0, 256, (3, *shape)).astype(np.uint8)
    x = np.float32(sere_jax.to_data_space(model, images, jax.random.key(0)))
    observed = np.broadcast_to(np.array([[True, False, True]] * 2)[..., None], shape)
    holes = np.where(observed, x, np.nan)
    completed = sere_jax.complete(model, params, holes, observed, jax.random.key(1), 3)
    assert completed.dtype == sere_jax.sample(model, params, jax.random.key(0), 1).dtype
    np.testing.assert_array_equal(np.float32(completed)[:, observed], x[:, observed])
    assert np.isfinite(completed).all()
    again = sere_jax.complete(model, params, x, observed, jax.random.key(1), 3)
    np.testing.assert_array_equal(completed, again)


def test_a_chain_depends_on_its_own_key_alone(random_model):
    model, params = random_model(**EVERYTHING)
    x, observed = all_images(model.config)[:6], masks(model.config)[0]
    keys = jax.random.split(jax.random.key(1), 6)
    together = sere_jax.complete(model, params, x, observed, keys, 5)
    alone = sere_jax.complete(model, params, x[3:5], observed, keys[3:5], 5)
    np.testing.assert_array_equal(together[3:5], alone)


MASK = masks(sere_jax.ModelConfig(data_shape=(2, 3, 1), num_layers=3, latent_shape=(2,)))[0]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"observed": np.zeros((2, 3, 1), bool)}, ValueError, "observed is False everywhere"),
        ({"observed": np.ones((2, 3, 1), bool)}, ValueError, "observed is True everywhere"),
        ({"observed": np.ones((2, 3, 1))}, TypeError, "observed holds float64; it must be bool"),
        ({"observed": MASK[None]}, ValueError, r"observed has the shape \(1, 2, 3, 1\)"),
        ({"num_steps": 0}, ValueError, "num_steps=0 must be at least 1"),
        ({"num_steps": 2.5}, TypeError, "num_steps=2.5 must be an integer"),
        ({"x": np.zeros((2, 3, 1))}, ValueError, "x has the shape"),
        ({"x": np.full((1, 2, 3, 1), 0.5)}, ValueError, "0.5, which is no whole number"),
        ({"key": 3}, TypeError, "key is int"),
        ({"condition": [[1.0]]}, ValueError, "condition is given to a model without one"),
    ],
)
def test_what_cannot_be_completed_is_refused(random_model, overrides, error, message):
    arguments = {"x": np.zeros((1, 2, 3, 1)), "observed": MASK, "key": jax.random.key(0)}
    with pytest.raises(error, match=message):
        sere_jax.complete(*random_model(), **arguments | overrides)


def test_flows_are_refused_by_name(random_model):
    model, params = random_model(data_layer="masked_autoregressive_flow", flow_hidden_size=8)
    with pytest.raises(ValueError, match="data_layer='masked_autoregressive_flow' are not; take"):
        sere_jax.complete(model, params, np.zeros((1, 2, 3, 1)), MASK, jax.random.key(0))


def test_a_part_of_the_channels_of_a_pixel_is_refused(random_model):
    model, params = random_model(data_shape=(2, 3, 2))
    observed = np.zeros((2, 3, 2), bool)
    observed[..., 0] = True
    with pytest.raises(ValueError, match="differs between the channels of a pixel"):
        sere_jax.complete(model, params, np.zeros((1, 2, 3, 2)), observed, jax.random.key(0))


class OfMine(sere_jax.LatentVariableModel):
    """A system of one's own without the two methods."""


def test_a_system_without_the_methods_is_refused_by_name(random_model):
    model, params = random_model()
    with pytest.raises(ValueError, match="log_weight and redraw, which system='sere_vae'"):
        sere_jax.complete(
            OfMine(model.config), params, np.zeros((1, 2, 3, 1)), MASK, jax.random.key(0)
        )
