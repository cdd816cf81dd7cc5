"""With `jax_enable_x64` all is computed in float32 as without it, from the same random numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sere_jax

pytestmark = pytest.mark.usefixtures("quick_compilation")
FLOW = {"data_layer": "masked_autoregressive_flow", "flow_hidden_size": 4}
MODELS = {
    "sere_vae": {"dropout": 0.1, "couple_data_to_prior": True, "latent_sizes": (1, 2)},
    "spline_coupling": {"bijector": "spline_coupling", "data_layer": "gaussian"},
    "masked_autoregressive": {"bijector": "masked_autoregressive", "prior": "standard_normal"},
    "resnet": {"network": "resnet", "encoder": "shared", "carry_start": 0.5},
    "state": {"encoder": "local", "state_size": 3, "bijector_diagonal_min": 0.1},
    "mixture": {"data_layer": "discretized_logistic_mixture", "couple_bijector": False},
    "flow": FLOW,
    "plain flow": {**FLOW, "latent_shape": (0,)},
    "ladder_vae": {"system": "ladder_vae"},
    "iaf_vae": {"system": "iaf_vae", "num_layers": 1},
    "relaxed_bernoulli_vae": {"system": "relaxed_bernoulli_vae", "num_layers": 1},
}


@pytest.fixture
def x64():
    """Function that switches it on and off; off in the end."""
    yield lambda on: jax.config.update("jax_enable_x64", on)
    jax.config.update("jax_enable_x64", False)


def create(fields):
    defaults = {"data_shape": (4, 4, 1), "num_layers": 2, "latent_shape": (2,), "hidden_size": 4}
    return sere_jax.create_model(sere_jax.ModelConfig(**(defaults | fields)))


def everything(model, params, x):
    key = jax.random.key(1)

    def loss(params):
        return jnp.sum(sere_jax.objective(model, params, x, key, num_samples=3).value)

    results = [
        sere_jax.elbo(model, params, x, key),
        sere_jax.log_likelihood(model, params, x, key, 11),
        sere_jax.sample(model, params, key, 3),
        sere_jax.sample(model, params, key, 3, expected=True),
        jax.grad(loss)(params),
    ]
    if model.config.has_latents:
        results.append(sere_jax.reconstruct(model, params, x, key))
        results.append(sere_jax.interpolate(model, params, x[0], x[1], key, 4))
    return results


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS.keys())
def test_all_is_float32(fields, x64):
    def compute(images, x):
        made = sere_jax.to_data_space(model, images, jax.random.key(0))
        params = sere_jax.init(model, jax.random.key(0), x)
        return made, params, everything(model, params, x)

    x64(True)
    model = create(fields)
    shape = (2, 4, 4, 1)
    outputs = jax.eval_shape(
        compute, jax.ShapeDtypeStruct(shape, np.uint8), jax.ShapeDtypeStruct(shape, np.float64)
    )
    types = {leaf.dtype.name for leaf in jax.tree.leaves(outputs)}
    assert "float32" in types and types <= {"float32", "uint8"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sere_vae", "flow"])
def test_values_are_those_without_it(name, x64):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1)).astype(np.uint8)

    def computed(on):
        x64(on)
        model = create(MODELS[name])
        x = sere_jax.to_data_space(model, images, jax.random.key(0))
        params = sere_jax.init(model, jax.random.key(0), x)
        return params, everything(model, params, np.asarray(x, np.float64))

    without, with_it = computed(False), computed(True)
    for expected, found in zip(*map(jax.tree.leaves, (without, with_it)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
