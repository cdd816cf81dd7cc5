"""Fields and their defaults; impossible configurations are refused by name."""

import functools
import importlib
import math
import pathlib
import pkgutil
import subprocess
import sys

import jax
import pytest

import configs
import sere_jax
from configs import base, cifar_checkerboard, mnist_comparison, mnist_mlp
from experiments.settings.checks import check_configuration, differences
from experiments.settings.fields import FIELDS
from experiments.system.errors import UserError

DEFAULTS = {
    "seed": 0,
    "dataset": {
        "affine_contrast": 1.0,
        "bad_files": "refuse",
        "condition": "",
        "data_dir": "",
        "download": True,
        "horizontal_flip": False,
        "image_size": 32,
        "name": "digits",
        "num_train_examples": 0,
        "path": "",
        "placement": "auto",
        "random_affine": 0.0,
        "random_affine_until": "80%",
        "shrink": 1,
        "validation_size": 0.1,
    },
    "model": {
        "bijector": "rank_one_affine",
        "block_dropout": 0.0,
        "block_order": "raster",
        "bijector_diagonal_min": 0.0,
        "state_size": 0,
        "carry_start": 0.0,
        "condition_residual_on_latents": True,
        "context": 1,
        "couple_bijector": True,
        "couple_data": True,
        "couple_data_to_prior": False,
        "couple_prior": True,
        "data_context": 1,
        "data_layer": "bernoulli",
        "data_scale": 0.0,
        "data_shape": (8, 8, 1),
        "dropout": 0.0,
        "encoder": "independent",
        "flow_direct_connections": False,
        "flow_hidden_size": 1024,
        "generative_dropout": 0.0,
        "hidden_size": 200,
        "latent_shape": (10,),
        "latent_sizes": (),
        "network": "mlp",
        "num_flows": 2,
        "num_hidden_layers": 2,
        "data_channels": 0,
        "num_joint_layers": 0,
        "num_layers": 10,
        "num_mixtures": 10,
        "partition": "raster",
        "posterior_temperature": 2 / 3,
        "prior": "gaussian",
        "prior_temperature": 0.5,
        "rematerialize": False,
        "residual_scale_start": 0.73,
        "sigma_max": 2.0,
        "condition_size": 0,
        "sigma_min": 0.1,
        "system": "sere_vae",
    },
    "training": {
        "accumulate_steps": 1,
        "batch_size": 200,
        "checkpoint_every": "1 epochs",
        "ema_decay": 0.9995,
        "evaluate_every": "1 epochs",
        "final_learning_rate_factor": 0.01,
        "importance_weighted_from": "0%",
        "initial_weights": "",
        "keep_checkpoints": 2,
        "kl_warmup": "10%",
        "kl_weight_start": 0.2,
        "learning_rate": 0.001,
        "learning_rate_schedule": "cosine",
        "schedule_horizon": "100%",
        "schedule_when_extended": "hold",
        "sinks": "",
        "max_consecutive_skips": 20,
        "max_gradient_norm": 100.0,
        "max_update_rms": 0.0,
        "num_epochs": 30,
        "num_steps": 0,
        "num_train_samples": 1,
        "optimizer": "adam",
        "patience": "",
        "precision": "float32",
        "steps_per_dispatch": 50,
        "warmup": "500 steps",
        "weight_decay": 0.0,
        "weight_decay_on": "all",
    },
    "evaluation": {
        "batch_size": 100,
        "checkpoint": "best",
        "num_examples": 0,
        "num_importance_samples": 1000,
        "samples_at_once": 10,
        "split": "test",
        "test_elbo_every": "",
    },
    "sampling": {
        "completion_steps": 100,
        "num_images": 100,
        "seed": 0,
    },
    "paper": {
        "expected_nll": None,
        "nll": None,
    },
}

INVALID = {
    "seed": [-1, 2**32, 1.5],
    "dataset.name": [3, None],
    "dataset.data_dir": [None],
    "dataset.path": [0],
    "dataset.bad_files": ["", "ignore", None],
    "dataset.placement": ["", "disk", None],
    "dataset.validation_size": [0.0, -3.0, 2.5],
    "dataset.num_train_examples": [-1],
    "dataset.image_size": [0],
    "dataset.shrink": [0, 1.5],
    "dataset.horizontal_flip": [1],
    "dataset.random_affine": [-0.1, 1.5],
    "dataset.random_affine_until": ["late", "5"],
    "dataset.affine_contrast": [0.0, -1.0, float("nan")],
    "dataset.condition": ["class", None, 1],
    "training.initial_weights": [None],
    "training.batch_size": [0, -5],
    "training.accumulate_steps": [0, 1.5],
    "training.precision": ["float16", "bf16"],
    "training.num_epochs": [0],
    "training.num_steps": [-1, 2**31],
    "training.num_train_samples": [0],
    "training.importance_weighted_from": ["late", "5"],
    "training.optimizer": ["sgdd"],
    "training.weight_decay": [-0.1],
    "training.weight_decay_on": ["biases", None],
    "training.learning_rate": [0.0, -1e-3, float("nan"), float("inf"), 1e300],
    "training.learning_rate_schedule": ["step"],
    "training.final_learning_rate_factor": [1.5],
    "training.warmup": ["soon", "5", 5, "1e999 epochs"],
    "training.kl_weight_start": [-0.1, 2.0],
    "training.kl_warmup": ["half"],
    "training.max_gradient_norm": [-1.0],
    "training.max_update_rms": [-0.1],
    "training.ema_decay": [1.0, -0.1],
    "training.max_consecutive_skips": [0],
    "training.steps_per_dispatch": [0],
    "training.evaluate_every": ["0 steps", "00 steps", "0%", "often"],
    "training.checkpoint_every": ["0 epochs", "0.0 epochs", 10],
    "training.patience": ["0 epochs", "soon", 5],
    "training.keep_checkpoints": [0],
    "training.sinks": ["excel", "csv,", "wandb;csv", 1],
    "training.schedule_horizon": ["0 steps", "long", 40],
    "training.schedule_when_extended": ["again"],
    "evaluation.num_importance_samples": [0],
    "evaluation.batch_size": [0],
    "evaluation.samples_at_once": [0],
    "evaluation.num_examples": [-1],
    "evaluation.test_elbo_every": ["0 steps", "often", 0],
    "evaluation.checkpoint": ["first"],
    "evaluation.split": ["train", "held_out", None],
    "sampling.num_images": [-1],
    "sampling.seed": [-1],
    "sampling.completion_steps": [-1, 1.5],
    "paper.nll": ["low", float("nan")],
    "paper.expected_nll": ["low", float("nan")],
}


def set_field(config, path, value):
    *parents, name = path.split(".")
    for parent in parents:
        config = config[parent]
    with config.ignore_type():
        config[name] = value


def test_the_fields_and_their_defaults_are_those_of_the_runs_that_are_kept():
    config = base.get_config()
    assert config.is_locked
    assert config.to_dict() == DEFAULTS
    assert config.paper.get_type("nll") is config.paper.get_type("expected_nll") is float
    required = {
        name: DEFAULTS["model"][name] for name in ("data_shape", "num_layers", "latent_shape")
    }
    assert sere_jax.ModelConfig(**required) == sere_jax.create_model(config).config


def test_the_page_of_options_is_made_from_the_declarations():
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-m", "experiments.settings"]  # without extensions of other tests
    made = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert (root / "docs" / "options.md").read_text() == made


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, values in INVALID.items() for value in values]
)
def test_an_impossible_value_is_refused_by_name(path, value):
    config = base.get_config()
    set_field(config, path, value)
    with pytest.raises(UserError) as error:
        check_configuration(config)
    assert f"config.{path}={value!r}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_late_beginning_of_several_samples_needs_several():
    config = base.get_config()
    config.training.importance_weighted_from = "80%"
    with pytest.raises(UserError, match="importance_weighted_from='80%' means nothing with"):
        check_configuration(config)
    config.training.num_train_samples = 2
    check_configuration(config)


def test_every_rule_is_tried_with_a_value_that_breaks_it():
    assert set(FIELDS) - set(INVALID) == {"dataset.download"}


def test_an_unknown_field_is_refused_with_the_nearest():
    config = base.get_config().unlock()
    config.training.optimiser = "adam"
    with pytest.raises(UserError, match=r"training\.optimiser is not a field; .*optimizer'"):
        check_configuration(config)


def test_a_value_where_a_section_belongs_is_refused():
    config = base.get_config().unlock()
    del config.dataset
    config.dataset = "digits"
    with pytest.raises(UserError, match=r"config\.dataset\.name is missing: 'digits' stands"):
        check_configuration(config)


def test_a_missing_field_is_refused_by_name():
    config = base.get_config().unlock()
    del config.training.optimizer
    with pytest.raises(UserError, match=r"config\.training\.optimizer is missing"):
        check_configuration(config)


MODULES = [
    importlib.import_module(f"configs.{module.name}")
    for module in pkgutil.iter_modules(configs.__path__)
]


@pytest.mark.parametrize(
    ("module", "variant"),
    [(module, variant) for module in MODULES for variant in module.VARIANTS],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_configurations_of_the_project_are_valid_and_locked(module, variant):
    config = module.get_config(variant)
    check_configuration(config)
    sere_jax.create_model(config)
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.model.hiden_size = 3
    expected = config.paper.expected_nll
    assert expected is None or f" {expected:g} " in module.__doc__.replace("\n", " ")


@pytest.mark.parametrize("module", MODULES)
def test_an_unknown_variant_is_refused_with_the_choices(module):
    with pytest.raises(ValueError, match="unknown variant 'nope'; choose one of: .*none"):
        module.get_config("nope")


def test_variants_switch_the_couplings_of_the_design_table():
    columns = ("couple_prior", "couple_bijector", "couple_data")
    table = {
        "case1": (False, False, False),
        "case2": (False, False, True),
        "case3": (True, True, True),
        "dlgm": (False, True, True),
    }
    for module in (mnist_mlp, cifar_checkerboard):
        for variant, couplings in table.items():
            if variant in module.VARIANTS:
                model = module.get_config(variant).model
                assert tuple(model[column] for column in columns) == couplings


@pytest.mark.parametrize("system", mnist_comparison.SYSTEMS)
def test_compared_systems_have_as_many_parameters_as_the_sere_vae(system):
    sizes = [
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(_parameters(name)))
        for name in ("sere_vae", system)
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.03)


@functools.cache
def _parameters(system):
    model = sere_jax.create_model(mnist_comparison.get_config(system))
    return jax.eval_shape(functools.partial(sere_jax.init, model), jax.random.key(0))


def test_differences_name_path_and_both_values():
    ours = {"a": {"b": 1, "c": 2}, "d": [1, 2], "e": 0}
    theirs = {"a": {"b": 1, "c": 3}, "d": [1, 2], "f": 0}
    assert differences(ours, theirs) == [
        "a.c: 3 -> 2",
        "e: '(missing)' -> 0",
        "f: 0 -> '(missing)'",
    ]
    assert differences(ours, theirs, ignored=("a", "e", "f")) == []
