"""Every impossible model is refused by name before anything is compiled."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import sere_jax
from sere_jax import bijector, functions
from sere_jax.conflicts import OWN_NAMES
from sere_jax.data_layer import DATA_LAYERS
from sere_jax.networks.family import NETWORKS

LATTICE = {"data_channels": 4, "network": "resnet", "partition": "checkerboard", "num_layers": 4}
TINY = {"data_shape": (2, 3, 1), "num_layers": 3, "latent_shape": (2,), "hidden_size": 8}


@pytest.fixture
def compilations(caplog):
    """The messages of JAX about programs that it has compiled in this test."""
    jax.random.key(0)
    with jax.log_compiles():
        yield lambda: [message for message in caplog.messages if "XLA compilation" in message]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data_shape": (28, 28)}, ["data_shape=(28, 28)", "(height, width, channels)"]),
        ({"data_shape": 28}, ["data_shape=(28,)", "3 entries"]),
        ({"data_shape": (2, 0, 1)}, ["data_shape=(2, 0, 1)", "at least 1"]),
        ({"data_shape": (2, 3.0, 1)}, ["data_shape=(2, 3.0, 1)", "integers"]),
        ({"latent_shape": ()}, ["latent_shape=()"]),
        ({"latent_shape": (0,)}, ["no latents", "choose data_layer"]),
        ({"num_layers": 0}, ["num_layers=0", "an integer from 1"]),
        ({"num_layers": -1}, ["num_layers=-1", "an integer from 1"]),
        ({"num_layers": "3"}, ["num_layers='3'", "an integer"]),
        ({"num_layers": True}, ["num_layers=True", "an integer"]),
        ({"num_layers": 7}, ["num_layers=7", "1 to 6"]),
        ({"num_layers": 9, "partition": "tiles"}, ["num_layers=9", "2x3", "'tiles'"]),
        ({"partition": "chequerboard"}, ["'chequerboard'", "did you mean 'checkerboard'?"]),
        ({"context": 0}, ["context=0", "an integer from 1"]),
        ({"context": 4}, ["context=4", "num_layers=3", "choose 1 to 3"]),
        ({"data_context": 4}, ["data_context=4", "num_layers=3", "choose 1 to 3"]),
        ({"prior_temperature": 0.1}, ["prior_temperature=0.1 means nothing", "'sere_vae'"]),
        (
            {"posterior_temperature": 0.1, "system": "ladder_vae"},
            ["posterior_temperature=0.1", "'ladder_vae'", "system='relaxed_bernoulli_vae'"],
        ),
        (
            {"latent_sizes": (2,), "system": "relaxed_bernoulli_vae", "num_layers": 1},
            ["latent_sizes=(2,) means nothing", "leave it at ()", "system='sere_vae'"],
        ),
        ({"data_context": 1.5}, ["data_context=1.5", "an integer"]),
        ({"hidden_size": 0}, ["hidden_size=0", "an integer from 1"]),
        ({"num_hidden_layers": 1}, ["num_hidden_layers=1", "an integer from 2"]),
        ({"num_joint_layers": -1}, ["num_joint_layers=-1", "an integer from 0"]),
        ({"num_joint_layers": 0.5}, ["num_joint_layers=0.5", "an integer from 0"]),
        ({"num_joint_layers": True}, ["num_joint_layers=True", "an integer from 0"]),
        ({"num_joint_layers": 1, "network": "resnet"}, ["num_joint_layers=1", "network='mlp'"]),
        ({"num_joint_layers": 1, "couple_data": False}, ["num_joint_layers=1", "couple_data=True"]),
        ({"dropout": 1.0}, ["dropout=1.0", "below 1"]),
        ({"dropout": -0.1}, ["dropout=-0.1", "from 0"]),
        ({"dropout": math.nan}, ["dropout=nan", "from 0"]),
        ({"dropout": True}, ["dropout=True", "a number"]),
        ({"dropout": 0.1, "network": "linear"}, ["dropout=0.1", "'linear'", "network='mlp'"]),
        (
            {"dropout": 0.1, "system": "ladder_vae"},
            ["dropout=0.1 means nothing", "leave it at 0.0"],
        ),
        ({"generative_dropout": 1.0}, ["generative_dropout=1.0", "below 1"]),
        (
            {"generative_dropout": 0.1, "network": "resnet"},
            ["generative_dropout=0.1", "'resnet'", "network='mlp'"],
        ),
        ({"block_dropout": -0.1}, ["block_dropout=-0.1", "from 0"]),
        (
            {
                "block_dropout": 0.1,
                "flow_direct_connections": True,
                "data_layer": "masked_autoregressive_flow",
            },
            ["block_dropout=0.1 would hide", "set one of them"],
        ),
        (
            {"block_dropout": 0.1, "couple_data": False},
            ["block_dropout=0.1 means nothing", "leave it at 0.0", "couple_data=True"],
        ),
        ({"data_channels": 4}, ["data_channels=4", "leave it at 0", "network='resnet'"]),
        (
            {"data_channels": 4, "network": "resnet"},
            ["data_channels=4", "leave it at 0", "'checkerboard' or 'tiles'"],
        ),
        (
            {**LATTICE, "data_layer": "masked_autoregressive_flow"},
            ["data_channels=4", "another data_layer"],
        ),
        (
            {**LATTICE, "latent_shape": (1, 2, 2)},
            ["needs codes that are vectors", "latent_shape=(1, 2, 2)", "such as (10,)"],
        ),
        ({"state_size": -1}, ["state_size=-1", "an integer from 0"]),
        ({"state_size": 4, "context": 2}, ["state_size=4 means nothing to", "context=2"]),
        ({"state_size": 4, "carry_start": 0.5}, ["state_size=4 means nothing to", "carry_start"]),
        (
            {"state_size": 4, "latent_shape": (0,), "data_layer": "masked_autoregressive_flow"},
            ["state_size=4 needs codes", "leave it at 0"],
        ),
        ({"bijector_diagonal_min": 1.0}, ["bijector_diagonal_min=1.0", "below 1"]),
        (
            {"bijector_diagonal_min": 0.3, "carry_start": 0.97},
            ["bijector_diagonal_min=0.3 must be below 0.243", "carry_start=0.97"],
        ),
        (
            {"bijector_diagonal_min": 0.3, "bijector": "identity"},
            ["bijector_diagonal_min=0.3 means nothing to", "rank_one_affine"],
        ),
        (
            {"sigma_min": 0.5, "prior": "standard_normal"},
            ["sigma_min=0.5 means nothing to", "prior='gaussian'"],
        ),
        ({"sigma_max": 3.0, "prior": "standard_normal"}, ["sigma_max=3.0 means nothing to"]),
        (
            {"carry_start": 0.9, "bijector": "spline_coupling"},
            ["carry_start=0.9 means nothing to", "rank_one_affine"],
        ),
        ({"block_order": "boustrophedn"}, ["'boustrophedn'", "did you mean 'boustrophedon'?"]),
        (
            {"block_order": "boustrophedon"},
            ["means nothing to partition='raster'", "'checkerboard' or 'tiles'"],
        ),
        (
            {"block_order": "hilbert", "partition": "checkerboard", "num_layers": 9},
            ["block_order='hilbert'", "num_layers=9 is not 1, 4, 16, 64 ...", "boustrophedon"],
        ),
        ({"latent_sizes": (2, 1, 1), "prior": "spline"}, ["prior='spline'", "set it to ()"]),
        ({"couple_prior": "yes"}, ["couple_prior='yes'", "True or False"]),
        ({"couple_bijector": 1}, ["couple_bijector=1", "True or False"]),
        ({"couple_data": None}, ["couple_data=None", "True or False"]),
        ({"couple_data_to_prior": "off"}, ["couple_data_to_prior='off'", "True or False"]),
        (
            {"condition_residual_on_latents": 0},
            ["condition_residual_on_latents=0", "True or False"],
        ),
        ({"bijector": "rank_one"}, ["bijector='rank_one'", "did you mean 'rank_one_affine'?"]),
        ({"data_layer": "bernouli"}, ["data_layer='bernouli'", "did you mean 'bernoulli'?"]),
        ({"network": "transformer"}, ["network='transformer'", "mlp, resnet"]),
        ({"rematerialize": 1}, ["rematerialize=1", "True or False"]),
        ({"num_mixtures": 0}, ["num_mixtures=0", "an integer from 1"]),
        ({"sigma_min": -0.1}, ["sigma_min=-0.1"]),
        ({"sigma_min": 2.0}, ["sigma_min=2.0", "sigma_max=2.0", "sigma_min < sigma_max"]),
        ({"sigma_min": math.nan}, ["sigma_min=nan"]),
        ({"sigma_max": math.inf}, ["sigma_max=inf"]),
        ({"sigma_max": 1e300}, ["sigma_max=1e+300", "float32"]),
        ({"residual_scale_start": 0.0}, ["residual_scale_start=0.0", "between 0 and 1"]),
        ({"residual_scale_start": 1.0}, ["residual_scale_start=1.0", "between 0 and 1"]),
        ({"residual_scale_start": "1"}, ["residual_scale_start='1'", "number"]),
        ({"sigma_max": "2"}, ["sigma_max='2'", "number"]),
        ({"data_scale": -1.0}, ["data_scale=-1.0", "above 0"]),
        ({"data_scale": math.nan, "data_layer": "gaussian"}, ["data_scale=nan"]),
        (
            {"data_scale": 0.5},
            ["data_scale=0.5", "'bernoulli'", "leave it at 0.0", "data_layer='gaussian'"],
        ),
        ({"data_scale": True, "data_layer": "gaussian"}, ["data_scale=True", "number"]),
        ({"hiden_size": 8}, ["hiden_size", "did you mean 'hidden_size'?"]),
        ({"colour": "red"}, ["colour is not a field"]),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_an_impossible_model_is_refused_in_one_line_before_compilation(
    compilations, overrides, words
):
    with pytest.raises(sere_jax.ConfigError) as refusal:
        sere_jax.create_model({"model": {**TINY, **overrides}})

    message = str(refusal.value)
    assert message.startswith("config.model.")
    assert "\n" not in message
    for word in (next(iter(overrides)), *words):
        assert word in message
    assert compilations() == []


@pytest.mark.parametrize(
    "config",
    [None, {}, {"data_shape": (2, 2, 1)}, {"model": None}, {"model": 3}, {"model": [1]}],
    ids=str,
)
def test_a_missing_model_is_refused(config):
    with pytest.raises(
        sere_jax.ConfigError, match=r"config\.model is missing; give .* ModelConfig"
    ):
        sere_jax.create_model(config)


@pytest.mark.parametrize("field", ["data_shape", "num_layers", "latent_shape"])
def test_a_missing_field_is_named(field):
    fields = {name: value for name, value in TINY.items() if name != field}

    with pytest.raises(sere_jax.ConfigError, match=f"config.model.{field} is missing"):
        sere_jax.create_model({"model": fields})


def test_a_system_of_ones_own_may_read_every_field():
    fields = {**TINY, "couple_prior": False, "dropout": 0.1, "prior_temperature": 0.1}
    assert sere_jax.ModelConfig(**fields, system="mine").dropout == 0.1
    with pytest.raises(sere_jax.ConfigError, match="couple_prior=False means nothing to system="):
        sere_jax.ModelConfig(**fields, system="ladder_vae")


def test_the_docstring_says_what_each_field_means():
    for field in dataclasses.fields(sere_jax.ModelConfig):
        assert f"        {field.name}: " in sere_jax.ModelConfig.__doc__


def test_creating_a_model_compiles_nothing(compilations):
    model = sere_jax.create_model({"model": TINY})
    assert compilations() == []

    jax.jit(lambda x: x + model.config.num_layers)(np.ones(1))
    assert len(compilations()) == 1


@pytest.mark.parametrize(
    "config",
    [
        sere_jax.ModelConfig(**TINY),
        {"model": {**TINY, "data_shape": [2, 3, 1], "latent_shape": [2]}},
        {"model": {**TINY, "latent_shape": 2}, "training": {"batch_size": 3}},
        ml_collections.ConfigDict({"model": TINY}).lock(),
        ml_collections.FrozenConfigDict({"model": {**TINY, "data_shape": [2, 3, 1]}}),
    ],
    ids=lambda config: type(config).__name__,
)
def test_lists_tuples_and_config_dicts_give_the_same_model(config):
    model = sere_jax.create_model(config)

    assert model == sere_jax.create_model({"model": TINY})
    assert hash(model) == hash(sere_jax.create_model({"model": TINY}))
    assert model.config.data_shape == (2, 3, 1)
    assert model.config.latent_shape == (2,)


OF_NUMPY = {
    "data_shape": np.array([2, 3, 1]),
    "num_layers": np.int64(3),
    "latent_shape": [np.prod((1, 2))],
    "latent_sizes": np.array([2, 1, 1], ">i4"),
    "hidden_size": np.array(8),
    "sigma_min": np.float32(0.25),
    "carry_start": jnp.float32(0.5),
    "couple_prior": np.bool_(False),
    "system": np.str_("sere_vae"),
}
OF_PYTHON = {
    "data_shape": (2, 3, 1),
    "num_layers": 3,
    "latent_shape": (2,),
    "latent_sizes": (2, 1, 1),
    "hidden_size": 8,
    "sigma_min": 0.25,
    "carry_start": 0.5,
    "couple_prior": False,
    "system": "sere_vae",
}


@pytest.mark.parametrize("wrap", [dict, ml_collections.ConfigDict, ml_collections.FrozenConfigDict])
def test_numbers_of_numpy_become_those_of_python(wrap):
    config = sere_jax.create_model({"model": wrap(OF_NUMPY)}).config
    expected = sere_jax.ModelConfig(**OF_PYTHON)

    assert config == expected
    assert hash(config) == hash(expected)
    assert json.dumps(dataclasses.asdict(config)) == json.dumps(dataclasses.asdict(expected))
    assert config == sere_jax.ModelConfig(**OF_NUMPY)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("data_shape", np.array([2.0, 3.0, 1.0]), "integers"),
        ("data_shape", np.array([[2, 3, 1]]), "3 entries"),
        ("num_layers", np.float64(3), "an integer"),
        ("num_layers", np.bool_(True), "an integer"),
        ("num_layers", np.array([3]), "an integer"),
        ("couple_prior", np.int64(1), "True or False"),
        ("sigma_min", np.float32(np.nan), "sigma_min=nan"),
        ("sigma_min", np.complex64(0.1), "must be a number"),
        ("sigma_min", np.bool_(True), "must be a number"),
    ],
    ids=str,
)
def test_numbers_of_numpy_are_refused_as_those_of_python_are(field, value, words):
    with pytest.raises(sere_jax.ConfigError, match=words) as refusal:
        sere_jax.ModelConfig(**{**TINY, field: value})
    assert field in str(refusal.value)


TABLES = {
    "system": functions.SYSTEMS,
    "data_layer": DATA_LAYERS,
    "bijector": bijector.BIJECTORS,
    "network": NETWORKS,
}


@pytest.mark.parametrize("field", OWN_NAMES)
def test_all_names_of_the_package_are_checked(field):
    assert set(OWN_NAMES[field]) == set(TABLES[field])


@pytest.mark.parametrize(
    ("field", "name", "setting"),
    [
        ("bijector", "rank_one_affine", {"carry_start": 0.5}),
        ("bijector", "rank_one_affine", {"bijector_diagonal_min": 0.1}),
        ("data_layer", "gaussian", {"data_scale": 0.5}),
        ("network", "mlp", {"num_joint_layers": 1}),
    ],
)
def test_an_entry_of_ones_own_may_read_every_field(tiny_config, monkeypatch, field, name, setting):
    monkeypatch.setitem(TABLES[field], "mine", TABLES[field][name])
    sere_jax.create_model(tiny_config(**{field: "mine"}, **setting))
