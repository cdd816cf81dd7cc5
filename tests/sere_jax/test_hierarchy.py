"""The hierarchy: who depends on whom, by automatic differentiation, and the scan against a loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import sere_jax
from sere_jax.data_layer import create_data_layer
from sere_jax.layer import Layer
from sere_jax.model import apply

EVERYTHING = {"context": 2, "data_context": 2, "couple_data_to_prior": True}
STATE = {"state_size": 3, "data_context": 2, "couple_data_to_prior": True}
MAPS = {"network": "resnet", "partition": "checkerboard", "latent_shape": (1, 2, 1)}
# Blocks of two pixels of two channels; the last pixel of the last block is padding.
PADDED = {"data_shape": (1, 5, 2)}


def random_values(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_images(*shape):
    return (np.random.default_rng(2).random(shape) < 0.5).astype(np.float32)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        pytest.param(
            {},
            {
                "prior": {"codes"},
                "residual": {"codes", "image"},
                "bijector": {"codes"},
                "data": {"blocks"},
            },
            id="case 3",
        ),
        pytest.param(
            {"couple_prior": False, "couple_bijector": False},
            {"prior": set(), "residual": {"image"}, "bijector": set(), "data": {"blocks"}},
            id="case 2",
        ),
        pytest.param(
            {"couple_prior": False, "couple_bijector": False, "couple_data": False},
            {"prior": set(), "residual": {"image"}, "bijector": set(), "data": set()},
            id="case 1",
        ),
        pytest.param(
            {"couple_prior": False},
            {"prior": set(), "residual": {"image"}, "bijector": {"codes"}, "data": {"blocks"}},
            id="DLGM",
        ),
        pytest.param(
            {"prior": "standard_normal"},
            {
                "prior": set(),
                "residual": {"codes", "image"},
                "bijector": {"codes"},
                "data": {"blocks"},
            },
            id="standard normal prior",
        ),
        pytest.param(
            {"prior": "spline", "couple_data_to_prior": True, "couple_bijector": False},
            {
                "prior": {"codes", "blocks"},
                "residual": {"codes", "image"},
                "bijector": set(),
                "data": {"blocks"},
            },
            id="splines in the prior",
        ),
        pytest.param(
            {"condition_residual_on_latents": False, "bijector": "identity"},
            {"prior": {"codes"}, "residual": {"image"}, "bijector": set(), "data": {"blocks"}},
            id="residual of the image alone, no bijector",
        ),
        pytest.param(
            {"couple_data_to_prior": True, "couple_data": False},
            {
                "prior": {"codes", "blocks"},
                "residual": {"codes", "image"},
                "bijector": {"codes"},
                "data": set(),
            },
            id="blocks to the prior only",
        ),
        pytest.param(
            {"couple_data_to_prior": True, "couple_prior": False, "data_context": 1},
            {
                "prior": {"blocks"},
                "residual": {"image"},
                "bijector": {"codes"},
                "data": {"blocks"},
            },
            id="DLGM, blocks to the prior too",
        ),
    ],
)
def test_each_part_of_a_layer_sees_exactly_what_its_flags_couple(
    tiny_config, random_module, overrides, expected
):
    config = tiny_config(**{"context": 2, "data_context": 2, **overrides})
    layer = Layer(config)
    inputs = {
        "codes": random_values(config.context, 2),
        "blocks": random_values(config.data_context, 1, 2, 1),
        "image": random_values(*config.data_shape),
    }
    noise = random_values(2, seed=3)

    def compute(layer, inputs):
        block = inputs["blocks"][-1]  # of the right shape, and not read
        observed = layer.observe(layer.encode(inputs["image"]), inputs["blocks"], block)
        offsets = observed.prior, observed.posterior
        _, latents = layer.infer(inputs["codes"], (*offsets, noise, None, observed.condition))
        return {
            "prior": jnp.stack(
                [latents.prior.mean, latents.prior.scale, latents.prior.sample(noise)]
            ),
            "residual": jnp.stack([latents.residual.mean, latents.residual.scale]),
            "bijector": latents.bijector.forward(noise),
            "data": layer.decode(noise, observed.data),
        }

    params = random_module(layer, inputs, method=compute)
    jacobians = jax.jit(jax.jacrev(functools.partial(layer.apply, method=compute), argnums=1))(
        params, inputs
    )

    event_ndims = {"codes": 1, "blocks": 3, "image": 0}
    for output, by_input in jacobians.items():
        for name, jacobian in by_input.items():
            lead = jacobian.ndim - inputs[name].ndim
            # One figure for each code and each block of the windows, and for each pixel.
            kept = range(lead, jacobian.ndim - event_ndims[name])
            summed = tuple(axis for axis in range(jacobian.ndim) if axis not in kept)
            influence = np.abs(jacobian).sum(axis=summed)
            if name in expected[output]:
                assert (influence > 1e-3).all(), (output, name)
            else:
                assert (influence == 0).all(), (output, name)


@pytest.mark.parametrize(
    ("num_seen", "overrides"),
    [
        (1, {}),
        (2, {"context": 2}),
        (2, {"context": 2, **MAPS}),
        (2, {"context": 2, "condition_size": 3}),
        (4, {"state_size": 3}),
        (4, {"state_size": 3, **MAPS}),
    ],
    ids=[
        "one code",
        "two codes",
        "two codes, residual networks",
        "two codes, a condition",
        "a state",
        "a state, residual networks",
    ],
)
def test_posterior_given_the_last_codes_and_the_image_is_independent_of_older_codes(
    random_model, num_seen, overrides
):
    """∂q_l/∂z_m, by the chain rule from the noise that drives both: (∂q/∂noise) (∂z/∂noise)⁻¹."""
    num_layers, num_latents = 4, 2
    model, params = random_model(
        data_shape=(2, 4, 1),
        num_layers=num_layers,
        couple_data_to_prior=True,
        **overrides,
    )
    size = num_layers * num_latents

    def codes_and_posterior(noise):
        noise = noise.reshape(num_layers, 1, *model.config.latent_shape)
        out = apply(model, params, x, noise, condition=condition)
        posterior = jnp.stack([out.posterior_mean, out.posterior_scale], axis=2)
        return out.z.reshape(size), posterior.reshape(2 * size)

    num_conditions = model.config.condition_size
    condition = random_values(1, num_conditions) if num_conditions else None
    with jax.enable_x64(True):
        x = jnp.asarray(random_images(1, 2, 4, 1), jnp.float64)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        noise = jnp.asarray(random_values(size), jnp.float64)
        z_by_noise, q_by_noise = jax.jit(jax.jacrev(codes_and_posterior))(noise)
        q_by_z = np.asarray(q_by_noise) @ np.linalg.inv(z_by_noise)

    blocks = q_by_z.reshape(num_layers, 2 * num_latents, num_layers, num_latents)
    depends = np.abs(blocks).max(axis=(1, 3)) > 1e-9
    distance = np.subtract.outer(np.arange(num_layers), np.arange(num_layers))
    np.testing.assert_array_equal(depends, (distance >= 1) & (distance <= num_seen))


@pytest.mark.parametrize(
    ("couple_data", "data_context"), [(True, 1), (True, 2), (True, 4), (False, 2)]
)
def test_data_layers_see_exactly_the_last_blocks(random_model, couple_data, data_context):
    model, params = random_model(
        data_shape=(2, 4, 1), num_layers=4, data_context=data_context, couple_data=couple_data
    )
    z = random_values(4, 2)

    @jax.jit
    @jax.jacrev
    def jacobian(x):
        return model.apply(
            {"params": params},
            lambda model, x: model.hierarchy.decode(z, model.hierarchy.observe(x))[0],
            x,
            method=lambda model, function, x: function(model, x),
        ).reshape(4, 2)

    by_block = jacobian(random_values(2, 4, 1)).reshape(4, 2, 4, 2)
    depends = np.abs(by_block).max(axis=(1, 3)) > 1e-6
    distance = np.subtract.outer(np.arange(4), np.arange(4))
    expected = couple_data & (distance >= 1) & (distance <= data_context)
    np.testing.assert_array_equal(depends, expected)


@pytest.mark.parametrize(
    ("encoder", "overrides", "reach"),
    [
        ("independent", {}, 3),
        ("shared", {}, 3),
        ("local", {}, 1),
        ("local", {"condition_size": 2, "data_layer": "gaussian"}, 1),
        ("local", MAPS, 1),
    ],
)
def test_encoders_see_all_blocks_or_those_around_their_own(random_model, encoder, overrides, reach):
    model, params = random_model(data_shape=(2, 4, 1), num_layers=4, encoder=encoder, **overrides)
    size = model.config.condition_size
    given = (random_values(1, size),) if size else ()

    def features(model, blocks):
        x = model.hierarchy.partition.merge(blocks)
        return model.observe(x, *given).posterior.reshape(4, -1)

    blocks = model.bind({"params": params}).hierarchy.partition.split(random_images(1, 2, 4, 1))
    jacobian = jax.jit(jax.jacrev(functools.partial(model.apply, method=features), argnums=1))(
        {"params": params}, blocks
    )

    depends = np.abs(jacobian).reshape(4, -1, 4, 2).max(axis=(1, 3)) > 1e-6
    distance = np.subtract.outer(np.arange(4), np.arange(4))
    np.testing.assert_array_equal(depends, np.abs(distance) <= reach)


def last(items, count, like):
    """The last `count` items, newest last, after zeros if there are not so many."""
    return jnp.stack(([jnp.zeros_like(like)] * count + items)[-count:], axis=1)


def on_layer(config, params, index, compute):
    """Calls `compute` with the layer number `index` alone."""
    own = jax.tree.map(lambda leaf: leaf[index], params["hierarchy"]["layers"])
    return Layer(config).apply({"params": own}, method=compute)


def next_state(config, params, index, state, z):
    """h_l by its formula, for codes that are vectors."""
    if not config.state_size:
        return None
    own = params["hierarchy"]["layers"]["top_down"]["Dense_0"]
    raw = beside(state, z) @ own["kernel"][index] + own["bias"][index]
    share, new = raw[:, : config.state_size], raw[:, config.state_size :]
    share = 1 / (1 + jnp.exp(1 - share))
    return (1 - share) * state + share * jnp.tanh(new)


def beside(state, z):
    return z if state is None else jnp.concatenate([z, state], axis=-1)


def window_of(config, codes, state, like):
    return state[:, None] if config.state_size else last(codes, config.context, like)


def infer_by_loop(config, params, x, noise):
    """`SeReVAE.__call__` for images of one row, as a Python loop over the layers."""
    length = -(-config.data_shape[1] // config.num_layers)
    missing = config.num_layers * length - config.data_shape[1]
    blocks = jnp.split(jnp.pad(x, [(0, 0), (0, 0), (0, missing), (0, 0)]), config.num_layers, 2)
    codes, results = [], []
    state = jnp.zeros((len(x), config.state_size))
    for index in range(config.num_layers):

        def infer_layer(layer, index=index, state=state):
            previous = last(blocks[:index], config.data_context, blocks[0])
            observed = layer.observe(layer.encode(x), previous, blocks[index])
            window = window_of(config, codes, state, noise[0])
            prior, bijector = layer.prior_and_bijector(window, observed.prior)
            residual = layer.posterior(window, observed.posterior)
            mean = prior.mean * residual.scale + residual.mean
            epsilon = mean + prior.scale * residual.scale * noise[index]
            z = bijector.forward(epsilon)
            return {
                "prior_mean": prior.mean,
                "prior_scale": prior.scale,
                "residual_mean": residual.mean,
                "residual_scale": residual.scale,
                "epsilon": epsilon,
                "z": z,
                "data_parameters": layer.decode(
                    beside(next_state(config, params, index, state, z), z), observed.data
                ),
            }

        results.append(on_layer(config, params, index, infer_layer))
        codes.append(results[-1]["z"])
        state = next_state(config, params, index, state, codes[-1])
    return {name: jnp.stack([result[name] for result in results], axis=1) for name in results[0]}


def generate_by_loop(config, params, noise, keys):
    """`SeReVAE.generate` in the same way."""
    length = -(-config.data_shape[1] // config.num_layers)
    codes, blocks, means = [], [], []
    state = jnp.zeros((noise.shape[1], config.state_size))
    empty = jnp.zeros((noise.shape[1], 1, length, config.data_shape[2]))
    for index in range(config.num_layers):

        def generate_layer(layer, index=index, state=state):
            previous = last(blocks, config.data_context, empty)
            for_prior, for_data = layer.observe_previous(previous)
            window = window_of(config, codes, state, noise[0])
            prior, bijector = layer.prior_and_bijector(window, for_prior)
            z = bijector.forward(prior.mean + prior.scale * noise[index])
            read = beside(next_state(config, params, index, state, z), z)
            return z, jax.nn.sigmoid(layer.decode(read, for_data))

        z, mean = on_layer(config, params, index, generate_layer)
        codes.append(z)
        state = next_state(config, params, index, state, z)
        means.append(mean)
        blocks.append(jax.vmap(jax.random.bernoulli)(keys[index], mean).astype(jnp.float32))
    width = config.data_shape[1]
    return tuple(jnp.concatenate(parts, axis=2)[:, :, :width] for parts in (blocks, means))


@pytest.mark.parametrize("overrides", [EVERYTHING, STATE], ids=["two codes", "a state"])
def test_scanned_inference_is_a_loop_over_layers(random_model, overrides):
    model, params = random_model(**PADDED, **overrides)
    x, noise = random_images(7, *model.config.data_shape), random_values(3, 7, 2)

    out = jax.jit(model.apply)({"params": params}, x, noise)

    expected = jax.jit(functools.partial(infer_by_loop, model.config))(params, x, noise)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(out, name), value, rtol=1e-4, atol=1e-5, err_msg=name)
    logits = np.asarray(expected["data_parameters"]).transpose(0, 2, 1, 3, 4).reshape(7, 1, 6, 2)
    log_likelihood = special.log_expit((2 * x - 1) * logits[:, :, :5]).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(out.log_likelihood, log_likelihood, rtol=1e-4)


@pytest.mark.parametrize("overrides", [EVERYTHING, STATE], ids=["two codes", "a state"])
def test_scanned_generation_is_a_loop_over_layers(random_model, overrides):
    model, params = random_model(**PADDED, **overrides)
    noise = random_values(3, 7, 2)
    keys = jax.random.split(jax.random.key(0), (3, 7))

    images, means = jax.jit(functools.partial(model.apply, method="generate"))(
        {"params": params}, noise, keys
    )

    expected_images, expected_means = jax.jit(functools.partial(generate_by_loop, model.config))(
        params, noise, keys
    )
    np.testing.assert_allclose(means, expected_means, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(images, expected_images)
    assert 0.1 < images.mean() < 0.9


@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "discretized_logistic_mixture"])
def test_images_come_from_what_the_likelihood_says_given_the_blocks_before(random_model, name):
    # Blocks of two pixels, but of one in the third and the last layer.
    channels = 1 if name == "bernoulli" else 2
    model, params = random_model(
        data_shape=(1, 6, channels), num_layers=4, data_context=2, data_layer=name
    )
    z = random_values(4, 64, 2)
    keys = jax.random.split(jax.random.key(0), (4, 64))
    variables = {"params": params}

    images, means = model.apply(variables, z, keys, True, method="regenerate")

    def means_given(model, z, x):
        parameters, _ = model.hierarchy.decode(z, model.observe(x))
        if name == "bernoulli":
            blocks = special.expit(parameters)
        else:
            blocks = create_data_layer(model.config, (1, 2, channels)).mean(parameters)
        return model.hierarchy.partition.merge(blocks)

    expected = model.apply(variables, z, images, method=means_given)
    atol = 0.0 if name == "bernoulli" else 1e-5  # other means may be near 0
    np.testing.assert_allclose(means, expected, rtol=1e-4, atol=atol)
    assert np.std(means, axis=0).min() > 0


@pytest.mark.parametrize("num_layers", [3, 6])
def test_a_model_has_num_layers_times_the_parameters_of_a_layer(tiny_config, num_layers):
    config = tiny_config(num_layers=num_layers, **EVERYTHING)
    inputs = (jnp.zeros((2, 3, 1)), jnp.zeros((2, 1, 6 // num_layers, 1)), jnp.zeros((2, 2)))

    def call_all(layer, x, previous, window):
        observed = layer.observe(layer.encode(x), previous, previous[0])
        offsets = observed.prior, observed.posterior
        layer.infer(window, (*offsets, window[0], None, observed.condition))
        layer.decode(window[0], observed.data)

    one_layer = jax.eval_shape(
        lambda: Layer(config).init(jax.random.key(0), *inputs, method=call_all)
    )["params"]
    model = jax.eval_shape(lambda: sere_jax.init(sere_jax.SeReVAE(config), jax.random.key(0)))

    stacked = jax.tree.map(lambda leaf: (num_layers, *leaf.shape), one_layer)
    assert jax.tree.map(lambda leaf: leaf.shape, model["hierarchy"]["layers"]) == stacked
    assert list(model) == ["hierarchy"]
    assert list(model["hierarchy"]) == ["layers"]
