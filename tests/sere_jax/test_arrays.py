"""What users pass to the public functions: what holds the same values gives the same result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sere_jax
from sere_jax.arrays import as_key

FLOW = {"data_layer": "masked_autoregressive_flow", "flow_hidden_size": 8}
MODELS = {
    "all couplings": {"context": 2, "data_context": 2, "couple_data_to_prior": True},
    "spline": {"bijector": "spline_coupling"},
    "masked": {"bijector": "masked_autoregressive", "latent_sizes": (2, 1, 1)},
    "gaussian": {"bijector": "identity", "data_layer": "gaussian", "couple_prior": False},
    "padded": {"data_shape": (2, 5, 1), "encoder": "shared", "dropout": 0.5},
    "resnet": {
        "network": "resnet",
        "data_shape": (4, 4, 3),
        "num_layers": 4,
        "partition": "checkerboard",
        "latent_shape": (2, 2, 2),
        "data_layer": "discretized_logistic_mixture",
    },
    "flow": {**FLOW, "data_shape": (2, 4, 1)},
    "plain flow": {**FLOW, "latent_shape": (0,), "couple_data": False, "prior": "standard_normal"},
    "ladder": {"system": "ladder_vae", "latent_sizes": (2, 2, 1)},
    "iaf": {"system": "iaf_vae", "num_layers": 1},
    "relaxed": {"system": "relaxed_bernoulli_vae", "num_layers": 1},
}
each_model = pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS)
KEY = jax.random.key(3)


def calls(model):
    """The public functions of a batch, as functions of (params, x, key)."""
    functions = {
        name: functools.partial(getattr(sere_jax, name), model)
        for name in ("infer", "elbo", *(["reconstruct"] if model.config.has_latents else []))
    }
    functions["log_likelihood"] = functools.partial(
        sere_jax.log_likelihood, model, num_samples=np.int64(3)
    )
    functions["objective"] = functools.partial(sere_jax.objective, model, num_samples=3)
    functions["to_pixels"] = lambda params, x, key: sere_jax.to_pixels(model, x)
    functions["to_data_space"] = lambda params, x, key: sere_jax.to_data_space(
        model, np.zeros(x.shape, np.uint8), key
    )
    return functions


def shapes_of(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)


def images(model, num):
    return np.zeros((num, *model.config.data_shape), np.float32)


@each_model
def test_all_works_where_jax_neither_broadcasts_nor_promotes(tiny_config, overrides):
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        model = sere_jax.create_model(tiny_config(**overrides))
        x = images(model, 5)
        params = jax.eval_shape(lambda: sere_jax.init(model, KEY, x))
        for function in calls(model).values():
            jax.eval_shape(function, params, x.astype(np.uint8), KEY)
        sample = jax.eval_shape(lambda params: sere_jax.sample(model, params, KEY, 4), params)
        gradient = jax.grad(
            lambda params: sere_jax.objective(model, params, x, KEY, num_samples=2).value.sum()
        )
        gradients = jax.eval_shape(gradient, params)
        if model.config.has_latents:
            jax.eval_shape(lambda p: sere_jax.interpolate(model, p, x[0], x[1], KEY, 3), params)
    assert sample.shape == (4, *model.config.data_shape)
    assert shapes_of(gradients) == shapes_of(params)


@each_model
def test_an_empty_batch_gives_empty_results(random_model, overrides):
    model, params = random_model(**overrides)

    for function in calls(model).values():
        seven, none = (
            jax.eval_shape(functools.partial(function, params), images(model, num), KEY)
            for num in (7, 0)
        )
        for expected, leaf in zip(jax.tree.leaves(seven), jax.tree.leaves(none), strict=True):
            assert leaf.shape == tuple(0 if size == 7 else size for size in expected.shape)
            assert leaf.dtype == expected.dtype


def test_an_empty_batch_is_computed_and_has_a_gradient(random_model):
    model, params = random_model()
    x = np.zeros((0, 2, 3, 1), np.float32)

    assert sere_jax.elbo(model, params, x, KEY).shape == (0,)
    if model.config.has_latents:
        assert sere_jax.reconstruct(model, params, x, KEY).shape == x.shape
    assert sere_jax.to_data_space(model, x.astype(np.uint8), KEY).shape == x.shape
    gradient = jax.jit(jax.grad(lambda p: sere_jax.objective(model, p, x, KEY).value.sum()))
    gradients = gradient(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_init_from_no_image_is_refused(random_model):
    model, _ = random_model()
    with pytest.raises(ValueError, match=r"x has the shape \(0, 2, 3, 1\), no image to start from"):
        sere_jax.init(model, KEY, images(model, 0))
    with pytest.raises(ValueError, match="key holds 2 keys; init takes a single one"):
        sere_jax.init(model, jax.random.split(KEY))


@pytest.fixture(scope="module")
def tiny(random_model):
    model, params = random_model()
    return model, params, np.random.default_rng(0).integers(0, 2, (4, 2, 3, 1)).astype(np.float32)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(">f4"),
        lambda x: x.astype(">f8"),
        lambda x: x.astype(">u2"),
        lambda x: x.astype(np.float16),
        lambda x: x.astype(jnp.bfloat16),
        lambda x: x.astype(bool),
        lambda x: x.tolist(),
        list,
        lambda x: [jnp.asarray(image) for image in x],
        lambda x: np.ma.masked_array(x, np.zeros(x.shape, bool)),
    ],
    ids=["f4", "f8", "u2", "half", "bfloat16", "bool", "lists", "arrays", "on device", "masked"],
)
def test_x_is_what_it_holds(tiny, convert):
    model, params, x = tiny

    for name in ("elbo", "reconstruct", "to_pixels"):
        got, expected = (calls(model)[name](params, y, KEY) for y in (convert(x), x))
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    ends = [sere_jax.interpolate(model, params, y[0], y[1], KEY, 3) for y in (convert(x), x)]
    np.testing.assert_array_equal(*ends)


def test_images_may_be_a_list_of_arrays(tiny):
    model, _, x = tiny
    bytes_ = (255 * x).astype(np.uint8)
    expected = sere_jax.to_data_space(model, bytes_, KEY)
    np.testing.assert_array_equal(sere_jax.to_data_space(model, list(bytes_), KEY), expected)


def test_parameters_and_keys_are_what_they_hold_in_any_byte_order(tiny):
    model, params, x = tiny
    swapped = jax.tree.map(lambda leaf: leaf.astype(">f4"), params)
    key = np.asarray(jax.random.PRNGKey(3)).astype(">u4")

    np.testing.assert_array_equal(
        sere_jax.elbo(model, swapped, x, key), sere_jax.elbo(model, params, x, KEY)
    )
    np.testing.assert_array_equal(
        sere_jax.sample(model, swapped, key, 3), sere_jax.sample(model, params, KEY, 3)
    )


def test_a_list_whose_parts_differ_in_shape_is_refused(tiny):
    model, params, _ = tiny
    for x in ([np.zeros((2, 3, 1)), np.zeros((3, 2, 1))], [jnp.zeros((2, 3, 1)), jnp.zeros(2)]):
        with pytest.raises(ValueError, match="x is no array: its parts differ in shape or type"):
            sere_jax.elbo(model, params, x, KEY)


@pytest.mark.parametrize(
    "leaf",
    [np.zeros(2, complex), np.array(["a"]), object()],
    ids=["complex", "text", "object"],
)
def test_parameters_that_are_no_real_numbers_are_refused(tiny, leaf):
    model, params, x = tiny
    with pytest.raises(TypeError, match="params holds values of type .* real numbers"):
        sere_jax.elbo(model, {**params, "other": leaf}, x, KEY)


@each_model
def test_short_parameters_are_computed_with_in_float32(random_model, overrides):
    model, params = random_model(**overrides)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    values = np.float32 if model.config.data_layer != "discretized_logistic_mixture" else np.uint8

    for name in ("infer", "elbo", "log_likelihood", "objective"):
        out = jax.eval_shape(calls(model)[name], params, images(model, 2), KEY)
        types = {leaf.dtype for leaf in jax.tree.leaves(out)} - {np.dtype(bool)}  # masks
        assert types == {np.dtype(np.float32)}
    reconstruct, sample = (
        functools.partial(sere_jax.reconstruct, model),
        lambda params, key: sere_jax.sample(model, params, key, 2),
    )
    if model.config.has_latents:
        assert jax.eval_shape(reconstruct, params, images(model, 2), KEY).dtype == values
    assert jax.eval_shape(sample, params, KEY).dtype == values


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16], ids=["bfloat16", "float16"])
def test_samples_of_short_parameters_are_those_of_their_values(random_model, dtype):
    model, params = random_model(**FLOW)
    short = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    values = jax.tree.map(lambda leaf: leaf.astype(np.float32), short)
    np.testing.assert_array_equal(
        sere_jax.sample(model, short, KEY, 2), sere_jax.sample(model, values, KEY, 2)
    )


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_an_example_draws_the_same_in_every_batch_whatever_the_kind_of_key(tiny, impl):
    model, params, x = tiny
    grey = np.full(x.shape, 100, np.uint8)
    keys = jax.random.split(jax.random.key(0, impl=impl), len(x))

    for function in (
        lambda part: sere_jax.to_data_space(model, grey[part], keys[part]),
        lambda part: sere_jax.infer(model, params, x[part], keys[part]).epsilon,
        lambda part: sere_jax.sample(model, params, keys[part], len(keys[part])),
        lambda part: sere_jax.reconstruct(model, params, x[part], keys[part]),
    ):
        alone = [function(slice(i, i + 1)) for i in range(len(x))]
        np.testing.assert_allclose(
            function(slice(None)), np.concatenate(alone), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_a_seed_gives_the_same_with_every_kind_of_key(tiny, impl):
    model, params, x = tiny
    expected = sere_jax.elbo(model, params, x, KEY)
    weights = sere_jax.init(model, KEY)

    with jax.default_prng_impl(impl):
        assert jax.random.PRNGKey(3).shape == (4,)
        new, old = jax.random.key(3), jax.random.PRNGKey(3)
        for key in (new, old, np.asarray(old), np.asarray(jax.random.key_data(KEY)), KEY):
            np.testing.assert_array_equal(sere_jax.elbo(model, params, x, key), expected)
        jax.tree.map(np.testing.assert_array_equal, sere_jax.init(model, new), weights)
    np.testing.assert_array_equal(sere_jax.elbo(model, params, x, old), expected)


def test_keys_that_differ_in_either_half_stay_different():
    words = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 1, 0, 1], [1, 0, 0, 1]])
    data = [tuple(np.asarray(jax.random.key_data(as_key(row)))) for row in words.astype(np.uint32)]
    assert len(set(data)) == len(words)


@pytest.mark.parametrize("key", [[KEY, KEY], [0, 3], np.zeros(3, np.uint32)], ids=str)
def test_a_list_and_raw_words_of_another_number_are_no_key(tiny, key):
    model, params, x = tiny
    for function in calls(model).values():
        with pytest.raises(TypeError, match=r"key is .*; it must be jax\.random\.key\(seed\)"):
            if function(params, x, key) is not None:
                sere_jax.init(model, key)  # to_pixels takes none


@each_model
def test_the_table_of_modules_is_made(tiny_config, overrides):
    model = sere_jax.create_model(tiny_config(**overrides))
    num_layers, *event_shape = model.noise_shape
    noise = jnp.zeros((num_layers, 2, *event_shape))
    table = model.tabulate(KEY, images(model, 2), noise, console_kwargs={"width": 500})
    assert type(model).__name__ in table
    if type(model) is sere_jax.SeReVAE and model.config.bijector == "rank_one_affine":
        assert model.config.has_latents == ("RankOneAffine" in table)
